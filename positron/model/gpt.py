"""The network in one file, read top to bottom: norm, rope, attention, mlp, block, GPT, init.

Shapes: B batch, T time (tokens), C = d_model channels, H heads, K key/value heads, D head dimension, V vocabulary.
Every option of `GPTConfig` appears exactly once below and has its twin, with a hand-derived backward, in `numpy_ref`.
"""

from __future__ import annotations

import math
from typing import Literal, assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from positron.config import GPTConfig
from positron.model.kernels import norms_and_heads as fused
from positron.model.kernels.attention import causal_attention, window_mask
from positron.model.kernels.loss import linear_cross_entropy
from positron.model.kernels.norms_and_heads import Rope
from positron.model.kernels.torch_private import has_forward_hooks

NORM_EPS = 1e-5
ROPE_BASE = 10_000.0
INIT_STD = 0.02
Elementwise = Literal["gelu", "relu", "swish", "relu2", ""]  # activations of one argument; "": none


class Norm(nn.Module):
    """LayerNorm (arXiv:1607.06450) or RMSNorm (arXiv:1910.07467) over the last axis, with a learned scale."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.kind = config.norm
        self.weight = nn.Parameter(torch.empty(config.d_model))
        self.bias = nn.Parameter(torch.empty(config.d_model)) if config.has_norm_bias else None

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        match self.kind:
            case "layernorm":
                return F.layer_norm(x, self.weight.shape, self.weight, self.bias, NORM_EPS)
            case "rmsnorm":
                return fused.rms_norm(x, self.weight, NORM_EPS)
            case _:
                assert_never(self.kind)


def rope_tables(context_length: int, d_head: int) -> tuple[Tensor, Tensor]:
    """cos and sin, (T, D/2) each, of position * base^(-2i/D) (RoFormer, arXiv:2104.09864, eq. 15)."""
    frequency = ROPE_BASE ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle = torch.arange(context_length, dtype=torch.float64)[:, None] * frequency[None, :]
    return angle.cos(), angle.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + D/2]) by their position's angle. x (B, heads, T, D); cos, sin (T or B 1 T, D/2)."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def sinusoidal_table(context_length: int, d_model: int) -> Tensor:
    """Fixed positions (T, C) of "Attention Is All You Need" (arXiv:1706.03762, section 3.5): sines, then cosines.

    Scaled so that its root mean square is INIT_STD, that of the token embeddings it is added to; unscaled it would
    drown them by a factor of 35.
    """
    frequency = 10_000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    angle = torch.arange(context_length, dtype=torch.float64)[:, None] * frequency[None, :]
    return torch.cat((angle.sin(), angle.cos()), dim=-1) * (INIT_STD * math.sqrt(2))


def documents_of(idx: Tensor, document_start: int | None) -> Tensor | None:
    """Ids (B, T) -> (B, T) the number of each token's document in its window; None where documents see each other."""
    return None if document_start is None else (idx == document_start).cumsum(dim=1)


def places_in_documents(documents: Tensor) -> Tensor:
    """(B, T) document numbers -> (B, T) how many tokens of its own document lie before each token."""
    place = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return place - torch.where(begins, place, 0).cummax(dim=1).values


def document_mask(documents: Tensor, window: int | None) -> Tensor:
    """(B, T) document numbers -> (B, 1, T, T), True where a query (row) may look at a key: its own document's past."""
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same & window_mask(documents.shape[1], window, documents.device)


def embeddings_before(x: Tensor, documents: Tensor | None) -> Tensor:
    """(B, T, C) -> (B, T, C): that of the token before; 0 where a window, or a document in it, begins."""
    before = F.pad(x[:, :-1], (0, 0, 1, 0))
    if documents is None:
        return before
    same = F.pad(documents[:, 1:] == documents[:, :-1], (1, 0))
    return before * same[..., None]


