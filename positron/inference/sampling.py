"""Sample the next token: pure functions on logits.

Repetition penalty, temperature, top-k, top-p and min-p are applied in this order, each to the result of the previous step.
An excluded token gets the logit -inf; the likeliest token is never excluded. `numpy_ref/sampling.py` computes the same
results with NumPy, and a test compares the two modules.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from positron.inference.arguments import real_number, unknown, whole_number
from positron.system.errors import UserError


def penalize(logits: Tensor, recent: Iterable[int], penalty: float, exempt: Iterable[int] = ()) -> Tensor:
    """Apply the repetition penalty to the tokens `recent`, except the tokens `exempt`: logits (V,) -> (V,).

    A positive logit is divided by the penalty (CTRL, arXiv:1909.05858). A negative logit is multiplied by it, because a
    division would make the token likelier. The penalty applies once to each token, even if it occurs several times.
    """
    seen = torch.tensor(sorted(set(recent) - set(exempt)), dtype=torch.long, device=logits.device)
    z = logits[seen]
    return logits.index_copy(0, seen, torch.where(z > 0, z / penalty, z * penalty))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits of each row (B, V), and all that equal the k-th largest; set the others to -inf."""
    if k >= logits.shape[-1]:
        return logits
    smallest = torch.topk(logits, k).values[..., -1, None]
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the likeliest tokens whose probabilities add up to at least p; set the other logits (B, V) to -inf.

    This is nucleus sampling (arXiv:1904.09751).
    """
    probability = logits.softmax(dim=-1)
    # The probabilities below (1 - p) / V add up to less than 1 - p, so none of these tokens is needed to reach p. Mostly a
    # few hundred tokens remain. Sorting the whole vocabulary would take longer than a small model needs for a token.
    candidates = (probability >= (1 - p) / logits.shape[-1]).any(dim=0).nonzero()[:, 0]
    return torch.full_like(logits, float("-inf")).index_copy(
        -1, candidates, _nucleus(logits[:, candidates], probability[:, candidates], p)
    )


def _nucleus(logits: Tensor, probability: Tensor, p: float) -> Tensor:
    order = probability.sort(dim=-1, descending=True, stable=True).indices
    ordered = probability.gather(-1, order)
    before = ordered.cumsum(dim=-1) - ordered  # summed probability of all likelier tokens: 0 for the likeliest token
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(dropped, float("-inf"))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens with at least p times the largest probability; set the other logits (B, V) to -inf.

    The source is arXiv:2407.01082.
    """
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), float("-inf"))


def filtered(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Apply temperature, top-k, top-p and min-p: logits (B, V) -> float64 (B, V), -inf for excluded tokens.

    `temperature` must be above 0. A filter whose value is None is left out.
    """
    logits = logits.double() / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None and top_p < 1:
        logits = keep_top_p(logits, top_p)
    if min_p is not None and min_p > 0:
        logits = keep_min_p(logits, min_p)
    return logits


MIN_TEMPERATURE = 1e-100  # logits divided by a smaller temperature overflow
PENALTY_RANGE = (1e-6, 1e6)


@dataclass(frozen=True)
class Sampling:
    """Hold the settings of sampling.

    Raises UserError, which names the setting, for a value that has the wrong type or is out of range.
    """

    temperature: float = 0.8  # 0: always the likeliest token
    top_k: int | None = None
    top_p: float | None = 0.95
    min_p: float | None = None
    repetition_penalty: float = 1.0  # 1: no penalty
    last_n: int = 64  # the penalty applies to the last `last_n` tokens

    def __post_init__(self) -> None:
        temperature = self._set("temperature", real_number("temperature", self.temperature))
        if temperature != 0 and not MIN_TEMPERATURE <= temperature < math.inf:
            raise UserError(
                f"temperature {temperature:g} must be finite and must not be negative: "
                f"use 0, or at least {MIN_TEMPERATURE:g}"
            )
        if self.top_k is not None:
            self._set("top_k", whole_number("top_k", self.top_k, least=1))
        for name in ("top_p", "min_p"):
            if getattr(self, name) is not None:
                share = self._set(name, real_number(name, getattr(self, name)))
                if not 0 < share <= 1:
                    raise UserError(f"{name} {share:g} must be above 0 and at most 1")
        penalty = self._set("repetition_penalty", real_number("repetition_penalty", self.repetition_penalty))
        least, most = PENALTY_RANGE
        if not least <= penalty <= most:
            raise UserError(f"repetition_penalty {penalty:g} must lie between {least:g} and {most:g} (1: none)")
        self._set("last_n", whole_number("last_n", self.last_n, least=1))

    def _set(self, name: str, value: float) -> float:
        """Store a Python number; `value` may have been converted from a NumPy number, which JSON does not accept."""
        object.__setattr__(self, name, value)
        return value


BALANCED = Sampling()
PRESETS = {
    "precise": Sampling(temperature=0.3, top_p=0.8),
    "balanced": BALANCED,
    "creative": Sampling(temperature=1.1, top_p=0.98, repetition_penalty=1.1),
}


def preset(name: str) -> Sampling:
    """Return the preset `name`; raises UserError for an unknown name."""
    if not isinstance(name, str) or name not in PRESETS:
        raise unknown("preset", name, list(PRESETS))
    return PRESETS[name]


def probabilities(logits: Tensor, sampling: Sampling, seen: list[int], exempt: Iterable[int] = ()) -> Tensor:
    """Compute the probabilities from which the next token is drawn: logits (V,) -> float64 (V,), on the CPU.

    `seen`: all tokens before the next one. `exempt`: tokens without repetition penalty. At temperature 0 the likeliest token
    has probability 1. Raises UserError if the largest logit is not finite.
    """
    logits = logits.cpu()
    if not logits.max().isfinite():
        raise UserError("the model's output is not finite, because training diverged: use an earlier checkpoint")
    if sampling.repetition_penalty != 1:
        logits = penalize(logits, seen[-sampling.last_n :], sampling.repetition_penalty, exempt)
    if sampling.temperature == 0:
        return torch.zeros_like(logits, dtype=torch.float64).index_fill_(0, logits.argmax(), 1.0)
    candidates = filtered(
        logits[None],
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
    )
    return candidates.softmax(dim=-1)[0]


def draw(chances: Tensor, generator: torch.Generator) -> int:
    """Draw an index i with probability proportional to chances[i]: one random number is looked up in the cumulative sum.

    `torch.multinomial` draws one random number for every index. For V = 16,000 this takes 250 µs, which is as long as all
    matrix products of a small model.
    """
    cumulative = chances.cumsum(dim=0)
    position = torch.rand((), dtype=chances.dtype, generator=generator) * cumulative[-1]
    return int(torch.searchsorted(cumulative[:-1], position, right=True))  # right: an index of chance 0 is never drawn


def choose(
    logits: Tensor, sampling: Sampling, seen: list[int], generator: torch.Generator, exempt: Iterable[int] = ()
) -> int:
    """Sample the token id that follows the tokens `seen`, whose next-token logits are `logits` (V,).

    The sampling runs on the CPU, so that the result is the same for models on all devices.
    """
    chances = probabilities(logits, sampling, seen, exempt)
    if sampling.temperature == 0:
        return int(chances.argmax())
    return draw(chances, generator)
