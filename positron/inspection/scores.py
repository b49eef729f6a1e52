"""Measure to which tokens heads attend, on repeated random tokens and on text, and how much the loss rises without a head.

The induction score comes from "In-context Learning and Induction Heads" (Olsson et al. 2022, arXiv:2209.11895). A sequence of
random tokens is repeated once. The score is the attention from a repeated token to the token that followed the first occurrence
of the same token.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from positron.config import IGNORE
from positron.evaluation.eval_texts import encode_texts
from positron.inspection.ablation import ablated
from positron.inspection.inside import look_inside
from positron.inspection.lookdata import HeadScore, Part, Scores
from positron.inspection.tokens import digits
from positron.model.gpt import GPT
from positron.text.tokenizer import END_OF_TEXT, SPECIALS, Tokenizer

ROWS = 16  # number of documents that are computed at a time
SEQUENCES, MAX_REPEATED = 8, 50
MAX_WINDOW = 256  # maximum number of tokens of a document that are read
VALIDATION_BYTES = 8_000  # amount of text; each part of the model needs one forward pass over it


def measure_scores(model: GPT, tokenizer: Tokenizer, texts: list[str]) -> Scores:
    """Measure what each head attends to, and how much the loss rises without each head, attention layer and MLP.

    The attention is measured on the validation documents `texts`, and on sequences that contain some random tokens and then the
    same tokens again. The rise of the loss is measured only on `texts`. At most 256 tokens (MAX_WINDOW) of each document are
    read, or fewer if the context is shorter. If there are no documents, the values that are measured on `texts` are None.
    """
    config = model.config
    previous, induction, first = repeated_scores(model, repeated_rows(model, tokenizer))
    documents = _documents(texts, tokenizer, min(config.context_length, MAX_WINDOW))
    on_text = text_scores(model, documents) if documents else None
    costs, whole = _costs(model, documents)
    heads = [
        [
            HeadScore(
                previous=digits(float(previous[layer, head])),
                induction=digits(float(induction[layer, head])),
                first=digits(float(first[layer, head])),
                text_previous=digits(float(on_text.previous[layer, head])) if on_text else None,
                text_induction=digits(float(on_text.induction[layer, head])) if on_text else None,
                cost=costs.get((layer, head)),
            )
            for head in range(config.n_head)
        ]
        for layer in range(config.n_layer)
    ]
    return {
        "heads": heads,
        "attn": [costs.get((layer, "attn")) for layer in range(config.n_layer)],
        "mlp": [costs.get((layer, "mlp")) for layer in range(config.n_layer)],
        "repeated": _period(model),
        "sequences": SEQUENCES,
        "validation": sum(map(len, documents)) - len(documents),
        "text_chance": digits(on_text.chance) if on_text else None,
        "bits": whole,
    }


def _period(model: GPT) -> int:
    """Return R, the number of random tokens that each row of `repeated_rows` contains twice.

    R is at most MAX_REPEATED. It is so small that a row, which has 1 + 2 R tokens, fits the context, and that the attention
    window of each repeated token reaches the first occurrence of the token. It is at least 1 in any case.
    """
    config = model.config
    limit = (config.context_length - 1) // 2
    return max(1, min(MAX_REPEATED, limit, limit if config.window is None else config.window - 1))


def repeated_rows(model: GPT, tokenizer: Tokenizer) -> Tensor:
    """Return 8 sequences of token ids, (8, 1 + 2 R): the token that begins a document, then R random tokens twice.

    R is at most 50, and less if the context or the attention window is too short (see `_period`). Each sequence has its own
    random tokens. They are the same at every call, and special tokens are not among them.
    """
    specials = [tokenizer.special_id(name) for name in SPECIALS]
    allowed = torch.tensor([i for i in range(tokenizer.vocab_size) if i not in specials])
    drawn = torch.randint(len(allowed), (SEQUENCES, _period(model)), generator=torch.Generator().manual_seed(0))
    half = allowed[drawn]
    begin = torch.full((SEQUENCES, 1), tokenizer.special_id(END_OF_TEXT))
    return torch.cat((begin, half, half), dim=1)


def repeated_scores(model: GPT, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the previous-token, induction and first-token scores, (L, H) each, on the rows of `repeated_rows`.

    They are the mean attention from a token to the previous token, to the token after the first occurrence of the same token,
    and to the first token of the row. The previous-token and first-token scores leave out position 0, which has no previous
    token, and position 1, whose previous token is the first token.
    """
    period = (rows.shape[1] - 1) // 2
    p = _attention(model, rows)
    # position period + 1 + i repeats position 1 + i, which position 2 + i followed
    induction = p.diagonal(offset=1 - period, dim1=-2, dim2=-1)[..., -period:]
    previous = p.diagonal(offset=-1, dim1=-2, dim2=-1)[..., 1:]
    return previous.mean(dim=(1, -1)), induction.mean(dim=(1, -1)), p[..., 2:, 0].mean(dim=(1, -1))


