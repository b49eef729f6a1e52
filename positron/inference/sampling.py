"""Sample the next token from logits.

Repetition penalty, temperature, top-k, top-p and min-p are applied in this order, each to the result of the previous step. The
filters work in NumPy on the tokens that are left, which are few after top-p. `numpy_ref/sampling.py` computes the same results
on the whole vocabulary, and a test compares the two modules.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from positron.inference.arguments import real_number, shown, unknown, whole_number
from positron.system.errors import UserError


def penalize(logits: Tensor, recent: Iterable[int], penalty: float, exempt: Iterable[int] = ()) -> Tensor:
    """Apply the repetition penalty to the tokens `recent`, except the tokens `exempt`: logits (V,) -> (V,).

    A positive logit is divided by the penalty (CTRL, arXiv:1909.05858). A negative logit is multiplied by it, because a
    division would make the token likelier. The penalty applies once to each token, even if it occurs several times.
    """
    seen = torch.tensor(sorted(set(recent) - set(exempt)), dtype=torch.long, device=logits.device)
    z = logits[seen]
    return logits.index_copy(0, seen, torch.where(z > 0, z / penalty, z * penalty))


def top_k_places(logits: np.ndarray, k: int) -> np.ndarray:
    """Return, in ascending order, the indices of all logits (n,) that are at least as large as the k-th largest logit."""
    if k >= len(logits):
        return np.arange(len(logits))
    return np.flatnonzero(logits >= np.partition(logits, -k)[-k])


_OCTAVE = 64  # buckets for probabilities between x and 2 x
_BUCKETS = 64 * _OCTAVE
_SLACK = 1e-9  # sums of float64 probabilities in another order differ by less


def top_p_places(logits: np.ndarray, p: float) -> np.ndarray:
    """Return, in ascending order, the indices of the smallest set of likeliest tokens with a total probability >= p.

    This is nucleus sampling (arXiv:1904.09751). `logits` (n,) are float64. Of tokens with equal probability, those with smaller
    indices are selected first.

    Sorting 32,000 probabilities takes 3 ms, which is longer than a small model needs for a token. Therefore not all are sorted.
    First, tokens with a probability below (1 - p) / (2 n) are left out. Their total probability is less than 1 - p, so the set
    contains none of them. Then the other tokens are divided into buckets of similar probability. The sums of the buckets are
    added up, from the likeliest bucket on. Only the tokens of the bucket in which the total reaches p are sorted.
    """
    probability = _softmax(logits)
    places = np.flatnonzero(probability >= (1 - p) / (2 * len(logits)))
    values = probability[places]
    bits = values.view(np.int64) >> (
        52 - _OCTAVE.bit_length() + 1
    )  # exponent and leading digits, which grow with the value
    bucket = np.minimum(bits.max() - bits, _BUCKETS - 1)  # bucket 0 contains the likeliest token
    sums = np.bincount(bucket, weights=values, minlength=_BUCKETS).cumsum()
    first, last = np.searchsorted(sums, [p - _SLACK, p + _SLACK])
    before = sums[first - 1] if first else 0.0
    mask = _likeliest_of(values, np.flatnonzero((bucket >= first) & (bucket <= last)), before, p)
    if mask is None:  # rounding decides whether a token is needed: add all probabilities in sorted order instead
        mask = _likeliest_of(values, np.arange(len(values)), 0.0, p)
        assert mask is not None
    else:
        mask |= bucket < first
    selected: np.ndarray = places[mask]
    return selected


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    shares: np.ndarray = weights / weights.sum()
    return shares


def _likeliest_of(values: np.ndarray, candidates: np.ndarray, before: float, p: float) -> np.ndarray | None:
    """Select each candidate for which the sum of all larger probabilities is less than p.

    `values` (n,): probabilities of tokens. `candidates`: the indices of some of them, in ascending order. Of equal
    probabilities, the one with the smaller index counts as larger. `before`: the sum of the probabilities that are larger than
    those of all candidates. Returns bool (n,), True where a candidate is selected. Returns None if `before` is not 0 and
    rounding errors could change the selection.
    """
    order = candidates[np.argsort(-values[candidates], kind="stable")]
    ordered = values[order]
    likelier = (
        before + ordered.cumsum() - ordered
    )  # summed probability of all likelier tokens: 0 for the likeliest token
    if before and (np.abs(likelier - p) < _SLACK).any():
        return None
    mask = np.zeros(len(values), dtype=bool)
    mask[order[likelier < p]] = True
    return mask


def min_p_places(logits: np.ndarray, p: float) -> np.ndarray:
    """Return, in ascending order, the indices of the tokens with at least p times the largest probability.

    `logits` (n,). The source is arXiv:2407.01082.
    """
    return np.flatnonzero(logits >= logits.max() + math.log(p))


def filtered(
    logits: np.ndarray,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Apply temperature, top-k, top-p and min-p to logits (V,).

    Return the ids (n,) of the tokens that are not excluded, in ascending order, and their logits (n,) in float64, divided by
    `temperature`, which must be above 0. The likeliest token is never excluded. A filter whose value is None is left out.
    """
    logits = logits.astype(np.float64) / temperature
    ids = np.arange(len(logits))
    if top_k is not None:
        places = top_k_places(logits, top_k)
        ids, logits = ids[places], logits[places]
    if top_p is not None and top_p < 1:
        places = top_p_places(logits, top_p)
        ids, logits = ids[places], logits[places]
    if min_p is not None and min_p > 0:
        places = min_p_places(logits, min_p)
        ids, logits = ids[places], logits[places]
    return ids, logits


