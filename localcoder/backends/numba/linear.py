"""y = W x for one token and for many, on codes (integers with scales) and on floats.

Every function here is one op as each thread runs it: work is taken chunk by chunk from a shared counter, so that a
slow core takes less. What a chunk computes does not depend on who takes it, and a token's result does not depend on
how many tokens there are: integer dot products are exact, groups are added in order, and float dot products have one
order of additions whatever the tile.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.numba.codes import (
    MIN_GROUP,
    Q2_K_ID,
    Q4_1_ID,
    Q4_K_ID,
    Q5_1_ID,
    Q5_K_ID,
    Bytes,
    Codes,
    F32Row,
    unpack_codes,
)
from localcoder.backends.numba.jit import kernel
from localcoder.backends.numba.rows import decode_floats, encode_row, largest_magnitude, reciprocal_or_zero, round_codes
from localcoder.backends.numba.simd import (
    GROUP,
    PANEL_ROWS,
    TILE_ROWS,
    TILE_TOKENS,
    codes_panel,
    codes_tile,
    dot_4x1,
    dot_4x4,
    f32_at,
    fetch_add,
)

MIN_TILED = 6  # tokens from which tiles pay, padding included
_N_PANELS = 2  # unpacked at once for many tokens: they stay in the L2 cache
_ROWS_FLOAT = 16

Cells = NDArray[np.int64]


@kernel
def quantize_tokens(
    x: F32Row, n: int, n_in: int, codes: Codes, scales: F32Row, sums: F32Row, cells: Cells, cell: int
) -> None:
    """x [n, n_in] -> codes and scales as `quants.activations.quantize_q8` defines them, and sums of MIN_GROUP values.

    For fewer than MIN_TILED tokens codes are [n, n_in], scales [n, n_in / GROUP]; for more, in the layout of
    `simd.codes_tile`, tile after tile, the last one filled up with zeros. sums are [n, n_in / MIN_GROUP].
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
                inverse = np.float32(127) * reciprocal_or_zero(extreme)
                round_codes(x, t * n_in + g * GROUP, GROUP, inverse, row, 0)
            else:
                row[:] = 0
            scale = extreme / np.float32(127)
            for half in range(2):
                total = np.int32(0)
                for i in range(MIN_GROUP):
                    total += row[half * MIN_GROUP + i]
                sums[(t * n_groups + g) * 2 + half] = scale * np.float32(total)
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
            round_codes(x, group * GROUP, GROUP, np.float32(127) * reciprocal_or_zero(extreme), codes, 0)
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
    """out [n, n_out] = x Wᵀ for a few tokens as `quantize_tokens` left them; weights of CODE_ROWS, with mins or not.

    A token's result is the sum over groups, in order, of scale · scale · integer dot product; mins, if any, come last.
    """
    has_mins = _has_mins(kind)
    n_groups, n_mins = n_in // GROUP, n_in // MIN_GROUP
    panel, panel_scales = np.zeros(PANEL_ROWS * n_in, np.int16), np.zeros(PANEL_ROWS * n_groups, np.float32)
    mins = np.zeros(PANEL_ROWS * n_mins if has_mins else 1, np.float32)
    totals, correction = np.empty(n * PANEL_ROWS, np.float32), np.zeros(16, np.float32)
    first = fetch_add(cells, cell, PANEL_ROWS)
    while first < n_out:
        n_rows = min(PANEL_ROWS, n_out - first)
        totals[:] = 0
        for r in range(n_rows):
            at = (first + r) * row_bytes
            unpack_codes(kind, weight, at, n_in, panel, r * n_in, panel_scales, r, PANEL_ROWS, mins, r * n_mins)
        for t in range(n):
            codes_panel(
                panel, n_in, panel_scales, codes, t * n_in, scales, t * n_groups, n_groups, totals, t * PANEL_ROWS
            )
        for t in range(n):
            for r0 in range(0, n_rows, 4):
                if has_mins:
                    dot_4x1(mins, r0 * n_mins, sums, t * n_mins, n_mins, correction, 0, 4)
                for r in range(min(4, n_rows - r0)):
                    out[t * n_out + first + r0 + r] = totals[t * PANEL_ROWS + r0 + r] - correction[r]
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
    has_mins = _has_mins(kind)
    n_groups, n_mins, n_most = n_in // GROUP, n_in // MIN_GROUP, PANEL_ROWS * _N_PANELS
    panel, panel_scales = np.zeros(n_most * n_in, np.int16), np.zeros(n_most * n_groups, np.float32)
    mins = np.zeros(n_most * n_mins if has_mins else 1, np.float32)
    tile, correction = np.empty(TILE_ROWS * TILE_TOKENS, np.float32), np.zeros(TILE_ROWS * TILE_TOKENS, np.float32)
    first = fetch_add(cells, cell, n_most)
    while first < n_out:
        n_rows = min(n_most, n_out - first)
        for r in range(n_rows):
            scales_at = r // PANEL_ROWS * PANEL_ROWS * n_groups + r % PANEL_ROWS
            at = (first + r) * row_bytes
            unpack_codes(kind, weight, at, n_in, panel, r * n_in, panel_scales, scales_at, PANEL_ROWS, mins, r * n_mins)
        for t0 in range(0, n, TILE_TOKENS):
            for r0 in range(0, n_rows, TILE_ROWS):
                scales_at = r0 // PANEL_ROWS * PANEL_ROWS * n_groups + r0 % PANEL_ROWS
                codes_tile(
                    panel, r0 * n_in, panel_scales, scales_at, codes, t0 * n_in, scales, t0 * n_groups, n_groups, tile
                )
                if has_mins:
                    for t in range(0, TILE_TOKENS, 4):
                        for r in range(0, TILE_ROWS, 4):
                            x0, at = (t0 + t) * n_mins, t * TILE_ROWS + r
                            dot_4x4(mins, (r0 + r) * n_mins, sums, x0, n_mins, correction, at, TILE_ROWS)
                for t in range(min(TILE_TOKENS, n - t0)):
                    for r in range(min(TILE_ROWS, n_rows - r0)):
                        total = tile[r * TILE_TOKENS + t] - correction[t * TILE_ROWS + r]
                        out[(t0 + t) * n_out + first + r0 + r] = total
        first = fetch_add(cells, cell, n_most)


@kernel
def _has_mins(kind: int) -> bool:
    return kind in (Q4_1_ID, Q5_1_ID, Q2_K_ID, Q4_K_ID, Q5_K_ID)


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
