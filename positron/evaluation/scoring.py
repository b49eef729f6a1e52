"""Score texts with a model: compute the sums from which loss, perplexity and bits per byte follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from positron.config import IGNORE
from positron.evaluation.eval_texts import Beginning, encode_texts, size_of
from positron.evaluation.score import Score
from positron.evaluation.statistics import t95
from positron.model.ensemble import Ensemble, context_of, mean_losses
from positron.model.gpt import GPT, document_numbers
from positron.model.kernels.loss import token_losses
from positron.system.errors import UserError
from positron.system.progress import progress
from positron.text.tokenizer import END_OF_TEXT, Tokenizer

ROWS = 16  # number of windows that are computed at a time
MIN_UNITS = 20  # with fewer documents, the interval is computed from blocks of text instead of documents
MAX_BLOCKS = 100


@dataclass(frozen=True)
class Windows:
    """Hold the windows into which some documents were cut: inputs x and targets y, (N, context) each, for N windows.

    `sizes` has a list for each document. Its numbers, one per window, say how many bytes of the document the window scores.
    Targets that are not scored are -100.
    """

    x: Tensor
    y: Tensor
    sizes: list[list[int]]

    def scores(self, losses: Tensor) -> list[list[Score]]:
        """Return one list for each document, with the score of each of its windows.

        A score holds the summed loss in nats, the number of bytes, and the number of scored tokens of a window. `losses`
        (N, context) holds the loss in nats of each target in the N windows.
        """
        counts = [len(sizes) for sizes in self.sizes]
        nats = losses.double().sum(dim=1).split(counts)
        tokens = (self.y != IGNORE).sum(dim=1).split(counts)
        return [
            [Score(*sums) for sums in zip(part.tolist(), sizes, count.tolist(), strict=True)]
            for part, sizes, count in zip(nats, self.sizes, tokens, strict=True)
        ]


@torch.inference_mode()
def window_losses(
    model: GPT, x: Tensor, y: Tensor, title: str = "scoring", document_start: int | None = None
) -> Tensor:
    """Compute the loss in nats of each target, (N, T), for N windows of T tokens; the loss is 0 where the target is -100.

    `x` and `y` (N, T) are the inputs and the targets. `title` is the title of the progress line. If `document_start` is given,
    each token with this id begins a document, and attention does not cross documents.
    """
    device = model.wte.weight.device
    losses = []
    parts = list(zip(x.split(ROWS), y.split(ROWS), strict=True))
    for part_x, part_y in progress(parts, title):
        ids = part_x.to(device)
        hidden = model.hidden(ids, document_numbers(ids, document_start)).flatten(0, 1)
        losses.append(token_losses(hidden, model.head_weight, part_y.to(device).flatten()).view_as(part_y).cpu())
    return torch.cat(losses)


def score(model: GPT, x: Tensor, y: Tensor, token_bytes: Tensor, document_start: int | None = None) -> Score:
    """Return one score for all windows with inputs x and targets y, (N, T) each; targets of -100 are not scored.

    `token_bytes` (V,) has the number of bytes of text of each token id. For `document_start` see `window_losses`.
    """
    scored = y != IGNORE
    n_bytes = token_bytes[y.clamp(min=0)].mul(scored).sum()
    return Score(
        float(window_losses(model, x, y, document_start=document_start).double().sum()),
        round(float(n_bytes)),
        int(scored.sum()),
    )


def sliding_windows(ids: list[int], context: int, stride: int) -> tuple[Tensor, Tensor]:
    """Cut ids into windows x, y (N, context) in which each id except the first is a target exactly once.

    The first window scores all its targets. Each later window begins `stride` ids after the window before it, and scores only
    the targets that no earlier window scored. So each target is predicted from at least context - stride ids, or from all ids
    before it. Targets that are not scored are -100. A window with fewer than `context` ids is filled up with ids of 0, whose
    targets are -100.
    """
    xs, ys = [], []
    scored = 0  # number of targets so far, which are ids[1 : scored + 1]
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


def score_windows(
    model: GPT, tokenizer: Tokenizer, texts: Sequence[str], *, stride: int | None = None, title: str = "scoring"
) -> list[list[Score]]:
    """Score each document separately, from its beginning to its end-of-text token, by sliding windows.

    A `Beginning`, the first part of a document that was cut, is scored without an end-of-text token. `stride` is the number of
    tokens scored by each window after the first (None: half the context length). Returns a list of scores for each document,
    one per window; their sum is the score of the document. `title` is the title of the progress line. Raises UserError if the
    stride is not between 1 and the context length.
    """
    if not texts:
        return []
    windows = _cut(tokenizer, texts, model.config.context_length, stride)
    return windows.scores(window_losses(model, windows.x, windows.y, title))


def score_ensemble(
    ensemble: Ensemble, tokenizer: Tokenizer, texts: Sequence[str], *, stride: int | None = None
) -> tuple[list[list[Score]], list[list[list[Score]]]]:
    """Score each document with the mean of the members' probabilities, and with each member by itself.

    All members read the same windows (parts of a document), which are as long as the shortest context. Returns the scores of
    the ensemble, and a list with the scores of each member. The scores of a model are a list with one item for each document.
    The item is the list of the scores of the document's windows (see `score_windows`). Raises the errors of `score_windows`.
    """
    count = len(ensemble.members)
    if not texts:
        return [], [[] for _ in range(count)]
    windows = _cut(tokenizer, texts, context_of(ensemble), stride)
    x, y = windows.x, windows.y
    losses = [
        window_losses(member, x, y, f"scoring by run {i} of {count}") for i, member in enumerate(ensemble.members, 1)
    ]
    mean = mean_losses(losses).masked_fill(y == IGNORE, 0.0)
    return windows.scores(mean), [windows.scores(part) for part in losses]


def _cut(tokenizer: Tokenizer, texts: Sequence[str], context: int, stride: int | None) -> Windows:
    """Cut one or more documents, each with its end-of-text token, into windows of `context` tokens (see `score_windows`).

    Raises UserError if the stride is not between 1 and the context length.
    """
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise UserError(f"--stride must be between 1 and the context length {context}, not {stride}")
    begin, end = tokenizer.special_id(END_OF_TEXT), tokenizer.end_ids[0]
    encoded = encode_texts(tokenizer, texts)
    documents = [
        sliding_windows([begin, *ids] if isinstance(text, Beginning) else [begin, *ids, end], context, stride)
        for text, ids in zip(texts, encoded, strict=True)
    ]
    x, y = (torch.cat(side) for side in zip(*documents, strict=True))
    weights = torch.from_numpy(tokenizer.token_bytes())[y.clamp(min=0)].mul(y != IGNORE).sum(dim=1)
    parts = weights.split([len(inputs) for inputs, _ in documents])
    return Windows(x, y, [_shares(size_of(text), part.tolist()) for text, part in zip(texts, parts, strict=True)])


def _shares(whole: int, weights: list[int]) -> list[int]:
    """Split `whole` into integers whose sum is `whole` and which are proportional to `weights`, apart from rounding."""
    if not sum(weights):
        return [whole, *[0] * (len(weights) - 1)]
    ends = [round(whole * mark / sum(weights)) for mark in accumulate(weights)]
    return [end - start for start, end in pairwise([0, *ends])]


def score_documents(
    model: GPT, tokenizer: Tokenizer, texts: Sequence[str], *, stride: int | None = None
) -> list[Score]:
    """Return the score of each document. For the arguments and errors, see `score_windows`."""
    return [total(scores) for scores in score_windows(model, tokenizer, texts, stride=stride)]


def total(scores: Sequence[Score]) -> Score:
    """Return the sum of the losses, of the bytes and of the tokens of several scores."""
    return Score(sum(s.nats for s in scores), sum(s.bytes for s in scores), sum(s.tokens for s in scores))


def sampling_units(documents: list[list[Score]]) -> tuple[list[Score], str]:
    """Return the scores of the units that a confidence interval treats as independent, and the name of the units.

    `documents` has the scores of each document's windows. If there are at least 20 documents (MIN_UNITS), each document is a
    unit, and the name is "documents". If there are fewer, each document is divided into blocks of neighbouring windows. Each
    block is a unit, and the name is "blocks of the text". If no document has more than one block, the units are again whole
    documents, and the name is "documents". The sum over all units equals the sum over all windows.
    """
    if len(documents) >= MIN_UNITS:
        return [total(scores) for scores in documents], "documents"
    windows = sum(map(len, documents))
    # Neighbouring windows are similar, and long blocks are nearly independent, but a variance needs about twenty blocks.
    size = max(1, -(-windows // MAX_BLOCKS), min(4, windows // MIN_UNITS))
    blocks = [total(scores[i : i + size]) for scores in documents for i in range(0, len(scores), size)]
    return blocks, "blocks of the text" if len(blocks) > len(documents) else "documents"


def interval(scores: Sequence[Score]) -> float | None:
    """Return half the width of the 95 % confidence interval of bits per byte over independent units; None for a single unit.

    Bits per byte is a ratio of sums. Its variance is computed by linearisation (Cochran, Sampling Techniques, eq. 6.13), the
    limit of a bootstrap that draws the units with replacement.
    """
    n, whole = len(scores), total(scores)
    if n < 2:
        return None
    ratio = whole.nats / whole.bytes
    squares = sum((s.nats - ratio * s.bytes) ** 2 for s in scores)
    return t95(n - 1) * math.sqrt(n / (n - 1) * squares) / whole.bytes / math.log(2)
