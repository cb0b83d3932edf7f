"""One model on several devices: each computes a run of layers, and a step passes from one to the next.

A run of layers is a program of its own. Between two of them travels the one matrix that is alive there (the residual
stream), through main memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from localcoder.backends.base import Backend, Executable, KVStore
from localcoder.backends.highest import Candidates, Wanted
from localcoder.backends.program import Attend, Buffer, Input, KVShape, Op, Program, Step, WriteKV, reads, writes
from localcoder.quants.spec import Bytes, Float32, QuantType


@dataclass(frozen=True)
class Part:
    """Layers `first` to `end` - 1, and the backend that computes them.

    The first part also has what comes before layer 0, and may have nothing else (`end` = 0); the last, what comes after
    the last layer.
    """

    backend: Backend
    first: int
    end: int


@dataclass(frozen=True)
class _Cut:
    """A place between two ops, and the one buffer that crosses it."""

    at: int
    buffer: Buffer


def _layer_cuts(program: Program) -> dict[int, _Cut]:
    """Where each layer of the program begins.

    That is the last place before its cache is touched where one buffer alone is read later on.
    """
    last_read = {b.id: i for i, op in enumerate(program.ops) for b in reads(op)}
    last_read[program.logits.id] = len(program.ops)
    cuts: dict[int, _Cut] = {}
    alive: dict[int, Buffer] = {}
    found: _Cut | None = None
    for i, op in enumerate(program.ops):
        if len(alive) == 1:
            found = _Cut(i, *alive.values())
        if isinstance(op, (WriteKV, Attend)) and op.layer not in cuts and found is not None:
            cuts[op.layer] = found
        out = writes(op)
        if out is not None:
            alive[out.id] = out
        alive = {id_: buffer for id_, buffer in alive.items() if last_read.get(id_, -1) > i}
    return cuts


def part_of(program: Program, first: int, end: int, *, with_start: bool = True) -> Program | None:
    """Layers `first` to `end` - 1 of a program, counted from 0 in the part's own cache; None if it has no such layers.

    Args:
        with_start: whether a part from layer 0 on also has what comes before it.
    """
    cuts = _layer_cuts(program)
    start = None if first == 0 and with_start else cuts.get(first)
    stop = cuts.get(end)
    if start is None and not (first == 0 and with_start):
        return None
    begun = 0 if start is None else start.at
    ops: list[Op] = [] if start is None else [Input(0, start.buffer)]
    for op in program.ops[begun : None if stop is None else stop.at]:
        ops.append(replace(op, layer=op.layer - first) if isinstance(op, (WriteKV, Attend)) else op)
    result = program.logits if stop is None else stop.buffer
    return Program(tuple(ops), result, _shape_of(program.kv, first, min(end, program.kv.n_layer)), program.rope)


def _shape_of(whole: KVShape, first: int, end: int) -> KVShape:
    """The cache of some layers. There is none of no layers: a part with the embedding alone has one that nobody uses,
    which takes address space only."""
    return replace(whole, n_layer=max(end - first, 1))


class SplitKVStore(KVStore):
    """The cache of each layer where the layer is computed.

    Attributes:
        stores: one a part.
    """

    def __init__(self, shape: KVShape, n_pages: int, parts: Sequence[Part]) -> None:
        self.shape = shape
        self.n_pages = n_pages
        self.stores = [part.backend.new_kv_store(_shape_of(shape, part.first, part.end), n_pages) for part in parts]
        self._used = [store for store, part in zip(self.stores, parts) if part.first < part.end]

    @property
    def nbytes(self) -> int:
        return sum(store.nbytes for store in self._used)

    def copy_page(self, source: int, target: int) -> None:
        for store in self._used:
            store.copy_page(source, target)

    def read_page(self, page: int) -> Bytes:
        return np.concatenate([store.read_page(page).reshape(-1).view(np.uint8) for store in self._used])

    def write_page(self, page: int, data: Bytes) -> None:
        at = 0
        for store in self._used:
            n_bytes = store.nbytes // store.n_pages
            store.write_page(page, data[at : at + n_bytes])
            at += n_bytes


class SplitExecutable(Executable):
    def __init__(self, executables: Sequence[Executable]) -> None:
        self._executables = executables

    def run(self, step: Step) -> Float32:
        return self._executables[-1].run(self._last(step))

    def run_highest(self, step: Step, wanted: Wanted) -> list[Candidates]:
        return self._executables[-1].run_highest(self._last(step), wanted)

    def _last(self, step: Step) -> Step:
        """Computes all but the last part; returns the last one's step."""
        for executable in self._executables[:-1]:
            step = step._replace(inputs=(executable.run(step),))
        return step

    def close(self) -> None:
        for executable in self._executables:
            executable.close()


class SplitBackend(Backend):
    """A model whose layers are shared out among `parts`, in their order. Closing the backends is their owner's."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self.name = "+".join(dict.fromkeys(part.backend.name for part in parts))
        self.description = "; ".join(f"{_layers(part)} on {part.backend.description}" for part in parts)

    def new_kv_store(self, shape: KVShape, n_pages: int) -> KVStore:
        return SplitKVStore(shape, n_pages, self.parts)

    def compile(self, program: Program, kv: KVStore, max_tokens: int) -> Executable:
        assert isinstance(kv, SplitKVStore)
        executables = []
        for i, (part, store) in enumerate(zip(self.parts, kv.stores)):
            piece = part_of(program, part.first, part.end, with_start=i == 0)
            if piece is not None:
                executables.append(part.backend.compile(piece, store, max_tokens))
        return SplitExecutable(executables)

    def quantize(self, qtype: QuantType, x: Float32) -> Bytes:
        return self.parts[0].backend.quantize(qtype, x)


def _layers(part: Part) -> str:
    if part.first == part.end:
        return "the embedding"
    return f"layer {part.first}" if part.end - part.first == 1 else f"layers {part.first} to {part.end - 1}"
