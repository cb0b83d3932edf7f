"""Opening a file of a stranger for reading: a regular file, memory-mapped read-only.

A map follows the file: if another program shortens the file while it is mapped, reading the lost part ends the process
(a bus error), on every system that allows it. Nothing here can prevent that; replacing a file by another (what our own
writers do) is safe.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from pathlib import Path

import numpy as np

from localcoder.errors import FileError
from localcoder.quants.spec import Bytes

_LOOKS_LIKE = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`"),
    (b"GGUF", "a GGUF file"),
    (b"tjgg", "a GGML file of before GGUF; convert the checkpoint anew"),
    (b"fmgg", "a GGML file of before GGUF; convert the checkpoint anew"),
    (b"lmgg", "a GGML file of before GGUF; convert the checkpoint anew"),
    (b"PK\x03\x04", "a zip archive or torch checkpoint"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a torch checkpoint in the format of before torch 1.6"),
    (b"<!DOCTYPE", "a web page; the download went wrong"),
    (b"<html", "a web page; the download went wrong"),
    (b"{", "JSON text"),
)


def looks_like(start: bytes) -> str:
    """What a file that begins with `start` seems to be, to end the sentence "expected X, found …"."""
    for magic, what in _LOOKS_LIKE:
        if start.startswith(magic):
            return what
    if start[8:9] == b"{" and start[4:8] == bytes(4):
        return "a safetensors file"
    return f"a file that starts with {start[:8]!r}"


def open_regular(path: Path, error: type[FileError]) -> int:
    """A descriptor of the regular file `path`, for reading; `error` says why it cannot be had.

    Pipes and devices are refused without waiting for them.
    """
    try:
        if path.is_dir():
            raise error(path, "is a folder; expected a file")
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        broken = os.path.islink(path)
        raise error(path, "is a link to a file that is not there" if broken else "no such file") from None
    except OSError as e:
        raise error(path, f"cannot be opened: {e.strerror}") from None
    except ValueError:  # a NUL in the name
        raise error(path, "is no name that a file can have") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(path, "is a pipe or a device; expected a regular file")
    return descriptor


def read_bounded(path: Path, most: int, error: type[FileError]) -> bytes:
    """The contents of a regular file of at most `most` bytes."""
    with open(open_regular(path, error), "rb") as f:
        try:
            data = f.read(most + 1)
        except OSError as e:
            raise error(path, f"cannot be read: {e.strerror}") from None
    if len(data) > most:
        raise error(path, f"is longer than {most} bytes, the most that is expected here")
    return data


class MappedFile:
    """A regular file as read-only bytes.

    Attributes:
        path: as given.
        size: bytes at the time of opening.
        map: the mmap object, for slices that copy.
        bytes: uint8 [size], a view of the map for slices that do not.
    """

    def __init__(self, path: Path, error: type[FileError]) -> None:
        self.path = path
        descriptor = open_regular(path, error)
        try:
            self.size = os.fstat(descriptor).st_size
            if self.size == 0:
                raise error(path, "is empty")
            self.map = mmap.mmap(descriptor, self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:
            raise error(path, f"cannot be mapped: {getattr(e, 'strerror', None) or e}") from None
        finally:
            os.close(descriptor)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # where it is read from the disk now, decoding is 3% faster afterwards
            with contextlib.suppress(OSError):  # a kernel without huge pages
                self.map.madvise(mmap.MADV_HUGEPAGE)
        self.bytes: Bytes = np.frombuffer(self.map, np.uint8)

    def close(self) -> None:
        """Unmaps the file as soon as no view of it is left."""
        self.bytes = np.empty(0, np.uint8)
        with contextlib.suppress(BufferError):  # a view is still held; the map goes with it
            self.map.close()
