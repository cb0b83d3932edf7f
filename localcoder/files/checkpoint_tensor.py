"""One tensor of a checkpoint, read in slices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from localcoder.errors import CheckpointError
from localcoder.quants import QuantType, by_name
from localcoder.quants.spec import Bytes, Float32

READABLE = ("f32", "f16", "bf16")


@dataclass(frozen=True, eq=False)
class CheckpointTensor:
    """A tensor as it lies in a checkpoint, contiguous and row-major.

    Attributes:
        name: as in the checkpoint.
        dtype: `f32`, `f16` or `bf16`; other names (`f64`, `i64`) can be listed but not read.
        shape: row-major; (n_out, n_in) for a matrix.
        path: the file that holds it.
        data: uint8 [nbytes], a view of the mapped file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    data: Bytes

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def rows(self, start: int, stop: int) -> Float32:
        """Rows `start` to `stop` (not included) of the first axis, float32 [stop - start, *shape[1:]].

        Raises:
            CheckpointError: the tensor's dtype is not one of `READABLE`, or it has no axis.
        """
        data = self._slice(start, stop)
        return self.qtype.dequantize(data).reshape(stop - start, *self.shape[1:])

    def raw_rows(self, start: int, stop: int) -> Bytes:
        """The same rows as stored: uint8 [stop - start, ..., bytes of the last axis], uint8 [bytes] of a vector.

        A view of the mapped file; little-endian. Raises as `rows` does.
        """
        data = self._slice(start, stop)
        if len(self.shape) == 1:
            return data
        return data.reshape(stop - start, *self.shape[1:-1], self.shape[-1] * self.qtype.block_bytes)

    @property
    def qtype(self) -> QuantType:
        """`dtype` as a block format; CheckpointError if it is not one of `READABLE`."""
        if self.dtype not in READABLE:
            raise CheckpointError(self.path, f"tensor {self.name} is {self.dtype}; expected {', '.join(READABLE)}")
        return by_name(self.dtype)

    def _slice(self, start: int, stop: int) -> Bytes:
        item_bytes = self.qtype.block_bytes
        if not self.shape:
            raise CheckpointError(self.path, f"tensor {self.name} is a single number; expected a vector or a matrix")
        if not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(f"rows {start} to {stop} of a tensor that has {self.shape[0]}")
        row_bytes = math.prod(self.shape[1:]) * item_bytes
        return self.data[start * row_bytes : stop * row_bytes]
