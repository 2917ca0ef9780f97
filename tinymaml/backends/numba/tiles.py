"""Tiles: blocks of a matrix that stay in vector registers.

A matrix product keeps a *tile* of its result, a few rows times a few vectors, in
registers and adds outer products to it, so that each number it loads is used several
times. Python has no word for a register: the operations on tiles are LLVM code, written
here as Numba's `intrinsic` functions. Beside each stands a twin in plain NumPy, which
the kernels use when NUMBA_DISABLE_JIT=1, for debuggers and tests.

A vector has 32 bytes on every processor. Where registers have 64 bytes (AVX-512), two
neighbouring vectors share a register. Besides this file only the choice of tiles in
`kernels.py` knows: kernels count vectors, and a result has the same sums in the same
order on both.

Measured: a 10x40 by 40x40 product in float32 takes 0.36 us, 89 GFLOP/s on one core; the
same loops left to the compiler's own vectoriser take 1.8 us.

Left out: the choice of tile sizes, which `kernels.py` and `image_kernels.py` make.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, types
from numba.extending import intrinsic, models, register_model

VECTOR_BYTES = 32  # one AVX2 register: 8 float32 or 4 float64
# Whether the processor also has registers of 64 bytes (AVX-512).
WIDE = binding.get_host_cpu_features().get("avx512f", False)


class TileType(types.Type):
    """The type of a tile: `rows` times `vectors` of sums.

    `registers` is how many registers hold one row, with one vector or two in each.
    """

    def __init__(self, dtype: Any, rows: int, vectors: int) -> None:
        self.dtype, self.rows, self.vectors = dtype, rows, vectors
        paired = WIDE and vectors % 2 == 0
        self.registers = vectors // 2 if paired else vectors
        super().__init__(f"Tile({dtype}, {rows}, {vectors})")


def lane_count(dtype: Any) -> int:
    """The number of elements in one vector."""
    return VECTOR_BYTES * 8 // dtype.bitwidth


def register_type(tile: TileType) -> ir.VectorType:
    """The LLVM type of one register of a tile."""
    element = ir.FloatType() if tile.dtype.bitwidth == 32 else ir.DoubleType()
    elements = lane_count(tile.dtype) * tile.vectors
    return ir.VectorType(element, elements // tile.registers)


@register_model(TileType)
class TileModel(models.PrimitiveModel):
    """A tile is an LLVM array of vectors, each of which LLVM keeps in a register."""

    def __init__(self, manager: Any, tile: TileType) -> None:
        registers = ir.ArrayType(register_type(tile), tile.rows * tile.registers)
        super().__init__(manager, tile, registers)


def compiled_as(twin: Callable[..., Any]) -> Callable[..., Any]:
    """An intrinsic, or its plain Python twin where Numba's compiler is switched off."""
    if config.DISABLE_JIT:
        return lambda definition: twin
    return intrinsic(prefer_literal=True)


def _register_pointers(
    builder: Any, tile: TileType, w: Any, start: Any, stride: Any
) -> Any:
    """(number, pointer) of each register of a tile at `start` of a matrix in w.

    `stride` is the distance from one row of the matrix to the next, in elements.
    """
    register = register_type(tile)
    for row in range(tile.rows):
        for v in range(tile.registers):
            offset = builder.add(start, ir.Constant(start.type, v * register.count))
            pointer = builder.bitcast(builder.gep(w, [offset]), register.as_pointer())
            yield row * tile.registers + v, pointer
        start = builder.add(start, stride)


def _unaligned(instruction: Any, tile: TileType) -> Any:
    """Mark a load or store of a register as aligned to one element only; return it.

    Without the mark LLVM assumes an address that is a multiple of the register's size.
    """
    instruction.align = tile.dtype.bitwidth // 8
    return instruction


