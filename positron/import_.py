"""Make a run of a model that was trained elsewhere.

python -m positron.import_ ~/models/SmolLM2-135M --name smollm
python -m positron.import_ stories260K.bin --tokenizer tok512.bin
"""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path

from positron.system.command_parser import CommandParser
from positron.system.console import one_line, say_loading
from positron.system.errors import UserError
from positron.system.exits import errors_as_one_line
from positron.system.formatting import amount, command
from positron.system.log import screen_log

logger = logging.getLogger("positron.import_")


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = CommandParser(
        prog="python -m positron.import_", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", help="folder with config.json, weights and tokenizer.json, or a .bin file of llama2.c")
    parser.add_argument("--name", help="name of the new run below outputs/ (default: the name of the folder or file)")
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="vocabulary of a .bin file (default: tokenizer.bin beside it)"
    )
    return parser


def main() -> None:
    """Run the command with the options of the command line."""
    with errors_as_one_line(), screen_log():
        options = arguments().parse_args()
        import_model(options.path, options.name, options.tokenizer)


def import_model(path: str | Path, name: str | None = None, tokenizer: str | Path | None = None) -> Path:
    """Read a model and write it as a run; log what was read, and return the run's folder.

    Raises UserError for what is missing, damaged, contradictory or not supported, and for a name that is taken.
    """
    say_loading(str(path))
    from positron.cli.preflight import check_name
    from positron.interop.importing import read_model, write_run
    from positron.run.folder import OUTPUTS
    from positron.system.disk import expanded

    place = expanded(path)
    folder = OUTPUTS / (
        name or re.sub(r"[^\w.-]", "-", place.resolve().stem if place.is_file() else place.resolve().name)
    )
    check_name(folder)
    if folder.exists():
        raise UserError(one_line(f"{folder} exists already: give another --name, or delete it"))
    if not place.exists():
        raise UserError(one_line(f"{path}: there is no such folder or file"))
    model = read_model(place, None if tokenizer is None else expanded(tokenizer))
    write_run(model, folder)
    config = model.config
    logger.info(
        f"read {amount(config.n_params())} parameters: {config.n_layer} layers of width {config.d_model}, "
        f"context {config.context_length:,} tokens, vocabulary {config.vocab_size:,} tokens"
    )
    logger.info(f"the run: {folder}")
    logger.info(f"next:    {command('generate', 'Once upon a time', '--run', str(folder))}")
    return folder


if __name__ == "__main__":
    main()
