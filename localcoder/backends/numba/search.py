"""`quants.search.quantize_best` on all threads: kernels search, the formats' own functions pack."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from localcoder.backends.numba.jit import compilation_shown
from localcoder.backends.numba.search_block import scale_min_blocks, signed_blocks
from localcoder.backends.numba.search_super import scale_min_supers, signed_supers
from localcoder.backends.numba.team import ThreadTeam
from localcoder.quants import search_block, search_super
from localcoder.quants.iq4 import KVALUES
from localcoder.quants.search import check_finite, normalized_weights
from localcoder.quants.search_block import Levels, ScaleSearch, TableLevels
from localcoder.quants.spec import Blocks, Bytes, Float32, QuantType

_CHUNK_VALUES = 1 << 16  # a thread's share at a time


def quantize_best(qtype: QuantType, x: Float32, weights: Float32 | None, team: ThreadTeam) -> Bytes:
    """As `quants.search.quantize_best`, for the formats that are searched."""
    n_rows, n = x.shape
    out = np.empty((n_rows, qtype.row_bytes(n)), np.uint8)
    x = np.ascontiguousarray(x, np.float32)
    check_finite(x)
    normal = np.ones((1, n), np.float32) if weights is None else normalized_weights(weights, x.shape)
    search, is_weighted = _search_of(qtype), weights is not None
    n_chunk = max(1, _CHUNK_VALUES // max(n, 1))
    starts = deque(range(0, n_rows if n else 0, n_chunk))

    def work() -> None:
        while True:
            try:
                rows = slice(start := starts.popleft(), start + n_chunk)
            except IndexError:
                return
            w = normal if len(normal) == 1 else normal[rows]
            blocks = search(qtype.name, _in_blocks(x[rows], qtype), _in_blocks(w, qtype), is_weighted)
            out[rows] = blocks.view(np.uint8).reshape(-1, out.shape[1])

    with compilation_shown():
        search(qtype.name, np.empty((0, qtype.block_elems), np.float32), _in_blocks(normal[:1], qtype), is_weighted)
    team.run(work, cells=np.zeros(1, np.int64))
    return out


def _in_blocks(x: Float32, qtype: QuantType) -> Float32:
    return x.reshape(-1, qtype.block_elems)


def _search_of(qtype: QuantType) -> Callable[[str, Float32, Float32, bool], Blocks]:
    """The search for a format: (name, values [n, block_elems], weights of that width in turn, weighted) -> Blocks."""
    for names, search in (
        (search_block.SIGNED_BLOCKS, _signed_blocks),
        (search_block.SCALE_MIN_LAST, _scale_min_blocks),
        (search_super.SIGNED, _signed_supers),
    ):
        if qtype.name in names:
            return search
    return _scale_min_supers


def _anchors(search: ScaleSearch, is_weighted: bool) -> Float32:
    return np.array(search.weighted_anchors if is_weighted else search.anchors, np.float32)


def _margins(last: int, is_weighted: bool) -> tuple[float, ...]:
    bits = last.bit_length()
    return search_block.MARGINS[bits] + (search_block.WEIGHTED_MARGINS[bits] if is_weighted else ())


def _levels(levels: Levels | TableLevels) -> tuple[Float32, Float32 | None]:
    """(first and last level, table or None)."""
    if isinstance(levels, Levels):
        return np.array([levels.first, levels.last], np.float32), None
    return KVALUES[[0, -1]], KVALUES


def _signed_blocks(name: str, x: Float32, w: Float32, is_weighted: bool) -> Blocks:
    spec = search_block.SIGNED_BLOCKS[name]
    levels, table = _levels(spec.levels)
    d, codes = np.empty(len(x), np.float32), np.empty(x.shape, np.uint8)
    signed_blocks(x, w, _anchors(spec, is_weighted), np.array(spec.half_steps), levels, table, d, codes)
    if name == "q8_0":  # stored as they are, not counted from the first
        codes = codes.astype(np.int16) + levels[0].astype(np.int16)
    return search_block.PACK_SIGNED[name](d, codes)


def _scale_min_blocks(name: str, x: Float32, w: Float32, is_weighted: bool) -> Blocks:
    last = search_block.SCALE_MIN_LAST[name]
    d, m, codes = np.empty(len(x), np.float32), np.empty(len(x), np.float32), np.empty(x.shape, np.uint8)
    scale_min_blocks(x, w, np.array(_margins(last, is_weighted)), np.float32(last), d, m, codes)
    return search_block.PACK_SCALE_MIN[name](d, m, codes)


def _signed_supers(name: str, x: Float32, w: Float32, is_weighted: bool) -> Blocks:
    spec = search_super.SIGNED[name]
    levels, table = _levels(spec.block.levels)
    scale_range, _ = _levels(spec.scales)
    d, scales = np.empty(len(x), np.float32), np.empty((len(x), spec.n_sub), np.float32)
    codes = np.empty(x.shape, np.uint8)
    signed_supers(
        _in_sub_blocks(x, spec.n_sub),
        _in_sub_blocks(w, spec.n_sub),
        _anchors(spec.block, is_weighted),
        levels,
        table,
        scale_range,
        np.array(spec.anchors, np.float32),
        search_super.SIGNED_ROUNDS,
        d,
        scales,
        codes,
    )
    return search_super.PACK_SIGNED[name](d, search_super.stored_scales(name, scales), codes)


def _scale_min_supers(name: str, x: Float32, w: Float32, is_weighted: bool) -> Blocks:
    spec = search_super.SCALE_MIN[name]
    scale_anchors, min_anchors = (
        (np.array(fractions) * spec.last_scale).astype(np.float32)
        for fractions in (search_super.SCALE_ANCHORS, search_super.MIN_ANCHORS)
    )
    d, dmin = np.empty(len(x), np.float32), np.empty(len(x), np.float32)
    scales, mins = np.empty((len(x), spec.n_sub), np.uint8), np.empty((len(x), spec.n_sub), np.uint8)
    codes = np.empty(x.shape, np.uint8)
    scale_min_supers(
        _in_sub_blocks(x, spec.n_sub),
        _in_sub_blocks(w, spec.n_sub),
        np.array(_margins(spec.last, is_weighted)),
        np.float32(spec.last),
        np.float32(spec.last_scale),
        scale_anchors,
        min_anchors,
        search_super.SCALE_MIN_ROUNDS,
        d,
        dmin,
        scales,
        mins,
        codes,
    )
    return search_super.PACK_SCALE_MIN[name](d, dmin, scales, mins, codes)


def _in_sub_blocks(x: Float32, n_sub: int) -> Float32:
    return x.reshape(len(x), n_sub, x.shape[1] // n_sub)
