"""What numba's Python cannot say: explicit vectors, raw memory, and atomics, as LLVM IR.

Vectors are LLVM's portable ones: the same text becomes AVX-512 (VNNI where there is), AVX2, SSE or NEON. The order of
additions is written out, so a result does not depend on the instruction set's width or on the shape of a tile.

With NUMBA_DISABLE_JIT=1 every function is its plain Python twin (at the end of the file), which says what it computes.
"""

from __future__ import annotations

import ctypes
import platform
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
GROUP = 32  # values that share a scale
PANEL_ROWS = LANES  # weight rows unpacked together
TILE_ROWS = 8  # of which a tile takes half: its sums just fit in AVX-512's registers
TILE_TOKENS = LANES

_I32, _I64, _I16, _F32, _F64 = ir.IntType(32), ir.IntType(64), ir.IntType(16), ir.FloatType(), ir.DoubleType()

# Whether the CPU multiplies and adds with one rounding; every arm64 does.
FUSES = not numba.config.DISABLE_JIT and (
    platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686", "x86")
    or bool(llvm.get_host_cpu_features().get("fma", False))
)


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
    add = builder.add if isinstance(vector.type.element, ir.IntType) else builder.fadd
    n = vector.type.count
    while n > 1:
        n //= 2
        low, high = _shuffle(builder, vector, list(range(n))), _shuffle(builder, vector, list(range(n, 2 * n)))
        vector = add(low, high)
    return builder.extract_element(vector, ir.Constant(_I32, 0))


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, rounded once, of float32 values or vectors."""
    if not FUSES:
        return _fused_by_doubles(builder, a, b, c)
    kind = a.type
    suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fma.{suffix}")
    return builder.call(function, [a, b, c])


def _fused_by_doubles(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """The same without the instruction, as csrc/cpu/fused.h does it: the sum is rounded to odd first."""
    count = a.type.count if isinstance(a.type, ir.VectorType) else 0
    wide, whole = (_vector(_F64, count), _vector(_I64, count)) if count else (_F64, _I64)

    def constant(kind: Any, value: Any) -> Any:
        return ir.Constant(kind, [value] * count if count else value)

    product, addend = builder.fmul(builder.fpext(a, wide), builder.fpext(b, wide)), builder.fpext(c, wide)
    total = builder.fadd(product, addend)
    part = builder.fsub(total, product)
    lost = builder.fadd(builder.fsub(product, builder.fsub(total, part)), builder.fsub(addend, part))
    bits = builder.bitcast(total, whole)
    is_inexact = builder.fcmp_ordered("!=", lost, constant(wide, 0.0))  # false for NaN: the sum is not finite
    is_even = builder.icmp_signed("==", builder.and_(bits, constant(whole, 1)), constant(whole, 0))
    other_sign = builder.ashr(builder.xor(builder.bitcast(lost, whole), bits), constant(whole, 63))
    outward = builder.or_(other_sign, constant(whole, 1))  # 1, or -1
    step = builder.select(builder.and_(is_inexact, is_even), outward, constant(whole, 0))
    return builder.fptrunc(builder.bitcast(builder.add(bits, step), wide), a.type)


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


def _rest(builder: Any, pointer: Any, n: Any) -> Any:
    """The n < LANES floats at pointer, and zeros, as a vector."""
    zero = ir.Constant(_vector(_F32), [0.0] * LANES)
    slot = cgutils.alloca_once(builder, zero.type)
    builder.store(zero, slot)
    lanes = builder.bitcast(slot, _F32.as_pointer())
    with cgutils.for_range(builder, n) as loop:
        value = builder.load(builder.gep(pointer, [loop.index]), align=4)
        builder.store(value, builder.gep(lanes, [loop.index]))
    return builder.load(slot)


def _each_vector(builder: Any, pointers: list[Any], n: Any, body: Callable[[list[Any]], None]) -> None:
    """Calls `body` with LANES floats from each pointer, again and again until n are done; zeros fill up the last."""
    n_vectors = builder.udiv(n, _i64(LANES))
    with cgutils.for_range(builder, n_vectors) as loop:
        at = builder.mul(loop.index, _i64(LANES))
        body([_load(builder, builder.gep(p, [at]), _vector(_F32), 4) for p in pointers])
    done = builder.mul(n_vectors, _i64(LANES))
    left = builder.sub(n, done)
    with builder.if_then(builder.icmp_unsigned("!=", left, _i64(0)), likely=False):
        body([_rest(builder, builder.gep(p, [done]), left) for p in pointers])


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

            def accumulate(vectors: list[Any]) -> None:
                for (r, t), total in sums.items():
                    fused = _fused(builder, vectors[r], vectors[n_rows + t], builder.load(total))
                    builder.store(fused, total)

            _each_vector(builder, row + col, n_, accumulate)
            for r, t in cells:
                at = builder.add(out0_, builder.add(builder.mul(_i64(t), stride_), _i64(r)))
                total = _sum_lanes(builder, builder.load(sums[r, t]))
                builder.store(total, _pointer(context, builder, out, out_, at))
            return context.get_dummy_value()

        return types.void(w, w0, x, x0, n, out, out0, stride), generate

    return tile


@_emitted
def _sum_in_lanes(_: Any, x: Any, at: Any, n: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x_, at_, n_ = _as_int64(context, builder, signature, args)
        total = cgutils.alloca_once_value(builder, ir.Constant(_vector(_F32), [0.0] * LANES))

        def accumulate(vectors: list[Any]) -> None:
            builder.store(builder.fadd(builder.load(total), vectors[0]), total)

        _each_vector(builder, [_pointer(context, builder, x, x_, at_)], n_, accumulate)
        return _sum_lanes(builder, builder.load(total))

    return types.float32(x, at, n), generate


@_emitted
def _sum_of_squares(_: Any, x: Any, at: Any, n: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x_, at_, n_ = _as_int64(context, builder, signature, args)
        half = LANES // 2
        total = cgutils.alloca_once_value(builder, ir.Constant(_vector(_F64, half), [0.0] * half))

        def accumulate(vectors: list[Any]) -> None:
            wide = builder.fpext(vectors[0], _vector(_F64))
            squares = builder.fmul(wide, wide)
            for first in (0, half):
                part = _shuffle(builder, squares, list(range(first, first + half)))
                builder.store(builder.fadd(builder.load(total), part), total)

        _each_vector(builder, [_pointer(context, builder, x, x_, at_)], n_, accumulate)
        return _sum_lanes(builder, builder.load(total))

    return types.float64(x, at, n), generate


def _fused_scalar(emit: Callable[..., Any]) -> Any:
    @_emitted
    def fused(_: Any, a: Any, b: Any, c: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return emit(builder, *args)

        return types.float32(types.float32, types.float32, types.float32), generate

    return fused


def _shuffle_two(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(_vector(_I32, len(lanes)), lanes))


def _sums_of(builder: Any, vectors: list[Any]) -> Any:
    """LANES vectors of LANES or half as many -> one whose lane i is the sum of vector i, by folding pairs."""
    half = LANES // 2
    if vectors[0].type.count == half:
        vectors = [_shuffle_two(builder, a, b, list(range(LANES))) for a, b in zip(vectors[:half], vectors[half:])]
        half //= 2
    while half:
        kept = [lane if not lane & half else LANES + lane - half for lane in range(LANES)]
        moved = [lane + half if not lane & half else LANES + lane for lane in range(LANES)]
        vectors = [
            builder.add(_shuffle_two(builder, a, b, kept), _shuffle_two(builder, a, b, moved))
            for a, b in zip(vectors[:half], vectors[half:])
        ]
        half //= 2
    return vectors[0]


def _codes_panel(sub: int, has_min: bool) -> Any:
    n_subs = GROUP // sub

    @_emitted
    def panel(
        _: Any, w: Any, stride: Any, ws: Any, wm: Any, x: Any, x0: Any, xs: Any, xs0: Any, xm: Any, n: Any, sums: Any,
        sums0: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w_, stride_, ws_, wm_, x_, x0_, xs_, xs0_, xm_, n_, sums_, sums0_ = _as_int64(
                context, builder, signature, args
            )
            codes_w, scales_w = _pointer(context, builder, w, w_, _i64(0)), _pointer(context, builder, ws, ws_, _i64(0))
            codes_x, scales_x = _pointer(context, builder, x, x_, x0_), _pointer(context, builder, xs, xs_, xs0_)
            mins_w = _pointer(context, builder, wm, wm_, _i64(0))
            sums_x = _pointer(context, builder, xm, xm_, builder.mul(xs0_, _i64(2)))
            target = _pointer(context, builder, sums, sums_, sums0_)
            total = cgutils.alloca_once_value(builder, _load(builder, target, _vector(_F32), 4))
            with cgutils.for_range(builder, n_) as loop:
                scale_x = builder.load(builder.gep(scales_x, [loop.index]), align=4)
                halves_x = builder.gep(sums_x, [builder.mul(loop.index, _i64(2))])
                halves = [builder.load(builder.gep(halves_x, [_i64(h)]), align=4) for h in range(2)]
                for s in range(n_subs):
                    at = builder.add(builder.mul(loop.index, _i64(GROUP)), _i64(s * sub))
                    group_x = _load(builder, builder.gep(codes_x, [at]), _vector(_I16, sub), 2)
                    products = []
                    for r in range(PANEL_ROWS):
                        row = builder.gep(codes_w, [builder.add(builder.mul(_i64(r), stride_), at)])
                        products.append(_pair_products(builder, _load(builder, row, _vector(_I16, sub), 2), group_x))
                    dots = builder.sitofp(_sums_of(builder, products), _vector(_F32))
                    rows = builder.mul(builder.add(builder.mul(loop.index, _i64(n_subs)), _i64(s)), _i64(PANEL_ROWS))
                    scale_w = _load(builder, builder.gep(scales_w, [rows]), _vector(_F32), 4)
                    scale = builder.fmul(scale_w, _splat(builder, scale_x))
                    builder.store(_fused(builder, dots, scale, builder.load(total)), total)
                    if has_min:
                        codes_sum = halves[s] if n_subs == 2 else builder.fadd(*halves)
                        sum_x = _splat(builder, builder.fmul(scale_x, codes_sum))
                        offsets = _load(builder, builder.gep(mins_w, [rows]), _vector(_F32), 4)
                        builder.store(_fused(builder, offsets, sum_x, builder.load(total)), total)
            builder.store(builder.load(total), builder.bitcast(target, _vector(_F32).as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(w, stride, ws, wm, x, x0, xs, xs0, xm, n, sums, sums0), generate

    return panel


def _codes_tile(sub: int, has_min: bool) -> Any:
    n_subs, n_pairs, vector16 = GROUP // sub, sub // 2, _vector(_I16, 2 * LANES)

    @_emitted
    def tile(
        _: Any, w: Any, w0: Any, ws: Any, wm: Any, ws0: Any, x: Any, x0: Any, xs: Any, xs0: Any, xm: Any, n: Any,
        out: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w_, w0_, ws_, wm_, ws0_, x_, x0_, xs_, xs0_, xm_, n_, out_ = _as_int64(context, builder, signature, args)
            codes_w, scales_w = _pointer(context, builder, w, w_, w0_), _pointer(context, builder, ws, ws_, ws0_)
            codes_x, scales_x = _pointer(context, builder, x, x_, x0_), _pointer(context, builder, xs, xs_, xs0_)
            mins_w = _pointer(context, builder, wm, wm_, ws0_)
            sums_x = _pointer(context, builder, xm, xm_, builder.mul(xs0_, _i64(2)))
            pairs_w = builder.bitcast(codes_w, _I32.as_pointer())
            zero = ir.Constant(_vector(_F32), [0.0] * LANES)
            sums = [cgutils.alloca_once_value(builder, zero) for _ in range(TILE_ROWS)]

            def tokens_at(pointer: Any, row: Any) -> Any:
                return _load(builder, builder.gep(pointer, [builder.mul(row, _i64(TILE_TOKENS))]), _vector(_F32), 4)

            def step(group: Any, s: int) -> None:
                sub_index = builder.add(builder.mul(group, _i64(n_subs)), _i64(s))
                first = builder.mul(sub_index, _i64(n_pairs))
                n_row = builder.mul(n_, _i64(GROUP // 2))
                starts = [
                    builder.gep(pairs_w, [builder.add(builder.mul(_i64(r), n_row), first)]) for r in range(TILE_ROWS)
                ]
                tile_x = builder.gep(codes_x, [builder.mul(first, _i64(2 * TILE_TOKENS))])
                dots: list[list[Any]] = [[] for _ in range(TILE_ROWS)]
                for p in range(n_pairs):
                    pair_x = _load(builder, builder.gep(tile_x, [_i64(2 * TILE_TOKENS * p)]), vector16, 2)
                    for r in range(TILE_ROWS):
                        pair_w = builder.load(builder.gep(starts[r], [_i64(p)]), align=2)
                        spread = builder.bitcast(_splat(builder, pair_w), vector16)
                        dots[r].append(_pair_products(builder, pair_x, spread))
                scale_x = tokens_at(scales_x, group)
                rows = builder.mul(sub_index, _i64(PANEL_ROWS))
                if has_min and n_subs == 2:
                    codes_sum = tokens_at(sums_x, sub_index)
                elif has_min:
                    half = builder.mul(group, _i64(2))
                    codes_sum = builder.fadd(tokens_at(sums_x, half), tokens_at(sums_x, builder.add(half, _i64(1))))
                for r in range(TILE_ROWS):
                    at = [builder.add(rows, _i64(r))]
                    scale_w = _splat(builder, builder.load(builder.gep(scales_w, at), align=4))
                    dot = builder.sitofp(reduce(builder.add, dots[r]), _vector(_F32))
                    total = _fused(builder, dot, builder.fmul(scale_w, scale_x), builder.load(sums[r]))
                    if has_min:
                        offset = _splat(builder, builder.load(builder.gep(mins_w, at), align=4))
                        total = _fused(builder, offset, builder.fmul(scale_x, codes_sum), total)
                    builder.store(total, sums[r])

            with cgutils.for_range(builder, n_) as loop:
                for s in range(n_subs):
                    step(loop.index, s)
            for r in range(TILE_ROWS):
                target = _pointer(context, builder, out, out_, _i64(r * TILE_TOKENS))
                builder.store(builder.load(sums[r]), builder.bitcast(target, _vector(_F32).as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(w, w0, ws, wm, ws0, x, x0, xs, xs0, xm, n, out), generate

    return tile


@_emitted
def _spread_bits(
    _: Any, data: Any, at: Any, shift: Any, mask: Any, high: Any, high_shift: Any, high_mask: Any, bias: Any,
    codes: Any, to: Any,
) -> Any:  # fmt: skip
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = _as_int64(context, builder, signature, args)
        data_, at_, high_, codes_, to_ = (values[i] for i in (0, 1, 4, 8, 9))
        shift_, mask_, high_shift_, high_mask_, bias_ = (
            _splat(builder, builder.trunc(values[i], _I16)) for i in (2, 3, 5, 6, 7)
        )

        def field(start: Any, shift: Any, mask: Any) -> Any:
            packed = _load(builder, _pointer(context, builder, data, data_, start), _vector(ir.IntType(8)), 1)
            raised = builder.shl(builder.zext(packed, _vector(_I16)), eight)  # so that a shift may be negative
            return builder.and_(builder.lshr(raised, builder.add(shift, eight)), mask)

        eight = ir.Constant(_vector(_I16), [8] * LANES)
        whole = builder.add(field(at_, shift_, mask_), field(high_, high_shift_, high_mask_))
        result = builder.sub(whole, bias_)
        target = builder.bitcast(_pointer(context, builder, codes, codes_, to_), _vector(_I16).as_pointer())
        builder.store(result, target, align=2)
        return context.get_dummy_value()

    return types.void(data, at, shift, mask, high, high_shift, high_mask, bias, codes, to), generate


@_emitted
def _widen_signed(_: Any, data: Any, at: Any, codes: Any, to: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data_, at_, codes_, to_ = _as_int64(context, builder, signature, args)
        packed = _load(builder, _pointer(context, builder, data, data_, at_), _vector(ir.IntType(8), GROUP), 1)
        target = builder.bitcast(_pointer(context, builder, codes, codes_, to_), _vector(_I16, GROUP).as_pointer())
        builder.store(builder.sext(packed, _vector(_I16, GROUP)), target, align=2)
        return context.get_dummy_value()

    return types.void(data, at, codes, to), generate


@_emitted
def _prefetch(_: Any, data: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data_, at_ = _as_int64(context, builder, signature, args)
        address = _pointer(context, builder, data, data_, at_)
        kind = ir.FunctionType(ir.VoidType(), [address.type, _I32, _I32, _I32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        builder.call(function, [address, *(ir.Constant(_I32, v) for v in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(data, at), generate


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


@_emitted
def _widen_half(_: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), _F32)

    return types.float32(types.uint16), generate


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

# Whether the CPU converts half precision itself; elsewhere LLVM would call a function that a process may not have.
CONVERTS_HALF = not numba.config.DISABLE_JIT and (
    platform.machine().lower() in ("arm64", "aarch64") or llvm.get_host_cpu_features().get("f16c", False)
)


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

    def _codes_panel_twin(sub: int, has_min: bool) -> Any:
        def panel(
            w: Any, stride: int, ws: Any, wm: Any, x: Any, x0: int, xs: Any, xs0: int, xm: Any, n: int, sums: Any,
            sums0: int,
        ) -> None:  # fmt: skip
            """sums [PANEL_ROWS] += W · x for n groups of one token, in the order that csrc/cpu/kernel_table.h defines.

            Codes of rows lie `stride` apart; their scales, and offsets wm where there are minimums, as
            [n · GROUP / sub, PANEL_ROWS]. The token has n codes, scales from xs0 on, and two sums of codes a group, xm.
            """
            n_subs = GROUP // sub
            rows = w[: PANEL_ROWS * stride].reshape(PANEL_ROWS, stride)[:, : n * GROUP].astype(np.int64)
            codes = x[x0 : x0 + n * GROUP].astype(np.int64)
            dots = np.einsum("rsi,si->sr", rows.reshape(PANEL_ROWS, n * n_subs, sub), codes.reshape(-1, sub))
            code_sums = xm[2 * xs0 : 2 * (xs0 + n)].reshape(n * n_subs, -1).sum(axis=1)
            total = sums[sums0 : sums0 + PANEL_ROWS]
            for s in range(n * n_subs):
                of_rows, scale_x = slice(s * PANEL_ROWS, (s + 1) * PANEL_ROWS), xs[xs0 + s // n_subs]
                total[:] = fused(dots[s].astype(np.float32), ws[of_rows] * scale_x, total)
                if has_min:
                    total[:] = fused(wm[of_rows], scale_x * code_sums[s], total)

        return panel

    def _codes_tile_twin(sub: int, has_min: bool) -> Any:
        def tile(
            w: Any, w0: int, ws: Any, wm: Any, ws0: int, x: Any, x0: int, xs: Any, xs0: int, xm: Any, n: int, out: Any
        ) -> None:
            """out [TILE_ROWS, TILE_TOKENS] = the same sums from 0, for TILE_TOKENS tokens.

            Codes of rows lie as [TILE_ROWS, n, GROUP], of tokens as [n, GROUP / 2, TILE_TOKENS, 2]; scales and offsets
            as [n · GROUP / sub, PANEL_ROWS] (of which ws0 picks TILE_ROWS), of tokens as [n, TILE_TOKENS]; sums of
            codes as [2 · n, TILE_TOKENS].
            """
            n_subs = GROUP // sub
            rows = w[w0 : w0 + TILE_ROWS * n * GROUP].reshape(TILE_ROWS, n * n_subs, sub // 2, 2).astype(np.int64)
            tokens = x[x0 : x0 + n * GROUP * TILE_TOKENS].reshape(n * n_subs, sub // 2, TILE_TOKENS, 2)
            dots = np.einsum("rspi,spti->srt", rows, tokens.astype(np.int64)).astype(np.float32)
            code_sums = xm[2 * xs0 : 2 * xs0 + 2 * n * TILE_TOKENS].reshape(n * n_subs, -1, TILE_TOKENS).sum(axis=1)
            total = np.zeros((TILE_ROWS, TILE_TOKENS), np.float32)
            for s in range(n * n_subs):
                of_rows = slice(ws0 + s * PANEL_ROWS, ws0 + s * PANEL_ROWS + TILE_ROWS)
                scale_x = xs[xs0 + s // n_subs * TILE_TOKENS :][:TILE_TOKENS]
                total = fused(dots[s], ws[of_rows, None] * scale_x, total)
                if has_min:
                    total = fused(wm[of_rows, None], scale_x * code_sums[s], total)
            out[: total.size] = total.reshape(-1)

        return tile

    codes_panel_32, codes_panel_32_min = _codes_panel_twin(32, False), _codes_panel_twin(32, True)
    codes_panel_16, codes_panel_16_min = _codes_panel_twin(16, False), _codes_panel_twin(16, True)
    codes_tile_32, codes_tile_32_min = _codes_tile_twin(32, False), _codes_tile_twin(32, True)
    codes_tile_16, codes_tile_16_min = _codes_tile_twin(16, False), _codes_tile_twin(16, True)

    def fused(a: Any, b: Any, c: Any) -> Any:
        """a·b + c in float32, rounded once (here, very rarely, twice)."""
        return np.float32(np.multiply(a, b, dtype=np.float64) + c)

    def sum_in_lanes(x: Any, at: int, n: int) -> Any:
        """Sum of n values: LANES sums of every LANES-th; their upper half is added to the lower, and so on."""
        lanes = np.zeros(LANES, np.float32)
        for i in range(n):
            lanes[i % LANES] += x[at + i]
        while len(lanes) > 1:
            lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
        return lanes[0]

    def sum_of_squares(x: Any, at: int, n: int) -> Any:
        """The same in float64 with LANES / 2 lanes."""
        return np.square(x[at : at + n], dtype=np.float64).sum()

    def spread_bits(
        data: Any, at: int, shift: int, mask: int, high: int, high_shift: int, high_mask: int, bias: int, codes: Any,
        to: int,
    ) -> None:  # fmt: skip
        """LANES codes: (data[at..] >> shift & mask) + (data[high..] >> high_shift & high_mask) - bias.

        high_shift may be negative: the bits move up.
        """
        low_bits = data[at : at + LANES].astype(np.int16) >> shift & mask
        high_bits = data[high : high + LANES].astype(np.int16)
        high_bits = (high_bits << -high_shift if high_shift < 0 else high_bits >> high_shift) & high_mask
        codes[to : to + LANES] = low_bits + high_bits - bias

    def widen_signed(data: Any, at: int, codes: Any, to: int) -> None:
        """GROUP codes: the bytes, signed."""
        codes[to : to + GROUP] = data[at : at + GROUP].view(np.int8)

    def prefetch(data: Any, at: int) -> None:
        """Asks for the cache line of data[at], which may lie outside."""

    def bits_of(value: Any) -> Any:
        """float32 -> its bits, uint32."""
        return np.float32(value).view(np.uint32)

    def float_of(bits: Any) -> Any:
        """uint32 -> the float32 of these bits."""
        return np.uint32(bits).view(np.float32)

    def double_of(bits: Any) -> Any:
        return np.int64(bits).view(np.float64)

    def widen_half(bits: Any) -> Any:
        """IEEE half bits (uint16) -> float32, by the CPU's own instruction: only where CONVERTS_HALF."""
        return np.float32(np.uint16(bits).view(np.float16))

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
    codes_panel_32, codes_panel_32_min = _codes_panel(32, False), _codes_panel(32, True)
    codes_panel_16, codes_panel_16_min = _codes_panel(16, False), _codes_panel(16, True)
    codes_tile_32, codes_tile_32_min = _codes_tile(32, False), _codes_tile(32, True)
    codes_tile_16, codes_tile_16_min = _codes_tile(16, False), _codes_tile(16, True)
    fused, fused_by_doubles = _fused_scalar(_fused), _fused_scalar(_fused_by_doubles)
    sum_in_lanes, sum_of_squares = _sum_in_lanes, _sum_of_squares
    widen_half, prefetch = _widen_half, _prefetch
    spread_bits, widen_signed = _spread_bits, _widen_signed
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
