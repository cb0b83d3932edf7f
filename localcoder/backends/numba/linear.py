"""y = W x for one token and for many, on codes (integers with scales) and on floats.

Every function here is one op as each thread runs it: work is taken chunk by chunk from a shared counter, so that a
slow core takes less. What a chunk computes does not depend on who takes it, and a token's result does not depend on
how many tokens there are: integer dot products are exact, groups are added in order, and float dot products have one
order of additions whatever the tile.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.numba.jit import kernel
from localcoder.backends.numba.rows import (
    Bytes,
    Codes,
    F32Row,
    decode_row,
    encode_row,
    largest_magnitude,
    reciprocal_or_zero,
    round_codes,
    unpack_codes,
)
from localcoder.backends.numba.simd import (
    GROUP,
    TILE_ROWS,
    TILE_TOKENS,
    codes_tile,
    dot_4x1,
    dot_4x4,
    dot_group,
    fetch_add,
)

MIN_TILED = 6  # tokens from which tiles pay, padding included
_ROWS_FEW = 8  # rows of a chunk: for a few tokens,
_ROWS_TILED = 4 * TILE_ROWS  # for many (unpacked, they stay in the L2 cache),
_ROWS_FLOAT = 16  # and in floats

Cells = NDArray[np.int64]


@kernel
def quantize_tokens(x: F32Row, n: int, n_in: int, codes: Codes, scales: F32Row, cells: Cells, cell: int) -> None:
    """x [n, n_in] -> codes and scales as `quants.activations.quantize_q8` defines them.

    For fewer than MIN_TILED tokens [n, n_in] and [n, n_in / GROUP]; for more, in the layout of `simd.codes_tile`, tile
    after tile, the last one filled up with zeros.
    """
    tiled = n >= MIN_TILED
    n_groups = n_in // GROUP
    n_rows = -(-n // TILE_TOKENS) * TILE_TOKENS if tiled else n
    t = fetch_add(cells, cell, 1)
    while t < n_rows:
        tile, lane = t // TILE_TOKENS, t % TILE_TOKENS
        for g in range(n_groups):
            extreme = largest_magnitude(x, t * n_in + g * GROUP, GROUP) if t < n else np.float32(0)
            inverse = np.float32(127) * reciprocal_or_zero(extreme)
            if tiled:
                scale_at = tile * TILE_TOKENS * n_groups + g * TILE_TOKENS + lane
                at, step = tile * TILE_TOKENS * n_in + g * GROUP * TILE_TOKENS + 2 * lane, 2 * TILE_TOKENS
            else:
                scale_at, at, step = t * n_groups + g, t * n_in + g * GROUP, 2
            scales[scale_at] = extreme / np.float32(127)
            if t < n:
                round_codes(x, t * n_in + g * GROUP, GROUP, inverse, codes, at, step)
            else:
                for pair in range(GROUP // 2):
                    codes[at + pair * step] = 0
                    codes[at + pair * step + 1] = 0
        t = fetch_add(cells, cell, 1)


@kernel
def round_tokens(x: F32Row, n: int, out: F32Row, cells: Cells, cell: int) -> None:
    """out = x rounded as `quantize_q8` rounds it, n values."""
    codes = np.empty(GROUP, np.int16)
    g = fetch_add(cells, cell, 64)
    while g < n // GROUP:
        for group in range(g, min(g + 64, n // GROUP)):
            extreme = largest_magnitude(x, group * GROUP, GROUP)
            round_codes(x, group * GROUP, GROUP, np.float32(127) * reciprocal_or_zero(extreme), codes, 0, 2)
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
    n: int,
    out: F32Row,
    cells: Cells,
    cell: int,
) -> None:
    """out [n, n_out] = x Wᵀ for weights in CODE_ROWS and x as `quantize_tokens` left it."""
    if n >= MIN_TILED:
        _linear_codes_tiled(kind, weight, row_bytes, n_out, n_in, codes, scales, n, out, cells, cell)
        return
    n_groups = n_in // GROUP
    row_codes, row_scales = np.empty(n_in, np.int16), np.empty(n_groups, np.float32)
    first = fetch_add(cells, cell, _ROWS_FEW)
    while first < n_out:
        for row in range(first, min(first + _ROWS_FEW, n_out)):
            unpack_codes(kind, weight, row * row_bytes, n_in, row_codes, 0, row_scales, 0)
            for t in range(n):
                total = np.float32(0)
                for g in range(n_groups):
                    dot = dot_group(row_codes, g * GROUP, codes, t * n_in + g * GROUP)
                    total += row_scales[g] * scales[t * n_groups + g] * np.float32(dot)
                out[t * n_out + row] = total
        first = fetch_add(cells, cell, _ROWS_FEW)


@kernel
def _linear_codes_tiled(
    kind: int,
    weight: Bytes,
    row_bytes: int,
    n_out: int,
    n_in: int,
    codes: Codes,
    scales: F32Row,
    n: int,
    out: F32Row,
    cells: Cells,
    cell: int,
) -> None:
    n_groups = n_in // GROUP
    panel, panel_scales = np.zeros(_ROWS_TILED * n_in, np.int16), np.zeros(_ROWS_TILED * n_groups, np.float32)
    tile = np.empty(TILE_ROWS * TILE_TOKENS, np.float32)
    first = fetch_add(cells, cell, _ROWS_TILED)
    while first < n_out:
        n_rows = min(_ROWS_TILED, n_out - first)
        for r in range(n_rows):
            at = (first + r) * row_bytes
            unpack_codes(kind, weight, at, n_in, panel, r * n_in, panel_scales, r * n_groups)
        for t0 in range(0, n, TILE_TOKENS):
            for r0 in range(0, n_rows, TILE_ROWS):
                codes_tile(
                    panel,
                    r0 * n_in,
                    panel_scales,
                    r0 * n_groups,
                    codes,
                    t0 * n_in,
                    scales,
                    t0 * n_groups,
                    n_groups,
                    tile,
                )
                for t in range(min(TILE_TOKENS, n - t0)):
                    for r in range(min(TILE_ROWS, n_rows - r0)):
                        out[(t0 + t) * n_out + first + r0 + r] = tile[r * TILE_TOKENS + t]
        first = fetch_add(cells, cell, _ROWS_TILED)


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
            decode_row(kind, weight, (first + r) * row_bytes, n_in, panel, r * n_in)
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
def encode_rows(kind: int, x: F32Row, n: int, n_in: int, out: Bytes, row_bytes: int, cells: Cells) -> None:
    """x [n, n_in] -> rows in a format of ENCODED_ROWS."""
    row = fetch_add(cells, 0, 1)
    while row < n:
        encode_row(kind, x, row * n_in, n_in, out, row * row_bytes)
        row = fetch_add(cells, 0, 1)
