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

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.errors import NumericsError
from localcoder.quants.codes import Grid, with_codes
from localcoder.quants.search import quantize_best
from localcoder.quants.spec import Bytes, Codes, Float32, QuantType

Quantize = Callable[[QuantType, Float32, Float32], Bytes]  # values [n_rows, n], importance [n] -> blocks

_DAMPING = 0.01  # of the mean energy, added to every column's
# Few tokens show correlations that are chance: the diagonal grows by this much for every column a token.
_SHRINKAGE = 0.3
_LEAST_IMPORTANCE = 1e-3  # of the mean: a column that the calibration never used still counts a little
_GROUP = 256  # columns whose scales are searched together; a multiple of every format's block
_PANEL = 64  # columns between two updates of the whole rest


@dataclass(frozen=True)
class _Group:
    """Columns whose scales are searched together.

    Attributes:
        columns: in visiting order.
        at: how many columns are visited before.
    """

    columns: NDArray[np.int64]
    at: int

    @property
    def end(self) -> int:
        return self.at + len(self.columns)


class Feedback:
    """What the inputs of one or more matrices say about how to round them.

    With e the errors of a row in visiting order, the output's squared error is eHeᵀ, H the inputs' second moments. Let
    H = (I + A) D (I + A)ᵀ with A strictly upper triangular and D diagonal: then it is the sum of D_jj (e_j + (eA)_j)²,
    and is kept small by rounding column j of w + eA. This is GPTQ's correction without the inverse of H (Chee et al.,
    "QuIP", 2023, arXiv 2307.13304).

    H is symmetric, and only its upper half is ever in memory: 740 MB for 19,200 columns.

    Args:
        inputs: pieces float32 [n_tokens, n_in] of the inputs; iterated over twice.
        quantize: finds scales, such as `Backend.quantize_best`.

    Raises:
        NumericsError: an input is not finite.
    """

    def __init__(self, inputs: Iterable[Float32], quantize: Quantize = quantize_best) -> None:
        self._quantize = quantize
        n_tokens, energy = _energy(inputs)
        if not np.isfinite(energy).all():
            raise NumericsError("the inputs are not finite")
        mean = max(float(energy.mean()), np.finfo(np.float32).tiny)
        self.importance = np.maximum(energy / mean, _LEAST_IMPORTANCE).astype(np.float32)
        self._groups = _visiting_order(self.importance)
        self._spread = _second_moments(inputs, self._groups)
        for rows in self._spread:
            rows /= np.float32(mean)
            diagonal = np.diag_indices(len(rows))
            rows[diagonal] *= np.float32(1 + _SHRINKAGE * len(energy) / n_tokens)
            rows[diagonal] += np.float32(_DAMPING)
        _factorize(self._spread, self._groups)

    def round(self, qtype: QuantType, w: Float32) -> Bytes:
        """Rows float32 [n_out, n_in], finite -> uint8 [n_out, row_bytes(n_in)] of a format with codes (`quants.codes`).

        Works on a few copies of `w`: pass a large matrix in slices.
        """
        n_out, n_in = w.shape
        correction = np.zeros_like(w)  # eA, in visiting order
        blocks = np.empty((n_out, n_in // qtype.block_elems), qtype.block)
        for group, spread in zip(self._groups, self._spread):
            columns = group.columns
            first = int(columns.min())
            places = columns - first  # where each visited column stands in the group
            exact, correct = w[:, columns], correction[:, group.at : group.end]
            current = np.empty_like(exact)
            current[:, places] = exact + correct
            found = self._quantize(qtype, current, self.importance[first : first + len(columns)])
            stored = found.view(qtype.block).reshape(-1)
            grid = Grid.of(qtype, stored)
            step, offset = (part.reshape(n_out, -1)[:, places] for part in (grid.step, grid.offset))
            codes = np.empty(current.shape, np.uint8)
            chosen, errors = _round_columns(exact, correct, spread, grid.levels, step, offset)
            codes[:, places] = chosen
            correction[:, group.end :] += errors @ spread[:, len(columns) :]
            rewritten = with_codes(qtype, stored, codes.reshape(-1, qtype.block_elems)).reshape(n_out, -1)
            first_block = first // qtype.block_elems
            blocks[:, first_block : first_block + rewritten.shape[1]] = rewritten
        return blocks.view(np.uint8).reshape(n_out, -1)


def _energy(inputs: Iterable[Float32]) -> tuple[int, NDArray[np.float64]]:
    """Number of tokens, and Σ x² of every column."""
    n_tokens, energy = 0, np.zeros(1)
    for x in inputs:
        n_tokens += len(x)
        energy = energy + np.einsum("ij,ij->j", x, x, dtype=np.float64)
    return n_tokens, energy


def _visiting_order(importance: Float32) -> list[_Group]:
    """Groups and the columns in each, in falling order of energy."""
    n_in = len(importance)
    spans = [np.arange(at, min(at + _GROUP, n_in)) for at in range(0, n_in, _GROUP)]
    spans.sort(key=lambda columns: -float(importance[columns].mean()))
    groups: list[_Group] = []
    for columns in spans:
        ordered = columns[np.argsort(-importance[columns], kind="stable")]
        groups.append(_Group(ordered, groups[-1].end if groups else 0))
    return groups


def _second_moments(inputs: Iterable[Float32], groups: Sequence[_Group]) -> list[Float32]:
    """Σ xxᵀ in visiting order: for each group its rows, from its own columns on: [n_columns, n_in - at]."""
    n_in = groups[-1].end
    order = np.concatenate([group.columns for group in groups])
    moments = [np.zeros((len(group.columns), n_in - group.at), np.float32) for group in groups]
    for x in inputs:
        ordered = x[:, order]
        for group, rows in zip(groups, moments):
            rows += ordered[:, group.at : group.end].T @ ordered[:, group.at :]
    return moments


def _factorize(moments: list[Float32], groups: Sequence[_Group]) -> None:
    """Replaces H by I + A, in place, rows stored as by `_second_moments`; columns are eliminated from the last on."""
    for last in reversed(range(len(groups))):
        n = len(groups[last].columns)
        corner = moments[last][:, :n].astype(np.float64)
        factor = np.linalg.cholesky(corner[::-1, ::-1])[::-1, ::-1]  # upper: corner = factor · factorᵀ
        moments[last][:, :n] = factor / np.diagonal(factor)
        if last == 0:
            return
        here = slice(groups[last].at, groups[last].end)
        above = np.concatenate([m[:, here.start - g.at : here.stop - g.at] for m, g in zip(moments[:last], groups)])
        above = np.linalg.solve(factor, above.T.astype(np.float64)).T.astype(np.float32)
        for rows, group in zip(moments[:last], groups):
            mine = above[group.at : group.end]
            rows[:, : here.start - group.at] -= mine @ above[group.at :].T
            rows[:, here.start - group.at : here.stop - group.at] = mine / np.diagonal(factor)


def _round_columns(
    w: Float32, correction: Float32, spread: Float32, levels: Float32, step: Float32, offset: Float32
) -> tuple[Codes, Float32]:
    """Rounds the columns of a group [n_rows, n_columns] one by one, in visiting order: their codes and errors.

    Args:
        correction: what the errors of earlier groups add to them.
        spread: rows of I + A that belong to them.
        step, offset: of every element's grid.
    """
    between = (levels[1:] + levels[:-1]) / 2
    inverse = np.where(step == 0, np.float32(0), 1 / np.where(step == 0, np.float32(1), step)).astype(np.float32)
    is_integer = bool((np.diff(levels) == 1).all())
    codes, errors = np.empty(step.shape, np.uint8), np.empty(step.shape, np.float32)
    n_columns = w.shape[1]
    for panel in range(0, n_columns, _PANEL):
        end = min(panel + _PANEL, n_columns)
        exact = np.ascontiguousarray(w[:, panel:end].T)  # [column, row]: one column is contiguous
        current = exact + correction[:, panel:end].T + (errors[:, :panel] @ spread[:panel, panel:end]).T
        made = np.empty_like(exact)
        for j, k in enumerate(range(panel, end)):
            t = (current[j] - offset[:, k]) * inverse[:, k]
            code = np.clip(np.rint(t), 0, len(levels) - 1).astype(np.uint8) if is_integer else _nearest(t, between)
            codes[:, k] = code
            made[j] = exact[j] - (offset[:, k] + step[:, k] * levels[code])
            current[j + 1 :] += spread[k, k + 1 : end, None] * made[j]
        errors[:, panel:end] = made.T
    return codes, errors


def _nearest(t: Float32, between: NDArray[Any]) -> Codes:
    return np.searchsorted(between, t).astype(np.uint8)
