"""Real installations: what `pip install .` gives on machines with and without a C compiler.

These build in fresh virtual environments and fetch build tools from the package index: `pytest -m slow`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BIN = "Scripts" if sys.platform == "win32" else "bin"
LIBRARY = re.compile(r"localcoder/_native/liblocalcoder\.(so|dylib|dll)")
KEPT = ("HOME", "USERPROFILE", "LOCALAPPDATA", "SYSTEMROOT", "TEMP", "TMPDIR")  # pip's configuration and cache; Windows


class Machine:
    """A virtual environment and a PATH. The packages we depend on are lent by the environment that runs the tests."""

    def __init__(self, folder: Path, search_path: str) -> None:
        self.folder = folder
        self.search_path = search_path
        venv.create(folder, with_pip=True, symlinks=sys.platform != "win32")
        self.site = Path(self.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout[:-1])
        lent = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        (self.site / "lent.pth").write_text("\n".join(lent) + "\n")

    def run(
        self, program: str, *arguments: str, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name.upper() in KEPT or name.startswith(("PIP_", "SSL_")) or name.lower().endswith("_proxy")
        }
        path = os.pathsep.join(filter(None, [str(self.folder / BIN), self.search_path]))
        done = subprocess.run(
            [str(self.folder / BIN / program), *arguments],
            env={**kept, "PATH": path, **(variables or {})},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=1200,
            check=False,
        )
        assert done.returncode == 0, f"{program} {arguments}:\n{done.stdout}\n{done.stderr}"
        return done

    def install(self, *arguments: str, variables: Mapping[str, str] | None = None) -> None:
        self.run("python", "-m", "pip", "install", "-v", *arguments, variables=variables)

    def distribution(self) -> metadata.Distribution:
        (found,) = metadata.distributions(name="localcoder-runtime", path=[str(self.site)])
        return found

    def tags(self) -> list[str]:
        return re.findall(r"^Tag: (.*)$", self.distribution().read_text("WHEEL") or "", re.M)

    def default_backend(self) -> str:
        report = json.loads(self.run("localcoder", "devices", "--json").stdout)
        (name,) = [backend["name"] for backend in report["backends"] if backend["is_default"]]
        return name

    def complete(self) -> subprocess.CompletedProcess[str]:
        done = self.run("localcoder", "run", "def add(a, b):", "--max-tokens", "8", "--temperature", "0")
        assert done.stdout.strip()
        return done


@pytest.fixture
def bare(tmp_path: Path) -> Machine:
    """A machine with Python and nothing else."""
    return Machine(tmp_path / "bare", search_path="")


@pytest.fixture
def equipped(tmp_path: Path) -> Machine:
    """The machine as it is."""
    return Machine(tmp_path / "equipped", search_path=os.environ["PATH"])


def check_files(names: Sequence[str], *, native: bool) -> None:
    """The whole package, the C core if there should be one, and nothing else."""
    found = {name for name in names if not re.match(r"localcoder_runtime-[^/]+\.dist-info/|\.\./|.*\.pyc$", name)}
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "localcoder").rglob("*")
        if path.is_file() and not {"__pycache__", "_native"} & set(path.parts)
    }
    assert {"localcoder/py.typed", "localcoder/data/python-9m.gguf"} <= sources <= found
    built = sorted(found - sources)
    if native:
        cuda = ROOT / "csrc" / "cuda"  # kernels are compiled where they run
        kernels = {path.name for path in (*cuda.glob("*.cu"), *cuda.glob("*.h"))} - {"emulation.h"}
        kernels = {f"localcoder/_native/cuda/{name}" for name in kernels}
        assert kernels <= set(built)
        library, header = sorted(set(built) - kernels)
        assert LIBRARY.fullmatch(library)
        assert header == "localcoder/_native/localcoder.h"
    else:
        assert not built
    assert any(name.endswith("licenses/LICENSE") for name in names)


def installed_files(machine: Machine) -> list[str]:
    return [path.as_posix() for path in machine.distribution().files or []]


def test_without_a_compiler_the_c_core_is_built_by_the_one_from_the_index(bare: Machine) -> None:
    bare.install(str(ROOT))
    (tag,) = bare.tags()
    assert tag.startswith("py3-none-")
    assert tag != "py3-none-any"
    check_files(installed_files(bare), native=True)
    assert bare.default_backend() == "c"
    assert "numba" not in bare.complete().stderr


def broken_compiler(folder: Path) -> dict[str, str]:
    """A `ziglang`, newer than all others, whose compiler does not run here."""
    folder.mkdir()
    info = "ziglang-9999.dist-info"
    with zipfile.ZipFile(folder / "ziglang-9999-py3-none-any.whl", "w") as wheel:
        wheel.writestr("ziglang/__init__.py", "")
        for name in ("zig", "zig.exe"):
            program = zipfile.ZipInfo(f"ziglang/{name}")
            program.external_attr = 0o755 << 16
            wheel.writestr(program, "#!/nowhere/interpreter\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: ziglang\nVersion: 9999\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return {"PIP_FIND_LINKS": f"{folder} {os.environ.get('PIP_FIND_LINKS', '')}".strip()}


def asked_for_none(folder: Path) -> dict[str, str]:
    return {"SKBUILD_WHEEL_CMAKE": "false"}


@pytest.mark.parametrize("variables", [broken_compiler, asked_for_none])
def test_without_a_c_core_numba_runs_everything_and_says_so_once(
    bare: Machine, tmp_path: Path, variables: Callable[[Path], dict[str, str]]
) -> None:
    bare.install(str(ROOT), variables=variables(tmp_path / "links"))
    assert bare.tags() == ["py3-none-any"]
    check_files(installed_files(bare), native=False)
    assert bare.default_backend() == "numba"
    notes = [line for line in bare.complete().stderr.splitlines() if "numba" in line]
    assert len(notes) == 1
    assert "slower" in notes[0]


def test_editable(equipped: Machine) -> None:
    equipped.install("-e", str(ROOT))
    where = equipped.run("python", "-c", "import localcoder; print(localcoder.__file__)").stdout
    assert Path(where.strip()).is_relative_to(ROOT)
    assert equipped.default_backend() == "c"


def test_the_sdist_builds_the_wheel(equipped: Machine, tmp_path: Path) -> None:
    build = "import sys, build_backend; print(build_backend.build_sdist(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tools")},
        check=True,
    )
    (sdist,) = tmp_path.glob("localcoder_runtime-*.tar.gz")
    equipped.run("python", "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(sdist))
    (wheel,) = tmp_path.glob("*.whl")
    assert re.fullmatch(r"localcoder_runtime-[^-]+-py3-none-(?!any).+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        check_files(archive.namelist(), native=True)


@pytest.mark.skipif(sysconfig.get_platform() != "linux-x86_64", reason="builds the wheel for Linux on x86-64")
def test_a_wheel_for_everybody_runs_here_without_a_compiler(bare: Machine, tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    pytest.importorskip("lief")
    folder = tmp_path / "wheels"
    subprocess.run([sys.executable, ROOT / "tools" / "build_wheels.py", "linux-x86_64", "-o", folder], check=True)
    (wheel,) = folder.iterdir()
    # Forced: the environment that lends its packages may have the same version, and pip would leave it at that.
    bare.install("--no-index", "--no-deps", "--force-reinstall", str(wheel))
    assert bare.tags() == ["py3-none-manylinux_2_17_x86_64"]
    check_files(installed_files(bare), native=True)
    assert bare.default_backend() == "c"
    assert "numba" not in bare.complete().stderr
