"""Define the network. Read this file from top to bottom: norm, positions, attention, MLP, block, GPT, initial weights.

Shapes: B batch, T time (tokens), C = d_model channels, H heads, K key/value heads, D head dimension, F width of the MLP,
V vocabulary, L layers. `numpy_ref` implements every option of `GPTConfig` a second time, with hand-derived gradients. In
training on a CPU, faster kernels with the same result replace some parts; see `kernels/`.
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
from positron.model.kernels.dropout import Dropout
from positron.model.kernels.loss import linear_cross_entropy
from positron.model.kernels.norms_and_heads import Rope
from positron.model.kernels.torch_private import has_forward_hooks

INIT_STD = 0.02
Elementwise = Literal["gelu", "relu", "swish", "relu2", ""]  # activations of one argument; "" is the identity


class Norm(nn.Module):
    """Normalise the last axis by LayerNorm (arXiv:1607.06450) or RMSNorm (arXiv:1910.07467), with a learned scale.

    LayerNorm also has a learned bias if `config.bias` is True.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.kind, self.eps = config.norm, config.norm_eps
        self.weight = nn.Parameter(torch.empty(config.d_model))
        self.bias = nn.Parameter(torch.empty(config.d_model)) if config.has_norm_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each token's vector: (B, T, C) -> (B, T, C)."""
        match self.kind:
            case "layernorm":
                return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
            case "rmsnorm":
                return fused.rms_norm(x, self.weight, self.eps)
            case _:
                assert_never(self.kind)


