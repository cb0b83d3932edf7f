"""The recorded forward pass: a list of ops over virtual buffers.

A model's forward pass is written once against `Recorder` (the op set) and recorded once; what changes from step to step
is in the small `Step` that the ops read. Backends compile the program for their device and replay it; they may fuse
neighbouring ops. Nothing here computes.

Buffers are float32 matrices [rows, width]. `rows` is either every token of the step or only those whose logits are
wanted. Buffers are assigned once: no op writes into its input, though a backend may let the two share memory
(`assign_slots`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from localcoder.quants.spec import Float32, QuantTensor

Rows = Literal["tokens", "outputs"]


@dataclass(frozen=True)
class Buffer:
    """A float32 matrix [n_tokens or n_outputs, width] that one op writes and later ops read."""

    id: int
    rows: Rows
    width: int


@dataclass(frozen=True, eq=False)
class Input:
    """out = the step's `inputs[index]`, [n_tokens, width]: how a program starts that is only a part of the model."""

    index: int
    out: Buffer


@dataclass(frozen=True, eq=False)
class Embed:
    """out[t] = weight[token[t]], dequantized. weight is [n_vocab, width]."""

    weight: QuantTensor
    out: Buffer


@dataclass(frozen=True, eq=False)
class RmsNorm:
    """out = x / sqrt(mean(x²) + eps) · weight, weight float32 [width]."""

    x: Buffer
    weight: Float32
    eps: float
    out: Buffer


@dataclass(frozen=True, eq=False)
class Linear:
    """out = x Wᵀ, W [n_out, n_in]. For formats whose activation is `q8`, x is rounded with `quantize_q8` first."""

    x: Buffer
    weight: QuantTensor
    out: Buffer


@dataclass(frozen=True, eq=False)
class Rope:
    """Rotates the pairs (2i, 2i+1) of every head by the angle of (position, i). x is [rows, n_head * head_dim]."""

    x: Buffer
    n_head: int
    out: Buffer


@dataclass(frozen=True, eq=False)
class WriteKV:
    """Stores k and v [tokens, n_head_kv * head_dim] of `layer` in the KV cache at each token's position."""

    layer: int
    k: Buffer
    v: Buffer


@dataclass(frozen=True, eq=False)
class Attend:
    """Causal attention of q [tokens, n_head * head_dim] over its own sequence's cache, positions 0..position inclusive.

    Scores are scaled by 1/sqrt(head_dim); query head h reads KV head h // (n_head // n_head_kv).
    """

    layer: int
    q: Buffer
    n_head: int
    out: Buffer


@dataclass(frozen=True, eq=False)
class SiluMul:
    """out = gate · sigmoid(gate) · up."""

    gate: Buffer
    up: Buffer
    out: Buffer


@dataclass(frozen=True, eq=False)
class Add:
    """out = a + b."""

    a: Buffer
    b: Buffer
    out: Buffer


@dataclass(frozen=True, eq=False)
class SelectOutputs:
    """out [outputs, width] = the rows of x [tokens, width] whose logits are wanted."""

    x: Buffer
    out: Buffer


Op = Input | Embed | RmsNorm | Linear | Rope | WriteKV | Attend | SiluMul | Add | SelectOutputs


def reads(op: Op) -> list[Buffer]:
    """The buffers that `op` reads."""
    values = [getattr(op, f.name) for f in fields(op) if f.name != "out"]
    return [v for v in values if isinstance(v, Buffer)]


def writes(op: Op) -> Buffer | None:
    """The buffer that `op` writes; None for WriteKV."""
    return getattr(op, "out", None)


@dataclass(frozen=True)
class KVShape:
    """The KV cache of one model.

    Layout, for k and v of each layer alike: [n_pages, n_head_kv, page_size, head_dim], so the positions of one head in
    one page lie together. A row of head_dim values is stored in the format `kv_type`.
    """

    n_layer: int
    n_head_kv: int
    head_dim: int
    page_size: int = 64
    kv_type: str = "f16"


@dataclass(frozen=True)
class RopeTable:
    """float32 [n_ctx, head_dim / 2] cosines and sines of every position's angles (computed in float64)."""

    cos: Float32
    sin: Float32


@dataclass(frozen=True)
class Program:
    """A recorded forward pass, or a part of one.

    `logits` is its result: [outputs, n_vocab] for the whole model; a part may end in any buffer.
    """

    ops: tuple[Op, ...]
    logits: Buffer
    kv: KVShape
    rope: RopeTable


