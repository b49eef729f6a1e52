"""Write a run's weights as safetensors under Positron's own names, with the architecture in the file's metadata."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

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
    save_file(weights, folder / FILE, metadata={"format": "pt", **metadata})
    source.tokenizer.save(folder)
    with safe_open(folder / FILE, framework="pt") as file:
        return largest_difference(source, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
