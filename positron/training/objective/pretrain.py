"""Define pretraining, in which every token of a text is a target."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

import numpy as np
import torch

from positron.config import IGNORE, DataConfig, Packing
from positron.data.shards import TokenFiles
from positron.data.stream_windows import StreamWindows
from positron.data.windows import Windows, validation_windows
from positron.system.console import one_line
from positron.system.errors import UserError
from positron.text.tokenizer import END_OF_TEXT, Tokenizer
from positron.training.objective.base import Part, Prompt
from positron.training.objective.tokens import NextToken
from positron.training.objective.validation_text import entropy_of

SAMPLE_PROMPT = "Once upon a time"
SAMPLE_POSITIONS, SAMPLE_TOKENS = 64, 65_536  # in a long text, tokens are counted in 64 pieces of 65,536 tokens


def windows_start_after(packing: Packing, end_id: int) -> int | None:
    """Return `end_id` for packing "documents", and None for packing "windows".

    With packing "documents", training windows begin at the start of a document where possible. With packing "windows", they
    begin anywhere. `end_id`: the id of `<|endoftext|>`, the first token of each document.
    """
    match packing:
        case "documents":
            return end_id
        case "windows":
            return None
        case _:
            assert_never(packing)


class PretrainObjective(NextToken):
    """Train on every token of a text. The text is read in windows, in a new random order in each epoch."""

    kind = "pretrain"
    patience = 0

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
    ) -> None:
        """Open the prepared text in `folder`.

        `context`: tokens per window, unless `config` gives longer windows for training. `batch_size`: training windows per
        optimizer step, on all ranks together. `micro_batch_size`: windows per forward pass of one rank. `val_tokens`: largest
        number of tokens to validate on. Raises UserError if the training text or the validation text is too short.
        """
        end_id = tokenizer.special_id(END_OF_TEXT)
        self.tokenizer = tokenizer
        window = config.window_of(context)
        self.train: Windows | StreamWindows
        if config.tokens_per_epoch is not None:
            self.train = StreamWindows(config, folder, window=window, batch_size=batch_size, seed=seed)
            self.val = TokenFiles(folder / "validation", "val", tokenizer)
        else:
            self.val = TokenFiles(folder, "val", tokenizer)
            text = config.path or config.url
            self.train = Windows(
                TokenFiles(folder, "train", tokenizer),
                window=window,
                batch_size=batch_size,
                seed=seed,
                end_id=windows_start_after(config.packing, end_id),
                key=config.window_key(context),
                label="the training text" + (f" ({one_line(text)})" if text else ""),
                val_tokens=self.val.n_tokens - 3,  # one character and the two special tokens remain in it
            )
        if self.val.n_tokens < 2:
            n = getattr(self.train, "tokens", self.val).n_documents
            raise UserError(
                f"data.val_fraction={config.val_fraction:g} puts none of the {n:,} documents "
                "into validation: give more text, a larger data.val_fraction= or another data.seed="
            )
        self.document_start = end_id if config.document_mask else None
        self.token_bytes = self.val.token_bytes(tokenizer)  # for the bits per byte of the validation text
        self.val_x, self.val_y = validation_windows(self.val, context=context, end_id=end_id, limit=val_tokens)
        self.val_bits, self.val_bytes = entropy_of(self.val, tokenizer, val_tokens)
        self.micro_batch_size = micro_batch_size

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint (a hash) of the training text."""
        return self.train.fingerprint

    @property
    def bytes_per_token(self) -> float | None:
        """Return the mean number of bytes of a training token's text; a subclass with another loss returns None."""
        return self.train.bytes_per_token

    def batch(self, step: int, rank: int, world_size: int) -> list[Part]:
        """Return the micro-batches of one rank for optimizer step `step`, counted from 1."""
        waits = [self.interruption] if isinstance(self.train, StreamWindows) else []
        rows = self.train.batch(step, rank, world_size, *waits)
        size = self.micro_batch_size
        return list(zip(rows[:, :-1].split(size), rows[:, 1:].split(size), strict=True))

    def validation(self, rank: int, world_size: int) -> list[Part]:
        """Return one rank's micro-batches for validation: every `world_size`-th micro-batch of the validation text.

        All micro-batches have the same shape, and all ranks get the same number of them: rows without targets are added.
        """
        size = self.micro_batch_size
        rows = -(-len(self.val_x) // (size * world_size)) * size * world_size
        x = torch.zeros(rows, self.val_x.shape[1], dtype=torch.int64)
        y = torch.full_like(x, IGNORE)
        x[: len(self.val_x)], y[: len(self.val_y)] = self.val_x, self.val_y
        return [(x[i : i + size], y[i : i + size]) for i in range(rank * size, rows, world_size * size)]

    def probe_rows(self) -> list[Part]:
        """Return the validation windows as rows (x, y): input ids and target ids, each (T,)."""
        return list(zip(self.val_x, self.val_y, strict=True))

    def target_counts(self, vocab_size: int) -> np.ndarray:
        """Return how often each token id occurs in the training text, or in about 4M of its tokens if the text is longer.

        Of a streamed text, only one epoch is counted.
        """
        tokens = self.train.tokens
        if tokens.n_tokens <= SAMPLE_POSITIONS * SAMPLE_TOKENS:
            return np.bincount(tokens.read(0, tokens.n_tokens), minlength=vocab_size)
        counts = np.zeros(vocab_size, dtype=np.int64)
        for start in np.linspace(0, tokens.n_tokens - SAMPLE_TOKENS, SAMPLE_POSITIONS).astype(int):
            counts += np.bincount(tokens.read(int(start), SAMPLE_TOKENS), minlength=vocab_size)
        return counts

    def sample_prompt(self, asked: str | None) -> Prompt:
        """Return the prompt for samples: a document that begins with `asked` or, if this is empty, "Once upon a time"."""
        begin, text = self.tokenizer.special_id(END_OF_TEXT), asked or SAMPLE_PROMPT
        return Prompt(text, [begin, *self.tokenizer.encode(text)], list(self.tokenizer.end_ids))

    def close(self) -> None:
        """End the process that downloads the text, if there is one."""
        self.train.close()
