"""Batches and learning rates are functions of the step alone: invariants 3 and 4 of docs/ARCHITECTURE.md, as properties."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from positron.config import ScheduleConfig
from positron.data.window_order import permute, windows_of_step
from positron.training.optim.schedule import lr_at


@given(st.integers(1, 3000), st.integers(0, 2**63))
@settings(max_examples=30, deadline=None)
def test_an_epoch_is_a_permutation(n, key):
    assert sorted(permute(np.arange(n), n, key)) == list(range(n))


def test_permutations_differ_and_are_well_mixed():
    n = 5000
    a, b = permute(np.arange(n), n, 1), permute(np.arange(n), n, 2)
    assert (a != b).mean() > 0.99
    for order in (a, b):
        assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.05
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


def test_the_order_is_the_same_on_every_machine():
    """A recorded value: changing the order would silently break every resumed run."""
    assert windows_of_step(3, seed=7, n_windows=1000, batch_size=6)[1].tolist() == [451, 643, 953, 988, 916, 213]


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 60),
    batch=st.integers(1, 12),
    other=st.integers(1, 12),
    epochs=st.integers(1, 3),
)
@settings(max_examples=30, deadline=None)
def test_any_batch_size_serves_each_window_once_an_epoch_in_the_same_order(seed, n, batch, other, epochs):
    def stream(size):
        steps = -(-n * epochs // size)
        return np.concatenate(
            [windows_of_step(s, seed=seed, n_windows=n, batch_size=size)[1] for s in range(1, steps + 1)]
        )[: n * epochs]

    first = stream(batch)
    assert np.array_equal(first, stream(other))
    for epoch in range(epochs):
        assert sorted(first[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_a_far_step_costs_no_more_than_a_near_one():
    """O(1): step a million of a corpus of a billion windows, without touching anything before it."""
    _, windows = windows_of_step(1_000_000, seed=0, n_windows=10**9, batch_size=192)
    assert len(set(windows.tolist())) == 192
    assert windows.max() < 10**9


SCHEDULES = st.builds(
    ScheduleConfig,
    kind=st.sampled_from(["cosine", "linear", "constant", "trapezoid"]),
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
