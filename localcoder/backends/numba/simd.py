"""What numba's Python cannot say: explicit vectors, raw memory, and atomics, as LLVM IR.

Vectors are LLVM's portable ones: the same text becomes AVX-512 (VNNI where there is), AVX2, SSE or NEON. The order of
additions is written out, so a result does not depend on the instruction set's width or on the shape of a tile.

With NUMBA_DISABLE_JIT=1 every function is its plain Python twin (at the end of the file), which says what it computes.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import reduce
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

LANES = 16  # float32 or int32 lanes of a vector here: one AVX-512 register, two AVX2, four NEON
TILE_ROWS = 8  # weight rows of an integer tile
TILE_TOKENS = LANES
GROUP = 32  # values that share a scale

_I32, _I64, _I16, _F32 = ir.IntType(32), ir.IntType(64), ir.IntType(16), ir.FloatType()


def _emitted(function: Callable[..., Any]) -> Any:
    return intrinsic(function)


def _jitable(function: Callable[..., Any]) -> Any:
    return register_jitable(function)


def _vector(element: ir.Type, n: int = LANES) -> ir.VectorType:
    return ir.VectorType(element, n)


def _i64(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _shuffle(builder: Any, vector: Any, lanes: list[int]) -> Any:
    undefined = ir.Constant(vector.type, ir.Undefined)
    return builder.shuffle_vector(vector, undefined, ir.Constant(_vector(_I32, len(lanes)), lanes))


def _splat(builder: Any, value: Any, n: int = LANES) -> Any:
    undefined = ir.Constant(_vector(value.type, n), ir.Undefined)
    return _shuffle(builder, builder.insert_element(undefined, value, ir.Constant(_I32, 0)), [0] * n)


def _sum_lanes(builder: Any, vector: Any) -> Any:
    """The upper half is added to the lower until one lane is left."""
    add = builder.fadd if vector.type.element == _F32 else builder.add
    n = vector.type.count
    while n > 1:
        n //= 2
        low, high = _shuffle(builder, vector, list(range(n))), _shuffle(builder, vector, list(range(n, 2 * n)))
        vector = add(low, high)
    return builder.extract_element(vector, ir.Constant(_I32, 0))


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, fused where the CPU can."""
    return builder.fadd(builder.fmul(a, b, flags=["contract"]), c, flags=["contract"])


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    """Address of element `offset` of a one-dimensional contiguous array."""
    return builder.gep(cgutils.create_struct_proxy(array_type)(context, builder, array).data, [offset])


def _load(builder: Any, pointer: Any, kind: ir.Type, align: int) -> Any:
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=align)


def _pair_products(builder: Any, a: Any, b: Any) -> Any:
    """int16 vectors [2n] -> int32 [n]: a[2i]·b[2i] + a[2i+1]·b[2i+1] (one instruction on x86)."""
    n = a.type.count
    wide = _vector(_I32, n)
    products = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    even, odd = list(range(0, n, 2)), list(range(1, n, 2))
    return builder.add(_shuffle(builder, products, even), _shuffle(builder, products, odd))


def _as_int64(context: Any, builder: Any, signature: Any, args: Any) -> list[Any]:
    """The arguments, integers among them as 64 bits."""
    return [
        context.cast(builder, arg, kind, types.int64) if isinstance(kind, types.Integer) else arg
        for arg, kind in zip(args, signature.args)
    ]


