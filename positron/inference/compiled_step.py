"""Define one step of decoding as a function that Numba compiles: all layers, for several rows, by several threads.

A step is a list of phases (the products of a layer, its attention, the logits), and each phase is a list of chunks. A thread
takes the next chunk from an atomic counter, after all chunks of the earlier phases are done. A thread waits only for chunks
that another thread has already taken. If the other threads are late or asleep, the thread that started the step computes all
chunks itself, with the same result.

A matrix is stored in blocks of 16 rows (`_Packed` in `compiled.py`). The 16 numbers of a column of a block are adjacent, so a
block is read from beginning to end. A vector register of 16 numbers holds one sum for each row of the block. The order of the
additions for a row of the batch does not depend on the number of rows in the batch. Therefore the logits of a text are the
same, bit for bit, whatever other texts are in the batch.

All kernels are in this file, because Numba's cache on disk notices changes only in the file of the outermost function.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.core.caching import NullCache
from numba.core.event import Listener, install_listener
from numba.extending import intrinsic

from positron.system.download import cache_folder
from positron.system.errors import UserError

LANES = 16  # number of rows of a block
CHAINS = 4  # number of partial sums of a product; additions to different sums need not wait for each other

# Columns of a chunk: its phase and layer, its first item, the item after its last one, the number of chunks of earlier phases
PHASE, LAYER, FIRST, END, AFTER, COLUMNS = range(6)
QKV, ATTEND, OUT, UP, DOWN, HEAD = range(6)
# Codes of the options of the model, chosen by `compiled.py`. A kernel computes NaN for an unknown code and raises no error:
# after an error in one thread, the others would wait for its chunk for ever.
LAYERNORM, RMSNORM = range(2)
GELU, RELU, SWISH, RELU2, SWIGLU = range(5)

# Indices in `sizes`. SMEAR to SIN are the index in `floats` at which these numbers begin, or -1 if the model has none.
C, H, K, D, F, V, WINDOW, NORM, ACTIVATION, QK_NORM, SMEAR, POSITIONS, COS, SIN, SIZES = range(15)
# Indices in a row of `offsets`. There is a row for each layer, and a last row for norm_f and the head. A row contains the
# indices at which its arrays begin in `weights` (names with W) or in `floats` (all others).
NORM1, NORM1_BIAS, NORM2, NORM2_BIAS, QKV_W, QKV_SCALE, QKV_BIAS, OUT_W, OUT_SCALE, OUT_BIAS = range(10)
UP_W, UP_SCALE, UP_BIAS, DOWN_W, DOWN_SCALE, DOWN_BIAS, HEADS_SCALE, PLACES = range(10, 18)
NORM_F, NORM_F_BIAS, HEAD_W, HEAD_SCALE, HEAD_BIAS = NORM1, NORM1_BIAS, QKV_W, QKV_SCALE, QKV_BIAS
# Indices in `job`: number of rows of the batch, number of chunks of the step
ROWS, CHUNKS, JOB = range(3)
# Indices in `sync`; each number has a cache line of its own
TICKET, DONE, OWNER, SYNC = 0, 16, 32, 48
NOBODY = -1  # the owner if no step is being computed

# A helper without work spins for about 0.5 ms (SPIN_S), which is longer than choosing the next token takes, and then sleeps. If
# it slept longer than that, another program had the caller's core: then it spins for a short time only, because the time it
# spends spinning is taken from its share of the cores. While it spins, it regularly offers its core to other programs.
SPINS = 20_000
SPIN_S = 0.5e-3
SPINS_ON_BUSY_CORES = 200
SPINS_BEFORE_YIELD = 2000
_CLOSED = 0xFFFFFFFF  # larger than the number of chunks of any step

OPTIONS = {"reassoc", "contract", "nsz", "arcp"}  # without nnan and ninf, so that a diverged model still gives NaN
inner = njit(nogil=True, fastmath=OPTIONS)


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def _product(rows: int) -> Callable[..., None]:
    """Create the Numba intrinsic that computes y = x W^T for a block of 16 rows of W, and for `rows` rows of x."""
    lanes = ir.VectorType(ir.FloatType(), LANES)

    def widened(builder: Any, kind: Any, pointer: Any) -> Any:
        """Load 16 weights and convert them to fp32."""
        narrow = ir.VectorType(pointer.type.pointee, LANES)
        vector = builder.load(builder.bitcast(pointer, narrow.as_pointer()))
        vector.align = kind.bitwidth // 8
        if kind == types.float32:
            return vector
        whole = ir.VectorType(ir.IntType(32), LANES)
        if kind == types.int8:
            return builder.sitofp(builder.sext(vector, whole), lanes)
        shift = ir.Constant(whole, [16] * LANES)  # bf16 is the upper half of fp32
        return builder.bitcast(builder.shl(builder.zext(vector, whole), shift), lanes)

    @intrinsic
    def product(
        typing: Any, w: Any, w_at: Any, width: Any, x: Any, x_at: Any, x_row: Any, y: Any, y_at: Any, y_row: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w_kind, _, _, x_kind, _, _, y_kind, _, _ = signature.args
            w_array, w_at, width, x_array, x_at, x_row, y_array, y_at, y_row = args
            whole = width.type
            w_from = builder.gep(_data(context, builder, w_kind, w_array), [w_at])
            x_from = builder.gep(_data(context, builder, x_kind, x_array), [x_at])
            y_from = builder.gep(_data(context, builder, y_kind, y_array), [y_at])
            muladd = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(lanes, [lanes] * 3), "llvm.fmuladd.v16f32"
            )
            zero = ir.Constant(lanes, [0.0] * LANES)
            first_lane = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
            sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(CHAINS)] for _ in range(rows)]
            x_rows = [builder.gep(x_from, [builder.mul(x_row, whole(r))]) for r in range(rows)]
            with cgutils.for_range_slice(builder, whole(0), width, whole(CHAINS), whole) as (column, _):
                for chain in range(CHAINS):
                    k = builder.add(column, whole(chain))
                    wide = widened(builder, w_kind.dtype, builder.gep(w_from, [builder.mul(k, whole(LANES))]))
                    for r in range(rows):
                        number = builder.load(builder.gep(x_rows[r], [k]))
                        seed = builder.insert_element(zero, number, ir.IntType(32)(0))
                        spread = builder.shuffle_vector(seed, zero, first_lane)
                        total = sums[r][chain]
                        builder.store(builder.call(muladd, [wide, spread, builder.load(total)]), total)
            for r in range(rows):
                a, b, c, d = (builder.load(total) for total in sums[r])
                pointer = builder.gep(y_from, [builder.mul(y_row, whole(r))])
                total = builder.fadd(builder.fadd(a, b), builder.fadd(c, d))
                stored = builder.store(total, builder.bitcast(pointer, lanes.as_pointer()))
                stored.align = 4
            return context.get_dummy_value()

        return types.void(w, types.intp, types.intp, x, types.intp, types.intp, y, types.intp, types.intp), generate

    return product


_product1, _product2, _product4 = _product(1), _product(2), _product(4)


@intrinsic
def _load(typing: Any, array: Any, place: Any) -> Any:
    """Read array[place] with an atomic load in acquire order, because other threads may change this number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.gep(_data(context, builder, signature.args[0], args[0]), [args[1]])
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(array, types.intp), generate


