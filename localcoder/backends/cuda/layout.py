"""How weights lie on a card: the file's bytes, field by field.

A block of a file mixes fields of many sizes, so its parts are hardly ever aligned. On the card each row of a matrix is
cut into *planes*: one field (or a few neighbours) of all its blocks, one block after the other, every plane starting at
a multiple of 16 bytes. So codes are loaded 16 bytes at a time. Same bytes, same number of them, but for that padding.
"""

from __future__ import annotations

from localcoder.quants import QuantType

PLANE_ALIGN = 16

# Neighbouring fields that are loaded together; every other field is a plane of its own.
_TOGETHER = {
    "q4_1": (("d", "m"), ("qs",)),
    "q5_1": (("d", "m"), ("qh",), ("qs",)),
    "q2_k": (("scales",), ("qs",), ("d", "dmin")),
    "q4_k": (("d", "dmin", "scales"), ("qs",)),
    "q5_k": (("d", "dmin", "scales"), ("qh",), ("qs",)),
    "iq4_xs": (("d", "scales_h", "scales_l"), ("qs",)),
}


def planes(qtype: QuantType) -> tuple[int, ...]:
    """Bytes that a block has in each plane of its row, in the order of the block's fields."""
    fields, names = qtype.block.fields, qtype.block.names
    assert fields is not None
    assert names is not None
    groups = _TOGETHER.get(qtype.name) or tuple((name,) for name in names)
    assert tuple(name for group in groups for name in group) == names
    return tuple(sum(fields[name][0].itemsize for name in group) for group in groups)


def row_bytes(qtype: QuantType, n: int) -> int:
    """Bytes of a row of `n` values on the card."""
    n_blocks = n // qtype.block_elems
    return sum(-(-n_blocks * size // PLANE_ALIGN) * PLANE_ALIGN for size in planes(qtype))