MIN_TEMPERATURE = 1e-100  # logits divided by a smaller temperature overflow
PENALTY_RANGE = (1e-6, 1e6)


@dataclass(frozen=True)
class Sampling:
    """Hold the settings of sampling.

    If `top_k`, `top_p` or `min_p` is None, this filter is not used. Raises UserError, which names the setting, for a value that
    has the wrong type or is out of range.
    """

    temperature: float = 0.8  # 0: always the likeliest token
    top_k: int | None = None
    top_p: float | None = 0.95
    min_p: float | None = None
    repetition_penalty: float = 1.0  # 1: no penalty
    last_n: int = 64  # the penalty applies to the last `last_n` tokens

    def __post_init__(self) -> None:
        temperature = self._set("temperature", real_number("temperature", self.temperature))
        if not 0 <= temperature < math.inf:
            raise UserError(f"temperature must be a finite number that is not negative, not {temperature:g}")
        if 0 < temperature < MIN_TEMPERATURE:
            raise UserError(
                f"temperature={temperature:g} is too small: give 0, which always chooses the likeliest token, or at least "
                f"{MIN_TEMPERATURE:g}"
            )
        if self.top_k is not None:
            count = self._set("top_k", whole_number("top_k", self.top_k))
            if count < 1:
                raise UserError(f"top_k must be at least 1, not {shown(count)} (for no limit, leave it out)")
        for name in ("top_p", "min_p"):
            if getattr(self, name) is not None:
                share = self._set(name, real_number(name, getattr(self, name)))
                if not 0 < share <= 1:
                    off = "1 means no limit" if name == "top_p" else "for no limit, give no min_p"
                    raise UserError(f"{name} must be above 0 and at most 1, not {share:g} ({off})")
        penalty = self._set("repetition_penalty", real_number("repetition_penalty", self.repetition_penalty))
        minimum, maximum = PENALTY_RANGE
        if not minimum <= penalty <= maximum:
            raise UserError(
                f"repetition_penalty must be between {minimum:g} and {maximum:g}, not {penalty:g} (1 means no penalty)"
            )
        self._set("last_n", whole_number("last_n", self.last_n, minimum=1))

    def _set(self, name: str, value: float) -> float:
        """Set the field `name` to `value`, although the dataclass is frozen, and return `value`.

        The user may give a NumPy number for a setting. `value` is this number as an int or a float of Python, because a NumPy
        number cannot be written to a JSON file.
        """
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


