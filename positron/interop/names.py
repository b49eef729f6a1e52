"""Tell by its name what a model to import is, before anything large is loaded."""

from __future__ import annotations

import re
from pathlib import Path

from positron.run.folder import OUTPUTS, Run
from positron.system.disk import expanded

ORIGINAL = {"gpt2": "openai-community/gpt2"}  # names on the hub without an owner


def is_repository(name: str) -> bool:
    """Tell whether a name can be OWNER/NAME of the hub, and no path that somebody mistyped."""
    if name in ORIGINAL:
        return True
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not Path(name).parent.exists()


def run_name(name: str) -> str:
    """Return the name that an imported run gets where none is chosen: that of the folder, file or repository."""
    path = expanded(name)
    return re.sub(r"[^\w.-]", "-", path.stem if path.is_file() else path.resolve().name)


def needs_import(name: str) -> bool:
    """Tell whether `init_from=name` means a model of others: no run, but a folder with a tokenizer.json or a repository."""
    path = expanded(name)
    if any(Run(folder).exists for folder in (path, OUTPUTS / name)):
        return False
    return is_repository(name) or (path / "tokenizer.json").is_file()
