"""Decode one token at a time, with packed weights and a preallocated key/value cache.

One token needs little arithmetic, so its time depends on the number of operators and on the bytes of weights to read.
Therefore the matrices of q, k and v are joined into one matrix, and so are the gate and up matrices of SwiGLU. For RoPE, the
channels of q and k are reordered, so that the two numbers that are rotated together are neighbours. One complex product then
rotates all pairs. The attention scores do not change, because q and k are reordered in the same way. If several query heads
share a key head, one matrix product computes the scores of all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from positron.inference.int8 import Int8Linear, dequantise, quantise
from positron.inference.packed_linear import Linear
from positron.model.gpt import GPT, Attention, Block, Elementwise, Norm
from positron.model.kernels.attention import window_mask
from positron.model.kernels.norms_and_heads import interleave_pairs
from positron.model.lora import effective_weight

PIECE = 128  # a prompt is read in pieces that end at multiples of this position; docs/LOG.md compares sizes

# arguments: q (N, H, D), new keys and new values (N, K, D), cached keys and cached values (B, K, T, D); result (N, H * D)
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Layer:
    """Hold the weights of one transformer block in the form that `Decoder` uses.

    A norm is a pair of weight and bias (None: no bias). The weight of an RMSNorm contains its C numbers twice (see
    `_rms_norm`).

    `up` is the first layer of the MLP, and includes the activation. SwiGLU is an exception: it has two first layers, the gate
    and the up projection. The weight of `up` then contains the rows of the gate, followed by the rows of the up projection, and
    `up` includes no activation.

    `qk_scale` contains the learned scales of QK-norm. H is the number of query heads, K the number of key heads, and D the
    number of channels of a head.
    """

    norm1: tuple[Tensor, Tensor | None]
    norm2: tuple[Tensor, Tensor | None]
    qkv: Linear | Int8Linear
    out: Linear | Int8Linear
    up: (
        Linear | Int8Linear
    )  # includes the activation; with SwiGLU, it includes none, and computes the gate and the up projection
    down: Linear | Int8Linear
    qk_scale: Tensor | None  # (H + K, D); with RoPE, the two numbers of each pair are neighbours


def piece_end(start: int, length: int) -> int:
    """Return the position after the next piece of a prompt of `length` tokens, of which the first `start` have been read.

    A piece is a part of a prompt that is read at once. Pieces end at multiples of 128 (PIECE), and the last piece ends at
    `length`. Other texts may be generated between two pieces of a prompt, but they do not change where the pieces end.
    Therefore the matrix products that read a prompt always have the same sizes, and its logits are always the same, bit for
    bit.
    """
    return min(length, start // PIECE * PIECE + PIECE)


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Compute RMSNorm of x (..., C) as the first half of the LayerNorm of (x, -x), a vector with mean 0.

    `weight` (2C,) contains the C weights twice; None means that all weights are 1. On a CPU, torch's own rms_norm needs eight
    operators, and sixteen in bf16; LayerNorm is one operator.
    """
    C = x.shape[-1]
    return F.layer_norm(torch.cat((x, -x), dim=-1), (2 * C,), weight, None, eps)[..., :C]


