"""How much memory a model takes when it runs, before it is run, converted, or even fetched.

Resident memory is the file's pages, the KV cache, the work buffers of a step, the tokenizer, and the interpreter with
its libraries. All follow from the model's dimensions but the last, which is measured: on this machine, with the small
model of the package.
"""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from localcoder.backends.c.lowering import assign_slots, lower
from localcoder.backends.threads import thread_count
from localcoder.convert.config import ModelConfig
from localcoder.convert.layout import tensors_of
from localcoder.convert.recipes import BEST_FIRST, Override, Recipe, Traits, choose_types, recipe_by_name
from localcoder.errors import OptionError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import N_UBATCH, PAGE_SIZE
from localcoder.model.hyperparameters import Hyperparameters, read_hyperparameters
from localcoder.model.kv_types import KV_TYPES
from localcoder.model.llama import LayerWeights, Weights, record
from localcoder.quants import QuantTensor, QuantType, by_name

CONTEXT_STEP = 256
_TOKENIZER_BYTES = 730  # per token of the vocabulary: Python's lists, the merges, the tokenizers library
_VOCABULARY_FILE_BYTES = 36  # per token, in the file's metadata
_ALIGNMENT = 32
_CHUNK_ROWS = 64
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class PlannedModel:
    """What a forecast needs to know of a model file, present or future.

    Attributes:
        name: for people.
        shapes: GGUF tensor name -> (block format, shape).
        file_bytes: of the GGUF file, its metadata included.
    """

    name: str
    dimensions: Hyperparameters
    tensors: dict[str, tuple[QuantType, tuple[int, ...]]]
    file_bytes: int


@dataclass(frozen=True)
class Forecast:
    """Bytes of resident memory, at its peak with a full context.

    Attributes:
        weights: the file, every page of it.
        kv_cache: keys and values of n_ctx positions (whole pages of positions).
        work: buffers of a step, tables of positions, logits.
        tokenizer: the vocabulary in memory.
        runtime: interpreter and libraries.
    """

    n_ctx: int
    kv_type: str
    weights: int
    kv_cache: int
    work: int
    tokenizer: int
    runtime: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.work + self.tokenizer + self.runtime

    @property
    def on_device(self) -> int:
        """What a GPU would hold: all but the tokenizer and the interpreter."""
        return self.weights + self.kv_cache + self.work


def parse_size(text: str) -> int:
    """Bytes: `16GiB`, `8GB`, `8G` (which is 8 GiB, as people mean it of memory), `512MiB`, `1000000`.

    Raises:
        OptionError: it is none of these.
    """
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kmgt]?)(ib|b|)\s*", text, re.IGNORECASE)
    if match is None:
        raise OptionError(f"{text!r} is not a size, such as 16GiB, 8GB or 512M")
    number, prefix, suffix = float(match[1]), match[2].lower(), match[3].lower()
    if suffix == "b" or not prefix:
        return int(number * _UNITS[prefix])
    return int(number * 1024 ** ("kmgt".index(prefix) + 1))


def model_of_file(path: Path) -> PlannedModel:
    """A GGUF file as it is.

    Raises:
        FileError: it is not there, not GGUF, or of a model that we cannot run.
    """
    with GGUFFile.open(path) as file:
        dimensions = read_hyperparameters(file)
        tensors = {tensor.name: (tensor.qtype, tensor.shape) for tensor in file.tensors.values()}
        return PlannedModel(path.name, dimensions, tensors, file.summary().file_bytes)


