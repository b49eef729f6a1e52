"""Compute from (seed, s) which token windows optimizer step s reads, in O(1) and without any state.

This guarantees invariant 3 of docs/ARCHITECTURE.md.

Each epoch visits all n windows in a different random order. The order is a keyed permutation of [0, n): a Feistel network
(Luby and Rackoff 1988) with cycle walking (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"). So the k-th
window of epoch e is computed without storing or shuffling a list.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_ROUNDS = 6
_CACHED_STEPS = 64  # number of steps that are computed together, in about the time of a single step


def _mix(x: np.ndarray) -> np.ndarray:
    """Apply the splitmix64 finaliser (Steele, Lea and Flood 2014), a hash of 64 bits to 64 bits."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def permute(places: np.ndarray, n: int, key: int) -> np.ndarray:
    """Return the numbers to which a permutation of [0, n) maps `places`, an array of integers in [0, n).

    `key` selects the permutation.
    """
    half_width = max(1, (int(n - 1).bit_length() + 1) // 2)  # bits in each half of the Feistel network
    mask = np.uint64((1 << half_width) - 1)
    keys = _mix(np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(key % 2**64))
    x = places.astype(np.uint64)
    todo = np.ones(x.shape, dtype=bool)
    while todo.any():  # repeat until each value is in [0, n): fewer than 4 times on average, since 4^half < 4 n
        left, right = x[todo] >> np.uint64(half_width), x[todo] & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        x[todo] = (left << np.uint64(half_width)) | right
        todo = x >= np.uint64(n)
    return x.astype(np.int64)


def order_of_epoch(epoch: int, places: np.ndarray, seed: int, n_windows: int) -> np.ndarray:
    """Return the numbers of the windows that stand at the positions `places` in the random order of an epoch.

    `places`: integers in [0, n_windows), in an array of any shape; the result has the same shape.
    """
    return permute(places, n_windows, seed * 1_000_003 + epoch)


def windows_of_step(step: int, *, seed: int, n_windows: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs and window numbers, each (batch_size,), of optimizer step `step`, counted from 1.

    Entry i of the batch is sample k = (step - 1) * batch_size + i of the training. It is the window at position k mod n in
    the order of epoch k div n, where n = n_windows. So a batch may span two epochs, and the samples do not depend on
    micro-batches, devices, or interruptions of the training.
    """
    block, place = divmod(step - 1, _CACHED_STEPS)
    epochs, windows = _samples(block, seed, n_windows, _CACHED_STEPS * batch_size)
    entries = slice(place * batch_size, (place + 1) * batch_size)
    return epochs[entries], windows[entries]


@lru_cache(maxsize=4)  # training reads one text, and fine-tuning reads conversations and replayed windows
def _samples(block: int, seed: int, n_windows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs and window numbers of the samples block * size .. (block + 1) * size - 1, as two read-only arrays.

    The samples of the training are numbered from 0, one for each entry of each batch (see `windows_of_step`).
    """
    sample = block * size + np.arange(size, dtype=np.int64)
    epoch, place = np.divmod(sample, n_windows)
    windows = np.empty(size, dtype=np.int64)
    for e in np.unique(epoch):
        mask = epoch == e
        windows[mask] = order_of_epoch(int(e), place[mask], seed, n_windows)
    epoch.flags.writeable = windows.flags.writeable = False
    return epoch, windows
