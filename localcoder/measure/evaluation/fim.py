"""Filling holes: pieces of source files are left out, and a model writes them from what stands around them."""

from __future__ import annotations

import ast
import difflib
import math
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from localcoder.assist.hygiene import Scope
from localcoder.coder import Coder
from localcoder.errors import FileError, OptionError
from localcoder.session.infill import InfillRequest

Kind = Literal["line", "lines", "span"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SUFFIXES = frozenset(
    {
        ".py",
        ".pyi",
        ".c",
        ".h",
        ".cc",
        ".cpp",
        ".hpp",
        ".cs",
        ".java",
        ".kt",
        ".js",
        ".jsx",
        ".ts",
        ".tsx",
        ".go",
        ".rs",
    }
    | {".rb", ".php", ".sh", ".swift", ".scala", ".lua", ".pl", ".sql"}
)
MAX_TOKENS = 128
N_CTX = 4096
_MAX_FILE = 1 << 20  # bytes; larger files are data
_N_LINES = range(2, 9)
_N_CHARACTERS = range(8, 161)
_TRIES = 20  # at a hole in one file
_SCOPES: dict[Kind, Scope | None] = {"line": "line", "lines": None, "span": None}


@dataclass(frozen=True)
class Source:
    """A file's text."""

    name: str
    text: str

    @property
    def is_python(self) -> bool:
        return self.name.endswith(".py")


@dataclass(frozen=True)
class Hole:
    """`source.text[begin:end]` is left out."""

    kind: Kind
    source: Source
    begin: int
    end: int

    @property
    def truth(self) -> str:
        return self.source.text[self.begin : self.end]

    def request(self) -> InfillRequest:
        text = self.source.text
        return InfillRequest(text[: self.begin], text[self.end :], self.source.name, scope=_SCOPES[self.kind])


@dataclass(frozen=True)
class Filled:
    """A hole and what a model wrote into it.

    Attributes:
        is_exact: the same text, white space at both ends aside.
        similarity: 0 to 1: difflib's ratio of the two.
        parses: whether the file is valid with it; None where that is not known (languages other than Python).
    """

    hole: Hole
    answer: str
    is_exact: bool
    similarity: float
    parses: bool | None


def read_sources(folder: Path) -> list[Source]:
    """The source files in a folder (or one file), by name; hidden folders, large files and binaries are left out.

    Raises:
        FileError: there is none.
    """
    if not folder.exists():
        raise FileError(folder, "no such file or folder")
    sources = []
    for path in [folder] if folder.is_file() else _files(folder):
        try:
            data = path.read_bytes() if path.stat().st_size <= _MAX_FILE else b""
            text = data.decode("utf-8").replace("\r\n", "\n")
        except (OSError, UnicodeDecodeError):
            continue
        if text.strip() and "\0" not in text:
            sources.append(Source(path.name if path == folder else path.relative_to(folder).as_posix(), text))
    if not sources:
        raise FileError(folder, f"holds no source files (UTF-8, {', '.join(sorted(SUFFIXES))})")
    return sources


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield path


def make_holes(sources: Sequence[Source], n_each: int, seed: int) -> list[Hole]:
    """`n_each` holes of each kind, spread over the files.

    line: a line without its indentation; lines: two to eight whole lines; span: characters from anywhere to anywhere,
    over line ends, too. A hole holds more than white space, and its file goes on after it.

    Raises:
        OptionError: the files are too short.
    """
    chance = random.Random(seed)
    holes: list[Hole] = []
    for kind in KINDS:
        made: dict[tuple[str, tuple[int, int]], Hole] = {}
        for _ in range(n_each * _TRIES):
            if len(made) == n_each:
                break
            source = chance.choice(sources)
            place = _place(kind, source.text, chance)
            if place is not None:
                made[source.name, place] = Hole(kind, source, *place)
        if not made:
            raise OptionError(f"the files are too short for holes of the kind {kind}")
        holes += made.values()
    return holes


def _place(kind: Kind, text: str, chance: random.Random) -> tuple[int, int] | None:
    if kind == "span":
        begin = chance.randrange(len(text))
        end = begin + chance.choice(_N_CHARACTERS)
    else:
        lines = text.splitlines(keepends=True)
        first = chance.randrange(len(lines))
        n = 1 if kind == "line" else chance.choice(_N_LINES)
        begin = sum(map(len, lines[:first]))
        end = begin + len("".join(lines[first : first + n]).rstrip("\n"))
        if kind == "line":
            begin += len(lines[first]) - len(lines[first].lstrip(" \t"))
        elif first + n > len(lines):
            return None
    is_inside = begin < end < len(text) and text[end:].strip()
    return (begin, end) if is_inside and text[begin:end].strip() else None


def fill(coder: Coder, holes: Sequence[Hole]) -> Iterator[Filled]:
    """Yields each hole filled by the model, greedily, by the rules that `Coder.infill` always applies.

    Raises:
        ModelError: the model was not trained to infill.
    """
    valid = {source: _parses(source.text) for source in {hole.source for hole in holes if hole.source.is_python}}
    for hole in holes:
        answer = coder.start_infill(hole.request(), max_tokens=MAX_TOKENS).run().text
        truth, given = hole.truth.strip(), answer.strip()
        similarity = difflib.SequenceMatcher(None, truth, given, autojunk=False).ratio()
        text = hole.source.text
        parses = _parses(text[: hole.begin] + answer + text[hole.end :]) if valid.get(hole.source) else None
        yield Filled(hole, answer, truth == given, similarity, parses)


def _parses(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd escapes in texts
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


@dataclass(frozen=True)
class Figures:
    """Of all holes of a kind: shares, and the mean similarity. `parses` is of the `n_parsed` holes in valid Python."""

    kind: str
    n_holes: int
    exact_match: float
    edit_similarity: float
    n_parsed: int
    parses: float | None


def summarize(filled: Sequence[Filled]) -> list[Figures]:
    """The figures of each kind that occurs."""
    figures = []
    for kind in KINDS:
        found = [f for f in filled if f.hole.kind == kind]
        if found:
            parsed = [f.parses for f in found if f.parses is not None]
            exact = sum(f.is_exact for f in found) / len(found)
            similarity = math.fsum(f.similarity for f in found) / len(found)
            share = sum(parsed) / len(parsed) if parsed else None
            figures.append(Figures(kind, len(found), exact, similarity, len(parsed), share))
    return figures
