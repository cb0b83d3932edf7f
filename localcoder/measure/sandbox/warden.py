"""The process between us and the programs: for each request it starts a supervisor, which runs the commands.

Three processes stand in a row: the warden, the supervisor (the first process of a world of its own where Linux allows
that), and the program. If a program ends its supervisor, the warden notices, clears up, and says so. Requests are lines
of JSON on stdin, reports lines of JSON on stdout. The programs never see either.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from localcoder.errors import SandboxError
from localcoder.measure.sandbox import processes
from localcoder.measure.sandbox.limits import Command, Ending, Guard, Limits, Report, reports_of
from localcoder.measure.sandbox.tail import Tail

if sys.platform == "linux":
    from localcoder.measure.sandbox import namespaces, seccomp

_POLL_S = 0.02
_NEARLY = 0.9  # of the processor time: the kernel that ends a process for it counts more than it reports
_IDS = range(40_000, 60_000)  # user ids that belong to nobody


class Supervisor:
    """Runs the commands of one request one after another, up to the first that fails.

    Args:
        folder: the work folder, empty.
        is_first: whether this is the first process of its own world: then everything it sees is the program's.
        as_user: an id of nobody else to run the program under; None: this process's own.
        close_network: what the program's process calls last before it starts.
    """

    def __init__(
        self,
        folder: str,
        *,
        guards: Sequence[Guard],
        is_first: bool,
        as_user: int | None,
        close_network: Callable[[], None] | None = None,
    ) -> None:
        self._folder = folder
        self._guards = guards
        self._is_first = is_first
        self._as_user = as_user
        self._close_network = close_network
        self._pid = processes.own_pid()
        self._parent = os.getppid()

    def run(self, commands: Sequence[Command], files: dict[str, str]) -> list[Report]:
        for name, text in files.items():
            path = Path(self._folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="")
        if self._as_user is not None:
            for path in (Path(self._folder), *Path(self._folder).rglob("*")):
                os.chown(path, self._as_user, self._as_user)
        reports: list[Report] = []
        for command in commands:
            reports.append(self._run_one(command))
            if reports[-1].exit_code != 0:
                break
        return reports

    def _run_one(self, command: Command) -> Report:
        start = time.monotonic()
        try:
            process = subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=environment(self._folder) | dict(command.env),
                start_new_session=True,
                preexec_fn=self._restrictions(command.limits),
            )
        except (OSError, subprocess.SubprocessError) as error:
            return Report("exit", 127, 0.0, 0.0, str(error), self._guards)
        assert process.stdout is not None
        tail = Tail(process.stdout)
        ending, status, cpu_s = self._watch(process, tail, command.limits, start)
        self._kill_all(process.pid)
        wall_s = time.monotonic() - start
        exit_code = os.waitstatus_to_exitcode(status)
        process.returncode = exit_code  # so that Popen does not wait for it
        output = tail.finish()
        is_spent = exit_code == -signal.SIGXCPU or (exit_code != 0 and cpu_s >= _NEARLY * command.limits.cpu_s)
        if ending == "exit" and is_spent:
            ending = "time"
        return Report(ending, exit_code if ending == "exit" else None, cpu_s, wall_s, output, self._guards)

    def _restrictions(self, limits: Limits) -> Callable[[], None]:
        """What the new process does before it becomes the program. Whatever needs memory happens here, not there."""
        chosen = rlimits(limits, self._as_user)
        user, close_network = self._as_user, self._close_network

        def restrict() -> None:
            if sys.platform == "linux":
                namespaces.die_with_parent()
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            for kind, value in chosen:
                hard = resource.getrlimit(kind)[1]
                ceiling = hard if hard != resource.RLIM_INFINITY else value + (kind == resource.RLIMIT_CPU)
                resource.setrlimit(kind, (min(value, ceiling), min(ceiling, value + (kind == resource.RLIMIT_CPU))))
            if sys.platform == "linux":
                namespaces.give_up_privileges()
                namespaces.die_with_parent()  # again: a change of the user forgets it
            if close_network is not None:
                close_network()

        return restrict

    def _watch(
        self, process: subprocess.Popen[bytes], tail: Tail, limits: Limits, start: float
    ) -> tuple[Ending, int, float]:
        """Waits until the program ends or a limit is reached; returns why, its wait status, and processor seconds."""
        ending: Ending = "exit"
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                return ending, status, usage.ru_utime + usage.ru_stime
            elapsed = time.monotonic() - start
            below = processes.descendants(self._pid)
            if os.getppid() != self._parent:
                self._kill_all(process.pid)
                os._exit(1)
            if elapsed > limits.wall_s:
                ending = "time"
            elif len(below) > limits.n_processes:  # first: what forks shares memory, which is counted for each
                ending = "processes"
            elif sum(p.rss_bytes for p in below) > limits.memory_bytes:
                ending = "memory"
            elif tail.n_bytes > limits.output_bytes:
                ending = "output"
            if ending != "exit":
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                self._stop_all()
                _, status, usage = os.wait4(process.pid, 0)
                return ending, status, usage.ru_utime + usage.ru_stime
            time.sleep(min(_POLL_S, 0.001 + elapsed / 10))

    def _stop_all(self) -> None:
        if self._is_first:
            with contextlib.suppress(OSError):
                os.kill(-1, signal.SIGKILL)

    def _kill_all(self, group: int) -> None:
        """Ends everything that the program has left behind."""
        self._stop_all()
        if self._as_user is not None:
            _kill_user(self._as_user)
        if not self._is_first:
            processes.kill_descendants(self._pid, group)


def environment(folder: str) -> dict[str, str]:
    """The variables that every program gets: enough to find its tools, nothing of the user's."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
    }