@intrinsic
def _store(typing: Any, array: Any, place: Any, value: Any) -> Any:
    """Write `value` to array[place]; a thread that reads `value` also sees this thread's earlier writes (release order)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.gep(_data(context, builder, signature.args[0], args[0]), [args[1]])
        builder.store_atomic(args[2], pointer, "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), generate


@intrinsic
def _add_one(typing: Any, array: Any, place: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.gep(_data(context, builder, signature.args[0], args[0]), [args[1]])
        return builder.atomic_rmw("add", pointer, ir.IntType(64)(1), "acq_rel")

    return types.int64(array, types.intp), generate


@intrinsic
def _exchange(typing: Any, array: Any, place: Any, old: Any, new: Any) -> Any:
    """If array[place] equals `old`, set array[place] to `new`. Tell whether it was set. This is one atomic operation."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.gep(_data(context, builder, signature.args[0], args[0]), [args[1]])
        pair = builder.cmpxchg(pointer, args[2], args[3], "acq_rel", "acquire")
        return builder.extract_value(pair, 1)

    return types.boolean(array, types.intp, types.int64, types.int64), generate


_IS_X86 = platform.machine() in ("x86_64", "AMD64")


@intrinsic
def _pause(typing: Any) -> Any:
    """Execute the instruction `pause` on x86; do nothing on other processors.

    The calling thread then waits for a few dozen cycles. Meanwhile, the other hardware thread of the core can use the whole
    core.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _IS_X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


_YIELD = "positron_yield"  # a name for the system's function, whose own name differs on Windows
if sys.platform == "win32":
    _yield_function = ctypes.windll.kernel32.SwitchToThread
else:
    _yield_function = ctypes.CDLL(None).sched_yield
llvmlite.binding.add_symbol(_YIELD, ctypes.cast(_yield_function, ctypes.c_void_p).value)


@intrinsic
def _yield(typing: Any) -> Any:
    """Let the operating system run another thread on this core.

    This is a Numba intrinsic. Compiled code calls it without arguments. Numba passes `typing`, its typing context, and uses the
    returned signature and code generator.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, _YIELD), [])
        return context.get_dummy_value()

    return types.void(), generate


