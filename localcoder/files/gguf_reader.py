"""Reading GGUF files, which may come from strangers.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian). The file is
memory-mapped and tensors are views of it; `gguf_part.py` reads one file, this module puts split ones together.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from localcoder.errors import GGUFError
from localcoder.files.gguf_metadata import TypedMetadata
from localcoder.files.gguf_part import GGUFPart
from localcoder.quants import QuantTensor

MAX_SPLITS = 1 << 10
SPLIT_NAME = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class TensorTotals:
    """Some tensors, counted."""

    n_tensors: int
    n_params: int
    n_bytes: int

    @classmethod
    def of(cls, tensors: list[QuantTensor]) -> TensorTotals:
        return cls(len(tensors), sum(math.prod(t.shape) for t in tensors), sum(t.nbytes for t in tensors))

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.n_bytes / self.n_params if self.n_params else 0.0


@dataclass(frozen=True)
class GGUFSummary:
    """What a file holds, in numbers.

    Attributes:
        file_bytes: of all parts.
        total: over all tensors.
        by_type: name of the block format -> its tensors, the most bytes first.
    """

    file_bytes: int
    total: TensorTotals
    by_type: dict[str, TensorTotals]


class GGUFFile(TypedMetadata):
    """One GGUF file, or all parts of a split one; a context manager.

    Attributes:
        path: the file that was opened (the first part).
        version: GGUF version of that file.
        metadata: key -> Python scalar, string, list of strings, or numpy array.
        value_types: key -> its GGUF value type, and that of an array's elements.
        tensors: name -> QuantTensor, views of the mapped files, in file order.
    """

    def __init__(self, parts: list[GGUFPart]) -> None:
        self.path = parts[0].path
        self.version = parts[0].version
        self.metadata = parts[0].metadata
        self.value_types = parts[0].value_types
        self.tensors: dict[str, QuantTensor] = {}
        self._parts = parts
        for part in parts:
            for name, tensor in part.tensors.items():
                if name in self.tensors:
                    raise GGUFError(part.path, f"tensor {name} is also in another part")
                self.tensors[name] = tensor
        expected = self.get_int("split.tensors.count", len(self.tensors))
        if len(parts) > 1 and expected != len(self.tensors):
            raise GGUFError(self.path, f"{len(parts)} parts hold {len(self.tensors)} tensors, expected {expected}")

    @classmethod
    def open(cls, path: str | Path) -> GGUFFile:
        """Opens a file; of a split one (`-00001-of-0000N.gguf`) any part finds the others beside it.

        Raises:
            GGUFError: the file is not there, not GGUF, damaged, or a part of it is missing.
        """
        paths = _split_paths(Path(path))
        parts: list[GGUFPart] = []
        try:
            for number, part_path in enumerate(paths):
                parts.append(GGUFPart(part_path))
                _check_split(parts[-1], number, len(paths))
            return cls(parts)
        except BaseException:
            for part in parts:
                part.close()
            raise

    @property
    def paths(self) -> list[Path]:
        """All parts."""
        return [part.path for part in self._parts]

    def summary(self) -> GGUFSummary:
        """Sizes and counts, of all parts."""
        of_type: dict[str, list[QuantTensor]] = {}
        for tensor in self.tensors.values():
            of_type.setdefault(tensor.qtype.name, []).append(tensor)
        by_type = {name: TensorTotals.of(tensors) for name, tensors in of_type.items()}
        return GGUFSummary(
            file_bytes=sum(part.size for part in self._parts),
            total=TensorTotals.of([*self.tensors.values()]),
            by_type=dict(sorted(by_type.items(), key=lambda item: -item[1].n_bytes)),
        )

    def close(self) -> None:
        """Unmaps the file as soon as no tensor view is left."""
        self.tensors = {}
        for part in self._parts:
            part.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _split_paths(path: Path) -> list[Path]:
    """The files to open for `path`, in order."""
    match = SPLIT_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    stem, number, count = match[1], int(match[2]), int(match[3])
    if not 1 <= number <= count <= MAX_SPLITS:
        raise GGUFError(path, f"its name says part {number} of {count}; expected 1 to {MAX_SPLITS} parts")
    paths = [path.with_name(f"{stem}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    for other in paths:
        if other != path and not os.path.lexists(other):
            raise GGUFError(other, f"no such file; it is a part of the model that {path.name} belongs to")
    return paths


def _check_split(part: GGUFPart, number: int, count: int) -> None:
    said = (part.get_int("split.no", number), part.get_int("split.count", count))
    if said == (number, count) or (count == 1 and said == (0, 0)):
        return
    if count == 1:
        raise GGUFError(part.path, "part of a split file, but not named like one (…-00001-of-0000N.gguf)")
    raise GGUFError(part.path, f"says it is part {said[0]} of {said[1]}, expected {number} of {count}")
