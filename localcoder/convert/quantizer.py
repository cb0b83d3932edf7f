"""A GGUF file becomes a smaller one: other types, the same metadata."""

from __future__ import annotations

from pathlib import Path

from localcoder.convert.allocation import within_budget
from localcoder.convert.choice import Choice
from localcoder.convert.padding import padded_width
from localcoder.convert.stream import (
    GGUFSource,
    Outcome,
    PlannedTensor,
    Progress,
    Requantize,
    check_table,
    write_tensors,
)
from localcoder.errors import ModelError, OptionError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.gguf_writer import GGUFOutput

_N_FF = "llama.feed_forward_length"
FLOATS = ("f32", "f16", "bf16")


def quantize_file(
    source: str | Path,
    target: str | Path,
    choice: Choice,
    *,
    requantize: Requantize,
    allow_requantize: bool = False,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> Outcome:
    """Writes the model of the GGUF file `source` (of a split one: any part) to `target` in other types.

    Args:
        choice: which tensor gets which type.
        requantize: rounds rows to a type, such as `Backend.requantize`.
        allow_requantize: also where the source is quantized already. A matrix that keeps its type keeps its bytes.
        progress: called after every slice with the bytes written so far and the bytes in all.
        dry_run: only says what would be written.

    Raises:
        FileError: the source is damaged, or a weight is not finite or too large for its type.
        ModelError: it holds another model than those of this family.
        OptionError: it is quantized already.
        OutputError: the target cannot be written. Whatever the error, nothing is left of it.
        OptionError, FileError: as `Choice.plan` and `within_budget`.
    """
    with GGUFFile.open(source) as file:
        if not allow_requantize:
            refuse_quantized(file)
        out, tensors = prepare(file, target, choice, requantize)
        infos = [tensor.info for tensor in tensors]
        if dry_run:
            return Outcome(tensors, out.size_of(infos))
        with out:
            outcome = Outcome(tensors, out.begin(infos))
            write_tensors(out, tensors, requantize, progress)
            out.finish()
            with GGUFFile.open(out.temporary) as written:
                check_table(written, tensors, out.path)
    return outcome


def prepare(
    file: GGUFFile, target: str | Path, choice: Choice, requantize: Requantize
) -> tuple[GGUFOutput, list[PlannedTensor]]:
    """The output for `file` with its metadata, not begun, and the tensors to write; raises as `quantize_file`."""
    n_layer, n_gqa = _dimensions(file)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    sources = {name: GGUFSource(file.path, tensor) for name, tensor in file.tensors.items()}
    tensors = choice.plan(sources, shapes, n_layer, n_gqa)
    out = GGUFOutput(target, file.get_str("general.architecture"), inputs=file.paths)
    file.metadata.update(choice.metadata())
    if choice.pad_ffn:
        file.metadata[_N_FF] = padded_width(file.get_int(_N_FF))
    out.copy_metadata(file)
    if choice.budget:
        tensors = within_budget(out, tensors, choice, requantize, n_layer)
    return out, tensors


def refuse_quantized(file: GGUFFile) -> None:
    """OptionError if matrices of `file` are quantized."""
    found = sorted({t.qtype.name for t in file.tensors.values() if t.qtype.name not in FLOATS})
    if found:
        problem = f"is quantized already ({', '.join(found)}), and rounding twice loses more than once"
        raise OptionError(f"{file.path}: {problem}; start from a float file, or say --allow-requantize")


def _dimensions(file: GGUFFile) -> tuple[int, int]:
    """Number of layers, and of query heads that share a KV head."""
    architecture = file.get_str("general.architecture")
    if architecture != "llama":
        raise ModelError(file.path, f"architecture {architecture!r}; the recipes are those of 'llama' models")
    n_layer, n_head = file.get_int("llama.block_count"), file.get_int("llama.attention.head_count")
    n_head_kv = file.get_int("llama.attention.head_count_kv", n_head)
    if n_layer < 1 or n_head_kv < 1 or n_head < n_head_kv:
        raise ModelError(file.path, f"{n_layer} layers with {n_head} heads over {n_head_kv} KV heads make no model")
    return n_layer, n_head // n_head_kv