def model_of_recipe(name: str, config: ModelConfig, recipe: Recipe, overrides: Sequence[Override] = ()) -> PlannedModel:
    """The file that `localcoder convert` would write."""
    traits = Traits(n_layer=config.n_layer, n_gqa=config.n_head // config.n_head_kv, tied=config.tied)
    shapes = {spec.name: spec.shape for spec in tensors_of(config)}
    types = choose_types(recipe, shapes, traits, overrides)
    tensors = {name: (types[name], shape) for name, shape in shapes.items()}
    n_bytes = sum(_padded(math.prod(shape[:-1]) * qtype.row_bytes(shape[-1])) for qtype, shape in tensors.values())
    return PlannedModel(name, _dimensions(config), tensors, n_bytes + _VOCABULARY_FILE_BYTES * config.n_vocab)


def config_of(dimensions: Hyperparameters, *, tied: bool) -> ModelConfig:
    """The dimensions of a file, for forecasting it in another type."""
    shared = {field.name for field in dataclasses.fields(ModelConfig)} & set(dimensions.__dict__)
    return ModelConfig(**{name: getattr(dimensions, name) for name in shared}, tied=tied)


def _dimensions(config: ModelConfig) -> Hyperparameters:
    shared = {field.name for field in dataclasses.fields(Hyperparameters)} & set(config.__dict__)
    values = {name: getattr(config, name) for name in shared}
    return Hyperparameters(**{**values, "architecture": "llama", "rope_factor": config.rope_factor or 1.0})


def _padded(n_bytes: int) -> int:
    return n_bytes + -n_bytes % _ALIGNMENT


def best_that_fits(
    name: str,
    config: ModelConfig,
    fits: Callable[[Forecast], bool],
    *,
    n_ctx: int,
    kv_type: str,
    runtime: int,
    overrides: Sequence[Override] = (),
) -> tuple[Recipe, Forecast] | None:
    """The first of `BEST_FIRST` whose forecast `fits`; None if none does."""
    for recipe in map(recipe_by_name, BEST_FIRST):
        model = model_of_recipe(name, config, recipe, overrides)
        there = forecast(model, n_ctx=n_ctx, kv_type=kv_type, runtime=runtime)
        if fits(there):
            return recipe, there
    return None


def most_positions(model: PlannedModel, fits: Callable[[Forecast], bool], like: Forecast) -> int:
    """The longest context, in steps of 256 positions and shorter than that of `like`, whose forecast fits; 0: none."""
    low, high = 0, (like.n_ctx - 1) // CONTEXT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        there = forecast(model, n_ctx=middle * CONTEXT_STEP, kv_type=like.kv_type, runtime=like.runtime)
        low, high = (middle, high) if fits(there) else (low, middle - 1)
    return low * CONTEXT_STEP


def advice(
    model: PlannedModel, config: ModelConfig, planned: Forecast, fits: Callable[[Forecast], bool]
) -> Iterator[str]:
    """What to change so that a model fits that does not: each line is enough by itself, but the last resort."""
    n_ctx, runtime = planned.n_ctx, planned.runtime
    for kv_type in KV_TYPES[KV_TYPES.index(planned.kv_type) + 1 :]:
        if config.head_dim % by_name(kv_type).block_elems == 0:
            smaller = forecast(model, n_ctx=n_ctx, kv_type=kv_type, runtime=runtime)
            if fits(smaller):
                yield f"keep the KV cache in {kv_type}: {shown(smaller.total)}"
                break
    most = most_positions(model, fits, planned)
    if most:
        yield f"choose n_ctx {most} or less"
    best = best_that_fits(model.name, config, fits, n_ctx=n_ctx, kv_type=planned.kv_type, runtime=runtime)
    if best:
        yield f"choose type {best[0].name}: a file of {shown(best[1].weights)}, {shown(best[1].total)} in all"
    if most or best:
        return
    best = best_that_fits(model.name, config, fits, n_ctx=CONTEXT_STEP, kv_type=planned.kv_type, runtime=runtime)
    if best:
        most = most_positions(model_of_recipe(model.name, config, best[0]), fits, planned)
        yield f"choose type {best[0].name} and n_ctx {most} or less"
    else:
        yield "choose a smaller model: this one does not fit in any type"


def shown(n_bytes: int) -> str:
    """A size for people."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 1 << 30 else f"{n_bytes / 2**20:.0f} MiB"


def forecast(model: PlannedModel, *, n_ctx: int, kv_type: str, runtime: int) -> Forecast:
    """The memory that `model` takes.

    Args:
        n_ctx: positions of the context.
        kv_type: format of the KV cache, one of KV_TYPES.
        runtime: bytes of interpreter and libraries, as `measure_runtime` gives them.
    """
    if n_ctx < 1:
        raise OptionError(f"n_ctx is {n_ctx}; expected at least 1")
    d = model.dimensions
    n_pages = -(-n_ctx // PAGE_SIZE)
    row_bytes = by_name(kv_type).row_bytes(d.head_dim)
    return Forecast(
        n_ctx=n_ctx,
        kv_type=kv_type,
        weights=model.file_bytes,
        kv_cache=2 * d.n_layer * d.n_head_kv * n_pages * PAGE_SIZE * row_bytes,
        work=_work_bytes(model, n_ctx, kv_type),
        tokenizer=_TOKENIZER_BYTES * d.n_vocab,
        runtime=runtime,
    )


def _work_bytes(model: PlannedModel, n_ctx: int, kv_type: str) -> int:
    """Buffers of a step of N_UBATCH tokens, as the program asks for them, and the tables of positions."""
    d = model.dimensions
    # Two layers have the buffers of all: they share them.
    program = record(
        dataclasses.replace(d, n_layer=min(d.n_layer, 2)), _shell(model), n_ctx=1, page_size=PAGE_SIZE, kv_type=kv_type
    )
    _, widths = assign_slots(lower(program), program.logits)
    n_tokens = min(N_UBATCH, n_ctx)
    rounded = max(d.n_embd, d.n_ff, d.n_head * d.head_dim) * 9 // 8  # activations in bytes, with their scales
    tables = 4 * n_ctx * d.head_dim  # cosines and sines
    norms = 4 * d.n_embd * (2 * d.n_layer + 1)
    chunks = 2 * 4 * _CHUNK_ROWS * n_tokens * thread_count()  # what each thread puts together before it is stored
    logits = 3 * 4 * d.n_vocab  # of one position, and what the sampler makes of them
    return n_tokens * (4 * sum(widths) + rounded) + tables + norms + chunks + logits


def _shell(model: PlannedModel) -> Weights:
    """Weights of the right types and shapes that take no memory."""

    def tensor(name: str) -> QuantTensor:
        qtype, shape = model.tensors[name]
        data = np.broadcast_to(np.uint8(0), (*shape[:-1], qtype.row_bytes(shape[-1])))
        return QuantTensor(name, qtype, shape, data)

    def vector(n: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return np.broadcast_to(np.float32(0), (n,))

    d = model.dimensions
    layers = tuple(
        LayerWeights(
            attn_norm=vector(d.n_embd),
            ffn_norm=vector(d.n_embd),
            **{
                part: tensor(f"blk.{i}.{part}.weight")
                for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
            },
        )
        for i in range(min(d.n_layer, 2))
    )
    output = "output.weight" if "output.weight" in model.tensors else "token_embd.weight"
    return Weights(tensor("token_embd.weight"), layers, vector(d.n_embd), tensor(output))


# Runs the small model of the package as `localcoder run` would, and prints the peak of its own resident memory.
_CHILD = """
import sys
import numpy as np
import localcoder.cli.main, localcoder.cli.run
from localcoder.coder import Coder
from localcoder.model.engine import Chunk
with Coder(n_ctx=64, threads=int(sys.argv[1])) as coder:
    sequence = coder.engine.new_sequence()
    tokens = np.linspace(0, coder.n_vocab - 1, 64).astype(np.int32)  # all over the embedding, so that every page counts
    coder.engine.evaluate([Chunk(sequence, tokens)])
    sequence.close()
    coder.complete("x", max_tokens=2)
try:
    with open("/proc/self/status") as status:
        peak = next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
except OSError:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(peak)
"""
_TYPICAL_RUNTIME = 60 << 20  # where it cannot be measured
_MEASURE_SECONDS = 60


def measure_runtime(threads: int | None = None) -> int:
    """Bytes of interpreter, libraries and backend: what is left of a small model's memory without its own.

    Takes about a second; a typical figure where that cannot be done.
    """
    from localcoder.coder import embedded_model

    command = [sys.executable, "-c", _CHILD, str(thread_count(threads))]
    try:
        with embedded_model() as path:
            small = model_of_file(path)
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_MEASURE_SECONDS)
        peak = int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError, OptionError):
        return _TYPICAL_RUNTIME
    return max(peak - forecast(small, n_ctx=64, kv_type="f16", runtime=0).total, 0)
