"""What `tools/build_wheels.py` refuses, and how it packs; the library here is the one that the tests run on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from localcoder.backends.c import availability, library

lief = pytest.importorskip("lief")
pytest.importorskip("wheel.wheelfile")
pytest.importorskip("scikit_build_core")

ROOT = Path(__file__).resolve().parents[2]
LINUX = "linux-x86_64"


@pytest.fixture
def build_wheels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import build_wheels

    return build_wheels


@pytest.fixture
def check(build_wheels: ModuleType) -> ModuleType:
    import check_library

    return check_library


@pytest.fixture
def core() -> Path:
    if availability() is not None:
        pytest.skip(str(availability()))
    return library.library_path()


def needs_of(check: ModuleType, core: Path, **changes: object) -> object:
    """What the library here asks for, whatever that is."""
    binary = lief.parse(str(core))
    names = tuple(str(getattr(one, "name", one)) for one in binary.libraries)
    newest = {"glibc": (9, 0)} if isinstance(binary, lief.ELF.Binary) else {"macos": (99, 0)}
    return check.Requirements(**{"libraries": names, **newest, **changes})


def test_the_library_exports_just_what_the_header_declares(
    build_wheels: ModuleType, check: ModuleType, core: Path
) -> None:
    declared = build_wheels.declared_functions()
    assert {name for name in dir(library.load().lib) if name.startswith("lc_")} == declared
    check.check_library(core, declared, needs_of(check, core))


def test_a_missing_or_an_extra_symbol_is_refused(build_wheels: ModuleType, check: ModuleType, core: Path) -> None:
    declared, needs = build_wheels.declared_functions(), needs_of(check, core)
    with pytest.raises(check.WrongLibrary, match="does not export: lc_forgotten"):
        check.check_library(core, declared | {"lc_forgotten"}, needs)
    with pytest.raises(check.WrongLibrary, match="does not declare: lc_isa_count"):
        check.check_library(core, declared - {"lc_isa_count"}, needs)


@pytest.mark.skipif(sys.platform != "linux", reason="versions of glibc's symbols")
def test_a_symbol_newer_than_the_tag_and_an_unknown_library_are_refused(
    build_wheels: ModuleType, check: ModuleType, core: Path
) -> None:
    declared = build_wheels.declared_functions()
    with pytest.raises(check.WrongLibrary, match=r"needs GLIBC_2\.\d+.* at most 2\.1$"):
        check.check_library(core, declared, needs_of(check, core, glibc=(2, 1)))
    with pytest.raises(check.WrongLibrary, match=r"needs libc\.so\.6"):
        check.check_library(core, declared, needs_of(check, core, libraries=("libm.so.6", "ld-*")))


def test_no_library_is_refused(check: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(b"\x7fELF and nothing more")
    with pytest.raises(check.WrongLibrary, match=r"is no library|does not export"):
        check.check_library(tmp_path / "x.so", {"lc_isa_count"}, check.Requirements(()))


def test_a_wheel_is_the_pure_one_and_the_core(build_wheels: ModuleType, tmp_path: Path) -> None:
    from wheel.wheelfile import WheelFile

    info = "thing-1.0.dist-info"
    pure, native = tmp_path / "thing-1.0-py3-none-any.whl", tmp_path / "native"
    with WheelFile(str(pure), "w") as wheel:
        wheel.writestr("localcoder/__init__.py", "x = 1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n\n")
    (native / "cuda").mkdir(parents=True)
    (native / "cuda" / "kernels.cu").write_bytes(b"source")
    (native / "liblocalcoder.so").write_bytes(b"core")
    made = build_wheels.pack_wheel(pure, build_wheels.PLATFORMS[LINUX], native, tmp_path)
    assert made.name == "thing-1.0-py3-none-manylinux_2_17_x86_64.whl"
    with WheelFile(str(made)) as wheel:  # reading compares every file with RECORD
        found = {name: wheel.read(name).decode() for name in wheel.namelist() if not name.endswith("RECORD")}
    assert found == {
        "localcoder/__init__.py": "x = 1\n",
        "localcoder/_native/cuda/kernels.cu": "source",
        "localcoder/_native/liblocalcoder.so": "core",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-manylinux_2_17_x86_64\n\n",
    }


def test_an_unknown_platform_is_named(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "build_wheels.py"), "amiga", "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown platform 'amiga'; known: linux-x86_64," in done.stderr


@pytest.mark.slow
def test_a_library_that_asks_too_much_gives_no_wheel(
    build_wheels: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, core: Path
) -> None:
    def take_this_one(platform: object, folder: Path) -> Path:
        shutil.copy(core, folder / "liblocalcoder.so")
        return folder

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(build_wheels, "compile_core", take_this_one)
    monkeypatch.setattr(build_wheels, "declared_functions", lambda: {"lc_forgotten"})
    with pytest.raises(SystemExit, match="linux-x86_64: functions of the header that it does not export"):
        build_wheels.build([LINUX], tmp_path)
    assert not os.listdir(tmp_path)
