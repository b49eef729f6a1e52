"""From a corpus to batches: token files made when they are missing, and optimizer step s as a function of (seed, s)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor

from positron.config import DataConfig, TokenizerConfig
from positron.data.order import windows_of_step
from positron.data.shards import SPLITS, TokenFiles, write_tokens
from positron.data.sources import WAIT, Source, open_source
from positron.data.stream import open_stream
from positron.data.stream_windows import StreamWindows
from positron.system.disk import expanded, lock, make_folder, read_json
from positron.system.errors import UserError
from positron.system.formatting import amount
from positron.text.factory import load_tokenizer, train_tokenizer
from positron.text.tokenizer import END_OF_TEXT, Tokenizer

UNKNOWN_SAMPLE = 1_000_000  # tokens in which unknown ones are counted
LONG_WORD = 40  # mean bytes of a token, beyond which tokenizer=word does not suit a text
TOKENIZER_SAMPLE = 4_000_000  # bytes of text that a SentencePiece model is trained on


def prepare(
    data: DataConfig,
    choice: TokenizerConfig,
    tokenizer: Tokenizer | None,
    say: Callable[[str], None],
    known: str | None = None,
) -> tuple[Tokenizer, Path]:
    """The tokenizer (`tokenizer`, if a run brings its own) and the folder of token files, both made when missing.

    `known` is the fingerprint of the text that a run was begun with: if that text is gone, or is read otherwise since,
    the token files made of it are used. Two processes that need the same corpus at once make it once: the second waits
    for the first.
    """
    kept = kept_tokens(data, tokenizer, known)
    try:
        source = open_source(data, say)
    except UserError as error:
        if tokenizer is None or kept is None:
            raise
        say(f"{error}; using the tokens that were made of it, in {kept}")
        return tokenizer, kept
    if tokenizer is not None and kept is not None and known == source.earlier_fingerprint != source.fingerprint:
        return tokenizer, kept
    corpus = make_folder(expanded(data.dir) / source.name)
    with lock(corpus / "lock", lambda: say(f"waiting for another process that prepares {corpus}")):
        if tokenizer is None:
            home = corpus / "-".join(str(part) for part in (choice.kind, choice.name, choice.vocab_size) if part)
            tokenizer = _own_tokenizer(source, choice, home, say, streams=data.tokens_per_epoch is not None)
        else:
            home = make_folder(corpus / f"tokenizer-{tokenizer.hash[:12]}")
            tokenizer.save(home)
        tokens = corpus / f"tokens-{tokenizer.hash[:12]}"
        if data.tokens_per_epoch is None and not (tokens / "tokens.json").exists():
            size = f"{amount(source.total_bytes)}B of" if source.total_bytes else "the"
            say(f"writing {size} text as tokens to {tokens}")
            write_tokens(source, tokenizer, home, tokens, say)
            _report(source, tokens, tokenizer, say)
    if data.tokens_per_epoch is not None:
        return tokenizer, open_stream(data, home, say)
    return tokenizer, tokens


def kept_tokens(data: DataConfig, tokenizer: Tokenizer | None, known: str | None) -> Path | None:
    """The folder of whole token files of the text with this fingerprint, under this tokenizer."""
    if tokenizer is None or known is None or data.tokens_per_epoch is not None:
        return None
    for header in sorted(expanded(data.dir).glob(f"*/tokens-{tokenizer.hash[:12]}/tokens.json")):
        if read_json(header).get("fingerprint") == known:
            return header.parent
    return None


def _report(source: Source, tokens: Path, tokenizer: Tokenizer, say: Callable[[str], None]) -> None:
    """Say what was read, and warn if the tokenizer does not suit it."""
    train, val = (TokenFiles(tokens, split, tokenizer) for split in SPLITS)
    if summary := source.summary():
        say(f"{train.n_bytes:,} bytes for training, {val.n_bytes:,} for validation; {summary}")
    if tokenizer.kind == "word" and train.n_bytes > LONG_WORD * train.n_tokens:
        say(
            f"WARNING: tokenizer=word finds only {train.n_tokens:,} words in {train.n_bytes:,} bytes, because this text "
            "has few blanks between words: take tokenizer=char or tokenizer=spm_4k"
        )
    if tokenizer.kind in ("char", "word"):
        unknown = float((train.read(0, min(train.n_tokens, UNKNOWN_SAMPLE)) == 0).mean())
        if unknown > 0.01:
            say(
                f"WARNING: {unknown:.1%} of the tokens are <unk>, which the {tokenizer.kind} tokenizer does not know: "
                "a larger tokenizer.vocab_size, or tokenizer=spm_16k, loses nothing"
            )


def _own_tokenizer(
    source: Source, choice: TokenizerConfig, home: Path, say: Callable[[str], None], streams: bool
) -> Tokenizer:
    if (home / "tokenizer.json").exists():
        return load_tokenizer(home)
    make_folder(home)
    of_a_sample = choice.kind != "char" or streams  # all of a text's characters, where it is no stream
    if choice.kind != "tiktoken":
        say(f"training the {choice.kind} tokenizer" + (" on the beginning of the text" if of_a_sample else ""))
    tokenizer = train_tokenizer(choice, _sample(source, TOKENIZER_SAMPLE if of_a_sample else None))
    tokenizer.save(home)
    if choice.vocab_size and tokenizer.vocab_size < choice.vocab_size:
        say(f"this corpus yields {tokenizer.vocab_size:,} pieces, fewer than the {choice.vocab_size:,} asked for")
    return tokenizer


def _sample(source: Source, limit: int | None) -> Iterator[str]:
    """The corpus's beginning, about `limit` bytes of it, or all of it."""
    limits = [size for size in (limit, source.limit_bytes) if size is not None]
    size = tasks = 0
    for task in source.tasks():
        if task == WAIT:
            source.release(tasks)  # what is needed again will be fetched again
            continue
        tasks += 1
        for document in source.read(task):
            yield document.text
            size += len(document.text.encode("utf-8"))
        if limits and size >= min(limits):
            return


