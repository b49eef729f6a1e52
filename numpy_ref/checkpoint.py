"""Chapter 16. Checkpoints: configuration (JSON), weights (npz or safetensors) and tokenizer (JSON), each whole or absent.

Written beside, flushed to the disk, renamed: a rename is atomic, so a power cut leaves either the old file or the new
one. Nothing read is ever executed: npz without pickles, JSON, and safetensors, which is 8 bytes of length, a JSON header
name -> dtype, shape, place, and the raw numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from numpy_ref.config import GPTConfig, InputError
from numpy_ref.gpt import shapes
from numpy_ref.linear import Array
from numpy_ref.multihead import Params
from numpy_ref.spm import SentencePieceTokenizer
from numpy_ref.tokenizers import CharTokenizer, Tokenizer

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path` when the block ends, complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; what was there is untouched") from error
    finally:
        with contextlib.suppress(OSError):  # already renamed, or on a disk that refuses everything
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    with whole_file(path) as file:
        file.write((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object")
    return value


def write_arrays(path: Path, arrays: dict[str, Array]) -> None:
    with whole_file(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> dict[str, Array]:
    """InputError where the file is missing, cut off, damaged (each array has a checksum), or holds pickles."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot read {path}: {' '.join(str(error).split()) or type(error).__name__}") from error


def read_config(path: Path) -> GPTConfig:
    """InputError names a field that is missing, unknown or impossible."""
    facts = read_json(path)
    known = {field.name for field in dataclasses.fields(GPTConfig)}
    try:
        if unknown := sorted(set(facts) - known):
            raise InputError(f"unknown field {unknown[0]}")
        return GPTConfig(**facts)
    except (InputError, TypeError) as error:
        raise InputError(f"{path} is no model configuration: {error}") from error


def check(params: Params, config: GPTConfig, where: str) -> Params:
    """The parameters as they are, or InputError naming the array that is missing, extra, misshapen or no numbers."""
    wanted = shapes(config)
    for name, shape in wanted.items():
        if name not in params:
            raise InputError(f"{where}: {name} is missing; this architecture needs it in shape {shape}")
        if params[name].shape != shape:
            raise InputError(f"{where}: {name} has the shape {params[name].shape}, this architecture needs {shape}")
        if params[name].dtype.kind != "f":
            raise InputError(f"{where}: {name} holds {params[name].dtype} instead of floats")
    if extra := sorted(set(params) - set(wanted)):
        raise InputError(f"{where}: {extra[0]} is not part of this architecture")
    return {name: np.ascontiguousarray(params[name]) for name in wanted}


def save(config: GPTConfig, params: Params, config_path: str | Path, weights_path: str | Path) -> None:
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(GPTConfig)}
    write_arrays(Path(weights_path), params)
    write_json(Path(config_path), fields)


def load(config_path: str | Path, weights_path: str | Path) -> tuple[Params, GPTConfig]:
    config = read_config(Path(config_path))
    return check(read_arrays(Path(weights_path)), config, str(weights_path)), config


def to_safetensors(params: Params, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    names = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
    place = 0
    for name, array in params.items():
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [place, place + array.nbytes],
        }
        place += array.nbytes
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8 bytes
    with whole_file(Path(path)) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in params.values():
            file.write(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())


def from_safetensors(path: str | Path) -> dict[str, Array]:
    """F64, F32, F16, and BF16 (the upper half of a float32), by name. InputError for anything else."""
    try:
        data = Path(path).read_bytes()
        (size,) = struct.unpack_from("<Q", data)
        header, base = json.loads(data[8 : 8 + size]), 8 + size
        arrays = {}
        for name, facts in header.items():
            if name == "__metadata__":
                continue
            start, end = facts["data_offsets"]
            if not 0 <= start <= end <= len(data) - base:
                raise ValueError(f"{name} lies beyond the end of the file")
            raw = data[base + start : base + end]
            if facts["dtype"] == "BF16":
                flat = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                flat = np.frombuffer(raw, np.dtype(_DTYPES[facts["dtype"]]).newbyteorder("<"))
            arrays[name] = flat.astype(flat.dtype.newbyteorder("="), copy=True).reshape(facts["shape"])
        return arrays
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def refuse_other_content(path: Path) -> None:
    """Raise InputError if the file does not have the sha256 that is noted beside it; older runs have none."""
    note = path.with_name(f"{path.name}.sha256")
    try:
        known = note.read_text(encoding="utf-8", errors="replace").split()[:1]
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"cannot read {note}: {error.strerror}") from error
    if known != [found]:
        raise InputError(f"{path} is damaged: its sha256 is not the one in {note.name}; restore it from a copy")


def from_torch_run(folder: str | Path) -> tuple[Params, GPTConfig, Tokenizer]:
    """A Positron run's exported weights, architecture and tokenizer, without torch."""
    folder = Path(folder)
    if not (folder / "model" / "weights.safetensors").exists():
        raise InputError(
            f"{folder} has no model/weights.safetensors: is it the folder of a run that has been validated?"
        )
    config = read_config(folder / "model" / "config.json")
    params = check(from_safetensors(folder / "model" / "weights.safetensors"), config, str(folder))
    refuse_other_content(folder / "model" / "weights.safetensors")
    facts = read_json(folder / "tokenizer" / "tokenizer.json")
    tokenizer: Tokenizer
    if facts.get("kind") == "char" and isinstance(facts.get("characters"), str):
        tokenizer = CharTokenizer(facts["characters"])
    elif facts.get("kind") == "sentencepiece":
        path = folder / "tokenizer" / "spm.model"
        try:
            tokenizer = SentencePieceTokenizer(path.read_bytes(), str(path))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
    else:
        raise InputError(f"{folder}: a tokenizer of the kind {facts.get('kind')!r} cannot be read without its library")
    if tokenizer.vocab_size != config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer knows {tokenizer.vocab_size} tokens, the model {config.vocab_size}: "
            "they do not belong together"
        )
    return params, config, tokenizer
