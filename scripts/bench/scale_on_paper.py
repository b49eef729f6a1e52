"""Compute time and memory of training 124M and 1.5B parameters on 1, 8 and 64 GPUs: the tables of docs/SCALE.md.

Nothing is measured here. All numbers follow from the constants below and the formulas in the functions; docs/SCALE.md
explains the formulas and names their sources.
"""

from __future__ import annotations

from dataclasses import dataclass

from positron.config import GPTConfig
from positron.training.device import Machine, micro_batch_bytes
from scripts.bench.scale_report import markdown

PEAK = 989e12  # FLOP/s in bf16, dense: H100 SXM
MFU = 0.40
MEMORY = 80e9
USABLE = 0.9  # share of MEMORY for training; CUDA and fragmentation need the remaining memory
INSIDE = 450e9  # bytes/s in each direction, NVLink inside a node
NIC = 50e9  # bytes/s, one 400 Gb/s port per GPU, between nodes
NODE = 8
TOKENS_PER_PARAMETER = 20
MODELS = {
    "124M": (GPTConfig(vocab_size=50257, context_length=1024, d_model=768, n_layer=12, n_head=12, bias=True), 524_288),
    "1.5B": (
        GPTConfig(vocab_size=50257, context_length=1024, d_model=1600, n_layer=48, n_head=25, bias=True),
        1_048_576,
    ),
}  # and tokens of an optimizer step


