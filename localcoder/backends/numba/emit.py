"""Pieces of LLVM IR that the kernels in `simd` and `tiles` are put together from.

Vectors are LLVM's portable ones: the same text becomes AVX-512 (VNNI where there is), AVX2, SSE or NEON.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

LANES = 16  # float32 or int32 lanes of a vector here: one AVX-512 register, two AVX2, four NEON
GROUP = 32  # values that share a scale

I32, I64, I16, F32, F64 = ir.IntType(32), ir.IntType(64), ir.IntType(16), ir.FloatType(), ir.DoubleType()

# Whether the CPU multiplies and adds with one rounding; every arm64 does.
FUSES = not numba.config.DISABLE_JIT and (
    platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686", "x86")
    or bool(llvm.get_host_cpu_features().get("fma", False))
)


def emitted(function: Callable[..., Any]) -> Any:
    return intrinsic(function)


def jitable(function: Callable[..., Any]) -> Any:
    return register_jitable(function)


def vector_type(element: ir.Type, n: int = LANES) -> ir.VectorType:
    return ir.VectorType(element, n)


def i64(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def shuffle(builder: Any, vector: Any, lanes: list[int]) -> Any:
    undefined = ir.Constant(vector.type, ir.Undefined)
    return builder.shuffle_vector(vector, undefined, ir.Constant(vector_type(I32, len(lanes)), lanes))


def splat(builder: Any, value: Any, n: int = LANES) -> Any:
    undefined = ir.Constant(vector_type(value.type, n), ir.Undefined)
    return shuffle(builder, builder.insert_element(undefined, value, ir.Constant(I32, 0)), [0] * n)


def fold_lanes(builder: Any, vector: Any) -> Any:
    """The upper half is added to the lower until one lane is left."""
    add = builder.add if isinstance(vector.type.element, ir.IntType) else builder.fadd
    n = vector.type.count
    while n > 1:
        n //= 2
        low, high = shuffle(builder, vector, list(range(n))), shuffle(builder, vector, list(range(n, 2 * n)))
        vector = add(low, high)
    return builder.extract_element(vector, ir.Constant(I32, 0))


def fuse(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, rounded once, of float32 values or vectors."""
    if not FUSES:
        return fuse_by_doubles(builder, a, b, c)
    kind = a.type
    suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fma.{suffix}")
    return builder.call(function, [a, b, c])


def fuse_by_doubles(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """The same without the instruction, as csrc/cpu/fused.h does it: the sum is rounded to odd first."""
    count = a.type.count if isinstance(a.type, ir.VectorType) else 0
    wide, whole = (vector_type(F64, count), vector_type(I64, count)) if count else (F64, I64)

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


def address_of(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    """Address of element `offset` of a one-dimensional contiguous array."""
    return builder.gep(cgutils.create_struct_proxy(array_type)(context, builder, array).data, [offset])


def load_as(builder: Any, pointer: Any, kind: ir.Type, align: int) -> Any:
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=align)


def as_int64(context: Any, builder: Any, signature: Any, args: Any) -> list[Any]:
    """The arguments, integers among them as 64 bits."""
    return [
        context.cast(builder, arg, kind, types.int64) if isinstance(kind, types.Integer) else arg
        for arg, kind in zip(args, signature.args)
    ]


def rest_of(builder: Any, pointer: Any, n: Any) -> Any:
    """The n < LANES floats at pointer, and zeros, as a vector."""
    zero = ir.Constant(vector_type(F32), [0.0] * LANES)
    slot = cgutils.alloca_once(builder, zero.type)
    builder.store(zero, slot)
    lanes = builder.bitcast(slot, F32.as_pointer())
    with cgutils.for_range(builder, n) as loop:
        value = builder.load(builder.gep(pointer, [loop.index]), align=4)
        builder.store(value, builder.gep(lanes, [loop.index]))
    return builder.load(slot)


def each_vector(builder: Any, pointers: list[Any], n: Any, body: Callable[[list[Any]], None]) -> None:
    """Calls `body` with LANES floats from each pointer, again and again until n are done; zeros fill up the last."""
    n_vectors = builder.udiv(n, i64(LANES))
    with cgutils.for_range(builder, n_vectors) as loop:
        at = builder.mul(loop.index, i64(LANES))
        body([load_as(builder, builder.gep(p, [at]), vector_type(F32), 4) for p in pointers])
    done = builder.mul(n_vectors, i64(LANES))
    left = builder.sub(n, done)
    with builder.if_then(builder.icmp_unsigned("!=", left, i64(0)), likely=False):
        body([rest_of(builder, builder.gep(p, [done]), left) for p in pointers])
