"""JSON schemas, read, and searched for what is wrong in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from localcoder.errors import OptionError

_MOST_TRIED = 1000  # parts of a schema
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SINGLE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")


def read_schema(schema: Mapping[str, Any] | str | bool) -> dict[str, Any]:
    """A schema as JSON has it.

    Raises:
        OptionError: it is no JSON (names the line and column), or no schema that something fits.
    """
    try:
        found = json.loads(schema if isinstance(schema, str) else json.dumps(schema))
    except json.JSONDecodeError as error:
        raise OptionError(f"json_schema: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"json_schema: not JSON: {error}") from None
    if found is False:
        raise OptionError("json_schema: no JSON fits it")
    if found is True:
        return {}
    if not isinstance(found, dict):
        raise OptionError(f"json_schema: a schema is an object, true or false, not {json.dumps(found):.40}")
    found.pop("x-guidance", None)  # the library's own switches, one of which makes it ignore what it does not know
    return found


def find_fault(schema: dict[str, Any], fault_of: Callable[[dict[str, Any]], str]) -> tuple[str, str] | None:
    """The smallest part that is wrong, as a JSON pointer (RFC 6901), and why; None where none is by itself.

    Args:
        fault_of: what is wrong with a schema; "" for nothing.
    """
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    found = None
    parts: list[tuple[str, Any]] = [("#", schema)]
    for _ in range(_MOST_TRIED):
        if not parts:
            break
        place, part = parts.pop(0)
        fault = fault_of({**shared, **part}) if isinstance(part, dict) else ""
        if fault:
            found, parts = (place, fault), list(_parts(place, part))
    return found


def _parts(place: str, schema: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(schema, dict):
        return
    for key in _MAPS:
        if isinstance(schema.get(key), dict):
            yield from ((f"{place}/{key}/{_escaped(name)}", part) for name, part in schema[key].items())
    for key in _LISTS:
        if isinstance(schema.get(key), list):
            yield from ((f"{place}/{key}/{number}", part) for number, part in enumerate(schema[key]))
    for key in _SINGLE:
        if isinstance(schema.get(key), (dict, bool)):
            yield f"{place}/{key}", schema[key]


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
