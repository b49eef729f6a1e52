"""How often the sequential test errs, by simulation; the seeds are fixed."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from positron.evaluation.sequential import FIRST_ADOPTION, LEVEL, MISS, Look, look
from positron.evaluation.statistics import one_sided_t_test

PAIRS = 10


def decided(gains: np.ndarray, min_gain: float) -> Look:
    """The look at which the candidate with these gains is decided."""
    looks = (look(gains[:n].tolist(), PAIRS, min_gain) for n in range(2, PAIRS + 1))
    return next(found for found in looks if found.verdict != "open")


@pytest.mark.slow
def test_a_useless_candidate_is_adopted_with_at_most_the_stated_probability():
    """With the smallest possible min_gain, so that early rejections do not help; without the correction it is too often."""
    gains = np.random.default_rng(0).normal(0, 1, size=(3000, PAIRS))
    adopted = [decided(row, 1e-9).verdict == "adopted" for row in gains]
    assert np.mean(adopted) <= LEVEL
    p = scipy.stats.ttest_1samp
    looks = range(FIRST_ADOPTION, PAIRS + 1)
    naive = np.min([p(gains[:, :n], 0, axis=1, alternative="greater").pvalue for n in looks], axis=0) < LEVEL
    assert np.mean(naive) > 1.5 * LEVEL


def test_a_candidate_worth_having_is_rejected_early_with_at_most_the_stated_probability():
    gains = np.random.default_rng(1).normal(0.5, 1, size=(1000, PAIRS))
    reasons = [decided(row, 0.5).reason for row in gains]
    early = np.mean([reason.startswith("the gain is below") for reason in reasons])
    assert 0 < early <= MISS


def test_a_large_gain_is_adopted_at_the_first_look_and_a_harmful_candidate_rejected_before():
    noise = np.random.default_rng(2).normal(0, 1e-4, size=PAIRS)
    good, bad = ([look((mean + noise[:n]).tolist(), PAIRS, 1e-3) for n in range(2, 6)] for mean in (0.01, -0.01))
    assert [found.verdict for found in good] == ["open", "open", "open", "adopted"]
    assert [found.verdict for found in bad[:2]] == ["open", "rejected"]


def test_a_gain_that_is_certain_but_too_small_is_rejected():
    gains = (5e-4 + np.random.default_rng(3).normal(0, 1e-6, size=PAIRS)).tolist()
    assert look(gains[:3], PAIRS, 1e-3).verdict == "rejected"
    assert look(gains[:5], PAIRS, 1e-4).verdict == "adopted"


def test_the_last_pair_decides():
    gains = [1.0, -0.6] * (PAIRS // 2)  # neither a clear gain nor clearly none
    assert look(gains[:-1], PAIRS, 0.1).verdict == "open"
    assert look(gains, PAIRS, 0.1) == Look(
        pytest.approx(0.2), pytest.approx(1.0), "rejected", "no gain is shown by 10 pairs"
    )


@pytest.mark.parametrize("gains", [[0.3, 0.1, 0.2], [-0.3, 0.1, -0.2], [0.1, -0.1, 0.02], [0.5, -0.5, 0.25, -0.25]])
def test_the_one_sided_p_value_is_that_of_scipy(gains):
    expected = scipy.stats.ttest_1samp(gains, 0, alternative="greater").pvalue
    assert one_sided_t_test(gains) == pytest.approx(expected, rel=1e-12)


def test_equal_gains_have_the_p_value_of_their_sign():
    assert [one_sided_t_test([gain] * 3) for gain in (0.25, 0.0, -0.25)] == [0.0, 1.0, 1.0]
