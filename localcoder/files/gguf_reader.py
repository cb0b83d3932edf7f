"""Reading GGUF files, which may come from strangers.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian). Every count,
length and offset is checked against the bytes that are there before it is used, so a hostile header costs no more than
its own size; whatever is wrong raises GGUFError with what was found and what was expected. The file is memory-mapped
and tensors are views of it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from localcoder.errors import GGUFError
from localcoder.quants import BY_ID, QuantTensor
from localcoder.quants.spec import Bytes

MetadataValue = int | float | bool | str | list[str] | np.ndarray[Any, Any]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 16
MAX_NAME_BYTES = 1 << 10
MAX_SPLITS = 1 << 10

_SCALARS = {  # GGUF value type -> numpy dtype
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9


class GGUFFile:
    """One GGUF file, or all parts of a split one.

    Attributes:
        path: the file that was opened (the first part).
        version: GGUF version of that file.
        metadata: key -> Python scalar, string, list of strings, or numpy array.
        tensors: name -> QuantTensor, views of the mapped files, in file order.
    """

    def __init__(self, path: Path, parts: list[_Part]) -> None:
        self.path = path
        self.version = parts[0].version
        self.metadata = parts[0].metadata
        self.tensors: dict[str, QuantTensor] = {}
        self._maps = [part.map for part in parts]
        for part in parts:
            for name, tensor in part.tensors.items():
                if name in self.tensors:
                    raise GGUFError(part.path, f"tensor {name} is also in another part")
                self.tensors[name] = tensor
        expected = self.metadata.get("split.tensors.count", len(self.tensors))
        if len(parts) > 1 and expected != len(self.tensors):
            raise GGUFError(path, f"{len(parts)} parts hold {len(self.tensors)} tensors, expected {expected}")

    @classmethod
    def open(cls, path: str | Path) -> GGUFFile:
        """Opens a file; of a split one (`-00001-of-0000N.gguf`) any part finds the others beside it.

        Raises:
            GGUFError: the file is not there, not GGUF, damaged, or a part of it is missing.
        """
        path = Path(path)
        match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
        if match is None:
            part = _Part(path)
            if part.metadata.get("split.count", 1) not in (0, 1):
                raise GGUFError(path, "part of a split file, but not named like one (…-00001-of-0000N.gguf)")
            return cls(path, [part])
        stem, count = match[1], int(match[3])
        if not 1 <= count <= MAX_SPLITS:
            raise GGUFError(path, f"its name says {count} parts; expected 1 to {MAX_SPLITS}")
        names = [path.with_name(f"{stem}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
        for name in names:
            if not name.is_file():
                raise GGUFError(name, f"this part of {path.name} is missing")
        parts = [_Part(name) for name in names]
        for number, part in enumerate(parts):
            said = (part.metadata.get("split.no", number), part.metadata.get("split.count", count))
            if said != (number, count):
                raise GGUFError(part.path, f"says it is part {said[0]} of {said[1]}, expected {number} of {count}")
        return cls(names[0], parts)

    def _get(self, key: str, default: object) -> object:
        value = self.metadata.get(key, default)
        if value is None:
            raise GGUFError(self.path, f"metadata key {key} is missing")
        return value

    def _wrong_type(self, key: str, value: object, expected: str) -> GGUFError:
        return GGUFError(self.path, f"metadata key {key} is {_kind(value)}, expected {expected}")

    def get_int(self, key: str, default: int | None = None) -> int:
        """An integer; GGUFError if it is missing (and there is no default) or of another type."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong_type(key, value, "an integer")
        return value

    def get_float(self, key: str, default: float | None = None) -> float:
        """A number; as `get_int`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong_type(key, value, "a number")
        return float(value)

    def get_bool(self, key: str, default: bool | None = None) -> bool:
        """A truth value; as `get_int`."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong_type(key, value, "true or false")
        return value

    def get_str(self, key: str, default: str | None = None) -> str:
        """A string; as `get_int`."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong_type(key, value, "a string")
        return value

    def get_strings(self, key: str) -> list[str]:
        """An array of strings; as `get_int`."""
        value = self._get(key, None)
        if not isinstance(value, list):
            raise self._wrong_type(key, value, "an array of strings")
        return value

    def get_array(self, key: str) -> np.ndarray[Any, Any]:
        """An array of numbers; as `get_int`."""
        value = self._get(key, None)
        if not isinstance(value, np.ndarray):
            raise self._wrong_type(key, value, "an array of numbers")
        return value

    def close(self) -> None:
        """Unmaps the file as soon as no tensor view is left."""
        self.tensors.clear()
        for mapped in self._maps:
            with contextlib.suppress(BufferError):  # a view is still held; the map goes with it
                mapped.close()
        self._maps.clear()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    if isinstance(value, list):
        return "an array of strings"
    return {int: "an integer", float: "a number", str: "a string"}[type(value)]


class _Part:
    """One mapped file: header, metadata, tensor table."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as f:
                size = f.seek(0, 2)
                if size < 24:
                    raise GGUFError(path, f"{size} bytes are too few for a GGUF file")
                self.map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise GGUFError(path, "no such file") from None
        except IsADirectoryError:
            raise GGUFError(path, "is a folder, not a GGUF file") from None
        except OSError as e:
            raise GGUFError(path, f"cannot be opened: {e.strerror}") from None
        self._size = size
        self._at = 0
        self._read_header()

    # -- primitive reads, each checked against the end of the file

    def _need(self, n: int, what: str) -> int:
        at = self._at
        if n > self._size - at:
            raise GGUFError(self.path, f"truncated: {what} at byte {at} needs {n} bytes, {self._size - at} are left")
        self._at = at + n
        return at

    def _u32(self, what: str) -> int:
        return int(struct.unpack_from("<I", self.map, self._need(4, what))[0])

    def _u64(self, what: str) -> int:
        return int(struct.unpack_from("<Q", self.map, self._need(8, what))[0])

    def _string(self, what: str, most: int | None = None) -> str:
        n = self._u64(f"length of {what}")
        if most is not None and n > most:
            raise GGUFError(self.path, f"{what} is {n} bytes long; expected at most {most}")
        at = self._need(n, what)
        try:
            return self.map[at : at + n].decode("utf-8")
        except UnicodeDecodeError:
            raise GGUFError(self.path, f"{what} is not UTF-8") from None

    def _scalar(self, kind: int, what: str) -> Any:
        if kind not in _SCALARS:
            raise GGUFError(self.path, f"{what} has unknown value type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        raw = np.frombuffer(self.map, np.uint8 if kind == 7 else dtype, 1, self._need(dtype.itemsize, what))[0]
        if kind == 7 and raw > 1:
            raise GGUFError(self.path, f"{what} is {raw}; expected 0 or 1")
        return bool(raw) if kind == 7 else raw.item()

    def _strings(self, n: int, what: str) -> list[str]:
        if n > (self._size - self._at) // 8:
            raise GGUFError(self.path, f"{what} claims {n} strings; the file is too short for them")
        data, at, size = self.map, self._at, self._size
        unpack = struct.Struct("<Q").unpack_from
        found: list[str] = []
        try:
            for _ in range(n):
                length = unpack(data, at)[0]
                at += 8
                end = at + length
                if end > size:
                    raise GGUFError(self.path, f"truncated: {what}, string {len(found)} needs {length} bytes")
                found.append(data[at:end].decode("utf-8"))
                at = end
        except UnicodeDecodeError:
            raise GGUFError(self.path, f"{what}, string {len(found)} is not UTF-8") from None
        except struct.error:
            raise GGUFError(self.path, f"truncated: {what}, string {len(found)} of {n}") from None
        self._at = at
        return found

    def _value(self, kind: int, what: str) -> MetadataValue:
        if kind == _STRING:
            return self._string(what)
        if kind != _ARRAY:
            return self._scalar(kind, what)
        element, n = self._u32(f"{what}, element type"), self._u64(f"{what}, length")
        if element == _STRING:
            return self._strings(n, what)
        if element not in _SCALARS:
            raise GGUFError(self.path, f"{what} is an array of unsupported type {element}")
        dtype = np.dtype(_SCALARS[element])
        at = self._need(n * dtype.itemsize, what)
        return np.frombuffer(self.map, dtype, n, at).copy()

    # -- the sections

    def _read_header(self) -> None:
        magic = self.map[:4]
        if magic != MAGIC:
            raise GGUFError(self.path, f"not a GGUF file: starts with {magic!r}, expected {MAGIC!r}")
        self._at = 4
        self.version = self._u32("version")
        if self.version not in VERSIONS:
            hint = ""
            if self.version & 0xFFFF == 0:
                hint = " (a big-endian file?)"
            elif self.version == 1:
                hint = " (files of 2023-08; convert the checkpoint anew)"
            raise GGUFError(self.path, f"GGUF version {self.version}{hint}; expected 2 or 3")
        n_tensors, n_pairs = self._u64("tensor count"), self._u64("metadata count")
        left = self._size - self._at
        if n_pairs > left // 13:  # 8 length of key, 4 type, 1 value at least
            raise GGUFError(self.path, f"claims {n_pairs} metadata pairs; the file is too short for them")
        if n_tensors > left // 24:  # 8 length of name, 4 dimensions, 4 type, 8 offset at least
            raise GGUFError(self.path, f"claims {n_tensors} tensors; the file is too short for them")
        self.metadata: dict[str, MetadataValue] = {}
        for i in range(n_pairs):
            key = self._string(f"metadata key {i}", MAX_NAME_BYTES)
            if key in self.metadata:
                raise GGUFError(self.path, f"metadata key {key} occurs twice")
            self.metadata[key] = self._value(self._u32(f"type of {key}"), f"metadata key {key}")
        self._read_tensors(n_tensors)

    def _read_tensors(self, n_tensors: int) -> None:
        alignment = self.metadata.get("general.alignment", 32)
        if (
            isinstance(alignment, bool)
            or not isinstance(alignment, int)
            or not 1 <= alignment <= MAX_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            raise GGUFError(self.path, f"general.alignment is {alignment}; expected a power of two to {MAX_ALIGNMENT}")
        infos = [self._tensor_info(i) for i in range(n_tensors)]
        start = -(-self._at // alignment) * alignment
        mapped = np.frombuffer(self.map, np.uint8)
        self.tensors: dict[str, QuantTensor] = {}
        spans = []
        for name, shape, type_id, offset in infos:
            if name in self.tensors:
                raise GGUFError(self.path, f"tensor {name} occurs twice")
            qtype = BY_ID.get(type_id)
            if qtype is None:
                raise GGUFError(self.path, f"tensor {name} has type {type_id}, which is not supported")
            if offset % alignment:
                raise GGUFError(self.path, f"tensor {name} starts at {offset}, not a multiple of {alignment}")
            if shape[-1] % qtype.block_elems:
                raise GGUFError(
                    self.path,
                    f"tensor {name}: rows of {shape[-1]} values; {qtype.name} has blocks of {qtype.block_elems}",
                )
            row_bytes = qtype.row_bytes(shape[-1])
            n_bytes = math.prod(shape[:-1]) * row_bytes
            if start + offset + n_bytes > self._size:
                raise GGUFError(
                    self.path,
                    f"truncated: tensor {name} ends at byte {start + offset + n_bytes}, the file at {self._size}",
                )
            spans.append((offset, offset + n_bytes, name))
            data: Bytes = mapped[start + offset : start + offset + n_bytes].reshape(*shape[:-1], row_bytes)
            self.tensors[name] = QuantTensor(name, qtype, shape, data)
        spans.sort()
        for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
            if begin < end:
                raise GGUFError(self.path, f"tensors {first} and {second} overlap")

    def _tensor_info(self, i: int) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string(f"name of tensor {i}", MAX_NAME_BYTES)
        n_dims = self._u32(f"dimensions of {name}")
        if not 1 <= n_dims <= MAX_DIMS:
            raise GGUFError(self.path, f"tensor {name} has {n_dims} dimensions; expected 1 to {MAX_DIMS}")
        dims = [self._u64(f"shape of {name}") for _ in range(n_dims)]
        if 0 in dims or math.prod(dims) > 8 * self._size * 256:
            raise GGUFError(self.path, f"tensor {name} has shape {dims}; the file cannot hold it")
        return name, tuple(reversed(dims)), self._u32(f"type of {name}"), self._u64(f"offset of {name}")
