"""Replace the user's home folder in paths by `~` in files that may be shared, and find names that some systems refuse.

This module imports only the standard library.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

# What Windows refuses (https://learn.microsoft.com/windows/win32/fileio/naming-a-file); an extension changes nothing.
_FORBIDDEN = set('<>:"/\\|?*')
_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
_DEVICES |= {f"{device}{number}" for device in ("COM", "LPT") for number in "0123456789¹²³"}


def without_home(value: Any) -> Any:
    """Replace the user's home folder by `~` in all strings of a JSON value, which may be paths or sentences.

    A string that begins with the home folder is taken to be a path that will be read again, so it is changed only if a
    separator or nothing follows: `/home/ann@work/t.txt` is not in the folder `/home/ann`. Inside a string, the home folder may
    also end a quotation or a part of a sentence, and it is replaced unless the next character probably belongs to its name.
    """
    if isinstance(value, str):
        for home in map(re.escape, _homes()):
            value = re.sub(rf"\A{home}(?=[/\\]|\Z)|(?<=[^\w.~/-]){home}(?![\w.@+~=#%&-])", "~", value)
        return value
    if isinstance(value, dict):
        return {key: without_home(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_home(inner) for inner in value]
    return value


def _homes() -> list[str]:
    """Return all ways to write the path of the home folder; an empty list if the folder is the root folder or unknown.

    The list contains the path that the system gives and the same path with its symbolic links resolved. On Windows, it also
    contains both paths with slashes in place of backslashes, and with each backslash doubled, as in quoted text.
    """
    try:
        home = Path.home()
    except RuntimeError:
        return []
    names = {name for name in (str(home), os.path.realpath(home)) if Path(name) != Path(name).parent}
    names |= {name.replace("\\", other) for name in names for other in ("/", "\\\\")}
    return sorted(names, key=len, reverse=True)


def portable_name(name: str) -> str:
    """Return `name` with `_` in place of each printable character that Windows refuses in the name of a file."""
    return "".join("_" if char in _FORBIDDEN else char for char in name)


def fault_of_name(name: str) -> str | None:
    """Return why Windows refuses a file or folder of this name, such as "is the name of a device on Windows".

    Returns None if Windows allows the name. Callers refuse such a name on every system, because a run folder may be moved to a
    machine with Windows.
    """
    if name != name.strip() or name.endswith("."):
        return "begins or ends with a space, or ends with a dot"
    if not name.isprintable() or _FORBIDDEN & set(name):
        return f"has one of the characters {' '.join(sorted(_FORBIDDEN))}, or one that cannot be shown"
    if name.split(".")[0].strip().upper() in _DEVICES:
        return "is the name of a device on Windows"
    return None


def relative_to_here(path: Path) -> str:
    """Return the path relative to the current folder or, on another drive of Windows, the path itself."""
    try:
        return os.path.relpath(path)
    except ValueError:
        return str(path)
