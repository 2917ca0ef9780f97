"""The kernels of the numba machine: plain Python loops over one flat workspace.

Every kernel has the same two arguments: `w`, the workspace of one thread, and `a`, one
row of the code, which lists offsets into `w` and sizes. The row's layout is the
kernel's first line. So all kernels have one machine signature and can be called through
a table of addresses, and each is compiled on its own, when a tape first needs it.

Kernels never write where they read, except where a docstring says so; each then
vectorises. Matrix products keep a *tile* of the result in vector registers: a few rows
times a few vectors, to which rank-one updates are added. Tiles are the only thing here
that Python cannot say; their four operations (`tile_zero`, `tile_load`, `tile_update`,
`tile_store`) have a plain NumPy twin beside the generated code, and NUMBA_DISABLE_JIT=1
runs every kernel on these twins.

Fast-math is limited to contraction, reassociation and reciprocals: never to the flags
that assume NaN and infinity away.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.extending import intrinsic, models, register_model

FAST_MATH = {"contract", "reassoc", "nsz", "arcp"}
VECTOR_BYTES = 32  # one AVX2 register: 8 float32 or 4 float64


# --- tiles ----------------------------------------------------------------------------


class TileType(types.Type):
    """`rows` times `vectors` registers: a small block of a matrix being accumulated."""

    def __init__(self, dtype: Any, rows: int, vectors: int) -> None:
        self.dtype, self.rows, self.vectors = dtype, rows, vectors
        super().__init__(f"Tile({dtype}, {rows}, {vectors})")


def lane_count(dtype: Any) -> int:
    """Elements in one vector register."""
    return VECTOR_BYTES * 8 // dtype.bitwidth


def vector_of(dtype: Any) -> ir.VectorType:
    """The LLVM type of one vector register."""
    element = ir.FloatType() if dtype.bitwidth == 32 else ir.DoubleType()
    return ir.VectorType(element, lane_count(dtype))


@register_model(TileType)
class TileModel(models.PrimitiveModel):
    """A tile is an LLVM array of vectors; LLVM takes it apart into registers."""

    def __init__(self, manager: Any, tile: TileType) -> None:
        registers = ir.ArrayType(vector_of(tile.dtype), tile.rows * tile.vectors)
        super().__init__(manager, tile, registers)


def compiled_as(twin: Callable[..., Any]) -> Callable[..., Any]:
    """An intrinsic, or its plain Python twin where Numba's compiler is switched off."""

    def choose(definition: Callable[..., Any]) -> Any:
        return (
            twin if config.DISABLE_JIT else intrinsic(prefer_literal=True)(definition)
        )

    return choose


def _each_register(
    builder: Any, tile: TileType, w: Any, start: Any, stride: Any
) -> Any:
    """(register number, vector pointer) for a tile laid over rows of a matrix in w."""
    vector = vector_of(tile.dtype)
    for row in range(tile.rows):
        for v in range(tile.vectors):
            place = builder.add(start, ir.Constant(start.type, v * vector.count))
            pointer = builder.gep(w, [place])
            yield row * tile.vectors + v, builder.bitcast(pointer, vector.as_pointer())
        start = builder.add(start, stride)


def _unaligned(instruction: Any, tile: TileType) -> Any:
    instruction.align = tile.dtype.bitwidth // 8
    return instruction


