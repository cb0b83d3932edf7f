"""Rotary positions, writing to the KV cache, and attention over its pages.

Float operations and their order are those of csrc/cpu/kernel_table.h and csrc/cpu/attention.c. A row of the cache is
read and written by `rows.decode_row` and `rows.encode_row` alone, so every format they know can hold keys and values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.numba.codes import Bytes, F32Row
from localcoder.backends.numba.elementwise import exp
from localcoder.backends.numba.jit import kernel
from localcoder.backends.numba.linear import Cells
from localcoder.backends.numba.rows import decode_row, encode_row
from localcoder.backends.numba.simd import fetch_add, fused, sum_in_lanes
from localcoder.backends.numba.tiles import dot_4x1, dot_4x4

Ints = NDArray[np.int32]


@kernel
def rotate(
    x: F32Row,
    n: int,
    n_head: int,
    head_dim: int,
    cos: Any,
    sin: Any,
    positions: Ints,
    out: F32Row,
    cells: Cells,
    cell: int,
) -> None:
    """Rotates the pairs (2i, 2i+1) of every head; cos and sin are [n_ctx, head_dim / 2]."""
    width = n_head * head_dim
    t = fetch_add(cells, cell, 1)
    while t < n:
        cosines, sines = cos[positions[t]], sin[positions[t]]
        for h in range(n_head):
            at = t * width + h * head_dim
            head, result = x[at : at + head_dim], out[at : at + head_dim]
            for i in range(head_dim // 2):
                even, odd = head[2 * i], head[2 * i + 1]
                result[2 * i] = fused(even, cosines[i], -(odd * sines[i]))
                result[2 * i + 1] = fused(odd, cosines[i], even * sines[i])
        t = fetch_add(cells, cell, 1)


@kernel
def write_kv(
    k: F32Row,
    v: F32Row,
    n: int,
    layer: int,
    shape: NDArray[np.int64],
    cache_k: Bytes,
    cache_v: Bytes,
    positions: Ints,
    sequences: Ints,
    page_table: Any,
    cells: Cells,
    cell: int,
) -> None:
    """Stores k and v [n, n_head_kv * head_dim] of `layer` where each token's position lies.

    shape: n_pages, n_head_kv, page_size, head_dim, GGUF id of the cache's format, bytes of a row.
    """
    n_pages, n_head_kv, page_size, head_dim, kind, row_bytes = shape
    t = fetch_add(cells, cell, 1)
    while t < n:
        page = page_table[sequences[t], positions[t] // page_size]
        for h in range(n_head_kv):
            row = ((layer * n_pages + page) * n_head_kv + h) * page_size + positions[t] % page_size
            encode_row(kind, k, (t * n_head_kv + h) * head_dim, head_dim, cache_k, row * row_bytes)
            encode_row(kind, v, (t * n_head_kv + h) * head_dim, head_dim, cache_v, row * row_bytes)
        t = fetch_add(cells, cell, 1)


@kernel
def attend(
    q: F32Row,
    n_head: int,
    layer: int,
    shape: NDArray[np.int64],
    cache_k: Bytes,
    cache_v: Bytes,
    positions: Ints,
    sequences: Ints,
    page_table: Any,
    blocks: Ints,
    n_parts: int,
    out: F32Row,
    cells: Cells,
    cell: int,
) -> None:
    """out = attention of q over each token's own sequence, page after page with a running softmax.

    An item of work is a run of tokens of one sequence (blocks: first, last, first, last, ...; last excluded), a KV
    head, and one of `n_parts` parts of the query heads that share it. A page is widened to float32 once for the whole
    item. What a query gets does not depend on which others are in its item.
    """
    n_pages, n_head_kv, page_size, head_dim, kind, row_bytes = shape
    group = n_head // n_head_kv
    n_heads = -(-group // n_parts)
    n_blocks = len(blocks) // 2
    most = 1
    for b in range(n_blocks):
        most = max(most, (blocks[2 * b + 1] - blocks[2 * b]) * n_heads)
    n_padded = -(-page_size // 4) * 4  # _scores writes four at a time
    keys, values = np.zeros(n_padded * head_dim, np.float32), np.zeros(n_padded * head_dim, np.float32)
    queries, sums = np.empty(most * head_dim, np.float32), np.empty(most * head_dim, np.float32)
    scores, weights = np.empty(most * n_padded, np.float32), np.empty(n_padded, np.float32)
    peaks, totals = np.empty(most, np.float32), np.empty(most, np.float32)
    scale = np.float32(1) / np.sqrt(np.float32(head_dim))
    item = fetch_add(cells, cell, 1)
    while item < n_blocks * n_head_kv * n_parts:
        first, last = blocks[2 * (item % n_blocks)], blocks[2 * (item % n_blocks) + 1]
        kv_head, part = item // n_blocks // n_parts, item // n_blocks % n_parts
        head0 = kv_head * group + part * n_heads
        n_here = max(0, min(n_heads, group - part * n_heads))
        n_queries = (last - first) * n_here
        for i in range(n_queries):
            at = ((first + i // n_here) * n_head + head0 + i % n_here) * head_dim
            for d in range(head_dim):
                queries[i * head_dim + d] = q[at + d]
                sums[i * head_dim + d] = np.float32(0)
            peaks[i] = -np.inf
            totals[i] = np.float32(0)
        n_keys = positions[last - 1] + 1 if n_queries else 0
        for start in range(0, n_keys, page_size):
            page = page_table[sequences[first], start // page_size]
            at = ((layer * n_pages + page) * n_head_kv + kv_head) * page_size * row_bytes
            n_page = min(page_size, n_keys - start)
            decode_row(kind, cache_k, at, n_page * head_dim, keys, 0)
            decode_row(kind, cache_v, at, n_page * head_dim, values, 0)
            _scores(queries, n_queries, keys, n_page, head_dim, scale, scores, n_padded)
            for i in range(n_queries):
                n_seen = min(n_page, positions[first + i // n_here] + 1 - start)
                if n_seen > 0:
                    _add_page(scores, i * n_padded, n_seen, values, head_dim, weights, peaks, totals, sums, i)
        for i in range(n_queries):
            at = ((first + i // n_here) * n_head + head0 + i % n_here) * head_dim
            for d in range(head_dim):
                out[at + d] = sums[i * head_dim + d] / totals[i]
        item = fetch_add(cells, cell, 1)


@kernel
def _scores(
    queries: F32Row, n_queries: int, keys: F32Row, n_keys: int, head_dim: int, scale: Any, scores: F32Row, n_padded: int
) -> None:
    """scores [n_queries, n_padded] = (queries · keys) · scale."""
    i = 0
    while i < n_queries:
        n_tile = 4 if i + 4 <= n_queries else 1
        for j in range(0, n_keys, 4):
            if n_tile == 4:
                dot_4x4(keys, j * head_dim, queries, i * head_dim, head_dim, scores, i * n_padded + j, n_padded)
            else:
                dot_4x1(keys, j * head_dim, queries, i * head_dim, head_dim, scores, i * n_padded + j, n_padded)
        i += n_tile
    for i in range(n_queries):
        row = scores[i * n_padded : i * n_padded + n_keys]
        for j in range(n_keys):
            row[j] *= scale


@kernel
def _add_page(
    scores: F32Row,
    at: int,
    n_keys: int,
    values: F32Row,
    head_dim: int,
    weights: F32Row,
    peaks: F32Row,
    totals: F32Row,
    sums: F32Row,
    i: int,
) -> None:
    """One page's part of query i's softmax: its weights join the total, its weighted values the sums."""
    row, result = scores[at : at + n_keys], sums[i * head_dim : (i + 1) * head_dim]
    peak = peaks[i]
    for j in range(n_keys):
        peak = row[j] if row[j] > peak else peak
    shrink = exp(peaks[i] - peak)
    peaks[i] = peak
    for j in range(n_keys):
        weights[j] = exp(row[j] - peak)
    totals[i] = totals[i] * shrink + sum_in_lanes(weights, 0, n_keys)
    for d in range(head_dim):
        result[d] *= shrink
    for j in range(n_keys):
        weight, value = weights[j], values[j * head_dim : (j + 1) * head_dim]
        for d in range(head_dim):
            result[d] = fused(weight, value[d], result[d])
