"""A batch is a function of (seed, step): invariant 3 of docs/ARCHITECTURE.md, as properties."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from positron.data.window_order import permute, windows_of_step


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
