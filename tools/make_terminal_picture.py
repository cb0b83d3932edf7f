"""Draws `localcoder run` as it is on a terminal, for the README: tools/results/terminal.svg.

    python tools/make_terminal_picture.py

A real pseudo-terminal (tests/terminal_screen.py), the embedded model, and somebody who types. Needs POSIX, and pyte of
the extra `test`.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from rich import console, style, terminal_theme, text
from rich._export_format import CONSOLE_SVG_FORMAT

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from terminal_screen import COLUMNS, Terminal  # noqa: E402

PICTURE = ROOT / "tools" / "results" / "terminal.svg"
COMMAND = ("run", "--syntax", "python", "--max-tokens", "80")
PROMPT = "def read_lines(path):"
# Terminals have 16 colours, which pyte names its own way.
_ANSI = ("black", "red", "green", "brown", "blue", "magenta", "cyan", "white")
_NAMES = {name: f"color({number})" for number, name in enumerate(_ANSI)}
_NAMES |= {f"bright{name}": f"color({number + 8})" for number, name in enumerate(_ANSI)}
_THEME = terminal_theme.TerminalTheme(
    (30, 30, 36),
    (220, 220, 220),
    [
        *((42, 42, 50), (224, 108, 117), (152, 195, 121), (229, 192, 123)),
        *((97, 175, 239), (198, 120, 221), (86, 182, 194), (220, 220, 220)),
    ],
    [
        *((120, 120, 130), (240, 130, 138), (172, 215, 141), (245, 212, 143)),
        *((127, 195, 249), (214, 150, 235), (116, 204, 214), (250, 250, 250)),
    ],
)
_FONT_FACE = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)  # fonts from the network


def drive(home: str) -> Terminal:
    """A terminal on which a prompt was completed, and a command begun."""
    program = Path(sysconfig.get_path("scripts")) / "localcoder"

    def start(*args: object, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([str(program), *map(str, args)], cwd=home, **options)

    shown = Terminal(start, *COMMAND, LOCALCODER_HOME=home)
    shown.wait_for_prompt()
    shown.type(PROMPT + "\r")
    shown.wait_for("tokens/s")
    shown.wait_for_prompt()
    shown.type("/s\t")
    shown.wait_for("stats")
    shown.read_all()
    return shown


def draw(shown: Terminal) -> str:
    """The screen as SVG."""
    page = console.Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for row in range(1 + max(y for y, row in enumerate(shown.rows) if row)):
        line = text.Text(no_wrap=True)
        for column in range(COLUMNS):
            cell = shown.cells[row][column]
            line.append(
                cell.data,
                style.Style(
                    color=_colour(cell.fg),
                    bgcolor=_colour(cell.bg),
                    bold=cell.bold,
                    italic=cell.italics,
                    reverse=cell.reverse,
                ),
            )
        page.print(line)
    return page.export_svg(
        title=" ".join(("localcoder", *COMMAND)),
        theme=_THEME,
        code_format=_FONT_FACE.sub("", CONSOLE_SVG_FORMAT).replace("Fira Code, ", ""),
        unique_id="terminal",
    )


def _colour(name: str) -> str | None:
    return None if name == "default" else _NAMES.get(name, f"#{name}")


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        shown = drive(home)
        PICTURE.write_text(draw(shown), encoding="utf-8")
        shown.type("\x03\x04")
        shown.end()
    print(PICTURE.relative_to(ROOT))


if __name__ == "__main__":
    main()
