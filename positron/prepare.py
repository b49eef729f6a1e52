"""Text to token files, ahead of training or just to look at it.

    python -m positron.prepare data=text data.path=my.txt tokenizer=spm_4k
    python -m positron.prepare data=stories tokenizer=char --tokenizer-report
    python -m positron.prepare inspect my.txt tokenizer=spm_4k
    python -m positron.prepare cache            (lists what lies on the disk; cache clean frees it)

Settings are those of training; `train` prepares by itself what is missing. Stopped by whatever, the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from positron.cli.hydra_app import compose
from positron.config import RunConfig
from positron.settings import from_dict
from positron.system.console import say_loading
from positron.system.errors import UserError
from positron.system.exits import errors_as_one_line
from positron.system.voice import Voice

if TYPE_CHECKING:
    from positron.data.shards import TokenFiles
    from positron.text.tokenizer import Tokenizer


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m positron.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", help="key=value, or: inspect PATH key=value ...")
    parser.add_argument("--tokenizer-report", action="store_true", help="how the tokenizer cuts this text")
    return parser


def main() -> None:
    with errors_as_one_line():
        options = arguments().parse_intermixed_args()
        settings, looking, path = list(options.settings), False, None
        if settings[:1] == ["cache"]:
            cache(settings[1:])
            return
        if settings[:1] == ["inspect"]:
            if len(settings) < 2 or ("=" in settings[1] and not Path(settings[1]).exists()):
                raise UserError("inspect what? python -m positron.prepare inspect PATH")
            # the path itself is set below, since Hydra's grammar gives brackets, quotes and such a meaning
            looking, path, settings = True, settings[1], ["data=text", "data.path=PATH", *settings[2:]]
        if wrong := [word for word in settings if "=" not in word]:
            raise UserError(f"{wrong[0]} is no setting: give key=value, or inspect PATH")
        config = from_dict(RunConfig, compose("train", ["name=prepare", *settings]))
        if looking:
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))
        say_loading("what reads the text")
        from positron.data.corpus import prepare
        from positron.data.shards import SPLITS, TokenFiles, verify

        with Voice(None) as say:
            tokenizer, folder = prepare(config.data, config.tokenizer, None, say)
        places = dict.fromkeys(SPLITS, folder)
        if config.data.tokens_per_epoch is not None:
            first = min(path.parent for path in folder.glob("epoch-*/tokens.json"))
            places = {"train": first, "val": folder / "validation"}
        for place in set(places.values()):
            verify(place)
        files = {split: TokenFiles(place, split, tokenizer) for split, place in places.items()}
        print(f"{folder}")
        for split, part in files.items():
            noun = "document" if part.n_documents == 1 else "documents"
            print(
                f"  {split:<6} {part.n_documents:>12,} {noun:<9} {part.n_tokens:>14,} tokens {part.n_bytes:>14,} bytes"
                f"   {part.n_bytes / max(1, part.n_tokens):.2f} bytes per token"
            )
        if options.tokenizer_report or looking:
            print(tokenizer_report(files["train"], tokenizer))
        if looking:
            print(inspect(files["train"], tokenizer, config.model.context_length, folder))


def cache(words: list[str], corpora: Path = Path("outputs/data")) -> None:
    """List the prepared corpora and fetched files, or free all that can be made again; UserError for other words."""
    from positron.system.download import cache_folder

    if words not in ([], ["clean"]):
        raise UserError(f"cache {' '.join(words)}: python -m positron.prepare cache lists, cache clean frees")
    total = 0
    for folder in [*sorted(path.parent for path in corpora.glob("*/lock")), cache_folder()]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        total += size
        newest = max((path.stat().st_mtime for path in files), default=0.0)
        day = time.strftime("%Y-%m-%d", time.localtime(newest)) if files else "-"
        print(f"  {size / 1e6:>10,.1f} MB  {day:<10}  {folder}" + (_clean(folder) if words else ""))
    print(f"  {total / 1e6:>10,.1f} MB  in all" + ("" if words or not total else "; cache clean frees it"))


def _clean(folder: Path) -> str:
    """Delete tokens and raw files; tokenizers, and notes of what a corpus was made of, stay, so it comes back the same."""
    import shutil

    from positron.system.disk import try_lock

    corpus = folder / "lock"
    with try_lock(corpus) if corpus.exists() else nullcontext(True) as free:
        if not free or any(_is_held(path) for path in folder.glob("stream-*/users/*")):
            return "  in use, left alone"
        if not corpus.exists():
            shutil.rmtree(folder, ignore_errors=True)
            return "  freed"
        for pattern in ("raw", "tokens-*", ".tokens-*", "stream-*/epoch-*", "stream-*/.epoch-*"):
            for path in folder.glob(pattern):
                (path / "tokens.json").unlink(missing_ok=True)  # first, so that a rest does not count as whole
                shutil.rmtree(path)
    return "  freed"


def _is_held(path: Path) -> bool:
    from positron.system.disk import try_lock

    with try_lock(path) as free:
        return not free


def tokenizer_report(files: TokenFiles, tokenizer: Tokenizer, limit: int = 5_000_000) -> str:
    """Of the first `limit` training tokens: size, bytes per token, tokens per word, unknown rate, odd pieces."""
    import numpy as np

    ids = files.read(0, min(limit, files.n_tokens))
    lengths, counts = tokenizer.token_bytes(), np.bincount(ids, minlength=tokenizer.vocab_size)
    text = tokenizer.decode(ids.tolist())
    spelled = np.flatnonzero(lengths > 0)  # special tokens stand for no text
    used = spelled[counts[spelled] > 0]
    by_length = sorted(used, key=lambda i: (-lengths[i], i))[:8]
    by_count = sorted(used, key=lambda i: (counts[i], i))[:8]
    unknown = counts[0] / max(1, len(ids)) if tokenizer.kind in ("char", "word") else 0.0

    def shown(pieces: list[int]) -> str:
        parts = [tokenizer.bytes_of(int(i)) for i in pieces]
        return "  ".join(repr(part.decode("utf-8")) if _is_text(part) else repr(part) for part in parts)

    return "\n".join(
        [
            f"tokenizer {tokenizer.kind}, {tokenizer.vocab_size:,} ids, of which {len(used):,} occur in this text",
            f"  bytes per token   {lengths[ids].sum() / max(1, len(ids)):.2f}",
            f"  tokens per word   {len(ids) / max(1, len(text.split())):.2f}",
            f"  unknown           {unknown:.3%}" + ("   much of this text is lost to <unk>" if unknown > 0.01 else ""),
            f"  longest pieces    {shown(by_length)}",
            f"  rarest pieces     {shown(by_count)}",
        ]
    )


def _is_text(part: bytes) -> bool:
    """False for a piece of a character."""
    return "\ufffd" not in part.decode("utf-8", errors="replace")


def inspect(files: TokenFiles, tokenizer: Tokenizer, context: int, folder: Path) -> str:
    """Documents' lengths, drawn to `folder`, and three windows of `context` tokens as a model sees them."""
    import numpy as np

    from positron.evaluation.plots import length_histogram
    from positron.system.disk import whole_file
    from positron.text.tokenizer import END_OF_TEXT

    end = tokenizer.special_id(END_OF_TEXT)
    places = files.places_of(end)
    if places[-1] < files.n_tokens - 1:  # the last document goes on in the validation text
        places = np.append(places, files.n_tokens)
    lengths = np.diff(places) - 1
    lines = ["", "document lengths in tokens:"]
    if len(lengths):
        quantiles = np.percentile(lengths, [0, 10, 50, 90, 100])
        lines.append(
            "  shortest {:,.0f} · 10 % {:,.0f} · median {:,.0f} · 90 % {:,.0f} · longest {:,.0f}".format(*quantiles)
        )
        with whole_file(folder / "lengths.png") as file:
            file.write(length_histogram(lengths, context))
        lines.append(f"  drawn: {folder / 'lengths.png'}")
    for part in (0.1, 0.5, 0.9):
        start = int(part * max(0, files.n_tokens - context))
        ids = files.read(start, context)
        cuts = [0, *(int(i) for i in np.flatnonzero(ids == end)), len(ids)]
        pieces = [tokenizer.decode(ids[a:b].tolist()) for a, b in pairwise(cuts)]
        lines += ["", f"--- a window of {len(ids)} tokens, from token {start:,} ---", f"{END_OF_TEXT}".join(pieces)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
