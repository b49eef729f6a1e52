"""Chat with runs in the browser, and serve them to programs on this machine through an OpenAI-compatible API.

    positron serve
    positron serve tinygpt tinygpt-sft --port 8001

http://127.0.0.1:8000/v1 is the base URL for clients; in a request, the field `model` is the name of a run.
Ctrl-C stops the server.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal

from positron.cli.sampling_options import weights_option
from positron.inference.arguments import weights_of
from positron.system.command_parser import CommandParser
from positron.system.console import Screen, say_loading
from positron.system.errors import UserError
from positron.system.exits import end_despite_threads, errors_as_one_line
from positron.system.log import screen_log
from positron.system.threads import SPIN_WRITING, spin

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
KEY_VARIABLE = "POSITRON_API_KEY"
MIN_KEY_LENGTH = 16


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = CommandParser("serve", __doc__)
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="run folders, or names below outputs/ (default: the one trained last)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port (default: %(default)s; 0: any free port)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, this machine only); any other address but localhost and ::1 "
        "needs an API key",
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"clients must send this key, of at least {MIN_KEY_LENGTH} characters (default: the environment variable "
        f"{KEY_VARIABLE}, which other users of this machine cannot see)",
    )
    parser.add_argument("--no-open", action="store_true", help="do not open the page in the browser")
    weights_option(parser)
    return parser


def chosen_key(given: str | None, host: str) -> str | None:
    """Return the API key that clients must send, or None if they need no key.

    The key is `given` or, if `given` is None, the value of the environment variable POSITRON_API_KEY. Raises UserError if there
    is no key although other machines can reach the address `host`. Also raises UserError for a key that is shorter than 16
    characters (MIN_KEY_LENGTH), or that contains spaces or characters other than printable ASCII.
    """
    key = given if given is not None else os.environ.get(KEY_VARIABLE)
    if key is None and host not in LOOPBACK_HOSTS:
        raise UserError(
            f"--host {host} lets other machines use the models: give --api-key KEY with a key of at least {MIN_KEY_LENGTH} "
            "characters, or leave --host out for this machine only"
        )
    if key is not None and (len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key):
        source = f"the environment variable {KEY_VARIABLE}" if given is None else "--api-key"
        raise UserError(
            f"the API key of {source} must have at least {MIN_KEY_LENGTH} characters, all ASCII and no spaces: make one with "
            'python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return key


def main() -> None:
    """Run `positron serve` with the options in `sys.argv`, until Ctrl-C."""
    spin(SPIN_WRITING)
    with end_despite_threads(), errors_as_one_line(), screen_log(Screen().line):
        options = arguments().parse_args()
        weights = weights_of(options.weights, "--weights ")
        from positron.run.find import announce, find_run

        runs = [find_run(name) for name in options.runs or [None]]
        say_loading(", ".join(options.runs) or str(runs[0].folder))  # the import of torch below takes seconds
        from positron.dashboard.site import site
        from positron.dashboard.table import Outputs
        from positron.run.folder import OUTPUTS
        from positron.serving.browser import has_screen, open_page
        from positron.serving.connection import Server, listen, url_of
        from positron.serving.models import Models, refuse_same_names, serve_run

        refuse_same_names(runs)
        if not options.runs:
            announce(runs[0], None)
        listener = listen(options.host, options.port)
        # after `listen`, because a host that does not exist needs no key
        key = chosen_key(options.api_key, options.host)
        loaded = [serve_run(run, weights) for run in runs]
        for model in loaded:
            kind = "chats" if model.chats else "continues texts"
            Screen().line(f"{model.name} {kind}; it reads {model.context} tokens")
        served = {model.name: run for model, run in zip(loaded, runs, strict=True)}
        models = Models(loaded, lambda: served)
        url = url_of(listener)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a script in the background leaves Ctrl-C ignored
        with contextlib.suppress(KeyboardInterrupt):
            Screen().line(f"{url} is the page; {url}/v1 is an OpenAI-compatible API; press Ctrl-C to stop")
            if has_screen() and not options.no_open:
                open_page(url)
            Server(site(models, Outputs(OUTPUTS), key), listener).run_until_stopped()
        models.close()


if __name__ == "__main__":
    main()
