"""`localcoder inspect`: what a GGUF file says about itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localcoder.cli.common import MODEL_FILE, json_option
from localcoder.errors import printable

if TYPE_CHECKING:
    from localcoder.files.gguf_reader import GGUFFile, TensorTotals

N_SHOWN = 4  # entries of a longer array
N_SHOWN_CHARACTERS = 100  # of a longer string, in text


@click.command()
@click.argument("file", type=MODEL_FILE)
@json_option
def inspect(file: Path, as_json: bool) -> None:
    """Show what is in a GGUF file.

    Its metadata, its tensors with types, shapes and sizes, and the bits per weight.
    """
    from localcoder.files.gguf_reader import GGUFFile

    with GGUFFile.open(file) as opened:
        described = describe(opened)
    if as_json:
        click.echo(json.dumps(described, indent=1))
    else:
        for line in _lines(described):
            click.echo(line)


def describe(file: GGUFFile) -> dict[str, Any]:
    """What `--json` prints. A long array is {"array": element type, "length": n, "first": its first entries}."""
    summary = file.summary()
    return {
        "file": str(file.path),
        "file_bytes": summary.file_bytes,
        "version": file.version,
        "metadata": {key: _summary(value) for key, value in file.metadata.items()},
        "tensors": [
            {"name": t.name, "type": t.qtype.name, "shape": list(t.shape), "bytes": t.nbytes}
            for t in file.tensors.values()
        ],
        "types": {name: _counted(totals) for name, totals in summary.by_type.items()},
        "totals": _counted(summary.total),
    }


def _counted(totals: TensorTotals) -> dict[str, int | float]:
    return {
        "tensors": totals.n_tensors,
        "parameters": totals.n_params,
        "bytes": totals.n_bytes,
        "bits_per_weight": totals.bits_per_weight,
    }


def _summary(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (bool, int, float, str)):
        return value
    element = "string" if isinstance(value, list) else str(value.dtype)
    first = [_summary(x) for x in (value[:N_SHOWN] if isinstance(value, list) else value[:N_SHOWN].tolist())]
    return first if len(first) == len(value) else {"array": element, "length": len(value), "first": first}


def _shown(value: Any) -> str:
    if isinstance(value, str):
        whole = len(value) <= N_SHOWN_CHARACTERS
        return printable(value if whole else f"{value[:N_SHOWN_CHARACTERS]}… ({len(value)} characters)")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        entries = ", ".join(_entry(x) for x in value["first"])
        return f"{value['length']} × {value['array']}: {entries}, …"
    if isinstance(value, list):
        return f"[{', '.join(_entry(x) for x in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _entry(value: Any) -> str:
    return '"' + _shown(value).replace('"', '\\"') + '"' if isinstance(value, str) else _shown(value)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 1 << 30 else f"{n_bytes / 2**20:.2f} MiB"


def _lines(described: dict[str, Any]) -> Iterator[str]:
    metadata, tensors, totals = described["metadata"], described["tensors"], described["totals"]
    yield f"{printable(described['file'])}: GGUF version {described['version']}"
    yield ""
    width = max(map(len, metadata), default=0)
    for key, value in metadata.items():
        yield f"{printable(key):{width}}  {_shown(value)}"
    if not tensors:
        return
    yield ""
    width = max(len(tensor["name"]) for tensor in tensors)
    for tensor in tensors:
        shape = " × ".join(map(str, tensor["shape"]))
        yield f"{printable(tensor['name']):{width}}  {tensor['type']:7} {shape:>15} {tensor['bytes']:>13,} bytes"
    yield ""
    for name, entry in [*described["types"].items(), ("total", totals)]:
        counted = f"{entry['tensors']:5} tensors {entry['parameters']:>15,} parameters"
        yield f"{name:7} {counted} {_size(entry['bytes']):>11} {entry['bits_per_weight']:6.2f} bits per weight"
