"""Weights of one byte against the numbers they stand for; a draft's proposals against the large model's own chances."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from positron import load
from positron.config import GPTConfig
from positron.inference import speculative
from positron.inference.decoder import Decoder
from positron.inference.engine import Engine
from positron.inference.int8 import MAX_DIRECT_ROWS, Int8Linear, dequantise, quantise, round_weights
from positron.inference.sampling import Sampling, draw, probabilities
from positron.inference.speculative import SpeculativeEngine
from positron.inference.text_model import Writer
from positron.model.gpt import GPT
from positron.run.load import load_draft
from positron.system.errors import UserError
from positron.text.char_word import CharTokenizer
from positron.train import train

MODERN = {"norm": "rmsnorm", "position": "rope", "activation": "swiglu", "tie_embeddings": False, "qk_norm": True}
SHAPES: list[dict[str, Any]] = [
    {},
    {**MODERN, "smear": True, "n_kv_head": 2},
    {"activation": "relu2", "bias": True, "window": 5},
    {**MODERN, "qk_scale": True, "head_dim": 12, "n_kv_head": 2, "rope_base": 500.0, "norm_eps": 1e-3},
]
EPS = 2.0**-8  # bf16 rounds by this share at most


def model_of(seed: int = 0, vocab_size: int = 50, **options: Any) -> GPT:
    sizes: dict[str, Any] = {"context_length": 24, "d_model": 64, "n_layer": 2, "n_head": 4}
    model = GPT(GPTConfig(vocab_size=vocab_size, **{**sizes, **options})).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@given(st.integers(0, 10**6), st.integers(-40, 30), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_a_weight_is_off_by_half_a_step_of_its_row_at_most(seed: int, exponent: int, width: int) -> None:
    weight = torch.randn(9, width, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    weight[3] = 0
    q, scale = quantise(weight)
    assert q.abs().max() == 127
    assert scale.dtype == torch.bfloat16
    error = (dequantise(q, scale).double() - weight.double()).abs()
    assert (error <= scale.double()[:, None] * (0.5 + 127 * 2.0**-23)).all()  # the division's own rounding
    assert (dequantise(q, scale)[3] == 0).all()


@pytest.mark.parametrize("rows", [1, 3, MAX_DIRECT_ROWS, MAX_DIRECT_ROWS + 1])
@pytest.mark.parametrize("width", [64, 24])
def test_both_products_are_that_of_the_numbers_they_stand_for(rows: int, width: int) -> None:
    """Widths that the operator cannot read, too: it took noise from beyond the rows of 24, or crashed."""
    generator = torch.Generator().manual_seed(rows)
    weight, bias = torch.randn(40, width, generator=generator), torch.randn(40, generator=generator)
    x = torch.randn(rows, width, generator=generator)
    linear = Int8Linear(weight, bias.bfloat16(), "relu2")
    assert linear.direct == (width == 64)
    exact = x.bfloat16().double() @ dequantise(linear.q, linear.scale).double().T
    terms = x.bfloat16().double().abs() @ dequantise(linear.q, linear.scale).double().abs().T  # sums in fp32 of these
    h = exact + bias.bfloat16().double()
    off = 2 * EPS * exact.abs() + EPS * h.abs() + 2.0**-20 * terms + EPS**2 * 4
    found = linear.product(x.bfloat16()).double()
    assert ((found - h).abs() <= off).all()
    wide = Int8Linear(weight, bias.double())(x.double())
    torch.testing.assert_close(wide, x.double() @ dequantise(linear.q, linear.scale).double().T + bias.double())


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_measured_is_what_writes(shape: dict[str, Any]) -> None:
    """The same numbers in the decoder and in the model that is scored; the logits to the rounding of activations."""
    model = model_of(**shape)
    decoder, scored = Decoder(model, 2, torch.int8), round_weights(model, torch.int8)
    for layer, block in zip(decoder.layers, scored.blocks, strict=True):
        assert torch.equal(dequantise(layer.down.q, layer.down.scale), block.mlp.down.weight)
        assert torch.equal(dequantise(layer.qkv.q, layer.qkv.scale)[-16:], block.attn.v.weight[-16:])
    assert torch.equal(dequantise(decoder.head.q, decoder.head.scale), scored.head_weight)
    assert torch.equal(decoder.wte, scored.wte.weight.bfloat16())
    ids = torch.randint(0, 50, (2, 20), generator=torch.Generator().manual_seed(1))
    logits = [decoder.prefill([0, 1], ids[:, :10].tolist())]
    logits += [decoder.step(ids[:, i]) for i in range(10, 20)]
    found = torch.stack(logits, dim=1).double()
    with torch.inference_mode():
        wanted = scored(ids)[:, 9:]
        bf16 = (_bf16_logits(model, ids) - round_weights(model, torch.bfloat16)(ids)[:, 9:]).abs().max()
        quantised = (wanted - model(ids)[:, 9:]).abs().max()
    # activations in bf16 are as far off as in a decoder of bf16 weights, whose weights are just as exact
    assert (found - wanted).abs().max() < 2 * bf16
    assert quantised > 0


def _bf16_logits(model: GPT, ids: Tensor) -> Tensor:
    decoder = Decoder(model, 2, torch.bfloat16)
    logits = [decoder.prefill([0, 1], ids[:, :10].tolist())]
    return torch.stack([*logits, *(decoder.step(ids[:, i]) for i in range(10, 20))], dim=1).float()


LETTERS = "ab"
ONCE = Sampling(temperature=0.9, top_k=4, top_p=0.97, min_p=0.01, repetition_penalty=1.3, last_n=3)
TOKENS = 3
SAMPLES = 500
SHARP = 2  # so that two models differ, and no text is nearly certain


def pair() -> tuple[GPT, GPT, CharTokenizer]:
    tokenizer = CharTokenizer(LETTERS)
    sizes = {"d_model": 16, "n_head": 2, "n_layer": 1, "vocab_size": tokenizer.vocab_size, "context_length": 3}
    large, small = model_of(1, **sizes), model_of(2, **sizes)
    with torch.no_grad():
        for model in (large, small):
            model.wte.weight.mul_(SHARP)
    return large, small, tokenizer


def chances_of_texts(engine: Engine, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """Of all texts of TOKENS tokens, by the model without a cache; the context moves as `Engine` has it."""
    model, context, chances, start = engine.decoder.model, engine.context, {(): 1.0}, 0
    for n in range(len(prompt), len(prompt) + TOKENS):
        start = n - max(1, context // 2) if n - start > context else start
        longer: dict[tuple[int, ...], float] = {}
        for text, chance in chances.items():
            seen = prompt + list(text)
            with torch.inference_mode():
                logits = model(torch.tensor([seen[start:]]))[0, -1]
            p = probabilities(logits, ONCE, seen, engine.specials)
            longer |= {(*text, token): chance * float(p[token]) for token in range(len(p)) if p[token] > 0}
        chances = longer
    return chances


def chi_square(engine: Engine, samples: int) -> float:
    """The probability of texts at least as far from their exact chances as those that the engine writes."""
    prompt = [6, 7]
    chances = chances_of_texts(engine, prompt)
    counts = dict.fromkeys(chances, 0)
    for seed in range(samples):
        rows = engine.ids([prompt], ONCE, max_tokens=TOKENS, stop_ids=(), seed=seed)
        text = tuple(new for (new,) in rows if new is not None)
        if text not in counts:
            return 0.0
        counts[text] += 1
    rare = [text for text in chances if samples * chances[text] < 5]
    expected = [samples * chances[text] for text in chances if text not in rare] + [
        samples * sum(map(chances.get, rare))
    ]
    found = [counts[text] for text in chances if text not in rare] + [sum(counts[text] for text in rare)]
    statistic = sum((f - e) ** 2 / e for f, e in zip(found, expected, strict=True) if e)
    half = torch.tensor([(len(found) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def test_a_draft_changes_no_chance() -> None:
    large, small, tokenizer = pair()
    assert chi_square(SpeculativeEngine(large, tokenizer, small), SAMPLES) > 1e-3


@pytest.mark.parametrize("broken", ["always keep", "draw from p", "never ask"])
def test_the_same_test_finds_a_broken_rule(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    large, small, tokenizer = pair()

    def accept(
        proposed: list[int], q: list[np.ndarray], p: Iterator[np.ndarray], generator: torch.Generator
    ) -> list[int]:
        for i, token in enumerate(proposed):
            wanted = next(p)
            keep = float(torch.rand((), generator=generator)) * q[i][token] < wanted[token]
            if broken == "always keep":
                keep = True
            if not keep:
                rest = wanted if broken == "draw from p" else q[i]
                return [*proposed[:i], draw(rest, generator)]
        return [*proposed, draw(next(p), generator)]

    monkeypatch.setattr(speculative, "accept", accept)
    assert chi_square(SpeculativeEngine(large, tokenizer, small), SAMPLES) < 1e-3


def test_one_step_of_the_rule_has_the_large_models_chances() -> None:
    """Exactly, over all proposals: min(p, q) + (1 - sum min(p, q)) rest / sum rest = p; here by 4,000 draws."""
    p, q = np.array([0.5, 0.3, 0.0, 0.2]), np.array([0.1, 0.2, 0.6, 0.1])
    generator, n = torch.Generator().manual_seed(0), 4000
    counts = np.zeros(4)
    for _ in range(n):
        counts[speculative.accept([draw(q, generator)], [q], iter([p, p]), generator)[0]] += 1
    assert counts[2] == 0
    assert (np.abs(counts / n - p) < 4 * np.sqrt(p * (1 - p) / n) + 1e-12).all()


def counting(read: Callable[..., Tensor], model: GPT, readings: list[int]) -> Callable[..., Tensor]:
    """`Decoder.read` that notes each call for this model."""

    def counted(decoder: Decoder, ids: list[int]) -> Tensor:
        if decoder.model is model:
            readings.append(1)
        return read(decoder, ids)

    return counted


@pytest.mark.parametrize("shape", SHAPES)
def test_the_likeliest_text_is_the_same_with_a_draft(shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through several windows, for drafts that are often right, always and never; with fewer readings where right."""
    monkeypatch.setattr(speculative, "PROPOSALS_PER_ROUND", 3)
    large = model_of(**shape).double()
    near, other = model_of(**shape), model_of(7, **{**shape, "context_length": 10, "d_model": 32})
    tokenizer = CharTokenizer("".join(map(chr, range(65, 65 + 44))))
    greedy = Sampling(temperature=0, repetition_penalty=1.2)
    for prompt in (1, 9, 24, 40):
        ids = [[7 + i % 30 for i in range(prompt)]]
        wanted = list(Engine(large, tokenizer).ids(ids, greedy, max_tokens=60, stop_ids=(), seed=0))
        for draft in (near, other):
            engine = SpeculativeEngine(large, tokenizer, draft)
            readings: list[int] = []
            with monkeypatch.context() as patch:
                patch.setattr(Decoder, "read", counting(Decoder.read, engine.decoder.model, readings))
                assert list(engine.ids(ids, greedy, max_tokens=60, stop_ids=(), seed=0)) == wanted
            assert len(readings) < (35 if draft is near else 61)


