"""What a caller may choose about a generation: names, defaults, ranges and help, stated once.

The Python API takes these fields as keyword arguments and the terminal turns each into an option.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

from localcoder.errors import OptionError

SAMPLERS = ("top_k", "typical_p", "top_p", "min_p", "temperature")
GRAMMAR_OPTIONS = ("regex", "json_schema", "grammar", "syntax")  # what a text has to be; one of them at a time
SYNTAXES = ("python",)
OVERFLOWS = ("stop", "shift")
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

    The chain is: logit bias, penalties, then `samplers` in their order, draw. By default temperature is the last of
    them, so that the filters see the distribution at temperature 1. The defaults are greedy: code has to be right
    rather than varied, a greedy answer can be repeated, and the DeepSeek-Coder figures were made that way; the filters
    matter once a temperature is given.

    Attributes:
        logit_bias: what is added to the logits of token ids.
        penalize_prompt: whether repeat, frequency and presence penalties also look at the prompt.
        samplers: the filters and the temperature, each at most once, in the order in which they work; what is left out
            does not.

    Raises:
        OptionError: a value of the wrong type or out of its range; names the option and the range.
    """

    temperature: float = _number(0.0, 0, 100, "Randomness; 0 always takes the likeliest token.")
    top_k: int = _number(40, 0, 1 << 31, "Draw among the K likeliest tokens only; 0: all.")
    top_p: float = _number(0.95, 0, 1, "Draw among the likeliest tokens that together reach this probability.")
    min_p: float = _number(0.0, 0, 1, "Drop tokens less likely than this fraction of the likeliest.")
    typical_p: float = _number(1.0, 0, 1, "Draw among tokens about as surprising as expected, up to this probability.")
    repeat_penalty: float = _number(1.0, 0.01, 100, "Weakens tokens of the recent text; 1: off.")
    frequency_penalty: float = _number(0.0, -100, 100, "Taken off a token's logit for each time it occurred lately.")
    presence_penalty: float = _number(0.0, -100, 100, "Taken off a token's logit if it occurred lately.")
    repeat_last_n: int = _number(64, 0, 1 << 31, "How many recent tokens these three penalties look at.")
    dry_multiplier: float = _number(0.0, 0, 100, "Weakens tokens that would go on with a repetition; 0: off.")
    dry_base: float = _number(1.75, 1, 100, "How fast that grows with the length of the repetition.")
    dry_allowed_length: int = _number(2, 0, 1 << 31, "The longest repetition, in tokens, that is allowed.")
    mirostat_tau: float = _number(0.0, 0, 100, "Keeps the surprise near this many bits (mirostat 2); 0: off.")
    mirostat_eta: float = _number(0.1, 0, 1, "How fast mirostat learns.")
    seed: int | None = _number(None, 0, (1 << 64) - 1, "Makes the draws repeatable; default: a new seed each time.")

    penalize_prompt: bool = True
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    samplers: Sequence[str] = SAMPLERS

    def __post_init__(self) -> None:
        _check_bias(self.logit_bias)
        _check_switch("penalize_prompt", self.penalize_prompt)
        samplers = tuple(self.samplers)
        if len(set(samplers)) != len(samplers) or not set(samplers) <= set(SAMPLERS):
            raise OptionError(f"samplers is {list(samplers)!r}; expected some of {', '.join(SAMPLERS)}, each once")
        object.__setattr__(self, "samplers", samplers)
        for spec in fields(self):
            if "range" in spec.metadata:
                _check_number(spec.name, getattr(self, spec.name), str(spec.type), spec.metadata["range"])


def _check_bias(bias: Mapping[int, float]) -> None:
    for token, value in bias.items() if isinstance(bias, Mapping) else [(bias, None)]:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
        if not hasattr(token, "__index__") or isinstance(token, bool) or token < 0 or not number or value == math.inf:
            raise OptionError(f"logit_bias has {token!r}: {value!r}; expected token ids and numbers")


