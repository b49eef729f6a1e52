"""Train the recipes of other projects for `quality.py`, implemented from their publications, in fp32 and not compiled.

nanochat compiles its model. On a CPU in fp32, compiling was measured to gain nothing (1.01 times the speed) and to take 9 to
45 seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from positron.config import RunConfig
from scripts.bench.train import plain_gpt

PEERS = {  # context length, rows of a batch
    "nanoGPT": (64, 12),
    "nanochat": (512, 32),
    "HF Trainer": (128, 32),
}


def cosine(progress: float, final: float) -> float:
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def train_nanogpt(name: str, recipe: RunConfig, vocab: int, batches: Iterator[Tensor], budget: Any, seed: int) -> None:
    """Train the CPU example of nanoGPT's README, or "nanoGPT, large" with the context, width and depth of `recipe`."""
    model: Any = plain_gpt(PEERS["nanoGPT"][0], 128, 4, 4, vocab)
    if name == "nanoGPT, large":
        ours = recipe.model
        model = plain_gpt(ours.context_length, ours.d_model, ours.n_layer, ours.n_head, vocab)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    clock = budget(summed_by(model.logits))
    clock.start()
    for step, rows in enumerate(batches, 1):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(step / 100, cosine(clock.progress, 0.1))
        model(rows[:, :-1], rows[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if clock.step_done(rows[:, 1:].numel()):
            return


def summed_by(logits: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function of x and y, both (B, T), that sums the loss in nats over the targets y that are >= 0."""
    return lambda x, y: F.cross_entropy(logits(x).flatten(0, 1), y.flatten(), reduction="sum")


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


class NanochatBlock(nn.Module):
    def __init__(self, C: int, H: int, vocab: int, has_values: bool) -> None:
        super().__init__()
        self.H = H
        self.q, self.k, self.v, self.out = (nn.Linear(C, C, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)
        self.values = nn.Embedding(vocab, C) if has_values else None
        self.gate = nn.Linear(32, H, bias=False) if has_values else None
        bound = math.sqrt(3 / C)
        for table in (self.q, self.k, self.v, self.up, self.values):
            if table is not None:
                nn.init.uniform_(table.weight, -bound, bound)
        for zero in (self.out, self.down, self.gate):
            if zero is not None:
                nn.init.zeros_(zero.weight)

    def forward(self, x: Tensor, idx: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, C = x.shape
        h = norm(x)
        q, k, v = (part(h).view(B, T, self.H, C // self.H) for part in (self.q, self.k, self.v))
        if (
            self.values is not None and self.gate is not None
        ):  # add an embedding of the token, weighted by a gate per head
            v = v + 2 * self.gate(h[..., :32]).sigmoid()[..., None] * self.values(idx).view_as(v)
        q, k = (norm(rotated(part, cos, sin)) for part in (q, k))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        out: Tensor = x + self.down(F.relu(self.up(norm(x))).square())
        return out


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (B, T, H, D), (T, 1, D/2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class NanochatGPT(nn.Module):
    """Predict the next token as nanochat does.

    The model has RMSNorm without weights, rotary positions, QK-norm, relu^2, untied embeddings, and logits limited to +-15.
    Learned factors weight the residual stream and the embedding before each block; every second block has value embeddings.
    """

    def __init__(self, L: int, T: int, vocab: int) -> None:
        super().__init__()
        C = 64 * L  # and heads of 64
        self.wte, self.head = nn.Embedding(vocab, C), nn.Linear(C, vocab, bias=False)
        self.blocks = nn.ModuleList(NanochatBlock(C, L, vocab, i % 2 == (L - 1) % 2) for i in range(L))
        self.of_x, self.of_start = nn.Parameter(torch.ones(L)), nn.Parameter(torch.full((L,), 0.1))
        nn.init.normal_(self.wte.weight)
        nn.init.normal_(self.head.weight, std=0.001)
        angle = torch.arange(T)[:, None] * 10_000.0 ** (-torch.arange(0, 64, 2) / 64)
        self.cos, self.sin = angle.cos()[:, None], angle.sin()[:, None]  # (T, 1, D/2)

    def logits(self, idx: Tensor) -> Tensor:
        T = idx.shape[1]
        x = start = norm(self.wte(idx))
        for i, block in enumerate(self.blocks):
            x = block(self.of_x[i] * x + self.of_start[i] * start, idx, self.cos[:T], self.sin[:T])
        return 15 * torch.tanh(self.head(norm(x)) / 15)


class NanochatMatrices:
    """Update matrices with nanochat's variant of Muon.

    It uses Nesterov momentum, the Polar Express iteration (arXiv:2505.16932), a second moment per row (NorMuon,
    arXiv:2510.05491), and weight decay only where the decay has the sign of the step.
    """

    POLYNOMIALS = (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    )

    def __init__(self, matrices: list[nn.Parameter]) -> None:
        self.matrices = matrices
        self.momenta = [torch.zeros_like(p) for p in matrices]
        self.seconds = [torch.zeros_like(p.mean(self.short_axis(p), keepdim=True)) for p in matrices]

    @staticmethod
    def short_axis(p: Tensor) -> int:
        return 1 if p.shape[0] >= p.shape[1] else 0

    @torch.no_grad()
    def step(self, lr: float, momentum: float, decay: float) -> None:
        for p, mean, second in zip(self.matrices, self.momenta, self.seconds, strict=True):
            assert p.grad is not None
            mean.lerp_(p.grad, 1 - momentum)
            direction = self.orthogonal(p.grad.lerp(mean, momentum))
            square = direction.square().mean(self.short_axis(p), keepdim=True)
            second.lerp_(square, 1 - 0.95)
            evened = direction * second.clamp(min=1e-10).rsqrt()
            direction = evened * (direction.norm() / evened.norm().clamp(min=1e-10))
            tall = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
            p.sub_(lr * tall * (direction + decay * p * (direction * p >= 0)))

    def orthogonal(self, x: Tensor) -> Tensor:
        lying = x.shape[0] <= x.shape[1]
        y = (x if lying else x.mT).bfloat16()
        y = y / (1.02 * y.norm() + 1e-6)
        for a, b, c in self.POLYNOMIALS:
            gram = y @ y.mT
            y = a * y + (b * gram + c * gram @ gram) @ y
        step: Tensor = y if lying else y.mT
        return step.float()


def train_nanochat(name: str, recipe: RunConfig, vocab: int, batches: Iterator[Tensor], budget: Any, seed: int) -> None:
    """Train nanochat's recipe for a CPU: runs/runcpu.sh with the values of scripts/base_train.py of spring 2026.

    The model has depth 6, and a step has 32 x 512 tokens. Learning rates are proportional to the square root of
    batch / 2^19, and those of embedding tables also to width ** -1/2. Weight decay is proportional to the number of
    parameters at depth 12, divided by the number of parameters of this model. The model is the one of early 2026; later
    versions add a smeared embedding, "backout" and other initial values. nanochat's warmup of 40 steps would be most of a
    run here, so the warmup takes a fiftieth of the time instead.
    """
    T, B = PEERS[name]
    L, batch = 6, math.sqrt(B * T / 2**19)
    model = NanochatGPT(L, T, vocab)
    tables = batch * (64 * L / 768) ** -0.5
    usual: dict[str, Any] = {"betas": (0.8, 0.95)}
    groups = [
        {"params": [model.head.weight], "lr": 0.008 * tables, **usual},
        {
            "params": [p for n, p in model.named_parameters() if "wte" in n or "values" in n],
            "lr": 0.3 * tables,
            **usual,
        },
        {"params": [model.of_x], "lr": 0.005 * batch, **usual},
        {"params": [model.of_start], "lr": 0.5 * batch, "betas": (0.96, 0.95)},
    ]
    optimizer = torch.optim.AdamW(groups, eps=1e-10, weight_decay=0.0)
    peaks = [group["lr"] for group in optimizer.param_groups]
    matrices = NanochatMatrices([p for n, p in model.named_parameters() if "blocks" in n and "values" not in n])
    size = sum(p.numel() for p in matrices.matrices) + model.head.weight.numel()
    reference = 12 * 12 * 768**2 + 768 * vocab  # depth 12
    nats = summed_by(model.logits)
    clock = budget(nats)
    clock.start()
    for step, rows in enumerate(batches):
        progress = clock.progress
        share = min(1.0, (progress + 0.002) / 0.02, 0.05 + 0.95 * (1 - progress) / 0.65)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * share
        (nats(rows[:, :-1], rows[:, 1:]) / rows[:, 1:].numel()).backward()
        momentum = min(0.85 + 0.12 * step / 400, 0.97) if progress < 0.35 else 0.97 - 0.07 * (progress - 0.35) / 0.65
        decay = 0.28 * batch * reference / size * cosine(progress, 0.0)
        matrices.step(0.02 * batch * share, momentum, decay)
        optimizer.step()
        model.zero_grad(set_to_none=True)
        if clock.step_done(rows[:, 1:].numel()):
            return


def train_hugging_face(
    name: str, recipe: RunConfig, vocab: int, batches: Iterator[Tensor], budget: Any, seed: int
) -> None:
    """Train a GPT-2 with the size of nanoGPT's model, using the Trainer of transformers."""
    import tempfile

    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    T, B = PEERS[name]
    model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=vocab, n_positions=T, n_embd=128, n_layer=4, n_head=4))

    def nats(x: Tensor, y: Tensor) -> Tensor:
        model.eval()
        total = summed_by(lambda tokens: model(tokens).logits)(x, y)
        model.train()
        return total

    clock = budget(nats)

    class Rows(torch.utils.data.IterableDataset[dict[str, Tensor]]):
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            for rows in batches:
                yield from ({"input_ids": row[:-1], "labels": row[:-1]} for row in rows)  # GPT2LMHeadModel shifts

    class Turns(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = clock.step_done(B * T)

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 100, cosine(clock.progress, 0.0)))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=B,
            max_steps=10**9,
            seed=seed,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        Trainer(model, arguments, train_dataset=Rows(), optimizers=(optimizer, schedule), callbacks=[Turns()]).train()
