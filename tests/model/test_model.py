"""The network: exact counts, causality for every option, the initial loss, tied weights, gradients of micro-batches."""

import dataclasses
import itertools
import math
from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from positron.config import Activation, GPTConfig, Norm, Position
from positron.model.gpt import GPT
from positron.system.errors import UserError

BASE = GPTConfig(vocab_size=61, context_length=24, d_model=32, n_layer=2, n_head=4)
OPTIONS = [
    dataclasses.replace(
        BASE, norm=n, position=p, activation=a, n_kv_head=k, tie_embeddings=t, bias=b, qk_norm=q, smear=q
    )
    for n, p, a, k, (t, b, q) in itertools.product(
        get_args(Norm),
        get_args(Position),
        get_args(Activation),
        (None, 2, 1),
        ((True, False, False), (False, True, True)),
    )
]
OPTIONS += [
    dataclasses.replace(
        BASE, position="rope", bias=b, head_dim=6, qk_norm=True, qk_scale=q, n_kv_head=2, rope_base=500.0
    )
    for b, q in itertools.product((True, False), repeat=2)
]


def ids(config, rows=2, length=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (rows, length or config.context_length), generator=generator)


def randomised(config, seed=0):
    """Every parameter away from its initial value: ones and zeros hide mistakes."""
    model = GPT(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def name_of(config):
    parts = [config.norm, config.position, config.activation, f"kv{config.kv_heads}"]
    return "-".join(parts + (["untied-bias-qk"] if config.bias else []))


@pytest.mark.parametrize("config", OPTIONS, ids=name_of)
def test_every_option_counts_its_parameters_and_never_sees_the_future(config):
    model = randomised(config)
    assert config.n_params() == sum(p.numel() for p in model.parameters())
    names = dict(model.named_parameters())
    assert ("lm_head.weight" in names) != config.tie_embeddings
    assert ("wpe.weight" in names) == (config.position == "learned")
    x = ids(config)
    changed = x.clone()
    changed[:, 13:] = (changed[:, 13:] + 1) % config.vocab_size
    a, b = model(x), model(changed)
    assert torch.equal(a[:, :13], b[:, :13])
    assert not torch.equal(a[:, 13:], b[:, 13:])
    for length in (1, 7):  # a shorter input gives the same as the beginning of a longer one
        assert torch.allclose(model(x[:, :length]), a[:, :length], atol=1e-5)


def test_loss_is_the_sum_of_cross_entropies_without_masked_targets():
    model = randomised(BASE)
    x, y = ids(BASE), ids(BASE, seed=1)
    y[0, :9] = -100
    expected = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100, reduction="sum")
    assert torch.allclose(model(x, y), expected, rtol=1e-5)
    with torch.no_grad():
        assert torch.allclose(model(x, y), expected, rtol=1e-5)


@pytest.mark.parametrize("d_model", [32, 320])
@pytest.mark.parametrize("tie", [True, False])
def test_initial_loss_is_that_of_guessing(d_model, tie):
    config = dataclasses.replace(BASE, vocab_size=5000, d_model=d_model, tie_embeddings=tie)
    x, y = ids(config, 8), ids(config, 8, seed=1)
    loss = GPT(config)(x, y).item() / y.numel()
    assert loss == pytest.approx(math.log(5000), rel=0.02)


def test_initial_weights_follow_the_table_and_depend_on_the_seed_alone():
    config = dataclasses.replace(BASE, d_model=256, d_ff=1024, bias=True, n_layer=3)
    torch.manual_seed(1)
    model = GPT(config, seed=5)
    torch.manual_seed(2)
    again = GPT(config, seed=5)
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)
        if name.endswith("bias"):
            assert (p == 0).all()
        elif "norm" in name:
            assert (p == 1).all()
        else:
            std = 0.02 / math.sqrt(6) if name.endswith(("attn.out.weight", "mlp.down.weight")) else 0.02
            assert p.std().item() == pytest.approx(std, rel=0.05), name
    assert not torch.equal(model.wte.weight, GPT(config, seed=6).wte.weight)


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_gradients_of_micro_batches_add_up_to_that_of_the_batch(micro):
    """With ragged masks, where means of means would be wrong by tens of per cent."""
    model = randomised(BASE).double()
    x, y = ids(BASE, 8), ids(BASE, 8, seed=1)
    for row in range(8):
        y[row, : 3 * row] = -100
    count = (y != -100).sum()
    whole = torch.autograd.grad(model(x, y) / count, list(model.parameters()))
    for part_x, part_y in zip(x.split(micro), y.split(micro), strict=True):
        (model(part_x, part_y) / count).backward()
    for p, expected in zip(model.parameters(), whole, strict=True):
        assert torch.allclose(p.grad, expected, rtol=1e-9, atol=1e-12)


