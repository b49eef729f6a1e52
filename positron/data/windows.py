"""Windows of token files: optimizer step s is a function of (seed, s), and a validation text is scored whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from positron.data.shards import TokenFiles
from positron.data.window_order import windows_of_step
from positron.system.errors import UserError

LONG_WORD = 40  # mean bytes of a token, beyond which tokenizer=word does not suit a text


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
