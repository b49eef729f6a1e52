"""The compiled decoder against the plain one, for every option; the threads that compute it; who gets it."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from conftest import PATIENCE, PROJECT
from torch import Tensor

from positron.config import Activation, GPTConfig, Norm, Position
from positron.inference.decoder import Decoder
from positron.inference.decoders import make_decoder
from positron.inference.engine import Engine
from positron.inference.int8 import round_weights
from positron.inference.sampling import Sampling
from positron.model.gpt import GPT
from positron.model.lora import add_lora
from positron.system.errors import UserError
from positron.text.char_word import CharTokenizer

pytest.importorskip("numba", reason="the extra `fast` is not installed")
from numba import config, njit
from numba.core.caching import IndexDataCacheFile

from positron.inference import compiled, compiled_step
from positron.inference.compiled import DIRECT_PROMPT, ROWS_TOGETHER, CompiledDecoder

DTYPES = [None, torch.bfloat16, torch.int8]
OPTIONS: list[dict[str, Any]] = [
    {"norm": norm, "position": position, "activation": activation, **more}
    for norm, position, activation in itertools.product(get_args(Norm), get_args(Position), get_args(Activation))
    for more in (
        {},
        {"bias": True, "tie_embeddings": False, "qk_norm": True, "smear": True, "window": 5, "n_kv_head": 1},
    )
]
OPTIONS += [
    {"position": "rope", "qk_norm": True, "qk_scale": True, "head_dim": 8, "rope_base": 500.0, "norm_eps": 1e-2},
    {"position": "learned", "qk_norm": True, "qk_scale": True, "bias": True, "n_head": 4, "n_kv_head": 2},
]


def model_of(**options: Any) -> GPT:
    """Make a model whose sizes are not multiples of the 16 rows of a block, or of its 4 sums."""
    sizes = {"context_length": 48, "d_model": 36, "n_layer": 2, "n_head": 3, "d_ff": 50, "vocab_size": 53}
    model = GPT(GPTConfig(**{**sizes, **options})).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def assert_same_logits(found: Decoder, wanted: Decoder) -> None:
    """Three rows of different lengths, one of them read by matrix products, through all methods."""
    prompts = [[1, 2, 3], [4, 50, 6] * ((DIRECT_PROMPT + 5) // 3), [7]]
    assert_close(found.prefill([0, 1, 2], prompts), wanted.prefill([0, 1, 2], prompts))
    for i in range(4):
        ids = torch.tensor([i, i + 7, 50 - i])
        assert_close(found.step(ids), wanted.step(ids))
    assert_close(found.read([9, 8, 9], 2), wanted.read([9, 8, 9], 2))
    assert_close(found.step_some(torch.tensor([5, 52]), [2, 0]), wanted.step_some(torch.tensor([5, 52]), [2, 0]))
    assert_close(found.prefill([1], [[3, 3]]), wanted.prefill([1], [[3, 3]]))
    assert_close(found.step(torch.tensor([1, 2, 3])), wanted.step(torch.tensor([1, 2, 3])))
    ids, rows = torch.tensor([6, 7, 8, 9, 10]), [2, 0, 0, 1, 2]
    copied, wanted_copy = found.with_rows(rows), wanted.with_rows(rows)
    assert_close(copied.step(ids), wanted_copy.step(ids))
    assert_close(copied.step(ids), wanted_copy.step(ids))
    assert_close(found.step(ids[:3]), wanted.step(ids[:3]))  # the steps of a copy do not change the original
    assert found.lengths == wanted.lengths == [10, 4, 11]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_every_option_has_the_logits_of_the_plain_decoder(options: dict[str, Any]) -> None:
    model = model_of(**options)
    assert_same_logits(CompiledDecoder(model, 3), Decoder(model, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize(
    "options", [OPTIONS[0], *(pytest.param(OPTIONS[i], marks=pytest.mark.slow) for i in (-1, 37, 49))]
)
def test_narrow_weights_have_the_logits_of_the_rounded_model(options: dict[str, Any], dtype: torch.dtype) -> None:
    model = model_of(**options)
    assert_same_logits(CompiledDecoder(model, 3, dtype), Decoder(round_weights(model, dtype), 3))


def test_lora_is_part_of_the_weights() -> None:
    model = model_of()
    add_lora(model, rank=2, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.add_(0.05)
    assert_same_logits(CompiledDecoder(model, 3), Decoder(model, 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_is_the_same_bit_for_bit_in_any_company(dtype: torch.dtype | None, threads: int) -> None:
    """Alone or with 1 to 20 others, at other places, and read at once instead of token by token; by 1 or 2 threads."""
    model = model_of(smear=True, n_head=2, head_dim=16)
    before, count = torch.get_num_threads(), ROWS_TOGETHER + 4
    text = [1, 9, 30, 52, 9, 9, 4]
    try:
        torch.set_num_threads(1)
        alone = CompiledDecoder(model, 1, dtype)
        wanted = torch.cat([alone.prefill([0], [text[:2]]), *(alone.step(torch.tensor([i])) for i in text[2:])])
        torch.set_num_threads(threads)
        many = alone.with_empty_cache(count)
        many.prefill(list(range(count)), [[5] * (1 + i) for i in range(count)])
        assert torch.equal(many.prefill([3], [text]), wanted[-1:])
        for others in (0, 1, 2, 3, 4, 6, ROWS_TOGETHER - 1, count - 1):
            rows = [*range(others), count - 1]
            many.prefill([count - 1], [text[:2]])
            for i, token in enumerate(text[2:], 1):
                logits = many.step_some(torch.tensor([*range(others), token]), rows)
                assert torch.equal(logits[-1], wanted[i])
        alone.lengths[0] = 0
        assert torch.equal(alone.read(text)[1:], wanted)
    finally:
        torch.set_num_threads(before)


def greedy_ids(engine: Engine, prompts: list[list[int]], tokens: int) -> list[list[int | None]]:
    return list(
        engine.ids(prompts, Sampling(temperature=0, repetition_penalty=1.3), max_tokens=tokens, stop_ids=(), seed=0)
    )


def engine_with(decoder: Decoder, model: GPT) -> Engine:
    engine = Engine(model, CharTokenizer("ab"))
    engine.decoder = decoder
    return engine


@pytest.mark.parametrize("dtype", DTYPES)
def test_200_likeliest_tokens_are_those_of_the_plain_model(dtype: torch.dtype | None) -> None:
    """Across several windows, since the context has 48 tokens; in narrow formats those of the rounded model in fp32."""
    model = model_of(position="rope", activation="swiglu", norm="rmsnorm", qk_norm=True, vocab_size=300)
    plain = engine_with(Decoder(round_weights(model, dtype), 0), model)
    wanted = greedy_ids(plain, [[1, 2], [3]], 200)
    assert greedy_ids(Engine(model, CharTokenizer("ab"), dtype=dtype), [[1, 2], [3]], 200) == wanted
    assert len({ids[0] for ids in wanted}) >= 10


def test_a_full_cache_and_wrong_prompts_are_refused() -> None:
    decoder = CompiledDecoder(model_of(), 2)
    decoder.prefill([0, 1], [[1] * 47, [2]])
    decoder.step(torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="cache is full: 48"):
        decoder.step(torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="row 1 would have 50 tokens, but the cache has room for 48"):
        decoder.read([1] * 48, 1)
    for prompts in ([[], [1]], [[1] * 49]):
        with pytest.raises(ValueError, match="each must have 1 to 48"):
            decoder.prefill(list(range(len(prompts))), prompts)
    assert decoder.lengths == [48, 2]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_model_is_noticed(value: float) -> None:
    model = model_of(norm="rmsnorm", activation="swiglu")
    with torch.no_grad():
        model.blocks[0].mlp.down.weight[0, 0] = value
    with pytest.raises(UserError, match="output is not finite"):
        greedy_ids(engine_with(CompiledDecoder(model, 0), model), [[1]], 2)


def test_texts_written_in_several_threads_at_once_are_those_written_alone() -> None:
    model = model_of(vocab_size=300)
    engine = Engine(model, CharTokenizer("ab"))
    prompts = [[[i, 2 * i]] for i in range(4)]
    wanted = [greedy_ids(engine, prompt, 150) for prompt in prompts]
    found: dict[int, list[list[int | None]]] = {}
    writers = [
        threading.Thread(target=lambda i=i: found.update({i: greedy_ids(engine, prompts[i], 150)})) for i in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(PATIENCE)
    assert [found[i] for i in range(4)] == wanted


BESIDE_TORCH = """
import os, torch
from positron.config import GPTConfig
from positron.inference.compiled import CompiledDecoder
from positron.model.gpt import GPT
decoder = CompiledDecoder(GPT(GPTConfig(context_length=64, d_model=32, n_layer=2, n_head=2, vocab_size=60)), 1)
big, logits = torch.randn(400, 400), []
for i in range(60):
    (big @ big).sort()  # threads of OpenMP
    logits.append(decoder.step(torch.tensor([i])))
{fork}
print(torch.get_num_threads(), torch.cat(logits).sum() != 0)
decoder.lengths = [0]
decoder.step(torch.tensor([0]))  # the helper still computes, or spins, when the interpreter ends
"""
FORK = """
decoder.lengths = [0]
child = os.fork()
if child == 0:  # without the threads of its parent
    os._exit(0 if torch.equal(decoder.step(torch.tensor([0])), logits[0]) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.slow
@pytest.mark.parametrize(("threads", "fork"), [("1", ""), ("2", ""), ("2", FORK)])
def test_a_process_with_torchs_threads_ends_in_time(threads: str, fork: str) -> None:
    """Two OpenMP runtimes beside each other were seen to hang; the compiled step uses none."""
    environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", BESIDE_TORCH.format(fork=fork)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout.split(), done.returncode) == ([threads, "tensor(True)"], 0), done.stderr


def test_only_models_in_fp32_on_a_cpu_with_numba_are_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of()
    assert [type(make_decoder(model, 1, dtype)) for dtype in DTYPES] == [CompiledDecoder] * 3
    assert type(make_decoder(model, 1, torch.float64)) is Decoder
    assert type(make_decoder(model_of().double())) is Decoder
    assert type(make_decoder(model_of().bfloat16())) is Decoder
    with monkeypatch.context() as patch:
        patch.setenv("NUMBA_DISABLE_JIT", "1")
        assert type(make_decoder(model)) is Decoder
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert type(make_decoder(model)) is Decoder
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setitem(sys.modules, "positron.inference.compiled", None)  # its import fails
        assert type(make_decoder(model)) is Decoder
        assert "because Numba cannot be imported" in caplog.text


def test_a_compilation_is_announced_once_and_only_if_there_is_one() -> None:
    said: list[int] = []

    @njit
    def doubled(x):
        return x + x

    with compiled_step.on_compilation(lambda: said.append(1)):
        doubled(1), doubled(1.5)
    assert said == [1]
    with compiled_step.on_compilation(lambda: said.append(2)):
        doubled(1)
    assert said == [1]


@pytest.mark.parametrize("fault", ["EOFError", "No space left on device"])
def test_a_damaged_or_full_cache_of_compiled_functions_does_not_end_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str], fault: str
) -> None:
    """A small function stands in for the step, which takes 15 seconds to compile."""

    def do_nothing(thread, spins, owner, sync, plan, model, cache, batch, memory):
        return

    def fill_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, fault)

    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled, "_compiled", set())
    work: Any = njit(cache=True)(do_nothing)
    monkeypatch.setattr(compiled_step, "work", work)
    if fault == "EOFError":
        Path(work._cache._cache_file._index_path).write_bytes(b"")
    else:
        monkeypatch.setattr(IndexDataCacheFile, "_save_data", fill_disk)
    CompiledDecoder(model_of())
    (warning,) = (line for line in logged if "is not kept for later commands" in line)
    assert fault in warning
    assert str(tmp_path) in warning
    assert len(work.signatures) == 1