def _dot_tile(n_rows: int, n_tokens: int) -> Any:
    @_emitted
    def tile(_: Any, w: Any, w0: Any, x: Any, x0: Any, n: Any, out: Any, out0: Any, stride: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w_, w0_, x_, x0_, n_, out_, out0_, stride_ = _as_int64(context, builder, signature, args)
            row = [_pointer(context, builder, w, w_, builder.add(w0_, builder.mul(_i64(r), n_))) for r in range(n_rows)]
            col = [
                _pointer(context, builder, x, x_, builder.add(x0_, builder.mul(_i64(t), n_))) for t in range(n_tokens)
            ]
            zero = ir.Constant(_vector(_F32), [0.0] * LANES)
            cells = [(r, t) for r in range(n_rows) for t in range(n_tokens)]
            sums = {cell: cgutils.alloca_once_value(builder, zero) for cell in cells}
            rest = {cell: cgutils.alloca_once_value(builder, ir.Constant(_F32, 0.0)) for cell in cells}

            def accumulate(into: Any, at: Any, kind: ir.Type) -> None:
                a = [_load(builder, builder.gep(p, [at]), kind, 4) for p in row]
                b = [_load(builder, builder.gep(p, [at]), kind, 4) for p in col]
                for (r, t), total in into.items():
                    builder.store(_multiply_add(builder, a[r], b[t], builder.load(total)), total)

            n_vectors = builder.udiv(n_, _i64(LANES))
            with cgutils.for_range(builder, n_vectors) as loop:
                accumulate(sums, builder.mul(loop.index, _i64(LANES)), _vector(_F32))
            done = builder.mul(n_vectors, _i64(LANES))
            with cgutils.for_range(builder, builder.sub(n_, done)) as loop:
                accumulate(rest, builder.add(done, loop.index), _F32)
            for r, t in cells:
                total = builder.fadd(_sum_lanes(builder, builder.load(sums[r, t])), builder.load(rest[r, t]))
                at = builder.add(out0_, builder.add(builder.mul(_i64(t), stride_), _i64(r)))
                builder.store(total, _pointer(context, builder, out, out_, at))
            return context.get_dummy_value()

        return types.void(w, w0, x, x0, n, out, out0, stride), generate

    return tile


@_emitted
def _dot_group(_: Any, w: Any, w0: Any, x: Any, x0: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        w_, w0_, x_, x0_ = _as_int64(context, builder, signature, args)
        kind = _vector(_I16, GROUP)
        a = _load(builder, _pointer(context, builder, w, w_, w0_), kind, 2)
        b = _load(builder, _pointer(context, builder, x, x_, x0_), kind, 2)
        return _sum_lanes(builder, _pair_products(builder, a, b))

    return types.int32(w, w0, x, x0), generate


@_emitted
def _codes_tile(
    _: Any, w: Any, w0: Any, ws: Any, ws0: Any, x: Any, x0: Any, xs: Any, xs0: Any, n: Any, out: Any
) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        w_, w0_, ws_, ws0_, x_, x0_, xs_, xs0_, n_, out_ = _as_int64(context, builder, signature, args)
        codes_w, scales_w = (_pointer(context, builder, *p) for p in ((w, w_, w0_), (ws, ws_, ws0_)))
        codes_x, scales_x = (_pointer(context, builder, *p) for p in ((x, x_, x0_), (xs, xs_, xs0_)))
        pairs_w = builder.bitcast(codes_w, _I32.as_pointer())
        n_pairs, vector16 = GROUP // 2, _vector(_I16, 2 * LANES)
        zero = ir.Constant(_vector(_F32), [0.0] * LANES)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(TILE_ROWS)]
        with cgutils.for_range(builder, n_) as loop:
            starts = [
                builder.gep(pairs_w, [builder.mul(builder.add(builder.mul(_i64(r), n_), loop.index), _i64(n_pairs))])
                for r in range(TILE_ROWS)
            ]
            tile_x = builder.gep(codes_x, [builder.mul(loop.index, _i64(GROUP * LANES))])
            dots: list[list[Any]] = [[] for _ in range(TILE_ROWS)]
            for p in range(n_pairs):
                pair_x = _load(builder, builder.gep(tile_x, [_i64(2 * LANES * p)]), vector16, 2)
                for r in range(TILE_ROWS):
                    pair_w = builder.load(builder.gep(starts[r], [_i64(p)]), align=2)
                    spread = builder.bitcast(_splat(builder, pair_w), vector16)
                    dots[r].append(_pair_products(builder, pair_x, spread))
            at = builder.mul(loop.index, _i64(LANES))
            scale_x = _load(builder, builder.gep(scales_x, [at]), _vector(_F32), 4)
            for r in range(TILE_ROWS):
                scale_at = builder.add(builder.mul(_i64(r), n_), loop.index)
                scale_w = _splat(builder, builder.load(builder.gep(scales_w, [scale_at]), align=4))
                dot = builder.sitofp(reduce(builder.add, dots[r]), _vector(_F32))
                term = builder.fmul(builder.fmul(scale_w, scale_x), dot)
                builder.store(builder.fadd(builder.load(sums[r]), term), sums[r])
        for r in range(TILE_ROWS):
            target = _pointer(context, builder, out, out_, _i64(r * LANES))
            builder.store(builder.load(sums[r]), builder.bitcast(target, _vector(_F32).as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(w, w0, ws, ws0, x, x0, xs, xs0, n, out), generate


@_emitted
def _load_u16(_: Any, data: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data_, at_ = _as_int64(context, builder, signature, args)
        return _load(builder, _pointer(context, builder, data, data_, at_), _I16, 1)

    return types.uint16(data, at), generate


@_emitted
def _load_f32(_: Any, data: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data_, at_ = _as_int64(context, builder, signature, args)
        return _load(builder, _pointer(context, builder, data, data_, at_), _F32, 1)

    return types.float32(data, at), generate


def _store(kind: ir.Type, numba_kind: Any) -> Any:
    @_emitted
    def store(_: Any, data: Any, at: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            address = _pointer(context, builder, data, args[0], context.cast(builder, args[1], at, types.int64))
            builder.store(args[2], builder.bitcast(address, kind.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(data, at, numba_kind), generate

    return store


def _bit_cast(source: Any, target: Any) -> Any:
    @_emitted
    def cast(_: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(target))

        return target(source), generate

    return cast


def _address(element: Any) -> Any:
    @_emitted
    def pointer(_: Any, address: Any) -> Any:
        kind = types.CPointer(element)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(kind))

        return kind(types.int64), generate

    return pointer


@_emitted
def _fetch_add(_: Any, cells: Any, at: Any, amount: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cells_, at_, amount_ = _as_int64(context, builder, signature, args)
        return builder.atomic_rmw("add", _pointer(context, builder, cells, cells_, at_), amount_, "acq_rel")

    return types.int64(cells, at, amount), generate


@_emitted
def _load_atomic(_: Any, cells: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cells_, at_ = _as_int64(context, builder, signature, args)
        return builder.load_atomic(_pointer(context, builder, cells, cells_, at_), "acquire", 8)

    return types.int64(cells, at), generate


_YIELD = "localcoder_yield_thread"


def _yield_address() -> int:
    library = ctypes.CDLL("kernel32" if sys.platform == "win32" else None)
    function = library.SwitchToThread if sys.platform == "win32" else library.sched_yield
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


if numba.config.DISABLE_JIT:

    def _dot_tile_twin(n_rows: int, n_tokens: int) -> Any:
        def tile(w: Any, w0: int, x: Any, x0: int, n: int, out: Any, out0: int, stride: int) -> None:
            rows = w[w0 : w0 + n_rows * n].reshape(n_rows, n)
            tokens = x[x0 : x0 + n_tokens * n].reshape(n_tokens, n)
            for t in range(n_tokens):
                out[out0 + t * stride : out0 + t * stride + n_rows] = rows @ tokens[t]

        return tile

    dot_4x4, dot_4x1, dot_1x1 = _dot_tile_twin(4, 4), _dot_tile_twin(4, 1), _dot_tile_twin(1, 1)

    def dot_group(w: Any, w0: int, x: Any, x0: int) -> Any:
        """The int32 dot product of GROUP int16 codes."""
        return np.int32(np.dot(w[w0 : w0 + GROUP].astype(np.int32), x[x0 : x0 + GROUP].astype(np.int32)))

    def codes_tile(w: Any, w0: int, ws: Any, ws0: int, x: Any, x0: int, xs: Any, xs0: int, n: int, out: Any) -> None:
        """out [TILE_ROWS, TILE_TOKENS] = sum over n groups, in order, of scale_w · scale_x · (codes_w · codes_x).

        Codes of rows lie as [TILE_ROWS, n, GROUP], of tokens as [n, GROUP / 2, TILE_TOKENS, 2]; scales as
        [TILE_ROWS, n] and [n, TILE_TOKENS].
        """
        rows = w[w0 : w0 + TILE_ROWS * n * GROUP].reshape(TILE_ROWS, n, GROUP // 2, 2).astype(np.int64)
        tokens = x[x0 : x0 + n * GROUP * TILE_TOKENS].reshape(n, GROUP // 2, TILE_TOKENS, 2).astype(np.int64)
        scales_w = ws[ws0 : ws0 + TILE_ROWS * n].reshape(TILE_ROWS, n)
        scales_x = xs[xs0 : xs0 + n * TILE_TOKENS].reshape(n, TILE_TOKENS)
        dots = np.einsum("rgpi,gpti->grt", rows, tokens).astype(np.float32)
        total = np.zeros((TILE_ROWS, TILE_TOKENS), np.float32)
        for g in range(n):
            total += scales_w[:, g, None] * scales_x[g] * dots[g]
        out[: total.size] = total.reshape(-1)

    def bits_of(value: Any) -> Any:
        """float32 -> its bits, uint32."""
        return np.float32(value).view(np.uint32)

    def float_of(bits: Any) -> Any:
        """uint32 -> the float32 of these bits."""
        return np.uint32(bits).view(np.float32)

    def double_of(bits: Any) -> Any:
        return np.int64(bits).view(np.float64)

    def load_u16(data: Any, at: int) -> Any:
        return data[at : at + 2].view(np.uint16)[0]

    def load_f32(data: Any, at: int) -> Any:
        return data[at : at + 4].view(np.float32)[0]

    def store_u16(data: Any, at: int, value: Any) -> None:
        data[at : at + 2].view(np.uint16)[0] = value

    def store_f32(data: Any, at: int, value: Any) -> None:
        data[at : at + 4].view(np.float32)[0] = value

    def _array_twin(element: Any) -> Any:
        def array(address: int, n: int) -> Any:
            size = n * np.dtype(element).itemsize
            return np.frombuffer((ctypes.c_char * size).from_address(int(address)), element)

        return array

    f32_at, u8_at = _array_twin(np.float32), _array_twin(np.uint8)

    def fetch_add(cells: Any, at: int, amount: int) -> int:
        before = int(cells[at])
        cells[at] += amount
        return before

    def load_atomic(cells: Any, at: int) -> int:
        return int(cells[at])

    def _stay() -> int:
        return 0

    yield_thread: Any = _stay

else:
    dot_4x4, dot_4x1, dot_1x1 = _dot_tile(4, 4), _dot_tile(4, 1), _dot_tile(1, 1)
    dot_group, codes_tile = _dot_group, _codes_tile
    bits_of, float_of = _bit_cast(types.float32, types.uint32), _bit_cast(types.uint32, types.float32)
    double_of = _bit_cast(types.int64, types.float64)
    load_u16, load_f32 = _load_u16, _load_f32
    store_u16, store_f32 = _store(_I16, types.uint16), _store(_F32, types.float32)
    fetch_add, load_atomic = _fetch_add, _load_atomic
    _f32_pointer, _u8_pointer = _address(types.float32), _address(types.uint8)
    llvm.add_symbol(_YIELD, _yield_address())
    yield_thread = types.ExternalFunction(_YIELD, types.int32())

    @_jitable
    def f32_at(address: Any, n: Any) -> Any:
        """float32 [n] at a raw address that its owner keeps alive."""
        return numba.carray(_f32_pointer(address), (n,))

    @_jitable
    def u8_at(address: Any, n: Any) -> Any:
        """uint8 [n] at a raw address that its owner keeps alive."""
        return numba.carray(_u8_pointer(address), (n,))
