"""Every part that computes the model's distribution on its own computes that of `GPT.forward`, with every option.

Losses do not store the logits of a whole batch, decoders have packed weights, and ONNX needs a graph of its own. An option
that changes the logits must therefore be written several times. A new option is in MODELS without a change here.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from model_variants import MODELS, decisive_model
from torch import Tensor
from torch.nn import functional as F

from positron.evaluation.scoring import window_losses
from positron.inference.compiled import CompiledDecoder
from positron.inference.decoder import Decoder
from positron.inspection.inside import log_probabilities, look_inside
from positron.interop.onnx_graph import CachedGraph, PlainGraph
from positron.model.gpt import GPT
from positron.model.kernels.distillation import linear_distillation
from positron.training.objective.preference import answer_log_probs

V, B, T = 11, 2, 9


def ids(rows: int = B, length: int = T) -> Tensor:
    return torch.randint(0, V, (rows, length), generator=torch.Generator().manual_seed(1))


def decoded(make: Callable[[GPT], Decoder]) -> Callable[[GPT, Tensor], Tensor]:
    """Read two tokens of each row as its prompt, then one token at a time."""

    def read(model: GPT, x: Tensor) -> Tensor:
        decoder, rows = make(model).with_empty_cache(len(x)), list(range(len(x)))
        logits = [decoder.prefill(rows, x[:, :2].tolist())]
        logits += [decoder.step(column) for column in x[:, 2:].T]
        return torch.stack(logits, dim=1).float().log_softmax(-1)  # (B, T - 1, V)

    return read


def cached_graph(model: GPT, x: Tensor) -> Tensor:
    config = model.config
    nothing = model.wte.weight.new_zeros(config.n_layer, len(x), config.kv_heads, 0, config.d_head)
    first, keys, values = CachedGraph(model)(x[:, :4], nothing, nothing, x[:, :1])
    second, _, _ = CachedGraph(model)(x[:, 4:], keys, values, x[:, 3:4])
    return torch.stack((first, second), dim=1).log_softmax(-1)


def losses(model: GPT, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none").view_as(y)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> GPT:
    return decisive_model(request.param, V)


@pytest.mark.parametrize(
    ("read", "places"),
    [
        (lambda model, x: log_probabilities(model, look_inside(model, x).stream[-1]).float(), slice(0, T)),
        (lambda model, x: PlainGraph(model)(x).log_softmax(-1), slice(0, T)),
        (cached_graph, [3, T - 1]),
        (decoded(Decoder), slice(1, T)),
        (decoded(CompiledDecoder), slice(1, T)),
    ],
    ids=["inspector", "ONNX", "ONNX with a cache", "decoder", "compiled decoder"],
)
@torch.inference_mode()
def test_a_reader_of_the_distribution_has_that_of_forward(
    model: GPT, read: Callable[[GPT, Tensor], Tensor], places: slice | list[int]
) -> None:
    wanted = model(ids()).log_softmax(-1)[:, places]
    torch.testing.assert_close(read(model, ids()), wanted, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_loss_without_stored_logits_is_that_of_forward(model: GPT) -> None:
    x, y = ids(length=T + 1)[:, :-1], ids(length=T + 1)[:, 1:]
    wanted = losses(model, x, y)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(model(x, y), wanted.sum(), **close)
    torch.testing.assert_close(window_losses(model, x, y), wanted, **close)
    torch.testing.assert_close(answer_log_probs(model, x, y), -wanted.sum(1), **close)


@torch.inference_mode()
def test_distillation_compares_the_distributions_of_forward(model: GPT) -> None:
    student, x, y = decisive_model("plain", V), ids(length=T + 1)[:, :-1], ids(length=T + 1)[:, 1:]
    for parameter in student.parameters():
        parameter.mul_(0.9)
    for taught, teacher in ((student, model), (model, student)):
        states = [(teacher.hidden(x).flatten(0, 1), teacher.head_weight)]
        _, ce, kl = linear_distillation(
            taught.hidden(x).flatten(0, 1), taught.head_weight, y.flatten(), states, 0.5, 1.0
        )
        log_q, log_s = (each(x).log_softmax(-1) for each in (teacher, taught))
        torch.testing.assert_close(ce, losses(taught, x, y).sum(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(kl, (log_q.exp() * (log_q - log_s)).sum(), rtol=1e-4, atol=1e-4)