class TextScores(NamedTuple):
    """Hold the scores of all heads on text, (L, H) each, and the score `chance` for comparison.

    L is the number of layers, and H the number of heads. `previous` is the mean attention from a token to the token before it.
    `induction` is the mean attention from a token that has occurred before to all tokens that followed its earlier occurrences.
    `chance` is the induction score of a head that attends to all keys equally.
    """

    previous: Tensor
    induction: Tensor
    chance: float


def text_scores(model: GPT, documents: list[list[int]]) -> TextScores:
    """Compute the previous-token and induction scores of all heads on documents, given as token ids.

    The previous-token score is the mean attention from a token to the previous token, without positions 0 and 1. The induction
    score is measured at each token that has occurred before: the attention from this token to all tokens that followed its
    earlier occurrences is added up. The induction score of a head is the mean of these sums, or 0 if no token occurs twice.
    """
    previous, induction = torch.zeros(2, model.config.n_layer, model.config.n_head, dtype=torch.float64)
    chance, positions, repeats = 0.0, 0, 0
    for ids in documents:
        row = torch.tensor([ids])
        p = _attention(model, row)[:, 0].double()  # (L, H, T, T)
        same = (row[0][:, None] == row[0][None, :]).tril(-1)  # (T, T): query t, key j < t with the same id
        follows = torch.nn.functional.pad(same, (1, 0))[:, :-1]  # key j + 1 of each such j
        is_repeat = same.any(dim=1)
        previous = previous + p.diagonal(offset=-1, dim1=-2, dim2=-1)[..., 1:].sum(dim=-1)
        induction = induction + (p * follows).sum(dim=(-2, -1))
        chance += float((follows.sum(dim=1) / torch.arange(1, len(ids) + 1)).sum())
        positions, repeats = positions + max(0, len(ids) - 2), repeats + int(is_repeat.sum())
    return TextScores(previous / max(1, positions), induction / max(1, repeats), chance / max(1, repeats))


def _attention(model: GPT, rows: Tensor) -> Tensor:
    """Return the attention probabilities of all layers for the ids `rows` (B, T): (L, B, H, T, T), query by key, on the CPU."""
    layers = look_inside(model, rows.to(model.wte.weight.device)).attention
    return torch.stack([p.cpu() for p in layers if p is not None])


def _documents(texts: list[str], tokenizer: Tokenizer, limit: int) -> list[list[int]]:
    """Return at most `limit` ids for each text that is not empty: the token that begins a document, then the text."""
    begin = tokenizer.special_id(END_OF_TEXT)
    return [[begin, *ids][:limit] for ids in encode_texts(tokenizer, texts) if ids]


def _costs(model: GPT, documents: list[list[int]]) -> tuple[dict[tuple[int, int | Part], float], float | None]:
    """Return the rise of the loss without each part of the model, by (layer, part), and the loss of the whole model.

    A part is the number of a head, "attn" or "mlp". Both results are in bits per token. Without documents, returns ({}, None).
    """
    if not documents:
        return {}, None
    rows = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in documents], batch_first=True)
    lengths = torch.tensor(list(map(len, documents)))
    is_target = torch.arange(1, rows.shape[1])[None] < lengths[:, None]
    x, y = rows[:, :-1], rows[:, 1:].masked_fill(~is_target, IGNORE)
    device = model.wte.weight.device

    @torch.no_grad()
    def bits(model: GPT) -> float:
        parts = zip(x.split(ROWS), y.split(ROWS), strict=True)
        nats = sum(float(model(part_x.to(device), part_y.to(device))) for part_x, part_y in parts)
        return nats / int(is_target.sum()) / math.log(2)

    whole = bits(model)
    costs: dict[tuple[int, int | Part], float] = {}
    parts: list[int | Part] = [*range(model.config.n_head), "attn", "mlp"]
    for layer in range(model.config.n_layer):
        for part in parts:
            costs[layer, part] = digits(bits(ablated(model, [{"layer": layer, "part": part}])) - whole)
    return costs, digits(whole)
