"""Sample the next token: pure functions on logits.

Repetition penalty, temperature, top-k, top-p and min-p are applied in this order, each to the result of those before it.
The logit of an excluded token is -inf; the likeliest token is always kept. `numpy_ref/sampling.py` computes the same with
NumPy, and a test compares the two.
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
    """Apply the repetition penalty to the `recent` ids, except `exempt` (special) ones: logits (V,) -> (V,).

    z / penalty where z > 0, z * penalty where z < 0 (CTRL, arXiv:1909.05858), once for each id however often it occurred;
    dividing a negative logit would make the token likelier.
    """
    seen = torch.tensor(sorted(set(recent) - set(exempt)), dtype=torch.long, device=logits.device)
    z = logits[seen]
    return logits.index_copy(0, seen, torch.where(z > 0, z / penalty, z * penalty))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits (B, V), and those equal to the k-th; set the others to -inf."""
    if k >= logits.shape[-1]:
        return logits
    smallest = torch.topk(logits, k).values[..., -1, None]
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of tokens whose probabilities sum to at least p; set the other logits (B, V) to -inf.

    Nucleus sampling, arXiv:1904.09751.
    """
    probability = logits.softmax(dim=-1)
    # All tokens less likely than (1 - p) / V sum to less than 1 - p, so the nucleus is among the others. These are mostly
    # a few hundred, while sorting a whole vocabulary takes longer than a token of a small model.
    candidates = (probability >= (1 - p) / logits.shape[-1]).any(dim=0).nonzero()[:, 0]
    return torch.full_like(logits, float("-inf")).index_copy(
        -1, candidates, _nucleus(logits[:, candidates], probability[:, candidates], p)
    )


def _nucleus(logits: Tensor, probability: Tensor, p: float) -> Tensor:
    order = probability.sort(dim=-1, descending=True, stable=True).indices
    ordered = probability.gather(-1, order)
    before = ordered.cumsum(dim=-1) - ordered  # of all likelier tokens; 0 for the likeliest, which is always kept
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(dropped, float("-inf"))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens with at least p times the largest probability (arXiv:2407.01082); set other logits (B, V) to -inf."""
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

    temperature > 0; None leaves a filter out.
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
    """Hold the settings of sampling; raises UserError for a wrong type or range, naming the setting."""

    temperature: float = 0.8  # 0: always the likeliest token
    top_k: int | None = None
    top_p: float | None = 0.95
    min_p: float | None = None
    repetition_penalty: float = 1.0  # 1: none
    last_n: int = 64  # the penalty applies to this number of most recent tokens

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
        """Store Python's own number instead of a NumPy one, which JSON does not accept."""
        object.__setattr__(self, name, value)
        return value


BALANCED = Sampling()
PRESETS = {
    "precise": Sampling(temperature=0.3, top_p=0.8),
    "balanced": BALANCED,
    "creative": Sampling(temperature=1.1, top_p=0.98, repetition_penalty=1.1),
}


def preset(name: str) -> Sampling:
    """Return the preset of that name; raises UserError for an unknown name."""
    if not isinstance(name, str) or name not in PRESETS:
        raise unknown("preset", name, list(PRESETS))
    return PRESETS[name]


def probabilities(logits: Tensor, sampling: Sampling, seen: list[int], exempt: Iterable[int] = ()) -> Tensor:
    """Compute the probabilities to sample from: logits (V,) after the tokens `seen` -> float64 (V,), on the CPU.

    At temperature 0 the likeliest token has probability 1. Raises UserError if the logits are not finite.
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
    """Draw an index with probability proportional to chances (V,), by one uniform number and their cumulative sum.

    `torch.multinomial` draws a number for every index: 250 µs at V = 16,000, as long as the matrices of a small model.
    """
    cumulative = chances.cumsum(dim=0)
    position = torch.rand((), dtype=chances.dtype, generator=generator) * cumulative[-1]
    return int(torch.searchsorted(cumulative[:-1], position, right=True))  # right: an index of chance 0 is never drawn


def choose(
    logits: Tensor, sampling: Sampling, seen: list[int], generator: torch.Generator, exempt: Iterable[int] = ()
) -> int:
    """Sample a token id from logits (V,) after the tokens `seen`, on the CPU, so that it is the same on every device."""
    chances = probabilities(logits, sampling, seen, exempt)
    if sampling.temperature == 0:
        return int(chances.argmax())
    return draw(chances, generator)
