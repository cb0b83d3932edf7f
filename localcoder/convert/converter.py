"""A checkpoint becomes a GGUF file, tensor by tensor, in slices: memory does not grow with the model.

The result has the metadata that llama.cpp's converter writes for this family. It is checked before it gets its name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from localcoder.convert.allocation import within_budget
from localcoder.convert.choice import Choice
from localcoder.convert.config import ModelConfig, read_config
from localcoder.convert.layout import TensorSpec, interleave_heads, tensors_of
from localcoder.convert.padding import padded_width
from localcoder.convert.stream import Outcome, Progress, Requantize, check_table, write_tensors
from localcoder.errors import CheckpointError
from localcoder.files.checkpoint import Checkpoint
from localcoder.files.checkpoint_tensor import CheckpointTensor
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.gguf_writer import GGUFOutput
from localcoder.files.tensor_names import is_buffer
from localcoder.quants import QuantType
from localcoder.quants.spec import Bytes
from localcoder.tokenizer.source import SourceTokenizer

if TYPE_CHECKING:
    import gguf


@dataclass(frozen=True)
class CheckpointSource:
    """A tensor of a checkpoint, with rotated heads in the order of GGUF files."""

    spec: TensorSpec
    tensor: CheckpointTensor

    @property
    def unit(self) -> int:
        return self.spec.head_dim

    @property
    def qtype(self) -> QuantType:
        return self.tensor.qtype

    def stored_rows(self, start: int, stop: int) -> Bytes:
        if len(self.spec.shape) == 1:
            return self.tensor.raw_rows(0, self.spec.shape[0])[None]
        rows = self.tensor.raw_rows(start, stop)
        return interleave_heads(rows, self.spec.head_dim) if self.spec.n_head else rows

    def error(self, row: int, column: int, problem: str) -> CheckpointError:
        place = f"index {column}" if len(self.spec.shape) == 1 else f"row {self._stored_row(row)}, column {column}"
        return CheckpointError(self.tensor.path, f"tensor {self.tensor.name}, {place}, {problem}")

    def _stored_row(self, row: int) -> int:
        """Where row `row` of the file stands in the checkpoint."""
        if not self.spec.n_head:
            return row
        head, i = divmod(row, self.spec.head_dim)
        return head * self.spec.head_dim + i % 2 * (self.spec.head_dim // 2) + i // 2


def convert(
    source: str | Path,
    target: str | Path,
    choice: Choice,
    *,
    requantize: Requantize,
    name: str | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> Outcome:
    """Converts the checkpoint folder `source` to the GGUF file `target`.

    Args:
        choice: which tensor gets which type.
        requantize: rounds rows to a type, such as `Backend.requantize`.
        name: `general.name`; default: the folder's.
        progress: called after every slice with the bytes written so far and the bytes in all.
        dry_run: only says what would be written.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged, or of a model that we cannot run.
        TokenizerError: its tokenizer cannot be expressed in GGUF, or does not survive it.
        OutputError: the file cannot be written. Whatever the error, nothing is left of it.
        OptionError, FileError: as `Choice.plan` and `within_budget`.
    """
    with Checkpoint.open(source) as checkpoint:
        config = read_config(checkpoint.config, checkpoint.folder / "config.json")
        sources = checkpoint_sources(checkpoint, config)
        n_layer, n_gqa = config.n_layer, config.n_head // config.n_head_kv
        shapes = {name: source.spec.shape for name, source in sources.items()}
        tensors = choice.plan(sources, shapes, n_layer, n_gqa)
        tokenizer = SourceTokenizer(checkpoint)
        inputs = [path for path in checkpoint.folder.iterdir() if path.is_file()]
        out = GGUFOutput(target, "llama", inputs=inputs)
        if choice.pad_ffn:
            config = replace(config, n_ff=padded_width(config.n_ff))
        _add_metadata(out.metadata, config, name or checkpoint.folder.resolve().name, sources)
        for key, value in choice.metadata().items():
            out.add_metadata(key, value)
        tokenizer.add_metadata(out.metadata, config.n_vocab)
        if choice.budget:
            tensors = within_budget(out, tensors, choice, requantize, n_layer)
        infos = [tensor.info for tensor in tensors]
        if dry_run:
            return Outcome(tensors, out.size_of(infos))
        with out:
            outcome = Outcome(tensors, out.begin(infos))
            write_tensors(out, tensors, requantize, progress)
            out.finish()
            with GGUFFile.open(out.temporary) as written:
                check_table(written, tensors, out.path)
                tokenizer.verify(written)
    return outcome


def _add_metadata(
    writer: gguf.GGUFWriter, config: ModelConfig, name: str, sources: dict[str, CheckpointSource]
) -> None:
    from gguf import size_label

    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(size_label(sum(math.prod(source.spec.shape) for source in sources.values()), 0, 0, 0))
    config.add_metadata(writer)


def checkpoint_sources(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, CheckpointSource]:
    """Every tensor by its GGUF name, in file order; CheckpointError if one is missing, unknown or of another shape."""
    unused = {name for name in checkpoint.tensors if not is_buffer(name)}
    if config.tied:
        unused.discard("lm_head.weight")  # some files repeat the embedding under this name
    sources = {}
    for spec in tensors_of(config):
        tensor = checkpoint.tensors.get(spec.checkpoint_name)
        if tensor is None:
            raise CheckpointError(checkpoint.folder, f"tensor {spec.checkpoint_name} is missing")
        if tensor.shape != spec.shape:
            raise CheckpointError(
                tensor.path, f"tensor {tensor.name} has shape {tensor.shape}; config.json says {spec.shape}"
            )
        unused.discard(tensor.name)
        sources[spec.name] = CheckpointSource(spec, tensor)
    if unused:
        names = ", ".join(sorted(unused)[:4])
        raise CheckpointError(checkpoint.folder, f"{len(unused)} tensors that this architecture does not have: {names}")
    return sources
