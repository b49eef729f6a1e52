"""Delete the environment, the caches and the built files of this repository. Runs in outputs/ are kept.

python scripts/clean.py
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

FOLDERS = (".venv", "build", "dist", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis")


def clean(project: Path) -> None:
    """Delete FOLDERS in `project`, and `__pycache__` everywhere below it. Raises OSError if a file cannot be deleted."""
    for name in FOLDERS:
        if (project / name).is_dir():
            shutil.rmtree(project / name)
    for folder, inner, _ in os.walk(project):
        if "__pycache__" in inner:
            inner.remove("__pycache__")  # not visited any more
            shutil.rmtree(Path(folder) / "__pycache__")


if __name__ == "__main__":
    clean(Path(__file__).resolve().parent.parent)
