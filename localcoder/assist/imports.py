"""Which files of a repository a file imports, told from its import lines, for the common ways to write them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

_TARGETS = re.compile(
    r"^\s*from\s+(?P<module>[.\w]+)\s+import\s+\(?(?P<names>[\w ,*]+)"  # Python
    r"|^\s*import\s+(?P<modules>[\w.]+(?:\s+as\s+\w+)?(?:\s*,\s*[\w.]+(?:\s+as\s+\w+)?)*)\s*;?\s*$"  # Python, Java
    r"|^\s*(?:import|export)\b[^'\"\n]*['\"](?P<script>[^'\"\n]+)['\"]"  # JavaScript, Go
    r"|\brequire(?:_relative)?\s*\(?\s*['\"](?P<required>[^'\"\n]+)['\"]"  # JavaScript, Ruby, Lua, PHP
    r"|^\s*#\s*include\s+\"(?P<header>[^\"\n]+)\""  # C
    r"|^\s*(?:pub\s+)?(?:mod|use)\s+(?P<rust>[\w:]+)"  # Rust
    r"|^\s*using\s+(?P<using>[\w.]+)\s*;",  # C#
    re.MULTILINE,
)
_PACKAGE_FILES = ("__init__", "index", "mod", "main", "lib")
_SKIPPED = frozenset(("crate", "self", "super"))


def _stem(path: str) -> str:
    """A path without its extension; that of a file which stands for its folder is the folder's."""
    stem = str(PurePosixPath(path).with_suffix(""))
    folder, _, name = stem.rpartition("/")
    return folder if name in _PACKAGE_FILES and folder else stem


class ImportGraph:
    """Finds files by what import lines call them.

    Args:
        paths: all files, relative to the root, with "/".
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths: dict[str, str] = {}
        self._by_suffix: dict[str, list[str]] = {}
        for path in paths:
            stem = _stem(path)
            self._paths.setdefault(stem, path)
            parts = stem.split("/")
            for i in range(len(parts)):
                self._by_suffix.setdefault("/".join(parts[i:]), []).append(path)

    def imports_of(self, path: str, text: str) -> list[str]:
        """The files that `text`, at `path`, imports, without itself; each once, in order."""
        found: dict[str, None] = {}
        for match in _TARGETS.finditer(text):
            for target in _spelled(match):
                other = self._find(path, target)
                if other is not None and other != path:
                    found[other] = None
        return list(found)

    def _find(self, path: str, target: str) -> str | None:
        folder = posixpath.dirname(path)
        if target.startswith("."):
            found = self._paths.get(_stem(posixpath.normpath(posixpath.join(folder, target))))
            return found or self._paths.get(posixpath.normpath(posixpath.join(folder, target)))
        near = self._paths.get(posixpath.normpath(posixpath.join(folder, _stem(target))))
        if near is not None:
            return near
        parts = [part for part in target.split("/") if part not in _SKIPPED]
        for n in range(len(parts), max(len(parts) - 2, 0), -1):
            for name in ("/".join(parts[:n]), _stem("/".join(parts[:n]))):
                places = self._by_suffix.get(name, [])
                if len(places) == 1 or (places and n > 1):
                    return min(places, key=len)
        return None


def _spelled(match: re.Match[str]) -> list[str]:
    """The targets of an import line as paths; relative ones begin with a dot."""
    if match["module"]:
        module = match["module"]
        n_dots = len(module) - len(module.lstrip("."))
        up = "./" + "../" * (n_dots - 1) if n_dots else ""
        base = up + module.lstrip(".").replace(".", "/")
        names = [name.split()[0] for name in match["names"].split(",") if name.strip() and name.strip() != "*"]
        return [*(posixpath.join(base, name) for name in names), *([base] if module.strip(".") else [])]
    if match["modules"]:
        return [name.split()[0].replace(".", "/") for name in match["modules"].split(",")]
    for group, separator in (("rust", "::"), ("using", ".")):
        if match[group]:
            return [match[group].strip(":").replace(separator, "/")]
    return [match["script"] or match["required"] or match["header"]]
