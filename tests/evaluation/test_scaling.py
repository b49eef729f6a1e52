"""The scaling law: known laws are found again, its intervals hold, and what the runs cannot tell is said."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pytest
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from positron import scaling
from positron.config import GPTConfig
from positron.evaluation import comparison, scaling_points
from positron.evaluation.run_plots import scaling_picture
from positron.evaluation.scaling_law import fit_law, log_excess
from positron.evaluation.statistics import t95
from positron.run.folder import Run
from positron.system import disk
from positron.system.errors import UserError
from positron.system.formatting import amount
from positron.text.char_word import CharTokenizer

N = np.array([1e5, 2e5, 4e5, 8e5, 1.6e6])
GRID_N, GRID_D = (values.ravel() for values in np.meshgrid([1e5, 2e5, 4e5, 8e5], [2e6, 8e6, 3.2e7]))


def both(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return 30 * n**-0.4 + 200 * d**-0.5


@pytest.mark.parametrize("floor", [0.5, None])
def test_a_law_without_noise_is_found_exactly(floor: float | None) -> None:
    law = fit_law(GRID_N, GRID_D, 0.5 + both(GRID_N, GRID_D), floor)
    assert law.reduced is None
    assert law.exponent("N")[0] == pytest.approx(0.4, rel=1e-7)
    assert law.exponent("D")[0] == pytest.approx(0.5, rel=1e-7)
    assert law.coefficient("N") == pytest.approx(30, rel=1e-6)
    assert law.coefficient("D") == pytest.approx(200, rel=1e-6)
    assert (law.floor or law.coefficient("E")) == pytest.approx(0.5, rel=1e-7)
    assert law.bpb(3e6, 1e8).item() == pytest.approx(0.5 + both(np.array(3e6), np.array(1e8)), rel=1e-7)


@pytest.mark.parametrize("floor", [0.2, None])
@pytest.mark.parametrize("d", [20 * N, np.full(5, 4e6)], ids=["in proportion", "all the same"])
def test_where_tokens_go_with_parameters_one_power_law_along_them_is_found(d: np.ndarray, floor: float | None) -> None:
    law = fit_law(N, d, 0.2 + 30 * N**-0.6, floor)
    assert law.reduced == "N"
    assert law.exponent("N")[0] == pytest.approx(0.6, rel=1e-6)
    assert law.coefficient("N") == pytest.approx(30, rel=1e-5)
    assert law.partner(3.2e6) == pytest.approx(20 * 3.2e6 if d[0] < d[-1] else 4e6)


def test_one_size_at_several_lengths_is_a_law_of_tokens() -> None:
    law = fit_law(np.full(5, 1e6), 20 * N, 0.2 + 900 * (20 * N) ** -0.5, 0.2)
    assert law.reduced == "D"
    assert law.exponent("D")[0] == pytest.approx(0.5, rel=1e-6)
    assert law.partner(1e8) == pytest.approx(1e6)


@pytest.mark.parametrize("terms", [("N",), ("D",), ("E", "N"), ("N", "D"), ("E", "N", "D")])
def test_the_jacobian_is_that_of_finite_differences(terms: tuple[str, ...]) -> None:
    rng = np.random.default_rng(len(terms))
    logs = {"N": rng.normal(size=7), "D": rng.normal(size=7)}
    theta = rng.normal(size=sum(1 if term == "E" else 2 for term in terms))
    _, jacobian = log_excess(theta, terms, logs)
    for place in range(len(theta)):
        change = np.zeros_like(theta)
        change[place] = 1e-6
        up, down = (log_excess(theta + sign * change, terms, logs)[0] for sign in (1, -1))
        np.testing.assert_allclose(jacobian[:, place], (up - down) / 2e-6, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(st.permutations(range(12)), st.integers(0, 100))
def test_the_order_of_the_runs_does_not_matter(order: list[int], seed: int) -> None:
    bpb = 0.5 + both(GRID_N, GRID_D) * np.exp(0.02 * np.random.default_rng(seed).normal(size=12))
    first, second = (fit_law(GRID_N[o], GRID_D[o], bpb[o], 0.5) for o in (list(range(12)), order))
    assert np.array_equal(first.theta, second.theta)
    assert first.sigma == second.sigma


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "d", "truth", "alpha", "floor", "times"),
    [
        pytest.param(N, 20 * N, lambda n, d: 30 * n**-0.6, 0.6, 0.2, 100, id="one term"),
        pytest.param(GRID_N, GRID_D, both, 0.4, 0.5, 40, id="both terms"),
        pytest.param(
            np.geomspace(1e5, 6.4e6, 9),
            np.geomspace(2e6, 1.3e8, 9),
            lambda n, d: 30 * n**-0.5,
            0.5,
            None,
            40,
            id="E fitted",
        ),
    ],
)
def test_95_percent_intervals_hold_the_truth_about_95_times_in_100(n, d, truth, alpha, floor, times) -> None:
    rng = np.random.default_rng(0)
    e, noise = floor or 0.2, 0.03 if floor else 0.003
    base = 0.0 if floor else e
    aim = (2 * n.max(), 2 * d.max())
    hits = np.zeros(2)
    for _ in range(times):
        bpb = (e - base) + (base + truth(n, d)) * np.exp(noise * rng.normal(size=len(n)))
        law = fit_law(n, d, bpb, floor)
        exponent, half = law.exponent("N")
        low, high = law.interval(*aim)
        measured = (e - base) + (base + truth(*aim)) * np.exp(noise * rng.normal())
        hits += (abs(exponent - alpha) <= half, low <= measured <= high)
    luck = 3.5 * math.sqrt(0.95 * 0.05 / times)
    assert (hits / times >= 0.95 - luck).all(), hits / times
    assert (hits / times <= min(1.0, 0.95 + luck)).all(), hits / times


def test_a_run_that_went_wrong_moves_the_law_little() -> None:
    n = np.geomspace(1e5, 6.4e6, 9)
    bpb = 0.2 + 30 * n**-0.6 * np.exp(0.01 * np.random.default_rng(1).normal(size=9))
    bpb[4] = 2.0
    assert fit_law(n, 20 * n, bpb, 0.2).exponent("N")[0] == pytest.approx(0.6, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [4, 12, 17])
def test_where_noise_hides_the_floor_the_law_is_that_of_floor_0(seed: int) -> None:
    bpb = both(GRID_N, GRID_D) * np.exp(0.3 * np.random.default_rng(seed).normal(size=12))
    fitted, without = (fit_law(GRID_N, GRID_D, bpb, floor) for floor in (None, 0.0))
    assert fitted.coefficient("E") < 1e-6
    assert fitted.bpb(1e6, 1e8) == pytest.approx(without.bpb(1e6, 1e8), rel=1e-5)


def test_the_best_split_is_where_a_search_finds_the_least_loss() -> None:
    law = fit_law(GRID_N, GRID_D, 0.5 + both(GRID_N, GRID_D), 0.5)
    n, d = law.best_split(1e14)
    assert 6 * n * d == pytest.approx(1e14)
    tried = np.geomspace(n / 30, n * 30, 100_001)
    assert tried[law.bpb(tried, 1e14 / 6 / tried).argmin()] == pytest.approx(n, rel=1e-3)


def test_a_law_whose_loss_rises_with_tokens_is_drawn_too() -> None:
    law = fit_law(GRID_N, GRID_D, 0.5 + 30 * GRID_N**-0.4 + 1e-3 * GRID_D**0.1, 0.5)
    assert law.exponent("D")[0] < 0
    assert scaling_picture(law, GRID_N, GRID_D, 0.5 + both(GRID_N, GRID_D), (1e6, 1e8)).startswith(b"\x89PNG")


def test_student_quantiles_are_those_of_the_tables() -> None:
    for dof, value in ((1, 12.706), (3, 3.182), (10, 2.228), (11, 2.201), (20, 2.086), (60, 2.000), (10**6, 1.960)):
        assert t95(dof) == pytest.approx(value, abs=1e-3)


def test_too_few_runs_give_a_law_without_an_interval_and_still_fewer_none() -> None:
    n, d = N[:3], 20 * N[:3]
    exact = fit_law(n, d, 0.2 + 30 * n**-0.6, None)
    assert (exact.sigma, exact.covariance, exact.interval(1e6, 2e7)) == (None, None, None)
    assert exact.exponent("N")[1] is None
    two_lengths = np.tile([1e6, 4e6], 5)  # through two points and an unknown E goes any exponent
    alike = fit_law(np.repeat(N, 2), two_lengths, 0.5 + both(np.repeat(N, 2), two_lengths), None)
    assert (alike.dof, alike.covariance, alike.interval(1e6, 2e7)) == (5, None, None)
    with pytest.raises(UserError, match=r"has 4 constants to fit, so 3 runs are too few: name at least 4 runs"):
        fit_law(n, np.array([1e6, 9e6, 2e6]), 0.2 + 30 * n**-0.6, 0.1)
    with pytest.raises(UserError, match="hardly differ"):
        fit_law(np.full(3, 1e6), np.full(3, 1e7), np.array([0.4, 0.5, 0.6]), 0.1)


TOKENIZER = CharTokenizer("abcd ")


def made(folder: Path, width: int, tokens: int, bpb: float | None, floor: float | None = 0.2, **facts: object) -> None:
    """A run's folder as training leaves it, of what the scaling law reads."""
    config = tiny(folder, model__d_model=width)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step-000001.ckpt").touch()
    (folder / "tokenizer").mkdir()
    TOKENIZER.save(folder / "tokenizer")
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    known = {"status": "finished", "step": 9, "tokens": tokens, "data_fingerprint": "f", "floor_bpb": floor, **facts}
    (folder / "run.json").write_text(json.dumps(known | ({} if bpb is None else {"val/bpb": bpb})))