@dataclass(frozen=True)
class Setup:
    gpt: GPTConfig
    batch_tokens: int
    gpus: int
    strategy: str  # none, ddp or fsdp, with the units of positron/training/sharding.py
    checkpoint: bool

    def state_bytes(self) -> float:
        """Return the bytes of weights, gradients and moments on one GPU, and of their copies and buffers.

        Weights, gradients and two moments in fp32 have 16 bytes per parameter; FSDP divides them among the GPUs.
        """
        n = self.gpt.n_params()
        if self.strategy == "none":
            return 16 * n + 2 * n  # plus the weights in bf16
        if self.strategy == "ddp":
            return 16 * n + 2 * n + 4 * n  # plus the weights in bf16 and buckets of gradients
        # this GPU's share of the 16 bytes, plus all gradients, to which the micro-batches add, plus the weights outside of the
        # blocks and of two blocks at a time, in fp32 and bf16
        return 16 * n / self.gpus + 4 * n + (4 + 2) * (self.outside() + 2 * self.block())

    def block(self) -> int:
        """Return the number of parameters of a block, not counting its norms and biases."""
        return 12 * self.gpt.d_model**2

    def outside(self) -> int:
        """Return the number of parameters outside of the blocks, including the blocks' norms and biases."""
        return self.gpt.n_params() - self.gpt.n_layer * self.block()

    def activation_bytes(self, rows: int) -> float:
        return micro_batch_bytes(self.gpt, rows, Machine("cuda", "bf16", "", checkpoint_activations=self.checkpoint))

    @property
    def rows(self) -> int:
        """Return the number of sequences of an optimizer step on each GPU."""
        return self.batch_tokens // self.gpt.context_length // self.gpus

    def micro_batch(self) -> int:
        """Return the number of sequences in a micro-batch: all `rows` of the GPU, halved until they fit into its memory."""
        size = self.rows
        while size > 1 and self.state_bytes() + self.activation_bytes(size) > USABLE * MEMORY:
            size //= 2
        return size

    def bytes(self) -> float:
        return self.state_bytes() + self.activation_bytes(self.micro_batch())

    def compute_seconds(self) -> float:
        """Return the seconds of computation of a step. Activation checkpointing adds a third, for a second forward pass."""
        flops = self.gpt.flops_per_token() * self.batch_tokens * (4 / 3 if self.checkpoint else 1)
        return flops / (self.gpus * MFU * PEAK)

    @property
    def micro_batches(self) -> int:
        return -(-self.rows // self.micro_batch())

    def traffic(self) -> float:
        """Return the bytes that each GPU sends in a step.

        All values are sent in fp32, because autocast rounds weights to bf16 after they have arrived. DDP sends the gradients
        once, by an all-reduce. In each micro-batch, FSDP gathers each block twice, for the forward and the backward pass, and
        the other weights once. In each step, it sends the gradients once, by a reduce-scatter.
        """
        n, share = self.gpt.n_params(), (self.gpus - 1) / self.gpus
        if self.strategy == "ddp":
            return 2 * share * 4 * n
        gathered = self.outside() + 2 * self.gpt.n_layer * self.block()
        return share * 4 * (gathered * self.micro_batches + n)

    def travel_seconds(self, ports: int = NODE) -> float:
        """Return the seconds to send the bytes of a step.

        A ring enters and leaves each node once; NCCL uses one ring for each of the `ports` network ports of a node.
        """
        return self.traffic() / (INSIDE if self.gpus <= NODE else ports * NIC)

    def exposed_seconds(self, ports: int = NODE) -> float:
        """Return the seconds of sending that do not overlap with computation.

        DDP sends during the backward pass of the last micro-batch, FSDP during the whole computation.
        """
        backward = 3 / 4 if self.checkpoint else 2 / 3
        hides = {
            "ddp": backward * self.compute_seconds() / self.micro_batches,
            "fsdp": self.compute_seconds(),
        }
        return max(0.0, self.travel_seconds(ports) - hides.get(self.strategy, 0.0))

    def steps(self) -> int:
        return -(-TOKENS_PER_PARAMETER * self.gpt.n_params() // self.batch_tokens)

    def hours(self) -> float:
        return self.steps() * (self.compute_seconds() + self.exposed_seconds()) / 3600


def setups(name: str) -> list[Setup]:
    gpt, batch = MODELS[name]
    kinds = [(1, "none"), *((gpus, kind) for gpus in (8, 64) for kind in ("ddp", "fsdp"))]
    return [Setup(gpt, batch, gpus, kind, flag) for gpus, kind in kinds for flag in (False, True)]


def table(name: str) -> str:
    """Return a Markdown table with a line for each setup."""
    head = [
        "GPUs",
        "strategy",
        "checkpointed",
        "state, GB",
        "in all, GB",
        "sequences at a time",
        "computing, s",
        "sent, GB",
        "travelling, s",
        "not hidden, s",
        "by one port, s",
        "20 tokens per parameter",
    ]
    return markdown(head, [line(setup) for setup in setups(name)])


def line(s: Setup) -> list[str]:
    own_cells = [str(s.gpus), s.strategy, "yes" if s.checkpoint else "", f"{s.state_bytes() / 1e9:.1f}"]
    own_cells += [f"{s.bytes() / 1e9:.1f}", f"{s.micro_batch()} of {s.rows}", f"{s.compute_seconds():.3f}"]
    shared_cells = ["", "", "", ""]
    if s.gpus > 1:
        one_port = f"{s.exposed_seconds(ports=1):.4f}" if s.gpus > NODE else ""
        shared_cells = [f"{s.traffic() / 1e9:.2f}", f"{s.travel_seconds():.4f}", f"{s.exposed_seconds():.4f}", one_port]
    return [*own_cells, *shared_cells, duration(s.hours())]


def duration(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"


def caption(name: str) -> str:
    gpt, batch = MODELS[name]
    s = setups(name)[0]
    return (
        f"{name}: {gpt.n_params() / 1e6:,.1f}M parameters, {gpt.flops_per_token() / 1e9:.2f} GFLOP a token, {s.steps():,} "
        f"steps of {batch:,} tokens, {s.steps() * batch * gpt.flops_per_token():.2e} FLOP"
    )


def main() -> None:
    print("\n\n".join(f"{caption(name)}\n\n{table(name)}" for name in MODELS))


if __name__ == "__main__":
    main()