class Step(NamedTuple):
    """What changes from one replay to the next. All arrays int32, C-contiguous.

    Attributes:
        tokens: [n_tokens] ids.
        positions: [n_tokens] index of each token in its own sequence. Tokens of one sequence stand together, in order,
            their positions consecutive.
        sequences: [n_tokens] row of `page_table` that each token belongs to.
        page_table: [n_sequences, n] page numbers; position p of a sequence lies in its entry p // page_size.
        outputs: [n_outputs] indices into `tokens` of the rows whose logits are wanted, ascending; may be empty.
        inputs: float32 [n_tokens, width] matrices for the program's Input ops, C-contiguous.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    sequences: NDArray[np.int32]
    page_table: NDArray[np.int32]
    outputs: NDArray[np.int32]
    inputs: tuple[Float32, ...] = ()


class Recorder:
    """The op set. Each method appends one op and returns its output buffer."""

    def __init__(self) -> None:
        self._ops: list[Op] = []
        self._n_buffers = 0
        self._n_inputs = 0

    def _buffer(self, rows: Rows, width: int) -> Buffer:
        self._n_buffers += 1
        return Buffer(self._n_buffers - 1, rows, width)

    def input(self, width: int) -> Buffer:
        out = self._buffer("tokens", width)
        self._ops.append(Input(self._n_inputs, out))
        self._n_inputs += 1
        return out

    def embed(self, weight: QuantTensor) -> Buffer:
        out = self._buffer("tokens", weight.shape[1])
        self._ops.append(Embed(weight, out))
        return out

    def rms_norm(self, x: Buffer, weight: Float32, eps: float) -> Buffer:
        out = self._buffer(x.rows, x.width)
        self._ops.append(RmsNorm(x, weight, eps, out))
        return out

    def linear(self, x: Buffer, weight: QuantTensor) -> Buffer:
        out = self._buffer(x.rows, weight.shape[0])
        self._ops.append(Linear(x, weight, out))
        return out

    def rope(self, x: Buffer, n_head: int) -> Buffer:
        out = self._buffer(x.rows, x.width)
        self._ops.append(Rope(x, n_head, out))
        return out

    def write_kv(self, layer: int, k: Buffer, v: Buffer) -> None:
        self._ops.append(WriteKV(layer, k, v))

    def attend(self, layer: int, q: Buffer, n_head: int) -> Buffer:
        out = self._buffer(q.rows, q.width)
        self._ops.append(Attend(layer, q, n_head, out))
        return out

    def silu_mul(self, gate: Buffer, up: Buffer) -> Buffer:
        out = self._buffer(gate.rows, gate.width)
        self._ops.append(SiluMul(gate, up, out))
        return out

    def add(self, a: Buffer, b: Buffer) -> Buffer:
        out = self._buffer(a.rows, a.width)
        self._ops.append(Add(a, b, out))
        return out

    def select_outputs(self, x: Buffer) -> Buffer:
        out = self._buffer("outputs", x.width)
        self._ops.append(SelectOutputs(x, out))
        return out

    def finish(self, logits: Buffer, kv: KVShape, rope: RopeTable) -> Program:
        return Program(tuple(self._ops), logits, kv, rope)


_ELEMENTWISE = (Rope, SiluMul, Add)  # may write over an input of the same width


def assign_slots(program: Program) -> tuple[dict[int, int], list[int]]:
    """Shares memory between buffers whose lifetimes do not overlap.

    Returns (slot of each buffer id, width of each slot). An element-wise op may get the slot of an input that dies
    with it.
    """
    last_read = {b.id: i for i, op in enumerate(program.ops) for b in reads(op)}
    last_read[program.logits.id] = len(program.ops)
    slot_of: dict[int, int] = {}
    widths: list[int] = []
    free: list[int] = []
    for i, op in enumerate(program.ops):
        dying = {slot_of[b.id] for b in reads(op) if last_read[b.id] == i}
        if isinstance(op, _ELEMENTWISE):
            free.extend(sorted(dying))
        out = writes(op)
        if out is not None:
            fit = min(free, key=lambda s: (widths[s] < out.width, abs(widths[s] - out.width)), default=None)
            if fit is None:
                fit = len(widths)
                widths.append(out.width)
            else:
                free.remove(fit)
                widths[fit] = max(widths[fit], out.width)
            slot_of[out.id] = fit
        if not isinstance(op, _ELEMENTWISE):
            free.extend(sorted(dying))
    return slot_of, widths
