"""A pseudo-terminal with a command in it, and what would be seen on its screen."""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Callable
from typing import Any

import pyte

COLUMNS, LINES = 80, 24


class Screen(pyte.Screen):
    """Answers questions for the cursor's place, as terminals do."""

    answer: Callable[[str], None]

    def write_process_input(self, data: str) -> None:
        self.answer(data)


class Terminal:
    """Runs `localcoder ARGS...` on a terminal of 80 columns and 24 lines.

    Attributes:
        seen: every byte that came.
    """

    def __init__(self, start: Callable[..., Any], *args: object, **env: str) -> None:
        import fcntl
        import pty
        import termios

        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._screen = Screen(COLUMNS, LINES)
        self._screen.answer = self.type
        self._stream = pyte.ByteStream(self._screen)
        environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm-256color", **env}
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        self.process = start(*args, start_new_session=True, preexec_fn=_take, env=environment, **streams)
        os.close(theirs)
        self.seen = b""

    @property
    def rows(self) -> list[str]:
        return [row.rstrip() for row in self._screen.display]

    @property
    def cells(self) -> Any:
        """The characters by row and column, with their colours."""
        return self._screen.buffer

    @property
    def text(self) -> str:
        return "\n".join(self.rows)

    def colours_of(self, word: str) -> set[str]:
        """The colours in which `word` is on the screen, where it is first."""
        y = next(y for y, row in enumerate(self.rows) if word in row)
        x = self.rows[y].index(word)
        return {self._screen.buffer[y][x + i].fg for i in range(len(word))}

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, text: str, *, timeout: float = 30) -> None:
        """Until `text` is on the screen; fails if that does not come."""
        deadline = time.monotonic() + timeout
        while text not in self.text and text not in "".join(self.rows).replace("  ", ""):  # or wrapped
            assert time.monotonic() < deadline, f"waited for {text!r}, saw:\n{self.text}"
            assert self._read(0.2) or self.process.poll() is None, f"ended before {text!r}, after:\n{self.text}"

    def wait_for_prompt(self) -> None:
        """Until an empty prompt stands in the last line that is used, above the status line."""
        deadline = time.monotonic() + 30
        while not (self.rows[self._screen.cursor.y] == ">" and "context" in self.rows[-1] + self.text[-200:]):
            assert time.monotonic() < deadline, f"no prompt comes; saw:\n{self.text}"
            self._read(0.2)
        self.read_all()

    def read_all(self) -> None:
        """Until nothing more comes."""
        while self._read(0.1):
            pass

    def end(self) -> int:
        """The exit code, when the process ends."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read(0.1)
        self.read_all()
        os.close(self._ours)
        return self.process.wait(1)

    def _read(self, timeout: float) -> bool:
        ready, _, _ = select.select([self._ours], [], [], timeout)
        try:
            data = os.read(self._ours, 1 << 16) if ready else b""
        except OSError:  # on Linux the end of a terminal is an error
            return False
        self.seen += data
        self._stream.feed(data)
        return bool(data)


def _take() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C typed into it is a signal
