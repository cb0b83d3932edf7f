"""The best blocks we know how to find: weighted least squares over scales, minimums and codes.

Plain rounding takes a block's scale from its extreme value. Here the scale is searched for: the result is the same
format, the same size, and closer to the input.

The search is deterministic to the last bit, so that compiled versions can be compared byte by byte: everything is
single precision, products and sums are rounded one by one (no fused multiply-add), sums run in the order of the
elements, ties keep the earlier candidate, and `rint` rounds halves to even.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from localcoder.errors import OptionError
from localcoder.quants.search_block import search_scale_min_block, search_signed_block
from localcoder.quants.search_super import search_scale_min_super, search_signed_super
from localcoder.quants.spec import Blocks, Bytes, Float32, QuantType

_CHUNK_ELEMS = 1 << 19  # bounds the working memory to about 50 MB

_SEARCHES: dict[str, Callable[[str, Float32, Float32, bool], Blocks]] = {
    **dict.fromkeys(("q4_0", "q5_0", "q8_0", "iq4_nl"), search_signed_block),
    **dict.fromkeys(("q4_1", "q5_1"), search_scale_min_block),
    **dict.fromkeys(("q3_k", "q6_k", "iq4_xs"), search_signed_super),
    **dict.fromkeys(("q2_k", "q4_k", "q5_k"), search_scale_min_super),
}


def is_searched(qtype: QuantType) -> bool:
    """Whether there is a search for this format; without one, plain rounding is the best we have."""
    return qtype.name in _SEARCHES


def quantize_best(qtype: QuantType, x: Float32, weights: Float32 | None = None) -> Bytes:
    """float32 [n_rows, n] -> uint8 [n_rows, row_bytes(n)], with a small Σ w·(x - x')².

    Args:
        qtype: any format that can be written; those without a search are rounded plainly.
        x: finite values.
        weights: importance of each value, [n] (the same for every row) or [n_rows, n]; finite, not negative. Only
            the ratios within a row matter. None: all equal.

    Raises:
        OptionError: a row is not a whole number of blocks, a value is not finite, the weights do not fit, or the
            format is only read.
    """
    n_rows, n = x.shape
    row_bytes = qtype.row_bytes(n)
    if not is_searched(qtype):
        if qtype.quantize_blocks is None:
            raise OptionError(f"{qtype.name}: can be read but not written")
        return qtype.quantize(x)
    x = np.ascontiguousarray(x, np.float32)
    check_finite(x)
    normal = np.ones((1, n), np.float32) if weights is None else normalized_weights(weights, x.shape)
    out = np.empty((n_rows, row_bytes), np.uint8)
    rows = max(1, _CHUNK_ELEMS // max(n, 1))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for start in range(0, n_rows, rows):
            part = x[start : start + rows]
            w = np.broadcast_to(normal if len(normal) == 1 else normal[start : start + rows], part.shape)
            is_weighted = weights is not None
            blocks = _SEARCHES[qtype.name](qtype.name, _columns(part, qtype), _columns(w, qtype), is_weighted)
            out[start : start + rows] = blocks.view(np.uint8).reshape(len(part), row_bytes)
    return out


def requantize(qtype: QuantType, source: QuantType, data: Bytes, weights: Float32 | None = None) -> Bytes:
    """`quantize_best` of values that lie in another format: uint8 [n_rows, source.row_bytes(n)]."""
    return quantize_best(qtype, source.dequantize(data), weights)


def _columns(x: Float32, qtype: QuantType) -> Float32:
    """[n_rows, n] -> one column a block: [block_elems, n_blocks]."""
    return np.ascontiguousarray(x.reshape(-1, qtype.block_elems).T)


def check_finite(x: Float32) -> None:
    """OptionError naming the first of the values [n_rows, n] that is not finite."""
    if np.isfinite(x).all():
        return
    row, column = np.argwhere(~np.isfinite(x))[0]
    raise OptionError(f"the value in row {row}, column {column} is {x[row, column]}: only finite values can be rounded")


def normalized_weights(weights: Float32, shape: tuple[int, ...]) -> Float32:
    """Weights as given to `quantize_best` -> [1 or n_rows, n] with mean 1 in every row; a row of zeros becomes ones.

    Raises:
        OptionError: they do not fit values of `shape`, or one of them is negative or not finite.
    """
    weights = np.asarray(weights, np.float64)
    if weights.shape not in (shape, shape[1:]):
        raise OptionError(f"weights of shape {weights.shape} for values of shape {shape}")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise OptionError("weights must be finite and not negative")
    rows = weights.reshape(-1, shape[1])
    mean = rows.mean(axis=1, keepdims=True)
    return np.where(mean > 0, rows / np.where(mean > 0, mean, 1), 1).astype(np.float32)
