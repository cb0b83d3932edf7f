"""Arrays that are too large to keep in memory, in a file without a name: nothing is left of it, whatever happens."""

from __future__ import annotations

import errno
import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from localcoder.errors import OutputError
from localcoder.quants.spec import Float32


class ScratchArray:
    """float32 [n, *shape] on the disk, read and written one of the n at a time; a context manager.

    Args:
        folder: on whose disk it lies; None: where the system keeps temporary files.

    Raises (all methods):
        OutputError: the disk is full, or the folder cannot be written to.
    """

    def __init__(self, n: int, shape: tuple[int, ...], folder: Path | None = None) -> None:
        self._n, self._shape = n, shape
        self._nbytes = 4 * math.prod(shape)
        self._folder = folder or Path(tempfile.gettempdir())
        try:
            self._file = tempfile.TemporaryFile(dir=self._folder, prefix=".localcoder-", buffering=0)  # noqa: SIM115
        except OSError as e:
            raise self._error(e) from None

    @property
    def width(self) -> int:
        """The last dimension."""
        return self._shape[-1]

    def __iter__(self) -> Iterator[Float32]:
        return (self[i] for i in range(self._n))

    def __getitem__(self, i: int) -> Float32:
        """A copy of number i, float32 of `shape`."""
        out = np.empty(self._shape, np.float32)
        self._file.seek(i * self._nbytes)
        left = out.reshape(-1).view(np.uint8).data
        while left:
            n_read = self._file.readinto(left)
            if not n_read:
                raise OutputError(self._folder, f"a temporary file ends before number {i}")
            left = left[n_read:]
        return out

    def fill(self, values: Iterable[Float32]) -> None:
        """Writes number 0, 1, ...; each is taken from `values` when those before it are written, and no sooner."""
        for i, x in enumerate(values):
            left = np.ascontiguousarray(x, np.float32).reshape(-1).view(np.uint8).data
            try:
                self._file.seek(i * self._nbytes)
                while left:
                    left = left[self._file.write(left) :]
            except OSError as e:
                raise self._error(e) from None

    def _error(self, e: OSError) -> OutputError:
        problem = "the disk is full" if e.errno == errno.ENOSPC else e.strerror or str(e)
        size = f"{self._n * self._nbytes / 2**20:,.1f} MiB of temporary data"
        return OutputError(self._folder, f"cannot take {size}: {problem}")

    def __enter__(self) -> ScratchArray:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
