"""Error-feedback rounding: choosing a matrix's codes so that its output changes least.

Rounding every weight to its nearest level minimizes the error of the weights. What matters is the error of y = W x, and
the inputs x of a layer are correlated: an error made in one column can be made good in others. Frantar et al., "GPTQ"
(2022, arXiv 2210.17323): round column by column and push each column's error into the columns still to come, by the
inverse of the inputs' second moments.

Here the result stays in a standard block format. Super-blocks are visited in falling order of their inputs' energy;
when its turn comes, a super-block's scales are searched for on the weights as they are then, corrections included, and
its columns are rounded, again in falling order of energy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.quants.codes import Grid, with_codes
from localcoder.quants.search import quantize_best
from localcoder.quants.spec import Bytes, Codes, Float32, QuantType

Quantize = Callable[[QuantType, Float32, Float32], Bytes]  # values [n_rows, n], importance [n] -> blocks

DAMPING = 0.01  # of the mean energy, added to every column's: few tokens leave directions that nobody has seen
_LEAST_IMPORTANCE = 1e-3  # of the mean: a column that the calibration never used still counts a little
_GROUP = 256  # columns whose scales are searched together; a multiple of every format's block
_SLICE_VALUES = 1 << 22  # values worked on at a time
_PANEL = 64  # columns between two updates of the whole rest


class Feedback:
    """What the inputs of one or more matrices say about how to round them.

    Args:
        moments: float32 [n_in, n_in], sum over calibration tokens of x xᵀ.
        quantize: finds scales, such as `Backend.quantize_best`.
    """

    def __init__(self, moments: Float32, quantize: Quantize = quantize_best) -> None:
        self._quantize = quantize
        n_in = len(moments)
        energy = np.diagonal(moments).astype(np.float64)
        mean = max(float(energy.mean()), np.finfo(np.float32).tiny)
        self.importance = np.maximum(energy / mean, _LEAST_IMPORTANCE).astype(np.float32)
        groups = [np.arange(at, min(at + _GROUP, n_in)) for at in range(0, n_in, _GROUP)]
        groups.sort(key=lambda columns: -float(self.importance[columns].mean()))
        self._groups = [columns[np.argsort(-self.importance[columns], kind="stable")] for columns in groups]
        self._order = np.concatenate(self._groups)
        damped = moments.astype(np.float64) + np.diag(np.full(n_in, DAMPING * mean))
        self._upper = _upper_factor(damped[np.ix_(self._order, self._order)])

    def round(self, qtype: QuantType, w: Float32) -> Bytes:
        """float32 [n_out, n_in], finite -> uint8 [n_out, row_bytes(n_in)] of a format with codes (`quants.codes`)."""
        rows = max(1, _SLICE_VALUES // w.shape[1])
        return np.concatenate([self._round(qtype, w[at : at + rows]) for at in range(0, len(w), rows)])

    def _round(self, qtype: QuantType, w: Float32) -> Bytes:
        n_out, n_in = w.shape
        left = w[:, self._order]
        blocks = np.empty((n_out, n_in // qtype.block_elems), qtype.block)
        at = 0
        for columns in self._groups:
            here = slice(at, at + len(columns))
            at = here.stop
            first = int(columns.min())
            places = columns - first  # where each visited column stands in the group
            current = np.empty((n_out, len(columns)), np.float32)
            current[:, places] = left[:, here]
            found = self._quantize(qtype, current, self.importance[first : first + len(columns)])
            group = found.view(qtype.block).reshape(-1)
            grid = Grid.of(qtype, group)
            step, offset = (part.reshape(n_out, -1)[:, places] for part in (grid.step, grid.offset))
            codes = np.empty(current.shape, np.uint8)
            codes[:, places] = _round_columns(left, self._upper, here, grid.levels, step, offset)
            rewritten = with_codes(qtype, group, codes.reshape(-1, qtype.block_elems)).reshape(n_out, -1)
            first_block = first // qtype.block_elems
            blocks[:, first_block : first_block + rewritten.shape[1]] = rewritten
        return blocks.view(np.uint8).reshape(n_out, -1)


def _upper_factor(moments: NDArray[np.float64]) -> Float32:
    """U with UᵀU = inverse of the moments, columns in visiting order; row j says how column j's error spreads."""
    inverse = np.linalg.inv(moments)
    return np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)


def _round_columns(
    left: Float32, upper: Float32, here: slice, levels: Float32, step: Float32, offset: Float32
) -> Codes:
    """Codes of the columns `here`, in visiting order; `left` behind them takes up their errors."""
    between = (levels[1:] + levels[:-1]) / 2
    inverse = np.where(step == 0, np.float32(0), 1 / np.where(step == 0, np.float32(1), step)).astype(np.float32)
    is_integer = bool((np.diff(levels) == 1).all())
    codes = np.empty(step.shape, np.uint8)
    for panel in range(here.start, here.stop, _PANEL):
        end = min(panel + _PANEL, here.stop)
        work = np.ascontiguousarray(left[:, panel:end].T)  # [column, row]: one column is contiguous
        errors = np.empty_like(work)
        for j in range(end - panel):
            k = panel + j - here.start
            t = (work[j] - offset[:, k]) * inverse[:, k]
            code = np.clip(np.rint(t), 0, len(levels) - 1).astype(np.uint8) if is_integer else _nearest(t, between)
            codes[:, k] = code
            value = offset[:, k] + step[:, k] * levels[code]
            errors[j] = (work[j] - value) / upper[panel + j, panel + j]
            work[j + 1 :] -= upper[panel + j, panel + j + 1 : end, None] * errors[j]
        left[:, end:] -= errors.T @ upper[panel:end, end:]
    return codes


def _nearest(t: Float32, between: NDArray[Any]) -> Codes:
    return np.searchsorted(between, t).astype(np.uint8)
