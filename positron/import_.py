"""Turn a model that was trained elsewhere into a run.

positron import HuggingFaceTB/SmolLM2-135M --name smollm
positron import ~/models/SmolLM2-135M
positron import stories260K.bin --tokenizer tok512.bin
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from positron.system.command_parser import CommandParser
from positron.system.commands import command
from positron.system.console import say_loading
from positron.system.exits import errors_as_one_line
from positron.system.formatting import amount
from positron.system.log import screen_log

logger = logging.getLogger("positron.import_")


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = CommandParser("import", __doc__)
    parser.add_argument(
        "path",
        metavar="PATH_OR_REPO",
        help="folder with config.json, weights and tokenizer.json; a .bin file of llama2.c; or OWNER/NAME of a model on the "
        "Hugging Face hub (gpt2, without an owner, means openai-community/gpt2)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a model on the hub (default: its main branch)")
    parser.add_argument(
        "--name", help="name of the new run below outputs/ (default: the name of the folder, file or repository)"
    )
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="vocabulary of a .bin file (default: tokenizer.bin beside it)"
    )
    return parser


def main() -> None:
    """Run `positron import` with the options in `sys.argv`."""
    with errors_as_one_line(), screen_log():
        options = arguments().parse_args()
        import_model(options.path, options.name, options.tokenizer, options.revision)


def import_model(
    path: str | Path, name: str | None = None, tokenizer: str | Path | None = None, revision: str | None = None
) -> Path:
    """Read a model and write it as a run; log what was read, and return the run's folder.

    `path` is a folder, a .bin file of llama2.c, or a repository of the Hugging Face hub, tried in this order. `name` is the
    name of the run (None: the name of the folder, file or repository), `tokenizer` is the vocabulary file that belongs to a
    .bin file (None: tokenizer.bin in the same folder), and `revision` is a branch, tag or commit of a repository. Raises
    UserError if a file is missing, damaged, contradictory or not supported, or if a run with this name exists. Raises
    Unreachable if the network fails.
    """
    say_loading(str(path))
    from positron.cli.preflight import check_name
    from positron.interop.importing import import_run
    from positron.interop.names import run_name
    from positron.run.folder import OUTPUTS
    from positron.system.disk import expanded

    folder = OUTPUTS / (name or run_name(str(path)))
    check_name(folder)
    model = import_run(str(path), folder, None if tokenizer is None else expanded(tokenizer), revision)
    config = model.config
    logger.info(
        f"read {amount(config.n_params())} parameters: {config.n_layer} layers of width {config.d_model}, "
        f"context {config.context_length:,} tokens, vocabulary {config.vocab_size:,} tokens"
    )
    logger.info(f"wrote the run {folder}")
    logger.info(f"next:    {command('generate', 'Once upon a time', '--run', str(folder))}")
    return folder


if __name__ == "__main__":
    main()
