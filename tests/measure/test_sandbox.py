"""What a hostile program does stays in the sandbox: with Linux namespaces where they are allowed, and without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from localcoder.errors import SandboxError
from localcoder.measure.sandbox.limits import MIB, Command, Limits
from localcoder.measure.sandbox.sandbox import Sandbox

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="the programs use fork and signals"),
    pytest.mark.skipif("LOCALCODER_BACKEND" in os.environ, reason="the same on every backend"),
]

LIMITS = Limits(cpu_s=1, wall_s=3, memory_bytes=256 * MIB, n_processes=16, output_bytes=4 * MIB, disk_bytes=16 * MIB)
PATIENT = Limits()
SYSTEM_PYTHON = "/usr/bin/python3"


def allows_namespaces() -> bool:
    command = ["unshare", "--user", "--map-root-user", "--pid", "--net", "--mount", "--fork", "true"]
    return sys.platform == "linux" and shutil.which("unshare") is not None and subprocess.run(
        command, capture_output=True
    ).returncode == 0  # fmt: skip


HAS_NAMESPACES = allows_namespaces()


def python_for(namespaces: bool) -> str:
    """An interpreter that the program's user can run: without namespaces root's programs run as somebody else."""
    if namespaces or os.getuid() != 0:
        return sys.executable
    if not Path(SYSTEM_PYTHON).exists():
        pytest.skip("no interpreter that every user can run")
    return SYSTEM_PYTHON


@pytest.fixture(scope="module", params=[True, False], ids=["namespaces", "plain"])
def run(request):
    """Runs a Python program; returns its report."""
    if request.param and not HAS_NAMESPACES:
        pytest.skip("this system allows no namespaces")
    python = python_for(request.param)
    with Sandbox(namespaces=request.param) as sandbox:

        def run_program(text, limits=LIMITS, **files):
            (report,) = sandbox.run([Command([python, "-I", "program.py"], limits)], {"program.py": text, **files})
            return report

        run_program.namespaces = request.param
        yield run_program


def processes_with(marker: str) -> list[str]:
    found = subprocess.run(["ps", "-axww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if marker in line]


def test_an_ordinary_program(run):
    report = run(
        "import os, sys\nprint(os.listdir(), repr(sys.stdin.read()), open('other').read())", PATIENT, other="x"
    )
    assert (report.ending, report.exit_code) == ("exit", 0)
    assert report.output == "['program.py', 'other'] '' x\n" or report.output == "['other', 'program.py'] '' x\n"
    assert run("raise SystemExit(3)", PATIENT).exit_code == 3
    assert run("import os; os.abort()", PATIENT).exit_code == -6
    assert "SyntaxError" in run("def", PATIENT).output


def test_commands_run_up_to_the_first_that_fails(run):
    with Sandbox(namespaces=run.namespaces) as sandbox:
        commands = [Command(["sh", "-c", text]) for text in ("echo 1 > a", "cat a; exit 5", "echo never")]
        reports = sandbox.run(commands, {})
        assert [(report.exit_code, report.output) for report in reports] == [(0, ""), (5, "1\n")]
        (missing,) = sandbox.run([Command(["no-such-program"])], {})
    assert missing.exit_code == 127


@pytest.mark.parametrize("text", ["while True: pass", "import time; time.sleep(1000)", "import signal\n"
    "for s in (signal.SIGXCPU, signal.SIGTERM): signal.signal(s, signal.SIG_IGN)\nwhile True: pass"])  # fmt: skip
def test_endless_programs_are_ended(run, text):
    start = time.monotonic()
    assert run(text).ending == "time"
    assert time.monotonic() - start < 20


def test_memory_that_is_asked_for_at_once_is_refused(run):
    report = run("x = bytearray(100 << 30)", PATIENT)
    assert report.exit_code == 1
    assert "MemoryError" in report.output


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory is only looked at on Linux")
def test_shared_memory_counts(run):
    text = "import mmap\nm = mmap.mmap(-1, 8 << 30)\nfor i in range(0, 8 << 30, 4096): m[i] = 1"
    assert run(text, Limits(memory_bytes=256 * MIB)).ending == "memory"


def test_a_fork_bomb(run):
    text = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert run(text + "  # bomb-marker").ending in ("processes", "time")
    assert run("print('still here')", PATIENT).output == "still here\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux finds processes that left their session")
def test_daemons_do_not_outlive_it(run):
    daemon = (
        "import os, sys\n"
        "if os.fork() == 0:\n    os.setsid()\n"
        "    if os.fork() == 0: os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(97.125)'])\n"
        "    os._exit(0)\n"
        "import time; time.sleep(0.5); print('left')"
    )
    report = run(daemon, PATIENT)
    assert (report.exit_code, report.output) == (0, "left\n")
    assert not processes_with("time.sleep(97.125)")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a program can end the process that watches it")
def test_it_cannot_end_who_watches_it(run):
    if not run.namespaces and os.getuid() != 0:
        text = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nwhile True: pass"
        assert run(text).ending == "lost"  # noticed, and cleared up
    else:
        text = (
            "import os, signal\n"
            "for pid in (os.getppid(), 1):\n"
            "    try: os.kill(pid, signal.SIGKILL) if pid else None\n"
            "    except OSError: pass\n"
            "print('done')"
        )
        assert run(text, PATIENT).output == "done\n"
    assert run("print('next')", PATIENT).output == "next\n"


def test_its_folder_may_be_deleted(run):
    report = run(
        "import os, shutil\nshutil.rmtree(os.getcwd(), ignore_errors=True)\nprint(os.path.exists('program.py'))"
    )
    assert report.output == "False\n"
    assert run("print('next')", PATIENT).output == "next\n"


def test_output_without_end(run):
    report = run("while True: print('x' * 10000)", Limits(output_bytes=1 * MIB))
    assert report.ending == "output"
    assert len(report.output) <= 1 << 16
    assert run("print('a' * 200000 + 'end')", PATIENT).output.endswith("aend\n")


def test_files_are_bounded(run):
    assert "Errno 27" in run("f = open('x', 'wb')\nfor i in range(99): f.write(bytes(1 << 20))", PATIENT).output
    if run.namespaces:
        many = "for i in range(99): open(str(i), 'wb').write(bytes(1 << 20))"
        assert "No space left" in run(many, LIMITS).output


def test_the_network_is_away(run):
    report = run("import socket\nlocal, other = socket.socketpair()\nlocal.send(b'x')\nprint(other.recv(1))", PATIENT)
    if "network" not in report.guards:
        pytest.skip("this system has neither namespaces nor filters")
    assert "b'x'" in report.output
    for family in ("AF_INET", "AF_INET6"):
        text = f"import socket\ns = socket.socket(socket.{family})\ns.settimeout(2)\ns.connect(('::ffff:192.0.2.1', 9))"
        if family == "AF_INET":
            text = text.replace("::ffff:", "")
        assert "Network is unreachable" in run(text, PATIENT).output


def test_files_of_the_user_are_safe(run, tmp_path):
    if not run.namespaces:
        pytest.skip("without namespaces the user's files are open")
    (tmp_path / "kept").write_text("kept")
    text = f"import shutil\nshutil.rmtree({str(tmp_path)!r}, ignore_errors=True)\nopen({str(tmp_path / 'new')!r}, 'w')"
    assert "Read-only file system" in run(text, PATIENT).output
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_it_gets_no_variables_of_the_user(run, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "42")
    with Sandbox(namespaces=run.namespaces) as sandbox:
        (report,) = sandbox.run([Command(["env"], env={"EXTRA": "1"})], {})
    assert "EXTRA=1" in report.output
    assert "SECRET_TOKEN" not in report.output


def test_nothing_is_left_behind(run, monkeypatch, tmp_path):
    if not run.namespaces and os.getuid() == 0:
        pytest.skip("another user cannot enter the tests' folder")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run("import os\nos.makedirs('deep/er')\nopen('deep/er/file', 'w')\nos.chmod('deep', 0)", PATIENT)
    assert not list(tmp_path.iterdir())


def test_several_threads(run):
    texts = [f"import time; time.sleep(0.2); print({i})" for i in range(6)]
    with ThreadPoolExecutor(3) as threads:
        outputs = list(threads.map(lambda text: run(text, PATIENT).output, texts))
    assert outputs == [f"{i}\n" for i in range(6)]


@pytest.mark.skipif(not HAS_NAMESPACES or os.getuid() != 0, reason="needs root")
def test_nothing_runs_as_root(tmp_path):
    program = tmp_path / "closed" / "program"
    program.parent.mkdir(mode=0o700)
    program.write_text("#!/bin/sh\nid -u\n")
    program.chmod(0o755)
    with Sandbox(namespaces=False) as sandbox:
        with pytest.raises(SandboxError, match="is closed to other users"):
            sandbox.run([Command([str(program)])], {})
        (report,) = sandbox.run([Command(["id", "-u"])], {})
        assert int(report.output) >= 40_000
    with Sandbox() as sandbox:
        (report,) = sandbox.run([Command([str(program)])], {})
    assert report.output == "1000\n"


def test_closing_ends_what_runs():
    sandbox = Sandbox(namespaces=HAS_NAMESPACES)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(sandbox.run, [Command(["sleep", "97.25"], Limits(wall_s=60))], {})
        while not processes_with("sleep 97.25"):
            time.sleep(0.01)
        sandbox.close()
        assert running.result(timeout=20)[0].ending == "lost"
    deadline = time.monotonic() + 10
    while processes_with("sleep 97.25") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not processes_with("sleep 97.25")
