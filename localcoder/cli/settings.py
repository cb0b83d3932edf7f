"""The user's configuration: defaults of options, and prompts, in HOME/config.toml.

    model = "deepseek-coder:6.7b-instruct"
    n_ctx = 8192
    temperature = 0.2

    [prompts]
    review = "Look for races only.\\n\\n{diff}"

A key outside of a table is an option's name, with `_` for `-`, and counts for every command that has the option.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from localcoder.cli.common import FOR_PYTHON
from localcoder.errors import FileError, OptionError
from localcoder.files.mapped import read_bounded
from localcoder.model.kv_types import KV_TYPES
from localcoder.session.options import GRAMMAR_OPTIONS, GenerationOptions
from localcoder.store.folder import home

_MOST_BYTES = 1 << 20
# Keys that are no fields of GenerationOptions.
_TYPES: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "threads": (int,),
    "device": (str,),
    "gpu_layers": (int, str),
    "kv_type": (str,),
    "n_ctx": (int,),
    "draft_model": (str,),
    "system": (str,),
}
_NOT_KEPT = {
    "logprobs",
    "logit_bias",
    "seed",
    *GRAMMAR_OPTIONS,
} | FOR_PYTHON  # options of one call rather than of a user
_GENERATION = tuple(spec.name for spec in fields(GenerationOptions) if spec.name not in _NOT_KEPT)
KEYS = (*_TYPES, *_GENERATION)


def config_path() -> Path:
    """Where the configuration is, whether or not it is there."""
    return home() / "config.toml"


def read_settings() -> dict[str, Any]:
    """The configuration, checked; empty where there is none.

    Raises:
        FileError: it is no TOML, or has a key or a value that means nothing; names the file and the key.
    """
    path = config_path()
    if not path.exists():
        return {}
    found = _parse(path)
    prompts = found.pop("prompts", {})
    for key in found:
        if key not in KEYS:
            raise FileError(path, f"unknown key {key!r}; known: {', '.join(KEYS)}, and the table prompts")
    _check_values(path, found)
    _check_prompts(path, prompts)
    return {**found, **({"prompts": prompts} if prompts else {})}


def _parse(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        return tomllib.loads(read_bounded(path, _MOST_BYTES, FileError).decode())
    except UnicodeDecodeError as error:
        raise FileError(path, f"not UTF-8 text (byte {error.start})") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FileError(path, f"no valid TOML: {error}") from None


def _check_values(path: Path, found: dict[str, Any]) -> None:
    for key, types in _TYPES.items():
        if key in found and (not isinstance(found[key], types) or isinstance(found[key], bool)):
            kind = "a whole number" if types == (int,) else "a text"
            raise FileError(path, f"{key} is {found[key]!r}; expected {kind}")
    layers = found.get("gpu_layers", "auto")
    if layers != "auto" and (isinstance(layers, str) or layers < 0):
        raise FileError(path, f"gpu_layers is {layers!r}; expected a number of layers, or 'auto'")
    if found.get("kv_type", KV_TYPES[0]) not in KV_TYPES:
        raise FileError(path, f"kv_type is {found['kv_type']!r}; expected one of {', '.join(KV_TYPES)}")
    try:
        options = {key: value for key, value in found.items() if key in _GENERATION}
        for key in ("stop", "samplers"):
            if key in options and not (
                isinstance(options[key], list) and all(isinstance(s, str) for s in options[key])
            ):
                raise OptionError(f"{key} is {options[key]!r}; expected a list of texts")
        GenerationOptions(**options)
    except OptionError as error:
        raise FileError(path, str(error)) from None


def _check_prompts(path: Path, prompts: Any) -> None:
    from localcoder.assist.prompts import PROMPTS, check_prompt

    if not isinstance(prompts, dict):
        raise FileError(path, f"prompts is {prompts!r}; expected a table")
    for key, text in prompts.items():
        if key not in PROMPTS:
            raise FileError(path, f"unknown key 'prompts.{key}'; known: {', '.join(PROMPTS)}")
        try:
            check_prompt(key, text)
        except OptionError as error:
            raise FileError(path, f"prompts.{key}: {error}") from None


class Defaults(MutableMapping[str, Any]):
    """A command's defaults by the configuration, which is read when the first is asked for."""

    def __init__(self, command: click.Command) -> None:
        self._options = [p.name for p in command.params if isinstance(p, click.Option)]
        self._values: dict[str, Any] | None = None

    def _read(self) -> dict[str, Any]:
        if self._values is None:
            found = read_settings()
            if "samplers" in found:
                found["samplers"] = ",".join(found["samplers"])  # as on the command line
            self._values = {key: found[key] for key in KEYS if key in found and key in self._options}
        return self._values

    def __getitem__(self, key: str) -> Any:
        return self._read()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __setitem__(self, key: str, value: Any) -> None:
        self._read()[key] = value

    def __delitem__(self, key: str) -> None:
        del self._read()[key]
