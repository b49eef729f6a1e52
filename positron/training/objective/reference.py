"""Store the log-probabilities of the frozen reference model of preference tuning, so that the model itself is not needed."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from positron.system.disk import open_inside, whole_file

_ARRAYS = ("train", "val", "states", "head")


@dataclass
class Reference:
    """Hold the log-probabilities of answers under the reference model, which is the model before this training.

    Values that are not computed yet, or that no step reads, are NaN.

    `states` are the reference model's last hidden states at n positions in the chosen answers of the validation pairs, and
    softmax(states head^T) is the reference model's distribution over the vocabulary at these positions.
    """

    train: np.ndarray  # (N, 2) log-probabilities of the chosen and the rejected answer of each training pair
    val: np.ndarray  # (N, 2) the same for each validation pair
    states: np.ndarray  # (n, C) last hidden states
    head: np.ndarray  # (V, C) output matrix
    _on_device: tuple[Tensor, Tensor] | None = field(default=None, repr=False)  # the last result of `on`

    @classmethod
    def empty(cls, n_train: int, n_val: int, n_states: int, head: Tensor) -> Reference:
        """Return a Reference in which nothing is computed yet: all values except `head` are NaN.

        `n_train` and `n_val`: the numbers of training and validation pairs. `n_states`: the number of tokens of chosen answers
        at which the reference model's distribution will be stored, in the form of a hidden state. `head` (V, C): the output
        matrix of the reference model, which is copied.
        """
        train, val, states = (
            np.full(shape, np.nan, dtype=np.float32) for shape in ((n_train, 2), (n_val, 2), (n_states, head.shape[1]))
        )
        return cls(train, val, states, head.detach().float().cpu().numpy().copy())

    @property
    def n_pairs(self) -> int:
        """Return the number of pairs, training and validation together, whose log-probabilities are known (not NaN)."""
        return sum(int((~np.isnan(pairs).any(axis=1)).sum()) for pairs in (self.train, self.val))

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the attributes `states` and `head` as tensors on a device.

        `states` (n, C) are last hidden states of the reference model at n positions, and `head` (V, C) is its output matrix.
        The two tensors are kept, so that a further call with the same device copies nothing.
        """
        if self._on_device is None or self._on_device[0].device != device:
            self._on_device = torch.from_numpy(self.states).to(device), torch.from_numpy(self.head).to(device)
        return self._on_device


def write_reference(path: Path, reference: Reference, identity: str) -> None:
    """Save the log-probabilities and hidden states that `reference` holds in the file `path`.

    `identity`: a string, such as a hash, that identifies the weights, pairs and settings from which the reference was computed.
    """
    arrays = {name: getattr(reference, name) for name in _ARRAYS}
    with whole_file(path, path.parent) as file:
        np.savez(file, identity=np.array(identity), **arrays)


def read_reference(path: Path, *identities: str) -> Reference | None:
    """Return the reference stored in the file `path`, if the identity stored with it is one of `identities`.

    An identity is a string that identifies the weights, pairs and settings from which a reference was computed. Returns None if
    the file has another identity, or is missing or damaged.
    """
    if not path.exists():
        return None
    try:
        with open_inside(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["identity"]) not in identities:
                return None
            return Reference(*(stored[name] for name in _ARRAYS))
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error):
        return None


def hash_of_weights(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 hash of a model's weights and their names."""
    content = hashlib.sha256()
    for name, value in sorted(weights.items()):
        content.update(name.encode())
        content.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
