"""Cut token files into windows of consecutive tokens, for training and for validation.

The windows of a training batch depend only on the seed and the number of the optimizer step.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from positron.data.shards import TokenFiles
from positron.data.window_order import windows_of_step
from positron.system.errors import UserError
from positron.system.formatting import counted

MIN_ADVISED_CONTEXT = 16  # a shorter context teaches too little to be advised
MAX_BYTES_PER_TOKEN = 40  # if the mean is larger, tokenizer=word does not suit the text


def window_starts(starts: np.ndarray, n_tokens: int, window: int) -> Iterator[tuple[int, int]]:
    """Yield windows (start, stop) that cover a token file so that each token, except the first, is a target once.

    The inputs of a window are the tokens start .. stop - 1, and its targets are the tokens start + 1 .. stop. `starts` are the
    positions of the documents' first tokens, `<|endoftext|>`, in ascending order. A window has at most `window` inputs. If
    the last document of a window does not fit into the window as a whole, the window ends where this document begins, and the
    next window begins there. So the model sees the beginning of the document. Only a document that is longer than a window is
    cut.
    """
    place = 0
    while place < n_tokens - 1:
        stop = min(place + window, n_tokens - 1)
        last_start = int(starts[np.searchsorted(starts, stop, side="right") - 1]) if len(starts) else 0
        if stop < n_tokens - 1 and last_start > place:
            stop = last_start
        yield place, stop
        place = stop


class Windows:
    """Make training batches (B, T + 1) of token ids for any optimizer step, without computing the batches before it.

    B is `batch_size` and T is `window`. In each row, the inputs are all ids except the last, and the targets are all ids
    except the first. `end_id` is the id of `<|endoftext|>`, with which each document begins. If `end_id` is given, windows
    begin where a document begins if possible, and may overlap. If it is None, the text is cut into consecutive windows. Tokens
    at the end of the text that do not fill a window are not used. Raises UserError if the text is shorter than one window. In
    this message, `label` names the text, and `key` is the setting that gives `window`. A smaller data.val_fraction= is advised
    if `val_tokens` more tokens, which the validation text can give, are enough.

    `document_start` is kept for the users of the windows: the id that begins a document, if a token attends only to tokens of
    its own document, otherwise None.
    """

    def __init__(
        self,
        tokens: TokenFiles,
        *,
        window: int,
        batch_size: int,
        seed: int,
        end_id: int | None = None,
        label: str = "the training text",
        key: str = "model.context_length",
        val_tokens: int = 0,
        document_start: int | None = None,
    ) -> None:
        self.document_start = document_start
        self.tokens, self.window, self.batch_size, self.seed = tokens, window, batch_size, seed
        self.n_windows = (tokens.n_tokens - 1) // window
        if self.n_windows < 1:
            remedies = ["give a longer text"]
            if tokens.n_tokens + val_tokens > window:
                remedies.append("a smaller data.val_fraction=")
            if tokens.n_tokens > MIN_ADVISED_CONTEXT:
                remedies.append(f"{key}={tokens.n_tokens - 1} or less")
            remedy = ", or ".join(remedies)
            if tokens.n_bytes > MAX_BYTES_PER_TOKEN * tokens.n_tokens:
                mean = f"{tokens.n_bytes // tokens.n_tokens:,} bytes"
                remedy = f"use tokenizer=char or tokenizer=spm_4k, because a token now has {mean} on average"
            raise UserError(
                f"{label} has {counted(tokens.n_tokens, 'token')}, but {key}={window} "
                f"needs at least {window + 1:,}: {remedy}"
            )
        self.starts: np.ndarray | None = None
        if end_id is not None:
            places = [start for start, _ in window_starts(tokens.find_token(end_id), tokens.n_tokens, window)]
            self.starts = np.array([start for start in places if start + window < tokens.n_tokens])
            self.n_windows = len(self.starts)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """Return the rows of optimizer step `step` (1, 2, ...) that process `rank` trains on, (B / world_size, T + 1)."""
        _, windows = windows_of_step(step, seed=self.seed, n_windows=self.n_windows, batch_size=self.batch_size)
        share = self.batch_size // world_size
        own_windows = windows[rank * share : (rank + 1) * share]
        places = own_windows * self.window if self.starts is None else self.starts[own_windows]
        return torch.from_numpy(np.stack([self.tokens.read(int(place), self.window + 1) for place in places]))

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the text: a hash of the text and of the settings that change how it is read."""
        return self.tokens.fingerprint

    @property
    def bytes_per_token(self) -> float:
        """Return the mean number of bytes of text per token."""
        return self.tokens.n_bytes / self.tokens.n_tokens

    @property
    def text_tokens(self) -> int:
        """Return the number of tokens in the text."""
        return self.tokens.n_tokens

    def close(self) -> None:
        """Do nothing. Only `StreamWindows`, which has the same methods, must end a process and release files."""


def validation_windows(tokens: TokenFiles, *, context: int, end_id: int, limit: int) -> tuple[Tensor, Tensor]:
    """Return the beginning of a validation text, up to `limit` targets, as input and target ids, each (windows, context).

    Targets are -100 where no loss is computed. Each token, except the first, is a target exactly once. A document that is not
    longer than a window is always in a single window, so that the score does not depend on arbitrary cuts.
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
