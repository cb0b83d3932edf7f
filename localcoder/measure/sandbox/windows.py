"""The warden on Windows: each request runs in a job, which limits its processes and ends all of them with it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from localcoder.measure.sandbox.limits import Command, Ending, Limits, Report
from localcoder.measure.sandbox.tail import Tail

_POLL_S = 0.02
_CREATE_SUSPENDED = 0x4
_EXTENDED_LIMITS, _ACCOUNTING = 9, 1
_PROCESS_TIME, _ACTIVE_PROCESSES, _PROCESS_MEMORY, _JOB_MEMORY, _KILL_ON_CLOSE = 0x2, 0x8, 0x100, 0x200, 0x2000
_TICKS = 10_000_000  # of 100 ns in a second
_KEPT_VARIABLES = ("PATH", "PATHEXT", "SYSTEMROOT", "SYSTEMDRIVE", "COMSPEC", "WINDIR", "INCLUDE", "LIB", "LIBPATH")


class _BasicLimits(ctypes.Structure):
    _fields_ = (
        ("process_time", ctypes.c_int64),
        ("job_time", ctypes.c_int64),
        ("flags", ctypes.c_uint32),
        ("min_working_set", ctypes.c_size_t),
        ("max_working_set", ctypes.c_size_t),
        ("active_processes", ctypes.c_uint32),
        ("affinity", ctypes.c_size_t),
        ("priority", ctypes.c_uint32),
        ("scheduling", ctypes.c_uint32),
    )


class _Limits(ctypes.Structure):
    _fields_ = (
        ("basic", _BasicLimits),
        ("io_counters", ctypes.c_uint64 * 6),
        ("process_memory", ctypes.c_size_t),
        ("job_memory", ctypes.c_size_t),
        ("peak_process_memory", ctypes.c_size_t),
        ("peak_job_memory", ctypes.c_size_t),
    )


class _Accounting(ctypes.Structure):
    _fields_ = (
        ("user_time", ctypes.c_int64),
        ("kernel_time", ctypes.c_int64),
        ("period_times", ctypes.c_int64 * 2),
        ("counts", ctypes.c_uint32 * 4),
    )


if sys.platform == "win32":
    _kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    _native = ctypes.WinDLL("ntdll")
    _kernel.CreateJobObjectW.restype = ctypes.c_void_p

    class _Job:
        """A job object; closing it ends its processes."""

        def __init__(self, limits: Limits) -> None:
            self._handle = ctypes.c_void_p(_kernel.CreateJobObjectW(None, None))
            wanted = _Limits()
            flags = _PROCESS_TIME | _ACTIVE_PROCESSES | _PROCESS_MEMORY | _JOB_MEMORY | _KILL_ON_CLOSE
            wanted.basic.flags = flags
            wanted.basic.process_time = int(limits.cpu_s * _TICKS)
            wanted.basic.active_processes = limits.n_processes
            wanted.process_memory = wanted.job_memory = limits.memory_bytes
            self._check(
                _kernel.SetInformationJobObject(
                    self._handle, _EXTENDED_LIMITS, ctypes.byref(wanted), ctypes.sizeof(wanted)
                )
            )

        def _check(self, result: int) -> None:
            if not result:
                raise ctypes.WinError(ctypes.get_last_error())

        def admit(self, process: subprocess.Popen[bytes]) -> None:
            """Takes in a suspended process and lets it run."""
            handle = ctypes.c_void_p(int(process._handle))  # type: ignore[attr-defined]
            self._check(_kernel.AssignProcessToJobObject(self._handle, handle))
            _native.NtResumeProcess(handle)

        def cpu_s(self) -> float:
            found = _Accounting()
            _kernel.QueryInformationJobObject(
                self._handle, _ACCOUNTING, ctypes.byref(found), ctypes.sizeof(found), None
            )
            return float(found.user_time + found.kernel_time) / _TICKS

        def close(self) -> None:
            _kernel.TerminateJobObject(self._handle, 1)
            _kernel.CloseHandle(self._handle)

    def run_one(command: Command, folder: str) -> Report:
        """Runs a command in the folder, in a job of its own."""
        limits, start = command.limits, time.monotonic()
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        try:
            process = subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**kept, "TEMP": folder, "TMP": folder, "USERPROFILE": folder, "HOME": folder, **command.env},
                creationflags=_CREATE_SUSPENDED,
            )
        except OSError as error:
            return Report("exit", 127, 0.0, 0.0, str(error))
        assert process.stdout is not None
        tail = Tail(process.stdout)
        job = _Job(limits)
        ending: Ending = "exit"
        try:
            job.admit(process)
            while process.poll() is None and ending == "exit":
                if time.monotonic() - start > limits.wall_s:
                    ending = "time"
                elif tail.n_bytes > limits.output_bytes:
                    ending = "output"
                time.sleep(_POLL_S)
            cpu_s = job.cpu_s()
        finally:
            job.close()
        process.wait()
        if ending == "exit" and process.returncode and cpu_s >= limits.cpu_s:
            ending = "time"
        code = process.returncode if ending == "exit" else None
        return Report(ending, code, cpu_s, time.monotonic() - start, tail.finish())

    def _serve(request: dict[str, Any]) -> list[Report]:
        for name, text in request["files"].items():
            path = Path(request["folder"], name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="")
        reports: list[Report] = []
        for fields in request["commands"]:
            reports.append(run_one(Command(**{**fields, "limits": Limits(**fields["limits"])}), request["folder"]))
            if reports[-1].exit_code != 0:
                break
        return reports

    def main() -> None:
        """Serves requests until stdin ends."""
        for line in sys.stdin:
            print(json.dumps({"reports": [asdict(report) for report in _serve(json.loads(line))]}), flush=True)
