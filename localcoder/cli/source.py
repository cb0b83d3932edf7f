"""Source files as the assistant's commands read and change them: a place in a file, its line ends, a diff."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from localcoder.assist.lines import split_lines
from localcoder.cli.common import decode_utf8
from localcoder.errors import FileError, OptionError, OutputError
from localcoder.files.atomic import write_file

_PLACE = re.compile(r"(?P<file>.*?):(?P<line>[0-9]{1,9})(?::(?P<column>[0-9]{1,9}))?", re.DOTALL)
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Source:
    """A text file as it was read.

    Attributes:
        path: None: stdin.
        text: with "\\n" line ends, without a byte order mark.
        data: the file's bytes.
    """

    path: Path | None
    text: str
    data: bytes

    @property
    def name(self) -> str:
        return "stdin" if self.path is None else str(self.path)

    def with_text(self, text: str) -> bytes:
        """The bytes of the file if it held `text`, in its own line ends."""
        bom = _BOM if self.data.startswith(_BOM) else b""
        newline = "\r\n" if b"\r\n" in self.data else "\n"
        return bom + text.replace("\n", newline).encode()

    def replace(self, text: str) -> None:
        """Writes `text` into the file.

        Raises:
            OutputError: it changed since it was read, or cannot be written. It is untouched then.
        """
        assert self.path is not None
        try:
            now = self.path.read_bytes()
        except OSError as error:
            raise OutputError(self.path, f"cannot be read again: {error.strerror or error}") from None
        if now != self.data:
            raise OutputError(self.path, "changed while the model was writing; nothing was written, try again")
        write_file(self.path, self.with_text(text))


def read_source(path: Path | None) -> Source:
    """A UTF-8 text file, or stdin for None.

    Raises:
        FileError, OptionError: it cannot be read, or is no text.
    """
    if path is None:
        data = sys.stdin.buffer.read()
    else:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise FileError(path, (error.strerror or str(error)).lower()) from None
        except ValueError as error:  # a NUL in the name
            raise FileError(path, str(error)) from None
    source = Source(path, "", data)
    text = decode_utf8(data, source.name)
    if "\0" in text:
        raise OptionError(f"{source.name}: not a text file (it holds a NUL byte)")
    return Source(path, text.replace("\r\n", "\n"), data)


def split_place(place: str) -> tuple[Path | None, int, int | None]:
    """FILE:LINE[:COLUMN], taken apart; without FILE it is stdin.

    Raises:
        UsageError: it is written in another way.
    """
    match = _PLACE.fullmatch(place)
    if not match:
        raise click.UsageError(f"{place!r} names no place; expected FILE:LINE or FILE:LINE:COLUMN, counted from 1")
    path = Path(match["file"]) if match["file"] else None
    return path, int(match["line"]), int(match["column"]) if match["column"] else None


def offset_of(source: Source, line: int, column: int | None) -> int:
    """Offset in the text of a line and a column, both counted from 1; without a column, of the line's end.

    Raises:
        OptionError: there is no such place.
    """
    lines = source.text.split("\n")
    if not 1 <= line <= len(lines):
        raise OptionError(f"{source.name}: no line {line}; it has {len(lines)}")
    n = len(lines[line - 1])
    if column is None:
        column = n + 1
    if not 1 <= column <= n + 1:
        raise OptionError(f"{source.name}: no column {column} in line {line}; expected 1 to {n + 1}")
    return sum(len(text) + 1 for text in lines[: line - 1]) + column - 1


def unified_diff(source: Source, text: str) -> Iterator[str]:
    """What changes from the file to `text`, line by line; a last line without an end is said to have none."""
    before, after = split_lines(source.text), split_lines(text)
    for line in difflib.unified_diff(before, after, source.name, source.name):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def echo_diff(source: Source, text: str) -> None:
    """Prints what changes from the file to `text` as a unified diff, in colour on a terminal."""
    for line in unified_diff(source, text):
        colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[0])
        click.echo(click.style(visible(line.removesuffix("\n")), fg=colour))


def visible(text: str) -> str:
    """Text without the control characters that could drive a terminal."""
    return "".join(
        c if (c >= " " and not "\x7f" <= c < "\xa0") or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
