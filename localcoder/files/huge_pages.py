"""Files written so that the system keeps them in huge pages.

A piece of a file that is written at once, and begins where a huge page may, is kept in one by Linux (ext4 since 6.16,
XFS). Decoding from a file that has just been written is a tenth faster then (`tools/measure_file_pages.py`).
"""

from __future__ import annotations

import io

PIECE = 2 << 20  # a huge page of x86-64 and of arm64


class PieceWriter:
    """Collects what is written into pieces of PIECE bytes at multiples of PIECE.

    Args:
        file: an unbuffered file, which stays the caller's to close.
        at: where in the file writing begins; the file must stand there.
    """

    def __init__(self, file: io.FileIO, at: int = 0) -> None:
        self._file = file
        self._kept = bytearray()
        self._room = PIECE - at % PIECE  # until the next multiple

    def write(self, data: bytes | memoryview) -> None:
        """Appends `data`; OSError if that fails."""
        rest = memoryview(data).cast("B")
        while len(self._kept) + len(rest) >= self._room:
            fill = self._room - len(self._kept)
            if self._kept:
                self._kept += rest[:fill]
                self.flush()
            else:  # whole pieces need no copy
                fill += (len(rest) - fill) // PIECE * PIECE
                self._write(rest[:fill])
            rest = rest[fill:]
            self._room = PIECE
        self._kept += rest

    def flush(self) -> None:
        """Writes what has been kept."""
        kept, self._kept = self._kept, bytearray()
        self._room -= len(kept)
        self._write(memoryview(kept))

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data) :]
