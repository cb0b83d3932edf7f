"""Tensors stream into a GGUF file, sliced, checked and rounded: memory does not grow with the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from localcoder.errors import FileError, OutputError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.gguf_writer import GGUFOutput, TensorInfo
from localcoder.quants import QuantTensor, QuantType
from localcoder.quants.spec import Bytes, Float32

# Rounds rows to the first type, from the second: uint8 [n_rows, row_bytes] -> the same, with the importance of the
# columns [n] or None; as `Backend.requantize`.
Requantize = Callable[[QuantType, QuantType, Bytes, Float32 | None], Bytes]
Progress = Callable[[int, int], None]  # bytes written so far, bytes in all

SLICE_VALUES = 1 << 22  # values converted at a time
# Largest magnitude that survives in each type; blocks of integers keep their scales in half precision.
_LARGEST = {"f32": np.finfo(np.float32).max, "bf16": np.float32(3.3895314e38)}
_LARGEST_HALF = np.float32(65504)


class Source(Protocol):
    """Where a tensor's values come from."""

    @property
    def qtype(self) -> QuantType:
        """What they are stored in."""

    @property
    def unit(self) -> int:
        """How many rows belong together: slices are cut between units."""

    def stored_rows(self, start: int, stop: int) -> Bytes:
        """Rows of the tensor as the file is to have it: uint8 [stop - start, row_bytes] in `qtype`; a vector is one."""

    def error(self, row: int, column: int, problem: str) -> FileError:
        """What is wrong with a value, for people: its file, name and place there."""


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write: where it comes from and what it becomes.

    Attributes:
        importance: float32 [n], of its columns, for the search for scales.
    """

    info: TensorInfo
    source: Source
    importance: Float32 | None = None

    @property
    def n_rows(self) -> int:
        return math.prod(self.info.shape[:-1])

    def rounded(self, requantize: Requantize) -> Iterator[Bytes]:
        """All rows in their new type, a slice at a time, uint8 [n, row_bytes].

        Raises:
            FileError: a value is not finite, or too large for the type; it names the tensor and the place.
        """
        for stored in self._checked_slices():
            if self.source.qtype is self.info.qtype:
                yield stored
            else:
                yield requantize(self.info.qtype, self.source.qtype, stored, self.importance)

    def check(self) -> None:
        """Reads all values; raises as `rounded`."""
        for _ in self._checked_slices():
            pass

    def _checked_slices(self) -> Iterator[Bytes]:
        """Slices of whole units, as they are stored."""
        unit = self.source.unit
        step = max(1, SLICE_VALUES // (self.info.shape[-1] * unit)) * unit
        for start in range(0, self.n_rows, step):
            stored = self.source.stored_rows(start, min(start + step, self.n_rows))
            self._check(stored, start)
            yield stored

    def _check(self, stored: Bytes, first_row: int) -> None:
        name = self.info.qtype.name
        largest = _LARGEST.get(name, _LARGEST_HALF)
        if largest_magnitude(self.source.qtype, stored) <= largest:  # false if there is a NaN
            return
        x = self.source.qtype.dequantize(stored)
        row, column = np.argwhere(~(np.abs(x) <= largest))[0]
        value = x[row, column]
        problem = f"too large for {name}: choose bf16 or f32" if np.isfinite(value) else "not a finite number"
        raise self.source.error(first_row + int(row), int(column), f"is {value}, {problem}")


def largest_magnitude(qtype: QuantType, stored: Bytes) -> float:
    """Of the values in `stored`, blocks of `qtype`; NaN if there is one."""
    word = {"f32": np.uint32, "f16": np.uint16, "bf16": np.uint16}.get(qtype.name)
    if word is None:
        x = qtype.dequantize(stored)
        return float(np.maximum(x.max(), -x.min()))
    bits = np.ascontiguousarray(stored).view(word)  # floats without their sign are in the order of their bits
    most = (bits & np.array(np.iinfo(word).max >> 1, word)).max(keepdims=True)
    return float(qtype.dequantize(most.reshape(1).view(np.uint8))[0])


@dataclass(frozen=True)
class Outcome:
    """What was written, or would be.

    Attributes:
        n_bytes: of the file.
    """

    tensors: list[PlannedTensor] = field(repr=False)
    n_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Over all tensors, vectors included."""
        infos = [tensor.info for tensor in self.tensors]
        return 8 * sum(info.nbytes for info in infos) / sum(math.prod(info.shape) for info in infos)


def write_tensors(
    out: GGUFOutput, tensors: Sequence[PlannedTensor], requantize: Requantize, progress: Progress | None = None
) -> None:
    """Rounds and writes all tensors, after `out.begin`; FileError as `PlannedTensor.rounded`."""
    n_bytes = sum(tensor.info.nbytes for tensor in tensors)
    n_written = 0
    for tensor in tensors:
        for data in tensor.rounded(requantize):
            out.write(tensor.info.name, data)
            n_written += data.nbytes
            if progress:
                progress(n_written, n_bytes)


def check_table(written: GGUFFile, tensors: Sequence[PlannedTensor], path: Path) -> None:
    """Reads back what was written: every tensor there, in order, of its type and shape; OutputError if not."""
    found = [TensorInfo(t.name, t.qtype, t.shape) for t in written.tensors.values()]
    if found != [tensor.info for tensor in tensors]:
        raise OutputError(path, "what was written does not read back as it should; is the disk sound?")


@dataclass(frozen=True)
class GGUFSource:
    """A tensor of a GGUF file."""

    path: Path
    tensor: QuantTensor
    unit: int = 1

    @property
    def qtype(self) -> QuantType:
        return self.tensor.qtype

    def stored_rows(self, start: int, stop: int) -> Bytes:
        return self.tensor.data.reshape(-1, self.tensor.data.shape[-1])[start:stop]

    def error(self, row: int, column: int, problem: str) -> FileError:
        place = f"index {column}" if len(self.tensor.shape) == 1 else f"row {row}, column {column}"
        return FileError(self.path, f"tensor {self.tensor.name}, {place}, {problem}")
