"""Whether validation losses can be compared is decided in one place, by the number of bytes that the runs record."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny

from positron.dashboard.table import Outputs
from positron.evaluation.comparison import are_validated_alike, curves
from positron.evaluation.sweep_report import as_text, sweep_jobs
from positron.run.facts import Facts, write_record
from positron.run.folder import Run
from positron.run.measure import measure_of
from positron.run.validated import comparable, validation_text
from positron.training.callbacks.pruning import finished_curves

CHAR, SPM = {"kind": "char"}, {"kind": "sentencepiece"}


def text(n_bytes: int | None, val_tokens: int = 100, tokenizer: Any = CHAR, text: str = "t", **data: Any) -> Any:
    config = {"data": data, "train": {"val_tokens": val_tokens}, "tokenizer": tokenizer}
    return validation_text(Facts(data_fingerprint=text, val_bytes=n_bytes), config)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (text(3000, 100), text(3000, 200, SPM), True),  # both validate the whole text
        (text(3000, 100, CHAR), text(12_000, 100, SPM), False),
        (text(3000), text(3020), True),
        (text(3000), text(3000, text="u"), False),
        (text(3000, seed=0), text(3000, seed=1), False),
        (text(3000, val_fraction=0.1), text(3000, val_fraction=0.2), False),
        (text(None), text(None), True),  # not validated yet, or of an older version
        (text(None), text(None, 200), False),
        (text(None), text(None, tokenizer=SPM), False),
        (text(None), text(3000), True),
        (text(None, 200), text(3000, 100), False),
        (text(None, tokenizer="damaged"), text(None, tokenizer="damaged"), True),
    ],
)
def test_texts_are_the_same_if_their_recorded_lengths_are(one: Any, other: Any, same: bool) -> None:
    for texts in ([one, other], [other, one]):
        first, second = comparable(texts)
        assert (first == second) == same


def test_each_run_of_a_group_has_the_same_representative_whatever_the_order() -> None:
    texts = [text(3000), text(9000, 300), text(None, 300), text(3010), text(None), text(9050, 400, SPM)]
    groups = comparable(texts)
    assert groups == [texts[0], texts[1], texts[1], texts[0], texts[0], texts[1]]
    assert comparable(texts[::-1]) == groups[::-1]


def make_job(sweep: Path, number: int, n_bytes: int | None, bpb: float = 0.3, **settings: Any) -> None:
    run = Run(sweep / str(number))
    run.folder.mkdir(parents=True)
    write_record(run.config_path, dataclasses.asdict(tiny(sweep, **settings)))
    facts = {"status": "finished", "val/bpb": bpb, "data_fingerprint": "f", "val/bytes": n_bytes}
    write_record(run.facts_path, facts)
    words = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    run.job_path.write_text(json.dumps({"overrides": words, "failed": None}))
    run.metrics_path.write_text(json.dumps({"step": 3, "tokens": 9, "val/bpb": bpb}) + "\n")


@pytest.mark.parametrize("are_same", [True, False])
def test_the_sweep_the_dashboard_pruning_and_compare_agree(tmp_path: Path, are_same: bool) -> None:
    make_job(tmp_path, 0, 3000, train__val_tokens=2000)
    make_job(tmp_path, 1, 3000 if are_same else 3500, train__val_tokens=9000)
    assert ("beginnings of different length" not in as_text(sweep_jobs(tmp_path))) == are_same
    first, second = Outputs(tmp_path).rows()
    assert (first["validated"] == second["validated"]) == are_same
    assert bool(finished_curves(tmp_path, tmp_path / "0")) == are_same
    assert are_validated_alike([Run(tmp_path / "0"), Run(tmp_path / "1")]) == are_same


def test_the_accuracy_of_jobs_on_different_base_runs_can_be_compared(tmp_path: Path) -> None:
    """The text of the base run decides only the bits per byte, which does not rank jobs of `prefer` and `reinforce`."""
    for number, base in enumerate(("stories", "shakespeare")):
        make_job(tmp_path, number, 3000 + 900 * number)
        run = Run(tmp_path / str(number))
        facts = {
            "kind": "preference",
            "status": "finished",
            "data_fingerprint": "pairs",
            "val/bytes": 3000 + 900 * number,
        }
        write_record(run.facts_path, {**facts, "validated_on": base})
        run.metrics_path.write_text(
            json.dumps({"step": 3, "tokens": 9, "val/bpb": 0.3, "preference/accuracy": 0.9}) + "\n"
        )
    assert "cannot be compared" not in as_text(sweep_jobs(tmp_path))
    assert finished_curves(tmp_path, tmp_path / "0") == [{3: -0.9}]
    assert not are_validated_alike([Run(tmp_path / "0"), Run(tmp_path / "1")])


def test_rewards_for_different_numbers_of_prompts_are_not_compared() -> None:
    def asked(**settings: int) -> Any:
        config = {"data": {}, "reinforce": settings}
        return validation_text(Facts(kind="reinforce", data_fingerprint="prompts"), config, measure_of("reinforce"))

    assert asked(val_prompts=32, val_samples=4) == asked(val_prompts=32, val_samples=8)
    assert asked(val_prompts=32) != asked(val_prompts=64)


def test_jobs_that_failed_do_not_make_the_scores_of_the_others_incomparable(tmp_path: Path) -> None:
    for number, share in enumerate((0.1, 0.1, 0.2)):
        make_job(tmp_path, number, 3000, data__val_fraction=share, optimizer__lr=number + 1)
    path = Run(tmp_path / "2").job_path
    path.write_text(json.dumps({**json.loads(path.read_text()), "failed": "no document is left"}))
    assert "cannot be compared" not in as_text(sweep_jobs(tmp_path))


def test_damaged_metrics_cost_only_the_curve_of_their_run(tmp_path: Path, logged: list[str]) -> None:
    rows = {"a": '{"step": 1, "tokens": 1000000, "val/bpb": 2.0}\n', "b": "[]\n"}
    for name, text in rows.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(text)
    names = [str(tmp_path / name) for name in rows]
    assert curves([Run(tmp_path / name) for name in rows]) == {names[0]: [(1.0, 2.0)], names[1]: []}
    assert logged[-1].startswith(f"the picture has no curve of {names[1]}: ")
