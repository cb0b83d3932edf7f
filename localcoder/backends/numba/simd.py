"""What numba's Python cannot say: sums in lanes, fused arithmetic, raw memory, and atomics, as LLVM IR.

With NUMBA_DISABLE_JIT=1 every function is its plain Python twin (at the end of the file), which says what it computes.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from localcoder.backends.numba.emit import (
    F32,
    F64,
    GROUP,
    I16,
    I32,
    LANES,
    address_of,
    as_int64,
    each_vector,
    emitted,
    fold_lanes,
    fuse,
    fuse_by_doubles,
    jitable,
    load_as,
    shuffle,
    splat,
    vector_type,
)


@emitted
def _sum_in_lanes(_: Any, x: Any, at: Any, n: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x_, at_, n_ = as_int64(context, builder, signature, args)
        total = cgutils.alloca_once_value(builder, ir.Constant(vector_type(F32), [0.0] * LANES))

        def accumulate(vectors: list[Any]) -> None:
            builder.store(builder.fadd(builder.load(total), vectors[0]), total)

        each_vector(builder, [address_of(context, builder, x, x_, at_)], n_, accumulate)
        return fold_lanes(builder, builder.load(total))

    return types.float32(x, at, n), generate


@emitted
def _sum_of_squares(_: Any, x: Any, at: Any, n: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x_, at_, n_ = as_int64(context, builder, signature, args)
        half = LANES // 2
        total = cgutils.alloca_once_value(builder, ir.Constant(vector_type(F64, half), [0.0] * half))

        def accumulate(vectors: list[Any]) -> None:
            wide = builder.fpext(vectors[0], vector_type(F64))
            squares = builder.fmul(wide, wide)
            for first in (0, half):
                part = shuffle(builder, squares, list(range(first, first + half)))
                builder.store(builder.fadd(builder.load(total), part), total)

        each_vector(builder, [address_of(context, builder, x, x_, at_)], n_, accumulate)
        return fold_lanes(builder, builder.load(total))

    return types.float64(x, at, n), generate


def _fused_scalar(emit: Callable[..., Any]) -> Any:
    @emitted
    def fused(_: Any, a: Any, b: Any, c: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return emit(builder, *args)

        return types.float32(types.float32, types.float32, types.float32), generate

    return fused


@emitted
def _spread_bits(
    _: Any, data: Any, at: Any, shift: Any, mask: Any, high: Any, high_shift: Any, high_mask: Any, bias: Any,
    codes: Any, to: Any,
) -> Any:  # fmt: skip
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = as_int64(context, builder, signature, args)
        data_, at_, high_, codes_, to_ = (values[i] for i in (0, 1, 4, 8, 9))
        shift_, mask_, high_shift_, high_mask_, bias_ = (
            splat(builder, builder.trunc(values[i], I16)) for i in (2, 3, 5, 6, 7)
        )

        def field(start: Any, shift: Any, mask: Any) -> Any:
            wide = _bytes_as_i16(builder, address_of(context, builder, data, data_, start))
            raised = builder.shl(wide, _every(8))  # so that a shift may be negative
            return builder.and_(builder.lshr(raised, builder.add(shift, _every(8))), mask)

        whole = builder.add(field(at_, shift_, mask_), field(high_, high_shift_, high_mask_))
        result = builder.sub(whole, bias_)
        _store_codes(builder, result, address_of(context, builder, codes, codes_, to_))
        return context.get_dummy_value()

    return types.void(data, at, shift, mask, high, high_shift, high_mask, bias, codes, to), generate


@emitted
def _split_nibbles(_: Any, data: Any, at: Any, bias: Any, codes: Any, to: Any, to_high: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data_, at_, bias_, codes_, to_, to_high_ = as_int64(context, builder, signature, args)
        subtrahend = splat(builder, builder.trunc(bias_, I16))
        for half, start in zip(_nibbles(builder, address_of(context, builder, data, data_, at_)), (to_, to_high_)):
            _store_codes(builder, builder.sub(half, subtrahend), address_of(context, builder, codes, codes_, start))
        return context.get_dummy_value()

    return types.void(data, at, bias, codes, to, to_high), generate


@emitted
def _split_fives(_: Any, data: Any, at: Any, flags: Any, bit: Any, codes: Any, to: Any, to_high: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data_, at_, flags_, bit_, codes_, to_, to_high_ = as_int64(context, builder, signature, args)
        halves = _nibbles(builder, address_of(context, builder, data, data_, at_))
        raised = builder.shl(_bytes_as_i16(builder, address_of(context, builder, data, data_, flags_)), _every(4))
        shift = splat(builder, builder.trunc(bit_, I16))
        for half, up, start in zip(halves, (0, 1), (to_, to_high_)):
            fifth = builder.and_(builder.lshr(raised, builder.add(shift, _every(up))), _every(16))
            _store_codes(builder, builder.or_(half, fifth), address_of(context, builder, codes, codes_, start))
        return context.get_dummy_value()

    return types.void(data, at, flags, bit, codes, to, to_high), generate


def _every(value: int) -> Any:
    return ir.Constant(vector_type(I16), [value] * LANES)


def _bytes_as_i16(builder: Any, address: Any) -> Any:
    return builder.zext(load_as(builder, address, vector_type(ir.IntType(8)), 1), vector_type(I16))


def _nibbles(builder: Any, address: Any) -> tuple[Any, Any]:
    wide = _bytes_as_i16(builder, address)
    return builder.and_(wide, _every(15)), builder.lshr(wide, _every(4))


def _store_codes(builder: Any, codes: Any, address: Any) -> None:
    builder.store(codes, builder.bitcast(address, codes.type.as_pointer()), align=2)


@emitted
def _widen_signed(_: Any, data: Any, at: Any, codes: Any, to: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data_, at_, codes_, to_ = as_int64(context, builder, signature, args)
        packed = load_as(builder, address_of(context, builder, data, data_, at_), vector_type(ir.IntType(8), GROUP), 1)
        wide = builder.sext(packed, vector_type(I16, GROUP))
        _store_codes(builder, wide, address_of(context, builder, codes, codes_, to_))
        return context.get_dummy_value()

    return types.void(data, at, codes, to), generate


@emitted
def _prefetch(_: Any, data: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data_, at_ = as_int64(context, builder, signature, args)
        address = address_of(context, builder, data, data_, at_)
        kind = ir.FunctionType(ir.VoidType(), [address.type, I32, I32, I32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        builder.call(function, [address, *(ir.Constant(I32, v) for v in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(data, at), generate


@emitted
def _load_u16(_: Any, data: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data_, at_ = as_int64(context, builder, signature, args)
        return load_as(builder, address_of(context, builder, data, data_, at_), I16, 1)

    return types.uint16(data, at), generate


@emitted
def _load_f32(_: Any, data: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data_, at_ = as_int64(context, builder, signature, args)
        return load_as(builder, address_of(context, builder, data, data_, at_), F32, 1)

    return types.float32(data, at), generate


def _store(kind: ir.Type, numba_kind: Any) -> Any:
    @emitted
    def store(_: Any, data: Any, at: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            address = address_of(context, builder, data, args[0], context.cast(builder, args[1], at, types.int64))
            builder.store(args[2], builder.bitcast(address, kind.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(data, at, numba_kind), generate

    return store


def _bit_cast(source: Any, target: Any) -> Any:
    @emitted
    def cast(_: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(target))

        return target(source), generate

    return cast


@emitted
def _widen_half(_: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), F32)

    return types.float32(types.uint16), generate


def _address(element: Any) -> Any:
    @emitted
    def pointer(_: Any, address: Any) -> Any:
        kind = types.CPointer(element)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(kind))

        return kind(types.int64), generate

    return pointer


@emitted
def _fetch_add(_: Any, cells: Any, at: Any, amount: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cells_, at_, amount_ = as_int64(context, builder, signature, args)
        return builder.atomic_rmw("add", address_of(context, builder, cells, cells_, at_), amount_, "acq_rel")

    return types.int64(cells, at, amount), generate


@emitted
def _load_atomic(_: Any, cells: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cells_, at_ = as_int64(context, builder, signature, args)
        return builder.load_atomic(address_of(context, builder, cells, cells_, at_), "acquire", 8)

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

    def split_nibbles(data: Any, at: int, bias: int, codes: Any, to: int, to_high: int) -> None:
        """The low nibbles of LANES bytes, less the bias, and the high ones."""
        codes[to : to + LANES] = (data[at : at + LANES] & 15).astype(np.int16) - bias
        codes[to_high : to_high + LANES] = (data[at : at + LANES] >> 4).astype(np.int16) - bias

    def split_fives(data: Any, at: int, flags: int, bit: int, codes: Any, to: int, to_high: int) -> None:
        """The low nibbles of LANES bytes, plus 16 where `bit` of the flags is set; the high ones, with the next bit."""
        for half, start in enumerate((to, to_high)):
            fifths = data[flags : flags + LANES] >> (bit + half) & 1
            codes[start : start + LANES] = (data[at : at + LANES] >> 4 * half & 15) + 16 * fifths

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
    fused, fused_by_doubles = _fused_scalar(fuse), _fused_scalar(fuse_by_doubles)
    sum_in_lanes, sum_of_squares = _sum_in_lanes, _sum_of_squares
    widen_half, prefetch = _widen_half, _prefetch
    spread_bits, widen_signed = _spread_bits, _widen_signed
    split_nibbles, split_fives = _split_nibbles, _split_fives
    bits_of, float_of = _bit_cast(types.float32, types.uint32), _bit_cast(types.uint32, types.float32)
    double_of = _bit_cast(types.int64, types.float64)
    load_u16, load_f32 = _load_u16, _load_f32
    store_u16, store_f32 = _store(I16, types.uint16), _store(F32, types.float32)
    fetch_add, load_atomic = _fetch_add, _load_atomic
    _f32_pointer, _u8_pointer = _address(types.float32), _address(types.uint8)
    llvm.add_symbol(_YIELD, _yield_address())
    yield_thread = types.ExternalFunction(_YIELD, types.int32())

    @jitable
    def f32_at(address: Any, n: Any) -> Any:
        """float32 [n] at a raw address that its owner keeps alive."""
        return numba.carray(_f32_pointer(address), (n,))

    @jitable
    def u8_at(address: Any, n: Any) -> Any:
        """uint8 [n] at a raw address that its owner keeps alive."""
        return numba.carray(_u8_pointer(address), (n,))