def probabilities(logits: Tensor, sampling: Sampling, seen: list[int], exempt: Iterable[int] = ()) -> np.ndarray:
    """Compute the probabilities from which the next token is drawn: logits (V,) -> float64 (V,).

    `seen`: all tokens before the next one. `exempt`: tokens without repetition penalty. At temperature 0 the likeliest token
    has probability 1. Raises UserError if the largest logit is not finite.
    """
    ids, chances = _candidates(logits, sampling, seen, exempt)
    spread = np.zeros(len(logits))
    spread[ids] = chances
    return spread


def _candidates(
    logits: Tensor, sampling: Sampling, seen: list[int], exempt: Iterable[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids (n,) of the tokens that may be sampled, in ascending order, and their probabilities (n,) in float64.

    `logits` (V,): the logits of the next token. `seen`: all tokens before it. `exempt`: tokens without repetition penalty. At
    temperature 0, the likeliest token is the only one, with probability 1.
    """
    values = _as_array(_penalized(logits.cpu(), sampling, seen, exempt))
    best = int(values.argmax())
    _check_finite(float(values[best]))
    if sampling.temperature == 0:
        return np.array([best]), np.ones(1)
    ids, kept_logits = filtered(
        values,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
    )
    return ids, _softmax(kept_logits)


def _as_array(logits: Tensor) -> np.ndarray:
    """Convert logits (V,) on the CPU to an array. Logits in bf16 become fp32, because NumPy has no bf16."""
    values: np.ndarray = (logits.float() if logits.dtype == torch.bfloat16 else logits).detach().numpy()
    return values


def draw(chances: np.ndarray, generator: torch.Generator) -> int:
    """Draw an index i with probability proportional to chances[i].

    One random number is drawn and looked up in the cumulative sum. `torch.multinomial` draws one random number for every
    index. For a vocabulary of 16,000 tokens, `torch.multinomial` takes 250 µs, as long as all matrix products of a small model.
    """
    cumulative = chances.cumsum()
    position = float(torch.rand((), dtype=torch.float64, device=generator.device, generator=generator)) * cumulative[-1]
    return int(np.searchsorted(cumulative[:-1], position, side="right"))  # right: an index of chance 0 is never drawn


def choose(
    logits: Tensor, sampling: Sampling, seen: list[int], generator: torch.Generator, exempt: Iterable[int] = ()
) -> int:
    """Sample the token id that follows the tokens `seen`, whose next-token logits are `logits` (V,).

    `exempt`: tokens without repetition penalty. The sampling runs on the CPU, so that the result is the same for models on all
    devices.
    """
    ids, chances = _candidates(logits, sampling, seen, exempt)
    return int(ids[0] if sampling.temperature == 0 else ids[draw(chances, generator)])


def _penalized(logits: Tensor, sampling: Sampling, seen: list[int], exempt: Iterable[int]) -> Tensor:
    """Return the next-token logits (V,) after the repetition penalty, which makes recent tokens less likely.

    The penalised ids are the last `sampling.last_n` ids of `seen`, the ids of the text so far, except the ids in `exempt`. If
    the penalty is 1 (no penalty), the logits are returned unchanged.
    """
    if sampling.repetition_penalty == 1:
        return logits
    return penalize(logits, seen[-sampling.last_n :], sampling.repetition_penalty, exempt)


def _check_finite(largest: float) -> None:
    """Raise UserError if the largest logit is infinite or NaN. The largest logit is NaN if any logit is NaN."""
    if not math.isfinite(largest):
        raise UserError(
            "the model's output is not finite, because its training diverged or its weights are damaged: train again under "
            "another name= with a lower optimizer.lr=, or import the model again"
        )
