"""Reading what a program prints without ever making it wait, or running out of memory."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import IO

KEPT_BYTES = 1 << 16
_JOIN_S = 1.0


class Tail:
    """Reads a stream in a thread of its own and keeps the end of it.

    Attributes:
        n_bytes: how much has come.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._kept = b""
        self.n_bytes = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(self._stream.fileno(), KEPT_BYTES):
                self._kept = (self._kept + data)[-KEPT_BYTES:]
                self.n_bytes += len(data)

    def finish(self) -> str:
        """The text, once every writer has ended."""
        self._thread.join(_JOIN_S)
        self._stream.close()
        return self._kept.decode("utf-8", errors="replace")
