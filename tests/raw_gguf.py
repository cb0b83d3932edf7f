"""GGUF files made by hand, field by field, so that each can be wrong in one place."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_LAYOUT = {U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f"} | {
    BOOL: "<B",
    U64: "<Q",
    I64: "<q",
    F64: "<d",
}


def u32(n: int) -> bytes:
    return struct.pack("<I", n)


def u64(n: int) -> bytes:
    return struct.pack("<Q", n)


def string(s: str | bytes) -> bytes:
    data = s if isinstance(s, bytes) else s.encode()
    return u64(len(data)) + data


def pair(key: str | bytes, kind: int, value: object) -> bytes:
    """A metadata pair; the value of an array is (element type, [values]), bytes are taken as they are."""
    return string(key) + u32(kind) + (value if isinstance(value, bytes) else _packed(kind, value))


def _packed(kind: int, value: object) -> bytes:
    if kind == STRING:
        return string(value)
    if kind == ARRAY:
        element, values = value
        return u32(element) + u64(len(values)) + b"".join(_packed(element, v) for v in values)
    return struct.pack(_LAYOUT[kind], value)


def tensor(name: str | bytes, dims: list[int], type_id: int = 0, offset: int = 0) -> bytes:
    return string(name) + u32(len(dims)) + b"".join(map(u64, dims)) + u32(type_id) + u64(offset)


@dataclass
class RawGGUF:
    """The fields of a small valid file; `bytes()` puts them together as they are."""

    magic: bytes = b"GGUF"
    version: int = 3
    pairs: list[bytes] = field(
        default_factory=lambda: [
            pair("general.architecture", STRING, "llama"),
            pair("tokens", ARRAY, (STRING, ["a", "｜", ""])),
            pair("scores", ARRAY, (F32, [0.5, 1.0])),
            pair("flag", BOOL, 1),
        ]
    )
    tensors: list[bytes] = field(default_factory=lambda: [tensor("x", [4, 2]), tensor("y", [32], 8, 32)])
    n_tensors: int | None = None
    n_pairs: int | None = None
    alignment: int = 32
    data: bytes = bytes(32 + 34)

    def bytes(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_pairs = len(self.pairs) if self.n_pairs is None else self.n_pairs
        head = self.magic + u32(self.version) + u64(n_tensors) + u64(n_pairs) + b"".join(self.pairs + self.tensors)
        return head + bytes(-len(head) % self.alignment) + self.data
