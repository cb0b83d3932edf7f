"""CUDA sources to machine code for one kind of card: compiled once by NVRTC, kept on the disk.

A module is one source file of csrc/cuda; linear.cu is a module for every block format. What is kept is found by the
hash of all sources, options and compiler version, so it is never out of date; a damaged or unwritable folder costs
nothing but the time to compile again.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import logging
import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from localcoder.errors import BackendError
from localcoder.quants import ALL, QuantType

log = logging.getLogger("localcoder")

VARIABLE = "LOCALCODER_CUDA_CACHE"  # the folder to keep compiled kernels in
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120")  # that the kernels are checked for
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class Module:
    """One translation unit: a source file, and the format that it is compiled for."""

    source: str
    weight: QuantType | None = None

    @property
    def name(self) -> str:
        return self.source if self.weight is None else f"{self.source}-{self.weight.name}"


PLAIN_MODULES = (Module("elementwise"), Module("attention"), Module("highest"))
ALL_MODULES = (*PLAIN_MODULES, Module("peak"), *(Module("linear", qtype) for qtype in ALL))


def module_of(kernel: str, weight: QuantType | None) -> Module:
    """The module that has this kernel."""
    if weight is not None:
        return Module("linear", weight)
    prefixes = {"lc_attend": "attention", "lc_combine": "attention", "lc_highest": "highest", "lc_peak": "peak"}
    return Module(next((source for prefix, source in prefixes.items() if kernel.startswith(prefix)), "elementwise"))


@cache
def sources_folder() -> Path | None:
    """Where csrc/cuda lies: in the source tree around this file, or in the installed package."""
    installed = importlib.resources.files("localcoder") / "_native" / "cuda"
    for folder in (Path(__file__).resolve().parents[3] / "csrc" / "cuda", Path(str(installed))):
        if (folder / "linear.cu").is_file():
            return folder
    return None


def ready_made(module: Module) -> bytes | None:
    """The module's fatbin, if this installation has it (CMake option LOCALCODER_CUDA_FATBINS)."""
    folder = sources_folder()
    if folder is None:
        return None
    try:
        return (folder / "fatbins" / f"{module.name}.fatbin").read_bytes()
    except OSError:
        return None


def all_ready_made() -> bool:
    """Whether nothing has to be compiled here."""
    folder = sources_folder()
    return folder is not None and all((folder / "fatbins" / f"{m.name}.fatbin").is_file() for m in ALL_MODULES)


Compile = Callable[[Module, str], bytes]  # (module, architecture) -> cubin


def nvrtc_compile(module: Module, architecture: str, log_to: io.StringIO | None = None) -> bytes:
    """Machine code of `module` for `architecture`, such as sm_86. `log_to` gets what the assembler says of each kernel.

    Raises:
        BackendError: there is no NVRTC, or it refused the source.
    """
    try:
        from cuda.core import Program, ProgramOptions
    except ImportError as e:
        raise BackendError(f"CUDA kernels cannot be compiled: {e}") from None
    folder = sources_folder()
    if folder is None:
        raise BackendError("the CUDA kernels' sources are not in this installation")
    options: dict[str, Any] = {"define_macro": ("LC_WEIGHT", module.weight.name)} if module.weight else {}
    try:
        program = Program(
            (folder / f"{module.source}.cu").read_text(encoding="utf-8"),
            "c++",
            ProgramOptions(
                name=module.name,
                arch=architecture,
                std="c++17",
                include_path=str(folder),
                ptxas_options="-v",
                **options,
            ),
        )
        return bytes(program.compile("cubin", logs=log_to).code)
    except Exception as e:
        if isinstance(e, (MemoryError, KeyboardInterrupt)):
            raise
        reason = " ".join(str(e).split())
        raise BackendError(f"NVRTC cannot compile {module.name} for {architecture}: {reason[:300]}") from None


def compiler_version() -> str:
    """Of NVRTC; BackendError where there is none."""
    try:
        from cuda.bindings import nvrtc

        _, major, minor = nvrtc.nvrtcVersion()
    except Exception as e:
        raise BackendError(
            f"NVRTC is missing ({' '.join(str(e).split())[:200]}); install localcoder's extra `cuda`"
        ) from None
    return f"{major}.{minor}"


def cache_folder() -> Path:
    """LOCALCODER_CUDA_CACHE, or the usual place of this system."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "localcoder" / "cuda"


class ModuleStore:
    """Compiled modules of one architecture, from the disk or the compiler.

    Args:
        architecture: such as sm_86.
        compile_module: the compiler.
        version: its version.
        folder: where to keep what it makes.
    """

    def __init__(self, architecture: str, compile_module: Compile, version: str, folder: Path) -> None:
        self.architecture = architecture
        self._compile, self._version, self._folder = compile_module, version, folder
        self._announced = False

    def load(self, module: Module) -> bytes:
        """The module's cubin."""
        path = self._folder / f"{module.name}-{self.architecture}-{self._key(module)[:24]}.cubin"
        kept = _read_whole(path)
        if kept is not None:
            return kept
        if not self._announced:
            log.warning("compiling CUDA kernels for this card (%s); kept for next time", self.architecture)
            self._announced = True
        log.info("compiling %s", module.name)
        code = self._compile(module, self.architecture)
        _write_whole(path, code)
        return code

    def _key(self, module: Module) -> str:
        digest = hashlib.sha256(f"{module.name} {self.architecture} {self._version}\n".encode())
        folder = sources_folder()
        if folder is not None:
            for path in sorted(folder.glob("*")):
                if path.suffix in (".cu", ".h"):
                    digest.update(path.name.encode() + b"\n" + path.read_bytes())
        return digest.hexdigest()


def _read_whole(path: Path) -> bytes | None:
    """What `_write_whole` wrote, or None if it is not there or is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, code = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    return code if code and hashlib.sha256(code).digest() == digest else None


def _write_whole(path: Path, code: bytes) -> None:
    """Keeps `code` if that is possible; a reader finds all of it or nothing."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(hashlib.sha256(code).digest() + code)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as e:
        log.info("compiled CUDA kernels are not kept: %s", e)
