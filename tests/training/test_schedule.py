"""The learning rate is a function of the step and of the number of steps, and each schedule has the shape of its name."""

import itertools
import math
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from positron.config import ScheduleConfig
from positron.training.optim.schedule import lr_at

PROJECT = Path(__file__).parents[2]
GUIDE = PROJECT / "docs" / "guides" / "training.md"
KINDS = get_args(get_type_hints(ScheduleConfig)["kind"])


SCHEDULES = st.builds(
    ScheduleConfig,
    kind=st.sampled_from(KINDS),
    decay_share=st.floats(0.01, 1),
    warmup_steps=st.integers(0, 50),
    final_ratio=st.floats(0, 1),
)


@given(SCHEDULES, st.integers(1, 300), st.floats(1e-6, 1.0))
@settings(max_examples=100, deadline=None)
def test_learning_rates_stay_between_0_and_the_peak_and_only_fall_after_warmup(schedule, horizon, peak):
    rates = [lr_at(s, horizon, peak=peak, schedule=schedule) for s in range(1, horizon + 20)]
    assert all(0 <= r <= peak * (1 + 1e-12) for r in rates)
    after = rates[schedule.warmup_steps :]
    assert all(b <= a + 1e-15 for a, b in itertools.pairwise(after))
    if schedule.kind != "constant" and horizon > schedule.warmup_steps:
        assert rates[horizon - 1] == pytest.approx(peak * schedule.final_ratio, abs=peak * 1e-9)


def test_a_trapezoid_stays_at_its_peak_until_it_falls_in_a_line():
    schedule = ScheduleConfig(kind="trapezoid", warmup_steps=10, decay_share=0.4, final_ratio=0.0)
    rates = [lr_at(s, 100, peak=1.0, schedule=schedule) for s in (5, 10, 60, 61, 80, 100, 500)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1 - 1 / 40, 0.5, 0.0, 0.0])


def test_a_trapezoid_does_not_fall_before_its_warmup_ends():
    schedule = ScheduleConfig(kind="trapezoid", warmup_steps=80, decay_share=0.4, final_ratio=0.0)
    rates = [lr_at(s, 100, peak=1.0, schedule=schedule) for s in (40, 80, 81, 90, 100)]
    assert rates == pytest.approx([0.5, 1.0, 0.95, 0.5, 0.0])


def test_a_trapezoid_extended_before_its_fall_has_the_rates_of_the_longer_run():
    """Which a cosine has not: that is what the trapezoid is for."""
    trapezoid, cosine = (
        ScheduleConfig(kind=kind, warmup_steps=10, decay_share=0.4) for kind in ("trapezoid", "cosine")
    )
    for step in range(1, 61):
        assert lr_at(step, 100, peak=1.0, schedule=trapezoid) == lr_at(step, 300, peak=1.0, schedule=trapezoid)
    assert lr_at(60, 100, peak=1.0, schedule=cosine) < 0.7 < lr_at(60, 300, peak=1.0, schedule=cosine)


def test_the_cosine_is_a_cosine():
    schedule = ScheduleConfig(kind="cosine", warmup_steps=10, final_ratio=0.1)
    rates = [lr_at(s, 110, peak=1.0, schedule=schedule) for s in (1, 10, 60, 110, 500)]
    assert rates == pytest.approx([0.1, 1.0, 0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2, 0.1, 0.1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_can_be_chosen_and_the_guide_lists_it(kind):
    assert (PROJECT / "conf" / "schedule" / f"{kind}.yaml").is_file()
    (row,) = (line for line in GUIDE.read_text().splitlines() if line.startswith("| `schedule=` |"))
    assert f"`{kind}`" in row