@inner
def _multiply(w, at, width, first, end, x, x_at, x_row, y, rows, floats, scale, bias):
    """Compute some columns of y = (x W^T) scale + bias for `rows` rows of x.

    The rows of W are divided into blocks of 16, which give 16 columns of the 2-D array y each. The columns of the blocks
    `first` to `end` - 1 are computed. W begins at index `at` of the 1-D array `w`. Each row of W has `width` numbers. The
    blocks are stored one after another, and each block is stored column by column. The first row of x begins at the flat index
    `x_at` of the array `x`, and each further row begins `x_row` numbers after the row before it. `scale` and `bias` are the
    indices in `floats` at which the scales and biases of all columns of y begin.
    """
    y_row = y.shape[1]
    for block in range(first, end):
        begin, to, row = at + block * width * LANES, block * LANES, 0
        while row + 4 <= rows:
            _product4(w, begin, width, x, x_at + row * x_row, x_row, y, to + row * y_row, y_row)
            row += 4
        if row + 2 <= rows:
            _product2(w, begin, width, x, x_at + row * x_row, x_row, y, to + row * y_row, y_row)
            row += 2
        if row < rows:
            _product1(w, begin, width, x, x_at + row * x_row, x_row, y, to + row * y_row, y_row)
    width = (end - first) * LANES
    scales, biases = floats[scale + first * LANES :][:width], floats[bias + first * LANES :][:width]
    for row in range(rows):
        part = y[row, first * LANES : end * LANES]
        for i in range(width):
            part[i] = part[i] * scales[i] + biases[i]


