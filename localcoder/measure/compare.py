"""How far the weights of one GGUF file are from another's, tensor by tensor, without running either."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from localcoder.errors import ModelError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.quants.spec import QuantTensor

_SLICE_VALUES = 1 << 20  # dequantized at a time


@dataclass(frozen=True)
class TensorDifference:
    """One tensor in both files.

    Attributes:
        type_a, type_b: block formats; A is the reference.
        squared_error: sum of (a - b)², float64; not finite where a weight is not.
        squared_norm: sum of a².
    """

    name: str
    shape: tuple[int, ...]
    type_a: str
    type_b: str
    bytes_a: int
    bytes_b: int
    is_quantized: bool
    squared_error: float
    squared_norm: float

    @property
    def relative_error(self) -> float | None:
        """||a - b||² / ||a||²; None where that is no number: weights that are not finite, or a that is all zeros."""
        return relative_error([self])


@dataclass(frozen=True)
class ShapeMismatch:
    """A tensor whose shape differs."""

    name: str
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]


@dataclass(frozen=True)
class TableDifference:
    """What keeps two files' tensors from being compared one by one."""

    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    shape_mismatch: tuple[ShapeMismatch, ...]


def relative_error(differences: Sequence[TensorDifference]) -> float | None:
    """Sum of the squared errors over the sum of the squared norms; None where that is no number, or of no tensors."""
    error = math.fsum(d.squared_error for d in differences) if _finite(differences) else math.nan
    norm = math.fsum(d.squared_norm for d in differences) if _finite(differences) else math.nan
    if not (math.isfinite(error) and math.isfinite(norm)):
        return None
    if norm == 0:
        return 0.0 if differences and error == 0 else None
    return error / norm


def _finite(differences: Sequence[TensorDifference]) -> bool:
    return all(math.isfinite(d.squared_error) and math.isfinite(d.squared_norm) for d in differences)


def compare_tables(a: GGUFFile, b: GGUFFile) -> TableDifference:
    """Which tensors are in one file only, and which have another shape.

    Raises:
        ModelError: there is nothing to compare: no tensor is in both with the same shape.
    """
    common = [name for name in a.tensors if name in b.tensors]
    mismatch = tuple(
        ShapeMismatch(name, a.tensors[name].shape, b.tensors[name].shape)
        for name in common
        if a.tensors[name].shape != b.tensors[name].shape
    )
    if len(mismatch) == len(common):
        raise ModelError(b.path, f"no tensor of it is in {a.path} with the same shape: these are different models")
    return TableDifference(
        only_in_a=tuple(name for name in a.tensors if name not in b.tensors),
        only_in_b=tuple(name for name in b.tensors if name not in a.tensors),
        shape_mismatch=mismatch,
    )


def compare_tensors(a: GGUFFile, b: GGUFFile) -> Iterator[TensorDifference]:
    """Yields the difference of each tensor that both files have with the same shape, in A's order.

    Works in slices: memory does not grow with the files.
    """
    for name, tensor in a.tensors.items():
        other = b.tensors.get(name)
        if other is not None and other.shape == tensor.shape:
            yield _difference(tensor, other)


def _difference(a: QuantTensor, b: QuantTensor) -> TensorDifference:
    rows_a, rows_b = (t.data.reshape(-1, t.data.shape[-1]) for t in (a, b))
    n_rows = max(1, _SLICE_VALUES // a.shape[-1])
    error = norm = 0.0
    for at in range(0, len(rows_a), n_rows):
        x = a.qtype.dequantize(rows_a[at : at + n_rows]).astype(np.float64)
        y = b.qtype.dequantize(rows_b[at : at + n_rows])
        norm += float(np.vdot(x, x))
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            x -= y
        error += float(np.vdot(x, x))
    return TensorDifference(
        name=a.name,
        shape=a.shape,
        type_a=a.qtype.name,
        type_b=b.qtype.name,
        bytes_a=a.nbytes,
        bytes_b=b.nbytes,
        is_quantized=max(a.qtype.block_elems, b.qtype.block_elems) > 1,
        squared_error=error,
        squared_norm=norm,
    )