def _repeated(builder: Any, number: Any, vector: ir.VectorType) -> Any:
    """A vector with the number in every lane."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
    return builder.shuffle_vector(first, undefined, zeros)


@compiled_as(lambda args, count: tuple(args[:count]))
def unpack(typing_context, args, count):
    """The first `count` arguments of an instruction, as a tuple."""
    size = count.literal_value
    numbers = types.UniTuple(types.int64, size)

    def generate(context, builder, signature, arguments):
        pointers = [builder.gep(arguments[0], [ir.IntType(64)(i)]) for i in range(size)]
        return context.make_tuple(builder, numbers, [*map(builder.load, pointers)])

    return numbers(args, count), generate


@compiled_as(lambda w: VECTOR_BYTES // w.itemsize)
def lanes(typing_context, w):
    """The number of elements in one vector, as a constant of the compiled code."""

    def generate(context, builder, signature, arguments):
        return ir.Constant(ir.IntType(64), lane_count(w.dtype))

    return types.int64(w), generate


@compiled_as(lambda w, number: w.dtype.type(number))
def number_like(typing_context, w, number):
    """A constant in the type of the workspace.

    Numba would take a plain `0` or `1` to float64, and a whole float32 loop with it.
    """

    def generate(context, builder, signature, arguments):
        return context.get_constant(w.dtype, float(number.literal_value))

    return w.dtype(w, number), generate


def _zero_twin(w, rows, vectors):
    return np.zeros((rows, vectors * lanes(w)), w.dtype)


@compiled_as(_zero_twin)
def tile_zero(typing_context, w, rows, vectors):
    """A tile of zeros."""
    tile = TileType(w.dtype, rows.literal_value, vectors.literal_value)

    def generate(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(tile), None)

    return tile(w, rows, vectors), generate


def _add_twin(tile, w, start, stride):
    rows = [w[start + r * stride :][: tile.shape[1]] for r in range(len(tile))]
    return tile + np.array(rows)


@compiled_as(_add_twin)
def tile_add(typing_context, tile, w, start, stride):
    """The tile plus the one at `start` of a matrix in w, `stride` from row to row."""

    def generate(context, builder, signature, arguments):
        value, *matrix = arguments
        for i, pointer in _register_pointers(builder, tile, *matrix):
            loaded = _unaligned(builder.load(pointer), tile)
            total = builder.fadd(builder.extract_value(value, i), loaded)
            value = builder.insert_value(value, total, i)
        return value

    return tile(tile, w, types.int64, types.int64), generate


def _store_twin(tile, w, start, stride, columns):
    for r, row in enumerate(tile):
        w[start + r * stride :][:columns] = row[:columns]


@compiled_as(_store_twin)
def tile_store(typing_context, tile, w, start, stride, columns):
    """Write the first `columns` of a tile to `start` of a matrix in w.

    `stride` is the distance from row to row. This is a masked store: what lies behind
    these columns is neither read nor written. Where `columns` is a constant that covers
    the whole tile, LLVM removes the mask.
    """
    register = register_type(tile)
    numbers = ir.VectorType(ir.IntType(64), register.count)
    mask = ir.VectorType(ir.IntType(1), register.count)
    parameters = register, register.as_pointer(), ir.IntType(32), mask
    kind = f"v{register.count}f{tile.dtype.bitwidth}"

    def generate(context, builder, signature, arguments):
        value, *matrix, columns = arguments
        store = builder.module.declare_intrinsic(
            f"llvm.masked.store.{kind}.p0{kind}",
            fnty=ir.FunctionType(ir.VoidType(), parameters),
        )
        align = ir.IntType(32)(tile.dtype.bitwidth // 8)
        count = _repeated(builder, columns, numbers)
        for i, pointer in _register_pointers(builder, tile, *matrix):
            first = i % tile.registers * register.count
            lanes = ir.Constant(numbers, [*range(first, first + register.count)])
            inside = builder.icmp_signed("<", lanes, count)
            sums = builder.extract_value(value, i)
            builder.call(store, (sums, pointer, align, inside))
        return context.get_dummy_value()

    return types.void(tile, w, types.int64, types.int64, types.int64), generate


def _update_twin(tile, w, column, stride, row):
    left = w[column :: max(stride, 1)][: len(tile)]
    return tile + np.outer(left, w[row : row + tile.shape[1]])


@compiled_as(_update_twin)
def tile_update(typing_context, tile, w, column, stride, row):
    """The tile plus the outer product of a column and a row of w.

    The column starts at `column` with `stride` elements from one to the next; the row
    lies contiguous at `row`. One multiplication and addition per register, fused where
    the processor can.
    """
    register = register_type(tile)

    def generate(context, builder, signature, arguments):
        value, base, column, stride, row = arguments
        one_row = TileType(tile.dtype, 1, tile.vectors)
        right = [
            _unaligned(builder.load(pointer), tile)
            for _, pointer in _register_pointers(builder, one_row, base, row, stride)
        ]
        for r in range(tile.rows):
            left = builder.load(builder.gep(base, [column]))
            column = builder.add(column, stride)
            left = _repeated(builder, left, register)
            for v in range(tile.registers):
                i = r * tile.registers + v
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
    """Transpose a square block of w, one vector a row, from `x` to `out`.

    It takes log2(width) rounds of shuffles. In the round of distance d (1, 2, 4), rows
    r and r + d exchange half of their lanes: of each 2 x 2 blocks of size d, the two
    off the diagonal change places.
    """
    width = lane_count(w.dtype)
    block = TileType(w.dtype, width, 1)
    index = ir.IntType(32)

    def exchange(builder, upper, lower, distance):
        swapped = []
        for first in (0, distance):  # the new upper row, then the new lower row
            lanes = [
                lane + first if not lane & distance else width + lane - distance + first
                for lane in range(width)
            ]
            mask = ir.Constant(ir.VectorType(index, width), lanes)
            swapped.append(builder.shuffle_vector(upper, lower, mask))
        return swapped

    def generate(context, builder, signature, arguments):
        base, out, out_stride, x, stride = arguments
        pointers = _register_pointers(builder, block, base, x, stride)
        rows = [_unaligned(builder.load(pointer), block) for _, pointer in pointers]
        distance = 1
        while distance < width:
            for r in range(width):
                if not r & distance:
                    pair = exchange(builder, rows[r], rows[r + distance], distance)
                    rows[r], rows[r + distance] = pair
            distance *= 2
        for r, pointer in _register_pointers(builder, block, base, out, out_stride):
            _unaligned(builder.store(rows[r], pointer), block)
        return context.get_dummy_value()

    whole = types.int64
    return types.void(w, whole, whole, whole, whole), generate
