"""Tiles: blocks of a matrix held in vector registers.

A matrix product keeps a *tile* of its result, a few rows times a few vectors, in
registers and adds outer products to it. Tiles are the only thing in the kernels that
Python cannot say, so their operations are generated as LLVM code here. Each stands
beside a plain NumPy twin, on which the kernels run when NUMBA_DISABLE_JIT=1.

Tiles are counted in vectors of 32 bytes on every processor. Where there are registers
of 64 bytes (AVX-512), two neighbouring vectors share one: that is this file's business
alone, and the same sums in the same order.

Measured: a 10x40 by 40x40 product in float32 takes 0.36 us, 89 GFLOP/s on one core; the
same loops left to the compiler's own vectoriser take 1.8 us.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, types
from numba.extending import intrinsic, models, register_model

VECTOR_BYTES = 32  # one AVX2 register: 8 float32 or 4 float64
WIDE = binding.get_host_cpu_features().get("avx512f", False)  # registers of 64 bytes


class TileType(types.Type):
    """`rows` times `vectors`: a small block of a matrix being accumulated.

    `registers` hold a row, with one vector or two in each.
    """

    def __init__(self, dtype: Any, rows: int, vectors: int) -> None:
        self.dtype, self.rows, self.vectors = dtype, rows, vectors
        two = WIDE and vectors % 2 == 0
        self.registers = vectors // 2 if two else vectors
        super().__init__(f"Tile({dtype}, {rows}, {vectors})")


def lane_count(dtype: Any) -> int:
    """Elements in one vector."""
    return VECTOR_BYTES * 8 // dtype.bitwidth


def register_of(tile: TileType) -> ir.VectorType:
    """The LLVM type of one register."""
    element = ir.FloatType() if tile.dtype.bitwidth == 32 else ir.DoubleType()
    elements = lane_count(tile.dtype) * tile.vectors
    return ir.VectorType(element, elements // tile.registers)


@register_model(TileType)
class TileModel(models.PrimitiveModel):
    """A tile is an LLVM array of vectors; LLVM takes it apart into registers."""

    def __init__(self, manager: Any, tile: TileType) -> None:
        registers = ir.ArrayType(register_of(tile), tile.rows * tile.registers)
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
    """(register number, its pointer) for a tile laid over rows of a matrix in w."""
    register = register_of(tile)
    for row in range(tile.rows):
        for v in range(tile.registers):
            place = builder.add(start, ir.Constant(start.type, v * register.count))
            pointer = builder.bitcast(builder.gep(w, [place]), register.as_pointer())
            yield row * tile.registers + v, pointer
        start = builder.add(start, stride)


def _unaligned(instruction: Any, tile: TileType) -> Any:
    instruction.align = tile.dtype.bitwidth // 8
    return instruction


def _everywhere(builder: Any, number: Any, vector: ir.VectorType) -> Any:
    """A vector of one number."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
    return builder.shuffle_vector(first, undefined, zeros)


@compiled_as(lambda w: VECTOR_BYTES // w.itemsize)
def lanes(typing_context, w):
    """Elements in one vector."""

    def generate(context, builder, signature, arguments):
        return ir.Constant(ir.IntType(64), lane_count(w.dtype))

    return types.int64(w), generate


@compiled_as(lambda w, number: w.dtype.type(number))
def number_like(typing_context, w, number):
    """A whole number in the type of the workspace, so that float32 stays float32."""

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


def _store_twin(tile, w, start, stride, columns):
    for r, row in enumerate(tile):
        w[start + r * stride :][:columns] = row[:columns]


@compiled_as(_store_twin)
def tile_store(typing_context, tile, w, start, stride, columns):
    """Write the tile's first columns to `start` of a matrix, rows `stride` apart.

    Where the compiler sees that these are all, nothing is left of the mask.
    """
    register = register_of(tile)
    numbers = ir.VectorType(ir.IntType(64), register.count)
    mask = ir.VectorType(ir.IntType(1), register.count)
    takes = register, register.as_pointer(), ir.IntType(32), mask
    kind = f"v{register.count}f{tile.dtype.bitwidth}"

    def generate(context, builder, signature, arguments):
        value, *place, columns = arguments
        store = builder.module.declare_intrinsic(
            f"llvm.masked.store.{kind}.p0{kind}",
            fnty=ir.FunctionType(ir.VoidType(), takes),
        )
        align = ir.IntType(32)(tile.dtype.bitwidth // 8)
        count = _everywhere(builder, columns, numbers)
        for i, pointer in _each_register(builder, tile, *place):
            first = i % tile.registers * register.count
            lanes = ir.Constant(numbers, [*range(first, first + register.count)])
            chosen = builder.icmp_signed("<", lanes, count)
            part = builder.extract_value(value, i)
            builder.call(store, (part, pointer, align, chosen))
        return context.get_dummy_value()

    return types.void(tile, w, types.int64, types.int64, types.int64), generate


def _update_twin(tile, w, column, stride, row):
    left = w[column :: max(stride, 1)][: len(tile)]
    return tile + np.outer(left, w[row : row + tile.shape[1]])


@compiled_as(_update_twin)
def tile_update(typing_context, tile, w, column, stride, row):
    """Add the outer product of a strided column and a contiguous row of w."""
    register = register_of(tile)

    def generate(context, builder, signature, arguments):
        value, base, column, stride, row = arguments
        one_row = TileType(tile.dtype, 1, tile.vectors)
        right = [
            _unaligned(builder.load(pointer), tile)
            for _, pointer in _each_register(builder, one_row, base, row, stride)
        ]
        for r in range(tile.rows):
            left = builder.load(builder.gep(base, [column]))
            column = builder.add(column, stride)
            left = _everywhere(builder, left, register)
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
