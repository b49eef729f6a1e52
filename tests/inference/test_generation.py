"""Writing: the cache against no cache, batches against single prompts, streams against whole texts."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from conftest import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rounding import largest_share, spread

import numpy_ref
from positron import load
from positron.config import GPTConfig, Position
from positron.inference.decoder import Decoder
from positron.inference.engine import Engine
from positron.inference.packed_linear import can_pack
from positron.inference.sampling import PRESETS, Sampling, choose, probabilities, top_p_places
from positron.inference.speculative import SpeculativeEngine
from positron.inference.writing import cut_at_stop
from positron.model.gpt import GPT
from positron.system.errors import UserError
from positron.system.log import screen_log
from positron.text.char_word import CharTokenizer
from positron.text.tokenizer import SPECIALS
from positron.train import train

CONTEXT, V = 12, 40
SHAPES: list[dict[str, Any]] = [
    {"norm": norm, "activation": activation, "bias": bias, "tie_embeddings": tie, "qk_norm": qk_norm, "smear": qk_norm}
    for norm, activation, bias, tie, qk_norm in [
        ("layernorm", "gelu", True, True, False),
        ("rmsnorm", "swiglu", False, False, True),
        ("rmsnorm", "relu2", False, True, True),
        ("layernorm", "relu", False, False, False),
        ("layernorm", "swish", True, True, True),
    ]
]
SHAPES[2]["window"] = 4
SHAPES[1] |= {"qk_scale": True, "head_dim": 6, "rope_base": 300.0, "norm_eps": 1e-3}


def model_of(**options: Any) -> GPT:
    """A model in float64, its tables too, with weights large enough to tell one token from another."""
    torch.set_default_dtype(torch.float64)
    try:
        model = GPT(GPTConfig(vocab_size=V, context_length=CONTEXT, d_model=16, n_layer=2, n_head=4, **options)).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
    return model


def uncached(model: GPT, seen: list[int], start: int) -> torch.Tensor:
    return model(torch.tensor([seen[start:]]))[0, -1]


CASES = 0


@pytest.mark.parametrize("shape", range(len(SHAPES)))
@pytest.mark.parametrize("n_kv_head", [4, pytest.param(2, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize("position", get_args(Position))
def test_cached_logits_are_the_uncached_ones_at_every_length(position: str, n_kv_head: int, shape: int) -> None:
    """Single and in batches of unequal prompts, up to twice the context, where the last half is read anew."""
    global CASES
    model = model_of(position=position, n_kv_head=n_kv_head, **SHAPES[shape])
    ids = torch.randint(0, V, (3, 2 * CONTEXT + 1), generator=torch.Generator().manual_seed(shape)).tolist()
    wanted = functools.cache(lambda row, start, stop: uncached(model, ids[row][:stop], start))
    for rows, prompts in (([0], (1,)), ([0], (5,)), ([0], (CONTEXT,)), ([0, 1, 2], (1, 4, 9)), ([0, 1, 2], (3, 3, 3))):
        engine = Engine(model, CharTokenizer("".join(map(chr, range(65, 65 + V - 6)))))
        decoder = engine.decoder.with_empty_cache(len(rows))
        seen = [ids[row][:n] for row, n in zip(rows, prompts, strict=True)]
        starts = [0] * len(rows)
        logits = decoder.prefill(rows, seen)
        pairs = []
        while max(map(len, seen)) < 2 * CONTEXT:
            for i in rows:
                if len(seen[i]) - starts[i] > CONTEXT:
                    starts[i] = len(seen[i]) - CONTEXT // 2
                pairs.append((logits[i].clone(), wanted(i, starts[i], len(seen[i]))))
                seen[i] = ids[i][: len(seen[i]) + 1]
            logits = engine._read(decoder, seen, [False] * len(rows))
        cached, expected = (torch.stack(each) for each in zip(*pairs, strict=True))
        torch.testing.assert_close(cached, expected, rtol=1e-10, atol=1e-10)
        CASES += len(pairs)


def test_the_number_of_lengths_compared(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"  [cached against uncached logits: {CASES} cases within 1e-10]")


def tokenizer_of(characters: str = "abcdefghij é😀\n") -> CharTokenizer:
    return CharTokenizer(characters)


def writing_model(tokenizer: CharTokenizer, context: int = 16) -> GPT:
    model = GPT(
        GPTConfig(vocab_size=tokenizer.vocab_size, context_length=context, d_model=16, n_layer=2, n_head=2), seed=1
    ).eval()
    with torch.no_grad():
        model.wte.weight.mul_(20)
    return model


def test_a_row_writes_what_it_would_write_alone() -> None:
    tokenizer = tokenizer_of()
    model = writing_model(tokenizer)
    prompts = [[0, *tokenizer.encode(text)] for text in ("a", "abc def", "éé 😀", "jihgfedcba")]
    texts = Engine(model, tokenizer).texts(prompts, Sampling(), max_tokens=40, seed=7)
    for i, prompt in enumerate(prompts):
        alone = "".join(Engine(model, tokenizer).stream(prompt, Sampling(), max_tokens=40, seed=7 + i))
        assert texts[i] == alone
    assert len(set(texts)) > 1


def test_streams_are_whole_characters_and_together_the_whole_text(tmp_path: Path) -> None:
    from positron.text.sentencepiece_bpe import SentencePieceTokenizer

    tokenizer = SentencePieceTokenizer.train(["once upon a time there was a cat. " * 20], 300)
    model = GPT(
        GPTConfig(vocab_size=tokenizer.vocab_size, context_length=32, d_model=16, n_layer=1, n_head=2), seed=3
    ).eval()
    with torch.no_grad():
        model.wte.weight.mul_(20)
    for seed in range(20):  # mostly single bytes, many of them no UTF-8 at all
        options = {"max_tokens": 30, "stop_ids": (), "seed": seed}
        sampling = Sampling(temperature=2.0, top_p=None)
        pieces = list(Engine(model, tokenizer).stream([0, 5], sampling, **options))
        ids = [new for (new,) in Engine(model, tokenizer).ids([[0, 5]], sampling, **options) if new is not None]
        raw = b"".join(tokenizer.bytes_of(i) for i in ids)
        assert "".join(pieces) == raw.decode("utf-8", errors="replace")


@given(
    text=st.text("ab\n", max_size=30),
    stop=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30)),
)
@example(text="\naa", stop=["a", "\naa"], cuts=[2])
@settings(max_examples=200, deadline=None)
def test_stop_strings_end_a_stream_wherever_they_are_cut(text: str, stop: list[str], cuts: list[int]) -> None:
    stops, held, shown, over = tuple(stop), "", "", False
    for a, b in pairwise(sorted({0, len(text), *(c for c in cuts if c < len(text))})):
        piece, held, over = cut_at_stop(held + text[a:b], stops)
        shown += piece
        if over:
            break
    if not over:
        shown += cut_at_stop(held, stops, at_end=True)[0]
    places = [(text.find(s) + len(s), text.find(s)) for s in stops if s in text]  # what is complete first ends it
    assert shown == (text[: min(places)[1]] if places else text)


def test_a_long_stop_string_is_compared_only_as_far_as_the_text_reaches() -> None:
    class Counted(str):
        beginnings = 0

        def __getitem__(self, key: Any) -> str:
            self.beginnings += 1
            return super().__getitem__(key)

    stop = Counted("abc" * 1000)
    assert cut_at_stop("-abcab", (stop,)) == ("-", "abcab", False)
    assert stop.beginnings <= len("-abcab")


def test_a_full_context_is_told_once_each_time_and_never_crashes() -> None:
    tokenizer, lines = tokenizer_of(), list[str]()
    model = writing_model(tokenizer, context=1)
    list(Engine(model, tokenizer).stream([0], Sampling(), max_tokens=5, stop_ids=()))
    model = writing_model(tokenizer, context=8)
    engine = Engine(model, tokenizer)
    with screen_log(lines.append, level=logging.DEBUG):
        text = list(engine.ids([[0] * 20], Sampling(), max_tokens=50, stop_ids=(), seed=0))
    assert len(text) == 50
    assert len(lines) > 5
    assert "the context of 8 tokens is full" in lines[0]


def test_a_full_context_is_told_as_often_with_a_draft_model_as_without() -> None:
    tokenizer, told = tokenizer_of(), dict[str, list[str]]()
    model, draft = writing_model(tokenizer, context=8), writing_model(tokenizer, context=6)
    for name, engine in (("alone", Engine(model, tokenizer)), ("draft", SpeculativeEngine(model, tokenizer, draft))):
        told[name] = []
        with screen_log(told[name].append, level=logging.DEBUG):
            for prompt in ([0], [0] * 20):
                list(engine.ids([prompt], Sampling(), max_tokens=50, stop_ids=(), seed=0))
    assert told["draft"] == told["alone"] != []


def test_special_tokens_are_not_penalised_for_having_been_said() -> None:
    logits = torch.tensor([5.0, 4.9, 0.0])
    greedy = Sampling(temperature=0, repetition_penalty=2.0)
    generator = torch.Generator()
    assert choose(logits, greedy, [0, 0], generator) == 1
    assert choose(logits, greedy, [0, 0], generator, exempt=[0]) == 0
    assert choose(logits, Sampling(temperature=0, repetition_penalty=2.0, last_n=1), [0, 2], generator) == 0


def sorted_nucleus(logits: np.ndarray, p: float) -> np.ndarray:
    """Sort all tokens, and drop those before which at least p is summed up; of equal ones the first is likelier."""
    probability = np.exp(logits - logits.max())
    probability /= probability.sum()
    order = np.argsort(-probability, kind="stable")
    before = probability[order].cumsum() - probability[order]
    return np.sort(order[before < p])


@given(
    seed=st.integers(0, 10**6),
    p=st.one_of(st.floats(1e-12, 1 - 1e-12), st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.8, 0.95, 0.98])),
    scale=st.floats(0.01, 20),
    size=st.sampled_from([1, 2, 10, 100, 3000]),
    digits=st.sampled_from([0, 1, 15]),
)
@settings(max_examples=150, deadline=None)
def test_a_nucleus_found_by_buckets_is_that_of_all_tokens_sorted(
    seed: int, p: float, scale: float, size: int, digits: int
) -> None:
    """Also where many tokens are equally likely, and where whole groups of these sum up to just p."""
    logits = (np.random.default_rng(seed).standard_normal(size) * scale).round(digits)
    assert np.array_equal(top_p_places(logits, p), sorted_nucleus(logits, p))


@pytest.mark.parametrize("sampling", [*PRESETS.values(), Sampling(temperature=0), Sampling(top_k=40, min_p=0.01)])
@pytest.mark.parametrize("spread", [0.01, 0.3, 2, 5])
def test_the_same_random_number_chooses_the_token_of_the_sorted_nucleus(
    sampling: Sampling, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[list[int]] = []
    for nucleus in (top_p_places, sorted_nucleus):
        monkeypatch.setattr("positron.inference.sampling.top_p_places", nucleus)
        chosen.append([])
        for seed in range(25):
            generator = torch.Generator().manual_seed(seed)
            logits = torch.randn(4000, generator=generator) * spread
            chosen[-1].append(choose(logits, sampling, [1, 2, 3], generator))
    assert chosen[0] == chosen[1]


def test_of_equally_likely_tokens_the_first_is_chosen_at_temperature_0() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        logits = torch.tensor([0.0, 2.0, 1.0, 2.0], dtype=dtype)
        assert choose(logits, Sampling(temperature=0), [], torch.Generator()) == 1
        assert probabilities(logits, Sampling(temperature=0), []).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", 0),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("last_n", 0),
    ],
)
def test_settings_that_make_no_sense_are_named(setting: str, value: float) -> None:
    with pytest.raises(UserError, match=setting):
        Sampling(**{setting: value})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", SHAPES)
def test_packed_weights_give_what_plain_ones_give(
    options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the rounding of the dtype, for a prefill of unequal prompts and steps after it, with every fused activation.

    On a processor that cannot pack weights of the dtype, plain ones are compared with the exact result.
    """
    model = model_of(**options).float()
    packs = can_pack(model.wte.weight.to(dtype))
    found = []
    for packed in (True, False) if packs else (False,):
        if not packed:
            monkeypatch.setattr("positron.inference.packed_linear.can_pack", lambda weight: False)
        decoder = Decoder(model, 2, dtype)
        assert decoder.head.packed == packed
        logits = [decoder.prefill([0, 1], [[1, 2, 3, 4], [5]])]
        logits += [decoder.step(torch.tensor([6 + i, 20 + i])) for i in range(5)]
        found.append(torch.stack(logits).float())
    ids = np.array([[1, 2, 3, 4, 6, 7, 8, 9, 10]])
    params = {name: p.detach().numpy() for name, p in model.named_parameters()}

    def reference(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"logits": np.asarray(numpy_ref.forward(params, model.config, ids))[0, 3:]}

    wanted = reference({name: values.astype(np.float64) for name, values in params.items()})
    typical = spread(reference, params, dtype=str(dtype).removeprefix("torch."), sums="float32")
    for logits in found:
        _, share = largest_share({"logits": logits[:, 0].numpy()}, wanted, typical)
        assert share < 1
    if packs:
        assert largest_share({"logits": found[0].numpy()}, {"logits": found[1].numpy()}, typical, both=True)[1] < 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(tiny(folder, train__max_steps=10), folder / "outputs" / "r")
    return folder


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_model_that_diverged_is_said_to_have(temperature: float) -> None:
    logits = torch.zeros(5).index_fill(0, torch.tensor([2]), float("nan"))
    with pytest.raises(UserError, match="training diverged"):
        choose(logits, Sampling(temperature=temperature), [1], torch.Generator())


