"""Writing files so that nobody ever sees half of one.

What is written goes to a temporary name in the target's folder and is moved into place when it is complete and on the
disk; after an error or Ctrl-C nothing is left, and a file that was there before is untouched.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from localcoder.errors import OutputError
from localcoder.files.huge_pages import PieceWriter

_REASONS = {
    errno.ENOSPC: "the disk is full",
    getattr(errno, "EDQUOT", errno.ENOSPC): "the disk quota is used up",
    errno.EFBIG: "the file is too large for this file system",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "its folder does not exist",
    errno.ENOTDIR: "its folder is a file",
    errno.ENAMETOOLONG: "the name is too long",
}


class OutputFile:
    """A file that appears under its name only when the `with` block ends without an exception.

    Args:
        path: the target; a link is followed. An existing file keeps its permissions.
        inputs: files that are being read, which must not be replaced.

    Attributes:
        path: as given, for messages.
        temporary: where the contents are until then.

    Raises (all methods):
        OutputError: the target cannot be written; the message says why.
    """

    def __init__(self, path: str | Path, *, inputs: Sequence[Path] = ()) -> None:
        self.path = Path(path)
        with self._explained():
            self._target = Path(os.path.realpath(self.path))
            self._check_target(inputs)
        self.temporary = self._target.with_name(f".localcoder-{secrets.token_hex(8)}.tmp")
        self._file: io.FileIO | None = None
        self._writer: PieceWriter

    def _check_target(self, inputs: Sequence[Path]) -> None:
        try:
            mode = self._target.stat().st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            raise OutputError(self.path, "is a folder; expected the name of a file to write")
        if not stat.S_ISREG(mode):
            raise OutputError(self.path, "is a pipe or a device; expected the name of a file to write")
        if not os.access(self._target, os.W_OK):
            raise OutputError(self.path, "exists and is read-only")
        if any(os.path.samefile(self._target, path) for path in inputs):
            raise OutputError(self.path, "is the file that is being read; choose another name for the output")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            reason = _REASONS.get(e.errno or 0, e.strerror or str(e))
            raise OutputError(self.path, f"cannot be written: {reason}") from None
        except ValueError as e:  # a NUL in the name
            raise OutputError(self.path, f"cannot be written: {e}") from None

    def __enter__(self) -> OutputFile:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            with self._explained():
                self._file = io.FileIO(os.open(self.temporary, flags, 0o666), "wb")
                self._writer = PieceWriter(self._file)
        except BaseException:
            self._discard()
            raise
        return self

    def check_space(self, n_bytes: int) -> None:
        """OutputError if the disk has no room for `n_bytes`, before the time to compute them is spent."""
        with self._explained():
            usage = shutil.disk_usage(self._target.parent)
        if usage.total and n_bytes > usage.free:
            found = f"it takes {n_bytes / 2**20:,.1f} MiB and {usage.free / 2**20:,.1f} MiB are free on the disk"
            raise OutputError(self.path, f"cannot be written: {found}")

    def write(self, data: bytes | memoryview) -> None:
        """Appends `data`, of any size."""
        assert self._file is not None, "outside the with block, or finished"
        with self._explained():
            self._writer.write(data)

    def finish(self) -> None:
        """Brings everything to the disk: `temporary` is complete and can be looked at before it is moved."""
        if self._file is None:
            return
        with self._explained():
            self._writer.flush()
            if self._target.exists():
                shutil.copymode(self._target, self.temporary)
            os.fsync(self._file.fileno())
            self._file.close()
        self._file = None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self.finish()
            with self._explained():
                os.replace(self.temporary, self._target)
        except BaseException:
            self._discard()
            raise
        _sync_folder(self._target.parent)

    def _discard(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        with contextlib.suppress(OSError):
            self.temporary.unlink()


def write_file(path: str | Path, data: bytes) -> None:
    """Writes or replaces the file `path` as a whole; OutputError if that cannot be done."""
    with OutputFile(path) as out:
        out.write(data)


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power failure, where folders can be opened for that."""
    if os.name == "posix":
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
