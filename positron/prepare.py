"""Turn text into token files before training.

    positron prepare data=text data.path=my.txt tokenizer=spm_4k
    positron prepare data=stories tokenizer=char --tokenizer-report

Settings are those of training. `--tokenizer-report` also prints how the tokenizer divides the text. It is not necessary to
prepare a text: `train` itself prepares it if its token files are missing. After an interruption, give the same command again
to continue.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from positron.cli.request import compose
from positron.config import RunConfig
from positron.settings import from_dict
from positron.system.command_parser import CommandParser
from positron.system.commands import command
from positron.system.console import say_loading
from positron.system.errors import UserError
from positron.system.exits import errors_as_one_line
from positron.system.log import screen_log

if TYPE_CHECKING:
    from positron.data.shards import TokenFiles
    from positron.text.tokenizer import Tokenizer


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = CommandParser("prepare", __doc__)
    parser.add_argument("settings", nargs="*", help="key=value, as in training")
    parser.add_argument("--tokenizer-report", action="store_true", help="print how the tokenizer divides the text")
    return parser


def main() -> None:
    """Run `positron prepare` with the options in `sys.argv`."""
    with errors_as_one_line():
        options = arguments().parse_intermixed_args()
        refuse_other_words(options.settings)
        config = from_dict(RunConfig, compose("train", ["name=prepare", *options.settings]))
        files, tokenizer, _ = prepared(config)
        if options.tokenizer_report:
            from positron.evaluation.corpus_report import tokenizer_report

            print(tokenizer_report(files["train"], tokenizer))


def refuse_other_words(words: list[str]) -> None:
    """Raise UserError for a word that does not have the form key=value.

    For `cache` and `inspect`, which earlier versions accepted here, the message names the command that replaces them.
    """
    wrong, settings = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    if words[:1] == ["cache"]:
        clean = ["--clean"] if words[1:] == ["clean"] else []
        raise UserError(f"prepare cache is a separate command now: run {command('cache', *clean)}")
    if words[:1] == ["inspect"]:
        raise UserError(f"prepare inspect is called preview now: run {command('preview', *words[1:] or ['PATH'])}")
    if not wrong:
        return
    word = wrong[0]
    if len(wrong) > 1 and Path(word).exists():
        raise UserError(
            f"'{word}' is not a setting: to prepare several files, give data=text and data.path= with their folder, or with a "
            "pattern in quotes"
        )
    if Path(word).exists():
        others = [setting for setting in settings if setting.partition("=")[0] not in ("data", "data.path")]
        run = command("prepare", "data=text", f"data.path={word}", *others)
        raise UserError(f"'{word}' is not a setting: to prepare this text, run {run}")
    from positron.cli.hydra_app import conf_folder
    from positron.cli.overrides import groups_of
    from positron.cli.unused_settings import fits

    conf = conf_folder()
    groups = groups_of(conf)
    for group in ("data", "tokenizer"):
        if word in groups[group] and fits("train", group, word, conf):
            raise UserError(f"'{word}' is not a setting: did you mean {group}={word}?")
    raise UserError(
        f"'{word}' is not a setting, and there is no such file: to prepare a text, give data=text data.path=FILE"
    )


def prepared(config: RunConfig) -> tuple[dict[str, TokenFiles], Tokenizer, Path]:
    """Prepare a corpus, verify its checksums and print its sizes.

    Returns a dict with the token files of the two parts, `train` and `val`, the tokenizer, and the folder of the corpus. If the
    corpus is streamed, `train` is only the first epoch.
    """
    say_loading("the libraries that read text")
    from positron.data.corpus import prepare
    from positron.data.shards import SPLITS, TokenFiles, verify
    from positron.evaluation.corpus_report import sizes

    with screen_log():
        tokenizer, folder = prepare(config.data, config.tokenizer, None)
    folders = dict.fromkeys(SPLITS, folder)
    if config.data.tokens_per_epoch is not None:
        first = min(path.parent for path in folder.glob("epoch-*/tokens.json"))
        folders = {"train": first, "val": folder / "validation"}
    for tokens_folder in set(folders.values()):
        verify(tokens_folder)
    files = {split: TokenFiles(path, split, tokenizer) for split, path in folders.items()}
    print(f"{folder}")
    for split, part in files.items():
        print(sizes(split, part))
    return files, tokenizer, folder


if __name__ == "__main__":
    main()