@compiled_as(lambda w: VECTOR_BYTES // w.itemsize)
def lanes(typing_context, w):
    """Elements in one vector register."""

    def generate(context, builder, signature, arguments):
        return ir.Constant(ir.IntType(64), lane_count(w.dtype))

    return types.int64(w), generate


@compiled_as(lambda w, number: w.dtype.type(number))
def number_like(typing_context, w, number):
    """A whole number in the type of the workspace, so that float32 stays float32."""

    def generate(context, builder, signature, arguments):
        return context.get_constant(w.dtype, float(number.literal_value))

    return w.dtype(w, number), generate


@compiled_as(lambda w, rows, vectors: np.zeros((rows, vectors * lanes(w)), w.dtype))
def tile_zero(typing_context, w, rows, vectors):
    """A tile of zeros."""
    tile = TileType(w.dtype, rows.literal_value, vectors.literal_value)

    def generate(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(tile), None)

    return tile(w, rows, vectors), generate


def _load_twin(tile, w, start, stride):
    rows = [w[start + r * stride :][: tile.shape[1]] for r in range(len(tile))]
    return np.array(rows)


@compiled_as(_load_twin)
def tile_load(typing_context, tile, w, start, stride):
    """The tile at `start` of a matrix whose rows are `stride` apart."""

    def generate(context, builder, signature, arguments):
        value, *place = arguments
        for i, pointer in _each_register(builder, tile, *place):
            loaded = _unaligned(builder.load(pointer), tile)
            value = builder.insert_value(value, loaded, i)
        return value

    return tile(tile, w, types.int64, types.int64), generate


def _store_twin(tile, w, start, stride):
    for r, row in enumerate(tile):
        w[start + r * stride :][: len(row)] = row


@compiled_as(_store_twin)
def tile_store(typing_context, tile, w, start, stride):
    """Write the tile to `start` of a matrix whose rows are `stride` apart."""

    def generate(context, builder, signature, arguments):
        value, *place = arguments
        for i, pointer in _each_register(builder, tile, *place):
            _unaligned(builder.store(builder.extract_value(value, i), pointer), tile)
        return context.get_dummy_value()

    return types.void(tile, w, types.int64, types.int64), generate


def _update_twin(tile, w, column, stride, row):
    left = w[column :: max(stride, 1)][: len(tile)]
    return tile + np.outer(left, w[row : row + tile.shape[1]])


@compiled_as(_update_twin)
def tile_update(typing_context, tile, w, column, stride, row):
    """Add the outer product of a strided column and a contiguous row of w."""
    vector = vector_of(tile.dtype)

    def generate(context, builder, signature, arguments):
        value, base, column, stride, row = arguments
        one_row = TileType(tile.dtype, 1, tile.vectors)
        right = [
            _unaligned(builder.load(pointer), tile)
            for _, pointer in _each_register(builder, one_row, base, row, stride)
        ]
        undefined = ir.Constant(vector, ir.Undefined)
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
        for r in range(tile.rows):
            left = builder.load(builder.gep(base, [column]))
            column = builder.add(column, stride)
            left = builder.insert_element(undefined, left, ir.IntType(32)(0))
            left = builder.shuffle_vector(left, undefined, everywhere)
            for v in range(tile.vectors):
                i = r * tile.vectors + v
                product = builder.fmul(left, right[v], flags=("contract",))
                total = builder.extract_value(value, i)
                total = builder.fadd(total, product, flags=("contract",))
                value = builder.insert_value(value, total, i)
        return value

    return tile(tile, w, types.int64, types.int64, types.int64), generate


def _transpose_twin(w, out, out_stride, x, stride):
    width = lanes(w)
    block = [w[x + r * stride :][:width] for r in range(width)]
    for r, column in enumerate(np.array(block).T):
        w[out + r * out_stride :][:width] = column


@compiled_as(_transpose_twin)
def transpose_block(typing_context, w, out, out_stride, x, stride):
    """Transpose a square block, one register a row, by exchanges of lanes.

    Round by round rows a distance of 1, 2, 4 apart swap half their lanes.
    """
    width = lane_count(w.dtype)
    block = TileType(w.dtype, width, 1)
    index = ir.IntType(32)

    def exchange(builder, upper, lower, distance):
        swapped = []
        for first in (0, distance):  # the lanes the upper row keeps, then the lower's
            lanes = [
                lane + first if not lane & distance else width + lane - distance + first
                for lane in range(width)
            ]
            mask = ir.Constant(ir.VectorType(index, width), lanes)
            swapped.append(builder.shuffle_vector(upper, lower, mask))
        return swapped

    def generate(context, builder, signature, arguments):
        base, out, out_stride, x, stride = arguments
        places = _each_register(builder, block, base, x, stride)
        rows = [_unaligned(builder.load(pointer), block) for _, pointer in places]
        distance = 1
        while distance < width:
            for r in range(width):
                if not r & distance:
                    pair = exchange(builder, rows[r], rows[r + distance], distance)
                    rows[r], rows[r + distance] = pair
            distance *= 2
        for r, pointer in _each_register(builder, block, base, out, out_stride):
            _unaligned(builder.store(rows[r], pointer), block)
        return context.get_dummy_value()

    whole = types.int64
    return types.void(w, whole, whole, whole, whole), generate


def _tile_kernel(rows: int, vectors: int) -> Callable[..., None]:
    """One tile of a matrix product: out[o..] (+)= column q.. times row s.., k times."""

    @njit(fastmath=FAST_MATH, forceinline=True)
    def tile_product(w, o, q, s, n, k, row_stride, column_stride, accumulate):
        tile = tile_zero(w, rows, vectors)
        if accumulate:
            tile = tile_load(tile, w, o, n)
        for _ in range(k):
            tile = tile_update(tile, w, q, row_stride, s)
            q += column_stride
            s += n
        tile_store(tile, w, o, n)

    return tile_product


tile_2x5, tile_2x4, tile_2x1 = (_tile_kernel(2, v) for v in (5, 4, 1))
tile_1x5, tile_1x4, tile_1x1 = (_tile_kernel(1, v) for v in (5, 4, 1))


# --- matrix products ------------------------------------------------------------------


def matmul(w, a):
    """C (+)= A B for C (m, n), B (k, n); A read by strides, so it may be transposed.

    A width that is a multiple of five vectors (40 units in float32) is cut into tiles
    of five, any other into tiles of four, then one, then single columns.
    """
    c, x, y, m, n, k, rs, cs, more = (
        a[0],
        a[1],
        a[2],
        a[3],
        a[4],
        a[5],
        a[6],
        a[7],
        a[8],
    )
    width = lanes(w)
    fives = n // (5 * width) if n % (5 * width) == 0 else 0
    i = 0
    while i < m:
        o, q = c + i * n, x + i * rs
        j = 0
        if i + 1 < m:
            for _ in range(fives):
                tile_2x5(w, o + j, q, y + j, n, k, rs, cs, more)
                j += 5 * width
            while j + 4 * width <= n:
                tile_2x4(w, o + j, q, y + j, n, k, rs, cs, more)
                j += 4 * width
            while j + width <= n:
                tile_2x1(w, o + j, q, y + j, n, k, rs, cs, more)
                j += width
        else:
            for _ in range(fives):
                tile_1x5(w, o + j, q, y + j, n, k, rs, cs, more)
                j += 5 * width
            while j + 4 * width <= n:
                tile_1x4(w, o + j, q, y + j, n, k, rs, cs, more)
                j += 4 * width
            while j + width <= n:
                tile_1x1(w, o + j, q, y + j, n, k, rs, cs, more)
                j += width
        while j < n:
            for r in range(i, min(i + 2, m)):
                total = w[c + r * n + j] if more else number_like(w, 0)
                for p in range(k):
                    total += w[x + r * rs + p * cs] * w[y + p * n + j]
                w[c + r * n + j] = total
            j += 1
        i += 2


def matvec(w, a):
    """c (+)= A b for A (m, k)."""
    c, x, y, m, k, more = a[0], a[1], a[2], a[3], a[4], a[5]
    for i in range(m):
        total = w[c + i] if more else number_like(w, 0)
        for p in range(k):
            total += w[x + i * k + p] * w[y + p]
        w[c + i] = total


def transpose(w, a):
    """out (n, m) = A (m, n) transposed."""
    out, x, m, n = a[0], a[1], a[2], a[3]
    width = lanes(w)
    i = 0
    while i + width <= m:
        j = 0
        while j + width <= n:
            transpose_block(w, out + j * m + i, m, x + i * n + j, n)
            j += width
        while j < n:
            for r in range(i, i + width):
                w[out + j * m + r] = w[x + r * n + j]
            j += 1
        i += width
    while i < m:
        for j in range(n):
            w[out + j * m + i] = w[x + i * n + j]
        i += 1


# --- elementwise ----------------------------------------------------------------------


def add(w, a):
    """out = x + y."""
    out, x, y, n = a[0], a[1], a[2], a[3]
    for i in range(n):
        w[out + i] = w[x + i] + w[y + i]


def sub(w, a):
    """out = x - y."""
    out, x, y, n = a[0], a[1], a[2], a[3]
    for i in range(n):
        w[out + i] = w[x + i] - w[y + i]


def mul(w, a):
    """out = x * y."""
    out, x, y, n = a[0], a[1], a[2], a[3]
    for i in range(n):
        w[out + i] = w[x + i] * w[y + i]


def scale(w, a):
    """out = x * number, the number being a constant of the workspace."""
    out, x, number, n = a[0], a[1], w[a[2]], a[3]
    for i in range(n):
        w[out + i] = w[x + i] * number


def copy(w, a):
    """out = x."""
    out, x, n = a[0], a[1], a[2]
    for i in range(n):
        w[out + i] = w[x + i]


def pad(w, a):
    """out = zeros with x, of `length`, at `start`."""
    out, x, start, length, n = a[0], a[1], a[2], a[3], a[4]
    for i in range(n):
        w[out + i] = number_like(w, 0)
    for i in range(length):
        w[out + start + i] = w[x + i]


def relu(w, a):
    """out = max(x, 0); NaN stays NaN."""
    out, x, n = a[0], a[1], a[2]
    zero = number_like(w, 0)
    for i in range(n):
        w[out + i] = zero if w[x + i] <= zero else w[x + i]


def gate(w, a):
    """out = x where y > 0 (or is NaN), else 0."""
    out, x, y, n = a[0], a[1], a[2], a[3]
    zero = number_like(w, 0)
    for i in range(n):
        w[out + i] = zero if w[y + i] <= zero else w[x + i]


def exp(w, a):
    """out = exp(x)."""
    out, x, n = a[0], a[1], a[2]
    for i in range(n):
        w[out + i] = math.exp(w[x + i])


def log(w, a):
    """out = log(x): minus infinity at 0, NaN below."""
    out, x, n = a[0], a[1], a[2]
    for i in range(n):
        w[out + i] = np.log(w[x + i])


def tanh(w, a):
    """out = tanh(x)."""
    out, x, n = a[0], a[1], a[2]
    for i in range(n):
        w[out + i] = math.tanh(w[x + i])


def reciprocal(w, a):
    """out = 1 / x."""
    out, x, n = a[0], a[1], a[2]
    one = number_like(w, 1)
    for i in range(n):
        w[out + i] = one / w[x + i]


def rsqrt(w, a):
    """out = 1 / sqrt(x)."""
    out, x, n = a[0], a[1], a[2]
    one = number_like(w, 1)
    for i in range(n):
        w[out + i] = one / np.sqrt(w[x + i])


# --- broadcasts and sums: (outer, middle, inner), the middle axis repeated or summed --


def broadcast(w, a):
    """out (outer, middle, inner) = x (outer, inner), repeated along the middle."""
    out, x, outer, middle, inner = a[0], a[1], a[2], a[3], a[4]
    for o in range(outer):
        for m in range(middle):
            row = out + (o * middle + m) * inner
            for i in range(inner):
                w[row + i] = w[x + o * inner + i]


def sum(w, a):
    """out (outer, inner) = the sum of x (outer, middle, inner) over the middle."""
    out, x, outer, middle, inner = a[0], a[1], a[2], a[3], a[4]
    for o in range(outer):
        if inner == 1:
            total = number_like(w, 0)
            for m in range(middle):
                total += w[x + o * middle + m]
            w[out + o] = total
        else:
            for i in range(inner):
                w[out + o * inner + i] = w[x + o * middle * inner + i]
            for m in range(1, middle):
                row = x + (o * middle + m) * inner
                for i in range(inner):
                    w[out + o * inner + i] += w[row + i]


def add_broadcast(w, a):
    """out (outer, middle, inner) = x + y (outer, 1, inner)."""
    out, x, y, outer, middle, inner = a[0], a[1], a[2], a[3], a[4], a[5]
    for o in range(outer):
        if inner == 1:
            number = w[y + o]
            for m in range(o * middle, (o + 1) * middle):
                w[out + m] = w[x + m] + number
        else:
            for m in range(o * middle, (o + 1) * middle):
                for i in range(inner):
                    w[out + m * inner + i] = w[x + m * inner + i] + w[y + o * inner + i]


def sub_broadcast(w, a):
    """out (outer, middle, inner) = x - y (outer, 1, inner)."""
    out, x, y, outer, middle, inner = a[0], a[1], a[2], a[3], a[4], a[5]
    for o in range(outer):
        if inner == 1:
            number = w[y + o]
            for m in range(o * middle, (o + 1) * middle):
                w[out + m] = w[x + m] - number
        else:
            for m in range(o * middle, (o + 1) * middle):
                for i in range(inner):
                    w[out + m * inner + i] = w[x + m * inner + i] - w[y + o * inner + i]


def mul_broadcast(w, a):
    """out (outer, middle, inner) = x * y (outer, 1, inner)."""
    out, x, y, outer, middle, inner = a[0], a[1], a[2], a[3], a[4], a[5]
    for o in range(outer):
        if inner == 1:
            number = w[y + o]
            for m in range(o * middle, (o + 1) * middle):
                w[out + m] = w[x + m] * number
        else:
            for m in range(o * middle, (o + 1) * middle):
                for i in range(inner):
                    w[out + m * inner + i] = w[x + m * inner + i] * w[y + o * inner + i]


def add_broadcast_relu(w, a):
    """out (outer, middle, inner) = max(x + y (outer, 1, inner), 0): bias, then relu."""
    out, x, y, outer, middle, inner = a[0], a[1], a[2], a[3], a[4], a[5]
    zero = number_like(w, 0)
    for o in range(outer):
        for m in range(o * middle, (o + 1) * middle):
            for i in range(inner):
                total = w[x + m * inner + i] + w[y + o * inner + i]
                w[out + m * inner + i] = zero if total <= zero else total


def logsumexp(w, a):
    """out[r] = log(sum(exp(x[r, :]))), the largest element taken out first."""
    out, x, rows, n = a[0], a[1], a[2], a[3]
    for r in range(rows):
        top = w[x + r * n]
        for i in range(1, n):
            top = max(top, w[x + r * n + i])
        total = number_like(w, 0)
        for i in range(n):
            total += math.exp(w[x + r * n + i] - top)
        w[out + r] = top + np.log(total)


def softmax(w, a):
    """out[r, :] = exp(x[r, :]) / sum(exp(x[r, :]))."""
    out, x, rows, n = a[0], a[1], a[2], a[3]
    for r in range(rows):
        top = w[x + r * n]
        for i in range(1, n):
            top = max(top, w[x + r * n + i])
        total = number_like(w, 0)
        for i in range(n):
            w[out + r * n + i] = math.exp(w[x + r * n + i] - top)
            total += w[out + r * n + i]
        for i in range(n):
            w[out + r * n + i] /= total
