"""Report errors of the commands as one line with an exit code. Imports only `numpy_ref.config` and the standard library."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from numpy_ref.config import InputError


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print an error of the `with` block as one line and exit with a code: 2 for an InputError, 130 for Ctrl-C, otherwise 1.

    If the output is a pipe that its reader has closed, print nothing and exit with code 0. With POSITRON_DEBUG=1 in the
    environment, the traceback is printed first.
    """
    open_streams()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("POSITRON_DEBUG") == "1":
            traceback.print_exc()
        if isinstance(error, InputError):
            code, line = 2, str(error)
        elif isinstance(error, KeyboardInterrupt):
            code, line = 130, "interrupted"
        elif isinstance(error, BrokenPipeError):
            code, line = 0, ""
        else:
            code, line = 1, f"{type(error).__name__}: {error} (POSITRON_DEBUG=1 shows the traceback)"
        if line:
            print(f"numpy_ref: {line}", file=sys.stderr)
        raise SystemExit(code) from None


def open_streams() -> None:
    """Make stdout and stderr usable: a closed stream becomes the null device, and unencodable characters are replaced.

    On Windows, both use UTF-8, as on other systems, instead of the code page of the system.
    """
    encoding = "utf-8" if sys.platform == "win32" else None
    for name, errors in (("stdout", "replace"), ("stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=encoding, errors=errors)
