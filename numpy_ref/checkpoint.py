"""Checkpoints: configuration (JSON), weights (npz or safetensors) and tokenizer (JSON), written atomically.

A file is written under a temporary name, flushed to the disk, and renamed. A rename is atomic, so after a power cut either the
old or the new file exists. Reading a file never executes code from it: npz is read without pickles, and JSON and safetensors
hold only data. A safetensors file has three parts: the length of the header in 8 bytes, a JSON header with the name, dtype,
shape and byte range of each array, and the raw numbers.
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
from numpy_ref.linear import Array, Params
from numpy_ref.spm import SentencePieceTokenizer
from numpy_ref.tokenizers import CharTokenizer, Tokenizer

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file for writing; when the `with` block ends, rename it to `path`, or delete it after an error.

    Raises InputError if the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; an existing file of this name is unchanged"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # already renamed, or on a disk that refuses everything
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    with whole_file(path) as file:
        file.write((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises InputError if the file is missing or does not contain a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; check the path, or restore the file from a copy") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} does not contain a JSON object: restore it from a copy")
    return value


def write_arrays(path: Path, arrays: dict[str, Array]) -> None:
    """Write the arrays to an npz file, atomically."""
    with whole_file(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> dict[str, Array]:
    """Read the arrays of an npz file by name.

    Raises InputError if the file is missing, truncated, damaged (each array has a checksum), or contains pickles.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read {path}: {reason}; check the path, or restore the file from a copy") from error


def read_config(path: Path) -> GPTConfig:
    """Read an architecture from a JSON file.

    Raises InputError if the file cannot be read, if a field is unknown or has an impossible value, or if a field without a
    default is missing.
    """
    facts = read_json(path)
    known = {field.name for field in dataclasses.fields(GPTConfig)}
    try:
        if unknown := sorted(set(facts) - known):
            raise InputError(f"unknown field {unknown[0]}")
        return GPTConfig(**facts)
    except (InputError, TypeError) as error:
        raise InputError(f"{path} is not a model configuration: {error}") from error


def check_params(params: Params, config: GPTConfig, source: str) -> Params:
    """Check that the parameters fit the architecture; return them as contiguous arrays in the order of `gpt.shapes`.

    `source` names their file in the error message. Raises InputError, which names the array, if an array is missing,
    unexpected, of another shape, or not floating-point.
    """
    expected = shapes(config)
    for name, shape in expected.items():
        if name not in params:
            raise InputError(
                f"{source}: the array {name} is missing, but the model's configuration needs it: the files of two models "
                "are mixed, or a file is damaged"
            )
        if params[name].shape != shape:
            raise InputError(
                f"{source}: {name} has the shape {params[name].shape}, but the model's configuration needs {shape}: the "
                "files of two models are mixed, or a file is damaged"
            )
        if params[name].dtype.kind != "f":
            raise InputError(
                f"{source}: {name} contains {params[name].dtype} numbers instead of floats: restore the file from a copy"
            )
    if extra := sorted(set(params) - set(expected)):
        raise InputError(
            f"{source}: the array {extra[0]} is not part of the model's configuration: the files of two models are mixed, "
            "or a file is damaged"
        )
    return {name: np.ascontiguousarray(params[name]) for name in expected}


def save(config: GPTConfig, params: Params, config_path: str | Path, weights_path: str | Path) -> None:
    """Write the weights as npz to `weights_path`, then the architecture as JSON to `config_path`, each atomically."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(GPTConfig)}
    write_arrays(Path(weights_path), params)
    write_json(Path(config_path), fields)


def load(config_path: str | Path, weights_path: str | Path) -> tuple[Params, GPTConfig]:
    """Read the weights and the architecture that `save` wrote.

    Raises InputError if a file is missing or damaged, or if the weights do not fit the architecture.
    """
    config = read_config(Path(config_path))
    return check_params(read_arrays(Path(weights_path)), config, str(weights_path)), config


def to_safetensors(params: Params, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write the parameters as a safetensors file, atomically, in the order of `params`.

    The arrays must be float64, float32 or float16. `metadata` is stored in the header under `__metadata__`.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    names = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
    offset = 0
    for name, array in params.items():
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8 bytes
    with whole_file(Path(path)) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in params.values():
            file.write(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())


def from_safetensors(path: str | Path) -> dict[str, Array]:
    """Return the arrays of a safetensors file by their names. The dtypes F64, F32, F16 and BF16 are read; BF16 becomes float32.

    Raises InputError if the file cannot be read, is damaged, or contains another dtype.
    """
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
            if facts["dtype"] == "BF16":  # the upper half of a float32
                flat = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                flat = np.frombuffer(raw, np.dtype(_DTYPES[facts["dtype"]]).newbyteorder("<"))
            arrays[name] = flat.astype(flat.dtype.newbyteorder("="), copy=True).reshape(facts["shape"])
        return arrays
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"cannot read {path}: {error}; restore it from a copy") from error


def check_sha256(path: Path) -> None:
    """Raise InputError if the sha256 of the file `path` differs from the sha256 that the file `path`.sha256 contains.

    If there is no file `path`.sha256, nothing is checked: older versions of Positron did not write it.
    """
    checksum_path = path.with_name(f"{path.name}.sha256")
    try:
        expected = checksum_path.read_text(encoding="utf-8", errors="replace").split()[:1]
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"cannot read {error.filename or checksum_path}: {error.strerror}") from error
    if expected != [actual]:
        raise InputError(
            f"{path} is damaged: its sha256 is not the one in {checksum_path.name}; restore it from a copy"
        )


def from_torch_run(folder: str | Path) -> tuple[Params, GPTConfig, Tokenizer]:
    """Read the exported weights, the architecture and the tokenizer of a Positron run, without torch.

    A run is a training of the torch model, and `folder` is its folder. Raises InputError if the folder has no exported weights
    (a run writes them when it ends, if it was validated at least once), if files are damaged or do not belong together, or if
    numpy_ref cannot read this kind of tokenizer.
    """
    folder = Path(folder)
    if not (folder / "model" / "weights.safetensors").exists():
        raise InputError(
            f"{folder} has no model/weights.safetensors: give the folder of a run that has ended, and was validated before"
        )
    config = read_config(folder / "model" / "config.json")
    params = check_params(from_safetensors(folder / "model" / "weights.safetensors"), config, str(folder))
    check_sha256(folder / "model" / "weights.safetensors")
    facts = read_json(folder / "tokenizer" / "tokenizer.json")
    tokenizer: Tokenizer
    if facts.get("kind") == "char":
        if not isinstance(facts.get("characters"), str):
            raise InputError(
                f"{folder / 'tokenizer' / 'tokenizer.json'} does not list the characters as a string: restore it from a copy"
            )
        tokenizer = CharTokenizer(facts["characters"])
    elif facts.get("kind") == "sentencepiece":
        path = folder / "tokenizer" / "spm.model"
        try:
            tokenizer = SentencePieceTokenizer(path.read_bytes(), str(path))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
    else:
        raise InputError(
            f"{folder}: numpy_ref cannot read the tokenizer of this run, which is of the kind {facts.get('kind')!r}: use "
            "a run with a char or spm_* tokenizer"
        )
    if tokenizer.vocab_size != config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, but the model has {config.vocab_size}: the files "
            "of two runs are mixed"
        )
    return params, config, tokenizer
