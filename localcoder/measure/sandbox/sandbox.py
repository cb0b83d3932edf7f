"""`Sandbox`: runs programs one request at a time per thread, in processes that nothing of them outlives.

What contains a program:

- Linux, where the system lets this user make namespaces: no network, processes of its own that end with it, every file
  read-only but a work folder of limited size in memory. Else a filter of system calls keeps the network away (x86-64
  and arm64), root's programs get a user id that nobody has, and every descendant is found and ended. Nothing runs as
  root.
- macOS: resource limits and the process group. A program could reach the network and the user's files, outlive us in a
  session of its own, and end the process that watches it; memory is looked at from time to time, not limited.
- Windows: a job, which limits memory, processors and processes and ends all of them. The network and the user's files
  are open.

The processor, the clock, memory, the length of files, output and the number of processes are limited everywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from localcoder.measure.sandbox.limits import Command, Report, reports_of

if TYPE_CHECKING:
    from typing_extensions import Self

_GRACE_S = 30.0  # beyond what the commands may take, until a warden counts as stuck
_START = "import sys; sys.path.append(sys.argv[1]); from localcoder.measure.sandbox.{} import main; main()"
_LOST = Report("lost", None, 0.0, 0.0, "")


class Sandbox:
    """Runs commands over strangers' files. Safe for several threads; each gets a warden process of its own.

    Args:
        namespaces: whether to use Linux namespaces where they are allowed.
    """

    def __init__(self, *, namespaces: bool = True) -> None:
        self._namespaces = namespaces
        self._lock = threading.Lock()
        self._wardens: list[_Warden] = []
        self._idle: list[_Warden] = []

    def run(self, commands: Sequence[Command], files: Mapping[str, str]) -> list[Report]:
        """Writes `files` (name -> text) into an empty folder and runs the commands there, up to the first that fails.

        Nothing of it is left afterwards. A program that cannot be started at all ends with exit code 127.

        Raises:
            SandboxError: there is no safe way to run them here.
        """
        with self._lock:
            warden = self._idle.pop() if self._idle else self._new_warden()
        with tempfile.TemporaryDirectory(prefix="localcoder-", ignore_cleanup_errors=True) as folder:
            request = {
                "commands": [asdict(command) for command in commands],
                "files": dict(files),
                "folder": os.path.realpath(folder),
                "namespaces": self._namespaces,
            }
            reports = warden.ask(request, sum(command.limits.wall_s for command in commands) + _GRACE_S)
        with self._lock:
            if warden in self._wardens:  # else the sandbox has been closed meanwhile
                if reports:
                    self._idle.append(warden)
                else:
                    self._wardens.remove(warden)
                    warden.close()
        return reports or [_LOST]

    def _new_warden(self) -> _Warden:
        self._wardens.append(_Warden())
        return self._wardens[-1]

    def close(self) -> None:
        """Ends every warden, and with it whatever runs under it."""
        with self._lock:
            for warden in self._wardens:
                warden.close()
            self._wardens.clear()
            self._idle.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Warden:
    """The process `warden.py` (on Windows `windows.py`), and how to talk to it."""

    def __init__(self) -> None:
        module = "windows" if sys.platform == "win32" else "warden"
        root = str(Path(__file__).resolve().parents[3])  # where the package lies
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START.format(module), root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )

    def ask(self, request: object, timeout_s: float) -> list[Report]:
        """What became of a request; nothing if the warden did not live to tell. Raises SandboxError if it refused."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(timeout_s, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            return reports_of(json.loads(answer)) if answer else []
        except (OSError, ValueError):
            return []
        finally:
            timer.cancel()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
