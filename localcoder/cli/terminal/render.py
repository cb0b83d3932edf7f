"""An answer on a terminal, as it comes.

What comes is written at once, plain. When a line is complete it is written once more in the same place with colours:
the same characters, so nothing moves or flickers. Nothing above the current line is ever touched.
"""

from __future__ import annotations

import os
import re
import sys
from types import TracebackType
from typing import TYPE_CHECKING

from localcoder.cli.source import visible

if TYPE_CHECKING:
    from rich.text import Text
    from typing_extensions import Self

_FENCE = re.compile(r"\s*(`{3,}|~{3,})\s*([A-Za-z0-9_+#.-]*)[^`]*")
_INLINE = re.compile(r"`[^`]+`|\*\*[^*]+\*\*")
_TAB = " " * 4
_MOST_LINES = 200  # of a code block that tell how its next line is to be coloured
_THEME = "ansi_dark"


def is_plain() -> bool:
    """Whether text to stdout is to be left as it is: no terminal, a dumb one, or NO_COLOR."""
    return not sys.stdout.isatty() or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


class AnswerView:
    """Writes an answer to the terminal; a context manager, whose end ends the last line.

    Args:
        language: of the answer, if it is code as a whole. A line break at its start is left out: the terminal stands
            at the start of a line already.
    """

    def __init__(self, language: str | None = None) -> None:
        from rich.console import Console

        self._console = Console(highlight=False, markup=False, emoji=False)
        self._line = ""
        self._fence = ""  # that the code block at hand began with
        self._language = language or ""
        self._is_code = language is not None
        self._block: list[str] = []

    def feed(self, piece: str) -> None:
        """Writes a piece of the answer."""
        if self._is_code and not self._line and not self._block:
            piece = piece.removeprefix("\n")
        parts = visible(piece).replace("\t", _TAB).split("\n")
        for i, part in enumerate(parts):
            if i:
                self._end_line()
            self._write(part)
            self._line += part
        self._console.file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._line:
            self._end_line()
        self._console.file.flush()

    def _write(self, text: str) -> None:
        self._console.file.write(text)

    def _end_line(self) -> None:
        width, height = self._console.size
        n_rows = _rows(self._line, width)
        coloured = self._coloured(self._line)
        if self._line and n_rows <= height and not self._console.legacy_windows:
            self._write((f"\x1b[{n_rows - 1}A" if n_rows > 1 else "") + "\r")
            self._console.print(coloured, end="", soft_wrap=True)
        self._write("\n")
        self._line = ""

    def _coloured(self, line: str) -> Text:
        """A complete line with its colours; keeps track of where code blocks begin and end."""
        from rich.text import Text

        fence = _FENCE.fullmatch(line)
        if self._fence or self._is_code:
            if not self._is_code and line.strip() == self._fence:
                self._fence = ""
                return Text(line, "dim")
            self._block.append(line)
            return self._coloured_code()
        if fence:
            self._fence, self._language, self._block = fence[1], fence[2].lower(), []
            return Text(line, "dim")
        text = Text(line, "bold" if re.match(r"#{1,6} ", line) else "")
        for match in _INLINE.finditer(line):
            text.stylize("cyan" if match[0].startswith("`") else "bold", *match.span())
        return text

    def _coloured_code(self) -> Text:
        from rich.syntax import Syntax
        from rich.text import Text

        code = "\n".join(self._block[-_MOST_LINES:])
        lines = Syntax(code, self._language or "text", theme=_THEME).highlight(code).split("\n", allow_blank=True)
        last = self._block[-1]
        coloured = next((line for line in reversed(lines) if line.plain == last), None)
        return coloured if coloured is not None else Text(last)


def _rows(line: str, width: int) -> int:
    """How many rows of a terminal `line` takes."""
    from rich.cells import cell_len

    rows, column = 1, 0
    for character in line:
        n = cell_len(character)
        if column + n > width:
            rows, column = rows + 1, 0
        column += n
    return rows
