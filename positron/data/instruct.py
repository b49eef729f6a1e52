"""Make batches of conversations, with the loss on the answers only.

As in pretraining, the batch of optimizer step s is a function of (seed, s): invariant 3 of docs/ARCHITECTURE.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from positron.config import IGNORE
from positron.data.conversations import Conversation
from positron.data.window_order import windows_of_step
from positron.data.windows import Windows
from positron.text import conversation
from positron.text.tokenizer import END_OF_TEXT, Tokenizer, token_bytes_of_text

Row = tuple[np.ndarray, np.ndarray]  # input and target ids (n,), targets -100 where no loss is computed

Part = tuple[Tensor, ...]  # input and target ids (B, T) of a micro-batch

BUCKETS = 16  # number of widths of micro-batches: multiples of a sixteenth of the context length


def to_row(example: Conversation, tokenizer: Tokenizer, context: int) -> Row | None:
    """Convert a conversation to input and target ids (n,), n <= context.

    Targets are -100 where no loss is computed: everywhere except in the assistant's answers. A conversation longer than the
    context loses its beginning. If an answer loses its beginning, the loss is not computed on the rest of this answer. Returns
    None if no complete answer remains.
    """
    return to_rows([example], tokenizer, context)[0]


def to_rows(examples: Sequence[Conversation], tokenizer: Tokenizer, context: int) -> list[Row | None]:
    """Convert conversations that have the same beginning to rows that have the same beginning.

    Each conversation is converted as by `to_row`. But if the longest one loses its beginning, all conversations lose the same
    number of tokens.
    """
    encoded = [conversation.encode(example.messages, tokenizer) for example in examples]
    longest = max(len(ids) for ids, _ in encoded)
    n_lost = longest - context if longest > context + 1 else 0
    return [_to_row(ids, scored, n_lost, tokenizer) for ids, scored in encoded]


def _to_row(ids: list[int], scored: list[bool], n_lost: int, tokenizer: Tokenizer) -> Row | None:
    """Return the row of a conversation without its first `n_lost` tokens. `ids` and `scored`: see `conversation.encode`."""
    if n_lost:
        ids, scored = ids[n_lost:], scored[n_lost:]
        markers = [tokenizer.special_id(marker) for marker in conversation.MARKERS]
        whole = next((i for i, token in enumerate(ids) if token in markers), len(ids))
        ids = [tokenizer.special_id(END_OF_TEXT), *ids]
        scored = [False] * (1 + whole) + scored[whole:]
    if not any(scored):
        return None
    y = np.where(scored, ids, IGNORE)[1:]
    return np.array(ids[:-1], dtype=np.int64), y.astype(np.int64)


def answer_bytes(examples: Sequence[tuple[Conversation, Row]], tokenizer: Tokenizer) -> tuple[int, np.ndarray]:
    """Return the size of all answers that are targets, and the number of bytes that each of the V token ids stands for.

    `examples`: conversations, each with the row that `to_row` returned. The array (V,) is that of `token_bytes_of_text`: its
    sum over all targets is the size of the answers in bytes.
    """
    size, end = 0, tokenizer.special_id(conversation.END)
    for example, (_, y) in examples:
        answers = [message.content for message in example.messages if conversation.is_learned(message)]
        n_whole = int((y == end).sum())  # a long conversation has lost its first answers
        size += sum(len(answer.encode("utf-8")) for answer in answers[-n_whole:])
    targets = np.concatenate([y[y != IGNORE] for _, (_, y) in examples])
    return size, token_bytes_of_text(tokenizer, np.bincount(targets, minlength=tokenizer.vocab_size), size)


def pack(rows: list[Row], context: int) -> list[Row]:
    """Join conversations to rows of at most `context` tokens with the first-fit-decreasing algorithm.

    Each conversation begins with `<|endoftext|>`, and attention does not cross this token (`model.gpt.document_mask`).
    """
    bins: list[list[Row]] = []
    sizes: list[int] = []
    for row in sorted(rows, key=lambda r: -len(r[0])):
        place = next((i for i, size in enumerate(sizes) if size + len(row[0]) <= context), None)
        if place is None:
            bins.append([row])
            sizes.append(len(row[0]))
        else:
            bins[place].append(row)
            sizes[place] += len(row[0])
    return [(np.concatenate([x for x, _ in b]), np.concatenate([y for _, y in b])) for b in bins]


def to_parts(rows: list[Row], context: int, micro: int, pad: int) -> list[Part]:
    """Group rows of similar length into micro-batches (B, T) with B <= `micro`.

    Shorter rows are padded with the token id `pad`; see `to_part`.
    """
    ordered = sorted(rows, key=lambda r: -len(r[0]))
    parts: list[Part] = []
    for start in range(0, len(ordered), micro):
        parts.append(to_part(ordered[start : start + micro], context, pad))
    return parts


def to_part(rows: list[Row], context: int, pad: int) -> Part:
    """Return one micro-batch of all rows: input and target ids (B, T), padded on the right.

    T is the length of the longest row, rounded up to a multiple of a sixteenth of `context` (see BUCKETS), but at most
    `context`. Padded inputs are the id `pad`, and padded targets are -100.
    """
    step = -(-context // BUCKETS)
    width = min(context, -(-max(len(row_x) for row_x, _ in rows) // step) * step)
    x = np.full((len(rows), width), pad, dtype=np.int64)
    y = np.full((len(rows), width), IGNORE, dtype=np.int64)
    for i, (row_x, row_y) in enumerate(rows):
        x[i, : len(row_x)], y[i, : len(row_y)] = row_x, row_y
    return torch.from_numpy(x), torch.from_numpy(y)


class Instructions:
    """Make batches of conversations, in a new random order in each epoch.

    If `replay` is given, each batch also contains windows of the pretraining text.
    """

    def __init__(
        self,
        rows: list[Row],
        tokenizer: Tokenizer,
        *,
        context: int,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        packing: bool,
        replay: Windows | None,
    ) -> None:
        """Store the rows, which `to_row` returned.

        `packing`: true if several conversations are joined to one row (see `pack`). `replay`: if it is not None,
        `replay.batch_size` of the `batch_size` examples of each batch are windows of the pretraining text, and the loss is
        computed on all their tokens.
        """
        self.rows, self.context, self.micro, self.seed = rows, context, micro_batch_size, seed
        self.packing, self.replay = packing, replay
        self.pad = tokenizer.special_id(END_OF_TEXT)
        self.n_conversations = batch_size - (replay.batch_size if replay else 0)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> list[Part]:
        """Return the micro-batches that process `rank` trains on in optimizer step `step` (1, 2, ...)."""
        _, chosen = windows_of_step(step, seed=self.seed, n_windows=len(self.rows), batch_size=self.n_conversations)
        rows = [self.rows[i] for i in chosen]
        if self.replay is not None:
            # Cut windows to the longest conversation of the batch; conversations would be padded to uncut windows.
            n = self.context if self.packing else max(len(x) for x, _ in rows)
            rows += [(window[:n], window[1 : n + 1]) for window in self.replay.batch(step).numpy()]
        rank_rows = rows[rank::world_size]
        return to_parts(
            pack(rank_rows, self.context) if self.packing else rank_rows, self.context, self.micro, self.pad
        )
