"""Write a run's weights as safetensors under Positron's own names, with the architecture in the file's metadata."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from positron.interop.source import Source, largest_difference

FILE = "model.safetensors"
ARCHITECTURE = "gpt_config"  # the metadata key whose value is the GPTConfig as JSON


def write(source: Source, folder: Path) -> float:
    """Write the weights and the tokenizer of a run, `source`, into a folder, and read the weights back.

    Returns the largest absolute difference between the logits of the run's model and those of the same model with the weights
    that were read back.
    """
    weights = {name: tensor.contiguous() for name, tensor in source.weights.items()}
    metadata = {ARCHITECTURE: json.dumps(dataclasses.asdict(source.config)), "tokenizer_hash": source.tokenizer.hash}
    write_tensors(folder / FILE, weights, metadata)
    source.tokenizer.save(folder)
    with safe_open(folder / FILE, framework="pt") as file:
        return largest_difference(source, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a new safetensors file, whose permissions the umask decides. Raises OSError if the disk is full.

    The library writes without a copy of all tensors in memory, but into a file that only its owner may read, and raises its own
    error if the disk is full.
    """
    with path.open("xb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    try:
        save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        match = re.search(r"I/O error: (.*) \(os error (\d+)\)", str(error))
        if match is None:
            raise
        number = int(match[2])
        # Windows uses the second number, other systems the first
        raise OSError(number, match[1], str(path), number) from error
    path.chmod(mode)
