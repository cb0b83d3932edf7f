"""`localcoder compare`: how far the weights of one file are from another's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localcoder.cli.common import MODEL_FILE, echo_json, json_option, step_progress
from localcoder.errors import printable

if TYPE_CHECKING:
    from localcoder.files.gguf_reader import GGUFFile
    from localcoder.measure.compare import TableDifference, TensorDifference

N_NAMES = 8  # shown of a list of missing tensors


@click.command()
@click.argument("a", metavar="A.gguf", type=MODEL_FILE)
@click.argument("b", metavar="B.gguf", type=MODEL_FILE)
@json_option
def compare(a: Path, b: Path, as_json: bool) -> None:
    """Compare the weights of two GGUF files, tensor by tensor.

    A is the reference: the error of a tensor is the sum of (a - b)² over the sum of a².
    """
    from localcoder.files.gguf_reader import GGUFFile
    from localcoder.measure.compare import compare_tables

    with GGUFFile.open(a) as file_a, GGUFFile.open(b) as file_b:
        tables = compare_tables(file_a, file_b)
        tensors = list(_with_progress(file_a, file_b))
        described = _describe(file_a, file_b, tables, tensors)
    if as_json:
        echo_json(described)
    else:
        for line in _lines(described):
            click.echo(line)


def _with_progress(a: GGUFFile, b: GGUFFile) -> Iterator[TensorDifference]:
    from localcoder.measure.compare import compare_tensors

    with step_progress("compare") as progress:
        for n_done, difference in enumerate(compare_tensors(a, b), 1):
            progress(n_done, len(a.tensors), difference.name)
            yield difference


def _describe(a: GGUFFile, b: GGUFFile, tables: TableDifference, tensors: Sequence[TensorDifference]) -> dict[str, Any]:
    """What `--json` prints."""
    from localcoder.measure.compare import relative_error

    quantized = [t for t in tensors if t.is_quantized]
    return {
        "a": {"file": str(a.path), "bytes": a.summary().file_bytes},
        "b": {"file": str(b.path), "bytes": b.summary().file_bytes},
        "relative_error": relative_error(tensors),
        "relative_error_quantized": relative_error(quantized),
        "n_quantized": len(quantized),
        "bits_per_weight_a": a.summary().total.bits_per_weight,
        "bits_per_weight_b": b.summary().total.bits_per_weight,
        **asdict(tables),
        "tensors": [{**asdict(t), "relative_error": t.relative_error} for t in tensors],
    }


def _lines(described: dict[str, Any]) -> Iterator[str]:
    tensors = described["tensors"]
    width = max(len(printable(t["name"])) for t in tensors)
    yield f"{'tensor':{width}} {'A':>8} {'B':>8} {'bytes A':>15} {'bytes B':>15}  relative error"
    for t in tensors:
        sizes = f"{t['bytes_a']:>15,} {t['bytes_b']:>15,}"
        yield f"{printable(t['name']):{width}} {t['type_a']:>8} {t['type_b']:>8} {sizes}  {_shown(t['relative_error'])}"
    for key, what in (("only_in_a", "only in A"), ("only_in_b", "only in B")):
        if described[key]:
            yield f"{what}: {_names(described[key])}"
    for m in described["shape_mismatch"]:
        yield f"another shape: {printable(m['name'])}: {list(m['shape_a'])} in A, {list(m['shape_b'])} in B"
    sizes = f"A {described['a']['bytes']:,} bytes, B {described['b']['bytes']:,} bytes"
    yield f"all {len(tensors)} tensors: relative error {_shown(described['relative_error'])} ({sizes})"
    if described["n_quantized"]:
        n, error = described["n_quantized"], _shown(described["relative_error_quantized"])
        yield f"the {n} quantized tensors: relative error {error}"


def _names(names: Sequence[str]) -> str:
    rest = f" and {len(names) - N_NAMES} more" if len(names) > N_NAMES else ""
    return ", ".join(printable(name) for name in names[:N_NAMES]) + rest


def _shown(error: float | None) -> str:
    return "not a number" if error is None else f"{error:.4e}" if error else "0"
