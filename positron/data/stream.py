"""A corpus that is larger than the disk, trained on epoch by epoch: `data.tokens_per_epoch=100M` of new text each.

Training never reads from the network. A process beside it turns the hub's files into epochs of token files, ahead of
their use; training reads epoch e by invariant 3 of docs/ARCHITECTURE.md, so which tokens make up step s is still a function
of (seed, s) alone. When
the network fails, training goes on over what lies on the disk. The first file of the repository is for validation.

On the disk: `validation/`, `epoch-00000/`, ... (token files), `places.json` (where in the corpus each epoch begins), and
`users/` (a locked file for each run that reads here, with its epoch in it: what a run needs is not evicted).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from positron.config import DataConfig
from positron.data import shards
from positron.data.hub import HubSource, digest
from positron.data.shards import Encoded, SplitWriter, TokenFiles, encode_all, encode_task, token_dtype
from positron.system.disk import lock, make_folder, read_json, try_lock, write_json
from positron.system.errors import UserError
from positron.text.factory import load_tokenizer
from positron.text.tokenizer import END_OF_TEXT

logger = logging.getLogger(__name__)

MOST_EPOCHS, MOST_BYTES = 5, 2_500_000_000  # of token files, unless running trainings need more at once
VAL_TOKENS = 1_000_000  # at least, of the first file
Place = dict[str, int]  # task of the training files, tokens of it that are used, the last token before, turn


class Stream:
    """The epochs of one corpus under one tokenizer. Files are made under the corpus's lock, by any process."""

    def __init__(self, config: DataConfig, tokenizer_folder: Path) -> None:
        assert config.tokens_per_epoch is not None
        self.config, self.tokenizer_folder = config, tokenizer_folder
        self.size = config.epoch_tokens
        self.source = HubSource(config)
        self.tokenizer = load_tokenizer(tokenizer_folder)
        self.folder = make_folder(self.source.folder / f"stream-{self.tokenizer.hash[:12]}-{self.size}")
        self.dtype = token_dtype(self.tokenizer)
        self._lock = self.source.folder / "lock"

    def path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:05d}"

    def has(self, epoch: int) -> bool:
        return (self.path(epoch) / "tokens.json").exists()

    @property
    def validation(self) -> Path:
        return self.folder / "validation"

    def make_validation(self) -> None:
        """The first documents of the first file. Raises UserError where there is no second one to train on."""
        with self._locked():
            if (self.validation / "tokens.json").exists():
                return
            if len(self.source.files) < 2:
                raise UserError(
                    f"data.tokens_per_epoch needs two files or more, since the first one is for validation; "
                    f"data.files={self.config.files} names one: leave tokens_per_epoch out"
                )
            first = self.source.part(slice(0, 1))
            end = self.tokenizer.special_id(END_OF_TEXT)
            writer = SplitWriter(make_folder(self.validation), "val", self.dtype, end, None)
            digests: list[str] = []
            for task in first.tasks():
                writer.add(encode_task(first, self.tokenizer, task)["train"])
                digests += [digest(document.text).hex() for document in first.read(task)]
                if writer.waiting > VAL_TOKENS:
                    break
            write_json(self.validation / "documents.json", digests)
            self._write_header(self.validation, writer)
            first.release(None)

    def make(self, epoch: int, workers: int = 1) -> None:
        """Write an epoch, and those before it whose places are not known yet. Goes on where a killed call stopped."""
        with self._locked():
            places = self._places()
            for number in [*range(len(places) - 1, epoch), epoch]:
                if not self.has(number):
                    self._make_room(needed=number)
                    places = self._make(number, places, workers)

    def _make(self, epoch: int, places: list[Place], workers: int) -> list[Place]:
        partial = make_folder(self.path(epoch).with_name(f".{self.path(epoch).name}.partial"))
        noted = read_json(partial / "progress.json") if (partial / "progress.json").exists() else {}
        place: Place = noted.get("place", places[epoch])
        writer = SplitWriter(partial, "train", self.dtype, place["last"], noted.get("facts"))

        def note() -> None:
            writer.flush()
            write_json(partial / "progress.json", {"place": place, "facts": writer.facts})

        held_out = frozenset(bytes.fromhex(text) for text in read_json(self.validation / "documents.json"))
        source = self.source.part(slice(1, None), held_out)
        lengths = TokenFiles(self.validation, "val", self.tokenizer).token_bytes(self.tokenizer)
        end = self.tokenizer.special_id(END_OF_TEXT)
        missing = self.size + 1 - writer.facts["tokens"] - writer.waiting
        while missing:
            before = missing
            for parts in encode_all(source, self.tokenizer, self.tokenizer_folder, place["task"], workers):
                ids = np.concatenate([np.zeros(0, dtype=np.uint32), *parts["train"].ids])
                taken = ids[place["offset"] : place["offset"] + missing]
                writer.add(Encoded([taken], int((taken == end).sum()), round(lengths[taken].sum())))
                missing -= len(taken)
                used = place["offset"] + len(taken)
                whole = used == len(ids)
                place = {
                    "task": place["task"] + whole,
                    "offset": 0 if whole else used,
                    "last": int(taken[-1]) if len(taken) else place["last"],
                    "turn": place["turn"],
                }
                if not missing:
                    break
                if writer.waiting >= shards.SHARD_TOKENS:
                    note()
                source.release(place["task"])
            else:
                if before == missing and place["task"] == 0:
                    raise UserError(f"{self.config.repo} has no text in data.field={self.config.field} to train on")
                place = {**place, "task": 0, "offset": 0, "turn": place["turn"] + 1}
                logger.info(f"all of {self.config.repo} was seen: epoch {epoch} goes on from its beginning")
        places = [*places[: epoch + 1], place, *places[epoch + 2 :]]
        write_json(self.folder / "places.json", places)
        self._write_header(partial, writer)
        (partial / "progress.json").unlink(missing_ok=True)
        shutil.rmtree(self.path(epoch), ignore_errors=True)
        partial.rename(self.path(epoch))
        return places

    def _places(self) -> list[Place]:
        path = self.folder / "places.json"
        end = self.tokenizer.special_id(END_OF_TEXT)
        return read_json(path) if path.exists() else [{"task": 0, "offset": 0, "last": end, "turn": 0}]

    def _write_header(self, folder: Path, writer: SplitWriter) -> None:
        writer.flush()
        header = {
            "version": 1,
            "tokenizer_hash": self.tokenizer.hash,
            "vocab_size": self.tokenizer.vocab_size,
            "dtype": np.dtype(self.dtype).name,
            "source": self.source.name,
            "fingerprint": f"{self.source.fingerprint}-{self.size}",
            "splits": {writer.split: {**writer.facts, "bits": None}},
        }
        write_json(folder / "tokens.json", header)

    def _make_room(self, needed: int) -> None:
        """Evict the epochs that were made first, but none that a running training needs."""
        kept = {needed} | {e + i for e in self._users() for i in (0, 1)}
        found = sorted(self.folder.glob("epoch-*/tokens.json"), key=lambda path: path.stat().st_mtime)
        size = (self.size + 1) * np.dtype(self.dtype).itemsize
        for header in list(found):
            if len(found) < MOST_EPOCHS and (len(found) + 1) * size <= MOST_BYTES:
                return
            if int(header.parent.name.split("-")[1]) not in kept:
                header.unlink()  # without it, the rest counts as absent
                shutil.rmtree(header.parent)
                found.remove(header)

    def _users(self) -> set[int]:
        """The epochs at which running trainings are."""
        epochs = set()
        for path in self.folder.glob("users/*"):
            with try_lock(path) as free:
                if free:
                    path.unlink(missing_ok=True)
                elif text := path.read_text():
                    epochs.add(int(text))
        return epochs

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with lock(self._lock, lambda: logger.info(f"waiting for another process that prepares {self.source.folder}")):
            yield


def open_stream(config: DataConfig, tokenizer_folder: Path) -> Path:
    """Validation and at least one epoch on the disk, made by all cores where they are missing. Returns the folder."""
    stream = Stream(config, tokenizer_folder)
    stream.make_validation()
    if not any(stream.folder.glob("epoch-*/tokens.json")):
        logger.info(f"writing the first {stream.size:,} tokens of {config.repo} to {stream.folder}")
        stream.make(0, workers=os.cpu_count() or 1)
    if not (stream.folder / "tokenizer").exists():
        stream.tokenizer.save(make_folder(stream.folder / "tokenizer"))
    return stream.folder