def window_starts(starts: np.ndarray, n_tokens: int, context: int) -> Iterator[tuple[int, int]]:
    """Cover a token file with windows (start, end of what is new in it), each beginning with a document if it can.

    `starts` are the places of the documents' first tokens. A window holds `context` tokens; where a document begins in
    it and goes on beyond it, the next window begins with that document, so that its beginning is never out of sight.
    """
    place = 0
    while place < n_tokens - 1:
        stop = min(place + context, n_tokens - 1)
        last_start = int(starts[np.searchsorted(starts, stop, side="right") - 1]) if len(starts) else 0
        if stop < n_tokens - 1 and last_start > place:
            stop = last_start
        yield place, stop
        place = stop


class Windows:
    """Training batches: `batch(step)` is (B, T + 1) token ids, for any step, at no cost for the ones before it.

    Windows lie side by side over the whole file, or with `end_id` begin at documents. The tail of the file that fills
    no window is left out.
    """

    def __init__(
        self, tokens: TokenFiles, *, context: int, batch_size: int, seed: int, end_id: int | None = None
    ) -> None:
        self.tokens, self.context, self.batch_size, self.seed = tokens, context, batch_size, seed
        self.n_windows = (tokens.n_tokens - 1) // context
        if self.n_windows < 1:
            raise UserError(
                f"the training text has {tokens.n_tokens} tokens, but one window needs {context + 1}: "
                + (
                    f"its tokens have {tokens.n_bytes // tokens.n_tokens:,} bytes each; take tokenizer=char or "
                    "tokenizer=spm_4k"
                    if tokens.n_bytes > LONG_WORD * tokens.n_tokens
                    else f"give a longer text, or model.context_length={max(1, tokens.n_tokens - 1)} or less"
                )
            )
        self.starts: np.ndarray | None = None
        if end_id is not None:
            places = [start for start, _ in window_starts(tokens.places_of(end_id), tokens.n_tokens, context)]
            self.starts = np.array([start for start in places if start + context < tokens.n_tokens])
            self.n_windows = len(self.starts)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """(rows, T + 1): the share of `rank` in optimizer step `step` (from 1), consecutive rows of one global batch."""
        _, windows = windows_of_step(step, seed=self.seed, n_windows=self.n_windows, batch_size=self.batch_size)
        share = self.batch_size // world_size
        mine = windows[rank * share : (rank + 1) * share]
        places = mine * self.context if self.starts is None else self.starts[mine]
        return torch.from_numpy(np.stack([self.tokens.read(int(place), self.context + 1) for place in places]))

    @property
    def fingerprint(self) -> str:
        return self.tokens.fingerprint

    @property
    def bytes_per_token(self) -> float:
        return self.tokens.n_bytes / self.tokens.n_tokens

    @property
    def text_tokens(self) -> float:
        """How many there are before the text is read again."""
        return self.tokens.n_tokens

    def close(self) -> None:
        """Nothing is at work beside it."""