class Decoder:
    """Compute next-token logits for up to `batch` sequences at once, each with its own length up to the context length.

    The key/value cache has `batch` rows, one for each sequence. `lengths` contains the number of tokens that each row holds.
    """

    def __init__(self, model: GPT, batch: int = 1, dtype: torch.dtype | None = None) -> None:
        """Pack the weights, and allocate an empty cache with `batch` rows, one for each sequence.

        Some weights are copied. Therefore, create a new decoder after further training of the model. `dtype`: the number format
        of weights and cache. None keeps the model's format. int8 applies only to the matrices; all other weights and the cache
        are then bf16. On a CPU, a cache that would be bf16 is fp32, because attention is faster in fp32.
        """
        config = model.config
        self.config, self.model = config, model
        self.context_length, self.vocab_size = config.context_length, config.vocab_size
        self.device = model.wte.weight.device
        self.bytewise = dtype == torch.int8
        self.dtype = torch.bfloat16 if self.bytewise else dtype or model.wte.weight.dtype
        self.eps = config.norm_eps
        self.H, self.K, self.D = config.n_head, config.kv_heads, config.d_head
        # on a CPU, scaled_dot_product_attention for one query is three times slower in bf16 than in fp32
        narrow = self.dtype == torch.bfloat16 and self.device.type == "cpu"
        self.cache_dtype = torch.float32 if narrow else self.dtype
        self.layers = [self._pack(block) for block in model.blocks]  # type: ignore[arg-type]
        self.norm_f = self._norm(model.norm_f)
        self.head = self._linear(model.head_weight)
        tied = self.bytewise and config.tie_embeddings
        self.wte = (dequantise(*quantise(model.wte.weight)) if tied else model.wte.weight.detach()).to(self.dtype)
        self.positions: Tensor | None = None  # (T, C), added to the embeddings
        self.turn: Tensor | None = None  # (T, 1, D/2) complex numbers by which RoPE rotates queries and keys
        match config.position:
            case "learned":
                self.positions = model.wpe.weight.detach().to(self.dtype)
            case "sinusoidal":
                self.positions = model.positions.to(self.dtype)
            case "rope":
                wide = torch.float64 if self.dtype == torch.float64 else torch.float32  # there is no complex bfloat16
                self.turn = torch.complex(model.cos.to(wide), model.sin.to(wide))[:, None]
            case _:
                assert_never(config.position)
        self.smear = model.smear.detach().to(self.dtype) if config.smear else None
        self._allocate(batch)

    def _allocate(self, batch: int) -> None:
        """Allocate an empty cache for `batch` sequences."""
        context = self.config.context_length
        self.ids = torch.zeros((batch, context), dtype=torch.int64, device=self.device)
        shape = (self.config.n_layer, batch, self.K, context, self.D)
        self.k, self.v = (torch.zeros(shape, dtype=self.cache_dtype, device=self.device) for _ in range(2))
        self.lengths = [0] * batch  # the number of tokens of each sequence that the cache contains

    @property
    def row_bytes(self) -> int:
        """Return the size of one row of the cache, in bytes: the keys and values of a sequence that fills the context."""
        config = self.config
        return 2 * config.n_layer * self.K * config.context_length * self.D * self.cache_dtype.itemsize

    def with_empty_cache(self, batch: int) -> Decoder:
        """Return a copy of this decoder that shares its weights, but has its own empty cache for `batch` sequences."""
        other = copy.copy(self)
        other._allocate(batch)
        return other

    def with_rows(self, rows: list[int]) -> Decoder:
        """Create a decoder that shares the packed weights. Row i of the new cache is a copy of row rows[i] of this cache."""
        other, chosen = self.with_empty_cache(len(rows)), torch.tensor(rows, device=self.device)
        torch.index_select(self.ids, 0, chosen, out=other.ids)
        torch.index_select(self.k, 1, chosen, out=other.k)
        torch.index_select(self.v, 1, chosen, out=other.v)
        other.lengths = [self.lengths[row] for row in rows]
        return other

    def _norm(self, norm: Norm) -> tuple[Tensor, Tensor | None]:
        weight = norm.weight.detach().to(self.dtype)
        match self.config.norm:
            case "layernorm":
                return weight, norm.bias.detach().to(self.dtype) if norm.bias is not None else None
            case "rmsnorm":
                return torch.cat((weight, weight)), None
            case _:
                assert_never(self.config.norm)

    def _linear(self, weight: Tensor, bias: Tensor | None = None, activation: Elementwise = "") -> Linear | Int8Linear:
        bias = bias.detach().to(self.dtype) if bias is not None else None
        if self.bytewise:
            return Int8Linear(weight, bias, activation)
        return Linear(weight.detach().to(self.dtype).contiguous(), bias, activation)

    def _pack(self, block: Block) -> _Layer:
        attn, mlp = block.attn, block.mlp

        def joined(*parts: torch.nn.Linear, paired: int = 0, activation: Elementwise = "") -> Linear | Int8Linear:
            """Stack the weights of several linear layers into one layer, followed by `activation`.

            In the first `paired` of these layers (q and k), the rows are reordered so that the two rows of each RoPE pair are
            neighbours.
            """
            weights = [effective_weight(p) for p in parts]
            weights[:paired] = [interleave_pairs(weight, self.D) for weight in weights[:paired]]
            if parts[0].bias is None:
                return self._linear(torch.cat(weights), None, activation)
            biases = [p.bias if i >= paired else interleave_pairs(p.bias, self.D) for i, p in enumerate(parts)]
            return self._linear(torch.cat(weights), torch.cat(biases), activation)

        return _Layer(
            self._norm(block.norm1),
            self._norm(block.norm2),
            joined(attn.q, attn.k, attn.v, paired=2 if self.config.has_rope else 0),
            joined(attn.out),
            joined(mlp.gate, mlp.up) if mlp.activation == "swiglu" else joined(mlp.up, activation=mlp.activation),
            joined(mlp.down),
            self.head_scales(attn),
        )

    def head_scales(self, attn: Attention) -> Tensor | None:
        """Return the learned scales of QK-norm, one row for each head of q and of k: (H + K, D).

        H is the number of query heads, K the number of key heads, and D the number of channels of a head. If the model uses
        RoPE, the two scales of each RoPE pair are neighbours. Returns None if the model has no learned scales of QK-norm.
        """
        if not self.config.qk_scale:
            return None
        scales = [attn.q_norm.weight.detach().to(self.cache_dtype), attn.k_norm.weight.detach().to(self.cache_dtype)]
        if self.config.has_rope:
            scales = [interleave_pairs(scale, self.D) for scale in scales]
        return torch.cat([scales[0].expand(self.H, -1), scales[1].expand(self.K, -1)])

    def _apply_norm(self, x: Tensor, norm: tuple[Tensor, Tensor | None]) -> Tensor:
        match self.config.norm:
            case "layernorm":
                return F.layer_norm(x, norm[0].shape, *norm, self.eps)
            case "rmsnorm":
                return _rms_norm(x, norm[0], self.eps)
            case _:
                assert_never(self.config.norm)

    def _plus_mlp(self, x: Tensor, layer: _Layer) -> Tensor:
        h = layer.up(self._apply_norm(x, layer.norm2))
        match self.config.activation:
            case "swiglu":
                gate, h = h.chunk(2, dim=-1)
                h = F.silu(gate) * h
            case "gelu" | "relu" | "swish" | "relu2":
                pass  # applied by `up`
            case _:
                assert_never(self.config.activation)
        return layer.down.plus(h, x)

    def _heads(self, x: Tensor, layer: _Layer, turn: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Compute q, k and v of all heads for N tokens: x (N, C) -> q (N, H, D), k and v (N, K, D).

        H is the number of query heads, K the number of key heads, and D the number of channels of a head. If the model uses
        QK-norm, q and k are normalised. `turn`: the complex numbers (N or 1, 1, D/2) by which RoPE rotates q and k, or None for
        no rotation.
        """
        qkv = layer.qkv(x).to(self.cache_dtype).view(len(x), -1, self.D)
        qk, v = qkv[:, : self.H + self.K], qkv[:, self.H + self.K :]
        if layer.qk_scale is not None:
            qk = _rms_norm(qk, None, self.eps) * layer.qk_scale
        if turn is not None:
            pairs = qk.to(turn.real.dtype).unflatten(-1, (-1, 2))
            qk = torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2).to(self.cache_dtype)
        if self.config.qk_norm and layer.qk_scale is None:
            qk = _rms_norm(qk, None, self.eps)
        return qk[:, : self.H], qk[:, self.H :], v

    def _through(self, x: Tensor, turn: Tensor | None, attend: Attend) -> Tensor:
        """Apply all blocks to the vectors of N tokens: x (N, C) -> (N, C).

        `turn`: the complex numbers by which RoPE rotates queries and keys (see `_heads`), or None for a model without RoPE.
        `attend` is called for each block; it stores the new keys and values in the block's cache and computes the attention
        over this cache.
        """
        for layer, keys, values in zip(self.layers, self.k, self.v, strict=True):
            y = attend(*self._heads(self._apply_norm(x, layer.norm1), layer, turn), keys, values)
            x = layer.out.plus(y.to(self.dtype), x)
            x = self._plus_mlp(x, layer)
        return x

    def _logits(self, x: Tensor) -> Tensor:
        return self.head(self._apply_norm(x, self.norm_f))

    @torch.inference_mode()
    def prefill(self, rows: list[int], prompts: list[list[int]]) -> Tensor:
        """Replace the content of the cache rows `rows` by b prompts and return the logits after each prompt, (b, V).

        Each prompt is cut into pieces of at most 128 tokens (PIECE). The i-th pieces of all prompts are read together, padded
        at the end to the same length. The padding does not change the logits, because attention is causal. Raises ValueError
        for an empty prompt and for a prompt that is longer than the context.
        """
        self._check_prompts(prompts)
        last: dict[int, Tensor] = {}
        for start in range(0, max(map(len, prompts)), PIECE):
            longer = [i for i, prompt in enumerate(prompts) if len(prompt) > start]
            pieces = [prompts[i][start : start + PIECE] for i in longer]
            outputs = self._read_at(start, [rows[i] for i in longer], pieces)
            last |= {i: x[len(piece) - 1] for i, piece, x in zip(longer, pieces, outputs, strict=True)}
        for row, prompt in zip(rows, prompts, strict=True):
            self.lengths[row] = len(prompt)
        return self._logits(torch.stack([last[i] for i in range(len(prompts))]))

    def _check_prompts(self, prompts: list[list[int]]) -> None:
        min_length, max_length = min(map(len, prompts)), max(map(len, prompts))
        if not 0 < min_length <= max_length <= self.config.context_length:
            raise ValueError(
                f"the prompts have {min_length} to {max_length} tokens, but each must have 1 to {self.config.context_length}"
            )

    def _read_at(self, start: int, rows: list[int], parts: list[list[int]]) -> Tensor:
        """Append the tokens parts[i] to cache row rows[i], and return the output of the last block, (b, n, C).

        The b `parts` begin at position `start`, and are padded to the longest of them, which has n tokens. The numbers of
        tokens that the rows hold (`self.lengths`) do not change; the caller must set them.
        """
        b, n = len(rows), max(map(len, parts))
        end = start + n
        chosen = slice(rows[0], rows[0] + 1) if b == 1 else rows  # a slice of the cache is not copied
        idx = torch.tensor([part + [0] * (n - len(part)) for part in parts], device=self.device)
        x = F.embedding(idx, self.wte)  # (b, n, C)
        if self.smear is not None:
            self.ids[chosen, start:end] = idx
            before = F.embedding(self.ids[chosen, max(0, start - 1) : end - 1], self.wte)
            x = x + self.smear * (before if start else F.pad(before, (0, 0, 1, 0)))
        if self.positions is not None:
            x = x + self.positions[start:end]
        turn = None if self.turn is None else self.turn[start:end].repeat(b, 1, 1)
        mask = window_mask(end, self.config.window, self.device, start)  # (n, end)

        def attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            q, k, v = (part.unflatten(0, (b, n)).transpose(1, 2) for part in (q, k, v))  # (b, heads, n, D)
            keys[chosen, :, start:end], values[chosen, :, start:end] = k, v
            seen = keys[chosen, :, :end], values[chosen, :, :end]
            y = F.scaled_dot_product_attention(q, *seen, attn_mask=mask, enable_gqa=self.K < self.H)
            return y.transpose(1, 2).reshape(b * n, -1)

        return self._through(x.flatten(0, 1), turn, attend).view(b, n, -1)

    def _places(self, row: int, count: int) -> tuple[int, int]:
        """Return the cache position of the first of `count` new tokens of a row, and the position after the last of them.

        Raises ValueError if the tokens do not fit the cache.
        """
        start, n = self.lengths[row], self.lengths[row] + count
        if n > self.config.context_length:
            raise ValueError(
                f"row {row} would have {n} tokens, but the cache has room for {self.config.context_length}: give fewer tokens"
            )
        return start, n

    @torch.inference_mode()
    def read(self, ids: list[int], row: int = 0) -> Tensor:
        """Append T tokens to a row of the cache and return the logits after each of them, (T, V).

        Raises ValueError if the tokens do not fit the cache.
        """
        start, n = self._places(row, len(ids))
        [x] = self._read_at(start, [row], [ids])
        self.lengths[row] = n
        return self._logits(x)

    @torch.inference_mode()
    def read_piece(self, prompt: list[int], row: int) -> Tensor | None:
        """Append the next piece of `prompt` to a row, which already holds the first `self.lengths[row]` tokens of `prompt`.

        A piece is a part of the prompt that is read at once (see `piece_end`). When the whole prompt has been read, returns the
        logits after the prompt, (V,). Before that, returns None: the caller must call `read_piece` again. Raises ValueError if
        the prompt does not fit the cache.
        """
        start, n = self._places(row, len(prompt) - self.lengths[row])
        end = piece_end(start, n)
        return self._append_piece(prompt[start:end], row, is_end=end == n)

    def _append_piece(self, ids: list[int], row: int, *, is_end: bool) -> Tensor | None:
        """Append the tokens `ids`, a part of a prompt, to a row of the cache.

        `is_end`: whether this part ends the prompt. If so, returns the logits after the last token, (V,); otherwise None.
        """
        start = self.lengths[row]
        [x] = self._read_at(start, [row], [ids])
        self.lengths[row] = start + len(ids)
        return self._logits(x[-1:])[0] if is_end else None

    def _before(self, ids: Tensor) -> Tensor:
        """Return the embeddings (B, C) of the tokens that precede the new tokens `ids` (B,), one for each row of the cache.

        The embedding is 0 for a row that has no token before its new token. The new tokens are stored in `self.ids`.
        """
        first = self.lengths[0]
        if first and self.lengths.count(first) == len(ids):
            self.ids[:, first] = ids
            return F.embedding(self.ids[:, first - 1], self.wte)
        places = torch.tensor(self.lengths[: len(ids)], device=self.device)
        rows = torch.arange(len(ids), device=self.device)
        self.ids[rows, places] = ids
        return F.embedding(self.ids[rows, places - 1], self.wte) * (places > 0)[:, None]

    @torch.inference_mode()
    def step_some(self, ids: Tensor, rows: list[int]) -> Tensor:
        """Append one token to each of the b cache rows `rows`: ids (b,) -> next-token logits (b, V). Other rows do not change.

        The attention of each row is computed separately, with the same operators as in a decoder of one row; everything else is
        computed for all rows together. Raises ValueError if the cache of a row is full.
        """
        places = [self.lengths[row] for row in rows]
        if max(places) >= self.config.context_length:
            raise ValueError(f"the cache is full: {self.config.context_length} tokens")
        index, window = torch.tensor(places, device=self.device), self.config.window or self.config.context_length
        x = F.embedding(ids, self.wte)  # (b, C)
        if self.smear is not None:
            self.ids[rows, index] = ids
            x = x + self.smear * (F.embedding(self.ids[rows, index - 1], self.wte) * (index > 0)[:, None])
        if self.positions is not None:
            x = x + self.positions[index]
        turn = None if self.turn is None else self.turn[index]

        def attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            y = []
            for i, (row, place) in enumerate(zip(rows, places, strict=True)):
                keys[row, :, place], values[row, :, place] = k[i], v[i]
                visible = slice(max(0, place + 1 - window), place + 1)
                query = q[i].reshape(1, self.K, self.H // self.K, self.D)
                row_cache = keys[row : row + 1, :, visible], values[row : row + 1, :, visible]
                y.append(F.scaled_dot_product_attention(query, *row_cache).reshape(1, self.H * self.D))
            return torch.cat(y)

        x = self._through(x, turn, attend)
        for row in rows:
            self.lengths[row] += 1
        return self._logits(x)

    @torch.inference_mode()
    def step(self, ids: Tensor) -> Tensor:
        """Append one token to each row of the cache: ids (B,) -> next-token logits (B, V).

        Raises ValueError if the cache of a row is full.
        """
        places = self.lengths
        n, even = max(places) + 1, min(places) == max(places)
        if n > self.config.context_length:
            raise ValueError(f"the cache is full: {self.config.context_length} tokens")
        B, H, K, D = len(ids), self.H, self.K, self.D
        index = slice(n - 1, n) if even else torch.tensor(places, device=self.device)
        window = self.config.window or n
        first, mask = max(0, min(places) + 1 - window), None
        if not even:
            assert isinstance(index, Tensor)
            behind = index[:, None] - torch.arange(first, n, device=self.device)  # (B, n - first)
            mask = ((behind >= 0) & (behind < window))[:, None, None]
            rows = torch.arange(B, device=self.device)
        x = F.embedding(ids, self.wte)  # (B, C)
        if self.smear is not None:
            x = x + self.smear * self._before(ids)
        if self.positions is not None:
            x = x + self.positions[index]
        turn = None if self.turn is None else self.turn[index]

        def attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            if even:
                keys[:, :, n - 1], values[:, :, n - 1] = k, v
            else:
                keys[rows, :, index], values[rows, :, index] = k, v
            y = F.scaled_dot_product_attention(
                q.reshape(B, K, H // K, D), keys[:, :, first:n], values[:, :, first:n], attn_mask=mask
            )  # the H/K query heads that share a key head are H/K queries of one product
            return y.reshape(B, H * D)

        x = self._through(x, turn, attend)
        self.lengths = [place + 1 for place in places]
        return self._logits(x)
