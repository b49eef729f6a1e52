"""Show how much disk space prepared corpora and downloads use, or delete them.

    positron cache
    positron cache --clean
    positron cache data.dir=/big/disk

The command takes the settings of training. If `data.dir`, the folder of the corpora, is given, the downloads are neither shown
nor deleted. Deleted files are prepared or downloaded again when they are needed. Data that a Python program gave to Positron is
deleted, too; the program must give it again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import get_args

from positron.cli.overrides import given_keys
from positron.cli.request import compose
from positron.data.sources import MEMORY, ROWS_FILE
from positron.system.command_parser import CommandParser
from positron.system.commands import command
from positron.system.disk import expanded, sweep_temporary_files
from positron.system.download import CacheKind, cache_folder
from positron.system.errors import UserError
from positron.system.exits import errors_as_one_line
from positron.system.locks import is_locked, try_lock


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = CommandParser("cache", __doc__)
    parser.add_argument("settings", nargs="*", help="data.dir=FOLDER (default outputs/data)")
    parser.add_argument(
        "--clean",
        action="store_true",
        help="delete token files, raw texts, the texts that Python programs gave as data=, and, without data.dir=, the "
        "downloads of all runs; a corpus that a process is preparing or streaming is kept",
    )
    return parser


def main() -> None:
    """Run `positron cache` with the options in `sys.argv`."""
    with errors_as_one_line():
        options = arguments().parse_intermixed_args()
        if wrong := [word for word in options.settings if "=" not in word]:
            advice = (
                f"give data.dir={wrong[0]}"
                if Path(wrong[0]).is_dir()
                else "give data.dir=FOLDER, or the option --clean"
            )
            raise UserError(f"'{wrong[0]}' is not a setting: {advice}")
        corpora = expanded(compose("train", ["name=cache", *options.settings])["data"]["dir"])
        is_named = "data.dir" in given_keys(options.settings)
        if is_named and not corpora.is_dir():
            raise UserError(f"data.dir={corpora} is not a folder: correct the path")
        total = 0
        folders = sorted(path.parent for path in corpora.glob("*/lock"))
        if (corpora / MEMORY).is_dir():
            folders.append(corpora / MEMORY)
        if not is_named:
            # never their parent, which may contain other files if the user chose it by POSITRON_CACHE
            folders += [folder for kind in get_args(CacheKind) if (folder := cache_folder(kind)).is_dir()]
        for folder in folders:
            files = _files_in(folder)
            size = sum(facts.st_size for facts in files)
            total += size
            newest = max((facts.st_mtime for facts in files), default=0.0)
            day = time.strftime("%Y-%m-%d", time.localtime(newest)) if files else "-"
            print(f"  {size / 1e6:>10,.1f} MB  {day:<10}  {folder}" + (_clean(folder) if options.clean else ""))
        advice = "" if options.clean or not total else f"; {command('cache', '--clean', *options.settings)} frees it"
        print(f"  {total / 1e6:>10,.1f} MB  in total{advice}")


def _files_in(folder: Path) -> list[os.stat_result]:
    """Return the facts about each file in a folder, except files that another process deletes meanwhile."""
    facts = []
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                facts.append(os.stat(os.path.join(place, name)))
    return facts


def _clean(folder: Path) -> str:
    """Free the disk space that `folder` uses, and return the outcome as text, such as "  freed".

    If `folder` is a prepared corpus, its token files and raw texts are deleted, but its tokenizer is kept, so that the corpus
    can be prepared again. A corpus that another process is preparing or streaming is left unchanged, and "  in use, not
    deleted" is returned. Any other folder is deleted completely: it holds downloads, or data that a program passed to the
    Python functions. The returned text is appended to the line that `main` prints about the folder, so it begins with two
    spaces.
    """
    lock_file = folder / "lock"
    with try_lock(lock_file) if lock_file.exists() else nullcontext(True) as free:
        if not free and is_locked(lock_file) is False:  # the file belongs to another user
            return f"  not deleted: cannot write {lock_file}"
        if not free or any(_is_held(path) for path in folder.glob("stream-*/users/*")):
            return "  in use, not deleted"
        paths = [folder] if folder.exists() else []
        if lock_file.exists():
            (folder / ROWS_FILE).unlink(missing_ok=True)
            sweep_temporary_files(folder)
            patterns = ("raw", "tokens-*", ".tokens-*", "stream-*/epoch-*", "stream-*/.epoch-*")
            paths = [path for pattern in patterns for path in folder.glob(pattern)]
        for path in paths:
            try:
                # first, so that a folder that is deleted only in part is not used
                (path / "tokens.json").unlink(missing_ok=True)
                shutil.rmtree(path)
            except OSError as error:  # on Windows also if a process has a file open
                return f"  {path.name} was not deleted: {error.strerror or error}"
    return "  freed"


def _is_held(path: Path) -> bool:
    with try_lock(path) as free:
        return not free


if __name__ == "__main__":
    main()
