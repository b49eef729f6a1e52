"""quality.py: when a curve passes a value, the table's words, and a short comparison from end to end."""

import json
import os
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import PATIENCE, PROJECT
from hypothesis import given
from hypothesis import strategies as st

from scripts.bench import quality
from scripts.bench import quality_peers as peers
from scripts.bench import quality_report as report

CURVE = [(10.0, 2.0), (20.0, 1.0), (40.0, 1.2), (60.0, 0.5)]


@pytest.mark.parametrize(("goal", "seconds"), [(3.0, 10.0), (1.5, 15.0), (1.0, 20.0), (0.85, 50.0), (0.5, 60.0)])
def test_a_value_is_passed_where_the_line_between_two_points_first_meets_it(goal, seconds):
    assert report.passed_at(CURVE, goal) == pytest.approx(seconds)


def test_a_value_below_the_whole_curve_is_never_passed():
    assert report.passed_at(CURVE, 0.49) is None


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=20), st.floats(0.1, 10))
def test_nothing_before_the_passing_is_as_good(values, goal):
    points = [(float(i), value) for i, value in enumerate(values)]
    at = report.passed_at(points, goal)
    before = [value for second, value in points if at is None or second < at]
    assert all(value > goal for value in before)


def result(points, tokens=1000):
    return {"points": points, "tokens": tokens}


def test_the_table_gives_means_and_spread_and_when_ours_was_there():
    slow = [[(10.0, 3.0), (60.0, 1.5)], [(10.0, 3.0), (60.0, 1.0)]]
    seeds = {i: {"ours": result(CURVE), "nanoGPT": result(slow[i])} for i in range(2)}
    ours, theirs = report.table(seeds, 1).splitlines()[-2:]
    assert ours == "| ours | 17 | 0.5000 ± 0.0000 |  |"
    assert theirs == "| nanoGPT | 17 | 1.2500 ± 0.3536 | 18 s |"  # 15 s and 20 s


def test_a_value_that_one_seed_never_reached_was_never_reached():
    seeds = {i: {"ours": result(CURVE), "nanoGPT": result([(60.0, last)])} for i, last in enumerate((1.0, 0.4))}
    assert report.table(seeds, 1).splitlines()[-1].endswith("| never |")


def test_a_step_that_reaches_several_marks_is_validated_once(monkeypatch):
    scores, seconds = iter([3.0, 2.0]), iter([0, 1, 1, 27, 27, 27, 110])
    monkeypatch.setattr(quality, "SHARES", (0.1, 0.2, 1.0))
    monkeypatch.setattr(quality, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    sent = []
    pipe = SimpleNamespace(send=sent.append, recv=lambda: "go")
    clock = quality.Budget(100, pipe, lambda: next(scores))
    clock.start()
    assert [clock.step_done(10) for _ in range(3)] == [False, False, True]
    assert sent[0] == "ready"
    assert sent[-1] == {"points": [(27, 3.0), (27, 3.0), (110, 2.0)], "tokens": 30}


def nanochat():
    """Small, and with values in place of the zeros it begins with."""
    torch.manual_seed(0)
    model = peers.NanochatGPT(2, 16, 50)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def test_nanochats_model_sees_no_future_and_caps_its_logits():
    idx = torch.randint(50, (2, 16))
    changed = torch.cat((idx[:, :9], (idx[:, 9:] + 1) % 50), dim=1)
    model = nanochat()
    a, b = model.logits(idx), model.logits(changed)
    assert torch.equal(a[:, :9], b[:, :9])
    assert not torch.allclose(a[:, 9], b[:, 9])
    assert a.abs().max() <= 15


@pytest.mark.parametrize(("shape", "longer"), [((64, 256), 1), ((256, 64), 2), ((64, 64), 1)])
def test_nanochats_step_is_near_an_orthogonal_one_and_decays_where_both_agree(shape, longer):
    """A tall matrix's step is longer by the root of its sides' ratio."""
    torch.manual_seed(0)
    start = torch.randn(shape)
    gradient = torch.randn(shape)
    steps = {}
    for decay in (0.0, 0.5):
        p = torch.nn.Parameter(start.clone())
        p.grad = gradient.clone()
        peers.NanochatMatrices([p]).step(lr=0.1, momentum=0.9, decay=decay)
        steps[decay] = (start - p.detach()) / (0.1 * longer)
    along = torch.linalg.svdvals(steps[0.0])
    assert along.min() > 0.5
    assert along.max() < 1.5
    more = steps[0.5] - steps[0.0]
    agrees = steps[0.0] * start >= 0
    assert torch.allclose(more[agrees], 0.5 * start[agrees], atol=1e-5)
    assert more[~agrees].abs().max() < 1e-5


@pytest.mark.slow
def test_a_short_comparison_takes_turns_and_does_not_repeat_what_is_finished(tmp_path):
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(4000)]
    stories = [" ".join(chance.choices(words, k=60)) for _ in range(1500)]
    (tmp_path / "text.txt").write_text("\n<|endoftext|>\n".join(stories))
    script = ["-m", "scripts.bench.quality", "text.txt", "--minutes", "0.1", "--seeds", "1"]
    command = [sys.executable, *script, "--only", "ours", "nanoGPT", "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "seed-0-0.1-minutes.json").read_text())["results"]
    for name in ("ours", "nanoGPT"):
        points = found[name]["points"]
        assert [second for second, _ in points] == sorted(second for second, _ in points)
        assert points[-1][0] >= 6
        assert 0 < points[-1][1] < points[0][1]
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert again.returncode == 0
    assert "seed 0" not in again.stdout
    assert (tmp_path / "out" / "quality.png").stat().st_size > 10_000
    other = subprocess.run(
        [*command, "--val-tokens", "500"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert other.returncode == 1
    assert "other settings" in other.stderr
