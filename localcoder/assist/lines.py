"""Lines of source text: indentation, definitions, imports; for any language that indents."""

from __future__ import annotations

import re

_DEFINITION = re.compile(
    r"\s*(?:@|(?:(?:export|default|public|private|protected|internal|static|final|abstract|async|pub(?:\([^)]*\))?|"
    r"override|virtual|inline|unsafe|const|open|sealed|data)\s+)*"
    r"(?:def|class|func|function|fn|fun|struct|enum|trait|impl|interface|module|namespace|type|object|sub)\b)|"
    r"\s*[\w:<>*&,\[\]\s]+\([^;]*\)[^;]*\{\s*$"
)
_CONTROL = re.compile(r"\s*(?:\}\s*)?(?:if|else|elif|for|while|switch|try|catch|with|do|return)\b")
_IMPORT = re.compile(
    r"(?:import|from|use|using|require|package|include|extern|mod|local \w+ = require)\b"
    r"|#\s*(?:include|import|define)\b|(?:const|let|var) .*\brequire\("
)

_MOST_LOOKED_AT = 200  # characters of a line, so that a machine-made one costs nothing


def split_lines(text: str) -> list[str]:
    """Lines with their "\\n"; no other character ends one."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def indentation(line: str) -> int:
    """Columns of white space before the text; a tab goes to the next multiple of 8."""
    head = line[: len(line) - len(line.lstrip(" \t"))]
    return len(head.expandtabs(8))


def is_blank(line: str) -> bool:
    return not line.strip()


def is_definition(line: str) -> bool:
    """Whether a line begins a function, class or the like."""
    line = line[:_MOST_LOOKED_AT]
    return _DEFINITION.match(line) is not None and _CONTROL.match(line) is None


def is_import(line: str) -> bool:
    """Whether a line at the top level brings in names from elsewhere."""
    return _IMPORT.match(line[:_MOST_LOOKED_AT]) is not None


def enclosing(lines: list[str]) -> list[int]:
    """Which lines lead to the last one: the nearest line above that is indented less, the nearest above that one, …

    Returns:
        Indices into `lines`, in order.
    """
    last = len(lines) - 1
    while last > 0 and is_blank(lines[last]) and not lines[last]:
        last -= 1  # an empty line says nothing about the depth
    depth = indentation(lines[last]) if lines else 0
    if lines and last < len(lines) - 1:
        depth += 1  # what follows a line may be within it
        last += 1
    found = []
    for i in range(last - 1, -1, -1):
        if not is_blank(lines[i]) and indentation(lines[i]) < depth and lines[i].lstrip()[0] not in ")]}":
            found.append(i)
            depth = indentation(lines[i])
            if depth == 0:
                break
    return found[::-1]
