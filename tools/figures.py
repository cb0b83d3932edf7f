"""Tables of figures in `tools/results`, with the model and the machine that they are of."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from localcoder.measure.machine import this_machine


def machine() -> str:
    """The machine at hand, in words; with how busy it is: beside other work, times mean little."""
    found = this_machine()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{found.cpu}, {found.cores} cores, {found.system}, Python {platform.python_version()}{load}"


def write_table(
    path: Path, title: str, notes: Sequence[str], header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """A Markdown page of one table; the first column is text, the others are numbers."""
    lines = [f"# {title}", "", *notes, "", _line(header), _line(["---", *["---:"] * (len(header) - 1)])]
    path.write_text("\n".join([*lines, *map(_line, rows), ""]), encoding="utf-8")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