def rope_tables(context_length: int, d_head: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Compute cos and sin, (T, D/2) each, of the rotation angles of RoPE, in float64 (arXiv:2104.09864, eq. 15).

    T is `context_length`, and D is `d_head`. The angle of the pair i at position t is t * base^(-2i/D).
    """
    frequency = base ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle = torch.arange(context_length, dtype=torch.float64)[:, None] * frequency[None, :]
    return angle.cos(), angle.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[i], x[i + D/2]) of each head's vectors by the angles of the vectors' positions.

    x (B, heads, T, D) -> (B, heads, T, D). cos and sin (see `rope_tables`) are (T, D/2), or (B, 1, T, D/2) if each sequence of
    the batch has its own positions.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x.chunk(2, dim=-1)  # (B, heads, T, D/2) each
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def sinusoidal_table(context_length: int, d_model: int) -> Tensor:
    """Compute the fixed position vectors (T, C) of "Attention Is All You Need" (arXiv:1706.03762, section 3.5), in float64.

    The first half of the channels contains sines, the second half cosines. The table is scaled to the root mean square of the
    initial token embeddings, INIT_STD. Without this scaling, its numbers would be 35 times as large as these embeddings.
    """
    frequency = 10_000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    angle = torch.arange(context_length, dtype=torch.float64)[:, None] * frequency[None, :]
    return torch.cat((angle.sin(), angle.cos()), dim=-1) * (INIT_STD * math.sqrt(2))


def document_numbers(idx: Tensor, document_start: int | None) -> Tensor | None:
    """Return for each token the number of its document in the sequence: token ids (B, T) -> document numbers (B, T).

    A sequence may contain several documents: each token with the id `document_start` begins a new one. If `document_start` is
    None, the result is None, and attention crosses the boundaries of documents.
    """
    return None if document_start is None else (idx == document_start).cumsum(dim=1)


def positions_in_documents(documents: Tensor) -> Tensor:
    """Count for each token the earlier tokens of its document: document numbers (B, T) -> positions (B, T)."""
    position = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return position - torch.where(begins, position, 0).cummax(dim=1).values


def cut_documents(documents: Tensor, limit: int) -> Tensor:
    """Cut documents of more than `limit` tokens into pieces of `limit` tokens: numbers (B, T) of documents -> of pieces."""
    positions = positions_in_documents(documents)
    return documents + ((positions > 0) & (positions % limit == 0)).cumsum(dim=1)


def document_mask(documents: Tensor, window: int | None) -> Tensor:
    """Return a mask (B, 1, T, T) that is True where a query (row) may attend to a key (column).

    A query attends to itself and to the earlier tokens of its document. If `window` is not None, it attends only to those among
    the last `window` tokens, itself included. `documents`: document numbers (B, T).
    """
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same & window_mask(documents.shape[1], window, documents.device)


def previous_embeddings(x: Tensor, documents: Tensor | None) -> Tensor:
    """Shift x (B, T, C) by one token, so that each position holds the vector of the token before it.

    The first position of each sequence holds 0. If document numbers (B, T) are given, the first position of each document also
    holds 0.
    """
    before = F.pad(x[:, :-1], (0, 0, 1, 0))
    if documents is None:
        return before
    same = F.pad(documents[:, 1:] == documents[:, :-1], (1, 0))
    return before * same[..., None]


class Attention(nn.Module):
    """Compute causal multi-head attention. If n_kv_head < n_head, groups of heads share keys and values.

    Sources: arXiv:2305.13245 for grouped heads, arXiv:2010.04245 for QK-norm.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, self.d_head = config.n_head, config.kv_heads, config.d_head
        self.qk_norm, self.qk_scale, self.eps = config.qk_norm, config.qk_scale, config.norm_eps
        self.dropout = config.dropout
        # a row with documents may be longer than the context
        self.window = min(config.window or config.context_length, config.context_length)
        self.q = nn.Linear(config.d_model, self.n_head * self.d_head, bias=config.bias)
        self.k = nn.Linear(config.d_model, self.n_kv_head * self.d_head, bias=config.bias)
        self.v = nn.Linear(config.d_model, self.n_kv_head * self.d_head, bias=config.bias)
        self.out = nn.Linear(self.n_head * self.d_head, config.d_model, bias=config.bias)
        if config.qk_scale:
            self.q_norm, self.k_norm = (nn.RMSNorm(self.d_head, eps=config.norm_eps) for _ in range(2))

    def forward(self, x: Tensor, rope: Rope | None, mask: Tensor | None) -> Tensor:
        """Let every token attend to itself and to earlier tokens: (B, T, C) -> (B, T, C).

        `rope`: cos and sin as in `apply_rope`, or None without rotary positions. `mask` (B, 1, T, T): the result of
        `document_mask`. If it is None, a token attends to all earlier tokens in the sliding window, also across the boundaries
        of documents.
        """
        q, k, v = self._packed_heads(x, rope) if self._can_pack(x) else self.heads(x, rope)
        dropout = self.dropout if self.training else 0.0
        y = causal_attention(q, k, v, dropout=dropout, mask=mask, window=self.window)  # (B, H, T, D)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out

    def heads(self, x: Tensor, rope: Rope | None) -> tuple[Tensor, ...]:
        """Compute queries, keys and values: x (B, T, C) -> q (B, H, T, D), k and v (B, K, T, D).

        With QK-norm, q and k are normalised; with `rope`, they are rotated.
        """
        B, T, _ = x.shape
        q = self.q(x).view(B, T, self.n_head, self.d_head).transpose(1, 2)  # (B, H, T, D)
        k = self.k(x).view(B, T, self.n_kv_head, self.d_head).transpose(1, 2)  # (B, K, T, D)
        v = self.v(x).view(B, T, self.n_kv_head, self.d_head).transpose(1, 2)  # (B, K, T, D)
        if self.qk_scale:  # must come before the rotation, which mixes numbers that have different scales
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        # a root mean square of 1 per head keeps the scores bounded (arXiv:2010.04245)
        if self.qk_norm and not self.qk_scale:
            q = F.rms_norm(q, (self.d_head,), eps=self.eps)
            k = F.rms_norm(k, (self.d_head,), eps=self.eps)
        return q, k, v

    def _can_pack(self, x: Tensor) -> bool:
        """Tell whether `_packed_heads` can be used and is faster.

        `_packed_heads` can be used if the layers q, k and v have neither LoRA nor forward hooks, and if `qk_scale` is off. A
        model with `qk_scale` multiplies q and k by a learned scale between normalisation and rotation, which `_packed_heads`
        cannot do. `_packed_heads` is faster if `x` is on a CPU and needs a gradient.
        """
        if self.qk_scale or not fused.is_faster(x):
            return False
        return all(type(p) is nn.Linear and not has_forward_hooks(p) for p in (self.q, self.k, self.v))

    def _packed_heads(self, x: Tensor, rope: Rope | None) -> tuple[Tensor, ...]:
        """Compute the same as `heads` with one matrix product for q, k and v together.

        A single kernel then splits the product into heads and applies QK-norm and RoPE, if the model has them.
        """
        weights: list[Tensor] = [self.q.weight, self.k.weight, self.v.weight]
        biases: list[Tensor] = [] if self.q.bias is None else [self.q.bias, self.k.bias, self.v.bias]
        if rope is not None:
            weights[:2] = [fused.interleave_pairs(weight, self.d_head) for weight in weights[:2]]
            biases[:2] = [fused.interleave_pairs(bias, self.d_head) for bias in biases[:2]]
        qkv = F.linear(x, torch.cat(weights), torch.cat(biases) if biases else None)
        return fused.heads(qkv, rope, self.n_head, self.n_kv_head, self.eps if self.qk_norm else None)


class MLP(nn.Module):
    """Compute down(activation(up(x))), or down(silu(gate(x)) * up(x)) for swiglu (arXiv:2002.05202)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = config.activation
        if config.is_gated:
            self.gate = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        self.up = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        self.down = nn.Linear(config.ff_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token's vector independently: (B, T, C) -> (B, T, C)."""
        h = self.up(x)  # (B, T, F)
        h = F.silu(self.gate(x)) * h if self.activation == "swiglu" else activate(h, self.activation)
        out: Tensor = self.down(h)
        return out


def activate(h: Tensor, activation: Elementwise) -> Tensor:
    """Apply the activation function named `activation` to every number of h. If the name is empty, return h unchanged."""
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
    """Add attention and MLP to the residual stream: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = Norm(config)
        self.attn = Attention(config)
        self.norm2 = Norm(config)
        self.mlp = MLP(config)
        self.drop = Dropout(config.dropout)

    def forward(self, x: Tensor, rope: Rope | None, mask: Tensor | None) -> Tensor:
        """Apply the block: (B, T, C) -> (B, T, C). `Attention.forward` describes `rope` and `mask`."""
        x = x + self.drop(self.attn(self.norm1(x), rope, mask))
        out: Tensor = x + self.drop(self.mlp(self.norm2(x)))
        return out


class GPT(nn.Module):
    """Predict the next token: token ids (B, T) -> logits (B, T, V) or, if targets are given, the sum of their losses.

    The initial weights depend only on the configuration and `seed`. If the attribute `checkpoint_activations` is set to True,
    each block saves only its input and is computed again in the backward pass. This takes less memory and about a third more
    time.
    """

    cos: Tensor  # (context_length, d_head / 2) cosines of the rotation angles of RoPE; only with config.position="rope"
    sin: Tensor  # sines of the same angles
    positions: Tensor  # (context_length, d_model) fixed position vectors; only with config.position="sinusoidal"

    def __init__(self, config: GPTConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        dtype = self.wte.weight.dtype
        match config.position:
            case "learned":
                self.wpe = nn.Embedding(config.context_length, config.d_model)
            case "sinusoidal":
                table = sinusoidal_table(config.context_length, config.d_model)
                self.register_buffer("positions", table.to(dtype), persistent=False)
            case "rope":
                cos, sin = rope_tables(config.context_length, config.d_head, config.rope_base)
                self.register_buffer("cos", cos.to(dtype), persistent=False)
                self.register_buffer("sin", sin.to(dtype), persistent=False)
            case _:
                assert_never(config.position)
        if config.smear:
            self.smear = nn.Parameter(torch.empty(config.d_model))
        self.drop = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm_f = Norm(config)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        init_weights(self, seed)

    @property
    def head_weight(self) -> Tensor:
        """Return the output matrix (V, C). With `tie_embeddings`, it is the token embedding itself (arXiv:1608.05859)."""
        return self.wte.weight if self.config.tie_embeddings else self.lm_head.weight

    def hidden(self, idx: Tensor, documents: Tensor | None = None) -> Tensor:
        """Compute the normalised last hidden states: token ids (B, T) -> (B, T, C).

        `documents` (B, T): document numbers, which never decrease along a row. If they are given, attention stays within each
        document, and the positions of each document begin at 0, so that a document gets the same result as if it were alone in
        the row. T may then exceed the context length, and longer documents are read in pieces of this length. Raises ValueError
        if T exceeds the context length and `documents` is None.
        """
        x, rope, mask = self.embed(idx, documents)
        x = self.drop(x)
        for block in self.blocks:
            x = self._run_block(block, x, rope, mask)  # (B, T, C)
        out: Tensor = self.norm_f(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., V) of hidden states (..., C), which are the result of the method `hidden`."""
        return F.linear(hidden, self.head_weight)

    def embed(self, idx: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Rope | None, Tensor | None]:
        """Compute the input of the first block: the embeddings (B, T, C) of token ids (B, T), without dropout.

        Learned or sinusoidal positions are included. Also returns the other two arguments of every block. `rope` holds the
        cosines and sines of the rotary positions, or is None for other positions. `mask` (B, 1, T, T) is True where a token may
        attend to another token. It is None if `documents` is None. For `documents` and the errors, see `hidden`.
        """
        T = idx.shape[1]
        if self.config.context_length < T:
            if documents is None:
                raise ValueError(f"{T} tokens do not fit the context length {self.config.context_length}")
            documents = cut_documents(documents, self.config.context_length)
        x = self.wte(idx)
        if self.config.smear:  # a single layer can then find the token after an earlier occurrence of this token
            x = x + self.smear * previous_embeddings(x, documents)
        rope = mask = None
        positions: slice | Tensor = slice(T)
        if documents is not None:
            positions, mask = positions_in_documents(documents), document_mask(documents, self.config.window)
        match self.config.position:
            case "learned":
                x = x + self.wpe.weight[positions]
            case "sinusoidal":
                x = x + self.positions[positions].to(x.dtype)
            case "rope":
                rope = (self.cos[positions], self.sin[positions])
                if documents is not None:
                    rope = (rope[0][:, None], rope[1][:, None])  # (B, 1, T, D/2): the same for all heads
            case _:
                assert_never(self.config.position)
        return x, rope, mask

    def _run_block(self, block: nn.Module, x: Tensor, rope: Rope | None, mask: Tensor | None) -> Tensor:
        """Apply a block, (B, T, C) -> (B, T, C); with `checkpoint_activations` its activations are not saved.

        The backward pass computes the activations again with the same autocast, the same gradient mode and, if there is
        dropout, the same random state. So kernels and dropout masks are the same, and the result is equal bit for bit.
        """
        if self.checkpoint_activations and torch.is_grad_enabled():
            has_dropout = self.config.dropout > 0
            x = checkpoint(block, x, rope, mask, use_reentrant=False, preserve_rng_state=has_dropout)
        else:
            x = block(x, rope, mask)
        return x

    def forward(self, idx: Tensor, targets: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """Compute logits (B, T, V) or, with `targets` (B, T), the loss in nats summed over all targets except -100.

        The loss is a sum, not a mean, so that the gradients of micro-batches add up to exactly the gradient of the whole
        batch. For `documents`, see `hidden`.
        """
        x = self.hidden(idx, documents)  # (B, T, C)
        if targets is None:
            return self.logits(x)
        return linear_cross_entropy(x.flatten(0, 1), self.head_weight, targets.flatten())


@torch.no_grad()
def init_weights(model: GPT, seed: int) -> None:
    """Draw the initial weights from a separate generator, so that they depend on `seed` alone.

    | parameter                                   | value                                       |
    |---------------------------------------------|---------------------------------------------|
    | wte, wpe (embeddings), lm_head (output)     | normal, std 0.02, as in GPT-2               |
    | q, k, v of attention; up, gate of the MLP   | normal, std 0.02                            |
    | out of attention; down of the MLP           | normal, std 0.02 / sqrt(2 L) for L blocks   |
    | biases                                      | 0                                           |
    | smear (scales the preceding embedding)      | 0                                           |
    | weights of norms                            | 1                                           |

    The matrices `out` and `down` of L blocks add 2 L vectors to the residual stream. The smaller std keeps the variance of this
    sum independent of L.
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
