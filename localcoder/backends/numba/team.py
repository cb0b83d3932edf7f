"""The threads: Python threads that run compiled functions, which hold no GIL.

One team serves one backend. Between calls its threads sleep; inside a call they meet at counters (`replay.meet`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from localcoder.backends.numba.linear import Cells


class ThreadTeam:
    """`n_threads` threads, the caller's among them. Calls from several threads take turns."""

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._members: list[_Member] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def run(self, function: Callable[..., Any], *args: Any, cells: Cells) -> None:
        """Calls function(*args) on every thread and waits for all; `cells[0]` tells the others that one has failed."""
        self._renew_after_fork()
        with self._lock:
            while len(self._members) < self.n_threads - 1:
                self._members.append(_Member())
            for member in self._members:
                member.begin(function, args, cells)
            failures: list[BaseException | None] = []
            try:
                function(*args)
            except BaseException as failure:
                cells[0] = 1
                failures.append(failure)
            failures += [member.finish() for member in self._members]
        first = next((failure for failure in failures if failure is not None), None)
        if first is not None:
            raise first

    def close(self) -> None:
        """Ends the threads; a later call starts new ones."""
        self._renew_after_fork()
        with self._lock:
            for member in self._members:
                member.end()
            self._members = []

    def _renew_after_fork(self) -> None:
        """A forked child has none of the threads, and perhaps a lock that nobody will release."""
        if self._pid != os.getpid():
            self._pid, self._members, self._lock = os.getpid(), [], threading.Lock()


class _Member:
    """One thread that sleeps until it is given a call."""

    def __init__(self) -> None:
        self._call: tuple[Callable[..., Any], tuple[Any, ...], Cells] | None = None
        self._failure: BaseException | None = None
        self._wake, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, name="localcoder-numba", daemon=True)
        self._thread.start()

    def begin(self, function: Callable[..., Any], args: tuple[Any, ...], cells: Cells) -> None:
        self._call = (function, args, cells)
        self._wake.release()

    def finish(self) -> BaseException | None:
        """Waits for the call's end, whatever interrupts; returns what it raised, or the interruption."""
        interruption: BaseException | None = None
        while True:
            try:
                self._done.acquire()
                break
            except KeyboardInterrupt as failure:
                interruption = failure
        return self._failure or interruption

    def end(self) -> None:
        self._call = None
        self._wake.release()
        self._thread.join()

    def _work(self) -> None:
        while True:
            self._wake.acquire()
            if self._call is None:
                return
            function, args, cells = self._call
            self._failure = None
            try:
                function(*args)
            except BaseException as failure:
                cells[0] = 1
                self._failure = failure
            self._call = None
            self._done.release()
