"""Builds the wheels for every platform on one machine: `python tools/build_wheels.py [PLATFORM...] -o FOLDER`.

Needs the extra `cross`: `ziglang` compiles the C core for all of them, and `lief` reads what came out. The package
itself is the same everywhere, so it is packed once; every platform's wheel adds the library and its header. A wheel
appears only if its library exports what csrc/localcoder.h declares and asks of the system no more than its tag says.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import build_backend  # noqa: E402
from build_backend import GLIBC, MACOS  # noqa: E402
from check_library import Requirements, WrongLibrary, check_library  # noqa: E402
from wheel.wheelfile import WheelFile  # noqa: E402


@dataclass(frozen=True)
class Platform:
    """Where a wheel runs.

    Attributes:
        target: in Zig's words.
        system, processor: in CMake's words.
        tag: in those of wheels.
        library: the file's name.
        requirements: the most that the library may ask of the system.
    """

    target: str
    system: str
    processor: str
    tag: str
    library: str
    requirements: Requirements


def _glibc(processor: str, loader: str) -> Platform:
    return Platform(
        f"{processor}-linux-gnu.{GLIBC[0]}.{GLIBC[1]}",
        "Linux",
        processor,
        f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{processor}",
        "liblocalcoder.so",
        Requirements(("libc.so.6", "libm.so.6", "libpthread.so.0", loader), glibc=GLIBC),
    )


def _musl(processor: str) -> Platform:
    # Libraries of musl since 1.2 are the same; its loader knows "libc.so" as itself.
    tag = f"musllinux_1_2_{processor}"
    return Platform(f"{processor}-linux-musl", "Linux", processor, tag, "liblocalcoder.so", Requirements(("libc.so",)))


def _macos(processor: str, zig_processor: str) -> Platform:
    return Platform(
        f"{zig_processor}-macos.{MACOS[0]}.{MACOS[1]}",
        "Darwin",
        processor,
        f"macosx_{MACOS[0]}_{MACOS[1]}_{processor}",
        "liblocalcoder.dylib",
        Requirements(("/usr/lib/libSystem.B.dylib",), macos=MACOS),
    )


def _windows(tag: str, processor: str, zig_processor: str) -> Platform:
    libraries = ("kernel32.dll", "ntdll.dll", "api-ms-win-crt-*.dll")  # in every Windows 10
    return Platform(
        f"{zig_processor}-windows-gnu", "Windows", processor, tag, "liblocalcoder.dll", Requirements(libraries)
    )


PLATFORMS = {
    "linux-x86_64": _glibc("x86_64", "ld-linux-x86-64.so.2"),
    "linux-arm64": _glibc("aarch64", "ld-linux-aarch64.so.1"),
    "musl-x86_64": _musl("x86_64"),
    "musl-arm64": _musl("aarch64"),
    "macos-x86_64": _macos("x86_64", "x86_64"),
    "macos-arm64": _macos("arm64", "aarch64"),
    "windows-x86_64": _windows("win_amd64", "AMD64", "x86_64"),
    "windows-arm64": _windows("win_arm64", "ARM64", "aarch64"),
}


def run(*command: str | Path, environment: dict[str, str] | None = None) -> None:
    """Runs a program that is quiet while all is well.

    Raises:
        SystemExit: it failed; with what it said.
    """
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\n{command[0]} failed")


def compile_core(platform: Platform, folder: Path) -> Path:
    """The folder with the library and its header, as they go into the package."""
    import ziglang

    zig = Path(ziglang.__path__[0], "zig.exe" if sys.platform == "win32" else "zig").as_posix()
    compilers = {"CC": f'"{zig}" cc -target {platform.target}', "RC": f'"{zig}" rc'}
    build, stage = folder / "build", folder / "stage"
    options = [f"-DCMAKE_SYSTEM_NAME={platform.system}", f"-DCMAKE_SYSTEM_PROCESSOR={platform.processor}"]
    run("cmake", "-G", "Ninja", "-S", ROOT, "-B", build, "-DSKBUILD=ON", *options, environment=compilers)
    run("cmake", "--build", build, environment=compilers)
    run("cmake", "--install", build, "--prefix", stage)
    return stage / "localcoder" / "_native"


def declared_functions() -> set[str]:
    """The names of the functions in csrc/localcoder.h."""
    header = (ROOT / "csrc" / "localcoder.h").read_text(encoding="utf-8")
    return set(re.findall(r"^[a-z][\w ]*[ *](lc_\w+)\(", header, re.M))


def pack_wheel(pure: Path, platform: Platform, native: Path, folder: Path) -> Path:
    """The wheel without a C core, with one: `pure` plus the files in `native`, under the platform's tag."""
    name = pure.name.replace("-none-any.whl", f"-none-{platform.tag}.whl")
    partial = folder / name
    with WheelFile(str(pure)) as source, WheelFile(str(partial), "w") as wheel:
        described = f"{source.dist_info_path}/WHEEL"
        for info in source.infolist():
            if info.filename == described:
                text = source.read(info).decode("utf-8").replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
                wheel.writestr(info, text.replace("Tag: py3-none-any\n", f"Tag: py3-none-{platform.tag}\n").encode())
            elif info.filename != source.record_path:
                wheel.writestr(info, source.read(info))
        for file in sorted(path for path in native.rglob("*") if path.is_file()):
            wheel.write(str(file), f"localcoder/_native/{file.relative_to(native).as_posix()}")
    return partial


def build(names: list[str], output: Path) -> None:
    """Builds the wheels of the named platforms in `output`."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".wheels-", dir=output) as scratch:
        os.chdir(ROOT)  # where a build backend is called
        pure = Path(scratch, build_backend.build_wheel(scratch, {"wheel.cmake": "false"}))
        for name in names:
            platform, folder = PLATFORMS[name], Path(scratch, name)
            folder.mkdir()
            native = compile_core(platform, folder)
            try:
                check_library(native / platform.library, declared_functions(), platform.requirements)
            except WrongLibrary as error:
                sys.exit(f"{name}: {error}")
            wheel = pack_wheel(pure, platform, native, folder)
            os.replace(wheel, output / wheel.name)
            print(output / wheel.name, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("platforms", nargs="*", metavar="PLATFORM", help=f"{', '.join(PLATFORMS)}; default: all")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "build" / "wheels")
    options = parser.parse_args()
    unknown = [name for name in options.platforms if name not in PLATFORMS]
    if unknown:
        parser.error(f"unknown platform {unknown[0]!r}; known: {', '.join(PLATFORMS)}")
    build(options.platforms or list(PLATFORMS), options.output.resolve())


if __name__ == "__main__":
    main()
