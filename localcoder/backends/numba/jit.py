"""How kernels are compiled: options, the cache of machine code, and saying that a compilation is under way."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding as llvm
import numba
from numba.core import event

F = TypeVar("F", bound=Callable[..., Any])

# No fast-math: additions happen in the order in which they are written, so one token and many, one thread and many
# give the same bits, and NaN stays NaN. Where several lanes are wanted, `simd` says so.
OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": False}


def kernel(function: F) -> F:
    """Compiles `function` at its first call and keeps the machine code for later processes."""
    if numba.config.DISABLE_JIT:
        return function
    with _cache_folder_set():
        return numba.njit(cache=True, **OPTIONS)(function)


def host_description() -> str:
    """The compiler and the CPU it compiles for."""
    return f"numba {numba.__version__} for {llvm.get_host_cpu_name()}"


@contextlib.contextmanager
def _cache_folder_set() -> Iterator[None]:
    """numba asks for its cache folder when a function is decorated; other users of numba keep theirs."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache_folder())
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


@cache
def cache_folder() -> Path:
    """NUMBA_CACHE_DIR, else the user's cache folder, else one that lasts as long as the process.

    numba notices a change in a kernel's own file only, so the folder's name carries a digest of every source file that
    goes into the kernels.
    """
    given = numba.config.CACHE_DIR
    name = f"kernels-{_source_digest()}"
    for root in ([Path(given)] if given else []) + [_user_cache_root()]:
        folder = root / "localcoder" / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    folder = Path(tempfile.mkdtemp(prefix="localcoder-kernels-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _user_cache_root() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _source_digest() -> str:
    package = Path(__file__).parent
    quants = package.parents[1] / "quants"
    digest = hashlib.sha256()
    for path in sorted([*package.glob("*.py"), *quants.glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class _Announcer(event.Listener):  # type: ignore[misc]
    """Shows a line on the terminal from the first compilation until `stop`."""

    def __init__(self) -> None:
        self._status: Any = None

    def on_start(self, event: Any) -> None:
        if self._status is None:
            from rich.console import Console

            self._status = Console(stderr=True).status("compiling kernels (once) …")
            self._status.start()

    def on_end(self, event: Any) -> None:
        pass

    def stop(self) -> None:
        if self._status is not None:
            self._status.stop()


@contextlib.contextmanager
def compilation_shown() -> Iterator[None]:
    """While the body compiles kernels, says so on a terminal's stderr."""
    if not sys.stderr.isatty():
        yield
        return
    announcer = _Announcer()
    with event.install_listener("numba:compile", announcer):
        try:
            yield
        finally:
            announcer.stop()
