"""Compute the losses of preference tuning, as functions of the log-probabilities of chosen and rejected answers.

All tensors have the shape (N,), one value for each pair of answers. w and l are the log-probabilities, in nats, of the chosen
and the rejected answer under the model. rw and rl are those under the frozen reference model. numpy_ref/preference.py has the
same formulas, and computes their gradients without autograd.
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from positron.config import PreferenceConfig

MAX_LOG_PROBABILITY = -1e-6  # ORPO's limit for the mean per token: at 0, the odds would be infinite


def is_mean(settings: PreferenceConfig) -> bool:
    """Tell whether the loss uses the mean log-probability per token of an answer, and not the sum."""
    match settings.loss:
        case "dpo":
            return False
        case "ipo" | "simpo" | "orpo":
            return True
        case _:
            assert_never(settings.loss)


def margins(settings: PreferenceConfig, w: Tensor, l: Tensor, rw: Tensor, rl: Tensor) -> Tensor:  # noqa: E741
    """Return for each pair the margin of the chosen answer over the rejected one, from which `losses` computes the loss.

    `w` and `l`: log-probabilities of the chosen and the rejected answers under the model. `rw` and `rl`: those under the
    reference model. All are (N,): means per token if `is_mean(settings)`, otherwise sums. beta is `settings.beta`.

    | loss  | margin                                                       |
    |-------|--------------------------------------------------------------|
    | dpo   | beta ((w - rw) - (l - rl)), the difference of implicit rewards |
    | ipo   | (w - rw) - (l - rl)                                          |
    | simpo | beta (w - l)                                                 |
    | orpo  | log odds(e^w) - log odds(e^l), odds(P) = P / (1 - P)         |
    """
    match settings.loss:
        case "dpo":
            assert settings.beta is not None
            return settings.beta * ((w - rw) - (l - rl))
        case "ipo":
            return (w - rw) - (l - rl)
        case "simpo":
            assert settings.beta is not None
            return settings.beta * (w - l)
        case "orpo":
            return _log_odds(w) - _log_odds(l)
        case _:
            assert_never(settings.loss)


def losses(settings: PreferenceConfig, margin: Tensor, w: Tensor) -> Tensor:
    """Return the loss of each pair from its margin h and the log-probability w of its chosen answer, which only ORPO uses.

    | loss  | loss of a pair                              | source                           |
    |-------|---------------------------------------------|----------------------------------|
    | dpo   | -(1 - e) log sigmoid(h) - e log sigmoid(-h) | arXiv:2305.18290, equation 7     |
    | ipo   | (h - 1 / (2 beta))^2                        | arXiv:2310.12036, equation 17    |
    | simpo | -log sigmoid(h - gamma)                     | arXiv:2405.14734, equation 6     |
    | orpo  | -w - weight log sigmoid(h)                  | arXiv:2403.07691, equations 6, 7 |

    e is `settings.label_smoothing`; beta, gamma and weight are the fields of `settings` with these names.

    The paper on IPO computes the margin from sums of log-probabilities. Here it is computed from means (see `is_mean`), as in
    common implementations, so that long answers do not have larger margins.
    """
    match settings.loss:
        case "dpo":
            return F.softplus(-margin) + settings.label_smoothing * margin
        case "ipo":
            assert settings.beta is not None
            return (margin - 1 / (2 * settings.beta)) ** 2
        case "simpo":
            return F.softplus(settings.gamma - margin)
        case "orpo":
            return -w + settings.weight * F.softplus(-margin)
        case _:
            assert_never(settings.loss)


def _log_odds(w: Tensor) -> Tensor:
    """Return log(P / (1 - P)) for P = e^w, without loss of precision for w near 0."""
    w = w.clamp(max=MAX_LOG_PROBABILITY)
    return w - torch.log(-torch.expm1(w))
