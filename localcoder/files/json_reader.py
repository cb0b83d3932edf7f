"""Reading JSON that a stranger wrote: bounded, UTF-8, and nothing that JSON does not have."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from localcoder.errors import FileError
from localcoder.files.mapped import read_bounded

MAX_NUMBER = 100  # characters; longer ones are no numbers that anyone meant


class _NotJSON(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _NotJSON(f"the name {twice!r} occurs twice in one object")
    return found


def _integer(text: str) -> int:
    if len(text) > MAX_NUMBER:
        raise _NotJSON(f"a number of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _NotJSON(f"the number {text[:MAX_NUMBER]} is too large")
    return value


def _constant(text: str) -> float:
    raise _NotJSON(f"{text} is not JSON")


def read_text(path: Path, most: int, error: type[FileError]) -> str:
    """A UTF-8 text of at most `most` bytes; `error` if it cannot be had."""
    data = read_bounded(path, most, error)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise error(path, f"is not UTF-8 text (byte {e.start})") from None


def read_json(path: Path, most: int, error: type[FileError]) -> dict[str, Any]:
    """The object in a JSON file of at most `most` bytes; `error` if it cannot be had or is something else."""
    text = read_text(path, most, error)
    try:
        found = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant
        )
    except (ValueError, RecursionError) as e:
        problem = "nested too deep" if isinstance(e, RecursionError) else str(e)
        raise error(path, f"not valid JSON: {problem}") from None
    if not isinstance(found, dict):
        raise error(path, f"holds a JSON {type(found).__name__}; expected an object")
    return found
