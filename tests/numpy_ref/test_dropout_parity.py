"""Training with dropout equals numpy_ref with the same masks: loss and every gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_parity import (
    OPTIONS,
    PRODUCT,
    batch,
    compare_gradients,
    error,
    gpt_config,
    quarter,
    torch_loss_and_grads,
    twins,
)

import numpy_ref
from positron.model.kernels import attention, dropout

P = 0.25  # a multiple of 2^-16, so that both implementations drop with the same probability
CONTEXT = 21  # torch's SDPA, whose masks cannot be seen, computes windows of 8 tokens or fewer


class Masks:
    """Stand in for a NumPy generator: the numbers fall below P exactly where the recorded masks drop."""

    def __init__(self, recorded: list[torch.Tensor]) -> None:
        self.left = list(recorded)

    def random(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        return self.left.pop(0).numpy().reshape(shape).astype(dtype)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    masks: list[torch.Tensor] = []
    draw = dropout.draw_kept

    def noted(shape: torch.Size, p: float) -> torch.Tensor:
        masks.append(draw(shape, p))
        return masks[-1]

    monkeypatch.setattr(dropout, "draw_kept", noted)
    monkeypatch.setattr(attention, "draw_kept", noted)
    return masks


def compare(options: dict[str, Any], seed: int, recorded: list[torch.Tensor]) -> None:
    recorded.clear()
    config = gpt_config(**options, dropout=P, context_length=CONTEXT)
    model, params = twins(config, seed)
    idx, targets = batch(config, seed)
    torch.manual_seed(seed)
    wanted = torch_loss_and_grads(model, idx, targets)
    assert len(recorded) == 1 + 3 * config.n_layer  # the embeddings; attention and two branches of each layer
    masks = Masks(recorded)
    loss, grads = numpy_ref.loss_and_grads(params, config, idx, targets, rng=masks)
    assert not masks.left
    assert error(np.array(loss), wanted) < 1e-8, options
    compare_gradients(grads, model, options)


def test_parity_with_dropout_for_each_value_of_each_option(recorded):
    usual = {name: values[0] for name, values in OPTIONS.items()}
    for seed, (name, value) in enumerate((n, v) for n, values in OPTIONS.items() for v in values):
        compare({**usual, name: value}, seed, recorded)


@pytest.mark.slow
def test_parity_with_dropout_where_all_quadruples_of_options_meet(recorded):
    for number in quarter():
        compare(PRODUCT[number], number, recorded)


def test_parity_with_dropout_inside_documents(recorded):
    """A mask for documents takes another path than the causal mask."""
    config = gpt_config(dropout=P, context_length=CONTEXT, position="rope")
    model, _ = twins(config, 0)
    idx, _ = batch(config, 0, B=2)
    documents = torch.from_numpy(np.sort(np.random.default_rng(0).integers(0, 3, idx.shape), axis=1))
    torch.manual_seed(0)
    got = model(torch.from_numpy(idx), documents=documents)
    masks = iter(recorded)
    model.eval()
    x, rope, mask = model.embed(torch.from_numpy(idx), documents)

    def dropped(y: torch.Tensor) -> torch.Tensor:
        return y * next(masks) / (1 - P)

    x = dropped(x)
    for block in model.blocks:
        q, k, v = block.attn.heads(block.norm1(x), rope)
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, float("-inf")).softmax(-1)
        kept = next(masks).view_as(scores)
        y = (scores * kept / (1 - P)) @ v
        x = x + dropped(block.attn.out(y.transpose(1, 2).flatten(2)))
        x = x + dropped(block.mlp(block.norm2(x)))
    assert next(masks, None) is None
    torch.testing.assert_close(got, model.logits(model.norm_f(x)))
