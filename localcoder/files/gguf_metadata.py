"""Typed access to the metadata of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from localcoder.errors import GGUFError

MetadataValue = int | float | bool | str | list[str] | np.ndarray[Any, Any]


class TypedMetadata:
    """What has metadata and a path to name in errors.

    Attributes:
        path: the file.
        metadata: key -> Python scalar, string, list of strings, or numpy array.
    """

    path: Path
    metadata: dict[str, MetadataValue]

    def _get(self, key: str, default: object) -> object:
        value = self.metadata.get(key, default)
        if value is None:
            raise GGUFError(self.path, f"metadata key {key} is missing")
        return value

    def _wrong_type(self, key: str, value: object, expected: str) -> GGUFError:
        return GGUFError(self.path, f"metadata key {key} is {_kind(value)}, expected {expected}")

    def get_int(self, key: str, default: int | None = None) -> int:
        """An integer; GGUFError if it is missing (and there is no default) or of another type."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong_type(key, value, "an integer")
        return value

    def get_float(self, key: str, default: float | None = None) -> float:
        """A number; as `get_int`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong_type(key, value, "a number")
        return float(value)

    def get_bool(self, key: str, default: bool | None = None) -> bool:
        """A truth value; as `get_int`."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong_type(key, value, "true or false")
        return value

    def get_str(self, key: str, default: str | None = None) -> str:
        """A string; as `get_int`."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong_type(key, value, "a string")
        return value

    def get_strings(self, key: str) -> list[str]:
        """An array of strings; as `get_int`."""
        value = self._get(key, None)
        if not isinstance(value, list):
            raise self._wrong_type(key, value, "an array of strings")
        return value

    def get_array(self, key: str) -> np.ndarray[Any, Any]:
        """An array of numbers; as `get_int`."""
        value = self._get(key, None)
        if not isinstance(value, np.ndarray):
            raise self._wrong_type(key, value, "an array of numbers")
        return value


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    if isinstance(value, list):
        return "an array of strings"
    return {int: "an integer", float: "a number", str: "a string"}[type(value)]
