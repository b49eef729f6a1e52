"""Open a page of this server in the user's browser."""

from __future__ import annotations

import os
import sys
import webbrowser


def has_screen() -> bool:
    """Tell whether the command was started from a terminal on a machine with a graphical screen."""
    is_graphical = (
        os.name == "nt" or sys.platform == "darwin" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
    )
    return sys.stdout.isatty() and is_graphical


def open_page(url: str) -> None:
    """Open a page in a new tab of the browser."""
    webbrowser.open_new_tab(url)
