"""The one table of block formats."""

from __future__ import annotations

from localcoder.errors import OptionError
from localcoder.quants.floats import BF16, F16, F32
from localcoder.quants.fp4 import MXFP4, NVFP4
from localcoder.quants.iq4 import IQ4_NL, IQ4_XS
from localcoder.quants.iq_grids import IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS
from localcoder.quants.k_quants import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K
from localcoder.quants.q4 import Q4_0, Q4_1
from localcoder.quants.q5 import Q5_0, Q5_1
from localcoder.quants.q8_0 import Q8_0
from localcoder.quants.spec import QuantType
from localcoder.quants.ternary import TQ1_0, TQ2_0

ALL: tuple[QuantType, ...] = (
    *(F32, F16, BF16),
    *(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0),
    *(Q2_K, Q3_K, Q4_K, Q5_K, Q6_K),
    *(IQ4_NL, IQ4_XS),
    *(IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S),
    *(TQ1_0, TQ2_0, MXFP4, NVFP4),
)

BY_NAME: dict[str, QuantType] = {t.name: t for t in ALL}
BY_ID: dict[int, QuantType] = {t.gguf_id: t for t in ALL}


def by_name(name: str) -> QuantType:
    """The format called `name`; OptionError lists the known ones."""
    try:
        return BY_NAME[name.lower()]
    except KeyError:
        raise OptionError(f"unknown type {name!r}; known: {', '.join(sorted(BY_NAME))}") from None
