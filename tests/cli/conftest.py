"""Running the command line, inside this process or as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_model import write_tiny_model


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _quick_backend(monkeypatch):
    # What a command prints does not depend on the backend; the reference needs no compiling.
    if "LOCALCODER_BACKEND" not in os.environ:
        monkeypatch.setenv("LOCALCODER_BACKEND", "numpy")
    monkeypatch.delenv("LOCALCODER_MODEL", raising=False)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", scale=3.0)


@pytest.fixture
def cli(capsys) -> Callable[..., Result]:
    """Runs a command line in this process."""

    def run(*args: object) -> Result:
        from localcoder.cli.main import main

        with pytest.raises(SystemExit) as exit_:
            main(list(map(str, args)))
        out, err = capsys.readouterr()
        return Result(exit_.value.code or 0, out, err)

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a command line as a process, which does not outlive the test."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*args: object, **options: Any) -> subprocess.Popen[bytes]:
        pipes: dict[str, Any] = {
            "bufsize": 0,
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        started.append(subprocess.Popen([sys.executable, "-m", "localcoder", *map(str, args)], **{**pipes, **options}))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
