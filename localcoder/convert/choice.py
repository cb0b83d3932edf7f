"""What the user asked for: how types are chosen and weights are rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from localcoder.convert.padding import pad
from localcoder.convert.recipes import Override, Recipe, Traits, choose_types
from localcoder.convert.stream import PlannedTensor, Source
from localcoder.errors import FileError
from localcoder.files.gguf_writer import TensorInfo
from localcoder.files.imatrix import ImportanceMatrix
from localcoder.quants.spec import Float32


@dataclass(frozen=True)
class Budget:
    """How large the result may be: `file_bytes` in all, or `bits_per_weight` over all tensors.

    Attributes:
        sensitivity: what a unit of relative noise in the output of each matrix does to this model, where it has been
            measured (measure/sensitivity.py); only the ratios count.
    """

    file_bytes: int | None = None
    bits_per_weight: float | None = None
    sensitivity: Mapping[str, float] | None = None

    def tensor_bytes(self, n_weights: int, header_bytes: int) -> int:
        """What it leaves to the tensors."""
        if self.file_bytes is not None:
            return self.file_bytes - header_bytes
        assert self.bits_per_weight is not None
        return int(self.bits_per_weight * n_weights / 8)


@dataclass(frozen=True)
class Choice:
    """How types are chosen and weights are rounded.

    Attributes:
        recipe: which tensor gets which type.
        overrides: types for some matrices, whatever the recipe says.
        imatrix: the inputs' statistics.
        pad_ffn: widen the feed-forward part to whole super-blocks (`padding.py`).
        budget: share out so many bytes (`allocation.py`) instead of following the recipe.
    """

    recipe: Recipe
    overrides: Sequence[Override] = ()
    imatrix: ImportanceMatrix | None = None
    pad_ffn: bool = False
    budget: Budget | None = None

    @property
    def name(self) -> str:
        """For people."""
        if self.budget is None:
            return self.recipe.name
        size, bits = self.budget.file_bytes, self.budget.bits_per_weight
        return f"{bits:g} bits per weight" if size is None else f"{size:,} bytes"

    def plan(
        self, sources: Mapping[str, Source], shapes: Mapping[str, tuple[int, ...]], n_layer: int, n_gqa: int
    ) -> list[PlannedTensor]:
        """What to write by the recipe, in the order of `shapes`.

        Raises:
            OptionError: an override matches no matrix, or there is nothing to pad.
            FileError: the importance matrix is another model's.
        """
        importance = _importance(self.imatrix, shapes) if self.imatrix else {}
        if self.pad_ffn:
            sources, shapes = pad(sources, shapes)
            importance = {name: _widened(values, shapes[name][-1]) for name, values in importance.items()}
        has_imatrix = self.imatrix is not None
        traits = Traits(n_layer, n_gqa, tied="output.weight" not in shapes, has_imatrix=has_imatrix)
        types = choose_types(self.recipe, shapes, traits, self.overrides)
        return [
            PlannedTensor(TensorInfo(name, types[name], shape), sources[name], importance.get(name))
            for name, shape in shapes.items()
        ]

    def is_fixed(self, info: TensorInfo) -> bool:
        """Whether a budget leaves this tensor's type alone."""
        return len(info.shape) == 1 or any(override.pattern.search(info.name) for override in self.overrides)

    def metadata(self) -> dict[str, str | int]:
        """What was done to the file, under llama.cpp's keys."""
        from gguf import GGML_QUANT_VERSION

        found: dict[str, str | int] = {
            "general.file_type": self.recipe.file_type,
            "general.quantization_version": GGML_QUANT_VERSION,
        }
        if self.imatrix:
            if self.imatrix.path:
                found["quantize.imatrix.file"] = self.imatrix.path.name
            if self.imatrix.datasets:
                found["quantize.imatrix.dataset"] = self.imatrix.datasets[0]
            found["quantize.imatrix.entries_count"] = len(self.imatrix.sums)
            found["quantize.imatrix.chunks_count"] = self.imatrix.n_chunks
        return found


def _importance(imatrix: ImportanceMatrix, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Float32]:
    found = {name: imatrix.importance(name, shape[-1]) for name, shape in shapes.items() if len(shape) > 1}
    known = {name: values for name, values in found.items() if values is not None}
    if not known:
        raise FileError(imatrix.source, "it observed none of this model's matrices: it belongs to another model")
    return known


def _widened(values: Float32, n: int) -> Float32:
    """Importance of `n` columns, nothing for those that are added."""
    return np.pad(values, (0, n - len(values)))