@njit(nogil=True, fastmath={"contract"})  # without "reassoc", which would join the two parts of ln(2)
def _exp(x):
    """Compute e^x with an error of about two units in the last place, using only operations that have vector instructions.

    x is first limited to -87 to 88, where e^x is a normal number in fp32. Then e^x = 2^n e^r with |r| <= ln(2) / 2. The
    polynomial for e^r comes from expf in the Cephes library.
    """
    x = np.float32(-87.0) if x < np.float32(-87.0) else x
    x = np.float32(88.0) if x > np.float32(88.0) else x
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@inner
def _normalise(kind, eps, x, weight, bias, y):
    """Write the LayerNorm or RMSNorm of x (C,) with `weight` and `bias` (C,) to y (C,).

    `kind`: LAYERNORM or RMSNORM, constants of this module.
    """
    mean = np.float32(0.0)
    if kind == LAYERNORM:
        for i in range(x.size):
            mean += x[i]
        mean /= np.float32(x.size)
    elif kind != RMSNORM:
        mean = np.float32(np.nan)
    total = np.float32(0.0)
    for i in range(x.size):
        total += (x[i] - mean) * (x[i] - mean)
    inverse = np.float32(1.0) / np.sqrt(total / np.float32(x.size) + eps)
    for i in range(x.size):
        y[i] = (x[i] - mean) * inverse * weight[i] + bias[i]


@inner
def _activate(kind, h, u):
    """Apply the activation `kind` to h (F,) in place. For SWIGLU, h becomes swish(h) * u, with u (F,).

    `kind`: GELU, RELU, SWISH, RELU2 or SWIGLU, constants of this module. u is used only for SWIGLU.
    """
    if kind == GELU:  # 0.5 h (1 + tanh(z)) = h / (1 + e^(-2 z)), z = sqrt(2 / pi) (h + 0.044715 h^3)
        for i in range(h.size):
            z = h[i] * (np.float32(1.5957691216) + np.float32(0.0713548163) * h[i] * h[i])
            h[i] = h[i] / (np.float32(1.0) + _exp(-z))
    elif kind == RELU:
        for i in range(h.size):
            h[i] = np.float32(0.0) if h[i] < np.float32(0.0) else h[i]
    elif kind == RELU2:
        for i in range(h.size):
            h[i] = np.float32(0.0) if h[i] < np.float32(0.0) else h[i] * h[i]
    elif kind == SWISH:
        for i in range(h.size):
            h[i] = h[i] / (np.float32(1.0) + _exp(-h[i]))
    elif kind == SWIGLU:
        for i in range(h.size):
            h[i] = h[i] / (np.float32(1.0) + _exp(-h[i]))
        for i in range(h.size):
            h[i] *= u[i]
    else:
        h[:] = np.float32(np.nan)


@inner
def _unit(x, eps):
    """Divide x (D,) in place by its root mean square, sqrt(mean(x^2) + eps)."""
    total = np.float32(0.0)
    for i in range(x.size):
        total += x[i] * x[i]
    inverse = np.float32(1.0) / np.sqrt(total / np.float32(x.size) + eps)
    for i in range(x.size):
        x[i] *= inverse


@inner
def _head(x, eps, place, sizes, floats, scale):
    """Apply QK-norm and RoPE to x (D,) in place, if the model has them.

    x is the query or the key of one head, for one token. `place`: the position of the token in its sequence. `scale`: the index
    in `floats` at which the learned scale of QK-norm begins, or -1 if the model has no such scale. `sizes` and `floats` are
    described in `work`.
    """
    half = x.size // 2
    if scale >= 0:
        _unit(x, eps)
        factors = floats[scale:][: x.size]
        for i in range(x.size):
            x[i] *= factors[i]
    if sizes[COS] >= 0:
        cos, sin = floats[sizes[COS] + place * half :][:half], floats[sizes[SIN] + place * half :][:half]
        for i in range(half):
            a, b = x[2 * i], x[2 * i + 1]
            x[2 * i] = a * cos[i] - b * sin[i]
            x[2 * i + 1] = a * sin[i] + b * cos[i]
    if sizes[QK_NORM] != 0 and scale < 0:
        _unit(x, eps)


