"""What a caller may choose about a generation: names, defaults, ranges and help, stated once.

The Python API takes these fields as keyword arguments and the terminal turns each into an option.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

from localcoder.errors import OptionError

ANSWER_SHARE = 4  # where a prompt is cut to the context, at most one in so many positions is kept for the answer


@dataclass(frozen=True)
class Range:
    """The values that a numeric option may have, both ends included, and what it does."""

    low: float
    high: float
    help: str


def _number(default: float | None, low: float, high: float, help: str) -> Any:
    return field(default=default, metadata={"range": Range(low, high, help)})


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen from the logits.

    The chain is: repeat penalty, top-k, top-p, min-p, temperature, draw. The filters see the distribution at
    temperature 1. The defaults are greedy: code has to be right rather than varied, a greedy answer can be repeated,
    and the DeepSeek-Coder figures were made that way; the filters matter once a temperature is given.

    Raises:
        OptionError: a value of the wrong type or out of its range; names the option and the range.
    """

    temperature: float = _number(0.0, 0, 100, "Randomness; 0 always takes the likeliest token.")
    top_k: int = _number(40, 0, 1 << 31, "Draw among the K likeliest tokens only; 0: all.")
    top_p: float = _number(0.95, 0, 1, "Draw among the likeliest tokens that together reach this probability.")
    min_p: float = _number(0.0, 0, 1, "Drop tokens less likely than this fraction of the likeliest.")
    repeat_penalty: float = _number(1.0, 0.01, 100, "Weakens tokens of the recent text; 1: off.")
    repeat_last_n: int = _number(64, 0, 1 << 31, "How many recent tokens the repeat penalty looks at.")
    seed: int | None = _number(None, 0, (1 << 64) - 1, "Makes the draws repeatable; default: a new seed each time.")

    def __post_init__(self) -> None:
        for spec in fields(self):
            if "range" in spec.metadata:
                _check_number(spec.name, getattr(self, spec.name), str(spec.type), spec.metadata["range"])


def _check_number(name: str, value: Any, type_: str, range_: Range) -> None:
    if value is None and "None" in type_:
        return
    whole = type_.startswith("int")
    kind = "a whole number" if whole else "a number"
    right_type = hasattr(value, "__index__") or (not whole and hasattr(value, "__float__"))
    if isinstance(value, bool) or not right_type:
        raise OptionError(f"{name} is {value!r}; expected {kind}")
    if math.isnan(value) or not range_.low <= value <= range_.high:
        raise OptionError(f"{name} is {value}; expected {kind} from {range_.low:g} to {range_.high:g}")


@dataclass(frozen=True)
class GenerationOptions(SamplingOptions):
    """Sampling, and when to end.

    Attributes:
        max_tokens: most tokens to generate; None: until the model ends its text or the context is full.
        stop: strings that end the text; the text before the first of them is the result.
    """

    max_tokens: int | None = _number(256, 1, 1 << 31, "Most tokens to generate.")
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(s, str) and s for s in stop):
            raise OptionError(f"stop is {list(stop)!r}; expected strings that are not empty")
        object.__setattr__(self, "stop", stop)


class GenerationArguments(TypedDict, total=False):
    """`GenerationOptions` as keyword arguments."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int
    seed: int | None
    max_tokens: int | None
    stop: str | Sequence[str]
