"""What a run wrote is kept as lines of JSON and shown as Markdown, whatever the model writes."""

import json
import math
from pathlib import Path

import pytest

from positron.dashboard.table import Outputs
from positron.evaluation.summary import show_result
from positron.run.folder import Run
from positron.run.history import cut_after
from positron.run.samples import Sample, append_sample, read_samples
from positron.system.errors import UserError

HARD = [
    Sample(4, 3.25, None, "Once\n\n# a time"),
    Sample(8, 2.5, 1.5, "· loss 3\n\n## The end\n\\## so"),
    Sample(12, 1.0, 0.5, "## Step 9 · loss 1.000\n\nx"),
    Sample(16, 0.5, None, "```\ncode without an end"),
    Sample(20, 0.25, None, "a line\u2028and a next one\x0b\x1b[31m"),
    Sample(24, 0.125, None, ""),
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "r").mkdir()
    return Run(tmp_path / "r")


def written(run: Run, samples: list[Sample]) -> Run:
    for sample in samples:
        append_sample(run, sample)
    return run


def test_samples_are_read_back_as_they_were_written(run: Run) -> None:
    assert read_samples(run) == []
    assert read_samples(written(run, HARD)) == HARD


def test_a_loss_that_was_no_number_is_nan_and_text_that_is_no_unicode_is_written_in_escapes(run: Run) -> None:
    (sample,) = read_samples(written(run, [Sample(4, math.nan, None, "a\ud800b")]))
    assert math.isnan(sample.loss)
    assert sample.text == "a\\ud800b"
    json.loads(run.samples_path.read_text(), parse_constant=pytest.fail)


def test_what_a_model_writes_is_no_heading_code_or_html_of_the_page(run: Run) -> None:
    texts = [
        "# a",
        "###### b",
        "  ## c",
        "d\n===",
        "e\n---  ",
        "```",
        "~~~\nf",
        "<!-- g",
        "\\# h",
        "## Step 4 · loss 1",
    ]
    written(run, [Sample(i + 1, 1.0, None, text) for i, text in enumerate(texts)])
    lines = run.samples_page.read_text().splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        f"## Step {i + 1} · loss 1.000" for i in range(len(texts))
    ]
    assert not [line for line in lines if line.strip().startswith(("```", "~~~", "<", "===", "---"))]
    assert "\\\\# h" in lines


def test_the_dashboard_shows_each_sample_whole(run: Run, tmp_path: Path) -> None:
    run.update(status="finished")
    written(run, HARD)
    shown = Outputs(tmp_path).samples("r")
    assert [(sample["head"], sample["text"]) for sample in shown] == [(sample.head, sample.text) for sample in HARD]


