"""The build backend of this project: scikit-build-core, and a C compiler where the machine has none.

`pip` calls these functions (PEP 517). They choose who compiles the C core:

1. the compiler that the environment variable CC names, else a working `cc`, `gcc` or `clang`;
2. else the one inside the package `ziglang`, which is then a build requirement like any other;
3. else nobody: the wheel holds no C core, and numba runs everything, more slowly.

A build that fails in spite of its compiler ends like the third (an override in pyproject.toml).
`pip install . -C wheel.cmake=false` asks for the third on purpose.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from scikit_build_core import build as scikit
from scikit_build_core.build import build_sdist, get_requires_for_build_sdist

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]

Settings = dict[str, "str | list[str]"] | None

ZIG_REQUIREMENT = "ziglang>=0.15"

# The oldest systems that libraries compiled by Zig run on.
GLIBC = (2, 17)
MACOS = (11, 0)

# What a compiler must manage: the GNU attributes of our sources, the C library's headers, threads, a shared library.
PROBE = """
#include <stdint.h>
#include <stdio.h>
#ifndef _WIN32
#include <pthread.h>
#endif
__attribute__((visibility("default"), aligned(64))) uint64_t probe = sizeof(FILE);
"""


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return _requirements(scikit.get_requires_for_build_wheel, config_settings)


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return _requirements(scikit.get_requires_for_build_editable, config_settings)


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    with _compiler(config_settings) as settings:
        return scikit.build_wheel(wheel_directory, settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    with _compiler(config_settings) as settings:
        return scikit.build_editable(wheel_directory, settings, metadata_directory)


def _requirements(ask: Callable[[Settings], list[str]], settings: Settings) -> list[str]:
    needs_zig = _wants_c_core(settings) and not _find_compiler()
    if needs_zig and not _zig_target():
        return ask(_without_c_core(settings))
    with _environment(_generator()):
        return [*ask(settings), *([ZIG_REQUIREMENT] if needs_zig else [])]


@contextlib.contextmanager
def _compiler(settings: Settings) -> Iterator[Settings]:
    """The environment in which CMake finds the compiler; yields the settings to build with."""
    if not _wants_c_core(settings):
        yield settings
    elif compiler := _find_compiler():
        with _environment({**_generator(), "CC": compiler}):
            yield settings
    elif zig := _find_zig():
        # A named target: for an unnamed one Zig compiles for this very CPU and reads this machine's own headers.
        # RC is the resource compiler that CMake insists on where the target is Windows.
        compilers = {"CC": f'"{zig}" cc -target {_zig_target()}', "RC": f'"{zig}" rc'}
        with (
            tempfile.TemporaryDirectory(prefix="localcoder-zig-") as cache,
            _environment({**_generator(), **compilers, "ZIG_GLOBAL_CACHE_DIR": cache}),
        ):
            yield settings
    else:
        print("no C compiler: building without the C core, numba will run everything", file=sys.stderr)
        yield _without_c_core(settings)


def _wants_c_core(settings: Settings) -> bool:
    asked = (settings or {}).get("wheel.cmake", os.environ.get("SKBUILD_WHEEL_CMAKE", "true"))
    return str(asked).lower() not in ("false", "0", "off", "no")


def _without_c_core(settings: Settings) -> Settings:
    return {**(settings or {}), "wheel.cmake": "false"}


def _find_compiler() -> str | None:
    """What CC should say: what it says, or the first compiler on the path that works. Visual C++ is none: it lacks
    the GNU attributes."""
    if os.environ.get("CC"):
        return os.environ["CC"]
    if sys.platform == "darwin" and not _runs(["xcode-select", "-p"]):
        return None  # without the command line tools, /usr/bin/cc is a program that opens a dialog
    found = filter(None, map(shutil.which, ("cc", "gcc", "clang")))
    return next((f'"{Path(path).as_posix()}"' for path in found if _compiles(path)), None)


def _compiles(compiler: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="localcoder-probe-") as folder:
        source = Path(folder, "probe.c")
        source.write_text(PROBE, encoding="ascii")
        options = [] if sys.platform == "win32" else ["-fPIC", "-pthread"]
        return _runs([compiler, "-shared", *options, str(source), "-o", str(Path(folder, "probe.lib"))])


def _runs(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _find_zig() -> str | None:
    spec = importlib.util.find_spec("ziglang")
    if spec is None or not spec.submodule_search_locations or not _zig_target():
        return None
    zig = Path(spec.submodule_search_locations[0], "zig.exe" if sys.platform == "win32" else "zig")
    return zig.as_posix() if zig.is_file() else None


def _zig_target() -> str | None:
    """The machine that this Python runs on, in Zig's words; None where `ziglang` has no wheel."""
    if sys.platform == "win32":
        return {"win-amd64": "x86_64-windows-gnu", "win-arm64": "aarch64-windows-gnu"}.get(sysconfig.get_platform())
    cpu = {"x86_64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}.get(platform.machine())
    if cpu is None or sys.maxsize < 2**32:
        return None
    if sys.platform == "linux":
        is_musl = "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or "")
        return f"{cpu}-linux-musl" if is_musl else f"{cpu}-linux-gnu.{GLIBC[0]}.{GLIBC[1]}"
    return f"{cpu}-macos.{MACOS[0]}.{MACOS[1]}" if sys.platform == "darwin" else None


def _generator() -> dict[str, str]:
    """Ninja on Windows too, where CMake would choose Visual Studio, which works with none of these compilers."""
    return {"CMAKE_GENERATOR": os.environ.get("CMAKE_GENERATOR", "Ninja")} if sys.platform == "win32" else {}


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
