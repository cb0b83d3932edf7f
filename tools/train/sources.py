"""Where the data comes from: the standard library and packages from PyPI, fetched as wheels.

Wheels are only unpacked, never installed, so nothing of a package runs; a source distribution would run its build
script merely to say its name.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PathDistribution, distributions
from pathlib import Path, PurePosixPath

from packaging.utils import canonicalize_name

from localcoder.errors import FileError, OptionError

from .licences import permitted_licence

LIST = Path(__file__).with_name("packages.tsv")
VERSIONS = Path(__file__).with_name("versions.txt")
PYTHON = "python"  # the standard library's name among the projects
MAX_FILE = 400_000  # bytes; larger ones are tables or generated
_PART = re.compile(r"train(?: x([1-9]\d?))?|heldout")
_NOT_OURS = {"site-packages", "__pycache__", "lib2to3", "idlelib", "turtledemo", "pydoc_data", "ensurepip"}


@dataclass(frozen=True)
class Package:
    """A line of the list.

    Attributes:
        is_heldout: never trained on.
        times: how often a pass through the data has it.
    """

    name: str
    licence: str
    is_heldout: bool
    times: int = 1


@dataclass(frozen=True)
class Project:
    """Python files of one project, by their paths in it; `is_heldout` and `times` as the list has them."""

    name: str
    version: str
    licence: str
    is_heldout: bool
    files: dict[str, bytes]
    times: int = 1


def read_list(path: Path = LIST) -> list[Package]:
    """The packages of a list.

    Raises:
        FileError: no such file, or a line is malformed or names a package again.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FileError(path, (error.strerror or str(error)).lower()) from None
    packages: dict[str, Package] = {}
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        name, licence, part = (*line.split("\t"), "", "")[:3]
        found = _PART.fullmatch(part)
        if found is None or line.count("\t") != 2 or canonicalize_name(name) != name:
            raise FileError(path, f"line {number} is {line[:80]!r}; expected name, licence, train, train xN or heldout")
        if name in packages:
            raise FileError(path, f"line {number}: {name} is listed twice")
        packages[name] = Package(name, licence, part == "heldout", int(found[1] or 1))
    return list(packages.values())


def fetch(packages: Sequence[Package], folder: Path) -> None:
    """Downloads the wheels that `folder` lacks, in the versions of versions.txt where there is one.

    Raises:
        OptionError: pip fails; its own message is on stderr.
    """
    folder.mkdir(parents=True, exist_ok=True)
    present = {_name_of(path) for path in folder.glob("*.whl")}
    missing = [package.name for package in packages if package.name not in present]
    if not missing:
        return
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--constraint", str(VERSIONS)] if VERSIONS.exists() else []
    if subprocess.run([*command, "--dest", str(folder), *missing], check=False).returncode:
        raise OptionError(f"pip could not fetch all of {len(missing)} packages; see above")


def _name_of(wheel: Path) -> str:
    return canonicalize_name(wheel.name.split("-")[0])


def fetched_projects(packages: Sequence[Package], folder: Path) -> Iterator[Project]:
    """The projects whose wheels are in `folder`; see `_project` for what is raised."""
    wheels = {_name_of(path): path for path in sorted(folder.glob("*.whl"))}
    for package in packages:
        path = wheels.get(package.name)
        if path is None:
            raise FileError(folder, f"has no wheel of {package.name}")
        with zipfile.ZipFile(path) as archive:
            (info,) = {n.split("/")[0] for n in archive.namelist() if n.split("/")[0].endswith(".dist-info")}
            found = PathDistribution(zipfile.Path(archive, f"{info}/"))
            files = {
                entry.filename: archive.read(entry)
                for entry in archive.infolist()
                if _is_source(entry.filename) and entry.file_size <= MAX_FILE
            }
            yield _project(package, found, files)


def installed_projects(packages: Sequence[Package]) -> Iterator[Project]:
    """Those of the packages that are installed in this environment."""
    installed = {str(canonicalize_name(found.name)): found for found in distributions()}
    for package in packages:
        found = installed.get(package.name)
        if found is not None:
            names = [file.as_posix() for file in found.files or () if _is_source(file.as_posix())]
            paths = {name: Path(str(found.locate_file(name))) for name in names}
            small = {name: path for name, path in paths.items() if path.is_file() and path.stat().st_size <= MAX_FILE}
            yield _project(package, found, {name: path.read_bytes() for name, path in small.items()})


def _is_source(name: str) -> bool:
    """Whether an archive's entry is Python, under a name that stays inside a folder."""
    path = PurePosixPath(name)
    return path.suffix == ".py" and not path.is_absolute() and ".." not in path.parts and not set(name) & set("\\:\0")


def _project(package: Package, found: Distribution, files: dict[str, bytes]) -> Project:
    """OptionError: the metadata's licence is not permissive, or not the one in the list."""
    licence = permitted_licence(found.metadata)  # type: ignore[arg-type]
    if licence != package.licence and package.licence not in licence.split(" and "):
        raise OptionError(f"{package.name} {found.version}: its licence is {licence}; the list says {package.licence}")
    return Project(package.name, found.version, licence, package.is_heldout, files, package.times)


def standard_library() -> Project:
    """The sources of the Python that runs this, but for what is old, generated or data."""
    root = Path(sysconfig.get_path("stdlib"))
    files = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not _NOT_OURS & set(name.parts) and path.stat().st_size <= MAX_FILE:
            files[name.as_posix()] = path.read_bytes()
    return Project(PYTHON, platform.python_version(), "PSF", False, files)
