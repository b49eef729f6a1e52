"""Benchmark: measure the time of each layer, forward and backward, and of whole training steps.

    python -m numpy_ref.benchmark

If torch is installed, NumPy and torch take turns with the same shapes in float32, so that a change in the machine's speed
affects both libraries. The printed ratio is NumPy's median time divided by torch's. NumPy uses one thread, and torch its
default number of threads; if OMP_NUM_THREADS is set, it is the number of threads of both. The torch model in this file runs in
eager mode and is plain functional code: `F.scaled_dot_product_attention`, `F.cross_entropy`, `torch.optim.AdamW`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from numpy_ref.activation import activation_backward, activation_forward
from numpy_ref.attention import attention_backward, attention_forward
from numpy_ref.command_line import one_line_errors
from numpy_ref.config import GPTConfig
from numpy_ref.gpt import init_params, loss_and_grads
from numpy_ref.linear import Array, linear_backward, linear_forward
from numpy_ref.loss import cross_entropy_backward, cross_entropy_forward
from numpy_ref.norm import layernorm_backward, layernorm_forward
from numpy_ref.optimizers import adamw_init, adamw_step

SHAPES = {
    "d_model 128, 4 layers, batch 12 x 64": (
        GPTConfig(vocab_size=256, context_length=64, d_model=128, n_layer=4, n_head=4),
        12,
    ),
    "tinygpt (15M), batch 2 x 512": (
        GPTConfig(vocab_size=16_000, context_length=512, d_model=320, n_layer=8, n_head=8),
        2,
    ),
}
Job = Callable[[], Any]
TURN_S = 0.3  # seconds for which a job is repeated before the other library's turn


def numpy_jobs(config: GPTConfig, B: int) -> dict[str, Job]:
    """Return the functions to be timed, by name: each layer forward and backward, AdamW's step, and a whole training step.

    `B` is the batch size; the inputs have the context length of `config`. They are random and in float32.
    """
    rng = np.random.default_rng(0)
    T, C, H, V = config.context_length, config.d_model, config.n_head, config.vocab_size

    def random(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    def pair(forward: Callable[..., Any], backward: Callable[..., Any], *arguments: Any) -> Job:
        def job() -> None:
            out, cache = forward(*arguments)
            backward(out, cache)

        return job

    x, wide, logits = random(B, T, C), random(B, T, 4 * C), random(B, T, V)
    q, k, v = random(3, B, H, T, C // H)
    ids = rng.integers(0, V, (B, T))
    params = init_params(config)
    state = adamw_init(params)

    def cross_entropy() -> None:
        cross_entropy_backward(1.0, cross_entropy_forward(logits, ids)[1])

    def step() -> None:
        _, grads = loss_and_grads(params, config, ids, ids)
        adamw_step(params, grads, state, 1e-4)

    return {
        "linear, C to 4C": pair(linear_forward, linear_backward, x, random(4 * C, C)),
        "gelu": pair(activation_forward, activation_backward, wide, "gelu"),
        "layernorm": pair(layernorm_forward, layernorm_backward, x, random(C)),
        "attention": pair(attention_forward, attention_backward, q, k, v),
        "output head, C to V": pair(linear_forward, linear_backward, x, random(V, C)),
        "cross-entropy": cross_entropy,
        "AdamW": lambda: adamw_step(params, params, state, 1e-4),
        "whole training step": step,
    }


def torch_jobs(config: GPTConfig, B: int, torch: Any) -> dict[str, Job]:
    """Return the functions of `numpy_jobs` under the same names, computed by the module `torch` in eager mode and float32."""
    F = torch.nn.functional
    torch.manual_seed(0)
    T, C, H, V = config.context_length, config.d_model, config.n_head, config.vocab_size

    def leaf(*shape: int) -> Any:
        return torch.randn(shape).requires_grad_()

    def pair(forward: Callable[..., Any], *arguments: Any) -> Job:
        out = forward(*arguments).detach().clone()

        def job() -> None:
            for argument in arguments:
                argument.grad = None
            forward(*arguments).backward(out)

        return job

    ids = torch.randint(0, V, (B, T))
    weights = {name: torch.from_numpy(p).requires_grad_() for name, p in init_params(config).items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-4)

    def block(x: Any, i: int) -> Any:
        w = {name.removeprefix(f"blocks.{i}."): p for name, p in weights.items() if name.startswith(f"blocks.{i}.")}
        h = F.layer_norm(x, (C,), w["norm1.weight"])
        q, k, v = (F.linear(h, w[f"attn.{n}.weight"]).view(B, T, H, C // H).transpose(1, 2) for n in "qkv")
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
        x = x + F.linear(y, w["attn.out.weight"])
        h = F.linear(F.layer_norm(x, (C,), w["norm2.weight"]), w["mlp.up.weight"])
        return x + F.linear(F.gelu(h, approximate="tanh"), w["mlp.down.weight"])

    def step() -> None:
        optimizer.zero_grad()
        x = F.embedding(ids, weights["wte.weight"]) + weights["wpe.weight"]
        for i in range(config.n_layer):
            x = block(x, i)
        logits = F.linear(F.layer_norm(x, (C,), weights["norm_f.weight"]), weights["wte.weight"])
        F.cross_entropy(logits.view(-1, V), ids.view(-1)).backward()
        optimizer.step()

    step()  # so that the job of the optimizer has gradients
    return {
        "linear, C to 4C": pair(F.linear, leaf(B, T, C), leaf(4 * C, C)),
        "gelu": pair(lambda x: F.gelu(x, approximate="tanh"), leaf(B, T, 4 * C)),
        "layernorm": pair(lambda x, w: F.layer_norm(x, (C,), w), leaf(B, T, C), leaf(C)),
        "attention": pair(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            *(leaf(B, H, T, C // H) for _ in range(3)),
        ),
        "output head, C to V": pair(F.linear, leaf(B, T, C), leaf(V, C)),
        "cross-entropy": pair(lambda z: F.cross_entropy(z.view(-1, V), ids.view(-1)), leaf(B, T, V)),
        "AdamW": optimizer.step,
        "whole training step": step,
    }


def interleaved_medians(jobs: list[Job], rounds: int) -> list[float]:
    """Give each job `rounds` turns, in alternation with the other jobs; return the median seconds of a call of each job.

    In its turn, a job is called repeatedly for 0.3 seconds (TURN_S), but at least once. After a call, the threads of NumPy or
    torch keep spinning for a while and would slow the next job down. Therefore each turn begins with a pause and with a call
    that is not timed.
    """
    times: list[list[float]] = [[] for _ in jobs]
    for _ in range(rounds):
        for job, seconds in zip(jobs, times, strict=True):
            time.sleep(0.1)
            job()
            turn_start = time.perf_counter()
            while True:
                start = time.perf_counter()
                job()
                seconds.append(time.perf_counter() - start)
                if time.perf_counter() - turn_start > TURN_S:
                    break
    return [float(np.median(seconds)) for seconds in times]


def measure(name: str, config: GPTConfig, B: int, rounds: int, torch: Any) -> None:
    """Time the functions of `numpy_jobs` for one model and print a line for each, and NumPy's speed of training in tokens/s.

    `B` is the batch size. `torch` is the module torch, or None if it is not installed.
    """
    print(f"\n{name}\n{'forward + backward':<22}{'NumPy ms':>10}" + (f"{'torch ms':>10}{'ratio':>8}" if torch else ""))
    in_torch = torch_jobs(config, B, torch) if torch else {}
    for job, run in numpy_jobs(config, B).items():
        seconds = interleaved_medians([run, *([in_torch[job]] if torch else [])], rounds)
        line = f"{job:<22}{seconds[0] * 1e3:>10.2f}"
        if torch:
            line += f"{seconds[1] * 1e3:>10.2f}{seconds[0] / seconds[1]:>8.2f}"
        print(line, flush=True)
    tokens = B * config.context_length
    print(f"{tokens / seconds[0]:,.0f} tokens/s")


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m numpy_ref.benchmark", description="Measure the time of each layer and of a training step."
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="number of turns in which each job is measured (default %(default)s)"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run `python -m numpy_ref.benchmark`; `argv` holds its arguments (None: those in `sys.argv`)."""
    with one_line_errors():
        options = argument_parser().parse_args(argv)
        torch: Any = None
        try:
            torch = importlib.import_module("torch")
        except ImportError:
            print("torch is not installed: measuring NumPy only")
        print(f"{os.cpu_count()} cores" + (f", torch with {torch.get_num_threads()} threads" if torch else ""))
        for name, (config, B) in SHAPES.items():
            measure(name, config, B, max(1, options.rounds), torch)


if __name__ == "__main__":
    main()
