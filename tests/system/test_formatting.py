"""The same figure reads the same everywhere, in the right grammatical number; commands that are shown work."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from positron.evaluation.report import reasons_for_a_higher_training_loss
from positron.evaluation.summary import quality
from positron.run.find import announce
from positron.run.folder import Run
from positron.system.console import say_loading
from positron.system.formatting import (
    above_floor,
    aligned,
    amount,
    counted,
    read_amount,
    representative_bpb,
    tokens_per_parameter,
    took,
)


@pytest.mark.parametrize(
    ("bpb", "floor", "says"),
    [
        (0.2270, 0.2174, "4.4% above the floor of 0.2174"),  # 4.2% below the model would be another number
        (0.2715, 0.2174, "24.9% above the floor of 0.2174"),
        (0.1087, 0.2174, "50.0% below the floor of 0.2174"),  # a leak
        (0.4348, 0.2174, "100.0% above the floor of 0.2174"),
        (2.4566, 0.2174, "11.3 times the floor of 0.2174"),  # not "1030.0% above"
    ],
)
def test_the_distance_to_the_floor_is_a_share_of_the_floor_or_a_multiple_of_it(
    bpb: float, floor: float, says: str
) -> None:
    assert above_floor(bpb, floor) == says


@pytest.mark.parametrize(
    ("tokens", "parameters", "says"),
    [
        (2_900, 32_000, "0.091 tokens per parameter"),
        (90, 1_000, "0.09 tokens per parameter"),
        (1_000, 1_000, "1 token per parameter"),
        (1_430, 1_000, "1.4 tokens per parameter"),
        (20_000, 1_000, "20 tokens per parameter"),
        (1, 3_000_000, "3e-07 tokens per parameter"),
        (1_234_567, 1_000, "1,235 tokens per parameter"),
    ],
)
def test_tokens_per_parameter_are_not_rounded_away_and_stand_beside_the_usual(
    tokens: int, parameters: int, says: str
) -> None:
    assert tokens_per_parameter(tokens, parameters) == says + " (about 20 is the usual optimum)"


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (0.2, "less than a second"),
        (1.2, "1 second"),
        (5.0, "5 seconds"),
        (59.7, "1.0 minutes"),
        (216, "3.6 minutes"),
        (3590, "59.8 minutes"),
        (3599, "1.0 hours"),
        (9000, "2.5 hours"),
    ],
)
def test_a_short_training_is_not_rounded_to_no_time(seconds: float, says: str) -> None:
    assert took(seconds) == says


@pytest.mark.parametrize(
    ("value", "says"), [(999, "999"), (2_048, "2.05k"), (103_936, "104k"), (3_622_400, "3.62M"), (1.5e9, "1.5B")]
)
def test_a_small_amount_is_not_rounded_to_zero_millions(value: int, says: str) -> None:
    assert amount(value) == says


@pytest.mark.parametrize(
    ("below", "at", "says"),
    [(999.49, 999.5, "1k"), (999_499, 999_500, "1M"), (999_499_999, 999_500_000, "1B"), (9.9949e11, 9.995e11, "1T")],
)
def test_an_amount_that_rounds_to_1000_has_the_next_unit(below: float, at: float, says: str) -> None:
    assert amount(below).startswith("999")
    assert amount(at) == says


def test_nouns_follow_their_numbers() -> None:
    assert [counted(n, "document") for n in (0, 1, 2, 1200)] == [
        "0 documents",
        "1 document",
        "2 documents",
        "1,200 documents",
    ]
    assert counted(1, "story", "stories") == "1 story"
    assert counted(2, "story", "stories") == "2 stories"


def test_the_best_checkpoint_represents_fine_tuning_and_the_last_one_pretraining() -> None:
    assert representative_bpb(0.27, 0.26, on_answers=True) == 0.26
    assert representative_bpb(0.27, 0.26, on_answers=False) == 0.27
    assert "0.2606" in quality(0.2715, 0.2606, 0.2174, on_answers=True)
    assert "19.9% above the floor of 0.2174" in quality(0.2715, 0.2606, 0.2174, on_answers=True)
    assert "24.9% above the floor of 0.2174" in quality(0.2715, 0.2606, 0.2174, on_answers=False)


@pytest.mark.parametrize(
    ("row", "config", "reasons"),
    [
        ({"train/loss": 1.5, "val/loss": 1.3}, {"data": {}, "model": {}}, ["cut anywhere", "one batch"]),
        (
            {"train/loss": 1.5, "val/loss": 1.3},
            {"data": {"packing": "documents"}, "model": {"dropout": 0.1}},
            ["dropout"],
        ),
        ({"train/loss": 1.2, "val/loss": 1.3}, {"data": {}, "model": {}}, []),
        ({"train/loss": None, "val/loss": 1.3}, {"data": {}, "model": {}}, []),
    ],
)
def test_a_report_explains_a_training_loss_above_validation_loss(
    row: dict[str, Any], config: dict[str, Any], reasons: list[str]
) -> None:
    given = reasons_for_a_higher_training_loss(SimpleNamespace(kind="pretrain"), [row], config)
    assert bool(given) == bool(reasons)
    assert all(reason in "; ".join(given) for reason in reasons)


@pytest.mark.parametrize("value", [1, 999, 1_500, 12_300_000, 2.5e9, 1.5e12])
def test_an_amount_that_is_written_is_read_again(value: float) -> None:
    assert read_amount(f" {amount(value)} ") == value


@pytest.mark.parametrize("text", ["", "M", "ten", "1 000", "1G", "nan"])
def test_what_is_not_an_amount_is_not_a_number(text: str) -> None:
    assert math.isnan(read_amount(text))


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [("run", "bits"), ("a", ""), ("long name", "0.25")]
    assert aligned(rows) == "run        bits\na\nlong name  0.25"
    assert aligned(rows, underline=True).splitlines()[1] == "---------  ----"


@pytest.mark.parametrize("name", ["outputs/quickstart", "the run trained last", "a\x1b[31mb"])
def test_a_command_speaks_before_slow_imports_and_is_silent_where_there_are_none(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)  # imported already
    say_loading(name)
    assert capsys.readouterr().err == ""
    monkeypatch.delitem(sys.modules, "torch")
    say_loading(name)
    said = capsys.readouterr().err
    assert said.startswith("loading ")
    assert "\x1b" not in said


def test_a_run_that_was_not_named_is_told_with_its_steps(tmp_path: Path, logged: list[str]) -> None:
    resolved = {"batch_tokens": 512, "micro_batch_size": 16, "max_steps": 40}
    facts = {"status": "finished", "step": 40, "resolved": resolved, "updated": "2026-07-01 12:00:00"}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    announce(Run(tmp_path), None)
    assert logged == [
        f"no run was named: using {tmp_path}, trained last (finished, step 40 of 40, 2026-07-01 12:00:00); "
        "--run NAME selects another"
    ]
    announce(Run(tmp_path), str(tmp_path))
    assert len(logged) == 1