@pytest.mark.parametrize("shape", SHAPES)
def test_several_tokens_are_read_as_one_by_one(shape: dict[str, Any]) -> None:
    model = model_of(**shape).double()
    one, several = Decoder(model), Decoder(model)
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7]
    wanted = torch.cat([one.step(torch.tensor([i])) for i in ids])
    found = [several.read(ids[:3]), several.read(ids[3:9])]
    several.lengths[0] = 7  # shortened: what lay behind is forgotten
    found += [several.read(ids[7:9]), several.read(ids[9:])]
    torch.testing.assert_close(torch.cat([*found[:2], found[3]]), wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[2], wanted[7:9], rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="the cache has room for 24"):
        several.read([0] * 11)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one tokenizer."""
    folder = tmp_path_factory.mktemp("runs")
    train(tiny(folder, train__max_steps=30), folder / "outputs" / "large")
    train(tiny(folder, train__max_steps=2, model__d_model=16), folder / "outputs" / "small")
    return folder


@pytest.mark.slow
def test_the_commands_take_a_draft_and_bytes(runs: Path, run_command: Callable[..., Any]) -> None:
    short = ["--run", "large", "--max-tokens", "20", "--temperature", "0"]
    plain = run_command("generate", "Tom", *short, folder=runs)
    drafted = run_command("generate", "Tom", *short, "--draft", "small", folder=runs)
    assert drafted.code == 0, drafted.err
    assert drafted.out == plain.out
    assert run_command("chat", "Tom", *short, "--draft", "small", folder=runs).out == plain.out
    assert run_command("generate", "Tom", *short, "--weights", "int8", folder=runs).out.startswith("Tom")
    refused = run_command("generate", "Tom", *short, "--num-samples", "2", "--draft", "small", folder=runs)
    assert (refused.code, refused.err.count("Traceback")) == (2, 0)
    assert "works only with one text, but --num-samples is 2" in refused.err.splitlines()[-1]
    with pytest.raises(UserError, match="small has another tokenizer"):
        load_draft(str(runs / "outputs" / "small"), CharTokenizer("xyz"))


def test_evaluate_shows_what_bytes_cost(runs: Path, run_command: Callable[..., Any]) -> None:
    found = {}
    for weights in ("fp32", "int8"):
        made = run_command("evaluate", "--run", "large", "--limit", "3000", "--json", "--weights", weights, folder=runs)
        assert made.code == 0, made.err
        facts = json.loads(made.out)
        assert facts["weights"] == weights
        found[weights] = facts["bpb"]
    assert 0 < abs(found["int8"] / found["fp32"] - 1) < 0.005


def test_a_batch_in_bytes_writes_what_each_row_writes_alone(runs: Path) -> None:
    writer = load(str(runs / "outputs" / "large"), weights="int8")
    assert isinstance(writer, Writer)
    prompts = ["Tom", "Once upon a", "A"]
    texts = writer.samples(prompts, max_tokens=25, temperature=0)
    assert texts == [writer.generate(prompt, max_tokens=25, temperature=0) for prompt in prompts]
    with pytest.raises(UserError, match="only one text can be generated at a time"):
        Writer(writer.model, writer.tokenizer, draft=writer.model).samples(prompts)
    assert list(itertools.islice(writer.stream("Tom"), 1))