def parameters(width: int) -> int:
    return GPTConfig(
        vocab_size=TOKENIZER.vocab_size, context_length=32, d_model=width, n_layer=2, n_head=4
    ).matmul_params()


def sweep(folder: Path, widths: tuple[int, ...] = (16, 24, 32, 48, 64), **facts: object) -> Path:
    for i, width in enumerate(widths):
        made(folder / str(i), width, 20 * parameters(width), 0.2 + 5 * parameters(width) ** -0.4, **facts)
    return folder


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["scaling", *arguments])
    code = 0
    try:
        scaling.main()
    except SystemExit as exit_:
        code = int(str(exit_.code))
    return code, *capsys.readouterr()


def test_a_run_below_the_entropy_of_its_text_is_named(tmp_path, monkeypatch, capsys) -> None:
    folder = sweep(tmp_path / "sizes")
    made(folder / "5", 96, 1000, 0.19)
    code, _, err = said(monkeypatch, capsys, str(folder))
    assert code == 2
    assert f"{folder / '5'} has 0.1900 bits per byte, but no model can be below 0.2000" in err
    assert not (folder / "scaling.png").exists()


def test_the_command_shows_the_law_of_a_sweep_and_predicts_the_next_size(tmp_path, monkeypatch, capsys) -> None:
    folder = sweep(tmp_path / "sizes")
    made(folder / "5", 96, 1000, 0.9, status="stopped")
    code, out, err = said(monkeypatch, capsys, str(folder))
    assert code == 0, err
    assert "left out" in err
    assert "stopped at step 9" in err
    assert "E      0.2000, the entropy of the text in bits per byte" in out
    assert "alpha  0.400 ± 0.000" in out
    assert "every model saw about 20 tokens for each parameter" in out
    assert "\nprediction for " in out  # a size of no run of the table
    assert (folder / "scaling.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = said(monkeypatch, capsys, str(folder), "--json", "--png", str(tmp_path / "x.png"))
    facts = json.loads(out)
    assert [run["parameters"] for run in facts["runs"]] == [parameters(width) for width in (16, 24, 32, 48, 64)]
    twice = 2 * parameters(64)
    assert facts["next"]["parameters"] == twice
    assert facts["next"]["tokens"] == pytest.approx(20 * twice)
    assert facts["next"]["bpb"] == pytest.approx(0.2 + 5 * twice**-0.4, rel=1e-6)
    assert (tmp_path / "x.png").exists()
    code, out, err = said(monkeypatch, capsys, str(folder), "--png", str(tmp_path / "nowhere" / "x.png"))
    assert (code, out) == (2, ""), "before the runs are read"
    assert "there is no folder" in err


def test_a_folder_of_runs_that_cannot_be_written_is_named_with_the_option_for_the_picture(
    tmp_path, monkeypatch, capsys
) -> None:
    folder, open_inside = sweep(tmp_path / "sizes"), disk.open_inside

    def refuse(path: Path, mode: Any, root: Path | None = None) -> IO[bytes]:
        if mode == "xb":
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_inside(path, mode, root)

    monkeypatch.setattr(disk, "open_inside", refuse)
    code, out, err = said(monkeypatch, capsys, str(folder))
    assert "\nprediction for " in out
    assert (code, err.endswith("scaling.png: Permission denied; give --png FILE\n")) == (2, True)


def test_the_entropy_of_the_text_is_used_although_tokenizers_end_at_other_bytes(tmp_path: Path) -> None:
    floors = (0.2, 0.2001, 0.2002)
    for width, floor in zip((16, 32, 64), floors, strict=True):
        made(tmp_path / str(width), width, 1000, 0.9, floor)
    assert scaling_points.read_sizes(comparison.find_runs([str(tmp_path)], tmp_path))[1] == 0.2
    made(tmp_path / "old", 48, 1000, 0.9, None)
    assert scaling_points.read_sizes(comparison.find_runs([str(tmp_path)], tmp_path))[1] is None


@pytest.mark.slow
def test_sizes_and_lengths_that_vary_apart_tell_both_terms_and_the_best_split(tmp_path, monkeypatch, capsys) -> None:
    for i, (width, tokens) in enumerate((w, t) for w in (16, 32, 64) for t in (10**5, 3 * 10**5, 10**6)):
        loss = 5 * parameters(width) ** -0.4 + 30 * tokens**-0.5
        made(tmp_path / "runs" / str(i), width, tokens, 0.3 + loss, None if i == 0 else 0.2)
    code, out, _ = said(monkeypatch, capsys, str(tmp_path / "runs"), "--predict", "1M,20M", "--json")
    assert code == 0
    facts = json.loads(out)  # one run does not know the floor: it is fitted
    assert facts["law"]["E"]["coefficient"] == pytest.approx(0.3, rel=1e-5)
    assert facts["law"]["D"]["exponent"] == pytest.approx(0.5, rel=1e-5)
    assert facts["next"]["bpb"] == pytest.approx(0.3 + 5 * 1e6**-0.4 + 30 * 2e7**-0.5, rel=1e-5)
    assert 6 * facts["best_split"]["parameters"] * facts["best_split"]["tokens"] == pytest.approx(
        6 * parameters(64) * 10**6
    )
    code, out, _ = said(monkeypatch, capsys, str(tmp_path / "runs"))
    assert (code, "is spent best on" in out) == (0, True)


@pytest.mark.parametrize(
    ("case", "arguments", "message"),
    [
        ("two", (), "at least 3 finished pretraining runs, not 2"),
        ("empty", (), "no run with a checkpoint"),
        ("unvalidated", (), "not 0"),
        ("sizes", ("--predict", "1M,99M"), "cannot be answered from these runs, in which"),
        ("sizes", ("--predict", "big"), "such as 2M, or numbers of parameters and tokens, such as 2M,40M"),
        ("sizes", ("--predict", "1,2,3"), "such as 2M, or numbers of parameters and tokens, such as 2M,40M"),
    ],
)
def test_what_cannot_be_fitted_is_one_line_with_exit_code_2(case, arguments, message, tmp_path, monkeypatch, capsys):
    folder = tmp_path / case
    if case == "empty":
        folder.mkdir()
    elif case == "unvalidated":
        for i in range(3):
            made(folder / str(i), 16 * (i + 1), 1000, None)
    else:
        sweep(folder, *([(16, 24)] if case == "two" else []))
    code, out, err = said(monkeypatch, capsys, str(folder), *arguments)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert not (folder / "scaling.png").exists()


def test_runs_of_different_texts_are_refused_as_in_a_comparison(tmp_path, monkeypatch, capsys) -> None:
    folder = sweep(tmp_path / "sizes", data_fingerprint=None)
    config = json.loads((folder / "1" / "config.json").read_text())
    config["data"]["seed"] = 5
    (folder / "1" / "config.json").write_text(json.dumps(config))
    code, _, err = said(monkeypatch, capsys, str(folder))
    assert code == 2
    assert "different validation texts" in err.splitlines()[-1]
    assert "--text" not in err  # scaling has no such option


def test_runs_that_were_validated_on_beginnings_of_different_length_are_refused(tmp_path, monkeypatch, capsys) -> None:
    folder = sweep(tmp_path / "sizes")
    config = json.loads((folder / "1" / "config.json").read_text())
    limit, config["train"]["val_tokens"] = config["train"]["val_tokens"], 7
    (folder / "1" / "config.json").write_text(json.dumps(config))
    for tokens, refused in ((limit + 2, True), (limit + 1, True), (8, False)):
        monkeypatch.setattr(
            scaling_points, "token_files", lambda *_, n=tokens: SimpleNamespace(n_tokens=n, n_bytes=3 * n)
        )
        code, _, err = said(monkeypatch, capsys, str(folder))
        assert (code, f"train.val_tokens={limit} and 7" in err) == ((2, True) if refused else (0, False))
    for path in folder.glob("*/config.json"):
        Run(path.parent).update(val_bytes=3000)  # recorded: the text files are not needed
    monkeypatch.setattr(scaling_points, "token_files", None)
    assert said(monkeypatch, capsys, str(folder))[0] == 0
    Run(folder / "1").update(val_bytes=2000)
    code, _, err = said(monkeypatch, capsys, str(folder))
    assert (code, f"train.val_tokens={limit} and 7" in err) == (2, True)


def test_numbers_are_read_and_written_short() -> None:
    assert [amount(x) for x in (12_345_678, 999, 1_500, 2.5e9)] == ["12.3M", "999", "1.5k", "2.5B"]
    assert scaling.parse_size("2.5M,1B") == (2.5e6, 1e9)
    assert scaling.parse_size("300000") == (3e5, None)


@pytest.mark.slow
@pytest.mark.parametrize("again", ["sizes/2", "link", "sizes/../sizes/2"])
def test_a_run_that_is_named_twice_counts_once(again, tmp_path, monkeypatch, capsys) -> None:
    sweep(tmp_path / "sizes", (16, 24, 32))
    (tmp_path / "link").symlink_to(tmp_path / "sizes" / "2")
    monkeypatch.chdir(tmp_path)
    code, out, err = said(monkeypatch, capsys, "sizes/0", "sizes/1", "sizes/2", again, "--json")
    assert code == 0, err
    assert len(json.loads(out)["runs"]) == 3
    code, _, err = said(monkeypatch, capsys, "sizes/0", "sizes/1", "sizes/1", "sizes")
    assert code == 0, err
    code, _, err = said(monkeypatch, capsys, "sizes/0", "sizes/1", "sizes/1")
    assert (code, "at least 3 finished pretraining runs, not 2" in err) == (2, True)


@pytest.mark.parametrize("broken", ["config.json", "run.json", "tokenizer/tokenizer.json"])
def test_a_broken_run_is_named_and_left_out_of_the_law(broken, tmp_path, monkeypatch, capsys) -> None:
    folder = sweep(tmp_path / "sizes", (16, 24, 32, 48))
    (folder / "2" / broken).write_text("{broken")
    code, out, err = said(monkeypatch, capsys, str(folder), "--json")
    assert code == 0, err
    assert f"left out: {folder / '2'}" in err
    assert len(json.loads(out)["runs"]) == 3
