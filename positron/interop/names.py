"""Decide from its name whether a model must be converted to a run folder before it is used, and identify model and run.

Such a model is a repository of the Hugging Face hub or a folder of transformers. This module does not need torch.
"""

from __future__ import annotations

import re
from pathlib import Path

from positron.run.folder import OUTPUTS, Run
from positron.system.disk import expanded

ORIGINAL = {"gpt2": "openai-community/gpt2"}  # a short name without an owner -> the repository on the hub


def is_repository(name: str) -> bool:
    """Tell whether a name is that of a repository of the Hugging Face hub: OWNER/NAME, or a short name such as gpt2.

    If OWNER is an existing folder, the name is taken for a mistyped path, and the result is False.
    """
    if name in ORIGINAL:
        return True
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not Path(name).parent.exists()


def run_name(name: str) -> str:
    """Return the default name of the run into which the model `name` is imported.

    This is the last part of the path, without the suffix of a file, or the last part of the name of the repository. Unusual
    characters are replaced by `-`.
    """
    path = expanded(name)
    return re.sub(r"[^\w.-]", "-", path.stem if path.is_file() else path.resolve().name)


def needs_import(name: str) -> bool:
    """Tell whether `init_from=name` names a model that must be imported first, or whose import must be compared with it.

    This is the case if `name` is not a run, and if it is either a repository (see `is_repository`) or a folder that contains
    a tokenizer.json. If such a folder has the same name as a run below outputs/, the result is True only if this run was
    imported; otherwise `name` means the run.
    """
    path, run = expanded(name), Run(OUTPUTS / name)
    if Run(path).exists:
        return False
    is_model = (path / "tokenizer.json").is_file()
    if run.exists:
        return is_model and run.facts().imported is not None
    return is_repository(name) or is_model


def place_of(name: str) -> str:
    """Return the absolute path of the model `name`, or the name of its repository if there is no such file or folder."""
    path = expanded(name)
    return str(path.resolve()) if path.exists() else ORIGINAL.get(name, name)


def files_of(name: str) -> dict[str, list[int]]:
    """Return the size and the modification time of each file that an import of the folder `name` may read.

    A broken link, such as the lock file of an editor, is left out. Returns an empty dict if `name` is not a folder.
    """
    suffixes = (".json", ".safetensors", ".bin", ".jinja")
    files = [path for path in expanded(name).glob("*") if path.suffix in suffixes and path.is_file()]
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(files)}
