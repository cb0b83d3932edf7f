"""Finds and opens the C core. The header beside it tells cffi what is in it."""

from __future__ import annotations

import importlib.resources
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from localcoder.backends.base import InstructionSet
from localcoder.errors import BackendError

ABI_VERSION = 5  # of csrc/localcoder.h, as this package was written against
# Beside the package or, for an editable installation, where its compiled part was installed.
FOLDER = Path(str(importlib.resources.files("localcoder") / "_native"))
BEGIN, END = "/* cffi: begin */", "/* cffi: end */"


class Library(NamedTuple):
    """cffi's pair: `ffi` makes C values, `lib` has the functions and constants."""

    ffi: Any
    lib: Any


def library_path() -> Path:
    """Where the library lies when it has been built."""
    suffix = {"win32": "dll", "darwin": "dylib"}.get(sys.platform, "so")
    return FOLDER / f"liblocalcoder.{suffix}"


@cache
def load() -> Library:
    """Opens the library once.

    Raises:
        BackendError: it was not built, cannot be opened, or is of another version.
    """
    from cffi import FFI  # type: ignore[import-untyped]

    path = library_path()
    header = FOLDER / "localcoder.h"
    if not path.is_file() or not header.is_file():
        raise BackendError(f"the C core was not built when localcoder was installed ({path} is missing)")
    ffi = FFI()
    declarations = header.read_text(encoding="utf-8")
    ffi.cdef(declarations[declarations.index(BEGIN) : declarations.index(END)])
    try:
        lib = ffi.dlopen(str(path))
    except OSError as e:
        raise BackendError(f"the C core cannot be opened: {e}") from None
    version = lib.lc_abi_version()
    if version != ABI_VERSION:
        raise BackendError(f"{path} has interface {version}, expected {ABI_VERSION}: build it again")
    return Library(ffi, lib)


def availability() -> str | None:
    """Why the C core cannot be used, or None if it can."""
    try:
        load()
    except (BackendError, ImportError) as e:
        return str(e)
    return None


def instruction_sets(wanted: str | None = None) -> list[InstructionSet]:
    """Those that the library knows, best first.

    Args:
        wanted: the one to use; default: LOCALCODER_CPU, else the best that this machine has.

    Raises:
        BackendError: `wanted` is unknown or cannot run here; the message names those that can.
    """
    ffi, lib = load()
    wanted = wanted or os.environ.get("LOCALCODER_CPU") or None
    reasons: dict[str, str | None] = {}
    for i in range(lib.lc_isa_count()):
        missing = lib.lc_isa_missing(i)
        reasons[ffi.string(lib.lc_isa_name(i)).decode()] = ffi.string(missing).decode() if missing else None
    usable = [name for name, reason in reasons.items() if reason is None]
    if wanted is not None and wanted not in usable:
        problem = (
            f"instruction set {wanted} (LOCALCODER_CPU): {reasons[wanted]}"
            if wanted in reasons
            else (f"unknown instruction set {wanted!r} (LOCALCODER_CPU)")
        )
        raise BackendError(f"{problem}; usable here: {', '.join(usable)}")
    used = wanted or usable[0]
    return [InstructionSet(name, reason is None, reason, name == used) for name, reason in reasons.items()]