@inner
def _attend(q, keys, values, scores, y):
    """Write the attention of a query q (D,) over keys and values (T, D) to y (D,). `scores`: scratch memory for T numbers."""
    factor = np.float32(1.0 / np.sqrt(q.size))
    max_score = np.float32(-np.inf)
    for t in range(keys.shape[0]):
        key = keys[t]
        total = np.float32(0.0)
        for i in range(q.size):
            total += q[i] * key[i]
        total *= factor
        scores[t] = total
        max_score = total if total > max_score else max_score
    total = np.float32(0.0)
    for t in range(keys.shape[0]):
        scores[t] = _exp(scores[t] - max_score)
        total += scores[t]
    inverse = np.float32(1.0) / total
    y[:] = np.float32(0.0)
    whole = keys.shape[0] // 4 * 4
    for t in range(0, whole, 4):
        a, b, c, d = scores[t], scores[t + 1], scores[t + 2], scores[t + 3]
        v, w, x, z = values[t], values[t + 1], values[t + 2], values[t + 3]
        for i in range(q.size):
            y[i] += a * v[i] + b * w[i] + c * x[i] + d * z[i]
    for t in range(whole, keys.shape[0]):
        value = values[t]
        for i in range(q.size):
            y[i] += scores[t] * value[i]
    for i in range(q.size):
        y[i] *= inverse


@inner
def _embed(rows, model, batch, x):
    """Write the embeddings of the tokens of the batch to x (R, C), where R is the number of rows of the batch, `rows`.

    If the model has position embeddings, they are added. If it has `smear`, a learned factor for each channel, the previous
    token's embedding times `smear` is added. `model` and `batch` are described in `work`.
    """
    sizes, _, _, _, floats, wte = model
    ids, before, _, places = batch
    width = sizes[C]
    for row in range(rows):
        out = x[row, :width]
        out[:] = wte[ids[row]]
        if sizes[SMEAR] >= 0 and before[row] >= 0:
            smear, last = floats[sizes[SMEAR] :][:width], wte[before[row]]
            for i in range(width):
                out[i] += smear[i] * last[i]
        if sizes[POSITIONS] >= 0:
            position = floats[sizes[POSITIONS] + places[row] * width :][:width]
            for i in range(width):
                out[i] += position[i]


