"""Measure the tokens per second of a training step (forward, backward, AdamW): Positron, and a loop like nanoGPT's.

Each variant is a process. They are measured in turns (A B C A B C ...), so that a change in the speed of the machine affects
all of them. The nanoGPT variants use the memory allocator of the system; Positron's variant sets the allocator as
`positron.train` does, so that freed memory is kept. Large matrix products, which give the highest speed of the machine, are
measured in the same turns. The table shows medians over the rounds.

A turn begins with a step that is not timed, because the first step after a pause takes 10 to 25 % longer.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scripts.bench import load_average

if TYPE_CHECKING:
    import torch

    from positron.system.children import PipeEnd

SHAPES = {
    "tinygpt": (8, 512, 320, 8, 8, 16_000),
    "nano": (4, 1024, 192, 6, 6, 50_257),
    "debug": (32, 64, 64, 2, 4, 500),
}
VARIANTS = ("nanoGPT-style, fp32", "nanoGPT-style, bf16 autocast", "Positron, bf16")


def plain_gpt(T: int, C: int, L: int, H: int, V: int) -> torch.nn.Module:
    """Build a usual GPT-2: packed qkv, LayerNorm, GELU, learned positions, tied embeddings, all logits at once."""
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(C, bias=False), nn.LayerNorm(C, bias=False)
            self.qkv, self.out = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
            self.up, self.down = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            B, T, _ = x.shape
            q, k, v = (y.view(B, T, H, C // H).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(C, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).contiguous().view(B, T, C))
            out: torch.Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
            return out

    class PlainGPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(V, C), nn.Embedding(T, C)
            self.blocks = nn.Sequential(*(Block() for _ in range(L)))
            self.norm, self.head = nn.LayerNorm(C, bias=False), nn.Linear(C, V, bias=False)
            self.head.weight = self.wte.weight
            for name, p in self.named_parameters():
                if p.ndim == 2:
                    nn.init.normal_(
                        p, std=0.02 / (2 * L) ** 0.5 if name.endswith(("out.weight", "down.weight")) else 0.02
                    )

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.norm(self.blocks(self.wte(x) + self.wpe.weight[: x.shape[1]])))
            return logits

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(self.logits(x).view(-1, V), y.reshape(-1))

    return PlainGPT()


def work(variant: str, shape: tuple[int, ...], threads: int, pipe: PipeEnd) -> None:
    """Build the variant; then, for each request on `pipe`, make two steps and send the seconds of the second."""
    B, T, C, L, H, V = shape
    if variant.startswith("Positron"):
        from positron.training.allocator import tune_allocator

        tune_allocator()
    import torch

    from positron.config import GPTConfig, OptimizerConfig
    from positron.model.gpt import GPT
    from positron.training.optim.groups import build_optimizer, clip_gradients

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, y = torch.randint(V, (2, B, T))
    model: torch.nn.Module
    if variant.startswith("Positron"):
        model = GPT(GPTConfig(vocab_size=V, context_length=T, d_model=C, n_layer=L, n_head=H))
        optimizer = build_optimizer(model.named_parameters(), OptimizerConfig(), fused=True)

        def loss_of() -> torch.Tensor:
            loss: torch.Tensor = model(x, y) / x.numel()
            return loss
    else:
        model = plain_gpt(T, C, L, H, V)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)

        def loss_of() -> torch.Tensor:
            loss: torch.Tensor = model(x, y)
            return loss

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in variant):
            loss = loss_of()
        loss.backward()
        if variant.startswith("Positron"):
            clip_gradients(list(model.parameters()), 1.0)
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()  # the first step also loads kernels and allocates buffers
    pipe.send(None)
    while pipe.recv():
        step()
        pipe.send(seconds_of(step))


def measure_ceiling(dtype_name: str, threads: int, pipe: PipeEnd) -> None:
    import torch

    from positron.training.device import matmul_flops

    torch.set_num_threads(threads)
    pipe.send(None)
    while pipe.recv():
        pipe.send(matmul_flops(torch.device("cpu"), getattr(torch, dtype_name), seconds=0.5))


def seconds_of(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SHAPES, default="tinygpt")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    shape = SHAPES[options.model]
    context = multiprocessing.get_context("spawn")
    workers: dict[str, PipeEnd] = {}
    jobs: list[tuple[str, Callable[..., None], tuple[Any, ...]]]
    jobs = [(name, work, (name, shape, options.threads)) for name in VARIANTS]
    jobs += [(d, measure_ceiling, (d, options.threads)) for d in ("float32", "bfloat16")]
    for name, target, arguments in jobs:
        ours, theirs = context.Pipe()
        context.Process(target=target, args=(*arguments, theirs), daemon=True).start()
        ours.recv()
        workers[name] = ours
    results: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(options.rounds):
        for name, pipe in workers.items():
            pipe.send(True)
            results[name].append(pipe.recv())
    for pipe in workers.values():
        pipe.send(False)
    report(shape, options, {name: statistics.median(values) for name, values in results.items()}, results)


def report(
    shape: tuple[int, ...], options: argparse.Namespace, median: dict[str, float], results: dict[str, list[float]]
) -> None:
    from positron.config import GPTConfig

    B, T, C, L, H, V = shape
    config = GPTConfig(vocab_size=V, context_length=T, d_model=C, n_layer=L, n_head=H)
    flops = config.flops_per_token() * B * T
    print(
        f"{options.model}: {config.n_params() / 1e6:.1f}M parameters, {B} x {T} tokens, {options.threads} threads, "
        f"median of {options.rounds} rounds in turns; load average {load_average()}\n"
        f"large matrix products: fp32 {median['float32'] / 1e9:,.0f}, bf16 {median['bfloat16'] / 1e9:,.0f} GFLOP/s\n"
    )
    print(f"{'':<30}{'tokens/s':>10}{'GFLOP/s':>10}{'of products':>16}{'ratio':>8}")
    for name in VARIANTS:
        ceiling = median["bfloat16" if "bf16" in name else "float32"]
        ratio = statistics.median(a / b for a, b in zip(results[VARIANTS[0]], results[name], strict=True))
        rate = flops / median[name]
        print(f"{name:<30}{B * T / median[name]:>10,.0f}{rate / 1e9:>10,.0f}{rate / ceiling:>16.0%}{ratio:>8.2f}")


if __name__ == "__main__":
    main()
