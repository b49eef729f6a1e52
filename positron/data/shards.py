"""Write and read token files: a corpus as flat arrays of token ids on the disk, read through a memory map.

A folder holds `train-00000.bin`, `val-00000.bin`, ... (uint16, or uint32 if the vocabulary needs it) and `tokens.json`, which
is written last: without it the folder is incomplete. The layout of a split is
`<|endoftext|> document <|endoftext|> document ... <|endoftext|>`, so that a model sees each document begin and end. If the
tokenizer has another token for the end of a document, this token stands between each document and the next `<|endoftext|>` (see
`separator` in `positron/text/tokenizer.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import time
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from positron.data.sources import WAIT, Source
from positron.system.children import CHILDREN, end_with_parent, leave_interrupts_to_parent, worker_processes
from positron.system.disk import make_folder, read_json, replace_folder, whole_file, write_json
from positron.system.errors import UserError
from positron.system.progress import Meter
from positron.text.factory import load_tokenizer
from positron.text.tokenizer import END_OF_TEXT, Tokenizer, separator, token_bytes_of_text

logger = logging.getLogger(__name__)

SHARD_TOKENS = 16_000_000  # training tokens per shard: 32 or 64 MB, about ten seconds of work
SPLITS = ("train", "val")
SIGNAL_S = 0.5  # after this time, a signal that was sent to all processes has reached this one
SMALL_CORPUS_BYTES = 3_000_000  # a smaller corpus is tokenized faster without worker processes


def token_dtype(tokenizer: Tokenizer) -> type:
    """Return the integer type that holds every token id: uint16 if it suffices, else uint32."""
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


@dataclass
class Encoded:
    """Hold the training tokens or the validation tokens of one task (a part of a corpus), and counts of the task's text.

    Only the text of the same split, training or validation, is counted. `ids` is a list of arrays to be joined. `documents`
    counts the documents that end in the task, and `bytes` is the size of the text in UTF-8. `bits` is -log2 of the exact
    probability of the text if a program generated it, and otherwise NaN.
    """

    ids: list[np.ndarray]
    documents: int = 0
    bytes: int = 0
    bits: float = 0.0  # NaN if the probability of one of the documents is unknown


def encode_task(source: Source, tokenizer: Tokenizer, task: Any) -> dict[str, Encoded]:
    """Read and tokenize the documents of `task`, a part of the corpus; return a dict with the keys "train" and "val"."""
    documents = source.read(task)
    result = {split: Encoded(ids=[]) for split in SPLITS}
    end = np.array(separator(tokenizer), dtype=np.uint32)
    for document, ids in zip(documents, tokenizer.encode_batch([d.text for d in documents]), strict=True):
        part = result["val" if document.is_val else "train"]
        part.ids.append(np.array(ids, dtype=np.uint32))
        if document.ends:
            part.ids.append(end)
            part.documents += 1
        part.bytes += len(document.text.encode("utf-8"))
        part.bits += document.bits if document.bits is not None else float("nan")
    for part in result.values():
        part.ids = [np.concatenate(part.ids)] if part.ids else []  # one array to send to the parent
    return result


_worker: tuple[Source, Tokenizer]


def _start_worker(source: Source, tokenizer_folder: Path) -> None:
    leave_interrupts_to_parent()
    global _worker
    _worker = (source, load_tokenizer(tokenizer_folder))
    end_with_parent()


def _work(task: Any) -> dict[str, Encoded]:
    return encode_task(*_worker, task)


def encode_all(
    source: Source, tokenizer: Tokenizer, tokenizer_folder: Path, skip: int, workers: int
) -> Generator[dict[str, Encoded]]:
    """Tokenize a corpus task by task with `workers` processes, and yield the result of each task in order.

    A task is a part of the corpus, an item of `source.tasks`. The first `skip` tasks are left out. A result is what
    `encode_task` returns; it does not depend on the number of processes. The processes load the tokenizer from
    `tokenizer_folder`. If the corpus is small or `workers` is 1, the calling process tokenizes with `tokenizer`. Raises
    UserError if the operating system ends a process.
    """
    tasks = source.tasks(skip)
    small = source.total_bytes is not None and source.total_bytes < SMALL_CORPUS_BYTES
    if small or workers == 1:
        yield from (encode_task(source, tokenizer, task) for task in tasks if task != WAIT)
        return
    pool = ProcessPoolExecutor(workers, CHILDREN, initializer=_start_worker, initargs=(source, tokenizer_folder))
    waiting: list[Future[dict[str, Encoded]]] = []

    def refill() -> None:
        while len(waiting) < 2 * workers:
            task = next(tasks, WAIT)
            if task == WAIT:
                return
            waiting.append(pool.submit(_work, task))

    try:
        refill()
        while waiting:
            yield waiting.pop(0).result()
            refill()
    except BrokenProcessPool:
        # A signal may have ended the process, and a service manager sends it to the processes of a job one after the other. A
        # signal to this process has its own effect, by an exception.
        time.sleep(SIGNAL_S)
        raise UserError(
            "the operating system ended a process that was writing the text as tokens, usually because memory was short: close "
            "other programs and repeat the command, which continues where it stopped"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


class SplitWriter:
    """Write the tokens of one split (training or validation) as numbered files, the shards.

    `add` collects tokens in memory, and `flush` writes the collected tokens as a new shard. The attribute `facts` is a dict.
    Its list `shards` has the name, number of tokens and checksum of each shard, and `tokens` is the number of tokens in all
    shards. `documents`, `bytes` and `bits` are totals of the text that was added so far, including text that is not in a shard
    yet. `bits` is -log2 of the probability of this text, or NaN if the probability is unknown.
    """

    def __init__(self, folder: Path, split: str, dtype: type, first_id: int, facts: dict[str, Any] | None) -> None:
        """Continue after the last shard of an interrupted writer, or start a new split.

        `folder`: the folder of the shards. `split`: "train" or "val", with which the names of the shards begin. `dtype`: the
        integer type of a token. `first_id`: the token with which a new split begins. `facts`: the attribute `facts` of the
        interrupted writer, which was saved, or None for a new split.
        """
        self.folder, self.split, self.dtype = folder, split, dtype
        self.facts: dict[str, Any] = facts or {"tokens": 0, "documents": 0, "bytes": 0, "bits": 0.0, "shards": []}
        self._pending: list[np.ndarray] = [] if facts else [np.array([first_id], dtype=dtype)]
        self.waiting = len(self._pending)

    def add(self, part: Encoded) -> None:
        """Append the tokens of `part`, and add its numbers of documents, bytes and bits to the totals.

        The number of bits is -log2 of the probability of the text, or NaN if this probability is unknown.
        """
        for ids in part.ids:
            self.append(ids)
        self.facts["documents"] += part.documents
        self.facts["bytes"] += part.bytes
        self.facts["bits"] += part.bits

    def append(self, ids: np.ndarray) -> None:
        """Append token ids (n,). Raises ValueError if an id is too large for the integer type of the files."""
        if len(ids) and ids.max() > np.iinfo(self.dtype).max:
            raise ValueError(
                f"the token id {ids.max()} is too large for {np.dtype(self.dtype).name}, the integer type of the token files: "
                "the tokenizer returned an id that is not in its vocabulary"
            )
        self._pending.append(ids.astype(self.dtype))
        self.waiting += len(ids)

    def flush(self) -> None:
        """Write the tokens added since the last call as a shard."""
        if not self.waiting:
            return
        ids = np.concatenate(self._pending)
        path = self.folder / f"{self.split}-{len(self.facts['shards']):05d}.bin"
        with whole_file(path) as file:
            file.write(ids.tobytes())
        sha256 = hashlib.sha256(ids.tobytes()).hexdigest()
        self.facts["shards"].append({"file": path.name, "tokens": len(ids), "sha256": sha256})
        self.facts["tokens"] += len(ids)
        self._pending, self.waiting = [], 0


def write_tokens(
    source: Source, tokenizer: Tokenizer, tokenizer_folder: Path, folder: Path, content: str | None = None
) -> None:
    """Tokenize the source up to `source.limit_bytes`, write the token files to `folder`, and show the progress on stderr.

    `tokenizer` must be saved in `tokenizer_folder`, because the processes that tokenize in parallel load it from there. The
    files are written to a temporary folder, which gets the name `folder` when it is complete. After every 16 million training
    tokens (SHARD_TOKENS), the tokens of both splits and the position in the source are saved. If the call is interrupted, the
    next call continues at this position. The files are then, byte for byte, those of an uninterrupted call.

    `content`: a second fingerprint of the text (see `FileSource.content_fingerprint`), which `tokens.json` records.
    """
    partial = make_folder(folder.with_name(f".{folder.name}.partial"))
    for temporary_file in partial.glob(".*.tmp"):  # left by a call that was killed while writing
        temporary_file.unlink()
    dtype = token_dtype(tokenizer)
    head = {
        "version": 1,
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "dtype": np.dtype(dtype).name,
        "source": source.name,
        "fingerprint": source.fingerprint,
    }
    saved_progress = _progress(partial, head)
    tasks, n_bytes, splits = saved_progress["tasks"], saved_progress["bytes"], saved_progress["splits"]
    if tasks:
        logger.info(
            f"an earlier command already tokenized {n_bytes / 1e6:,.0f} MB of the text; continuing with the rest"
        )
    end = tokenizer.special_id(END_OF_TEXT)
    writers = {split: SplitWriter(partial, split, dtype, end, splits.get(split)) for split in SPLITS}
    with Meter("tokenizing", source.total_bytes, n_bytes, unit=1e-6) as meter:
        # an interrupted call may have saved its progress after the last task
        is_complete = source.limit_bytes is not None and n_bytes >= source.limit_bytes
        workers = worker_processes()
        encoded = encode_all(source, tokenizer, tokenizer_folder, tasks, workers)
        # closed here: a signal that arrives while the garbage collector closes a generator is lost
        with contextlib.closing(encoded):
            for parts in () if is_complete else encoded:
                tasks += 1
                for split, part in parts.items():
                    writers[split].add(part)
                    n_bytes += part.bytes
                meter.show(n_bytes)
                if writers["train"].waiting >= SHARD_TOKENS:
                    _flush(partial, head, writers, tasks, n_bytes)
                source.release(tasks)
                if source.limit_bytes is not None and n_bytes >= source.limit_bytes:
                    break
    facts = _flush(partial, head, writers, tasks, n_bytes)["splits"]
    for split in facts.values():
        if not split["documents"] or not np.isfinite(split["bits"]):
            split["bits"] = None  # the probability of this text is unknown
    write_json(partial / "tokens.json", {**head, "content": content, "splits": facts})
    (partial / "progress.json").unlink()
    replace_folder(partial, folder)
    source.release(None)


def _progress(partial: Path, head: dict[str, Any]) -> dict[str, Any]:
    """Return the saved progress of an interrupted call of `write_tokens`, or the progress of a call that begins.

    `partial`: the temporary folder of the call. `head`: a dict that identifies the text, the tokenizer and the format of the
    token files. The saved progress is used only if it has the same `head`. Otherwise the files of the interrupted call are
    deleted.
    """
    path = partial / "progress.json"
    if path.exists():
        progress: dict[str, Any] = read_json(path)
        if progress["head"] == head:
            return progress
    for leftover in partial.iterdir():
        leftover.unlink()
    return {"tasks": 0, "bytes": 0, "splits": {}}


def _flush(
    partial: Path, head: dict[str, Any], writers: dict[str, SplitWriter], tasks: int, n_bytes: int
) -> dict[str, Any]:
    for writer in writers.values():
        writer.flush()
    splits = {split: writer.facts for split, writer in writers.items()}
    progress = {"head": head, "tasks": tasks, "bytes": n_bytes, "splits": splits}
    write_json(partial / "progress.json", progress)
    return progress


class TokenFiles:
    """Read one split ("train" or "val") of a folder of token files as one long array of ids.

    Raises UserError if `tokens.json` or a shard is damaged, or if the files were written with another tokenizer.
    """

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer) -> None:
        self.folder = folder
        facts = read_json(folder / "tokens.json")
        try:
            tokenizer_hash, dtype = str(facts["tokenizer_hash"]), _dtype_of(facts)
            self.fingerprint = str(facts["fingerprint"])
            part = facts["splits"][split]
            self.n_tokens, self.n_documents, self.n_bytes = (int(part[key]) for key in ("tokens", "documents", "bytes"))
            bits = part["bits"]
            self.bits = None if bits is None else float(bits)  # -log2 p of all its documents, if the source knows it
            shards = [(str(shard["file"]), int(shard["tokens"]), str(shard["sha256"])) for shard in part["shards"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder / 'tokens.json'} is damaged: {_remedy(folder)}") from error
        if tokenizer_hash != tokenizer.hash:
            raise UserError(
                f"the tokens in {folder} were made by another tokenizer (hash {tokenizer_hash[:12]}) than the tokenizer of "
                f"this run (hash {tokenizer.hash[:12]}): {_remedy(folder)}"
            )
        self._shards = [_open_shard(folder, *shard, dtype) for shard in shards]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])

    def token_bytes(self, tokenizer: Tokenizer) -> np.ndarray:
        """Return the number of bytes of text that each of the V token ids stands for, (V,) in float64.

        The sum over all tokens of the split equals the size of the text (see `token_bytes_of_text`).
        """
        is_exact = not tokenizer.has_unknown and tokenizer.kind != "huggingface"
        if is_exact:  # the files need not be read
            return tokenizer.token_bytes().astype(np.float64)
        counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        for shard in self._shards:
            counts += np.bincount(_read_shard(shard), minlength=tokenizer.vocab_size)
        return token_bytes_of_text(tokenizer, counts, self.n_bytes)

    @property
    def floor_bpb(self) -> float | None:
        """Return -log2 of the exact probability of the text, divided by its size in bytes; None if the probability is unknown.

        This is an estimate of the entropy of such texts, in bits per byte. No model has a lower expected loss.
        """
        return None if self.bits is None else self.bits / self.n_bytes

    def find_token(self, token: int) -> np.ndarray:
        """Return the positions of a token id in the split, in ascending order. Reads all files once."""
        positions = []
        for shard, start in zip(self._shards, self._starts, strict=False):
            positions.append(np.flatnonzero(_read_shard(shard) == token) + start)
        return np.concatenate(positions)

    def read(self, start: int, length: int) -> np.ndarray:
        """Return `length` token ids of the split from position `start` on, as int64; fewer if the split ends before."""
        pieces = []
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for shard, shard_start in zip(self._shards[first:], self._starts[first:], strict=False):
            if shard_start >= start + length:
                break
            pieces.append(shard[max(0, start - shard_start) : start + length - shard_start])
        return np.concatenate(pieces).astype(np.int64)


def _read_shard(shard: np.memmap) -> np.ndarray:
    """Read all ids of a shard into memory.

    Reading the file is faster than reading through the memory map, because the map is optimized for random access.
    """
    return np.fromfile(str(shard.filename), dtype=shard.dtype)


def _dtype_of(facts: dict[str, Any]) -> str:
    if facts["dtype"] not in ("uint16", "uint32"):
        raise ValueError(facts["dtype"])
    return str(facts["dtype"])


# Shards whose checksum this process has verified, with the size and time of modification that they had at that time.
_verified: dict[Path, tuple[int, int]] = {}


def _open_shard(folder: Path, name: str, tokens: int, sha256: str, dtype: str) -> np.memmap:
    """Map a shard into memory. Raises UserError if the shard is missing or damaged.

    The checksum is verified once per process, which takes 0.1 to 0.3 s for 100 MB.
    """
    path, remedy = folder / name, _remedy(folder)
    if Path(name).name != name:
        raise UserError(f"{folder / 'tokens.json'} names a file outside its folder: {remedy}")
    try:
        ids = np.memmap(path, dtype=dtype, mode="r")
        facts = path.stat()
        if len(ids) != tokens:
            raise UserError(f"{path} has {len(ids)} tokens, not {tokens}: {remedy}")
        state = facts.st_size, facts.st_mtime_ns
        if _verified.get(path.resolve()) != state:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise UserError(f"{path} was altered: {remedy}")
            _verified[path.resolve()] = state
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).removesuffix(".")
        raise UserError(f"cannot read the token file {path}: {reason}; {remedy}") from error
    if hasattr(mmap, "MADV_RANDOM"):
        # Windows are at random positions. Reading ahead would take a hundred times as long as reading the window.
        assert isinstance(ids.base, mmap.mmap)
        ids.base.madvise(mmap.MADV_RANDOM)
    return ids


def _remedy(folder: Path) -> str:
    return f"delete the folder {folder}; the next command that needs these tokens writes them again"


def verify(folder: Path) -> None:
    """Read every shard and verify its checksum. Raises UserError, which names the file, if a shard was altered."""
    _verified.clear()
    facts = read_json(folder / "tokens.json")
    for part in facts["splits"].values():
        for shard in part["shards"]:
            _open_shard(folder, shard["file"], shard["tokens"], shard["sha256"], _dtype_of(facts))
