"""Token files: a corpus as flat arrays of ids on disk, read through a memory map.

A folder holds `train-00000.bin`, `val-00000.bin`, ... (uint16, or uint32 where the vocabulary needs it) and
`tokens.json`, written last: without it the folder is not whole. The layout of a split is
`<|endoftext|> document <|endoftext|> document ... <|endoftext|>`, so each document is seen to start and to end.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from positron.config import UserError
from positron.data.sources import Source
from positron.disk import make_folder, read_json, write_json
from positron.text.tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer

SHARD_TOKENS = 100_000_000
SPLITS = ("train", "val")
SMALL_CORPUS = 3_000_000  # bytes; below this, starting worker processes costs more than it brings


@dataclass
class Encoded:
    """What one task adds to one split."""

    ids: list[np.ndarray]
    documents: int = 0
    bytes: int = 0
    bits: float = 0.0


def encode_task(source: Source, tokenizer: Tokenizer, task: Any) -> dict[str, Encoded]:
    documents = source.read(task)
    result = {split: Encoded(ids=[]) for split in SPLITS}
    end = np.array([tokenizer.special_id(END_OF_TEXT)])
    for document, ids in zip(documents, tokenizer.encode_batch([d.text for d in documents]), strict=True):
        part = result["val" if document.is_val else "train"]
        part.ids.append(np.array(ids, dtype=np.int64))
        if document.ends:
            part.ids.append(end)
            part.documents += 1
        part.bytes += len(document.text.encode("utf-8"))
        part.bits += document.bits if document.bits is not None else float("nan")
    return result


_worker: tuple[Source, Tokenizer]


def _start_worker(source: Source, tokenizer_folder: Path) -> None:
    global _worker
    _worker = (source, load_tokenizer(tokenizer_folder))


def _work(task: Any) -> dict[str, Encoded]:
    return encode_task(*_worker, task)


def _encode_all(source: Source, tokenizer: Tokenizer, tokenizer_folder: Path) -> Iterator[dict[str, Encoded]]:
    """All tasks in order, by all cores; the order and the content do not depend on the number of processes."""
    workers = os.cpu_count() or 1
    if source.size_bytes < SMALL_CORPUS or workers == 1:
        yield from (encode_task(source, tokenizer, task) for task in source.tasks())
        return
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(source, tokenizer_folder)
    )
    try:
        tasks = iter(source.tasks())
        waiting: list[Future[dict[str, Encoded]]] = [pool.submit(_work, task) for task in islice(tasks, 2 * workers)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(_work, task) for task in islice(tasks, 1)]
    finally:
        pool.shutdown(cancel_futures=True)


class _SplitWriter:
    """Appends to the shards of one split and keeps their sums."""

    def __init__(self, folder: Path, split: str, dtype: type, first_id: int) -> None:
        self.folder, self.split, self.dtype = folder, split, dtype
        self.shards: list[dict[str, Any]] = []
        self.total = Encoded(ids=[])
        self._pending: list[np.ndarray] = [np.array([first_id], dtype=dtype)]
        self._waiting = 1

    def add(self, part: Encoded) -> None:
        ids = np.concatenate(part.ids) if part.ids else np.empty(0, dtype=np.int64)
        if len(ids) and ids.max() > np.iinfo(self.dtype).max:
            raise ValueError(f"token id {ids.max()} does not fit {np.dtype(self.dtype).name}")
        self._pending.append(ids.astype(self.dtype))
        self._waiting += len(ids)
        self.total.documents += part.documents
        self.total.bytes += part.bytes
        self.total.bits += part.bits
        if self._waiting >= SHARD_TOKENS:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        ids = np.concatenate(self._pending)
        path = self.folder / f"{self.split}-{len(self.shards):05d}.bin"
        try:
            with path.open("wb") as file:
                file.write(ids.tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        sha256 = hashlib.sha256(ids.tobytes()).hexdigest()
        self.shards.append({"file": path.name, "tokens": len(ids), "sha256": sha256})
        self._pending, self._waiting = [], 0

    def facts(self) -> dict[str, Any]:
        self.flush()
        known = self.total.documents > 0 and np.isfinite(self.total.bits)
        return {
            "tokens": sum(shard["tokens"] for shard in self.shards),
            "documents": self.total.documents,
            "bytes": self.total.bytes,
            "bits": self.total.bits if known else None,
            "shards": self.shards,
        }


def write_tokens(source: Source, tokenizer: Tokenizer, tokenizer_folder: Path, folder: Path) -> None:
    """Tokenize the whole source into `folder`, which appears when it is whole. Shows its progress on a terminal."""
    from tqdm import tqdm

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    end = tokenizer.special_id(END_OF_TEXT)
    writers = {split: _SplitWriter(partial, split, dtype, end) for split in SPLITS}
    done = 0
    bar = tqdm(total=source.size_bytes, unit="B", unit_scale=True, desc="tokenizing", disable=None, leave=False)
    with bar:
        for parts in _encode_all(source, tokenizer, tokenizer_folder):
            for split, part in parts.items():
                writers[split].add(part)
                done += part.bytes
            bar.update(min(done, source.size_bytes) - bar.n)
            if done >= source.size_bytes:
                break
    facts = {
        "version": 1,
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "dtype": np.dtype(dtype).name,
        "source": source.name,
        "fingerprint": source.fingerprint,
        "splits": {split: writer.facts() for split, writer in writers.items()},
    }
    write_json(partial / "tokens.json", facts)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


class TokenFiles:
    """One split of a folder of token files, as one long array of ids."""

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer) -> None:
        self.folder = folder
        facts = read_json(folder / "tokens.json")
        if facts["tokenizer_hash"] != tokenizer.hash:
            raise UserError(
                f"{folder} was written with another tokenizer ({facts['tokenizer_hash'][:12]}) than this run's "
                f"({tokenizer.hash[:12]}): delete that folder, it is made again"
            )
        self.fingerprint: str = facts["fingerprint"]
        part = facts["splits"][split]
        self.n_tokens: int = part["tokens"]
        self.n_documents: int = part["documents"]
        self.n_bytes: int = part["bytes"]
        self.bits: float | None = part["bits"]  # -log2 p of all its documents, where the source knows it
        self._shards = [_map_shard(folder, shard, facts["dtype"]) for shard in part["shards"]]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])

    @property
    def floor_bpb(self) -> float | None:
        """Bits per byte that no honest model can beat, where the source's probabilities are known."""
        return None if self.bits is None else self.bits / self.n_bytes

    def places_of(self, token: int) -> np.ndarray:
        """Where in the array this id stands, in one pass over the files."""
        return np.concatenate(
            [np.flatnonzero(shard == token) + start for shard, start in zip(self._shards, self._starts, strict=False)]
        )

    def read(self, start: int, length: int) -> np.ndarray:
        """Ids [start, start + length) as int64, across shards; shorter at the end of the file."""
        pieces = []
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for shard, shard_start in zip(self._shards[first:], self._starts[first:], strict=False):
            if shard_start >= start + length:
                break
            pieces.append(shard[max(0, start - shard_start) : start + length - shard_start])
        return np.concatenate(pieces).astype(np.int64)


def _map_shard(folder: Path, shard: dict[str, Any], dtype: str) -> np.ndarray:
    path = folder / shard["file"]
    try:
        ids = np.memmap(path, dtype=dtype, mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the token file {path}: {error}; delete {folder} to make it again") from error
    if len(ids) != shard["tokens"]:
        raise UserError(f"{path} has {len(ids)} tokens, not {shard['tokens']}: delete {folder} to make it again")
    return ids
