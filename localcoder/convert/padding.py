"""Widening the feed-forward part with zeros until its rows are whole super-blocks.

Rows of 5504 values, the 1.3B model's, are 21 and a half super-blocks, which no K-quant can hold. A hidden unit whose
gate, up and down weights are zero adds nothing: silu(0) · 0 · 0. So the model computes the same, in a standard file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from localcoder.convert.stream import Source
from localcoder.errors import FileError, OptionError
from localcoder.quants import QuantType, by_name
from localcoder.quants.spec import Bytes

MULTIPLE = 256
_FFN = re.compile(r"blk\.[0-9]{1,6}\.ffn_(gate|up|down)\.(?:weight|bias)")


def padded_width(n_ff: int) -> int:
    """The next multiple of a super-block's length."""
    return n_ff + -n_ff % MULTIPLE


def pad(
    sources: Mapping[str, Source], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Source], dict[str, tuple[int, ...]]]:
    """The sources and shapes of all tensors of a model, with a padded feed-forward part.

    Raises:
        OptionError: it is as wide as that already, or no feed-forward part of this family.
    """
    padded_sources, padded_shapes, widths = dict(sources), dict(shapes), set()
    for name, shape in shapes.items():
        match = _FFN.fullmatch(name)
        if match is None:
            continue
        if len(shape) != 2:
            raise OptionError(f"the feed-forward part cannot be padded: {name} has shape {shape}")
        n_out, n_in = shape
        widths.add(n_in if match[1] == "down" else n_out)
        padded = (n_out, padded_width(n_in)) if match[1] == "down" else (padded_width(n_out), n_in)
        padded_sources[name], padded_shapes[name] = PaddedSource(sources[name], n_out, padded[1]), padded
    if len(widths) != 1:
        raise OptionError(f"the feed-forward part cannot be padded: widths of {sorted(widths)} in one model")
    (n_ff,) = widths
    if padded_width(n_ff) == n_ff:
        raise OptionError(f"there is nothing to pad: the feed-forward width {n_ff} is a multiple of {MULTIPLE} already")
    return padded_sources, padded_shapes


@dataclass(frozen=True)
class PaddedSource:
    """A matrix with zeros below and to the right.

    Attributes:
        n_rows: of the matrix without them.
        n_in: columns with them.
    """

    source: Source
    n_rows: int
    n_in: int

    @property
    def unit(self) -> int:
        return self.source.unit

    @property
    def qtype(self) -> QuantType:
        """Floats stay as they are: their zero is zero bytes."""
        return self.source.qtype if self.source.qtype.block_elems == 1 else by_name("f32")

    def stored_rows(self, start: int, stop: int) -> Bytes:
        rows = self.source.stored_rows(min(start, self.n_rows), min(stop, self.n_rows))
        if self.qtype is not self.source.qtype:
            rows = self.source.qtype.dequantize(rows).view(np.uint8)
        out = np.zeros((stop - start, self.qtype.row_bytes(self.n_in)), np.uint8)
        out[: len(rows), : rows.shape[1]] = rows
        return out

    def error(self, row: int, column: int, problem: str) -> FileError:
        return self.source.error(row, column, problem)
