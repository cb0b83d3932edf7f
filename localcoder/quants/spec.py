"""What a block format is.

A tensor is stored row by row; a row is cut into *blocks* of `block_elems` values, and every block takes `block_bytes`
bytes whatever its neighbours hold. This module knows the shape of that idea; each format's file fills it in and
`registry.py` lists them. Everything else in localcoder (reader, converter, backends, C structs, command-line choices,
tests) reads the registry and has no table of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from localcoder.errors import OptionError

Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Codes = NDArray[Any]  # small integers: codes, sub-block scales and minimums
Blocks = NDArray[Any]  # structured array [n_blocks] of a format's `block` dtype


@dataclass(frozen=True, eq=False)
class QuantType:
    """One block format.

    Attributes:
        name: lower case, as people type it (`q4_0`).
        gguf_id: the type's number in a GGUF file.
        block_elems: values a block.
        block: numpy dtype of one block, fields in file order, little-endian, packed.
        activation: what the other operand of a dot product is rounded to: `f32` (not at all) or `q8`
            (`activations.quantize_q8`). Formats that are rare and only read (grids, ternary, 4-bit floats) say `f32`:
            they run through `dequantize`.
        dequantize_blocks: Blocks [n] -> float32 [n, block_elems]; every bit pattern is legal input.
        quantize_blocks: float32 [n, block_elems] -> Blocks [n] by plain rounding, or None where it takes a
            search (`search.quantize_best`) or the format is only read.
    """

    name: str
    gguf_id: int
    block_elems: int
    block: np.dtype[Any]
    activation: Literal["f32", "q8"]
    dequantize_blocks: Callable[[Blocks], Float32]
    quantize_blocks: Callable[[Float32], Blocks] | None

    @property
    def block_bytes(self) -> int:
        return self.block.itemsize

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_elems

    def row_bytes(self, n_elems: int) -> int:
        """Bytes of a row of `n_elems` values; OptionError if that is not a whole number of blocks."""
        if n_elems % self.block_elems:
            raise OptionError(f"{self.name}: a row of {n_elems} values is not a multiple of {self.block_elems}")
        return n_elems // self.block_elems * self.block_bytes

    def quantize(self, x: Float32) -> Bytes:
        """float32 [..., n] -> uint8 [..., row_bytes(n)], plain rounding."""
        if self.quantize_blocks is None:
            raise OptionError(f"{self.name}: has no plain rounding")
        row_bytes = self.row_bytes(x.shape[-1])
        with np.errstate(over="ignore", invalid="ignore"):
            blocks = self.quantize_blocks(np.ascontiguousarray(x, np.float32).reshape(-1, self.block_elems))
        return blocks.view(np.uint8).reshape(*x.shape[:-1], row_bytes)

    def dequantize(self, data: Bytes) -> Float32:
        """uint8 [..., row_bytes] -> float32 [..., n]."""
        blocks = np.ascontiguousarray(data, np.uint8).reshape(-1).view(self.block)
        with np.errstate(over="ignore", invalid="ignore"):
            values = self.dequantize_blocks(blocks)
        return values.reshape(*data.shape[:-1], data.shape[-1] // self.block_bytes * self.block_elems)

    def __repr__(self) -> str:
        return f"QuantType({self.name})"


@dataclass(frozen=True, eq=False)
class QuantTensor:
    """A tensor in a block format, as it lies in a file.

    Attributes:
        name: GGUF tensor name.
        qtype: its block format.
        shape: row-major, (n_out, n_in) for a matrix: `y = W x`, one row an output. GGUF files list it reversed.
        data: uint8 [..., row_bytes], usually a view into the mapped file.
    """

    name: str
    qtype: QuantType
    shape: tuple[int, ...]
    data: Bytes

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def dequantize(self) -> Float32:
        """The whole tensor as float32 of `shape`."""
        return self.qtype.dequantize(self.data).reshape(self.shape)
