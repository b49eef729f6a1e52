"""Define the architectures that several benchmarks measure."""

from __future__ import annotations

from positron.config import GPTConfig

QUICKSTART = GPTConfig(
    context_length=288,
    d_model=256,
    n_layer=2,
    n_head=4,
    norm="rmsnorm",
    position="rope",
    activation="relu2",
    qk_norm=True,
    smear=True,
    vocab_size=4000,
)  # model=quickstart with tokenizer=spm_4k
