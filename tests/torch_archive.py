"""Torch checkpoints made by hand, instruction by instruction, so that each can be wrong in one place."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

VALUES = np.arange(6, dtype="<f4")


def text(s: str) -> bytes:
    return b"X" + len(s.encode()).to_bytes(4, "little") + s.encode()


def integer(n: int) -> bytes:
    data = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t" if len(values) > 3 else _short_tuple(values)


def _short_tuple(values: tuple[int, ...]) -> bytes:
    return b"".join(map(integer, values)) + (b")", b"\x85", b"\x86", b"\x87")[len(values)]


def pickled_tensor(
    shape: tuple[int, ...],
    *,
    strides: tuple[int, ...] | None = None,
    offset: int = 0,
    n_values: int = VALUES.size,
    key: str = "0",
    storage: str = "FloatStorage",
) -> bytes:
    """The instructions for one tensor."""
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :], dtype=object)) for i in range(len(shape)))
    reference = b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text(key) + text("cpu") + integer(n_values)
    arguments = reference + b"tQ" + integer(offset) + numbers(shape) + numbers(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"\x89ccollections\nOrderedDict\n)RtR"


def pickled_dict(**items: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(text(name) + item for name, item in items.items()) + b"u."


def archive(
    pickled: bytes,
    *,
    folder: str = "archive",
    compression: int = zipfile.ZIP_STORED,
    extra: dict[str, bytes] | None = None,
) -> bytes:
    """A zip archive with that data.pkl and one storage, VALUES."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as made:
        made.writestr(f"{folder}/data.pkl", pickled)
        for name, data in {f"{folder}/data/0": VALUES.tobytes(), f"{folder}/version": b"3\n"}.items():
            made.writestr(name, data)
        for name, data in (extra or {}).items():
            made.writestr(name, data)
    return out.getvalue()


def write_archive(path: Path, pickled: bytes, **options) -> None:
    path.write_bytes(archive(pickled, **options))
