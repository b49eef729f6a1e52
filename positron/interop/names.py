"""Decide from its name whether a model must be converted to a run folder before it is used, and choose the run's name.

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
    """Tell whether `init_from=name` names a model that must be imported first.

    This is the case if `name` is not a run, and if it is either a repository (see `is_repository`) or a folder that contains
    a tokenizer.json.
    """
    path = expanded(name)
    if any(Run(folder).exists for folder in (path, OUTPUTS / name)):
        return False
    return is_repository(name) or (path / "tokenizer.json").is_file()