@inner
def _compute(thread, phase, layer, first, end, fresh, rows, model, cache, batch, memory):
    """Compute a chunk: the items `first` to `end` - 1 of the phase `phase` of the layer with index `layer`.

    A phase is the attention of a layer (ATTEND) or one matrix product. An item is one key head in ATTEND, and a block of 16
    rows of the matrix in all other phases. `fresh`: true if this is the first chunk of the phase that this thread computes. If
    the phase is a product whose input is the output of a norm, the thread computes the norm when `fresh` is true, and keeps the
    result in its own part of `memory`. `rows`: the number of rows of the batch. The other arguments are described in `work`.
    """
    sizes, eps, offsets, weights, floats, _ = model
    keys, values = cache
    _, _, slots, places = batch
    x, t, qkv, y, h, u, normed, scores, logits = memory
    c, d, heads, groups = sizes[C], sizes[D], sizes[H], sizes[K]
    at = offsets[layer]
    c4, y4, f4, f16 = normed.shape[2], y.shape[1], (sizes[F] + CHAINS - 1) // CHAINS * CHAINS, h.shape[1]
    normed_at = thread * normed.shape[1] * c4
    if fresh and phase in (QKV, HEAD, UP):
        weight, bias = (at[NORM2], at[NORM2_BIAS]) if phase == UP else (at[NORM1], at[NORM1_BIAS])
        for row in range(rows):
            _normalise(sizes[NORM], eps, x[row, :c], floats[weight:][:c], floats[bias:][:c], normed[thread, row])
    if phase in (QKV, HEAD):
        out = qkv if phase == QKV else logits
        scale, bias = at[QKV_SCALE], at[QKV_BIAS]
        _multiply(weights, at[QKV_W], c4, first, end, normed, normed_at, c4, out, rows, floats, scale, bias)
    elif phase == ATTEND:
        size = heads // groups
        k_scale = at[HEADS_SCALE] + d if at[HEADS_SCALE] >= 0 else -1
        for group in range(first, end):
            k_at, v_at = (heads + group) * d, (heads + groups + group) * d
            for row in range(rows):
                for head in range(group * size, (group + 1) * size):
                    _head(qkv[row, head * d : (head + 1) * d], eps, places[row], sizes, floats, at[HEADS_SCALE])
                _head(qkv[row, k_at : k_at + d], eps, places[row], sizes, floats, k_scale)
                keys[layer, slots[row], group, places[row]] = qkv[row, k_at : k_at + d]
                values[layer, slots[row], group, places[row]] = qkv[row, v_at : v_at + d]
            for row in range(rows):
                begin, behind = max(0, places[row] + 1 - sizes[WINDOW]), places[row] + 1
                visible_keys = keys[layer, slots[row], group, begin:behind]
                visible_values = values[layer, slots[row], group, begin:behind]
                for head in range(group * size, (group + 1) * size):
                    part = slice(head * d, (head + 1) * d)
                    _attend(qkv[row, part], visible_keys, visible_values, scores[thread], y[row, part])
    elif phase == UP:
        scale, bias = at[UP_SCALE], at[UP_BIAS]
        _multiply(weights, at[UP_W], c4, first, end, normed, normed_at, c4, h, rows, floats, scale, bias)
        if sizes[ACTIVATION] == SWIGLU:  # the rows of gate lie before those of up
            begin, scale, bias = at[UP_W] + f16 * c4, scale + f16, bias + f16
            _multiply(weights, begin, c4, first, end, normed, normed_at, c4, u, rows, floats, scale, bias)
        for row in range(rows):
            part = slice(first * LANES, end * LANES)
            _activate(sizes[ACTIVATION], h[row, part], u[row, part])
    else:
        if phase == OUT:
            scale, bias = at[OUT_SCALE], at[OUT_BIAS]
            _multiply(weights, at[OUT_W], y4, first, end, y, 0, y4, t, rows, floats, scale, bias)
        else:
            scale, bias = at[DOWN_SCALE], at[DOWN_BIAS]
            _multiply(weights, at[DOWN_W], f4, first, end, h, 0, f16, t, rows, floats, scale, bias)
        for row in range(rows):
            stream, branch = x[row, first * LANES : end * LANES], t[row, first * LANES : end * LANES]
            for i in range(stream.size):
                stream[i] += branch[i]


