"""Replace the user's home folder in paths by `~`, in files that may be shared.

This module imports only the standard library.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any


def without_home(value: Any) -> Any:
    """Replace the user's home folder by `~` in all texts of a value from JSON."""
    if isinstance(value, str):
        for home in _homes():
            value = re.sub(rf"(?<![\w.~/-]){re.escape(home)}(?![\w.-])", "~", value)
        return value
    if isinstance(value, dict):
        return {key: without_home(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_home(inner) for inner in value]
    return value


def _homes() -> list[str]:
    """Return the path of the home folder as given and with links resolved; empty if it is the root folder or unknown."""
    try:
        home = Path.home()
    except RuntimeError:
        return []
    names = {str(home), os.path.realpath(home)}
    return sorted((name for name in names if len(Path(name).parts) > 1), key=len, reverse=True)
