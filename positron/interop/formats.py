"""The formats that a run can be exported to, by the names that users type."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, assert_never

from positron.interop.gguf_file import Precision
from positron.interop.source import Source
from positron.system.disk import whole_folder
from positron.system.errors import UserError

Format = Literal["hf", "gguf", "ollama", "llama2c", "safetensors"]
ROUNDED: tuple[Format, ...] = ("gguf", "ollama")  # those that can hold less than fp32


def export(source: Source, to: Format, folder: Path, precision: Precision = "f32") -> float:
    """Write a run into a new folder and return the largest difference of the logits after reading it back.

    The folder appears complete or not at all. Raises UserError where it exists, where the format cannot express the model
    or its tokenizer, or where the disk is full.
    """
    if precision != "f32" and to not in ROUNDED:
        raise UserError(f"--precision {precision}: {to} is written in f32; {' and '.join(ROUNDED)} can be rounded")
    with whole_folder(folder) as draft:
        match to:
            case "hf":
                from positron.interop import huggingface

                return huggingface.write(source, draft)
            case "gguf":
                from positron.interop import gguf_file

                return gguf_file.write(source, draft, precision)
            case "ollama":
                from positron.interop import ollama

                return ollama.write(source, draft, precision)
            case "llama2c":
                from positron.interop import llama2c

                return llama2c.write(source, draft)
            case "safetensors":
                from positron.interop import safetensors_file

                return safetensors_file.write(source, draft)
            case _:
                assert_never(to)
