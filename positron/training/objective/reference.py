"""Store the log-probabilities of the frozen reference model of preference tuning, so that the model itself is not needed."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from positron.system.disk import open_inside, whole_file

_ARRAYS = ("train", "val", "states", "head")
_ARRAYS_OF_PART = ("log_probs", "states")


@dataclass
class Reference:
    """Hold the log-probabilities of all answers under the reference model, which is the model before this training.

    `states` are the reference model's last hidden states at n positions in the chosen answers of the validation pairs, and
    softmax(states head^T) is its distribution over the vocabulary at these positions.
    """

    train: np.ndarray  # (N, 2) log-probabilities of the chosen and the rejected answer of each training pair
    val: np.ndarray  # (N, 2) the same for each validation pair
    states: np.ndarray  # (n, C) last hidden states
    head: np.ndarray  # (V, C) output matrix
    _on_device: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return `states` and `head` as tensors on a device. They are copied at the first call and kept."""
        if self._on_device is None or self._on_device[0].device != device:
            self._on_device = torch.from_numpy(self.states).to(device), torch.from_numpy(self.head).to(device)
        return self._on_device


@dataclass
class ReferencePart:
    """Hold what an unfinished computation of a reference has produced, in the order in which it computes the pairs.

    All training pairs are computed before the validation pairs, and each list has an entry for each micro-batch.
    """

    log_probs: list[np.ndarray] = field(default_factory=list)  # (n, 2) log-probabilities of chosen and rejected answers
    states: list[np.ndarray] = field(default_factory=list)  # (n, C) last hidden states of the chosen validation answers

    @property
    def n_pairs(self) -> int:
        """Return the number of pairs that are computed."""
        return sum(map(len, self.log_probs))


def write_reference(path: Path, reference: Reference, identity: str) -> None:
    """Write a reference to the file `path`. `identity` identifies the weights, pairs and precision that it depends on."""
    _write(path, identity, {name: getattr(reference, name) for name in _ARRAYS})


def read_reference(path: Path, identity: str) -> Reference | None:
    """Return a stored reference, or None if the file is missing, damaged, or has another `identity`."""
    arrays = _read(path, identity, _ARRAYS)
    if arrays is None:
        return None
    train, val, states, head = arrays
    return Reference(train, val, states, head)


def write_reference_part(path: Path, part: ReferencePart, identity: str) -> None:
    """Write an unfinished reference to the file `path`. `identity`: see `write_reference`."""
    lists = {name: getattr(part, name) for name in _ARRAYS_OF_PART}
    arrays = {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in lists.items()}
    _write(path, identity, arrays)


def read_reference_part(path: Path, identity: str) -> ReferencePart | None:
    """Return a stored unfinished reference, or None if the file is missing, damaged, or has another `identity`."""
    arrays = _read(path, identity, _ARRAYS_OF_PART)
    return None if arrays is None else ReferencePart(*([array] if len(array) else [] for array in arrays))


def _write(path: Path, identity: str, arrays: Mapping[str, Any]) -> None:
    with whole_file(path, path.parent) as file:
        np.savez(file, identity=np.array(identity), **arrays)


def _read(path: Path, identity: str, names: tuple[str, ...]) -> list[np.ndarray] | None:
    """Return the arrays of a file, or None if it is missing, damaged, or has another `identity`."""
    if not path.exists():
        return None
    try:
        with open_inside(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return [stored[name] for name in names] if str(stored["identity"]) == identity else None
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error):
        return None


def hash_of_weights(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 hash of a model's weights and their names."""
    content = hashlib.sha256()
    for name, value in sorted(weights.items()):
        content.update(name.encode())
        content.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
