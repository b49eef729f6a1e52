"""Compute what the inspector, the page *Look inside*, shows for a model and a prompt (see `lookdata.LookData`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from positron.inspection.ablation import ablated
from positron.inspection.inside import log_probabilities, look_inside
from positron.inspection.lookdata import (
    Ablation,
    AblationResult,
    Focus,
    Lens,
    LookData,
    Prediction,
    Scores,
    Shape,
    Token,
)
from positron.inspection.tokens import Vocabulary, digits, entropy
from positron.model.gpt import GPT
from positron.system.errors import UserError
from positron.text.tokenizer import Tokenizer

MAX_TOKENS = 512  # maximum number of tokens of a prompt, including `<|endoftext|>`
MAX_ATTENTION = 2_000_000  # maximum number of attention weights in one answer; each has 6 to 8 bytes of JSON
TOP, LENS_TOP, MAX_TOP = 10, 3, 50


def look(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    chats: bool = False,
    run: str = "",
    step: int = 0,
    ablations: Sequence[Ablation] = (),
    top: int = TOP,
    focus: int | None = None,
    attention: Sequence[int] | None = None,
    scores: Scores | None = None,
    continuation: str | None = None,
) -> LookData:
    """Run a model on a prompt, and return its predictions, its attention, and the predictions of the logit lens.

    If `chats`, the prompt is a message, and the chat template is added to it. `run` and `step` are copied into the result.
    `ablations` are the parts of the model whose output is set to 0. `top` is the number of likeliest tokens in each prediction.
    `focus` is the position after which the whole distribution of the next token is returned (None: the last position).
    `attention` are the layers whose attention is returned (None: all); if these layers have more than MAX_ATTENTION attention
    weights together, only the first layers are returned. `scores` and `continuation` are copied into the result.

    Raises UserError if the prompt is too long, if a layer, head or position does not exist, or if `top` is not between 1 and
    MAX_TOP.
    """
    vocabulary, config = Vocabulary(tokenizer, chats), model.config
    ids = vocabulary.ids(prompt, min(MAX_TOKENS, config.context_length))
    T = len(ids)
    if not 1 <= top <= MAX_TOP:
        raise UserError(f"top must be between 1 and {MAX_TOP}, not {top}")
    place = T - 1 if focus is None else focus
    if not 0 <= place < T:
        raise UserError(f"focus={place} is not a position of the prompt: give a number from 0 to {T - 1}")
    layers = _layers(attention, config.n_layer, config.n_head * T * (T + 1) // 2)
    subject = ablated(model, ablations) if ablations else model
    idx = torch.tensor([ids], device=model.wte.weight.device)
    inside = look_inside(subject, idx, layers)
    logp = torch.empty(0)  # (T, V) of one depth; keeping all depths would need too much memory
    lens: list[list[Lens]] = []
    for stream in inside.stream:
        logp = log_probabilities(subject, stream[0]).cpu()
        lens.append(_lenses(vocabulary, logp, ids))
    result: AblationResult | None = None
    if ablations:
        before = log_probabilities(model, look_inside(model, idx, ()).stream[-1][0]).cpu()
        result = {"ablations": list(ablations), "before": _bits(before, ids), "after": _bits(logp, ids)}
    return {
        "version": 1,
        "run": run,
        "step": step,
        "shape": shape_of(model),
        "prompt": prompt,
        "chats": chats,
        "tokens": described_tokens(vocabulary, logp, ids),
        "next": _predictions(vocabulary, logp, top, [step["entropy"] for step in lens[-1]]),
        "focus": _focus(vocabulary, logp[place], place),
        "attention": [None if p is None else _rows(p[0]) for p in inside.attention],
        "residual": [[digits(x) for x in _rms(stream[0])] for stream in inside.stream],
        "lens": lens,
        "ablation": result,
        "scores": scores,
        "continuation": continuation,
    }


def shape_of(model: GPT) -> Shape:
    """Return a model's sizes, such as its number of layers, for display on the inspector's page."""
    config = model.config
    return {
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_kv_head": config.kv_heads,
        "d_model": config.d_model,
        "vocab_size": config.vocab_size,
        "context_length": config.context_length,
        "parameters": config.n_params(),
    }


def described_tokens(vocabulary: Vocabulary, logp: Tensor, ids: list[int]) -> list[Token]:
    """Describe the T tokens `ids` of a prompt. `logp` (T, V) has the log probabilities of the token after each position."""
    came = logp[torch.arange(len(ids) - 1), torch.tensor(ids[1:], dtype=torch.long)]  # (T - 1,)
    ranks = 1 + (logp[:-1] > came[:, None]).sum(dim=-1)
    measured = zip(came.exp().tolist(), ranks.tolist(), (-came / math.log(2)).tolist(), strict=True)
    tokens: list[Token] = []
    for i, values in zip(ids, [None, *measured], strict=True):
        p, rank, bits = (None, None, None) if values is None else (digits(values[0]), values[1], digits(values[2]))
        text, special = vocabulary.text(i), i in vocabulary.specials
        tokens.append({"id": i, "text": text, "special": special, "p": p, "rank": rank, "bits": bits})
    return tokens


def _layers(asked: Sequence[int] | None, n_layer: int, weights: int) -> list[int]:
    """Return as many of the layers `asked` (None: all `n_layer` layers) as fit one answer, beginning with the first of them.

    An answer contains at most 2,000,000 attention weights (MAX_ATTENTION). `weights` is the number of attention weights of one
    layer. Raises UserError if a layer does not exist.
    """
    layers = list(range(n_layer)) if asked is None else list(dict.fromkeys(asked))
    for layer in layers:
        if not 0 <= layer < n_layer:
            raise UserError(f"attention names layer {layer}, but the model has only the layers 0 to {n_layer - 1}")
    return layers[: MAX_ATTENTION // weights]


def _predictions(vocabulary: Vocabulary, logp: Tensor, top: int, entropies: list[float]) -> list[Prediction]:
    pairs = zip(vocabulary.candidates(logp, top), entropies, strict=True)
    return [{"top": candidates, "entropy": bits} for candidates, bits in pairs]


def _focus(vocabulary: Vocabulary, logp: Tensor, place: int) -> Focus:
    """Describe the distribution of the token after position `place`, given as log probabilities `logp` (V,).

    The log probabilities serve as logits, because the two differ only by a constant, which softmax ignores.
    """
    (top,) = vocabulary.candidates(logp[None], MAX_TOP)
    return {"position": place, "top": top, "logits": [digits(x) for x in logp.sort(descending=True).values.tolist()]}


def _rows(p: Tensor) -> list[list[list[float]]]:
    """Return the attention of one layer (H, T, T) as lists, rounded to five decimals, without the keys after each query."""
    rounded: list[list[list[float]]] = ((p.double() * 1e5).round() / 1e5).cpu().tolist()
    return [[row[: t + 1] for t, row in enumerate(head)] for head in rounded]


def _rms(stream: Tensor) -> list[float]:
    """Compute the root mean square of each token's vector: (T, C) -> T numbers."""
    values: list[float] = stream.double().square().mean(dim=-1).sqrt().tolist()
    return values


def _lenses(vocabulary: Vocabulary, logp: Tensor, ids: list[int]) -> list[Lens]:
    came = logp[torch.arange(len(ids) - 1), torch.tensor(ids[1:], dtype=torch.long)].exp().tolist()
    probabilities = [*(digits(p) for p in came), None]
    rows = zip(vocabulary.candidates(logp, LENS_TOP), probabilities, entropy(logp).tolist(), strict=True)
    return [{"top": top, "p": p, "entropy": digits(bits)} for top, p, bits in rows]


def _bits(logp: Tensor, ids: list[int]) -> float | None:
    """Return the mean surprise, in bits, of all tokens except the first; None if there is only one token.

    `logp` (T, V) has the log probabilities, in nats, of the token after each of the T `ids`.
    """
    if len(ids) < 2:
        return None
    came = logp[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    return digits(float(-came.mean()) / math.log(2))