def _check_switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}; expected True or False")


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
        logprobs: for each token also its logarithmic probability, and those of so many likeliest; None: not.
        speculate: whether to guess what repeats itself, in prompt and output, or what a draft model says, and check
            several tokens at once. The tokens are the same with it and without; what is drawn at random is, with a
            draft model, equally distributed.
        context_overflow: what happens at the end of the context. "stop": the text ends (finish reason "length").
            "shift": the older half of what follows the start of the prompt (its first token, or a chat's system prompt)
            is forgotten, and the text goes on, as often as it takes. What comes then is near to what the model would
            write after the text that is left, though not the same: the rest is moved up, not computed again, and still
            knows something of what is gone (`localcoder/model/kv_shift.py`).
        on_token: called with the id of each token as it comes, and the text that it spells by itself. If it returns
            False, the text ends there; what it raises ends it, too, and goes on to the caller.
        regex: a regular expression (https://docs.rs/regex/latest/regex/#syntax) that the whole text matches.
        json_schema: the text is JSON that fits this schema, which is a dictionary or JSON itself; {} is any JSON.
        grammar: the text is one of those that a grammar in GBNF, the notation of llama.cpp, describes.
        syntax: "python": prompt and text together are how some Python file begins, at each token; the text ends only
            where that file may. An answer in a conversation is a file of its own, and an infill follows its prefix and
            ends where the next line of its suffix may follow. What Python knows is that of the version that runs this;
            what its parser accepts may still be refused later (`return` outside a function).
    """

    max_tokens: int | None = _number(256, 1, 1 << 31, "Most tokens to generate.")
    stop: Sequence[str] = ()
    logprobs: int | None = _number(None, 0, 100, "Also the probabilities of each token and of so many likeliest.")
    speculate: bool = True
    context_overflow: str = OVERFLOWS[0]
    on_token: Callable[[int, str], object] | None = None
    regex: str | None = None
    json_schema: Mapping[str, Any] | str | bool | None = None
    grammar: str | None = None
    syntax: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(s, str) and s for s in stop):
            raise OptionError(f"stop is {list(stop)!r}; expected strings that are not empty")
        object.__setattr__(self, "stop", stop)
        _check_switch("speculate", self.speculate)
        if self.context_overflow not in OVERFLOWS:
            raise OptionError(f"context_overflow is {self.context_overflow!r}; expected one of {', '.join(OVERFLOWS)}")
        if self.on_token is not None and not callable(self.on_token):
            raise OptionError(f"on_token is {self.on_token!r}; expected a function")
        self._check_grammar_options()

    def _check_grammar_options(self) -> None:
        chosen = [name for name in GRAMMAR_OPTIONS if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise OptionError(f"{' and '.join(chosen)} exclude each other; give one of them")
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise OptionError(f"{name} is {value!r}; expected a text")
        if self.syntax is not None and self.syntax not in SYNTAXES:
            raise OptionError(f"syntax is {self.syntax!r}; expected {', '.join(SYNTAXES)}")
        if self.json_schema is not None and not isinstance(self.json_schema, (Mapping, str, bool)):
            raise OptionError(f"json_schema is {self.json_schema!r}; expected a dictionary, or JSON text")

    @property
    def grammar_option(self) -> str | None:
        """Which of the options `GRAMMAR_OPTIONS` is given."""
        return next((name for name in GRAMMAR_OPTIONS if getattr(self, name) is not None), None)


class GenerationArguments(TypedDict, total=False):
    """`GenerationOptions` as keyword arguments."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    repeat_last_n: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    mirostat_tau: float
    mirostat_eta: float
    seed: int | None
    penalize_prompt: bool
    logit_bias: Mapping[int, float]
    samplers: Sequence[str]
    max_tokens: int | None
    stop: str | Sequence[str]
    logprobs: int | None
    speculate: bool
    context_overflow: str
    on_token: Callable[[int, str], object] | None
    regex: str | None
    json_schema: Mapping[str, Any] | str | bool | None
    grammar: str | None
    syntax: str | None
