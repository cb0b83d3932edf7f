"""The op table, and the function that every thread runs over it: a whole step in one call.

Threads meet after each op: an op may read what any thread wrote in the one before. Buffers and weights are raw
addresses in the table; the executable keeps them alive.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.numba.attention import Ints, attend, rotate, write_kv
from localcoder.backends.numba.codes import Bytes, Codes, F32Row
from localcoder.backends.numba.elementwise import add, rms_norm, select_rows, silu_mul
from localcoder.backends.numba.jit import kernel
from localcoder.backends.numba.linear import (
    MIN_TILED,
    Cells,
    linear_codes,
    linear_codes_tiled,
    linear_floats,
    quantize_tokens,
    round_tokens,
)
from localcoder.backends.numba.simd import double_of, f32_at, fetch_add, load_atomic, u8_at, yield_thread


class Code(IntEnum):
    """What a row of the op table asks for."""

    RMS_NORM = 0
    QUANTIZE = 1
    ROUND = 2
    LINEAR_CODES = 3
    LINEAR_FLOATS = 4
    ROPE = 5
    WRITE_KV = 6
    ATTEND = 7
    SILU_MUL = 8
    ADD = 9
    SELECT = 10


class Column(IntEnum):
    """Columns of the op table. Addresses are of float32, `WEIGHT` of bytes (float32 for RMS_NORM)."""

    CODE = 0
    OUTPUT_ROWS = 1  # 1: rows are the step's outputs; 0: its tokens
    X = 2
    Y = 3
    OUT = 4
    WEIGHT = 5
    N_IN = 6  # width of a row of x; of a head for ROPE
    N_OUT = 7  # rows of the weight
    KIND = 8  # GGUF id of the weight's format
    ROW_BYTES = 9
    STRIDE = 10  # float32 from one row of out to the next
    EXTRA = 11  # layer, number of heads, or the bits of eps as float64


N_COLUMNS = len(Column)
CELL_STRIDE = 8  # one counter a cache line
_SPINS = 2000  # looks at a counter before the core is offered to others

# numba freezes globals: plain integers for the table's numbers
(_RMS_NORM, _QUANTIZE, _ROUND, _LINEAR_CODES, _LINEAR_FLOATS, _ROPE, _WRITE_KV, _ATTEND, _SILU_MUL, _ADD, _SELECT) = (
    int(code) for code in Code
)
(_CODE, _OUTPUT_ROWS, _X, _Y, _OUT, _WEIGHT, _N_IN, _N_OUT, _KIND, _ROW_BYTES, _STRIDE, _EXTRA) = (
    int(column) for column in Column
)


@kernel
def meet(cells: Cells, cell: int, n_threads: int) -> bool:
    """Waits until all threads are here; False if one has failed (cell 0 is set)."""
    fetch_add(cells, cell, 1)
    spins = 0
    while load_atomic(cells, cell) < n_threads:
        if load_atomic(cells, 0):
            return False
        spins += 1
        if spins > _SPINS:
            yield_thread()
    return True


@kernel
def replay(
    ops: NDArray[np.int64],
    cells: Cells,
    n_threads: int,
    positions: Ints,
    sequences: Ints,
    page_table: Any,
    outputs: Ints,
    blocks: Ints,
    n_parts: int,
    kv_shape: NDArray[np.int64],
    cache_k: Bytes,
    cache_v: Bytes,
    cos: Any,
    sin: Any,
    codes: Codes,
    scales: F32Row,
    sums: F32Row,
) -> None:
    """One thread's share of the ops. cells: int64 zeros, CELL_STRIDE apart: one for failure, then two for each op."""
    for i in range(len(ops)):
        op = ops[i]
        n = len(outputs) if op[_OUTPUT_ROWS] else len(positions)
        code, n_in, n_out = op[_CODE], op[_N_IN], op[_N_OUT]
        cell = (2 * i + 1) * CELL_STRIDE
        x, y = f32_at(op[_X], len(positions) * n_in), f32_at(op[_Y], len(positions) * n_in)
        out = f32_at(op[_OUT], n * op[_STRIDE])
        if n == 0:
            continue
        if code == _LINEAR_CODES:
            weight = u8_at(op[_WEIGHT], n_out * op[_ROW_BYTES])
            kind, row_bytes = op[_KIND], op[_ROW_BYTES]
            if n >= MIN_TILED:
                linear_codes_tiled(kind, weight, row_bytes, n_out, n_in, codes, scales, sums, n, out, cells, cell)
            else:
                linear_codes(kind, weight, row_bytes, n_out, n_in, codes, scales, sums, n, out, cells, cell)
        elif code == _QUANTIZE:
            quantize_tokens(x, n, n_in, codes, scales, sums, cells, cell)
        elif code == _LINEAR_FLOATS:
            weight = u8_at(op[_WEIGHT], n_out * op[_ROW_BYTES])
            linear_floats(op[_KIND], weight, op[_ROW_BYTES], n_out, n_in, x, n, out, op[_STRIDE], cells, cell)
        elif code == _RMS_NORM:
            eps = double_of(op[_EXTRA])
            rms_norm(x, f32_at(op[_WEIGHT], n_in), eps, n, n_in, out, cells, cell)
        elif code == _ROPE:
            rotate(x, n, op[_EXTRA], n_in // op[_EXTRA], cos, sin, positions, out, cells, cell)
        elif code == _WRITE_KV:
            write_kv(x, y, n, op[_EXTRA], kv_shape, cache_k, cache_v, positions, sequences, page_table, cells, cell)
        elif code == _ATTEND:
            attend(
                x,
                op[_KIND],
                op[_EXTRA],
                kv_shape,
                cache_k,
                cache_v,
                positions,
                sequences,
                page_table,
                blocks,
                n_parts,
                out,
                cells,
                cell,
            )
        elif code == _SILU_MUL:
            silu_mul(x, y, n * n_in, out, cells, cell)
        elif code == _ADD:
            add(x, y, n * n_in, out, cells, cell)
        elif code == _SELECT:
            select_rows(x, outputs, n_in, out, cells, cell)
        elif code == _ROUND:
            round_tokens(x, n * n_in, out, cells, cell)
        if not meet(cells, cell + CELL_STRIDE, n_threads):
            return
