"""The second check of numpy_ref: the torch model, over every combination of architecture options.

Every parameter is random, none is one or zero: with default initialisation a backward that forgets the norm's weight
would pass. Errors are relative to the largest number of the tensor.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from composing import composed
from conftest import PROJECT
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rounding import largest_share, spread, unit_gain

import numpy_ref
from numpy_ref import optimizers as theirs
from numpy_ref import sampling as filters
from numpy_ref.config import InputError
from numpy_ref.gpt import shapes
from numpy_ref.norm import layernorm_forward, rmsnorm_forward
from positron.config import Activation, GPTConfig, Norm, OptimizerConfig, Position, ScheduleConfig
from positron.inference import sampling
from positron.model.gpt import GPT
from positron.system.errors import UserError
from positron.training.averaging import WeightAverage
from positron.training.optim.groups import build_optimizer, clip_gradients, set_lr
from positron.training.optim.schedule import lr_at

OPTIONS: dict[str, Sequence[Any]] = {
    "norm": get_args(Norm),
    "position": get_args(Position),
    "activation": get_args(Activation),
    "n_kv_head": [4, 2, 1],
    "tie_embeddings": [True, False],
    "bias": [False, True],
    "qk_norm": [False, True],
    "smear": [False, True],
    "window": [None, 3],
}
PRODUCT = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]
WORST: dict[str, float] = {}  # what the tests saw, told at the end


def gpt_config(**changes: Any) -> GPTConfig:
    return GPTConfig(
        **{"vocab_size": 17, "context_length": 9, "d_model": 16, "n_layer": 2, "n_head": 4, "d_ff": 24, **changes}
    )


def twins(config: GPTConfig, seed: int, scale: float = 0.3) -> tuple[GPT, dict[str, np.ndarray]]:
    """A torch model and a dictionary for NumPy with the same random float64 parameters."""
    rng = np.random.default_rng(seed)
    params = {name: rng.standard_normal(shape) * scale + 0.1 for name, shape in shapes(config).items()}
    with torch.random.fork_rng():
        model = GPT(config).double().train()
    if config.position == "sinusoidal":  # the buffers were rounded to float32 before .double()
        from positron.model.gpt import sinusoidal_table

        model.positions = sinusoidal_table(config.context_length, config.d_model)
    if config.position == "rope":
        from positron.model.gpt import rope_tables

        model.cos, model.sin = rope_tables(config.context_length, config.d_head, config.rope_base)
    # copied: torch trains in place
    model.load_state_dict({name: torch.from_numpy(p.copy()) for name, p in params.items()})
    return model, params


def batch(config: GPTConfig, seed: int, B: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Ids with repetitions, and targets of which a third carry no loss."""
    rng = np.random.default_rng(seed)
    shape = (B, config.context_length - 1)
    targets = np.where(rng.random(shape) < 0.33, -100, rng.integers(0, config.vocab_size, shape))
    return rng.integers(0, config.vocab_size, shape), targets


def error(got: np.ndarray, wanted: torch.Tensor) -> float:
    target = wanted.detach().numpy()
    assert got.shape == target.shape
    return float(np.abs(got - target).max() / max(np.abs(target).max(), 1e-12))


def torch_loss_and_grads(model: GPT, idx: np.ndarray, targets: np.ndarray) -> torch.Tensor:
    model.zero_grad()
    loss = model(torch.from_numpy(idx), torch.from_numpy(targets)) / max(1, int((targets != -100).sum()))
    loss.backward()
    return loss.detach()


def note(kind: str, value: float) -> float:
    WORST[kind] = max(WORST.get(kind, 0.0), value)
    return value


def quadruples(options: dict[str, Any]) -> set[tuple[tuple[str, Any], ...]]:
    return set(itertools.combinations(options.items(), 4))


