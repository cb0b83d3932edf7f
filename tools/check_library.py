"""What a compiled library offers and what it asks of the system, against what was promised."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import lief


class WrongLibrary(Exception):
    """The library breaks a promise; the message says which."""


@dataclass(frozen=True)
class Requirements:
    """The most that a library may ask of the system.

    Attributes:
        libraries: names of others that it may load, with wildcards.
        glibc: the newest version of glibc whose symbols it may use.
        macos: the oldest macOS that it must run on.
    """

    libraries: tuple[str, ...]
    glibc: tuple[int, int] | None = None
    macos: tuple[int, int] | None = None


def check_library(path: Path, declared: set[str], allowed: Requirements) -> None:
    """Checks the exported symbols against `declared`, and what is imported against `allowed`.

    Raises:
        WrongLibrary: something is missing, or there is too much of it.
    """
    binary = lief.parse(str(path))
    if not isinstance(binary, (lief.ELF.Binary, lief.MachO.Binary, lief.PE.Binary)):
        raise WrongLibrary(f"{path.name} is no library")
    _check_exports(exported_functions(binary), declared)
    others = [str(getattr(library, "name", library)) for library in binary.libraries]
    if isinstance(binary, lief.MachO.Binary):
        others.remove(str(path.name) if path.name in others else f"@rpath/{path.name}")  # its own name comes first
        _check_macos(binary, allowed.macos)
    if isinstance(binary, lief.ELF.Binary):
        _check_glibc(binary, allowed.glibc)
    for name in others:
        if not any(fnmatchcase(name.lower(), pattern.lower()) for pattern in allowed.libraries):
            raise WrongLibrary(f"{path.name} needs {name}, which its platform does not promise")


def exported_functions(binary: lief.ELF.Binary | lief.MachO.Binary | lief.PE.Binary) -> set[str]:
    """Names as C has them."""
    names = {str(function.name) for function in binary.exported_functions}
    if not isinstance(binary, lief.MachO.Binary):
        return names
    of_the_linker = {"__mh_dylib_header", "___dso_handle"}
    return {name.removeprefix("_") for name in names - of_the_linker}


def _check_exports(found: Iterable[str], declared: set[str]) -> None:
    missing, extra = sorted(declared - set(found)), sorted(set(found) - declared)
    if missing:
        raise WrongLibrary(f"functions of the header that it does not export: {', '.join(missing)}")
    if extra:
        raise WrongLibrary(f"exported functions that the header does not declare: {', '.join(extra)}")


def _check_glibc(binary: lief.ELF.Binary, newest: tuple[int, int] | None) -> None:
    for needed in binary.symbols_version_requirement:
        for version in needed.get_auxiliary_symbols():
            name = str(version.name)
            match = re.fullmatch(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?", name)
            if newest is None or match is None or (int(match[1]), int(match[2])) > newest:
                promised = "none" if newest is None else f"at most {newest[0]}.{newest[1]}"
                raise WrongLibrary(f"it needs {name} of {needed.name!s}; its platform promises {promised}")


def _check_macos(binary: lief.MachO.Binary, oldest: tuple[int, int] | None) -> None:
    if binary.build_version is None or oldest is None:
        raise WrongLibrary("it does not say which macOS it is for")
    built_for = tuple(binary.build_version.minos[:2])
    if built_for > oldest:
        raise WrongLibrary(f"it needs macOS {built_for}, later than {oldest}")
    if binary.header.cpu_type == lief.MachO.Header.CPU_TYPE.ARM64 and not binary.has_code_signature:
        raise WrongLibrary("it is not signed: arm64 Macs refuse it")
