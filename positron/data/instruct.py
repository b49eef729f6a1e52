"""Conversations as batches: optimizer step s is a function of (seed, s), as in pretraining; loss on the answers only."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from positron.config import IGNORE
from positron.data.conversations import Conversation
from positron.data.window_order import windows_of_step
from positron.data.windows import Windows
from positron.text import conversation
from positron.text.tokenizer import END_OF_TEXT, Tokenizer

Row = tuple[np.ndarray, np.ndarray]  # input and target ids (n,), -100 where there is no loss

Part = tuple[Tensor, Tensor]  # the same (rows, T) of a micro-batch

BUCKETS = 16  # widths of micro-batches: sixteenths of the context length


def to_row(talk: Conversation, tokenizer: Tokenizer, context: int) -> Row | None:
    """None where nothing is left to learn from. Over-long ones lose from the left; an answer that would be cut is not
    learnt from, so that none is ever learnt without its beginning."""
    ids, scored = conversation.encode(talk.messages, tokenizer)
    if len(ids) > context + 1:
        ids, scored = ids[-context:], scored[-context:]
        markers = [tokenizer.special_id(marker) for marker in conversation.MARKERS]
        whole = next((i for i, token in enumerate(ids) if token in markers), len(ids))
        ids = [tokenizer.special_id(END_OF_TEXT), *ids]
        scored = [False] * (1 + whole) + scored[whole:]
    if not any(scored):
        return None
    y = np.where(scored, ids, IGNORE)[1:]
    return np.array(ids[:-1], dtype=np.int64), y.astype(np.int64)


def pack(rows: list[Row], context: int) -> list[Row]:
    """Several conversations in a row where they fit, longest first; the model keeps them apart by their beginnings."""
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
    """Micro-batches of rows of alike length, padded at their ends to one of a few widths."""
    ordered = sorted(rows, key=lambda r: -len(r[0]))
    parts = []
    for start in range(0, len(ordered), micro):
        some = ordered[start : start + micro]
        step = -(-context // BUCKETS)
        width = min(context, -(-len(some[0][0]) // step) * step)
        x = np.full((len(some), width), pad, dtype=np.int64)
        y = np.full((len(some), width), IGNORE, dtype=np.int64)
        for i, (row_x, row_y) in enumerate(some):
            x[i, : len(row_x)], y[i, : len(row_y)] = row_x, row_y
        parts.append((torch.from_numpy(x), torch.from_numpy(y)))
    return parts


class Instructions:
    """`batch(step)` is a list of micro-batches: conversations in an order of their own each epoch, and replayed windows."""

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
        """`replay`, with the batch size of its share, gives pretraining windows, whose every token is scored."""
        self.rows, self.context, self.micro, self.seed = rows, context, micro_batch_size, seed
        self.packing, self.replay = packing, replay
        self.pad = tokenizer.special_id(END_OF_TEXT)
        self.talks = batch_size - (replay.batch_size if replay else 0)
        lengths = tokenizer.token_bytes()
        scored = np.concatenate([y[y != IGNORE] for _, y in rows])
        self.bytes_per_token = float(lengths[scored].sum() / len(scored))

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> list[Part]:
        _, chosen = windows_of_step(step, seed=self.seed, n_windows=len(self.rows), batch_size=self.talks)
        rows = [self.rows[i] for i in chosen]
        if self.replay is not None:
            # as long as the longest conversation at hand: whole windows would be what all the others are padded to
            n = self.context if self.packing else max(len(x) for x, _ in rows)
            rows += [(window[:n], window[1 : n + 1]) for window in self.replay.batch(step).numpy()]
        mine = rows[rank::world_size]
        return to_parts(pack(mine, self.context) if self.packing else mine, self.context, self.micro, self.pad)