@functools.cache
def quarter() -> list[int]:
    """The numbers of 720 architectures, drawn at random, in which every four values of options meet."""
    chosen = sorted(random.Random(0).sample(range(len(PRODUCT)), len(PRODUCT) // 4))
    assert set().union(*map(quadruples, PRODUCT)) == set().union(*(quadruples(PRODUCT[number]) for number in chosen))
    return chosen


@pytest.mark.parametrize("fourth", [0, 1, 2, 3])
def test_parity_of_logits_loss_and_every_gradient(fourth: int) -> None:
    for number in quarter()[fourth::4]:
        compare(PRODUCT[number], seed=number)


@pytest.mark.slow
@pytest.mark.parametrize("norm", OPTIONS["norm"])
@pytest.mark.parametrize("position", OPTIONS["position"])
@pytest.mark.parametrize("activation", OPTIONS["activation"])
def test_parity_of_the_full_product_of_options(norm: str, position: str, activation: str) -> None:
    """2,880 architectures, in 30 tests of 96."""
    chosen = {"norm": norm, "position": position, "activation": activation}
    for number, options in enumerate(PRODUCT):
        if options.items() >= chosen.items():
            compare(options, seed=number)


def compare(options: dict[str, Any], seed: int) -> None:
    """Logits, loss and the gradient of every parameter, relative to the largest number of the tensor."""
    config = gpt_config(**options)
    model, params = twins(config, seed)
    idx, targets = batch(config, seed)
    logits = numpy_ref.forward(params, config, idx)
    assert note("logits", error(logits, model(torch.from_numpy(idx)))) < 1e-8, options
    loss, grads = numpy_ref.loss_and_grads(params, config, idx, targets)
    wanted = torch_loss_and_grads(model, idx, targets)
    assert note("loss", error(np.array(loss), wanted)) < 1e-8, options
    assert set(grads) == set(params)
    compare_gradients(grads, model, options)


def compare_gradients(grads: dict[str, np.ndarray], model: GPT, options: dict[str, Any]) -> None:
    """The gradient of every parameter, relative to the largest number of the tensor."""
    named, config = dict(model.named_parameters()), model.config
    assert set(grads) == set(named)
    for name, parameter in named.items():
        if name.endswith("k.bias") and config.position != "rope" and not config.qk_norm:
            # the same vector on every key raises all scores of a query alike, which softmax does not see
            assert max(np.abs(grads[name]).max(), parameter.grad.abs().max()) < 1e-15, (options, name)
            continue
        assert note("gradient", error(grads[name], parameter.grad)) < 1e-8, (options, name)


# options of imported models, beside each other and beside those which they meet in the code
IMPORTED: dict[str, Sequence[Any]] = {
    "norm": get_args(Norm),
    "position": get_args(Position),
    "bias": [False, True],
    "n_kv_head": [4, 1],
    "head_dim": [None, 6],
    "qk_norm": [True],
    "qk_scale": [False, True],
    "rope_base": [10_000.0, 300.0],
    "norm_eps": [1e-5, 0.05],
}


@pytest.mark.parametrize(
    "position",
    [pytest.param(p, marks=[] if p == "rope" else [pytest.mark.slow]) for p in IMPORTED["position"]],
)
def test_parity_of_the_options_of_imported_models(position: str) -> None:
    for number, values in enumerate(itertools.product(*IMPORTED.values())):
        options = dict(zip(IMPORTED, values, strict=True))
        if options["position"] == position:
            compare(options, seed=number)


NUMBERS = {"vocab_size", "context_length", "d_model", "n_layer", "n_head", "d_ff", "dropout"}  # in the tests below


def test_every_option_exists_in_both_implementations() -> None:
    """The same fields, defaults and choices on both sides, all of which the products above go through."""
    ours = {field.name: field.default for field in dataclasses.fields(GPTConfig)}
    twin = {field.name: field.default for field in dataclasses.fields(numpy_ref.GPTConfig)}
    assert ours == twin
    hints, twin_hints = (get_type_hints(kind) for kind in (GPTConfig, numpy_ref.GPTConfig))
    for name, hint in hints.items():
        if get_origin(hint) is Literal:
            assert get_args(hint) == get_args(twin_hints[name])
        elif hint is bool:
            assert set({**IMPORTED, **OPTIONS}[name]) == {False, True}
    assert set(OPTIONS) | set(IMPORTED) | NUMBERS == set(ours)
    schedules = get_type_hints(ScheduleConfig)["kind"]
    assert set(get_args(schedules)) == set(get_args(theirs.Schedule))


def covering() -> list[dict[str, Any]]:
    """A few architectures in which every pair of two options' values meets at least once."""
    open_pairs = {frozenset(pair) for options in PRODUCT for pair in itertools.combinations(options.items(), 2)}
    chosen = []
    while open_pairs:
        best = max(PRODUCT, key=lambda o: sum(frozenset(p) in open_pairs for p in itertools.combinations(o.items(), 2)))
        chosen.append(best)
        open_pairs -= {frozenset(p) for p in itertools.combinations(best.items(), 2)}
    return chosen


def ten_steps(options: dict[str, Any], seed: int, kind: Literal["adamw", "muon"] = "adamw") -> None:
    """With clipping, warmup and cosine: parameters after each of ten steps."""
    config, schedule = gpt_config(**options), ScheduleConfig(kind="cosine", warmup_steps=3, final_ratio=0.1)
    more = {"momentum": 0.8, "embedding_ratio": 3.0} if kind == "muon" else {}
    law = OptimizerConfig(kind, lr=0.01, weight_decay=0.1, **more)
    init, one_step = {
        "adamw": (theirs.adamw_init, theirs.adamw_step),
        "muon": (theirs.muon_init, theirs.muon_step),
    }[kind]
    model, params = twins(config, seed)
    optimizer = build_optimizer(model.named_parameters(), law, fused=False)
    state = init(params)
    for step in range(1, 11):
        idx, targets = batch(config, seed=1000 * seed + step)
        lr = lr_at(step, 10, peak=law.lr, schedule=schedule)
        assert lr == theirs.lr_at(step, 10, peak=law.lr, kind="cosine", warmup_steps=3, final_ratio=0.1)
        torch_loss_and_grads(model, idx, targets)
        norm = clip_gradients(list(model.parameters()), 0.5)
        set_lr(optimizer.param_groups, lr)
        optimizer.step()
        _, grads = numpy_ref.loss_and_grads(params, config, idx, targets)
        assert error(np.array(theirs.clip_gradients(grads, 0.5)), norm) < 1e-8
        one_step(params, grads, state, lr, law.betas, law.eps, law.weight_decay, **more)
        for name, parameter in model.named_parameters():
            assert note(f"weights after {kind}", error(params[name], parameter)) < 1e-8, (options, step, name)


def test_parity_of_ten_adamw_steps_where_all_pairs_of_options_meet() -> None:
    found = covering()
    assert len(found) < 40
    for seed, options in enumerate(found):
        ten_steps(options, seed)


def test_parity_of_ten_muon_steps() -> None:
    for seed, options in enumerate(covering()[:2]):
        ten_steps(options, seed, "muon")


@pytest.mark.slow
def test_parity_of_ten_muon_steps_where_all_pairs_of_options_meet() -> None:
    for seed, options in enumerate(covering()):
        ten_steps(options, seed, "muon")


@pytest.mark.slow
def test_parity_of_ten_adamw_steps_over_the_full_product() -> None:
    for seed, options in enumerate(PRODUCT):
        ten_steps(options, seed)


@pytest.mark.parametrize("kind", get_args(theirs.Schedule))
@given(step=st.integers(1, 200), horizon=st.integers(1, 150), warmup=st.integers(0, 160), final=st.floats(0, 1))
@example(step=70, horizon=100, warmup=10, final=0.0)  # a trapezoid falls, from step 60 on
@example(step=90, horizon=100, warmup=80, final=0.0)  # a trapezoid would fall before its warmup ends
def test_parity_of_learning_rates(kind: str, step: int, horizon: int, warmup: int, final: float) -> None:
    schedule = ScheduleConfig(kind=kind, warmup_steps=warmup, final_ratio=final)
    wanted = lr_at(step, horizon, peak=0.3, schedule=schedule)
    assert theirs.lr_at(step, horizon, peak=0.3, kind=kind, warmup_steps=warmup, final_ratio=final) == wanted


@settings(max_examples=30, deadline=None)
@given(horizon=st.integers(1, 60), share=st.sampled_from([0.0, 0.01, 0.1, 0.25, 1.0]), seed=st.integers(0, 9))
def test_parity_of_the_mean_of_the_weights_after_each_step(horizon: int, share: float, seed: int) -> None:
    layer, rng = torch.nn.Linear(3, 2).double(), np.random.default_rng(seed)
    means: dict[str, np.ndarray] = {}
    average = WeightAverage(layer, share=share, horizon=horizon)
    for step in range(1, horizon + 1):
        values = {name: rng.standard_normal(p.shape) for name, p in layer.named_parameters()}
        layer.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()})
        average.update(step)
        theirs.average_step(means, values, step, horizon=horizon, share=share)
        assert average.means.keys() == means.keys()
        for name, mean in means.items():
            np.testing.assert_allclose(average.means[name].numpy(), mean, rtol=1e-12, atol=1e-12)
    assert bool(means) == (share > 0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_parity_of_sgd_and_rmsprop(momentum: float) -> None:
    rng = np.random.default_rng(0)
    start = rng.standard_normal((5, 4))
    for init, step, make in (
        (theirs.sgd_init, theirs.sgd_step, lambda p: torch.optim.SGD([p], lr=0.1, momentum=momentum)),
        (theirs.rmsprop_init, theirs.rmsprop_step, lambda p: torch.optim.RMSprop([p], lr=0.1, alpha=0.99, eps=1e-8)),
    ):
        params, parameter = {"w": start.copy()}, torch.nn.Parameter(torch.from_numpy(start.copy()))
        state, optimizer = init(params), make(parameter)
        for _ in range(8):
            g = rng.standard_normal((5, 4))
            parameter.grad = torch.from_numpy(g.copy())
            optimizer.step()
            step(params, {"w": g}, state, 0.1, **({"momentum": momentum} if step is theirs.sgd_step else {}))
            assert error(params["w"], parameter) < 1e-12


@pytest.mark.slow
def test_parity_of_fifty_float32_steps_on_real_text() -> None:
    """Rounding is all that differs between the two loss curves, though Adam enlarges it where a gradient is small."""
    from numpy_ref.train import STORIES_PATH

    text = np.frombuffer(STORIES_PATH.read_bytes()[:40_000], dtype=np.uint8).astype(np.int64) % 97
    config = gpt_config(vocab_size=97, context_length=33, d_model=32, d_ff=128)
    model = GPT(config, seed=3).train()
    start = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    law = OptimizerConfig(lr=1e-3)
    batches = []
    for step in range(50):
        starts = np.random.default_rng(step).integers(0, len(text) - 33, 8)
        windows = text[starts[:, None] + np.arange(33)]
        batches.append((np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])))

    def reference(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        params = {name: values.copy() for name, values in params.items()}
        state, losses = theirs.adamw_init(params), []
        for x, y in batches:
            loss, grads = numpy_ref.loss_and_grads(params, config, x, y)
            assert all(g.dtype == np.float32 for g in grads.values())
            losses.append(loss)
            theirs.clip_gradients(grads, 1.0)
            theirs.adamw_step(params, grads, state, law.lr, law.betas, law.eps, law.weight_decay)
        return {"losses": np.array(losses)}

    optimizer, losses = build_optimizer(model.named_parameters(), law, fused=False), []
    for x, y in batches:
        losses.append(float(torch_loss_and_grads(model, x, y)))
        clip_gradients(list(model.parameters()), 1.0)
        optimizer.step()
    assert losses[-1] < losses[0] - 1
    typical = spread(reference, start)
    _, share = largest_share(reference(start), {"losses": np.array(losses)}, typical, both=True)
    assert note("50 float32 steps, share of the tolerance", share) < 1
    assert typical["losses"] < 1e-4


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.7]),
    top_k=st.sampled_from([None, 1, 3, 20, 50]),
    top_p=st.sampled_from([None, 0.1, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([None, 0.0, 0.02, 0.3, 1.0]),
    penalty=st.sampled_from([1.0, 1.3, 2.0]),
)
def test_parity_of_sampling_filters(seed: int, temperature: float, top_k: Any, top_p: Any, min_p: Any, penalty: float):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(20) * 3
    recent, exempt = rng.integers(0, 20, 12).tolist(), [1, 2]
    rules = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    got = filters.filtered(logits, recent, repetition_penalty=penalty, exempt=exempt, **rules)
    penalised = sampling.penalize(torch.from_numpy(logits), recent, penalty, exempt)
    ids, kept = sampling.filtered(penalised.numpy(), **rules)
    assert np.array_equal(np.flatnonzero(np.isfinite(got)), ids)
    assert np.allclose(got[ids], kept, rtol=1e-12)
    assert got.argmax() == penalised.argmax()
    assert len(ids) > 0


@pytest.mark.parametrize(("p", "kept"), [(0.499, 1), (0.501, 2), (0.799, 2), (0.801, 3), (0.01, 1), (1.0, 4)])
def test_top_p_keeps_the_fewest_tokens_that_reach_it(p: float, kept: int) -> None:
    logits = np.log([0.05, 0.5, 0.15, 0.3])
    for places in (np.flatnonzero(np.isfinite(filters.keep_top_p(logits, p))), sampling.top_p_places(logits, p)):
        assert set(places) == set([1, 3, 2, 0][:kept])


def test_the_two_configurations_have_the_same_fields_and_defaults() -> None:
    import dataclasses

    ours = {f.name: f.default for f in dataclasses.fields(GPTConfig)}
    assert {f.name: f.default for f in dataclasses.fields(numpy_ref.GPTConfig)} == ours


def test_norms_have_the_epsilon_of_torch_by_default() -> None:
    x, weight = np.random.default_rng(0).standard_normal((3, 8)) * 1e-3, np.ones(8)
    wanted = torch.nn.functional.layer_norm(torch.from_numpy(x), (8,))
    assert error(layernorm_forward(x, weight)[0], wanted) < 1e-12
    centered = x - x.mean(axis=-1, keepdims=True)  # for which the two norms are the same
    assert error(rmsnorm_forward(centered)[0], wanted) < 1e-12


def test_the_two_configurations_derive_the_same_facts_and_refuse_the_same_heads() -> None:
    facts = [name for name, value in vars(numpy_ref.GPTConfig).items() if isinstance(value, property)]
    assert {"ff_width", "is_gated", "has_rope"} < set(facts)
    for options in PRODUCT:
        ours = gpt_config(**{**options, "d_ff": None})
        twin = numpy_ref.GPTConfig(**dataclasses.asdict(ours))
        assert {name: getattr(twin, name) for name in facts} == {name: getattr(ours, name) for name in facts}, options
    for position, d_model, head_dim in itertools.product(OPTIONS["position"], (20, 24, 28), (None, 5, 6)):
        options = {"position": position, "d_model": d_model, "head_dim": head_dim}
        ours = refused(lambda options=options: gpt_config(**options))
        numbers = {"vocab_size": 17, "context_length": 9, "n_layer": 2, "n_head": 4}
        assert refused(lambda options=options, numbers=numbers: numpy_ref.GPTConfig(**numbers, **options)) == ours


def refused(make: Any) -> bool:
    """Tell whether `make` raises the error of an impossible configuration."""
    try:
        make()
    except (InputError, UserError):
        return True
    return False


@pytest.mark.parametrize("options", PRODUCT[:: len(PRODUCT) // 24 + 1])
def test_parity_of_names_shapes_and_their_order(options: dict[str, Any]) -> None:
    config = gpt_config(**options)
    assert shapes(config) == {name: tuple(p.shape) for name, p in GPT(config).named_parameters()}
    mine = numpy_ref.init_params(config, seed=1)
    assert {name: p.shape for name, p in mine.items()} == shapes(config)


def test_initial_values_have_the_torch_models_spread() -> None:
    config = gpt_config(d_model=64, n_head=4, d_ff=256, vocab_size=300, context_length=64, bias=True, n_layer=3)
    mine = numpy_ref.init_params(config, seed=1)
    for name, parameter in GPT(config).named_parameters():
        assert np.isclose(mine[name].std(), float(parameter.detach().std(correction=0)), rtol=0.08), name
        assert np.isclose(mine[name].mean(), float(parameter.detach().mean()), atol=2e-3), name


PRESETS = sorted(path.stem for path in (PROJECT / "conf" / "model").glob("[!_]*.yaml"))


@pytest.mark.parametrize(
    "preset", [pytest.param(p, marks=[] if p in ("quickstart", "debug") else [pytest.mark.slow]) for p in PRESETS]
)
def test_parity_of_the_real_presets_in_float32(preset: str) -> None:
    """At full size, on 32 tokens: nothing but rounding differs (tests/rounding.py says how much that may be)."""
    config = GPTConfig(**{**composed(f"model={preset}")["model"], "vocab_size": 2000, "dropout": 0.0})
    params = unit_gain(shapes(config))
    model = GPT(config, seed=1)
    model.load_state_dict({name: torch.from_numpy(values) for name, values in params.items()})
    rng = np.random.default_rng(0)
    idx = rng.integers(0, config.vocab_size, (1, 32))
    targets = np.where(rng.random((1, 32)) < 0.25, -100, rng.integers(0, config.vocab_size, (1, 32)))
    loss = torch_loss_and_grads(model, idx, targets).numpy()
    named = {"loss": loss, **{name: p.grad.numpy() for name, p in model.named_parameters()}}
    # a bias on the keys has a gradient of 0 without rotation and QK-norm: what is computed is rounding
    seen = {n for n in named if not n.endswith("k.bias") or config.position == "rope" or config.qk_norm}

    def reference(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        loss, grads = numpy_ref.loss_and_grads(params, config, idx, targets)
        return {name: value for name, value in {"loss": np.array(loss), **grads}.items() if name in seen}

    typical = spread(reference, params, draws=1 if config.n_params() > 5e7 else 2)
    name, share = largest_share(reference(params), {name: named[name] for name in seen}, typical, both=True)
    assert note("presets in float32, share of the tolerance", share) < 1, name


def test_zz_what_the_parity_tests_saw(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        told = ", ".join(f"{kind} {value:.1e}" for kind, value in WORST.items())
        print(f"  [parity; largest relative errors: {told}]")
