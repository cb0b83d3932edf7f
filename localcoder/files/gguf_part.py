"""One GGUF file, from its first byte to its last: header, metadata, tensor table.

Every count, length and offset is checked against the bytes that are there before it is used, so a hostile header costs
no more than its own size; whatever is wrong raises GGUFError with what was found and what was expected.
"""

from __future__ import annotations

import itertools
import math
import struct
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from localcoder.errors import GGUFError
from localcoder.files.gguf_metadata import MetadataValue, TypedMetadata
from localcoder.files.mapped import MappedFile, looks_like
from localcoder.quants import BY_ID, QuantTensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENTS = tuple(1 << i for i in range(3, 17))
MAX_DIMS = 4
MAX_NAME_BYTES = 1 << 10
MAX_TENSORS = MAX_PAIRS = 1 << 16
MAX_STRINGS = 1 << 22

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
_BOOL, _STRING, _ARRAY = 7, 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class GGUFPart(TypedMetadata):
    """One mapped file.

    Attributes:
        version: of the format.
        size: bytes of the file.
        value_types: metadata key -> its GGUF value type, and that of an array's elements.
        tensors: name -> QuantTensor, views of the map, in file order.
    """

    def __init__(self, path: Path) -> None:
        """Opens `path`; GGUFError if it is not there, not GGUF, or damaged."""
        self.path = path
        self._file = MappedFile(path, GGUFError)
        self._map = self._file.map
        self.size = self._file.size
        self.tensors: dict[str, QuantTensor] = {}
        self.metadata: dict[str, MetadataValue] = {}
        self.value_types: dict[str, tuple[int, int | None]] = {}
        self._at = 0
        try:
            n_tensors, n_pairs = self._read_header()
            self._read_metadata(n_pairs)
            self._read_tensors(n_tensors)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unmaps the file as soon as no view of a tensor is left."""
        self.tensors = {}
        self._file.close()

    def _fail(self, problem: str) -> NoReturn:
        raise GGUFError(self.path, problem) from None

    # -- primitive reads, each checked against the end of the file

    def _need(self, n: int, what: str) -> int:
        at = self._at
        if n > self.size - at:
            self._fail(f"truncated: {what} at byte {at} needs {n} bytes, {self.size - at} are left")
        self._at = at + n
        return at

    def _u32(self, what: str) -> int:
        return int(_U32.unpack_from(self._map, self._need(4, what))[0])

    def _u64(self, what: str) -> int:
        return int(_U64.unpack_from(self._map, self._need(8, what))[0])

    def _string(self, what: str, most: int | None = None) -> str:
        n = self._u64(f"length of {what}")
        if most is not None and n > most:
            self._fail(f"{what} is {n} bytes long; expected at most {most}")
        at = self._need(n, what)
        try:
            return self._map[at : at + n].decode("utf-8")
        except UnicodeDecodeError:
            self._fail(f"{what} is not UTF-8")

    def _strings(self, n: int, what: str) -> list[str]:
        """The inner loop of opening a file: a vocabulary and its merges are a few hundred thousand strings."""
        if n > MAX_STRINGS:
            self._fail(f"{what} claims {n} strings; expected at most {MAX_STRINGS}")
        data, at, size, length_at = self._map, self._at, self.size, _U64.unpack_from
        found: list[str] = []
        try:
            for _ in range(n):
                end = at + 8 + length_at(data, at)[0]
                if end > size:
                    self._fail(f"truncated: {what}, string {len(found)} ends at byte {end}, the file at {size}")
                found.append(str(data[at + 8 : end], "utf-8"))
                at = end
        except UnicodeDecodeError:
            self._fail(f"{what}, string {len(found)} is not UTF-8")
        except struct.error:
            self._fail(f"truncated: {what} ends after {len(found)} strings of {n}")
        self._at = at
        return found

    def _numbers(self, kind: int, n: int, what: str) -> np.ndarray[Any, Any]:
        if kind not in _SCALARS:
            self._fail(f"{what} has the value type {kind}, which is not supported")
        dtype = np.dtype(_SCALARS[kind])
        raw = self._file.bytes[self._need(n * dtype.itemsize, what) : self._at]
        if kind == _BOOL and raw.size and raw.max() > 1:
            self._fail(f"{what} is {raw.max()}; expected 0 or 1")
        return raw.view(dtype).copy()

    def _value(self, key: str) -> MetadataValue:
        what = f"metadata key {key}"
        kind = self._u32(f"type of {key}")
        self.value_types[key] = kind, None
        if kind == _STRING:
            return self._string(what)
        if kind != _ARRAY:
            scalar: MetadataValue = self._numbers(kind, 1, what)[0].item()
            return scalar
        element, n = self._u32(f"{what}, element type"), self._u64(f"{what}, length")
        self.value_types[key] = kind, element
        return self._strings(n, what) if element == _STRING else self._numbers(element, n, f"array in {what}")

    # -- the sections

    def _read_header(self) -> tuple[int, int]:
        """Number of tensors and of metadata pairs."""
        start = self._map[:64]
        if not start.startswith(MAGIC):
            self._fail(f"expected a GGUF file, found {looks_like(start)}")
        self._at = len(MAGIC)
        self.version = self._u32("version")
        if self.version not in VERSIONS:
            hint = ""
            if self.version & 0xFFFF == 0:
                hint = " (a big-endian file?)"
            elif self.version == 1:
                hint = " (files of 2023-08; convert the checkpoint anew)"
            self._fail(f"GGUF version {self.version}{hint}; expected 2 or 3")
        n_tensors, n_pairs = self._u64("tensor count"), self._u64("metadata count")
        for n, most, what in ((n_tensors, MAX_TENSORS, "tensors"), (n_pairs, MAX_PAIRS, "metadata pairs")):
            if n > most:
                self._fail(f"claims {n} {what}; expected at most {most}")
        return n_tensors, n_pairs

    def _read_metadata(self, n_pairs: int) -> None:
        for i in range(n_pairs):
            key = self._string(f"metadata key {i}", MAX_NAME_BYTES)
            if key in self.metadata:
                self._fail(f"metadata key {key} occurs twice")
            self.metadata[key] = self._value(key)

    def _read_tensors(self, n_tensors: int) -> None:
        alignment = self.get_int("general.alignment", 32)
        if alignment not in ALIGNMENTS:
            expected = f"a power of two from {ALIGNMENTS[0]} to {ALIGNMENTS[-1]}"
            self._fail(f"general.alignment is {alignment}; expected {expected}")
        infos = [self._tensor_info(i) for i in range(n_tensors)]
        start = self._at + -self._at % alignment
        spans = []
        for name, shape, type_id, offset in infos:
            if name in self.tensors:
                self._fail(f"tensor {name} occurs twice")
            if offset % alignment:
                self._fail(f"tensor {name} starts at {offset}, not a multiple of {alignment}")
            tensor = self._tensor(name, shape, type_id, start + offset)
            spans.append((offset, offset + tensor.nbytes, name))
            self.tensors[name] = tensor
        spans.sort()
        for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
            if begin < end:
                self._fail(f"tensors {first} and {second} overlap")

    def _tensor_info(self, i: int) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string(f"name of tensor {i}", MAX_NAME_BYTES)
        n_dims = self._u32(f"dimensions of {name}")
        if not 1 <= n_dims <= MAX_DIMS:
            self._fail(f"tensor {name} has {n_dims} dimensions; expected 1 to {MAX_DIMS}")
        dims = [self._u64(f"shape of {name}") for _ in range(n_dims)]
        if 0 in dims:
            self._fail(f"tensor {name} has shape {dims}; expected no zero")
        return name, tuple(reversed(dims)), self._u32(f"type of {name}"), self._u64(f"offset of {name}")

    def _tensor(self, name: str, shape: tuple[int, ...], type_id: int, start: int) -> QuantTensor:
        qtype = BY_ID.get(type_id)
        if qtype is None:
            self._fail(f"tensor {name} has type {type_id}, which is not supported")
        if shape[-1] % qtype.block_elems:
            self._fail(f"tensor {name}: rows of {shape[-1]} values; {qtype.name} has blocks of {qtype.block_elems}")
        row_bytes = qtype.row_bytes(shape[-1])
        end = start + math.prod(shape[:-1]) * row_bytes
        if end > self.size:
            self._fail(f"truncated: tensor {name} ends at byte {end}, the file at {self.size}")
        return QuantTensor(name, qtype, shape, self._file.bytes[start:end].reshape(*shape[:-1], row_bytes))