def test_three_lines_of_python_write(run: Path) -> None:
    model = load(str(run / "outputs" / "r"))
    text = model.generate("Once", temperature=0.8, top_k=40, max_tokens=20)
    assert text.startswith("Once")
    assert "Once" + "".join(model.stream("Once", temperature=0.8, top_k=40, max_tokens=20)) == text
    assert model.samples(["Once", "Once"], temperature=0.8, top_k=40, max_tokens=20)[0] == text
    with pytest.raises(UserError, match="there is no setting heat: choose from temperature"):
        model.generate("Once", heat=3)
    with pytest.raises(UserError, match="the prompt has 100 tokens, but the model reads at most 31"):
        model.generate("a" * 100)


def test_the_generate_command(run: Path, run_command: Callable[..., Any]) -> None:
    plain = run_command("generate", "Tom", "--max-tokens", "12", "--temperature", "0", folder=run)
    assert plain.code == 0, plain.err
    assert plain.out.startswith("Tom")
    assert "outputs/r" in plain.err
    (run / "p.txt").write_text("Tom\n")
    from_file = run_command("generate", "--file", "p.txt", "--max-tokens", "12", "--temperature", "0", folder=run)
    piped = run_command("generate", "--max-tokens", "12", "--temperature", "0", stdin="Tom\n", folder=run)
    assert plain.out == from_file.out == piped.out
    several = run_command("generate", "Tom", "--num-samples", "3", "--json", "--max-tokens", "5", folder=run)
    rows = [json.loads(line) for line in several.out.splitlines()]
    assert [row["seed"] for row in rows] == [0, 1, 2]
    side_by_side = run_command("generate", "Tom", "--compare", "--max-tokens", "12", "--weights", "bf16", folder=run)
    assert side_by_side.out.split()[:3] == list(PRESETS)
    word = run_command("generate", "bench", "--max-tokens", "5", folder=run)
    assert word.out.startswith("bench"), word.err
    measured = run_command("bench", folder=run)
    assert "tokens/s without cache" in measured.out
    assert len(measured.out.splitlines()) >= 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--temperature", "-1"], "--temperature must be a finite number that is not negative, not -1"),
        (["--top-p", "2"], "--top-p must be above 0 and at most 1, not 2"),
        (["--min-p", "0"], "--min-p must be above 0 and at most 1, not 0 (for no limit, give no min_p)"),
        (["--preset", "wild"], "no preset wild: choose from precise, balanced, creative"),
        (["--run", "nothing"], "no run nothing"),
        (["a" * 200], "the prompt has 200 tokens"),
        (["--file", "nowhere.txt"], "cannot read --file nowhere.txt"),
        (["--weights", "int3"], "--weights int3 is not a weight precision: choose from fp32, bf16, int8"),
        (["--max-tokens", "0"], "--max-tokens must be at least 1, not 0"),
    ],
)
def test_what_generate_cannot_do_is_one_line(
    run: Path, run_command: Callable[..., Any], arguments: list[str], said: str
) -> None:
    made = run_command("generate", *arguments, folder=run)
    assert made.code == 2
    assert said in made.err.splitlines()[-1]
    assert "Traceback" not in made.err


def test_what_a_user_types_is_never_a_special_token() -> None:
    tokenizer = tokenizer_of("abcdefghijklmnopqrstuvwxyz<|>_")
    specials = {tokenizer.special_id(token) for token in SPECIALS}
    for token in SPECIALS:
        assert not specials & set(tokenizer.encode(token))


def test_bfloat16_weights_write_nearly_the_same_logits() -> None:
    model = writing_model(tokenizer_of())
    prompt = [[0, 7, 8, 9]]
    exact, rough = Decoder(model).prefill([0], prompt), Decoder(model, dtype=torch.bfloat16).prefill([0], prompt)
    assert (exact - rough.float()).abs().max() < 0.05 * exact.abs().max()
