"""Reading one torch checkpoint (`.bin`, `.pt`): the zip form of torch 1.6 and later.

The archive holds `NAME/data.pkl`, which describes the tensors (`torch_pickle.py` reads it; nothing is unpickled), and
`NAME/data/KEY`, the values of each storage, uncompressed: they are viewed where they lie.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NoReturn

from localcoder.errors import CheckpointError
from localcoder.files.checkpoint_tensor import CheckpointTensor
from localcoder.files.mapped import MappedFile, looks_like
from localcoder.files.torch_pickle import PickleProblem, StoredTensor, read_tensors
from localcoder.quants.spec import Bytes

MAX_PICKLE_BYTES = 4 << 20
MAX_DIRECTORY_BYTES = 1 << 20  # about 80 bytes a storage

_MAGIC_BEFORE_1_6 = (b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", 2)  # a pickled number after two bytes of protocol
_MAGIC_OF_TAR = (b"ustar", 257)
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field
_ENCRYPTED = 1


class TorchFile:
    """The tensors of one file, views of its map.

    Attributes:
        path: the file.
        tensors: name -> tensor, in the order of the file. Entries that are not tensors are left out.
    """

    def __init__(self, path: Path) -> None:
        """Opens `path`; CheckpointError if it is not there, not a torch checkpoint, damaged, or not only tensors."""
        self.path = path
        self._file = MappedFile(path, CheckpointError)
        try:
            self._records = self._read_directory()
            self.tensors = self._read_tensors()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unmaps the file as soon as no view of a tensor is left."""
        self.tensors = {}
        self._file.close()

    def _fail(self, problem: str) -> NoReturn:
        raise CheckpointError(self.path, problem) from None

    def _read_directory(self) -> dict[str, zipfile.ZipInfo]:
        """What the archive holds, by name without the leading folder."""
        file = self._file
        if any(file.map[at : at + len(magic)] == magic for magic, at in (_MAGIC_BEFORE_1_6, _MAGIC_OF_TAR)):
            self._fail(
                "in the format of before torch 1.6; load and save it once with a newer torch, or use safetensors"
            )
        try:
            with zipfile.ZipFile(_DirectoryView(file)) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, OverflowError, struct.error) as e:
            self._fail(f"not a torch checkpoint, or truncated: found {looks_like(file.map[:64])} ({e})")
        folders = [match[1] for e in entries if (match := re.fullmatch(r"([^/]+/)data\.pkl", e.filename))]
        if len(folders) != 1:
            self._fail("a zip archive, but not one that torch.save made: expected one NAME/data.pkl in it")
        records = {e.filename.removeprefix(folders[0]): e for e in entries if e.filename.startswith(folders[0])}
        if len({e.filename for e in entries}) != len(entries):
            self._fail("holds two records of the same name")
        return records

    def _record(self, name: str) -> Bytes:
        """The bytes of a record; nothing is copied."""
        info = self._records.get(name)
        if info is None:
            self._fail(f"the record {name} is missing")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
            self._fail(f"the record {name} is compressed or encrypted, which torch.save never does")
        header = self._file.bytes[info.header_offset : info.header_offset + _LOCAL_HEADER.size]
        if info.header_offset < 0 or header.size < _LOCAL_HEADER.size:
            self._fail(f"damaged: the record {name} begins outside the file")
        signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header.data)
        start = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        if signature != b"PK\x03\x04" or info.file_size != info.compress_size:
            self._fail(f"damaged: the record {name} has no valid header")
        if start + info.file_size > self._file.size:
            self._fail(f"truncated: the record {name} ends beyond the end of the file")
        return self._file.bytes[start : start + info.file_size]

    def _read_tensors(self) -> dict[str, CheckpointTensor]:
        if "byteorder" in self._records and self._record("byteorder")[:6].tobytes() != b"little":
            self._fail("written on a big-endian machine; expected little-endian values")
        record = self._record("data.pkl")
        if record.size > MAX_PICKLE_BYTES:
            self._fail(f"data.pkl takes {record.size} bytes; expected at most {MAX_PICKLE_BYTES}")
        if zlib.crc32(record.data) != self._records["data.pkl"].CRC:
            self._fail("damaged: data.pkl does not match its checksum")
        try:
            stored = read_tensors(record.tobytes())
        except PickleProblem as e:
            self._fail(f"data.pkl {e}")
        if not stored:
            self._fail("holds no tensors at its top level; expected a dictionary of names and tensors")
        return {name: self._tensor(name, tensor) for name, tensor in stored.items()}

    def _tensor(self, name: str, tensor: StoredTensor) -> CheckpointTensor:
        storage = tensor.storage
        values = self._record(f"data/{storage.key}")
        if values.size != storage.n_values * storage.item_bytes:
            self._fail(f"storage {storage.key} of {storage.n_values} {storage.dtype} values takes {values.size} bytes")
        n = math.prod(tensor.shape)
        if n and not _is_contiguous(tensor):
            self._fail(f"tensor {name} is not contiguous; save it anew after .contiguous()")
        if tensor.offset + n > storage.n_values:
            self._fail(f"tensor {name} ends at value {tensor.offset + n} of a storage of {storage.n_values}")
        start = tensor.offset * storage.item_bytes
        data = values[start : start + n * storage.item_bytes]
        return CheckpointTensor(name, storage.dtype, tensor.shape, self.path, data)


def _is_contiguous(tensor: StoredTensor) -> bool:
    expected = 1
    for n, stride in zip(reversed(tensor.shape), reversed(tensor.strides)):
        if n != 1 and stride != expected:
            return False
        expected *= n
    return True


class _DirectoryView:
    """What `zipfile` needs of a file to read the directory at its end, and no large reads."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self._at = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        at = (0, self._at, self._file.size)[whence] + offset
        if not 0 <= at <= self._file.size:
            raise OSError("seek outside the file")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def read(self, n: int = -1) -> bytes:
        left = self._file.size - self._at
        n = left if n < 0 else min(n, left)
        if n > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory takes {n} bytes, expected at most {MAX_DIRECTORY_BYTES}")
        data = self._file.map[self._at : self._at + n]
        self._at += n
        return data
