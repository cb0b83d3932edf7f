"""Which compiler the build backend chooses, without building anything."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PURE = {"wheel.cmake": "false"}


@pytest.fixture
def backend() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_backend", ROOT / "tools" / "build_backend.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the whole PATH; the working directory is the project, as `pip` has it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("SKBUILD_WHEEL_CMAKE", raising=False)
    monkeypatch.chdir(ROOT)
    return folder


def add_program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def asks_for(requirements: list[str], name: str) -> bool:
    return any(requirement.startswith(name) for requirement in requirements)


needs_shell = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in compilers are shell scripts")


def test_no_compiler_asks_for_the_one_from_the_index(backend: ModuleType, path: Path) -> None:
    for ask in (backend.get_requires_for_build_wheel, backend.get_requires_for_build_editable):
        assert asks_for(ask(), "ziglang")
        assert asks_for(ask(), "cmake")


@needs_shell
@pytest.mark.parametrize("name", ["cc", "gcc", "clang"])
def test_a_working_compiler_is_taken(
    backend: ModuleType, path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    add_program(path, name, "exit 0")
    assert not asks_for(backend.get_requires_for_build_wheel(), "ziglang")
    with backend._compiler(None) as settings:
        assert os.environ["CC"] == f'"{path}/{name}"'
        assert settings is None


@needs_shell
def test_a_compiler_that_cannot_compile_is_none(
    backend: ModuleType, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    add_program(path, "cc", "echo 'stdio.h: No such file or directory' >&2; exit 1")
    assert asks_for(backend.get_requires_for_build_wheel(), "ziglang")


@needs_shell
def test_the_probe_is_more_than_running_the_program(
    backend: ModuleType, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler sees a source with what ours use, and the options of a shared library."""
    monkeypatch.setattr(sys, "platform", "linux")
    add_program(path, "cc", 'case "$*" in *-shared*-fPIC*probe.c*) exit 0;; esac; exit 1')
    assert backend._find_compiler() == f'"{path}/cc"'


def test_visual_c_is_not_taken(backend: ModuleType, path: Path) -> None:
    add_program(path, "cl.exe", "exit 0")
    add_program(path, "cl", "exit 0")
    assert asks_for(backend.get_requires_for_build_wheel(), "ziglang")


@needs_shell
def test_macos_without_command_line_tools_has_no_compiler(
    backend: ModuleType, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    add_program(path, "cc", "touch dialog-opened; exit 0")
    add_program(path, "xcode-select", "exit 2")
    assert backend._find_compiler() is None
    add_program(path, "xcode-select", "exit 0")
    assert backend._find_compiler() == f'"{path}/cc"'


def test_cc_wins(backend: ModuleType, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "my-compiler --with options")
    assert not asks_for(backend.get_requires_for_build_wheel(), "ziglang")
    with backend._compiler(None):
        assert os.environ["CC"] == "my-compiler --with options"


def test_asking_for_no_c_core_needs_no_compiler(
    backend: ModuleType, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend.get_requires_for_build_wheel(PURE) == []
    monkeypatch.setenv("SKBUILD_WHEEL_CMAKE", "0")
    assert backend.get_requires_for_build_wheel() == []
    with backend._compiler(None):
        assert "CC" not in os.environ


def test_a_machine_that_no_compiler_is_made_for_builds_without(
    backend: ModuleType, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "alpha")
    monkeypatch.setattr(sys, "platform", "linux")
    assert backend.get_requires_for_build_wheel({"a": "b"}) == []
    with backend._compiler({"a": "b"}) as settings:
        assert settings == {"a": "b", **PURE}
    assert "numba" in capsys.readouterr().err


def test_a_failed_build_leaves_the_environment_as_it_was(backend: ModuleType) -> None:
    before = dict(os.environ)
    with pytest.raises(RuntimeError), backend._environment({"CC": "x", "PATH": ""}):
        raise RuntimeError
    assert dict(os.environ) == before


def test_zig_compiles_for_a_named_target_and_leaves_nothing(
    backend: ModuleType, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "with space" / "ziglang"
    package.mkdir(parents=True)
    for name in ("__init__.py", "zig", "zig.exe"):
        (package / name).touch()
    monkeypatch.syspath_prepend(str(package.parent))
    before = dict(os.environ)
    with backend._compiler(None):
        cache = Path(os.environ["ZIG_GLOBAL_CACHE_DIR"])
        assert cache.is_dir()
        program, arguments = os.environ["CC"].rsplit('" ', 1)
        assert Path(program.strip('"')).parent == package
        assert arguments == f"cc -target {backend._zig_target()}"
    assert not cache.exists()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("system", "machine", "host", "target"),
    [
        ("linux", "x86_64", "x86_64-pc-linux-gnu", "x86_64-linux-gnu.2.17"),
        ("linux", "aarch64", "aarch64-unknown-linux-gnu", "aarch64-linux-gnu.2.17"),
        ("linux", "x86_64", "x86_64-alpine-linux-musl", "x86_64-linux-musl"),
        ("linux", "s390x", "s390x-linux-gnu", None),
        ("darwin", "arm64", "arm64-apple-darwin", "aarch64-macos.11.0"),
        ("freebsd14", "x86_64", "", None),
    ],
)
def test_target(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, system: str, machine: str, host: str, target: str | None
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sysconfig, "get_config_var", {"HOST_GNU_TYPE": host}.get)
    assert backend._zig_target() == target


@pytest.mark.parametrize(
    ("name", "target"),
    [("win-amd64", "x86_64-windows-gnu"), ("win-arm64", "aarch64-windows-gnu"), ("win32", None)],
)
def test_windows(backend: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, target: str | None) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sysconfig, "get_platform", lambda: name)
    monkeypatch.delenv("CMAKE_GENERATOR", raising=False)
    assert backend._zig_target() == target
    assert backend._generator() == {"CMAKE_GENERATOR": "Ninja"}
