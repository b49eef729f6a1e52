"""What a model makes of a text: the sums behind loss, perplexity and bits per byte."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from positron.config import IGNORE, UserError
from positron.evaluation.metrics import Score
from positron.model.gpt import GPT
from positron.model.loss import token_losses
from positron.text.tokenizer import END_OF_TEXT, Tokenizer

ROWS = 16  # windows at a time


@torch.inference_mode()
def window_losses(model: GPT, x: Tensor, y: Tensor) -> Tensor:
    """Nats of each target, (N, T), 0 where y is -100; x, y (N, T)."""
    device = model.wte.weight.device
    losses = []
    for part_x, part_y in zip(x.split(ROWS), y.split(ROWS), strict=True):
        hidden = model.hidden(part_x.to(device)).flatten(0, 1)
        losses.append(token_losses(hidden, model.head_weight, part_y.to(device).flatten()).view_as(part_y).cpu())
    return torch.cat(losses)


def score(model: GPT, x: Tensor, y: Tensor, token_bytes: Tensor) -> Score:
    """Over all windows x, y (N, T); `token_bytes` (V,)."""
    scored = y != IGNORE
    n_bytes = token_bytes[y.clamp(min=0)].mul(scored).sum()
    return Score(float(window_losses(model, x, y).double().sum()), int(n_bytes), int(scored.sum()))


def sliding_windows(ids: list[int], context: int, stride: int) -> tuple[Tensor, Tensor]:
    """x, y (N, context) in which each id but the first is a target exactly once.

    A window reads `context` ids and scores the last `stride` of its targets (the first window all of them), so each is
    seen with at least context - stride ids before it, or all there are.
    """
    xs, ys = [], []
    scored = 0  # targets so far: ids[1 : scored + 1]
    for start in range(0, max(1, len(ids) - 1), stride):
        stop = min(start + context, len(ids) - 1)
        if stop <= scored and start:
            break
        x, y = ids[start:stop], list(ids[start + 1 : stop + 1])
        y[: scored - start] = [IGNORE] * (scored - start)
        xs.append(x + [0] * (context - len(x)))
        ys.append(y + [IGNORE] * (context - len(y)))
        scored = stop
    return torch.tensor(xs), torch.tensor(ys)


def score_documents(model: GPT, tokenizer: Tokenizer, texts: list[str], *, stride: int | None = None) -> list[Score]:
    """Each document by itself, from its beginning to its end-of-text, by sliding windows (default: half the context)."""
    context = model.config.context_length
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise UserError(f"--stride {stride} must be between 1 and the context length {context}")
    end = tokenizer.special_id(END_OF_TEXT)
    windows, owners = [], []
    for i, ids in enumerate(tokenizer.encode_batch(texts)):
        x, y = sliding_windows([end, *ids, end], context, stride)
        windows.append((x, y))
        owners += [i] * len(x)
    if not windows:
        return []
    x, y = torch.cat([x for x, _ in windows]), torch.cat([y for _, y in windows])
    nats = torch.zeros(len(texts), dtype=torch.float64)
    tokens = torch.zeros(len(texts), dtype=torch.int64)
    owner = torch.tensor(owners)
    nats.index_add_(0, owner, window_losses(model, x, y).double().sum(dim=1))
    tokens.index_add_(0, owner, (y != IGNORE).sum(dim=1))
    sizes = [len(text.encode("utf-8")) for text in texts]
    return [Score(*three) for three in zip(nats.tolist(), sizes, tokens.tolist(), strict=True)]


def total(scores: list[Score]) -> Score:
    return Score(sum(s.nats for s in scores), sum(s.bytes for s in scores), sum(s.tokens for s in scores))


def interval(scores: list[Score]) -> float | None:
    """Half the width of the 95 % interval of bits per byte over documents, None for a single one.

    Bits per byte is a ratio of sums; its variance by linearisation (Cochran, Sampling Techniques, eq. 6.13).
    """
    n, whole = len(scores), total(scores)
    if n < 2:
        return None
    ratio = whole.nats / whole.bytes
    squares = sum((s.nats - ratio * s.bytes) ** 2 for s in scores)
    return 1.96 * math.sqrt(n / (n - 1) * squares) / whole.bytes / math.log(2)
