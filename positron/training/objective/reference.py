"""The frozen reference of preference tuning, stored in the run folder as what the loss and the measures need of it."""

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
    """Hold what the model before the training says about the pairs; no second model is needed while a run trains.

    `states` and `head` give its distribution over the vocabulary at positions of the chosen validation answers:
    softmax(states head^T).
    """

    train: np.ndarray  # (N, 2) log-probabilities of the chosen and the rejected answer of each training pair
    val: np.ndarray  # (N, 2) of each validation pair
    states: np.ndarray  # (n, C) last hidden states
    head: np.ndarray  # (V, C) output matrix
    _on_device: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return `states` and `head` as tensors on a device, to which they are copied once."""
        if self._on_device is None or self._on_device[0].device != device:
            self._on_device = torch.from_numpy(self.states).to(device), torch.from_numpy(self.head).to(device)
        return self._on_device


def write_reference(path: Path, reference: Reference, identity: str) -> None:
    """Write a reference; `identity` names the weights and the pairs that it was computed from."""
    arrays = {name: getattr(reference, name) for name in _ARRAYS}
    with whole_file(path, path.parent) as file:
        np.savez(file, identity=np.array(identity), **arrays)


def read_reference(path: Path, identity: str) -> Reference | None:
    """Return a stored reference; None if the file is missing or damaged, or belongs to other weights or pairs."""
    if not path.exists():
        return None
    try:
        with open_inside(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["identity"]) != identity:
                return None
            return Reference(*(stored[name] for name in _ARRAYS))
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error):
        return None


def hash_of_weights(weights: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of the weights of a model by name."""
    content = hashlib.sha256()
    for name, value in sorted(weights.items()):
        content.update(name.encode())
        content.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
