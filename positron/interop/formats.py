"""Define the formats to which a run can be exported, by the names that users type after `--to`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar, assert_never

from positron.interop import gguf_file, onnx_file
from positron.interop.source import Source
from positron.system.disk import whole_folder
from positron.system.errors import UserError

Format = Literal["hf", "gguf", "ollama", "onnx", "llama2c", "safetensors"]
Precision = Literal["f32", "f16", "q8_0", "int8"]
PRECISIONS: dict[Format, tuple[Precision, ...]] = {  # formats with several precisions; all other formats have only f32
    "gguf": gguf_file.PRECISIONS,
    "ollama": gguf_file.PRECISIONS,
    "onnx": onnx_file.PRECISIONS,
}
P = TypeVar("P", bound=str)


def export(source: Source, to: Format, folder: Path, precision: Precision = "f32") -> float:
    """Write a run into a new folder in the format `to`, and read the written weights back.

    Returns the largest difference between the logits of the run's model and of the model that was read back. The folder appears
    only when it is complete. Raises UserError if the folder has files, if the format does not have `precision`, if the format
    cannot express the model or its tokenizer, if a package that the format needs is not installed, or if the disk is full.
    """
    _chosen(precision, PRECISIONS.get(to, ("f32",)), to)
    with whole_folder(folder, instead="give --out FOLDER") as draft:
        match to:
            case "hf":
                from positron.interop import huggingface

                return huggingface.write(source, draft)
            case "gguf":
                return gguf_file.write(source, draft, _chosen(precision, gguf_file.PRECISIONS, to))
            case "ollama":
                from positron.interop import ollama

                return ollama.write(source, draft, _chosen(precision, gguf_file.PRECISIONS, to))
            case "onnx":
                return onnx_file.write(source, draft, _chosen(precision, onnx_file.PRECISIONS, to))
            case "llama2c":
                from positron.interop import llama2c

                return llama2c.write(source, draft)
            case "safetensors":
                from positron.interop import safetensors_file

                return safetensors_file.write(source, draft)
            case _:
                assert_never(to)


def _chosen(precision: str, choices: tuple[P, ...], to: Format) -> P:
    """Return `precision` if it is among `choices`, the precisions of the format `to`.

    Otherwise raises UserError. The message names `choices` and the formats that have this precision.
    """
    for choice in choices:
        if choice == precision:
            return choice
    others = [name for name, theirs in PRECISIONS.items() if precision in theirs]
    elsewhere = f", or give --to {' or '.join(others)}" if others else ""
    raise UserError(
        f"--precision {precision} is not possible, because --to {to} has only {', '.join(choices)}: leave --precision out"
        + elsewhere
    )
