"""The codes inside blocks: replacing them while scales and minimums stay.

Rounding that looks beyond one block (error feedback) fixes the scales first and chooses the codes later. For that it
needs to know which values a code can stand for, and a way to write its choice back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from localcoder.errors import OptionError
from localcoder.quants.bits import pack_bits
from localcoder.quants.iq4 import KVALUES
from localcoder.quants.spec import Blocks, Codes, Float32, QuantType


@dataclass(frozen=True)
class _Plane:
    """Bits `shift` … of every code, packed `bits` at a time in runs of `run` codes (see bits.py) in one field."""

    field: str
    bits: int
    run: int
    shift: int = 0


_PLANES: dict[str, tuple[_Plane, ...]] = {
    **dict.fromkeys(("q4_0", "q4_1", "iq4_nl", "iq4_xs"), (_Plane("qs", 4, 16),)),
    **dict.fromkeys(("q5_0", "q5_1"), (_Plane("qs", 4, 16), _Plane("qh", 1, 1, 4))),
    "q8_0": (_Plane("qs", 8, 1),),
    "q2_k": (_Plane("qs", 2, 32),),
    "q3_k": (_Plane("qs", 2, 32), _Plane("hmask", 1, 32, 2)),
    "q4_k": (_Plane("qs", 4, 32),),
    "q5_k": (_Plane("qs", 4, 32), _Plane("qh", 1, 32, 4)),
    "q6_k": (_Plane("ql", 4, 64), _Plane("qh", 2, 32, 4)),
}
_BITS = {name: sum(plane.bits for plane in planes) for name, planes in _PLANES.items()}


def has_codes(qtype: QuantType) -> bool:
    """Whether this format's codes can be replaced."""
    return qtype.name in _PLANES


def with_codes(qtype: QuantType, blocks: Blocks, codes: Codes) -> Blocks:
    """A copy of blocks [n] with codes uint8 [n, block_elems] in place of its own.

    Codes count the levels from the lowest, 0, so Q8_0's are its signed values plus 128.
    """
    if not has_codes(qtype):
        raise OptionError(f"{qtype.name}: its codes cannot be chosen one by one")
    out = blocks.copy()
    if qtype.name == "q8_0":
        out["qs"] = (codes ^ 0x80).view(np.int8)
        return out
    for plane in _PLANES[qtype.name]:
        part = codes >> plane.shift & np.uint8((1 << plane.bits) - 1)
        out[plane.field] = pack_bits(part, plane.bits, plane.run)
    return out


@dataclass(frozen=True)
class Grid:
    """The values that each element of some blocks can take: offset + step · levels[code].

    Attributes:
        levels: ascending, float32 [n_levels], the same for all.
        step, offset: float32, one for each element.
    """

    levels: Float32
    step: Float32
    offset: Float32

    @classmethod
    def of(cls, qtype: QuantType, blocks: Blocks) -> Grid:
        """The grid of blocks [n], arrays [n, block_elems]."""
        n_levels = 1 << _BITS[qtype.name]
        levels = KVALUES.astype(np.float32) if qtype.name.startswith("iq4") else np.arange(n_levels, dtype=np.float32)
        shape = (len(blocks), qtype.block_elems)
        ends = [
            qtype.dequantize_blocks(with_codes(qtype, blocks, np.full(shape, code, np.uint8)))
            for code in (0, n_levels - 1)
        ]
        step = (ends[1] - ends[0]) / (levels[-1] - levels[0])
        return cls(levels, step, ends[0] - step * levels[0])