class Attention(nn.Module):
    """Causal multi-head attention; with n_kv_head < n_head, groups of heads share keys and values (arXiv:2305.13245)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, self.d_head = config.n_head, config.kv_heads, config.d_head
        self.qk_norm, self.dropout, self.window = config.qk_norm, config.dropout, config.window
        self.q = nn.Linear(config.d_model, self.n_head * self.d_head, bias=config.bias)
        self.k = nn.Linear(config.d_model, self.n_kv_head * self.d_head, bias=config.bias)
        self.v = nn.Linear(config.d_model, self.n_kv_head * self.d_head, bias=config.bias)
        self.out = nn.Linear(self.n_head * self.d_head, config.d_model, bias=config.bias)

    def forward(self, x: Tensor, rope: Rope | None, mask: Tensor | None) -> Tensor:  # (B, T, C) -> (B, T, C)
        B, T, C = x.shape
        q, k, v = self._packed(x, rope) if self._packs(x) else self.heads(x, rope)
        dropout = self.dropout if self.training else 0.0
        y = causal_attention(q, k, v, dropout=dropout, mask=mask, window=self.window)  # (B, H, T, D)
        return self.out(y.transpose(1, 2).reshape(B, T, C))

    def heads(self, x: Tensor, rope: Rope | None) -> tuple[Tensor, ...]:
        """(B, T, C) -> q (B, H, T, D), k and v (B, K, T, D)."""
        B, T, _ = x.shape
        q = self.q(x).view(B, T, self.n_head, self.d_head).transpose(1, 2)  # (B, H, T, D)
        k = self.k(x).view(B, T, self.n_kv_head, self.d_head).transpose(1, 2)  # (B, K, T, D)
        v = self.v(x).view(B, T, self.n_kv_head, self.d_head).transpose(1, 2)  # (B, K, T, D)
        if rope is not None:
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if self.qk_norm:  # unit root mean square per head keeps the scores bounded (arXiv:2010.04245)
            q = F.rms_norm(q, (self.d_head,), eps=NORM_EPS)
            k = F.rms_norm(k, (self.d_head,), eps=NORM_EPS)
        return q, k, v

    def _packs(self, x: Tensor) -> bool:
        """Not with low-rank additions to q, k or v, nor while someone watches them."""
        parts = (self.q, self.k, self.v)
        return fused.is_faster(x) and all(type(p) is nn.Linear and not has_forward_hooks(p) for p in parts)

    def _packed(self, x: Tensor, rope: Rope | None) -> tuple[Tensor, ...]:
        """`heads` in one matrix product and one pass."""
        weights: list[Tensor] = [self.q.weight, self.k.weight, self.v.weight]
        biases: list[Tensor] = [] if self.q.bias is None else [self.q.bias, self.k.bias, self.v.bias]
        if rope is not None:
            weights[:2] = [fused.side_by_side(weight, self.d_head) for weight in weights[:2]]
            biases[:2] = [fused.side_by_side(bias, self.d_head) for bias in biases[:2]]
        qkv = F.linear(x, torch.cat(weights), torch.cat(biases) if biases else None)
        return fused.heads(qkv, rope, self.n_head, self.n_kv_head, NORM_EPS if self.qk_norm else None)


class MLP(nn.Module):
    """down(activation(up(x))); swiglu (arXiv:2002.05202) multiplies a gated and an ungated projection."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = config.activation
        if config.is_gated:
            self.gate = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        self.up = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        self.down = nn.Linear(config.ff_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        h = self.up(x)  # (B, T, F)
        h = F.silu(self.gate(x)) * h if self.activation == "swiglu" else activate(h, self.activation)
        return self.down(h)


def activate(h: Tensor, activation: Elementwise) -> Tensor:
    """Apply an activation of one argument; "" leaves it as it is."""
    match activation:
        case "gelu":
            return fused.gelu(h)
        case "relu":
            return F.relu(h)
        case "swish":
            return F.silu(h)
        case "relu2":
            return fused.relu2(h)
        case "":
            return h
        case _:
            assert_never(activation)


class Block(nn.Module):
    """Pre-norm residual block: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = Norm(config)
        self.attn = Attention(config)
        self.norm2 = Norm(config)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rope: Rope | None, mask: Tensor | None) -> Tensor:  # (B, T, C) -> (B, T, C)
        x = x + self.drop(self.attn(self.norm1(x), rope, mask))
        return x + self.drop(self.mlp(self.norm2(x)))


class GPT(nn.Module):
    """Token ids in, logits or summed loss out."""

    cos: Tensor
    sin: Tensor
    positions: Tensor

    def __init__(self, config: GPTConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = False  # True: blocks keep their input alone and run again in the backward pass
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        dtype = self.wte.weight.dtype
        match config.position:
            case "learned":
                self.wpe = nn.Embedding(config.context_length, config.d_model)
            case "sinusoidal":
                table = sinusoidal_table(config.context_length, config.d_model)
                self.register_buffer("positions", table.to(dtype), persistent=False)
            case "rope":
                cos, sin = rope_tables(config.context_length, config.d_head)
                self.register_buffer("cos", cos.to(dtype), persistent=False)
                self.register_buffer("sin", sin.to(dtype), persistent=False)
            case _:
                assert_never(config.position)
        if config.smear:
            self.smear = nn.Parameter(torch.empty(config.d_model))
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm_f = Norm(config)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        init_weights(self, seed)

    @property
    def head_weight(self) -> Tensor:
        """(V, C): the token embedding itself when tied (arXiv:1608.05859)."""
        return self.wte.weight if self.config.tie_embeddings else self.lm_head.weight

    def hidden(self, idx: Tensor, documents: Tensor | None = None) -> Tensor:
        """Token ids (B, T) -> normalised last hidden states (B, T, C). ValueError past the context length.

        `documents` (B, T), numbers that never fall along a row, keep attention and positions inside of each document:
        every one then gets what it would get alone.
        """
        T = idx.shape[1]
        if self.config.context_length < T:
            raise ValueError(f"{T} tokens do not fit the context length {self.config.context_length}")
        x = self.wte(idx)
        if self.config.smear:  # one layer then suffices to find what followed an earlier occurrence of this token
            x = x + self.smear * embeddings_before(x, documents)
        rope = mask = None
        places: slice | Tensor = slice(T)
        if documents is not None:
            places, mask = places_in_documents(documents), document_mask(documents, self.config.window)
        match self.config.position:
            case "learned":
                x = x + self.wpe.weight[places]
            case "sinusoidal":
                x = x + self.positions[places].to(x.dtype)
            case "rope":
                rope = (self.cos[places], self.sin[places])
                if documents is not None:
                    rope = (rope[0][:, None], rope[1][:, None])  # (B, 1, T, D/2): the same for all heads
            case _:
                assert_never(self.config.position)
        x = self.drop(x)
        for block in self.blocks:
            x = self._run(block, x, rope, mask)
        return self.norm_f(x)

    def _run(self, block: nn.Module, x: Tensor, rope: Rope | None, mask: Tensor | None) -> Tensor:
        """(B, T, C) -> (B, T, C); with `checkpoint_activations` a third more work, and the same to the last bit.

        The second run has the first one's autocast, gradient mode and, where there is dropout, generator state, so it
        takes the same kernels and draws the same masks.
        """
        if self.checkpoint_activations and torch.is_grad_enabled():
            draws = self.config.dropout > 0
            return checkpoint(block, x, rope, mask, use_reentrant=False, preserve_rng_state=draws)
        return block(x, rope, mask)

    def forward(self, idx: Tensor, targets: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """Logits (B, T, V), or with `targets` (B, T) the loss in nats summed over all targets but those of -100.

        A sum, not a mean: gradients of micro-batches then add up to exactly the gradient of the whole batch.
        """
        x = self.hidden(idx, documents)
        if targets is None:
            return F.linear(x, self.head_weight)
        return linear_cross_entropy(x.flatten(0, 1), self.head_weight, targets.flatten())


@torch.no_grad()
def init_weights(model: GPT, seed: int) -> None:
    """All initial values, drawn from a generator of their own, so that they depend on `seed` alone.

    | parameter                    | value                                                           |
    |------------------------------|-----------------------------------------------------------------|
    | wte, wpe, lm_head, q k v,    | normal, std 0.02 (GPT-2)                                        |
    |   up, gate                   |                                                                 |
    | attn.out, mlp.down           | normal, std 0.02 / sqrt(2 L): 2 L branches add to one residual  |
    | biases, smear                | 0                                                               |
    | norm weights                 | 1                                                               |
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or name == "smear":
            parameter.zero_()
        elif "norm" in name:
            parameter.fill_(1.0)
        else:
            residual = name.endswith(("attn.out.weight", "mlp.down.weight"))
            std = INIT_STD / math.sqrt(2 * model.config.n_layer) if residual else INIT_STD
            values = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
            parameter.copy_(values)