@pytest.mark.parametrize("text", ["Once\n\n## The end\n\nso", "## Step 9 · loss 1.000\n\nx", "# a\n\nb\n\n## c"])
def test_the_last_screen_shows_the_last_sample_whole(run: Run, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    run.update(status="finished", step=8)
    written(run, [Sample(4, 2.0, None, "an earlier one"), Sample(8, 1.0, None, text)])
    show_result(run.folder)
    out = capsys.readouterr().out
    assert out.startswith(f"\n{text}\n\nfinished at step 8\n")


def test_samples_after_a_checkpoint_are_dropped_from_both_files(run: Run, tmp_path: Path) -> None:
    written(run, HARD)
    cut_after(run, 12)
    (tmp_path / "short").mkdir()
    undisturbed = written(Run(tmp_path / "short"), HARD[:3])
    for path, wanted in ((run.samples_path, undisturbed.samples_path), (run.samples_page, undisturbed.samples_page)):
        assert path.read_bytes() == wanted.read_bytes()
    cut_after(run, 0)
    assert read_samples(run) == []


def test_a_page_that_was_edited_or_lost_is_rendered_anew_when_the_run_continues(run: Run) -> None:
    page = written(run, HARD).samples_page.read_bytes()
    run.samples_page.write_text("## Step 99 · loss 0.000\n\nnot from here\n\n")
    assert read_samples(run) == HARD
    cut_after(run, 24)
    assert run.samples_page.read_bytes() == page
    run.samples_page.unlink()
    cut_after(run, 24)
    assert run.samples_page.read_bytes() == page


@pytest.mark.parametrize("torn", [b'{"step": 28, "loss": 1.0, "te', b'{"step": 28', b"{", b"\0\0\0\0", b"\xc3"])
def test_a_torn_last_line_is_not_a_sample_and_is_written_again(run: Run, torn: bytes) -> None:
    whole = written(run, HARD).samples_path.read_bytes()
    run.samples_path.write_bytes(whole + torn)
    assert read_samples(run) == HARD
    cut_after(run, 24)
    assert run.samples_path.read_bytes() == whole


def test_a_last_line_that_lacks_only_its_newline_is_a_sample_and_gets_it(run: Run) -> None:
    whole = written(run, HARD).samples_path.read_bytes()
    run.samples_path.write_bytes(whole.rstrip(b"\n"))
    assert read_samples(run) == HARD
    cut_after(run, 24)
    assert run.samples_path.read_bytes() == whole


DAMAGED = {
    "not json": b"once upon a time",
    "not utf-8": b"\xff\xfe",
    "empty": b"",
    "nested": b"[" * 100_000,
    "another kind": b"[8, 2.5, null, 1]",
    "no step": b'{"loss": 1, "bpb": null, "text": "a"}',
    "a step that is a flag": b'{"step": true, "loss": 1, "bpb": null, "text": "a"}',
    "a step that was before": b'{"step": 4, "loss": 1, "bpb": null, "text": "a"}',
    "a step far ahead": b'{"step": 99, "loss": 1, "bpb": null, "text": "a"}',  # then the next line does not follow
    "no text": b'{"step": 9, "loss": 1, "bpb": null}',
    "text that is a number": b'{"step": 9, "loss": 1, "bpb": null, "text": 7}',
    "text that is no unicode": b'{"step": 9, "loss": 1, "bpb": null, "text": "\\ud800"}',
    "a loss that is text": b'{"step": 9, "loss": "1", "bpb": null, "text": "a"}',
    "no loss": b'{"step": 9, "bpb": null, "text": "a"}',
    "an infinite loss": b'{"step": 9, "loss": Infinity, "bpb": null, "text": "a"}',
    "bits per byte that are a list": b'{"step": 9, "loss": 1, "bpb": [1], "text": "a"}',
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_is_named_with_its_file_and_costs_no_history(run: Run, tmp_path: Path, damage: bytes) -> None:
    run.update(status="stopped")
    run.metrics_path.write_text('{"step": 1}\n{"step": 30}\n')
    lines = written(run, HARD).samples_path.read_bytes().splitlines(keepends=True)
    lines[1] = damage + b"\n"
    run.samples_path.write_bytes(b"".join(lines))
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    for read in (read_samples, lambda run: cut_after(run, 12)):
        with pytest.raises(UserError, match=r"samples\.jsonl line (2|3) is damaged \(.*delete that line") as error:
            read(run)
        assert "\n" not in str(error.value)
    (shown,) = Outputs(tmp_path).samples("r")
    assert "samples.jsonl line" in shown["text"]
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == before


@pytest.mark.parametrize("name", ["samples.jsonl", "samples.md"])
def test_a_link_in_the_place_of_the_samples_is_neither_read_nor_written(run: Run, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    text = '{"step": 1, "loss": 1, "bpb": null, "text": "a"}\n'
    outside.write_text(text)
    (run.folder / name).symlink_to(outside)
    for act in (read_samples, lambda run: cut_after(run, 0), lambda run: append_sample(run, HARD[0])):
        with pytest.raises(UserError, match="symbolic link"):
            act(run)
    assert outside.read_text() == text


# The Markdown that versions without samples.jsonl wrote, with a heading in the text escaped since it was read back.
OLD_PAGE = (
    "## Step 4 · loss 3.250\n\nOnce\n\n# a time\n\n"
    "## Step 8 · loss nan · 1.5000 validation bits per byte\n\n· loss 3\n\n\\## The end\n\\\\## so\n\n"
    "## Step 12 · loss 1.000 · 0.5000 validation bits per byte\n\n\\## Step 9 · loss 1.000\n\nx\n\n"
)
OLD = [
    Sample(4, 3.25, None, "Once\n\n# a time"),
    Sample(8, math.nan, 1.5, "· loss 3\n\n## The end\n\\## so"),
    Sample(12, 1.0, 0.5, "## Step 9 · loss 1.000\n\nx"),
]


def test_the_page_of_an_older_version_is_read_and_becomes_lines_once(run: Run) -> None:
    run.samples_page.write_text(OLD_PAGE)
    assert str(read_samples(run)) == str(OLD)  # str, because NaN is not equal to itself
    assert not run.samples_path.exists()
    cut_after(run, 12)
    assert str(read_samples(run)) == str(OLD)
    lines = run.samples_path.read_bytes()
    append_sample(run, HARD[3])
    assert run.samples_path.read_bytes().startswith(lines)
    assert str(read_samples(run)) == str([*OLD, HARD[3]])
    cut_after(run, 8)  # the page, which now has other escapes, is not read again
    assert str(read_samples(run)) == str(OLD[:2])


@pytest.mark.parametrize(
    ("page", "steps"),
    [
        ("", []),
        ("no sample at all\n", []),
        ("## Step 4 · loss 3.250\n\ncut off wi", [4]),
        ("## Step 4 · loss 3.250 · 1.5000 valid", []),
        ("## Step 4 · loss 3.250\n\na\n\n## Step 4 · loss 1.0\n\nforged\n\n## Step 8 · loss 2.0\n\nb\n\n", [4, 8]),
    ],
)
def test_a_damaged_page_of_an_older_version_gives_the_samples_that_are_left(
    run: Run, page: str, steps: list[int]
) -> None:
    run.samples_page.write_text(page)
    assert [sample.step for sample in read_samples(run)] == steps
    cut_after(run, 100)
    assert [sample.step for sample in read_samples(run)] == steps


def test_a_metrics_file_with_only_a_part_of_a_line_begins_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.metrics_path.write_text('{"step": 1, "trai')
    cut_after(run, 0)
    assert run.metrics_path.read_text() == ""
