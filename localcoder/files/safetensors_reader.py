"""Reading one safetensors file.

The `safetensors` library reads and checks the header (no gaps, no overlaps, sizes that match shapes); the tensors are
then laid out one after another in the order of their offsets, which is all we need to view them in our own map: the
library would copy, and has no bf16 without torch.
"""

from __future__ import annotations

import math
from pathlib import Path

from localcoder.errors import CheckpointError
from localcoder.files.checkpoint_tensor import CheckpointTensor
from localcoder.files.mapped import MappedFile, looks_like

MAX_HEADER_BYTES = 16 << 20

_ITEM_BYTES = {"BOOL": 1, "BF16": 2}  # the others say it in their name: F32, I64, U8, F8_E4M3


class SafetensorsFile:
    """The tensors of one file, views of its map.

    Attributes:
        path: the file.
        tensors: name -> tensor, in the order of the file.
    """

    def __init__(self, path: Path) -> None:
        """Opens `path`; CheckpointError if it is not there, not safetensors, or damaged."""
        self.path = path
        self._file = MappedFile(path, CheckpointError)
        try:
            self.tensors = self._read_tensors()
        except BaseException:
            self.close()
            raise

    def _read_tensors(self) -> dict[str, CheckpointTensor]:
        from safetensors import SafetensorError, safe_open

        file = self._file
        header_bytes = int.from_bytes(file.map[:8], "little")
        if header_bytes > min(MAX_HEADER_BYTES, file.size - 8):
            raise CheckpointError(
                self.path,
                f"not a safetensors file, or truncated: found {looks_like(file.map[:64])}, {file.size} bytes long, "
                f"whose header would take {header_bytes}",
            )
        tensors = {}
        at = 8 + header_bytes
        try:
            with safe_open(self.path, framework="np") as opened:
                for name in opened.offset_keys():
                    described = opened.get_slice(name)
                    dtype, shape = str(described.get_dtype()), tuple(described.get_shape())
                    n_bytes = math.prod(shape) * self._item_bytes(name, dtype)
                    data = file.bytes[at : at + n_bytes]
                    tensors[name] = CheckpointTensor(name, dtype.lower(), shape, self.path, data)
                    at += n_bytes
        except (SafetensorError, OSError) as e:
            raise CheckpointError(self.path, f"not a safetensors file, or damaged: {e}") from None
        if at != file.size:
            raise CheckpointError(self.path, f"its tensors end at byte {at}, the file at {file.size}")
        return tensors

    def _item_bytes(self, name: str, dtype: str) -> int:
        digits = dtype.split("_")[0].lstrip("FIU")
        if dtype not in _ITEM_BYTES and digits not in ("8", "16", "32", "64"):
            raise CheckpointError(self.path, f"tensor {name} has the type {dtype}, which is not supported")
        return _ITEM_BYTES.get(dtype) or int(digits) // 8

    def close(self) -> None:
        """Unmaps the file as soon as no view of a tensor is left."""
        self.tensors = {}
        self._file.close()
