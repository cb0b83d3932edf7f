"""`localcoder doctor`: what is wrong with a model file, in plain words, and a repaired copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from localcoder.cli.common import MODEL_FILE, echo_json, json_option, step_progress
from localcoder.errors import printable

if TYPE_CHECKING:
    from localcoder.faults import Fault

EXIT_FINDINGS = 1
_MAX_SHOWN = 60  # characters of a new value


@click.command()
@click.argument("file", metavar="FILE.gguf", type=MODEL_FILE)
@click.option(
    "--repair", type=click.Path(path_type=Path), metavar="OUT.gguf",
    help="Write a copy in which every finding that can be is set right. No weight changes.",
)  # fmt: skip
@click.option(
    "--permute-qk",
    is_flag=True,
    help="With --repair: also bring the rows of Q and K into GGUF's order, if found wrong.",
)
@json_option
@click.pass_context
def doctor(ctx: click.Context, file: Path, repair: Path | None, permute_qk: bool, as_json: bool) -> None:
    """Find and repair what makes a model file talk nonsense.

    Looks at tokenizer, RoPE and template metadata and at the weights. Exit code: 0 healthy, or everything repaired;
    1 something is wrong (still); 2 the file cannot be read.
    """
    from localcoder.files.gguf_reader import GGUFFile
    from localcoder.model.doctor import diagnose, write_repaired

    if permute_qk and not repair:
        raise click.UsageError("--permute-qk is for --repair")
    with GGUFFile.open(file) as opened:
        with step_progress("look") as progress:
            diagnosis = diagnose(opened, progress)
        permute = permute_qk and diagnosis.is_in_checkpoint_order
        if repair:
            with step_progress("repair") as progress:
                write_repaired(opened, diagnosis, repair, permute=permute, progress=progress)
    left = diagnosis.findings
    if repair:
        left = tuple(fault for fault in diagnosis.left if not (permute and fault.rule == "rope-layout"))
    if as_json:
        described = {
            "file": str(file),
            "healthy": not diagnosis.findings,
            "findings": [_described(fault) for fault in diagnosis.findings],
            "remarks": [_described(fault) for fault in diagnosis.remarks],
            "repaired": str(repair) if repair else None,
            "left": [_described(fault) for fault in left],
        }
        echo_json(described)
    else:
        for line in _lines(file, diagnosis.findings, diagnosis.remarks, repair, left):
            click.echo(line)
    if left:
        ctx.exit(EXIT_FINDINGS)


def _described(fault: Fault) -> dict[str, Any]:
    return {
        "rule": fault.rule,
        "problem": fault.problem,
        "harm": fault.harm,
        "repairable": _is_repairable(fault),
        "repair": _repair_of(fault),
    }


def _is_repairable(fault: Fault) -> bool:
    return bool(fault.changes) or fault.rule == "rope-layout"


def _repair_of(fault: Fault) -> str | None:
    """What --repair does about it."""
    if fault.rule == "rope-layout":
        return "move the rows of Q and K, if --permute-qk is given"
    if not fault.changes:
        return None
    return "; ".join(
        f"remove {key}" if value is None else f"{key} = {_shown(value)}" for key, value in fault.changes.items()
    )


def _shown(value: Any) -> str:
    if isinstance(value, (list, np.ndarray)):
        return f"{len(value)} values"
    text = f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
    return printable(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…")


def _lines(
    file: Path, findings: Sequence[Fault], remarks: Sequence[Fault], repair: Path | None, left: Sequence[Fault]
) -> Iterator[str]:
    n = len(findings)
    yield f"{file}: {'healthy' if not n else '1 finding' if n == 1 else f'{n} findings'}"
    for fault in findings:
        yield ""
        yield f"{fault.rule}: {printable(fault.problem)}"
        yield f"  what comes of it: {fault.harm}"
        yield f"  repair: {_repair_of(fault) or 'none'}"
    if remarks:
        yield ""
        yield "of no harm to localcoder and other programs of today:"
        for fault in remarks:
            yield f"  {fault.rule}: {printable(fault.problem)} (repair: {_repair_of(fault)})"
    if repair:
        yield ""
        yield f"wrote {repair}" + (f"; {len(left)} of the findings left" if left else "")
    elif any(_is_repairable(fault) for fault in findings):
        yield ""
        yield "`localcoder doctor FILE.gguf --repair OUT.gguf` writes a repaired copy; no weight changes"