def _cached(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function with Numba, and keep the result in the user's cache folder if it is writable."""
    try:
        config.CACHE_DIR = config.CACHE_DIR or str(cache_folder("numba"))  # NUMBA_CACHE_DIR, if the user has set it
        compiled: Callable[..., None] = njit(nogil=True, cache=True, fastmath=OPTIONS)(function)
    except (RuntimeError, UserError):  # no folder is writable, or the home folder is unknown
        compiled = inner(function)
    return compiled


@_cached
def work(thread, spins, owner, sync, plan, model, cache, batch, memory):
    """Start a decoding step and compute it (thread 0), or help with the decoding steps of `owner` (any other thread).

    Thread 0 returns when the step is done. The other threads return when no step has started for a while, or when a step of
    another owner starts. A step is divided into chunks. A chunk is a part of the work that one thread computes, such as the
    product with some rows of a matrix.

    The dimensions are R rows of the batch, N chunks, L layers, B rows of the cache, T positions of the context, C channels of
    the residual stream, H query heads, K key heads, D channels of a head, F channels in the MLP, and V tokens of the
    vocabulary. SYNC, JOB, COLUMNS, SIZES and PLACES are constants of this module: the lengths of small arrays of int64.

    thread  number of the calling thread
    spins   a thread other than 0 returns after it has looked for a chunk `spins` times in a row and has found none
    owner   number of the decoder to which the arrays belong
    sync    (SYNC,): three numbers that the threads share. sync[TICKET] contains the number of the step in its upper 32 bits,
            and the number of the next chunk in its lower 32 bits. sync[DONE] is the number of finished chunks. sync[OWNER] is
            the owner of the step. TICKET, DONE and OWNER are constants of this module
    plan    job (JOB,), chunks (N, COLUMNS). `job` contains the number of rows of the batch and the number of chunks. A row of
            `chunks` describes one chunk
    model   sizes (SIZES,), eps, offsets (L + 1, PLACES), weights (1-D), floats (1-D), token embeddings (V, C). `weights`
            contains all matrices, one after the other, and `floats` all other tensors. A row of `offsets` contains the indices
            at which the tensors of a layer begin in `weights` or `floats`; the last row is for norm_f and lm_head
    cache   keys, values: (L, B, K, T, D) each
    batch   ids, previous ids (-1: there is no previous token), rows of the cache, positions in the context: (R,) each
    memory  scratch memory: stream and branch (R, C), qkv (R, (H + 2 K) D), heads (R, H D), hidden and gated (R, F), normalised
            stream (threads, R, C), scores (threads, T), logits (R, V). In all of them except scores, the size of the last
            dimension is rounded up: to a multiple of 4 (CHAINS) in heads and the normalised stream, else of 16 (LANES)
    """
    job, chunks = plan
    word = _load(sync, TICKET)
    if thread == 0:
        _embed(job[ROWS], model, batch, memory[0])
        sync[DONE] = 0
        sync[OWNER] = owner
        word = ((word >> 32) + 1) << 32  # the number of the step above the number of the next chunk
        _store(sync, TICKET, word)
    step, idle, phase_begin = word >> 32, 0, -1
    while True:
        word = _load(sync, TICKET)
        if word >> 32 != step:
            step, idle, phase_begin = word >> 32, 0, -1
        if thread != 0 and _load(sync, OWNER) != owner:
            return
        number = word & _CLOSED
        if number < job[CHUNKS]:
            after = chunks[number, AFTER]
            # the exchange fails if this step is over, so a thread never computes a chunk of an earlier step
            if _load(sync, DONE) >= after and _exchange(sync, TICKET, word, word + 1):
                kind, layer, first, end = (
                    chunks[number, PHASE],
                    chunks[number, LAYER],
                    chunks[number, FIRST],
                    chunks[number, END],
                )
                _compute(thread, kind, layer, first, end, phase_begin != after, job[ROWS], model, cache, batch, memory)
                _add_one(sync, DONE)
                idle, phase_begin = 0, after
                continue
        elif thread == 0 and _load(sync, DONE) >= job[CHUNKS]:
            _store(sync, TICKET, word | _CLOSED)
            return
        elif thread != 0 and idle >= spins:
            return
        _pause()
        idle += 1
        if idle % SPINS_BEFORE_YIELD == 0:
            _yield()


def leave_cache() -> str | None:
    """Make `work` stop using Numba's cache on disk; return the folder of the cache, or None if there was none."""
    dispatcher: Any = work
    folder: str | None = dispatcher.stats.cache_path
    dispatcher._cache = NullCache()  # keeps what this process has compiled
    return folder


def on_compilation(say: Callable[[], None]) -> AbstractContextManager[None]:
    """Return a context manager that calls `say` when Numba compiles the first function inside the `with` block.

    `say` is not called if the function is loaded from the cache on disk.
    """
    return install_listener("numba:compile", _Listener(say))


class _Listener(Listener):
    def __init__(self, say: Callable[[], None]) -> None:
        self._say: Callable[[], None] | None = say

    def on_start(self, event: Any) -> None:
        """Call the function `say`, which the constructor received, when the first compilation starts."""
        if self._say is not None:
            self._say()
            self._say = None

    def on_end(self, event: Any) -> None:
        """Do nothing."""