def validation_windows(tokens: TokenFiles, *, context: int, end_id: int, limit: int) -> tuple[Tensor, Tensor]:
    """The validation text as windows (N, T) of input ids and targets, -100 where there is none.

    Each token is scored exactly once, and documents that fit the context are seen whole: nothing is lost to a cut that
    training and chatting do not have. At most about `limit` tokens.
    """
    n = min(tokens.n_tokens, limit + 1)
    ids = tokens.read(0, n)
    rows = list(window_starts(np.flatnonzero(ids == end_id), n, context))
    x = np.zeros((len(rows), context), dtype=np.int64)
    y = np.full((len(rows), context), -100, dtype=np.int64)
    for i, (start, stop) in enumerate(rows):
        x[i, : stop - start] = ids[start:stop]
        y[i, : stop - start] = ids[start + 1 : stop + 1]
    return torch.from_numpy(x), torch.from_numpy(y)


class PretrainData(L.LightningDataModule):
    """What Lightning iterates over: one item is a whole optimizer step's batch (this rank's rows of it)."""

    def __init__(
        self,
        config: DataConfig,
        folder: Path,
        tokenizer: Tokenizer,
        *,
        context: int,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        val_tokens: int,
        say: Callable[[str], None],
    ) -> None:
        """`folder` is what `prepare` returned for `config`."""
        super().__init__()
        end_id = tokenizer.special_id(END_OF_TEXT)
        self.train: Windows | StreamWindows
        if config.tokens_per_epoch is not None:
            self.train = StreamWindows(config, folder, context=context, batch_size=batch_size, seed=seed, say=say)
            self.val = TokenFiles(folder / "validation", "val", tokenizer)
        else:
            self.train = Windows(
                TokenFiles(folder, "train", tokenizer),
                context=context,
                batch_size=batch_size,
                seed=seed,
                end_id=end_id if config.packing == "documents" else None,
            )
            self.val = TokenFiles(folder, "val", tokenizer)
        if self.val.n_tokens < 2:
            n = getattr(self.train, "tokens", self.val).n_documents
            raise UserError(
                f"no text is left for validation: none of the {n:,} documents was drawn for it at data.val_fraction="
                f"{config.val_fraction:g}; give more text, a larger data.val_fraction or another data.seed"
            )
        self.token_bytes = self.val.token_bytes(tokenizer)  # what bits per byte of the validation text are counted by
        self.val_x, self.val_y = validation_windows(self.val, context=context, end_id=end_id, limit=val_tokens)
        self.micro_batch_size = micro_batch_size

    def train_dataloader(self) -> _Steps:
        trainer = self.trainer
        assert trainer is not None
        to_cuda = trainer.strategy.root_device.type == "cuda"
        return _Steps(self.train, lambda: trainer.global_step, trainer.global_rank, trainer.world_size, to_cuda)

    def val_dataloader(self) -> list[tuple[Tensor, Tensor]]:
        """Batches of constant shape; rows beyond the text carry no loss. Ranks take every world_size-th batch."""
        assert self.trainer is not None
        size, rank, world = self.micro_batch_size, self.trainer.global_rank, self.trainer.world_size
        rows = -(-len(self.val_x) // (size * world)) * size * world
        x = torch.zeros(rows, self.val_x.shape[1], dtype=torch.int64)
        y = torch.full_like(x, -100)
        x[: len(self.val_x)], y[: len(self.val_y)] = self.val_x, self.val_y
        batches = list(zip(x.split(size), y.split(size), strict=True))
        return batches[rank::world]


class _Steps:
    """An endless iterator whose place is the trainer's own step counter: nothing to save, nothing to skip."""

    def __init__(
        self,
        windows: Windows | StreamWindows,
        steps_done: Callable[[], int],
        rank: int,
        world_size: int,
        to_cuda: bool,
    ) -> None:
        self.windows, self.steps_done, self.rank, self.world_size = windows, steps_done, rank, world_size
        self.to_cuda = to_cuda

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        step = self.steps_done()
        while True:
            step += 1
            rows = self.windows.batch(step, self.rank, self.world_size)
            if self.to_cuda:
                rows = rows.pin_memory()  # then Lightning's copy to the GPU does not wait
            yield rows[:, :-1], rows[:, 1:]
