"""Write and read the weights that were kept during training: `history/step-000040.safetensors` in the run folder.

Only the standard library is imported until weights are written or read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from positron.system.disk import make_folder, open_inside, whole_file
from positron.system.errors import UserError, why_unreadable

if TYPE_CHECKING:
    from torch import Tensor

_NAME = re.compile(r"step-(\d{1,12})\.safetensors")


class KeptWeights(NamedTuple):
    """Hold an optimizer step, and the path of the file with the weights after that step; step 0 is before training."""

    step: int
    path: Path


def history_steps(count: int, horizon: int) -> set[int]:
    """Return `count` optimizer steps from 0 to `horizon`, spaced logarithmically.

    For count=8 and horizon=1000, the steps are 0, 1, 3, 10, 32, 101, 318 and 1000. Steps that would be less than 1 apart are
    consecutive: count=10 and horizon=100 give 0, 1, 2, 3, 5, 9, and so on. Fewer steps are returned if there are not `count`
    steps up to `horizon`. If `count` is 1, the only step is `horizon`.
    """
    if count < 2:
        return {horizon} if count else set()
    steps = [0]
    for left in range(
        min(count - 1, horizon), 0, -1
    ):  # `left` steps are to be chosen, with equal ratios up to the horizon
        last = steps[-1]
        ratio = horizon ** (1 / left) if last == 0 else (horizon / last) ** (1 / left)
        target = 1 if last == 0 and left > 1 else round(max(last, 1) * ratio)
        steps.append(min(max(target, last + 1), horizon - left + 1))
    return set(steps)


def kept_weights(folder: Path) -> list[KeptWeights]:
    """Return the step and path of each file of weights in a folder, earliest first."""
    paths = folder.glob("step-*.safetensors")
    return sorted(KeptWeights(int(match[1]), path) for path in paths if (match := _NAME.fullmatch(path.name)))


def write_kept_weights(folder: Path, step: int, weights: dict[str, Tensor]) -> Path:
    """Write the weights after optimizer step `step` to a new file of `folder`, completely or not at all.

    `folder` is in the folder of a run. Returns the path of the file. Raises UserError if the disk is full or not writable.
    """
    path = make_folder(folder, folder.parent) / f"step-{step:06d}.safetensors"
    write_weights(path, weights, folder.parent)
    return path


def write_weights(path: Path, weights: dict[str, Tensor], root: Path) -> bytes:
    """Write weights as fp32 to a safetensors file, completely or not at all, and return the bytes of the file.

    No symbolic link below the folder `root` is followed. Raises UserError if the disk is full or not writable.
    """
    from safetensors.torch import save

    content = save({name: tensor.float().contiguous() for name, tensor in weights.items()})
    with whole_file(path, root) as file:
        file.write(content)
    return content


def read_kept_weights(entry: KeptWeights) -> dict[str, Tensor]:
    """Return the weights in the file `entry.path`, by name. Raises UserError if the file is damaged or cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        with open_inside(entry.path, "rb", entry.path.parents[1]) as file:
            return load(file.read())
    except OSError as error:
        raise UserError(f"cannot read {entry.path}: {why_unreadable(error, 'restore the file from a copy')}") from error
    except SafetensorError as error:
        raise UserError(
            f"{entry.path} is damaged ({error}): restore it from a copy, or delete it, because training does not need it"
        ) from error
