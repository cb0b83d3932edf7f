"""Which processes come from which, and the memory they hold: /proc on Linux, `ps` on other Unix systems."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

_KILL_S = 5.0  # how long to chase processes that keep on starting others


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    group: int
    rss_bytes: int


def descendants(root: int) -> list[Process]:
    """The living processes that `root` started, and those that they started, as far as parents tell."""
    everything = _from_proc() if sys.platform == "linux" else _from_ps()
    children: dict[int, list[Process]] = {}
    for process in everything:
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    pending = [root]
    while pending:
        below = children.pop(pending.pop(), [])
        found += below
        pending += [process.pid for process in below]
    return found


def own_pid() -> int:
    """This process's number as `descendants` counts: /proc may be that of an outer namespace."""
    try:
        return int(os.readlink("/proc/self"))
    except (OSError, ValueError):
        return os.getpid()


def kill_descendants(root: int, group: int | None = None) -> None:
    """Kills everything that `descendants` finds, and the process group, until nothing is left."""
    deadline = time.monotonic() + _KILL_S
    while True:
        if group is not None:
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGKILL)
        left = descendants(root)
        for stop in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: it could start others meanwhile
            for process in left:
                with contextlib.suppress(OSError):
                    os.kill(process.pid, stop)
        _reap()
        if not left or time.monotonic() > deadline:
            return


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _from_proc() -> list[Process]:
    page = os.sysconf("SC_PAGE_SIZE")
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as f:
                fields = f.read().rpartition(b")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        # After the name, which is in brackets: state, parent, group, ... field 22 is resident pages.
        found.append(Process(int(name), int(fields[1]), int(fields[2]), int(fields[21]) * page))
    return found


def _from_ps() -> list[Process]:
    try:
        listing = subprocess.run(
            ["ps", "-axo", "pid=,ppid=,pgid=,rss="], capture_output=True, text=True, timeout=5, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [list(map(int, line.split())) for line in listing.splitlines() if line.strip()]
    return [Process(pid, parent, group, kib << 10) for pid, parent, group, kib in rows]
