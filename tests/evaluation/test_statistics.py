"""Intervals, p-values and sample sizes: against SciPy's own, against enumeration, and in simulations."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest
import scipy.special
import scipy.stats

from positron.evaluation import statistics as ours
from positron.evaluation.statistics import (
    half_interval,
    paired_t_test,
    pairs_needed,
    power_of_t_test,
    sign_flip_test,
)


def samples(pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.normal(0.77, 0.01, pairs)
    return a, a + rng.normal(-0.004, 0.004, pairs)


@pytest.mark.parametrize("pairs", [2, 3, 5, 8, 40])
def test_the_paired_t_test_is_scipys(pairs: int) -> None:
    for seed in range(10):
        a, b = samples(pairs, seed)
        expected = scipy.stats.ttest_rel(b, a)
        assert paired_t_test((b - a).tolist()) == pytest.approx(expected.pvalue, rel=1e-9)
        low, high = expected.confidence_interval(0.95)
        half = half_interval((b - a).tolist())
        assert half == pytest.approx((high - low) / 2, rel=1e-9)


def test_differences_without_variation_are_certain_or_none() -> None:
    assert paired_t_test([0.0, 0.0, 0.0]) == 1.0
    assert paired_t_test([0.25, 0.25]) == 0.0
    assert paired_t_test([0.25]) is None
    assert half_interval([0.25]) is None
    assert sign_flip_test([0.25]) is None
    flips = sign_flip_test([0.0, 0.0])
    assert flips is not None
    assert flips.p == 1.0


@pytest.mark.parametrize("pairs", [2, 3, 5, 8])
def test_the_sign_flip_test_is_that_of_scipy_and_of_every_pattern(pairs: int) -> None:
    for seed in range(5):
        a, b = samples(pairs, seed)
        found = sign_flip_test((b - a).tolist())
        assert found is not None
        assert found.is_exact
        assert found.patterns == 2**pairs
        patterns = [abs(np.dot(signs, b - a)) for signs in itertools.product((-1, 1), repeat=pairs)]
        expected = np.mean([value >= abs(sum(b - a)) * (1 - 1e-9) for value in patterns])
        assert found.p == pytest.approx(expected, rel=1e-12)
        scipys = scipy.stats.permutation_test(
            (a, b), lambda x, y, axis: np.mean(y - x, axis=axis), permutation_type="samples", vectorized=True
        )
        assert found.p == pytest.approx(scipys.pvalue, rel=1e-12)


def test_differences_of_one_sign_give_the_smallest_p_value() -> None:
    for pairs in (2, 5, 7, 8):
        found = sign_flip_test([0.001 * (i + 1) for i in range(pairs)])
        assert found is not None
        assert found.p == found.smallest_p == 2 / 2**pairs


def test_equal_distances_count_although_they_are_rounded_differently() -> None:
    """The pattern with two signs exchanged has the same sum, computed in another order."""
    found = sign_flip_test([0.1, 0.2, 0.3, -0.1, -0.2, 0.7])
    assert found is not None
    exact = [abs(sum(s * v for s, v in zip(signs, (1, 2, 3, -1, -2, 7), strict=True))) for signs in SIGNS]
    assert found.p == statistics.fmean(value >= 10 for value in exact)


SIGNS = list(itertools.product((-1, 1), repeat=6))


def test_drawn_patterns_agree_with_all_patterns_and_are_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(0.5, 1, 16).tolist()
    exact = sign_flip_test(values)
    monkeypatch.setattr(ours, "MAX_ENUMERATED_PAIRS", 10)
    drawn = sign_flip_test(values)
    assert exact is not None
    assert drawn is not None
    assert not drawn.is_exact
    assert drawn.p == pytest.approx(exact.p, abs=4 * (exact.p * (1 - exact.p) / ours.DRAWN_PATTERNS) ** 0.5)
    assert sign_flip_test(values) == drawn


def test_under_no_difference_p_values_are_below_a_level_as_often_as_it_says() -> None:
    """Also for differences that are far from normal: the sign-flip test assumes their symmetry alone."""
    rng = np.random.default_rng(0)
    normal, heavy = [], []
    for _ in range(1500):
        p = paired_t_test(rng.normal(0, 1, 6).tolist())
        flips = sign_flip_test(rng.standard_t(1.5, 6).tolist())
        assert p is not None
        assert flips is not None
        normal.append(p)
        heavy.append(flips.p)
    for values in (normal, heavy):
        for level in (0.0625, 0.25, 0.5):  # multiples of the smallest p-value of six pairs, 2 / 64
            error = (level * (1 - level) / 1500) ** 0.5
            assert abs(np.mean(np.array(values) <= level + 1e-12) - level) < 4 * error


def test_the_interval_over_seeds_holds_the_truth_19_times_of_20() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        values = rng.normal(-0.003, 0.002, 5).tolist()
        half = half_interval(values)
        assert half is not None
        hits += abs(statistics.fmean(values) + 0.003) <= half
    assert 0.93 < hits / 1000 < 0.97


@pytest.mark.parametrize(("effect", "pairs"), [(0.5, 10), (1.0, 5), (1.5, 8), (2.0, 5), (0.1, 1000), (4.0, 2)])
def test_the_power_is_that_of_the_noncentral_t_distribution(effect: float, pairs: int) -> None:
    critical, shift = scipy.special.stdtrit(pairs - 1, 0.995), effect * pairs**0.5
    upper = 1 - scipy.special.nctdtr(pairs - 1, shift, critical)
    lower = scipy.special.nctdtr(pairs - 1, shift, -critical)
    assert power_of_t_test(effect, pairs, 0.01) == pytest.approx(upper + lower, abs=2e-5)


def test_the_needed_pairs_give_the_promised_power_in_a_simulation_and_one_less_does_not() -> None:
    observed = [-0.001, -0.003, -0.005]  # an effect of 1.5 standard deviations
    needed = pairs_needed(observed)
    assert needed is not None
    assert power_of_t_test(1.5, needed, 0.01) >= 0.8 > power_of_t_test(1.5, needed - 1, 0.01)
    draws = np.random.default_rng(2).normal(-0.003, 0.002, (4000, needed))
    p = scipy.stats.ttest_1samp(draws, 0, axis=1).pvalue
    assert np.mean(p < 0.01) == pytest.approx(power_of_t_test(1.5, needed, 0.01), abs=0.03)


def test_small_effects_need_as_many_pairs_as_the_normal_approximation_says() -> None:
    """(z_0.995 + z_0.8)² / effect² for many pairs (Cohen 1988, section 2.4)."""
    z = scipy.special.ndtri(0.995) + scipy.special.ndtri(0.8)
    for effect in (0.02, 0.1):
        needed = pairs_needed([effect - 0.5**0.5, effect + 0.5**0.5])  # their standard deviation is 1
        assert needed == pytest.approx((z / effect) ** 2, rel=0.01)
    assert pairs_needed([-1.0, 1.0]) is None
    assert pairs_needed([0.5]) is None
    assert pairs_needed([0.5, 0.5]) == 2