def rlimits(limits: Limits, as_user: int | None) -> list[tuple[int, int]]:
    """The kernel's own limits, those that it has."""
    wanted = {
        "RLIMIT_CPU": max(1, -int(-limits.cpu_s // 1)),
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": 1024,
        # Linux counts writable private memory here, what programs merely reserve left out.
        "RLIMIT_DATA" if sys.platform == "linux" else "RLIMIT_AS": limits.memory_bytes,
    }
    if as_user is not None:
        wanted["RLIMIT_NPROC"] = 2 * limits.n_processes  # threads are counted, too
    return [(getattr(resource, name), value) for name, value in wanted.items() if hasattr(resource, name)]


def _kill_user(user: int) -> None:
    """Kills every process of a user that has no others."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            os.setuid(user)
            os.kill(-1, signal.SIGKILL)
        os._exit(0)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _check_reachable(programs: Sequence[str]) -> None:
    """SandboxError if a user without any rights cannot run one of these: then they would have to run as root."""
    for program in programs:
        path = Path(program)
        if not path.is_absolute():
            continue
        for part in (path.resolve(), *path.resolve().parents):
            if not part.stat().st_mode & 1:
                raise SandboxError(
                    f"{program}: programs of strangers do not run as root, this system allows no namespaces, and "
                    f"{part} is closed to other users; evaluate as an ordinary user"
                )


def supervise(request: dict[str, Any]) -> list[Report]:
    """Runs a request in the strongest separation that is allowed here. To be called in a process of its own."""
    commands = [Command(**{**c, "limits": Limits(**c["limits"])}) for c in request["commands"]]
    folder, files = request["folder"], request["files"]
    as_user = _IDS[os.getpid() % len(_IDS)] if os.getuid() == 0 else None
    if sys.platform == "linux":
        namespaces.die_with_parent()
        if request["namespaces"]:
            with contextlib.suppress(OSError):
                return _in_new_world(commands, files, folder, None if namespaces.enter() else as_user)
        namespaces.adopt_orphans()
    if as_user is not None:
        _check_reachable([command.argv[0] for command in commands])
    close_network = seccomp.network_filter() if sys.platform == "linux" else None
    guards: list[Guard] = ["network"] if close_network else []
    guards += ["processes"] if as_user is not None else []
    supervisor = Supervisor(folder, guards=guards, is_first=False, as_user=as_user, close_network=close_network)
    return supervisor.run(commands, files)


def _in_new_world(commands: Sequence[Command], files: dict[str, str], folder: str, as_user: int | None) -> list[Report]:
    """Runs the commands under a supervisor that is the first process of the namespaces just entered."""

    def first() -> list[Report]:
        namespaces.die_with_parent()
        disk_bytes = max(command.limits.disk_bytes for command in commands)
        guards = namespaces.guards(namespaces.seclude_files(folder, disk_bytes))
        namespaces.hide_memory()
        return Supervisor(folder, guards=guards, is_first=True, as_user=as_user).run(commands, files)

    return in_child(first)


def in_child(task: Callable[[], list[Report]]) -> list[Report]:
    """The result of a function that a child process computes; none if the child ends before it has one.

    Raises:
        SandboxError: the function raised it.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        try:
            answer = _answer(task)
            with open(write_end, "wb") as f:
                f.write(json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as f:
        data = f.read()
    os.waitpid(pid, 0)
    return reports_of(json.loads(data)) if data else []


def _answer(task: Callable[[], list[Report]]) -> dict[str, Any]:
    try:
        return {"reports": [asdict(report) for report in task()]}
    except SandboxError as error:
        return {"refusal": str(error)}


def main() -> None:
    """Serves requests until stdin ends."""
    if sys.platform == "linux":
        namespaces.die_with_parent()
        namespaces.adopt_orphans()
    for line in sys.stdin:
        request = json.loads(line)
        answer = _answer(lambda request=request: in_child(lambda: supervise(request)))  # type: ignore[misc]
        processes.kill_descendants(os.getpid())
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
