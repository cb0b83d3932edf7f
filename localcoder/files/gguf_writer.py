"""Writing a GGUF file tensor by tensor, in slices.

The `gguf` package writes the header, the metadata and the tensor table; the tensors' bytes are streamed after it, so
that none has to be in memory as a whole.
"""

from __future__ import annotations

import io
import math
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from localcoder.errors import OutputError
from localcoder.files.atomic import OutputFile
from localcoder.files.gguf_reader import SPLIT_NAME
from localcoder.quants import QuantType
from localcoder.quants.spec import Bytes

if TYPE_CHECKING:
    import gguf

    from localcoder.files.gguf_metadata import MetadataValue
    from localcoder.files.gguf_reader import GGUFFile


@dataclass(frozen=True)
class TensorInfo:
    """A tensor to be written: GGUF name, format, and row-major shape, (n_out, n_in) for a matrix."""

    name: str
    qtype: QuantType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.qtype.row_bytes(self.shape[-1])


class GGUFOutput:
    """A GGUF v3 file that appears under its name only when it is complete; a context manager.

        with GGUFOutput("model.gguf", "llama") as out:
            out.metadata.add_block_count(24)
            out.begin(infos)
            for info in infos:
                out.write(info.name, first_rows)
                out.write(info.name, other_rows)

    Args:
        path: the target; see `OutputFile`.
        architecture: `general.architecture`.
        inputs: files that are being read, which must not be replaced.

    Attributes:
        metadata: the `gguf` package's writer, for its `add_…` methods, until `begin`.
        temporary: where the file is until it is complete.

    Raises (all methods):
        OutputError: the file cannot be written.
        ValueError: a call out of order, or more bytes than the tensor has.
    """

    def __init__(self, path: str | Path, architecture: str, *, inputs: Sequence[Path] = ()) -> None:
        import gguf

        self.path = Path(path)
        if SPLIT_NAME.fullmatch(self.path.name):
            raise OutputError(path, "is named like one part of a split file, which readers look for the others of")
        self._file = OutputFile(path, inputs=inputs)
        self.temporary = self._file.temporary
        self.metadata: gguf.GGUFWriter = gguf.GGUFWriter(None, architecture)
        self._to_write: deque[TensorInfo] | None = None  # None: before `begin`
        self._n_written = 0  # bytes of the first of them

    def __enter__(self) -> GGUFOutput:
        self._file.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is None:
                self.finish()
        except BaseException as e:
            self._file.__exit__(type(e))
            raise
        self._file.__exit__(kind)

    def copy_metadata(self, source: GGUFFile) -> None:
        """Adds what `source` says: its `metadata`, in the types that the file has, or for new values the usual ones."""
        for key, value in source.metadata.items():
            if key == "general.architecture" or key.startswith("split."):  # said already; not true of one file
                continue
            if key == "general.alignment":
                self.metadata.add_custom_alignment(source.get_int(key))
                continue
            self.add_metadata(key, value, source.value_types.get(key))

    def add_metadata(self, key: str, value: MetadataValue, types: tuple[int, int | None] | None = None) -> None:
        """Sets one pair; `types` as in `GGUFFile.value_types`, default: the usual ones."""
        from gguf import GGUFValueType

        plain = value.tolist() if isinstance(value, np.ndarray) else value
        if plain == []:  # the format's writers leave it out
            return
        kind, element = types or _value_types(value)
        self.metadata.kv_data[0].pop(key, None)
        self.metadata.add_key_value(
            key, plain, GGUFValueType(kind), None if element is None else GGUFValueType(element)
        )

    def size_of(self, tensors: Sequence[TensorInfo]) -> int:
        """Bytes of the file with the metadata so far and these tensors."""
        return len(self._header(tensors)) + self.padded_bytes(tensors)

    def begin(self, tensors: Sequence[TensorInfo]) -> int:
        """Writes the metadata and the table of tensors, whose bytes are to follow in this order; the file's size."""
        if self._to_write is not None:
            raise ValueError("begin was called before")
        header = self._header(tensors)
        n_bytes = len(header) + self.padded_bytes(tensors)
        self._file.check_space(n_bytes)
        self._file.write(header)
        self._to_write = deque(tensors)
        return n_bytes

    def padded_bytes(self, tensors: Sequence[TensorInfo]) -> int:
        """What these tensors take in the file."""
        alignment = self.metadata.data_alignment
        return sum(info.nbytes + -info.nbytes % alignment for info in tensors)

    def _header(self, tensors: Sequence[TensorInfo]) -> bytes:
        from gguf import GGMLQuantizationType
        from gguf.gguf_writer import WriterState

        writer, header = self.metadata, io.BytesIO()
        writer.tensors, writer.state = [{}], WriterState.NO_FILE
        for info in tensors:
            kind = GGMLQuantizationType(info.qtype.gguf_id)
            writer.add_tensor_info(info.name, info.shape, np.dtype(np.float32), info.nbytes, raw_dtype=kind)
        into: Any = header
        writer.fout = [into]
        writer.state = WriterState.EMPTY
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        except (struct.error, UnicodeEncodeError) as e:  # a number out of range, half a surrogate pair
            raise OutputError(self.path, f"its metadata cannot be written: {e}") from None
        writer.write_padding(into, header.tell())
        return header.getvalue()

    def write(self, name: str, data: Bytes) -> None:
        """Appends bytes to the tensor whose turn it is, which must be `name`; uint8 of any shape, contiguous."""
        if not self._to_write or self._to_write[0].name != name:
            expected = self._to_write[0].name if self._to_write else "none"
            raise ValueError(f"bytes of tensor {name}; the one to write is {expected}")
        n_left = self._to_write[0].nbytes - self._n_written
        if data.nbytes > n_left:
            raise ValueError(f"{data.nbytes} bytes for tensor {name}, which has {n_left} left")
        self._file.write(np.ascontiguousarray(data).data)
        self._n_written += data.nbytes
        if data.nbytes == n_left:
            self._file.write(bytes(-self._n_written % self.metadata.data_alignment))
            self._to_write.popleft()
            self._n_written = 0

    def finish(self) -> None:
        """Checks that every tensor is there and brings the file to the disk: `temporary` can be opened and checked.

        The file is moved into place when the `with` block ends; whoever opened it must have closed it by then.
        """
        if self._to_write is None or self._to_write:
            missing = self._to_write[0].name if self._to_write else "everything"
            raise ValueError(f"the file is not complete: {missing} has not been written")
        self._file.finish()


def _value_types(value: MetadataValue) -> tuple[int, int | None]:
    """GGUF value types for a value that is new: 32 bits where there is a choice, as the format's converters write."""
    from gguf import GGUFValueType

    kinds: dict[type, GGUFValueType] = {
        bool: GGUFValueType.BOOL,
        int: GGUFValueType.UINT32,
        float: GGUFValueType.FLOAT32,
        str: GGUFValueType.STRING,
    }
    if isinstance(value, list):
        return GGUFValueType.ARRAY, GGUFValueType.STRING
    if isinstance(value, np.ndarray):
        return GGUFValueType.ARRAY, GGUFValueType.FLOAT32 if value.dtype.kind == "f" else GGUFValueType.INT32
    return kinds[type(value)], None
