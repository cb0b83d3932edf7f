"""Inside the package a room imports only rooms with a smaller number, or itself."""

from __future__ import annotations

import ast
from pathlib import Path

import localcoder

ROOMS = {
    "errors": 0,
    "version": 0,
    "faults": 1,
    "quants": 1,
    "files": 2,
    "tokenizer": 2,
    "assist": 3,
    "backends": 3,
    "convert": 4,
    "model": 4,
    "store": 5,
    "session": 6,
    "coder": 7,
    "async_coder": 8,
    "measure": 8,
    "server": 9,
    "cli": 9,
    "compat": 9,
    "__init__": 10,
    "__main__": 10,
}
PACKAGE = Path(localcoder.__file__).parent


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name == "localcoder" or name.startswith("localcoder.")}


def test_imports_run_downwards():
    upward = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        assert room in ROOMS, f"{path}: a room that the layering does not know"
        for name in imports_of(path):
            other = room_of(name)
            if other != room and ROOMS[other] >= ROOMS[room]:
                upward.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not upward


def test_convert_never_imports_a_model():
    for path in (PACKAGE / "convert").rglob("*.py"):
        assert not any(room_of(name) == "model" for name in imports_of(path)), path
