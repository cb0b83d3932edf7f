"""Dot products of many rows at once: floats, and integer codes with scales, as LLVM IR.

The order of additions is written out, so a result does not depend on the instruction set's width or on the shape of a
tile. For codes, csrc/cpu/kernel_table.h defines it to the bit.

With NUMBA_DISABLE_JIT=1 every function is its plain Python twin (at the end of the file), which says what it computes.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from localcoder.backends.numba.emit import (
    F32,
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
    i64,
    load_as,
    shuffle,
    splat,
    vector_type,
)
from localcoder.backends.numba.simd import fused

PANEL_ROWS = LANES  # weight rows unpacked together
TILE_ROWS = 8  # of which a tile takes half: its sums just fit in AVX-512's registers
TILE_TOKENS = LANES


def _pair_products(builder: Any, a: Any, b: Any) -> Any:
    """int16 vectors [2n] -> int32 [n]: a[2i]·b[2i] + a[2i+1]·b[2i+1] (one instruction on x86)."""
    n = a.type.count
    wide = vector_type(I32, n)
    products = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    even, odd = list(range(0, n, 2)), list(range(1, n, 2))
    return builder.add(shuffle(builder, products, even), shuffle(builder, products, odd))


def _dot_tile(n_rows: int, n_tokens: int) -> Any:
    @emitted
    def tile(_: Any, w: Any, w0: Any, x: Any, x0: Any, n: Any, out: Any, out0: Any, stride: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w_, w0_, x_, x0_, n_, out_, out0_, stride_ = as_int64(context, builder, signature, args)
            row = [
                address_of(context, builder, w, w_, builder.add(w0_, builder.mul(i64(r), n_))) for r in range(n_rows)
            ]
            col = [
                address_of(context, builder, x, x_, builder.add(x0_, builder.mul(i64(t), n_))) for t in range(n_tokens)
            ]
            zero = ir.Constant(vector_type(F32), [0.0] * LANES)
            cells = [(r, t) for r in range(n_rows) for t in range(n_tokens)]
            sums = {cell: cgutils.alloca_once_value(builder, zero) for cell in cells}

            def accumulate(vectors: list[Any]) -> None:
                for (r, t), total in sums.items():
                    fused = fuse(builder, vectors[r], vectors[n_rows + t], builder.load(total))
                    builder.store(fused, total)

            each_vector(builder, row + col, n_, accumulate)
            for r, t in cells:
                at = builder.add(out0_, builder.add(builder.mul(i64(t), stride_), i64(r)))
                total = fold_lanes(builder, builder.load(sums[r, t]))
                builder.store(total, address_of(context, builder, out, out_, at))
            return context.get_dummy_value()

        return types.void(w, w0, x, x0, n, out, out0, stride), generate

    return tile


def _shuffle_two(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(vector_type(I32, len(lanes)), lanes))


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

    @emitted
    def panel(
        _: Any, w: Any, stride: Any, ws: Any, wm: Any, x: Any, x0: Any, xs: Any, xs0: Any, xm: Any, n: Any, sums: Any,
        sums0: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w_, stride_, ws_, wm_, x_, x0_, xs_, xs0_, xm_, n_, sums_, sums0_ = as_int64(
                context, builder, signature, args
            )
            codes_w, scales_w = (
                address_of(context, builder, w, w_, i64(0)),
                address_of(context, builder, ws, ws_, i64(0)),
            )
            codes_x, scales_x = address_of(context, builder, x, x_, x0_), address_of(context, builder, xs, xs_, xs0_)
            mins_w = address_of(context, builder, wm, wm_, i64(0))
            sums_x = address_of(context, builder, xm, xm_, builder.mul(xs0_, i64(2)))
            target = address_of(context, builder, sums, sums_, sums0_)
            total = cgutils.alloca_once_value(builder, load_as(builder, target, vector_type(F32), 4))
            with cgutils.for_range(builder, n_) as loop:
                scale_x = builder.load(builder.gep(scales_x, [loop.index]), align=4)
                halves_x = builder.gep(sums_x, [builder.mul(loop.index, i64(2))])
                halves = [builder.load(builder.gep(halves_x, [i64(h)]), align=4) for h in range(2)]
                for s in range(n_subs):
                    at = builder.add(builder.mul(loop.index, i64(GROUP)), i64(s * sub))
                    group_x = load_as(builder, builder.gep(codes_x, [at]), vector_type(I16, sub), 2)
                    products = []
                    for r in range(PANEL_ROWS):
                        row = builder.gep(codes_w, [builder.add(builder.mul(i64(r), stride_), at)])
                        products.append(
                            _pair_products(builder, load_as(builder, row, vector_type(I16, sub), 2), group_x)
                        )
                    dots = builder.sitofp(_sums_of(builder, products), vector_type(F32))
                    rows = builder.mul(builder.add(builder.mul(loop.index, i64(n_subs)), i64(s)), i64(PANEL_ROWS))
                    scale_w = load_as(builder, builder.gep(scales_w, [rows]), vector_type(F32), 4)
                    scale = builder.fmul(scale_w, splat(builder, scale_x))
                    builder.store(fuse(builder, dots, scale, builder.load(total)), total)
                    if has_min:
                        codes_sum = halves[s] if n_subs == 2 else builder.fadd(*halves)
                        sum_x = splat(builder, builder.fmul(scale_x, codes_sum))
                        offsets = load_as(builder, builder.gep(mins_w, [rows]), vector_type(F32), 4)
                        builder.store(fuse(builder, offsets, sum_x, builder.load(total)), total)
            builder.store(builder.load(total), builder.bitcast(target, vector_type(F32).as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(w, stride, ws, wm, x, x0, xs, xs0, xm, n, sums, sums0), generate

    return panel


def _codes_tile(sub: int, has_min: bool) -> Any:
    n_subs, n_pairs, vector16 = GROUP // sub, sub // 2, vector_type(I16, 2 * LANES)

    @emitted
    def tile(
        _: Any, w: Any, w0: Any, ws: Any, wm: Any, ws0: Any, x: Any, x0: Any, xs: Any, xs0: Any, xm: Any, n: Any,
        out: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w_, w0_, ws_, wm_, ws0_, x_, x0_, xs_, xs0_, xm_, n_, out_ = as_int64(context, builder, signature, args)
            codes_w, scales_w = address_of(context, builder, w, w_, w0_), address_of(context, builder, ws, ws_, ws0_)
            codes_x, scales_x = address_of(context, builder, x, x_, x0_), address_of(context, builder, xs, xs_, xs0_)
            mins_w = address_of(context, builder, wm, wm_, ws0_)
            sums_x = address_of(context, builder, xm, xm_, builder.mul(xs0_, i64(2)))
            pairs_w = builder.bitcast(codes_w, I32.as_pointer())
            zero = ir.Constant(vector_type(F32), [0.0] * LANES)
            sums = [cgutils.alloca_once_value(builder, zero) for _ in range(TILE_ROWS)]

            def tokens_at(pointer: Any, row: Any) -> Any:
                return load_as(builder, builder.gep(pointer, [builder.mul(row, i64(TILE_TOKENS))]), vector_type(F32), 4)

            def step(group: Any, s: int) -> None:
                sub_index = builder.add(builder.mul(group, i64(n_subs)), i64(s))
                first = builder.mul(sub_index, i64(n_pairs))
                n_row = builder.mul(n_, i64(GROUP // 2))
                starts = [
                    builder.gep(pairs_w, [builder.add(builder.mul(i64(r), n_row), first)]) for r in range(TILE_ROWS)
                ]
                tile_x = builder.gep(codes_x, [builder.mul(first, i64(2 * TILE_TOKENS))])
                dots: list[list[Any]] = [[] for _ in range(TILE_ROWS)]
                for p in range(n_pairs):
                    pair_x = load_as(builder, builder.gep(tile_x, [i64(2 * TILE_TOKENS * p)]), vector16, 2)
                    for r in range(TILE_ROWS):
                        pair_w = builder.load(builder.gep(starts[r], [i64(p)]), align=2)
                        spread = builder.bitcast(splat(builder, pair_w), vector16)
                        dots[r].append(_pair_products(builder, pair_x, spread))
                scale_x = tokens_at(scales_x, group)
                rows = builder.mul(sub_index, i64(PANEL_ROWS))
                if has_min and n_subs == 2:
                    codes_sum = tokens_at(sums_x, sub_index)
                elif has_min:
                    half = builder.mul(group, i64(2))
                    codes_sum = builder.fadd(tokens_at(sums_x, half), tokens_at(sums_x, builder.add(half, i64(1))))
                for r in range(TILE_ROWS):
                    at = [builder.add(rows, i64(r))]
                    scale_w = splat(builder, builder.load(builder.gep(scales_w, at), align=4))
                    dot = builder.sitofp(reduce(builder.add, dots[r]), vector_type(F32))
                    total = fuse(builder, dot, builder.fmul(scale_w, scale_x), builder.load(sums[r]))
                    if has_min:
                        offset = splat(builder, builder.load(builder.gep(mins_w, at), align=4))
                        total = fuse(builder, offset, builder.fmul(scale_x, codes_sum), total)
                    builder.store(total, sums[r])

            with cgutils.for_range(builder, n_) as loop:
                for s in range(n_subs):
                    step(loop.index, s)
            for r in range(TILE_ROWS):
                target = address_of(context, builder, out, out_, i64(r * TILE_TOKENS))
                builder.store(builder.load(sums[r]), builder.bitcast(target, vector_type(F32).as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(w, w0, ws, wm, ws0, x, x0, xs, xs0, xm, n, out), generate

    return tile


if numba.config.DISABLE_JIT:

    def _dot_tile_twin(n_rows: int, n_tokens: int) -> Any:
        def tile(w: Any, w0: int, x: Any, x0: int, n: int, out: Any, out0: int, stride: int) -> None:
            rows = w[w0 : w0 + n_rows * n].reshape(n_rows, n)
            tokens = x[x0 : x0 + n_tokens * n].reshape(n_tokens, n)
            for t in range(n_tokens):
                out[out0 + t * stride : out0 + t * stride + n_rows] = rows @ tokens[t]

        return tile

    dot_4x4, dot_4x1 = _dot_tile_twin(4, 4), _dot_tile_twin(4, 1)

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

else:
    dot_4x4, dot_4x1 = _dot_tile(4, 4), _dot_tile(4, 1)
    codes_panel_32, codes_panel_32_min = _codes_panel(32, False), _codes_panel(32, True)
    codes_panel_16, codes_panel_16_min = _codes_panel(16, False), _codes_panel(16, True)
    codes_tile_32, codes_tile_32_min = _codes_tile(32, False), _codes_tile(32, True)
    codes_tile_16, codes_tile_16_min = _codes_tile(16, False), _codes_tile(16, True)
