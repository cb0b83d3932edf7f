"""Importance matrices: for each weight matrix, how much each column of its input is used.

Format: GGUF with `general.type` = "imatrix" and, for a matrix NAME, tensors `NAME.in_sum2` (float32, sum over tokens
of the squared input, [n_in]) and `NAME.counts` (float32, number of tokens), as llama.cpp's imatrix tool writes it
(https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix). Its older format (.dat) is read, not written.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from localcoder.errors import FileError, GGUFError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.gguf_writer import GGUFOutput, TensorInfo
from localcoder.quants import by_name
from localcoder.quants.spec import Float32

_F32 = by_name("f32")
_MAX_LEGACY_BYTES = 1 << 30
_MAX_COLUMNS = 1 << 24


@dataclass
class ImportanceMatrix:
    """Sums of squared inputs, by matrix name.

    Attributes:
        sums: float32 [n_in] sum over tokens of the squared input.
        counts: number of tokens in each sum.
        datasets: names of the texts they come from.
        chunk_size: tokens a chunk.
        n_chunks: chunks seen.
        path: the file it was read from.
    """

    chunk_size: int
    n_chunks: int = 0
    datasets: list[str] = field(default_factory=list)
    sums: dict[str, Float32] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    path: Path | None = None

    def add(self, name: str, x: Float32) -> None:
        """Counts the inputs x [n_tokens, n_in] of the matrix `name`."""
        squares = np.einsum("ij,ij->j", x, x, dtype=np.float64)
        self.sums[name] = (self.sums.get(name, np.zeros(x.shape[1])) + squares).astype(np.float32)
        self.counts[name] = self.counts.get(name, 0) + len(x)

    def importance(self, name: str, n_in: int) -> Float32 | None:
        """Mean squared input of each column, float32 [n_in]; None if the matrix was not observed.

        Raises:
            FileError: it was observed with another number of columns, so this is another model's importance matrix.
        """
        if not self.counts.get(name):
            return None
        if self.sums[name].shape != (n_in,):
            found = f"{name} has {n_in} columns and its importance matrix {len(self.sums[name])}"
            raise FileError(self.source, f"{found}: it belongs to another model")
        return self.sums[name] / np.float32(self.counts[name])

    @property
    def source(self) -> str:
        """What to call it in messages."""
        return str(self.path) if self.path else "importance matrix"

    def save(self, path: str | Path) -> None:
        """Writes the GGUF form, atomically. OutputError as `GGUFOutput`."""
        with GGUFOutput(path, "imatrix") as out:
            out.metadata.add_type("imatrix")
            out.metadata.add_array("imatrix.datasets", self.datasets)
            out.metadata.add_uint32("imatrix.chunk_count", self.n_chunks)
            out.metadata.add_uint32("imatrix.chunk_size", self.chunk_size)
            tensors: list[tuple[str, Float32]] = []
            for name in sorted(self.sums):
                tensors.append((f"{name}.in_sum2", self.sums[name][None, :]))
                tensors.append((f"{name}.counts", np.array([[self.counts[name]]], np.float32)))
            out.begin([TensorInfo(name, _F32, values.shape) for name, values in tensors])
            for name, values in tensors:
                out.write(name, _F32.quantize(values))

    @classmethod
    def open(cls, path: str | Path) -> ImportanceMatrix:
        """Reads either form.

        Raises:
            FileError: neither, or damaged.
        """
        path = Path(path)
        try:
            with path.open("rb") as f:
                is_gguf = f.read(4) == b"GGUF"
                f.seek(0)
                legacy = b"" if is_gguf else f.read(_MAX_LEGACY_BYTES + 1)
        except OSError as e:
            raise FileError(path, f"cannot be read: {e.strerror}") from None
        if len(legacy) > _MAX_LEGACY_BYTES:
            raise FileError(path, "neither a GGUF nor a .dat importance matrix (it is too large)")
        found = cls._read_gguf(path) if is_gguf else cls._read_legacy(path, legacy)
        found.path = path
        for name, sums in found.sums.items():
            if not (np.isfinite(sums).all() and (sums >= 0).all()):
                raise FileError(path, f"{name} has sums of squares that are negative or not finite")
        return found

    @classmethod
    def _read_gguf(cls, path: Path) -> ImportanceMatrix:
        with GGUFFile.open(path) as file:
            if file.get_str("general.type", "model") != "imatrix":
                raise GGUFError(path, "is a GGUF file, but not an importance matrix (general.type is not 'imatrix')")
            found = cls(file.get_int("imatrix.chunk_size", 512), file.get_int("imatrix.chunk_count", 0))
            found.datasets = file.get_strings("imatrix.datasets") if "imatrix.datasets" in file.metadata else []
            for tensor_name, tensor in file.tensors.items():
                name = tensor_name.removesuffix(".in_sum2")
                if name == tensor_name:
                    continue
                counts = file.tensors.get(f"{name}.counts")
                if counts is None:
                    raise GGUFError(path, f"tensor {name}.counts is missing")
                sums, n = tensor.dequantize().reshape(-1), counts.dequantize().reshape(-1)
                if len(n) != 1 or not 0 <= n[0] < 1 << 53:
                    raise GGUFError(path, f"tensor {name}.counts should hold one count")
                found.sums[name], found.counts[name] = sums, int(n[0])
        return found

    @classmethod
    def _read_legacy(cls, path: Path, data: bytes) -> ImportanceMatrix:
        """int32 n, then n times: name, int32 n_calls, float32 values (mean · n_calls); int32 n_chunks; dataset name."""
        at = 0

        def number(what: str, most: int) -> int:
            nonlocal at
            if at + 4 > len(data):
                raise FileError(path, f"not an importance matrix, or truncated: {what} at byte {at}")
            (value,) = struct.unpack_from("<i", data, at)
            at += 4
            if not 0 <= value <= most:
                raise FileError(path, f"not an importance matrix: {what} is {value}")
            return int(value)

        def take(n: int, what: str) -> bytes:
            nonlocal at
            if at + n > len(data):
                raise FileError(path, f"truncated: {what} at byte {at} needs {n} bytes")
            at += n
            return data[at - n : at]

        found = cls(chunk_size=512)
        try:
            for _ in range(number("number of entries", 1 << 16)):
                name = take(number("length of a name", 1 << 10), "a name").decode("utf-8")
                n_calls = number(f"calls of {name}", 1 << 30)
                n_values = number(f"columns of {name}", _MAX_COLUMNS)
                values = np.frombuffer(take(4 * n_values, name), "<f4").astype(np.float32)
                found.sums[name] = values * np.float32(found.chunk_size)
                found.counts[name] = n_calls * found.chunk_size
            if at < len(data):
                found.n_chunks = number("number of chunks", 1 << 30)
                found.datasets = [take(number("length of the dataset's name", 1 << 16), "dataset").decode("utf-8")]
        except UnicodeDecodeError:
            raise FileError(path, "not an importance matrix: a name is not UTF-8") from None
        return found
