"""Show the runs of a folder in the browser while they train: table, curves and samples. Chat with them, and look inside them.

positron dashboard
positron dashboard outputs/sweeps/lr --port 8800 --open
"""

from __future__ import annotations

import argparse
import contextlib
import signal
from pathlib import Path

from positron.run.folder import OUTPUTS
from positron.system.command_parser import CommandParser
from positron.system.errors import UserError
from positron.system.exits import end_despite_threads, errors_as_one_line


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = CommandParser("dashboard", __doc__)
    parser.add_argument(
        "outputs", nargs="?", type=Path, default=OUTPUTS, help="folder that contains runs (default: %(default)s)"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=8765,
        help="port of the page on this machine, 127.0.0.1 (default: %(default)s; 0 chooses a free port)",
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    return parser


def main() -> None:
    """Run `positron dashboard` with the options in `sys.argv`, until Ctrl-C."""
    with end_despite_threads(), errors_as_one_line():
        options = arguments().parse_args()
        if options.outputs != OUTPUTS and not options.outputs.is_dir():
            raise UserError(
                f"there is no folder {options.outputs}: give the folder that contains your runs, such as {OUTPUTS}"
            )
        from positron.dashboard.site import site
        from positron.dashboard.table import Outputs
        from positron.serving.browser import open_page
        from positron.serving.connection import Server, listen, url_of
        from positron.serving.models import Models

        listener = listen("127.0.0.1", options.port)
        outputs = Outputs(options.outputs)
        models = Models(runs=outputs.trained)
        url = f"{url_of(listener)}/runs"
        # a shell script that starts the command in the background makes it ignore SIGINT, so set the handler again
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            print(f"{url} shows the runs in {options.outputs}; press Ctrl-C to stop", flush=True)
            if options.open:
                open_page(url)
            Server(site(models, outputs), listener).run_until_stopped()
        models.close()
