"""Show your text as a model sees it: documents, tokens, lengths, and three training windows.

    positron preview my.txt tokenizer=spm_4k

PATH is a file, a folder or a pattern, as for data.path; settings are those of training.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from positron.cli.overrides import given_keys
from positron.cli.request import compose
from positron.config import RunConfig
from positron.prepare import prepared
from positron.settings import from_dict
from positron.system.command_parser import CommandParser
from positron.system.errors import UserError
from positron.system.exits import errors_as_one_line


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = CommandParser("preview", __doc__)
    parser.add_argument("path", metavar="PATH", help="a file, a folder or a pattern in quotes")
    parser.add_argument("settings", nargs="*", default=[], help="key=value, as in training")
    return parser


def main() -> None:
    """Run `positron preview` with the options in `sys.argv`."""
    with errors_as_one_line():
        options = arguments().parse_intermixed_args()
        if wrong := [word for word in options.settings if "=" not in word]:
            raise UserError(
                f"{wrong[0]} is not a setting: give one PATH, then key=value; for several files, give their folder, or a "
                "pattern in quotes"
            )
        if "=" in options.path and not Path(options.path).exists():
            raise UserError(
                f"preview needs a PATH before {options.path}: give a file, a folder or a pattern in quotes first"
            )
        if given_keys(options.settings).get("data", "text") != "text":
            raise UserError(
                "positron preview shows only texts for pretraining: leave data= out, and give a text as PATH"
            )
        # the path is put in after composing, because Hydra's grammar gives brackets and quotes a meaning
        config = from_dict(
            RunConfig, compose("train", ["name=preview", "data=text", "data.path=PATH", *options.settings])
        )
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=options.path))
        files, tokenizer, folder = prepared(config)
        from positron.evaluation.corpus_report import preview, tokenizer_report

        print(tokenizer_report(files["train"], tokenizer))
        print(preview(files["train"], tokenizer, config.model.context_length, folder))


if __name__ == "__main__":
    main()
