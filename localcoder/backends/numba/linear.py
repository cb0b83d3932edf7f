"""y = W x for one token and for many, on codes (integers with scales) and on floats.

Every function here is one op as each thread runs it: work is taken chunk by chunk from a shared counter, so that a
slow core takes less. What a chunk computes does not depend on who takes it, and a token's result does not depend on
how many tokens there are: integer dot products are exact, and float operations have one order whatever the tile. It is
that of csrc/cpu/kernel_table.h: the C backend gives the same bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.numba.codes import (
    Q2_K_ID,
    Q3_K_ID,
    Q4_1_ID,
    Q4_K_ID,
    Q5_1_ID,
    Q5_K_ID,
    Q6_K_ID,
    SUM_GROUP,
    Bytes,
    Codes,
    F32Row,
    unpack_codes,
)
from localcoder.backends.numba.emit import GROUP
from localcoder.backends.numba.jit import kernel
from localcoder.backends.numba.rows import decode_floats, encode_row, largest_magnitude, q8_inverse, round_codes
from localcoder.backends.numba.simd import f32_at, fetch_add
from localcoder.backends.numba.tiles import (
    PANEL_ROWS,
    TILE_ROWS,
    TILE_TOKENS,
    codes_panel_16,
    codes_panel_16_min,
    codes_panel_32,
    codes_panel_32_min,
    codes_tile_16,
    codes_tile_16_min,
    codes_tile_32,
    codes_tile_32_min,
    dot_4x1,
    dot_4x4,
)

MIN_TILED = 6  # tokens from which tiles pay, padding included
_N_PANELS = 2  # unpacked at once for many tokens: they stay in the L2 cache
_ROWS_FLOAT = 16
_WITH_MINS, _SUB_16 = 1, 2

Cells = NDArray[np.int64]


@kernel
def quantize_tokens(
    x: F32Row, n: int, n_in: int, codes: Codes, scales: F32Row, sums: F32Row, cells: Cells, cell: int
) -> None:
    """x [n, n_in] -> codes and scales as `quants.activations.quantize_q8` defines them, and sums of SUM_GROUP codes.

    For fewer than MIN_TILED tokens codes are [n, n_in], scales [n, n_in / GROUP], sums [n, n_in / SUM_GROUP]; for more,
    in the layout of `tiles.codes_tile_*`, tile after tile, the last one filled up with zeros.
    """
    tiled = n >= MIN_TILED
    n_groups = n_in // GROUP
    n_rows = -(-n // TILE_TOKENS) * TILE_TOKENS if tiled else n
    row = np.zeros(GROUP, np.int16)
    t = fetch_add(cells, cell, 1)
    while t < n_rows:
        tile, lane = t // TILE_TOKENS, t % TILE_TOKENS
        for g in range(n_groups):
            extreme = np.float32(0)
            if t < n:
                extreme = largest_magnitude(x, t * n_in + g * GROUP, GROUP)
                round_codes(x, t * n_in + g * GROUP, GROUP, q8_inverse(extreme), row, 0)
            else:
                row[:] = 0
            scale = extreme / np.float32(127)
            for half in range(2):
                total = np.int32(0)
                for i in range(SUM_GROUP):
                    total += row[half * SUM_GROUP + i]
                at = ((tile * n_groups + g) * 2 + half) * TILE_TOKENS + lane if tiled else (t * n_groups + g) * 2 + half
                sums[at] = np.float32(total)
            if tiled:
                scales[(tile * n_groups + g) * TILE_TOKENS + lane] = scale
                at = (tile * n_groups + g) * GROUP * TILE_TOKENS + 2 * lane
                for pair in range(GROUP // 2):
                    codes[at + 2 * TILE_TOKENS * pair] = row[2 * pair]
                    codes[at + 2 * TILE_TOKENS * pair + 1] = row[2 * pair + 1]
            else:
                scales[t * n_groups + g] = scale
                target = codes[t * n_in + g * GROUP : t * n_in + (g + 1) * GROUP]
                for i in range(GROUP):
                    target[i] = row[i]
        t = fetch_add(cells, cell, 1)


@kernel
def round_tokens(x: F32Row, n: int, out: F32Row, cells: Cells, cell: int) -> None:
    """out = x rounded as `quantize_q8` rounds it, n values."""
    codes = np.empty(GROUP, np.int16)
    g = fetch_add(cells, cell, 64)
    while g < n // GROUP:
        for group in range(g, min(g + 64, n // GROUP)):
            extreme = largest_magnitude(x, group * GROUP, GROUP)
            round_codes(x, group * GROUP, GROUP, q8_inverse(extreme), codes, 0)
            for i in range(GROUP):
                out[group * GROUP + i] = extreme / np.float32(127) * np.float32(codes[i])
        g = fetch_add(cells, cell, 64)


@kernel
def linear_codes(
    kind: int,
    weight: Bytes,
    row_bytes: int,
    n_out: int,
    n_in: int,
    codes: Codes,
    scales: F32Row,
    sums: F32Row,
    n: int,
    out: F32Row,
    cells: Cells,
    cell: int,
) -> None:
    """out [n, n_out] = x Wᵀ for a few tokens as `quantize_tokens` left them; weights of CODE_ROWS."""
    layout = _layout(kind)
    n_groups, n_scales = n_in // GROUP, n_in // (16 if layout & _SUB_16 else 32)
    panel, panel_scales = np.zeros(PANEL_ROWS * n_in, np.int16), np.zeros(PANEL_ROWS * n_scales, np.float32)
    mins = np.zeros(PANEL_ROWS * n_scales if layout & _WITH_MINS else 1, np.float32)
    totals = np.empty(n * PANEL_ROWS, np.float32)
    first = fetch_add(cells, cell, PANEL_ROWS)
    while first < n_out:
        n_rows = min(PANEL_ROWS, n_out - first)
        totals[:] = 0
        for r in range(n_rows):
            at = (first + r) * row_bytes
            unpack_codes(kind, weight, at, n_in, panel, r * n_in, panel_scales, r, PANEL_ROWS, mins)
        for t in range(n):
            x0, xs0, to = t * n_in, t * n_groups, t * PANEL_ROWS
            if layout == 0:
                codes_panel_32(panel, n_in, panel_scales, mins, codes, x0, scales, xs0, sums, n_groups, totals, to)
            elif layout == _WITH_MINS:
                codes_panel_32_min(panel, n_in, panel_scales, mins, codes, x0, scales, xs0, sums, n_groups, totals, to)
            elif layout == _SUB_16:
                codes_panel_16(panel, n_in, panel_scales, mins, codes, x0, scales, xs0, sums, n_groups, totals, to)
            else:
                codes_panel_16_min(panel, n_in, panel_scales, mins, codes, x0, scales, xs0, sums, n_groups, totals, to)
        for t in range(n):
            for r in range(n_rows):
                out[t * n_out + first + r] = totals[t * PANEL_ROWS + r]
        first = fetch_add(cells, cell, PANEL_ROWS)


@kernel
def linear_codes_tiled(
    kind: int,
    weight: Bytes,
    row_bytes: int,
    n_out: int,
    n_in: int,
    codes: Codes,
    scales: F32Row,
    sums: F32Row,
    n: int,
    out: F32Row,
    cells: Cells,
    cell: int,
) -> None:
    """The same for many tokens: panels of rows are unpacked once and meet every tile of tokens."""
    layout = _layout(kind)
    n_groups, n_scales = n_in // GROUP, n_in // (16 if layout & _SUB_16 else 32)
    n_most = PANEL_ROWS * _N_PANELS
    panel, panel_scales = np.zeros(n_most * n_in, np.int16), np.zeros(n_most * n_scales, np.float32)
    mins = np.zeros(n_most * n_scales if layout & _WITH_MINS else 1, np.float32)
    tile = np.empty(TILE_ROWS * TILE_TOKENS, np.float32)
    first = fetch_add(cells, cell, n_most)
    while first < n_out:
        n_rows = min(n_most, n_out - first)
        for r in range(n_rows):
            scales_at = r // PANEL_ROWS * PANEL_ROWS * n_scales + r % PANEL_ROWS
            at = (first + r) * row_bytes
            unpack_codes(kind, weight, at, n_in, panel, r * n_in, panel_scales, scales_at, PANEL_ROWS, mins)
        for t0 in range(0, n, TILE_TOKENS):
            x0, xs0 = t0 * n_in, t0 * n_groups
            for r0 in range(0, n_rows, TILE_ROWS):
                w0, ws0 = r0 * n_in, r0 // PANEL_ROWS * PANEL_ROWS * n_scales + r0 % PANEL_ROWS
                if layout == 0:
                    codes_tile_32(panel, w0, panel_scales, mins, ws0, codes, x0, scales, xs0, sums, n_groups, tile)
                elif layout == _WITH_MINS:
                    codes_tile_32_min(panel, w0, panel_scales, mins, ws0, codes, x0, scales, xs0, sums, n_groups, tile)
                elif layout == _SUB_16:
                    codes_tile_16(panel, w0, panel_scales, mins, ws0, codes, x0, scales, xs0, sums, n_groups, tile)
                else:
                    codes_tile_16_min(panel, w0, panel_scales, mins, ws0, codes, x0, scales, xs0, sums, n_groups, tile)
                for t in range(min(TILE_TOKENS, n - t0)):
                    for r in range(min(TILE_ROWS, n_rows - r0)):
                        out[(t0 + t) * n_out + first + r0 + r] = tile[r * TILE_TOKENS + t]
        first = fetch_add(cells, cell, n_most)


@kernel
def _layout(kind: int) -> int:
    """Which of the kernels a format of CODE_ROWS wants: a sum of _WITH_MINS and _SUB_16."""
    with_mins = _WITH_MINS if kind in (Q4_1_ID, Q5_1_ID, Q2_K_ID, Q4_K_ID, Q5_K_ID) else 0
    return with_mins + (_SUB_16 if kind in (Q2_K_ID, Q3_K_ID, Q6_K_ID) else 0)


@kernel
def linear_floats(
    kind: int,
    weight: Bytes,
    row_bytes: int,
    n_out: int,
    n_in: int,
    x: F32Row,
    n: int,
    out: F32Row,
    stride: int,
    cells: Cells,
    cell: int,
) -> None:
    """out [n, n_out], rows `stride` apart, = x Wᵀ for weights in FLOAT_ROWS."""
    panel = np.zeros(_ROWS_FLOAT * n_in, np.float32)
    tile = np.empty(16, np.float32)
    first = fetch_add(cells, cell, _ROWS_FLOAT)
    while first < n_out:
        n_rows = min(_ROWS_FLOAT, n_out - first)
        for r in range(n_rows):
            decode_floats(kind, weight, (first + r) * row_bytes, n_in, panel, r * n_in)
        t0 = 0
        while t0 < n:
            n_tile = 4 if t0 + 4 <= n else 1
            for r0 in range(0, n_rows, 4):
                if n_tile == 4:
                    dot_4x4(panel, r0 * n_in, x, t0 * n_in, n_in, tile, 0, 4)
                else:
                    dot_4x1(panel, r0 * n_in, x, t0 * n_in, n_in, tile, 0, 4)
                for t in range(n_tile):
                    for r in range(min(4, n_rows - r0)):
                        out[(t0 + t) * stride + first + r0 + r] = tile[4 * t + r]
            t0 += n_tile
        first = fetch_add(cells, cell, _ROWS_FLOAT)


@kernel
def encode_rows(kind: int, address: int, n: int, n_in: int, out: Bytes, row_bytes: int, cells: Cells) -> None:
    """float32 [n, n_in] at `address` (it may be read-only memory) -> rows in a format of ENCODED_ROWS."""
    x = f32_at(address, n * n_in)
    row = fetch_add(cells, 0, 1)
    while row < n:
        encode_row(kind, x, row * n_in, n_in, out, row * row_bytes)
        row = fetch_add(cells, 0, 1)
