"""`localcoder convert` as a process: what it prints, and what Ctrl-C leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from checkpoints import load_tool

tool = load_tool("make_checkpoint")


@pytest.fixture
def source(tmp_path):
    config = tool.make_config(hidden=512, layers=2, heads=8, kv_heads=4, ff=1024, vocab=4096)
    tool.write_tokenizer(tmp_path / "source", 1000)
    tool.write_checkpoint(tmp_path / "source", config, shard_bytes=4 << 20)
    return tmp_path / "source"


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "localcoder", "convert", *map(str, args)]


ENVIRONMENT = {**os.environ, "LOCALCODER_BACKEND": "numpy"}


def test_quiet_in_a_pipe(source, tmp_path):
    done = subprocess.run(
        command(source, tmp_path / "out.gguf", "--type", "q4_0"), capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.splitlines() == [f"wrote {tmp_path / 'out.gguf'}: {done.stderr.split(': ')[1].strip()}"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_bar_on_a_terminal(source, tmp_path):
    import pty

    ours, theirs = pty.openpty()
    environment = {**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command(source, tmp_path / "out.gguf"), stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # Linux says so when the other side is closed
                break
            if not data:
                break
            shown += data
    os.close(ours)
    assert process.returncode == 0
    assert b"/s" in shown
    assert b"out.gguf (q8_0)" in shown


@pytest.fixture(scope="module")
def wide_source(tmp_path_factory):
    """A checkpoint that takes a while."""
    folder = tmp_path_factory.mktemp("wide")
    tool.write_tokenizer(folder, 1000)
    tool.write_checkpoint(folder, tool.make_config(**tool.SHAPES["1.3b"] | {"layers": 2}))
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_leaves_nothing(wide_source, tmp_path, name, code):
    with subprocess.Popen(
        command(wide_source, tmp_path / "out.gguf", "--type", "q4_0"), stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:  # the temporary file
            time.sleep(0.01)
        process.send_signal(getattr(signal, name))
        _, shown = process.communicate(timeout=60)
    assert process.returncode == code
    assert shown.strip() == b""
    assert list(tmp_path.iterdir()) == []
