"""Prepare a corpus larger than the disk in epochs of `data.tokens_per_epoch` tokens, each with new text.

Training never reads from the network. A second process turns the hub's files into epochs of token files before they are
needed. The order of the windows within an epoch follows invariant 3 of docs/ARCHITECTURE.md, so the tokens of step s are
still a function of (seed, s) alone. If the network fails, training continues until it needs an epoch that is not on the disk;
it then ends with an error. The first file of the repository is used for validation only.

The folder of a stream contains `validation/`, `epoch-00000/`, ... (token files), `places.json` (the position in the corpus
at which each epoch begins), and `users/`, with one locked file for each running training. The locked file contains the
number of the epoch that this training reads, so that other processes do not delete the epoch.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from positron.config import DataConfig
from positron.data import shards
from positron.data.hub import HubSource, text_digest
from positron.data.shards import Encoded, SplitWriter, TokenFiles, encode_all, encode_task, token_dtype
from positron.system.children import worker_processes
from positron.system.disk import make_folder, read_json, replace_folder, write_json
from positron.system.errors import UserError
from positron.system.locks import lock, remove_unless_locked
from positron.text.factory import load_tokenizer
from positron.text.tokenizer import END_OF_TEXT

logger = logging.getLogger(__name__)

MAX_EPOCHS, MAX_BYTES = 5, 2_500_000_000  # limits for the epochs on the disk, unless running trainings need more
VAL_TOKENS = 1_000_000  # minimum number of tokens for validation, if the first file has as many
# A position in the corpus. `task`: number of a task (a part of the training files); `offset`: number of tokens of this task
# before the position; `last`: id of the token directly before the position; `turn`: number of complete passes over the corpus.
Place = dict[str, int]


class Stream:
    """Manage the epochs of one streamed corpus for one tokenizer.

    The corpus is cut into consecutive epochs of the same number of tokens. Each epoch is a folder of token files. A lock file
    in the folder of the corpus ensures that only one process at a time writes epochs.
    """

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
        """Return the folder of the token files of an epoch."""
        return self.folder / f"epoch-{epoch:05d}"

    def has(self, epoch: int) -> bool:
        """Tell whether all token files of an epoch are on the disk."""
        return (self.path(epoch) / "tokens.json").exists()

    @property
    def validation(self) -> Path:
        """Return the folder of the validation tokens."""
        return self.folder / "validation"

    def make_validation(self) -> None:
        """If the validation split does not exist, write it from the first documents of the first file.

        Raises UserError if the repository has only one file, so that none is left for training.
        """
        with self._locked():
            if (self.validation / "tokens.json").exists():
                return
            if len(self.source.files) < 2:
                is_chosen = self.config.files != "*"
                remedy = "give a data.files= that matches more, or " if is_chosen else "give "
                raise UserError(
                    "data.tokens_per_epoch needs at least two Parquet files, one for validation and others for training, but "
                    + (f"data.files={self.config.files} matches" if is_chosen else f"data.repo={self.config.repo} has")
                    + f" only one: {remedy}data.tokens_per_epoch=null"
                )
            first = self.source.part(slice(0, 1))
            end = self.tokenizer.special_id(END_OF_TEXT)
            writer = SplitWriter(make_folder(self.validation), "val", self.dtype, end, None)
            digests: list[str] = []
            for task in first.tasks():
                writer.add(encode_task(first, self.tokenizer, task)["train"])
                digests += [text_digest(document.text).hex() for document in first.read(task)]
                if writer.waiting > VAL_TOKENS:
                    break
            write_json(self.validation / "documents.json", digests)
            self._write_header(self.validation, writer)
            first.release(None)

    def make(self, epoch: int, workers: int = 1) -> None:
        """Write the token files of an epoch if they do not exist.

        An epoch begins in the corpus where the epoch before it ends, so earlier epochs that were never written are written
        first. If a call is interrupted, the next call continues the epoch. `workers`: the number of processes that tokenize.
        Raises Unreachable if the network fails, UserError if the corpus has no text to train on.
        """
        with self._locked():
            places = self._places()
            for number in [*range(len(places) - 1, epoch), epoch]:
                if not self.has(number):
                    self._evict_epochs(needed=number)
                    places = self._make(number, places, workers)

    def _make(self, epoch: int, places: list[Place], workers: int) -> list[Place]:
        partial = make_folder(self.path(epoch).with_name(f".{self.path(epoch).name}.partial"))
        progress = read_json(partial / "progress.json") if (partial / "progress.json").exists() else {}
        place: Place = progress.get("place", places[epoch])
        writer = SplitWriter(partial, "train", self.dtype, place["last"], progress.get("facts"))

        def save_progress() -> None:
            writer.flush()
            write_json(partial / "progress.json", {"place": place, "facts": writer.facts})

        held_out = frozenset(bytes.fromhex(text) for text in read_json(self.validation / "documents.json"))
        source = self.source.part(slice(1, None), held_out)
        lengths = TokenFiles(self.validation, "val", self.tokenizer).token_bytes(self.tokenizer)
        end = self.tokenizer.special_id(END_OF_TEXT)
        missing = self.size + 1 - writer.facts["tokens"] - writer.waiting
        while missing:
            missing_before, begin = missing, place
            encoded = encode_all(source, self.tokenizer, self.tokenizer_folder, place["task"], workers)
            with contextlib.closing(encoded):  # a signal during the garbage collector's closing is lost
                for parts in encoded:
                    ids = np.concatenate([np.zeros(0, dtype=np.uint32), *parts["train"].ids])
                    taken_ids = ids[place["offset"] : place["offset"] + missing]
                    writer.add(Encoded([taken_ids], int((taken_ids == end).sum()), round(lengths[taken_ids].sum())))
                    missing -= len(taken_ids)
                    used = place["offset"] + len(taken_ids)
                    is_complete = used == len(ids)
                    place = {
                        "task": place["task"] + is_complete,
                        "offset": 0 if is_complete else used,
                        "last": int(taken_ids[-1]) if len(taken_ids) else place["last"],
                        "turn": place["turn"],
                    }
                    if not missing:
                        break
                    if writer.waiting >= shards.SHARD_TOKENS:
                        save_progress()
                    source.release(place["task"])
                else:
                    if missing_before == missing and (begin["task"], begin["offset"]) == (0, 0):
                        raise UserError(
                            f'{self.config.repo} has no text to train on in the field "{self.config.field}" (data.field): '
                            "give another data.field= or data.repo="
                        )
                    place = {**place, "task": 0, "offset": 0, "turn": place["turn"] + 1}
                    logger.info(
                        f"{self.config.repo} was read completely: epoch {epoch} continues at the dataset's beginning"
                    )
        places = [*places[: epoch + 1], place, *places[epoch + 2 :]]
        write_json(self.folder / "places.json", places)
        self._write_header(partial, writer)
        (partial / "progress.json").unlink(missing_ok=True)
        replace_folder(partial, self.path(epoch))
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

    def _evict_epochs(self, needed: int) -> None:
        """Delete the oldest epochs until there is space for another one.

        There is space if, with the new epoch, at most 5 epochs (MAX_EPOCHS) with at most 2.5 GB (MAX_BYTES) are on the disk.
        Three kinds of epochs are never deleted, even if the limits are then exceeded: the epoch `needed`, each epoch that a
        running training reads, and the epoch after each epoch that a running training reads.

        Epoch folders without `tokens.json` are deleted, too. Such folders are left by an earlier call that was interrupted or,
        on Windows, could not delete a file that another process had open.
        """
        for folder in self.folder.glob("epoch-*"):
            if not (folder / "tokens.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
        in_use = {needed} | {e + i for e in self._users() for i in (0, 1)}
        headers = sorted(self.folder.glob("epoch-*/tokens.json"), key=lambda path: path.stat().st_mtime)
        size = (self.size + 1) * np.dtype(self.dtype).itemsize
        for header in list(headers):
            if len(headers) < MAX_EPOCHS and (len(headers) + 1) * size <= MAX_BYTES:
                return
            if int(header.parent.name.split("-")[1]) not in in_use:
                header.unlink()  # without it, the epoch counts as absent
                shutil.rmtree(header.parent, ignore_errors=True)
                headers.remove(header)

    def _users(self) -> set[int]:
        """Return the epochs that running trainings read now; delete the files in `users/` of trainings that have ended."""
        epochs = set()
        for path in self.folder.glob("users/*"):
            if not remove_unless_locked(path) and (text := path.read_text(encoding="ascii")):
                epochs.add(int(text))
        return epochs

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        def wait() -> None:
            logger.info(f"waiting for another process that prepares {self.source.folder}")

        with lock(self._lock, wait, instead="give another data.dir="):
            yield


def open_stream(config: DataConfig, tokenizer_folder: Path) -> Path:
    """Prepare the token files of a streamed dataset and return their folder.

    If the validation split does not exist, it is written. If no epoch exists, the first epoch is written by several processes
    (see `worker_processes`). Raises Unreachable if the network fails, UserError if the dataset has fewer than two Parquet files
    or no text.
    """
    stream = Stream(config, tokenizer_folder)
    stream.make_validation()
    if not any(stream.folder.glob("epoch-*/tokens.json")):
        logger.info(f"writing the first {stream.size:,} tokens of {config.repo} to {stream.folder}")
        stream.make(0, workers=worker_processes())
    if not (stream.folder / "tokenizer").exists():
        stream.tokenizer.save(make_folder(stream.folder / "tokenizer"))
    return stream.folder


def open_split(config: DataConfig, tokenizer_folder: Path, split: str) -> Path:
    """Return the folder of the validation tokens (`split` "val") or of the first epoch on the disk ("train").

    If it does not exist, it is written. No epoch is written for the validation tokens. Raises the errors of `open_stream`.
    """
    if split == "val":
        stream = Stream(config, tokenizer_folder)
        stream.make_validation()
        return stream.validation
    return min(path.parent for path in open_stream(config, tokenizer_folder).glob("epoch-*/tokens.json"))
