"""Choosing the next token: pure functions on logits.

Repetition penalty, temperature, top-k, top-p, min-p: each sees what the ones before it left. A token that was dropped
has a logit of -inf, and no later filter brings it back; the likeliest token always stays. `numpy_ref/sampling.py` is
the same on NumPy arrays, and a test holds the two against each other.
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
    """(V,): each of the `recent` ids once, however often it was seen, but for `exempt` (special) ones, gets less likely.

    z / penalty where z > 0, z * penalty where z < 0 (CTRL, arXiv:1909.05858): dividing a negative one would raise it.
    """
    seen = torch.tensor(sorted(set(recent) - set(exempt)), dtype=torch.long, device=logits.device)
    z = logits[seen]
    return logits.index_copy(0, seen, torch.where(z > 0, z / penalty, z * penalty))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """(B, V): all but the k largest become -inf."""
    if k >= logits.shape[-1]:
        return logits
    smallest = torch.topk(logits, k).values[..., -1, None]
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """(B, V): keeps the fewest tokens whose probabilities reach p (nucleus sampling, arXiv:1904.09751)."""
    probability = logits.softmax(dim=-1)
    # All that are less likely than (1 - p) / V are less than 1 - p together, so the nucleus is among the others: mostly
    # some hundred, while sorting a whole vocabulary takes longer than a small model's token.
    found = (probability >= (1 - p) / logits.shape[-1]).any(dim=0).nonzero()[:, 0]
    return torch.full_like(logits, float("-inf")).index_copy(
        -1, found, _nucleus(logits[:, found], probability[:, found], p)
    )


def _nucleus(logits: Tensor, probability: Tensor, p: float) -> Tensor:
    order = probability.sort(dim=-1, descending=True, stable=True).indices
    ordered = probability.gather(-1, order)
    before = ordered.cumsum(dim=-1) - ordered  # of the likelier tokens; 0 for the likeliest, which always stays
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(dropped, float("-inf"))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """(B, V): keeps the tokens with at least p times the likeliest one's probability (arXiv:2407.01082)."""
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), float("-inf"))


def filtered(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Logits (B, V), temperature > 0 -> float64 (B, V) with -inf for what must not be drawn."""
    logits = logits.double() / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None and top_p < 1:
        logits = keep_top_p(logits, top_p)
    if min_p is not None and min_p > 0:
        logits = keep_min_p(logits, min_p)
    return logits


COLDEST = 1e-100  # logits divided by a smaller temperature overflow
PENALTIES = (1e-6, 1e6)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. UserError for a wrong type or range, naming the setting."""

    temperature: float = 0.8  # 0: always the likeliest
    top_k: int | None = None
    top_p: float | None = 0.95
    min_p: float | None = None
    repetition_penalty: float = 1.0  # 1: none
    last_n: int = 64  # tokens that the penalty looks back

    def __post_init__(self) -> None:
        temperature = self._set("temperature", real_number("temperature", self.temperature))
        if temperature != 0 and not COLDEST <= temperature < math.inf:
            raise UserError(
                f"temperature {temperature:g} must be finite and must not be negative (0, or {COLDEST:g} and above)"
            )
        if self.top_k is not None:
            self._set("top_k", whole_number("top_k", self.top_k, least=1))
        for name in ("top_p", "min_p"):
            if getattr(self, name) is not None:
                share = self._set(name, real_number(name, getattr(self, name)))
                if not 0 < share <= 1:
                    raise UserError(f"{name} {share:g} must be above 0 and at most 1")
        penalty = self._set("repetition_penalty", real_number("repetition_penalty", self.repetition_penalty))
        if not PENALTIES[0] <= penalty <= PENALTIES[1]:
            raise UserError(
                f"repetition_penalty {penalty:g} must lie between {PENALTIES[0]:g} and {PENALTIES[1]:g} (1: none)"
            )
        self._set("last_n", whole_number("last_n", self.last_n, least=1))

    def _set(self, name: str, value: float) -> float:
        """Keep Python's own number, whatever kind was given: NumPy's would not go into JSON."""
        object.__setattr__(self, name, value)
        return value


BALANCED = Sampling()
PRESETS = {
    "precise": Sampling(temperature=0.3, top_p=0.8),
    "balanced": BALANCED,
    "creative": Sampling(temperature=1.1, top_p=0.98, repetition_penalty=1.1),
}


def preset(name: str) -> Sampling:
    """Return the settings of that name. UserError where there is none."""
    if not isinstance(name, str) or name not in PRESETS:
        raise unknown("preset", name, list(PRESETS))
    return PRESETS[name]


def probabilities(logits: Tensor, sampling: Sampling, seen: list[int], exempt: Iterable[int] = ()) -> Tensor:
    """What a token is drawn from, float64 (V,), by logits (V,) after the tokens `seen`; 1 for the likeliest at temperature 0.

    UserError for logits of a model that diverged.
    """
    logits = logits.cpu()
    if not logits.max().isfinite():
        raise UserError("the model's output is not finite: it diverged in training; take an earlier checkpoint")
    if sampling.repetition_penalty != 1:
        logits = penalize(logits, seen[-sampling.last_n :], sampling.repetition_penalty, exempt)
    if sampling.temperature == 0:
        return torch.zeros_like(logits, dtype=torch.float64).index_fill_(0, logits.argmax(), 1.0)
    kept = filtered(
        logits[None],
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
    )
    return kept.softmax(dim=-1)[0]


def draw(chances: Tensor, generator: torch.Generator) -> int:
    """An index of chances (V,), whose sum is any: where a uniform number falls in their running sum.

    `torch.multinomial` draws a number for every index: 250 µs at 16,000, as long as a small model's matrices take.
    """
    upto = chances.cumsum(dim=0)
    place = torch.rand((), dtype=chances.dtype, generator=generator) * upto[-1]
    return int(torch.searchsorted(upto[:-1], place, right=True))  # right: an index of chance 0 is never hit


def choose(
    logits: Tensor, sampling: Sampling, seen: list[int], generator: torch.Generator, exempt: Iterable[int] = ()
) -> int:
    """A token id from logits (V,) after the tokens `seen`. Drawn on the CPU: the same on every device."""
    chances = probabilities(logits, sampling, seen, exempt)
    if sampling.temperature == 0:
        return int(chances.argmax())
    return draw(chances, generator)
