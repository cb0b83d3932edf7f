"""The one table of block formats."""

from __future__ import annotations

from localcoder.errors import OptionError
from localcoder.quants.floats import BF16, F16, F32
from localcoder.quants.q4_0 import Q4_0
from localcoder.quants.q8_0 import Q8_0
from localcoder.quants.spec import QuantType

ALL: tuple[QuantType, ...] = (F32, F16, BF16, Q4_0, Q8_0)

BY_NAME: dict[str, QuantType] = {t.name: t for t in ALL}
BY_ID: dict[int, QuantType] = {t.gguf_id: t for t in ALL}


def by_name(name: str) -> QuantType:
    """The format called `name`; OptionError lists the known ones."""
    try:
        return BY_NAME[name.lower()]
    except KeyError:
        raise OptionError(f"unknown type {name!r}; known: {', '.join(sorted(BY_NAME))}") from None