def test_flops_are_those_of_the_matrix_products():
    """The tinygpt shape costs about 98 MFLOP per trained token."""
    config = GPTConfig(vocab_size=16_000, context_length=512, d_model=320, n_layer=8, n_head=8)
    assert config.flops_per_token() / 1e6 == pytest.approx(97.6, abs=0.1)
    from torch.utils.flop_counter import FlopCounterMode

    small = dataclasses.replace(BASE, position="rope")
    with FlopCounterMode(display=False) as counter:
        logits = GPT(small)(ids(small, 1))
        logits.sum().backward()
    attention = 12 * small.n_layer * small.d_model * small.context_length  # the counter knows no causal half
    counted = counter.get_total_flops() / small.context_length
    # torch skips the first layer's input gradient nowhere, so products agree; attention differs by kernel bookkeeping
    assert counted == pytest.approx(6 * small.matmul_params() + attention, rel=0.15)


def test_too_long_an_input_is_refused():
    with pytest.raises(ValueError, match="context length"):
        GPT(BASE)(ids(BASE, 1, 25))


@pytest.mark.parametrize(
    "change",
    [{"n_head": 5}, {"n_kv_head": 3}, {"n_layer": 0}, {"dropout": 1.0}, {"d_ff": 0}, {"vocab_size": 0}, {"window": 0}],
)
def test_impossible_shapes_are_refused(change):
    with pytest.raises(UserError, match=r"model\."):
        dataclasses.replace(BASE, **change)


def test_dropout_acts_in_training_only():
    model = GPT(dataclasses.replace(BASE, dropout=0.5))
    x = ids(BASE)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("grad", [False, True])
def test_news_travels_a_window_a_layer_and_no_further(grad):
    """2 layers with windows of 5: token 20 may know of token 12 at the earliest, which is 2 x (5 - 1) before it."""
    config = dataclasses.replace(BASE, window=5, context_length=80, position="rope")
    model = randomised(config).double()
    x = ids(config, rows=1)
    with torch.set_grad_enabled(grad):
        usual = model(x)
        for place, reaches in ((11, False), (12, True)):
            changed = x.clone()
            changed[0, place] = (x[0, place] + 1) % config.vocab_size
            assert (not torch.equal(model(changed)[0, 20], usual[0, 20])) == reaches
            assert torch.equal(model(changed)[0, place + 9 :], usual[0, place + 9 :])


@pytest.mark.parametrize("window", [None, 1, 7, 24, 100])
def test_operations_count_the_keys_that_are_seen(window):
    config = dataclasses.replace(BASE, window=window)
    seen = [min(t, window or t) for t in range(1, 25)]
    keys = (config.flops_per_token() - 6 * config.matmul_params()) / (12 * config.n_layer * config.d_model)
    assert keys == pytest.approx(sum(seen) / 24)


@pytest.mark.parametrize("position", get_args(Position))
@pytest.mark.parametrize(("n_kv_head", "smear", "window"), [(4, False, None), (2, True, 6)])
def test_a_document_gets_the_same_logits_packed_and_alone(position, n_kv_head, smear, window):
    config = GPTConfig(
        vocab_size=50,
        context_length=40,
        d_model=32,
        n_layer=2,
        n_head=4,
        n_kv_head=n_kv_head,
        position=position,
        smear=smear,
        window=window,
    )
    model = GPT(config, seed=3).double().eval()
    if smear:
        torch.nn.init.normal_(model.smear)
    lengths = [[7, 1, 20, 12], [40]]
    idx = torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(0))
    documents = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths])
    packed = model(idx, documents=documents)
    for row, sizes in enumerate(lengths):
        place = 0
        for size in sizes:
            alone = model(idx[row : row + 1, place : place + size])
            torch.testing.assert_close(packed[row, place : place + size], alone[0], rtol=1e-12, atol=1e-12)
            place += size
    targets = torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(1))
    wanted = torch.nn.functional.cross_entropy(packed.flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(model(idx, targets, documents), wanted)
    assert not torch.allclose(packed, model(idx))


@pytest.mark.parametrize("position", get_args(Position))
@pytest.mark.parametrize(("smear", "window"), [(False, None), (True, 6), (True, 100)])
def test_rows_longer_than_the_context_hold_documents_and_pieces_of_long_ones(position, smear, window):
    """The last document has 300 tokens, which a model with a context of 140 reads as pieces of 140, 140 and 20 tokens."""
    sizes = {"context_length": 140, "d_model": 32, "n_layer": 1, "n_head": 4, "n_kv_head": 2}
    config = GPTConfig(vocab_size=50, position=position, window=window, smear=smear, **sizes)
    model = GPT(config, seed=3).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(4))
    lengths, pieces = [70, 140, 30, 300], [70, 140, 30, 140, 140, 20]
    idx = torch.randint(0, 50, (1, 540), generator=torch.Generator().manual_seed(0))
    packed = model(idx, documents=torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None])
    assert packed.requires_grad  # so attention is computed in blocks of queries, which skip the keys of earlier pieces
    place = 0
    for size in pieces:
        alone = model(idx[:, place : place + size])
        torch.testing.assert_close(packed[:, place : place + size], alone, rtol=1e-12, atol=1e-12)
        place += size


def test_rows_longer_than_the_context_need_documents():
    model = GPT(GPTConfig(vocab_size=50, context_length=8, d_model=32, n_layer=1, n_head=4))
    with pytest.raises(ValueError, match="9 tokens do not fit the context length 8"):
        model(torch.zeros(1, 9, dtype=torch.int64))
