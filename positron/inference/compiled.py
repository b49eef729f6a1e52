"""Decode on a CPU by one compiled call per token, instead of the 600 operators of torch that `Decoder` needs.

The time for one token is the time to read all weights. torch's matrix products read them at half of the memory bandwidth; the
compiled call reads them at the full bandwidth (docs/LOG.md). Activations, keys and values are fp32 for all formats of weights.
With bf16 or int8 weights, the weights are rounded and the arithmetic is fp32. `round_weights` returns an fp32 model with the
same rounded weights. Its logits are the same, up to rounding errors of fp32. The `evaluate` command, given the same format of
weights, measures this model.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from typing import Any, assert_never

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from positron.config import Activation
from positron.config import Norm as NormKind
from positron.inference import compiled_step as kernel
from positron.inference.decoder import Decoder
from positron.inference.int8 import Int8Linear, quantise, round_weights
from positron.inference.packed_linear import Linear
from positron.inference.thread_team import TEAM
from positron.model.gpt import GPT, Block, Elementwise, Norm
from positron.model.kernels.norms_and_heads import interleave_pairs
from positron.model.lora import effective_weight
from positron.system.console import one_line

logger = logging.getLogger(__name__)
ROWS_TOGETHER = 16  # maximum number of rows of a compiled call; more rows are divided among several calls
DIRECT_PROMPT = 32  # pieces of prompts up to this length are read by the compiled call, longer ones by torch's products
_owners = itertools.count(1)
_compiled: set[torch.dtype] = (
    set()
)  # formats of weights for which `compiled_step.work` has been compiled in this process


class CompiledDecoder(Decoder):
    """Compute the same as `Decoder`, for a model in fp32 on a CPU.

    The logits that `step`, `step_some` and `read` compute for a row depend neither on the number of threads nor on the other
    rows of the same call, not even in the last bit.
    """

    def __init__(self, model: GPT, batch: int = 1, dtype: torch.dtype | None = None) -> None:
        """Pack the weights, and compile the function of a decoding step, or load it from Numba's cache on disk.

        The arguments are those of `Decoder`. `dtype` must be fp32, bf16, int8, or None, which means fp32.
        """
        self.weight_dtype = dtype or torch.float32
        rounded = round_weights(model, None if dtype == torch.float32 else dtype)
        super().__init__(rounded, 0)
        self.model = model
        self.wte = self.wte.contiguous()
        self.packed = _Packed(rounded, self)
        self._allocate(batch)
        self._compile()

    def _linear(self, weight: Tensor, bias: Tensor | None = None, activation: Elementwise = "") -> Linear | Int8Linear:
        """Return the layer activation(x W^T + b), which torch computes. W is `weight`, and b is `bias` (None: no bias).

        torch computes only long parts of a prompt. A prompt is read in pieces of at most 128 tokens (see `piece_end` in
        `decoder.py`). torch reads a piece if it has more than 32 tokens (DIRECT_PROMPT). The compiled function reads shorter
        pieces, the last token of each prompt, and all generated tokens.

        The layer stores W in the decoder's number format, and converts it to fp32 at each call.
        """
        bias = bias.detach() if bias is not None else None
        if self.weight_dtype == torch.int8:
            return Int8Linear(weight, bias, activation)
        weight = weight.detach().to(self.weight_dtype).contiguous()
        return Linear(weight, bias, activation, widen=self.weight_dtype != torch.float32)

    def _allocate(self, batch: int) -> None:
        """Allocate an empty cache for `batch` sequences, and the arrays for the inputs and results of a decoding step."""
        super()._allocate(batch)
        if not hasattr(self, "packed"):  # called by Decoder.__init__, before the packed weights exist
            return
        config, packed, sizes = self.config, self.packed, self.packed.sizes
        self.owner, self.threads = next(_owners), 0
        wide, heads = _up_to(kernel.LANES, config.d_model), (self.H + 2 * self.K) * self.D
        hidden = _up_to(kernel.LANES, config.ff_width)
        self.job = np.zeros(kernel.JOB, dtype=np.int64)
        self.chunks = np.zeros((self._blocks() + 1, kernel.COLUMNS), dtype=np.int64)
        self.new, self.before, self.slots, self.places = (np.zeros(ROWS_TOGETHER, dtype=np.int64) for _ in range(4))
        self.logits = _zeros(ROWS_TOGETHER, _up_to(kernel.LANES, config.vocab_size))
        rows = ROWS_TOGETHER
        self.arrays: tuple[Any, ...] = (
            (self.job, self.chunks),
            (sizes, np.float32(self.eps), packed.offsets, packed.weights, packed.floats, self.wte.numpy()),
            (self.k.numpy(), self.v.numpy()),
            (self.new, self.before, self.slots, self.places),
            (
                *(_zeros(rows, wide), _zeros(rows, wide), _zeros(rows, _up_to(kernel.LANES, heads))),
                _zeros(rows, _up_to(kernel.CHAINS, self.H * self.D)),
                *(_zeros(rows, hidden), _zeros(rows, hidden)),
                _zeros(TEAM.size, rows, _up_to(kernel.CHAINS, config.d_model)),
                *(_zeros(TEAM.size, config.context_length), self.logits),
            ),
        )

    def _compile(self) -> None:
        """Compile `compiled_step.work` for this format of weights, or load it from Numba's cache on disk.

        Numba compiles a function at its first call. Therefore this method calls `work` once, with nothing to compute.
        """
        if self.weight_dtype not in _compiled:
            message = "compiling the decoder for this processor, once for each format of weights: about 15 seconds"
            nothing = (0, 0, self.owner, np.zeros(kernel.SYNC, dtype=np.int64), *self.arrays)
            with kernel.on_compilation(lambda: logger.info(message)):
                try:
                    kernel.work(*nothing)
                except Exception as error:  # a power cut has damaged the cache, or its disk is full
                    folder = kernel.leave_cache()
                    if folder is None:
                        raise
                    reason = one_line(f"{type(error).__name__}: {error}")
                    logger.warning(
                        f"the compiled decoder is not kept for later commands, because its cache cannot be used ({reason}): "
                        f"free disk space, or delete the folder {folder}"
                    )
                    kernel.work(*nothing)
            _compiled.add(self.weight_dtype)

    def _phases(self) -> Iterable[tuple[int, int, int]]:
        """Yield the phases of a decoding step in order, as (kind, layer, number of items).

        The kinds are constants of `compiled_step`. A layer has the phases QKV, OUT, UP and DOWN, which are matrix products, and
        ATTEND, which is the attention. The phase HEAD computes the logits. An item is the smallest part of a phase: one key
        head in ATTEND, and a block of 16 rows of the matrix in all other phases. The items of a phase do not depend on each
        other, but they depend on the earlier phases.
        """
        config = self.config
        for layer in range(config.n_layer):
            yield kernel.QKV, layer, _blocks((self.H + 2 * self.K) * self.D)
            yield kernel.ATTEND, layer, self.K
            yield kernel.OUT, layer, _blocks(config.d_model)
            yield kernel.UP, layer, _blocks(config.ff_width)
            yield kernel.DOWN, layer, _blocks(config.d_model)
        yield kernel.HEAD, config.n_layer, _blocks(config.vocab_size)

    def _blocks(self) -> int:
        return sum(items for _, _, items in self._phases())

    def plan(self, threads: int) -> None:
        """Divide each phase of a decoding step, such as a matrix product, into chunks for the threads.

        The chunks of a phase become smaller and smaller, so that all threads finish the phase at about the same time.
        """
        if threads == self.threads:
            return
        chunks: list[tuple[int, ...]] = []
        for kind, layer, items in self._phases():
            first, after = 0, len(chunks)
            while first < items:
                size = items if threads == 1 else max(1, (items - first) // (2 * threads))
                chunks.append((kind, layer, first, first + size, after))
                first += size
        self.chunks[: len(chunks)] = chunks
        self.job[kernel.CHUNKS] = len(chunks)
        self.threads = threads

    def _append(self, ids: list[int], rows: list[int], places: list[int]) -> Tensor:
        """Append token ids[i] to cache row rows[i] at position places[i], and return the logits after each of n tokens, (n, V).

        A row may occur several times, with consecutive positions. The number of tokens in each row, `self.lengths`, is not
        updated; the caller must do this.
        """
        logits = torch.empty(len(ids), self.config.vocab_size, dtype=torch.float32, device="cpu")
        known = self.ids.numpy()
        for begin in range(0, len(ids), ROWS_TOGETHER):
            part = slice(begin, begin + ROWS_TOGETHER)
            n = len(ids[part])
            self.new[:n], self.slots[:n], self.places[:n] = ids[part], rows[part], places[part]
            self.job[kernel.ROWS] = n
            if self.smear is not None:
                for i, (token, row, place) in enumerate(zip(ids[part], rows[part], places[part], strict=True)):
                    known[row, place] = token
                    self.before[i] = known[row, place - 1] if place else -1
            TEAM.run(self)
            logits.numpy()[part] = self.logits[:n, : self.config.vocab_size]
        return logits

    @torch.inference_mode()
    def prefill(self, rows: list[int], prompts: list[list[int]]) -> Tensor:
        """Replace the content of the cache rows `rows` by b prompts and return the logits after each prompt, (b, V).

        Each prompt is read by itself, so that its logits do not depend on the other prompts. Raises ValueError for an empty
        prompt and for a prompt that is longer than the context.
        """
        self._check_prompts(prompts)
        last: list[Tensor] = []
        for row, prompt in zip(rows, prompts, strict=True):
            self.lengths[row], logits = 0, None
            while logits is None:
                logits = self.read_piece(prompt, row)
            last.append(logits)
        return torch.stack(last)

    def _append_piece(self, ids: list[int], row: int, *, is_end: bool) -> Tensor | None:
        if len(ids) > DIRECT_PROMPT:
            before_last = ids[:-1] if is_end else ids
            self._read_at(self.lengths[row], [row], [before_last])
            self.lengths[row] += len(before_last)
            ids = ids[len(before_last) :]
        logits = self.read(ids, row)  # of a long piece, the prompt's last token or nothing
        return logits[-1] if is_end else None

    @torch.inference_mode()
    def read(self, ids: list[int], row: int = 0) -> Tensor:
        """Append T tokens to a row of the cache and return the logits after each of them, (T, V).

        Raises ValueError if the tokens do not fit the cache.
        """
        start, n = self._places(row, len(ids))
        logits = self._append(ids, [row] * len(ids), list(range(start, n)))
        self.lengths[row] = n
        return logits

    @torch.inference_mode()
    def step_some(self, ids: Tensor, rows: list[int]) -> Tensor:
        """Append one token to each of the b cache rows `rows`: ids (b,) -> next-token logits (b, V). Other rows do not change.

        Raises ValueError if the cache of a row is full.
        """
        places = [self.lengths[row] for row in rows]
        if max(places) >= self.config.context_length:
            raise ValueError(f"the cache is full: {self.config.context_length} tokens")
        logits = self._append(ids.tolist(), rows, places)
        for row in rows:
            self.lengths[row] += 1
        return logits

    def step(self, ids: Tensor) -> Tensor:
        """Append one token to each row of the cache: ids (B,) -> next-token logits (B, V).

        Raises ValueError if the cache of a row is full.
        """
        return self.step_some(ids, list(range(len(ids))))


def norm_code(kind: NormKind) -> int:
    """Return the number that stands for this kind of norm in `compiled_step`."""
    match kind:
        case "layernorm":
            return kernel.LAYERNORM
        case "rmsnorm":
            return kernel.RMSNORM
        case _:
            assert_never(kind)


def activation_code(kind: Activation) -> int:
    """Return the number that stands for this activation in `compiled_step`."""
    match kind:
        case "gelu":
            return kernel.GELU
        case "relu":
            return kernel.RELU
        case "swish":
            return kernel.SWISH
        case "relu2":
            return kernel.RELU2
        case "swiglu":
            return kernel.SWIGLU
        case _:
            assert_never(kind)


class _Packed:
    """Hold all weights in the layout that `compiled_step.py` reads.

    `weights` (1-D) contains the matrices, and `floats` (1-D, fp32) all other tensors. `offsets` has a row for each layer, and a
    last row for the last norm and the output matrix. A row contains the indices at which the tensors begin in `weights` or
    `floats`. `sizes` contains the dimensions and options of the model. It also contains the indices in `floats` at which the
    tensors that belong to no layer begin: the position embeddings, the cosines and sines of RoPE, and `smear`. `smear`
    is a factor for each channel; the previous token's embedding times `smear` is added to each embedding.
    """

    def __init__(self, model: GPT, decoder: CompiledDecoder) -> None:
        config = model.config
        self.dtype = decoder.weight_dtype
        self._weights, self._floats = _Parts(), _Parts()
        heads = (config.n_head + 2 * config.kv_heads) * config.d_head
        widest = max(heads, config.d_model, config.vocab_size, 2 * config.ff_width + kernel.LANES)
        self._no_bias = self._floats.add(torch.zeros(widest + kernel.LANES, dtype=torch.float32, device="cpu"))
        self.offsets = np.zeros((config.n_layer + 1, kernel.PLACES), dtype=np.int64)
        for i, block in enumerate(model.blocks):
            self.offsets[i] = self._layer(block, decoder)  # type: ignore[arg-type]
        self.offsets[-1, [kernel.NORM_F, kernel.NORM_F_BIAS]] = self._norm(model.norm_f)
        self.offsets[-1, [kernel.HEAD_W, kernel.HEAD_SCALE, kernel.HEAD_BIAS]] = self._matrix((model.head_weight, None))
        self.sizes = np.zeros(kernel.SIZES, dtype=np.int64)
        sizes = (config.d_model, config.n_head, config.kv_heads, config.d_head, config.ff_width, config.vocab_size)
        self.sizes[[kernel.C, kernel.H, kernel.K, kernel.D, kernel.F, kernel.V]] = sizes
        self.sizes[kernel.WINDOW] = config.window or config.context_length
        self.sizes[kernel.NORM] = norm_code(config.norm)
        self.sizes[kernel.ACTIVATION] = activation_code(config.activation)
        self.sizes[kernel.QK_NORM] = config.qk_norm
        self.sizes[kernel.SMEAR] = self._optional(decoder.smear)
        self.sizes[kernel.POSITIONS] = self._optional(decoder.positions)
        self.sizes[kernel.COS] = self._optional(None if decoder.turn is None else decoder.turn.real)
        self.sizes[kernel.SIN] = self._optional(None if decoder.turn is None else decoder.turn.imag)
        self.weights, self.floats = self._weights.joined(), self._floats.joined()

    def _optional(self, part: Tensor | None) -> int:
        """Append a tensor to the fp32 array and return the index of its first number, or -1 if `part` is None."""
        return -1 if part is None else self._floats.add(part.detach().float())

    def _norm(self, norm: Norm) -> tuple[int, int]:
        return self._floats.add(norm.weight.detach()), self._no_bias if norm.bias is None else self._optional(norm.bias)

    def _layer(self, block: Block, decoder: CompiledDecoder) -> list[int]:
        """Append the tensors of a transformer block to the arrays `weights` and `floats`, and return where each tensor begins.

        The returned list becomes the row of `self.offsets` for this block. Its order is that of the constants NORM1 to
        HEADS_SCALE of `compiled_step`. An item is the index of the first number of a tensor. `decoder` provides the
        configuration and the learned scales of QK-norm; if the model has no such scales, their item is -1.
        """
        attn, mlp, config = block.attn, block.mlp, decoder.config

        def parts(*linears: nn.Linear) -> list[tuple[Tensor, Tensor | None]]:
            return [(effective_weight(linear), linear.bias) for linear in linears]

        def turned(linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
            """Return the layer's weight and bias, reordered so that the two rows of each RoPE pair are neighbours.

            If the model does not use RoPE, they are returned unchanged.
            """
            ((weight, bias),) = parts(linear)
            if not config.has_rope:
                return weight, bias
            return interleave_pairs(weight, decoder.D), None if bias is None else interleave_pairs(bias, decoder.D)

        qkv = [turned(attn.q), turned(attn.k), *parts(attn.v)]
        biases = [bias for _, bias in qkv if bias is not None]
        joined = torch.cat([weight for weight, _ in qkv]), torch.cat(biases) if biases else None
        scale = decoder.head_scales(attn)
        return [
            *(
                *self._norm(block.norm1),
                *self._norm(block.norm2),
                *self._matrix(joined),
                *self._matrix(*parts(attn.out)),
            ),
            *self._matrix(*(parts(mlp.gate, mlp.up) if config.is_gated else parts(mlp.up))),
            *self._matrix(*parts(mlp.down)),
            self._optional(None if scale is None else torch.cat((scale[0], scale[decoder.H]))),
        ]

    def _matrix(self, *parts: tuple[Tensor, Tensor | None]) -> tuple[int, int, int]:
        """Append matrices of one shape with their biases, and return where the matrices, the scales and the biases begin.

        `parts`: (matrix, bias) pairs. The matrices are stored one after the other, each in blocks of 16 rows (see
        `compiled_step.py`). A scale is the factor of a row of an int8 matrix; for other formats, it is 1. If the matrices have
        no biases, the third index points to an array of zeros.
        """
        packed, scales, biases = [], [], []
        for weight, bias in parts:
            rows, columns = weight.shape
            if self.dtype == torch.int8:
                narrow, scale = quantise(weight)
            else:
                narrow, scale = weight.detach().to(self.dtype), torch.ones(rows, dtype=torch.float32, device="cpu")
            padding = _up_to(kernel.LANES, rows) - rows
            narrow = F.pad(narrow, (0, _up_to(kernel.CHAINS, columns) - columns, 0, padding))
            packed.append(narrow.view(-1, kernel.LANES, narrow.shape[1]).transpose(1, 2).flatten())
            scales.append(F.pad(scale.float(), (0, padding)))
            if bias is not None:
                biases.append(F.pad(bias.detach(), (0, padding)))
        begin = self._floats.add(torch.cat(biases)) if biases else self._no_bias
        return self._weights.add(torch.cat(packed)), self._floats.add(torch.cat(scales)), begin


class _Parts:
    """Collect tensors of one dtype and join them into a 1-D array."""

    def __init__(self) -> None:
        self.size, self._parts = 0, list[Tensor]()

    def add(self, part: Tensor) -> int:
        """Append a tensor and return the index that its first number will have in the array."""
        begin, self.size = self.size, self.size + part.numel()
        self._parts.append(part.flatten())
        return begin

    def joined(self) -> np.ndarray:
        """Return all tensors as one 1-D array, and release the tensors.

        bf16 numbers are returned as uint16 with the same bits, because NumPy has no bf16. The memory is allocated by NumPy
        instead of torch, because NumPy asks Linux for huge pages. With pages of 4 KB the weights were read at half the speed:
        370 instead of 750 tokens per second (docs/LOG.md).
        """
        dtype = self._parts[0].dtype
        memory = np.empty(self.size * dtype.itemsize + _LINE, dtype=np.uint8)
        begin = -memory.ctypes.data % _LINE
        joined = torch.from_numpy(memory[begin:][: self.size * dtype.itemsize]).view(dtype)
        torch.cat(self._parts, out=joined)
        self._parts.clear()
        array: np.ndarray = (joined.view(torch.uint16) if dtype == torch.bfloat16 else joined).numpy()
        return array


_LINE = 64  # bytes of a line of the processor's cache


def _zeros(*shape: int) -> np.ndarray:
    """Return an fp32 array of zeros that begins at a multiple of 64 bytes."""
    array: np.ndarray = torch.zeros(shape, dtype=torch.float32, device="cpu").numpy()
    return array


def _up_to(multiple: int, number: int) -> int:
    return -(-number // multiple) * multiple


def _blocks(rows: int) -> int:
    return _up_to(kernel.LANES, rows) // kernel.LANES
