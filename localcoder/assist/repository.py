"""Files of a repository that a model should see before it completes one of them, and why each of them.

Nothing leaves the folder: links are not followed, and what `.gitignore` names, secrets, binaries and huge files are not
even read.
"""

from __future__ import annotations

import contextlib
import fnmatch
import math
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pathspec

from localcoder.assist.imports import ImportGraph
from localcoder.errors import FileError

_FAMILIES = (  # languages whose files import each other
    (".py", ".pyi", ".pyx"),
    (".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".cu", ".cuh", ".m", ".mm"),
    (".js", ".jsx", ".ts", ".tsx", ".mjs", ".cjs", ".vue", ".svelte"),
    (".java", ".kt", ".kts", ".scala", ".groovy"),
    (".cs", ".fs", ".vb"),
    (".sh", ".bash", ".zsh"),
)
_SECRETS = (
    ".env .env.* *.env *.pem *.key *.p12 *.pfx *.jks *.keystore *.kdbx *.ppk *.asc *.gpg id_rsa* id_dsa* id_ecdsa* "
    "id_ed25519* .netrc _netrc .npmrc .pypirc .htpasswd .git-credentials *credentials* *secret* *.tfstate *.tfstate.* "
    "*.tfvars *password* *token*.json"
)
_SECRET_NAMES = re.compile("|".join(fnmatch.translate(name) for name in _SECRETS.split()), re.IGNORECASE)
_SECRET_TEXT = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b")
_SKIPPED_FOLDERS = frozenset(("node_modules", "__pycache__", "venv", "site-packages", "dist", "build", "target"))
_MOST_BYTES = 200_000  # of one file
_MOST_FILES = 5_000  # of one repository
_MOST_CHOSEN = 100
_WORDS = re.compile(r"[A-Za-z_]\w{3,}")
_GIT_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True)
class Related:
    """A file that belongs into the prompt.

    Attributes:
        path: relative to the repository, with "/".
        reasons: why, in words.
        score: how much it matters, for comparing files of one repository.
    """

    path: str
    text: str
    reasons: tuple[str, ...]
    score: float


def find_related(root: Path, file: Path, text: str, *, most_chars: int) -> list[Related]:
    """The files that help to complete `file`, in dependency order, those that matter most last.

    Args:
        root: the repository's folder.
        file: a file in it; its text is given, so that it may be newer than the file.
        most_chars: about how much text is wanted; the files that matter less are left out.

    Raises:
        FileError: `root` is no folder, or `file` is not in it.
    """
    if not root.is_dir():
        raise FileError(root, "is no folder; expected the repository's")
    try:
        path = file.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        raise FileError(file, f"is not in {root}") from None
    texts = {name: content for name in _source_files(root, path) if (content := _read(root / name)) is not None}
    texts.pop(path, None)
    graph = ImportGraph([*texts, path])
    imports = {name: graph.imports_of(name, content) for name, content in texts.items()}
    imports[path] = graph.imports_of(path, text)
    scored = _score(path, text, texts, imports, _recent_changes(root))
    chosen: dict[str, Related] = {}
    n_chars = 0
    for related in sorted(scored, key=lambda r: (-r.score, r.path)):
        if n_chars + len(related.text) <= most_chars and len(chosen) < _MOST_CHOSEN:
            chosen[related.path] = related
            n_chars += len(related.text)
    return _in_order(chosen, imports)


def _source_files(root: Path, path: str) -> Iterator[str]:
    """Paths of files in the same family of languages that nothing speaks against, nearest folders first."""
    suffix = PurePosixPath(path).suffix.lower()
    wanted = next((family for family in _FAMILIES if suffix in family), (suffix,))
    specs: dict[str, pathspec.GitIgnoreSpec] = {}
    n_found = 0
    for folder, folders, names in os.walk(root):
        here = Path(folder).relative_to(root).as_posix()
        here = "" if here == "." else here + "/"
        if ".gitignore" in names and (content := _read(Path(folder) / ".gitignore")) is not None:
            specs[here] = pathspec.GitIgnoreSpec.from_lines(content.splitlines())
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name not in _SKIPPED_FOLDERS and not _is_ignored(specs, f"{here}{name}/")
        )
        for name in sorted(names):
            if PurePosixPath(name).suffix.lower() not in wanted or _SECRET_NAMES.match(name):
                continue
            if not _is_ignored(specs, here + name) and not (Path(folder) / name).is_symlink():
                yield here + name
                n_found += 1
        if n_found >= _MOST_FILES:
            return


def _is_ignored(specs: dict[str, pathspec.GitIgnoreSpec], path: str) -> bool:
    """Whether the nearest `.gitignore` that says something about a path ignores it."""
    for folder in sorted(specs, key=len, reverse=True):
        if path.startswith(folder):
            said = specs[folder].check_file(path[len(folder) :]).include
            if said is not None:
                return said
    return False


def _read(path: Path) -> str | None:
    """A file's text, None if it is huge, no text, or holds a secret."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.stat().st_size <= _MOST_BYTES:
            text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
            if text.strip() and "\0" not in text and not _SECRET_TEXT.search(text):
                return text
    return None


def _recent_changes(root: Path) -> frozenset[str]:
    """Files of the last commits, by git; none where there is no git. Nothing that the repository configures is run."""
    command = ["git", "-C", str(root), "-c", "log.showSignature=false", "--no-pager", "log", "-n", "10"]
    command += ["--name-only", "--relative", "--no-ext-diff", "--no-textconv", "--format=", "-z"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, timeout=_GIT_TIMEOUT, check=True, stdin=subprocess.DEVNULL)
        return frozenset(name.strip() for name in done.stdout.decode(errors="replace").split("\0"))
    return frozenset()


def _score(
    path: str, text: str, texts: dict[str, str], imports: dict[str, list[str]], recent: frozenset[str]
) -> Iterator[Related]:
    words = {name: set(_WORDS.findall(content)) for name, content in texts.items()}
    mine = set(_WORDS.findall(text))
    n_files_with = Counter(word for found in words.values() for word in found)
    weight = {word: math.log((1 + len(texts)) / n_files_with[word]) for word in mine if n_files_with[word]}
    total = sum(weight.values()) or 1.0
    folder = path.rpartition("/")[0]
    second = {other for name in imports[path] for other in imports.get(name, ())} - {path, *imports[path]}
    for name, content in texts.items():
        shared = sorted(words[name] & mine, key=lambda word: (-weight[word], word))
        likeness = sum(weight[word] for word in shared) / total
        found = [
            (name in imports[path], 8.0, "imported"),
            (name in second, 3.0, "imported by what is imported"),
            (path in imports[name], 2.0, "imports it"),
            (name.rpartition("/")[0] == folder, 1.0, "same folder"),
            (name in recent, 1.0, "changed lately"),
            (likeness >= 0.05, 10 * likeness, f"shares {', '.join(shared[:3])}"),
        ]
        reasons = tuple(reason for holds, _, reason in found if holds)
        if reasons:
            yield Related(name, content, reasons, sum(points for holds, points, _ in found if holds))


def _in_order(chosen: dict[str, Related], imports: dict[str, list[str]]) -> list[Related]:
    """Each file after those that it imports; else the lower score first."""
    ordered: dict[str, Related] = {}
    visiting: set[str] = set()

    def visit(name: str) -> None:
        if name in ordered or name in visiting:  # files may import each other
            return
        visiting.add(name)
        for other in imports[name]:
            if other in chosen:
                visit(other)
        ordered[name] = chosen[name]

    for related in sorted(chosen.values(), key=lambda r: (r.score, r.path)):
        visit(related.path)
    return list(ordered.values())
