"""A checkpoint becomes a GGUF file, tensor by tensor, in slices: memory does not grow with the model.

The result has the metadata that llama.cpp's converter writes for this family. It is checked before it gets its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from localcoder.convert.config import ModelConfig, read_config
from localcoder.convert.layout import TensorSpec, interleave_heads, tensors_of
from localcoder.convert.recipes import Recipe
from localcoder.errors import CheckpointError, OutputError
from localcoder.files.checkpoint import Checkpoint
from localcoder.files.checkpoint_tensor import CheckpointTensor
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.gguf_writer import GGUFOutput, TensorInfo
from localcoder.files.tensor_names import is_buffer
from localcoder.quants import QuantType
from localcoder.quants.spec import Bytes, Float32
from localcoder.tokenizer.source import SourceTokenizer

if TYPE_CHECKING:
    import gguf

Quantize = Callable[[QuantType, Float32], Bytes]  # float32 [n_rows, n] -> uint8 [n_rows, row_bytes]
Progress = Callable[[int, int], None]  # bytes written so far, bytes in all

SLICE_VALUES = 1 << 22  # values converted at a time
# Largest magnitude that survives in each type; blocks of integers keep their scales in half precision.
_LARGEST = {"f32": np.finfo(np.float32).max, "bf16": np.float32(3.3895314e38)}
_LARGEST_HALF = np.float32(65504)


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write: where it comes from and what it becomes."""

    spec: TensorSpec
    source: CheckpointTensor
    qtype: QuantType

    @property
    def info(self) -> TensorInfo:
        return TensorInfo(self.spec.name, self.qtype, self.spec.shape)


def convert(
    source: str | Path,
    target: str | Path,
    recipe: Recipe,
    *,
    quantize: Quantize,
    name: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Converts the checkpoint folder `source` to the GGUF file `target`.

    Args:
        recipe: which tensor gets which type.
        quantize: rounds rows to a type, such as `Backend.quantize_best`.
        name: `general.name`; default: the folder's.
        progress: called after every slice with the bytes written so far and the bytes in all.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged, or of a model that we cannot run.
        TokenizerError: its tokenizer cannot be expressed in GGUF, or does not survive it.
        OutputError: the file cannot be written. Whatever the error, nothing is left of it.
    """
    with Checkpoint.open(source) as checkpoint:
        config = read_config(checkpoint.config, checkpoint.folder / "config.json")
        tensors = plan_tensors(checkpoint, config, recipe)
        tokenizer = SourceTokenizer(checkpoint)
        inputs = [path for path in checkpoint.folder.iterdir() if path.is_file()]
        with GGUFOutput(target, "llama", inputs=inputs) as out:
            _add_metadata(out.metadata, config, recipe, name or checkpoint.folder.resolve().name, tensors)
            tokenizer.add_metadata(out.metadata, config.n_vocab)
            out.begin([tensor.info for tensor in tensors])
            n_bytes = sum(tensor.info.nbytes for tensor in tensors)
            n_written = 0
            for tensor in tensors:
                for data in converted_slices(tensor, quantize):
                    out.write(tensor.spec.name, data)
                    n_written += data.nbytes
                    if progress:
                        progress(n_written, n_bytes)
            out.finish()
            with GGUFFile.open(out.temporary) as written:
                _check_table(written, tensors, out.path)
                tokenizer.verify(written)


def _add_metadata(
    writer: gguf.GGUFWriter, config: ModelConfig, recipe: Recipe, name: str, tensors: list[PlannedTensor]
) -> None:
    from gguf import GGML_QUANT_VERSION, size_label

    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(size_label(sum(math.prod(tensor.spec.shape) for tensor in tensors), 0, 0, 0))
    writer.add_file_type(recipe.file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    config.add_metadata(writer)


def _check_table(written: GGUFFile, tensors: list[PlannedTensor], path: Path) -> None:
    """Reads back what was written: every tensor there, in order, of its type and shape."""
    expected = [tensor.info for tensor in tensors]
    found = [TensorInfo(t.name, t.qtype, t.shape) for t in written.tensors.values()]
    if found != expected:
        raise OutputError(path, "what was written does not read back as it should; is the disk sound?")


def plan_tensors(checkpoint: Checkpoint, config: ModelConfig, recipe: Recipe) -> list[PlannedTensor]:
    """What to write, in file order; CheckpointError for a tensor that is missing, unknown or of another shape."""
    unused = {name for name in checkpoint.tensors if not is_buffer(name)}
    if config.tied:
        unused.discard("lm_head.weight")  # some files repeat the embedding under this name
    planned = []
    for spec in tensors_of(config):
        source = checkpoint.tensors.get(spec.checkpoint_name)
        if source is None:
            raise CheckpointError(checkpoint.folder, f"tensor {spec.checkpoint_name} is missing")
        if source.shape != spec.shape:
            raise CheckpointError(
                source.path, f"tensor {source.name} has shape {source.shape}; config.json says {spec.shape}"
            )
        unused.discard(source.name)
        planned.append(PlannedTensor(spec, source, recipe.type_of(spec.name, spec.shape, tied=config.tied)))
    if unused:
        names = ", ".join(sorted(unused)[:4])
        raise CheckpointError(checkpoint.folder, f"{len(unused)} tensors that this architecture does not have: {names}")
    return planned


def converted_slices(tensor: PlannedTensor, quantize: Quantize) -> Iterator[Bytes]:
    """The bytes of a tensor in its new type, a slice of whole rows (of whole heads, where they are rotated) at a time.

    Raises:
        CheckpointError: a value is not finite, or too large for the type; it names the tensor and the place.
    """
    spec, source = tensor.spec, tensor.source
    if len(spec.shape) == 1:
        x = source.rows(0, spec.shape[0])[None]
        _check_values(tensor, x, 0)
        yield quantize(tensor.qtype, x)
        return
    n_rows, n_in = spec.shape
    step = max(1, SLICE_VALUES // (n_in * spec.head_dim)) * spec.head_dim
    for start in range(0, n_rows, step):
        x = source.rows(start, min(start + step, n_rows))
        _check_values(tensor, x, start)
        yield quantize(tensor.qtype, interleave_heads(x, spec.head_dim) if spec.n_head else x)


def _check_values(tensor: PlannedTensor, x: Float32, first_row: int) -> None:
    largest = _LARGEST.get(tensor.qtype.name, _LARGEST_HALF)
    if -largest <= x.min() and x.max() <= largest:  # false if there is a NaN
        return
    row, column = np.argwhere(~(np.abs(x) <= largest))[0]
    value = x[row, column]
    place = f"index {column}" if len(tensor.spec.shape) == 1 else f"row {first_row + row}, column {column}"
    problem = f"too large for {tensor.qtype.name}: choose bf16 or f32" if np.isfinite(value) else "not a finite number"
    raise CheckpointError(tensor.source.path, f"tensor {tensor.source.name}, {place}, is {value}, {problem}")
