"""From the recorded program to the C core's ops: neighbours fused, buffers put into shared slots.

- Linears that read the same buffer become one op, and share one rounding of the activations.
- gate, up and SiLU·mul become one op; so do a linear and the addition of its result to the residual.
- Ops that work row by row and follow one another run without the threads meeting in between.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise

from localcoder.backends.program import (
    Add,
    Attend,
    Buffer,
    Embed,
    Input,
    Linear,
    Op,
    Program,
    RmsNorm,
    Rope,
    SelectOutputs,
    SiluMul,
    WriteKV,
    reads,
)
from localcoder.quants.spec import Float32, QuantTensor

MAX_WEIGHTS = 3


class Kind(IntEnum):
    """enum lc_op_kind."""

    EMBED = 0
    RMS_NORM = 1
    QUANTIZE = 2
    LINEAR = 3
    ROPE = 4
    WRITE_KV = 5
    ATTEND = 6
    SILU_MUL = 7
    ADD = 8
    SELECT = 9
    INPUT = 10


class Epilogue(IntEnum):
    """enum lc_epilogue."""

    STORE = 0
    ADD_RESIDUAL = 1
    SILU_MUL = 2


ROW_WISE = set(Kind) - {Kind.LINEAR, Kind.ATTEND}


@dataclass
class LoweredOp:
    """One lc_op, still over buffers. `may_overwrite` are the inputs whose place the result may take."""

    kind: Kind
    rows: str
    width: int
    x: Buffer | None = None
    y: Buffer | None = None
    out: list[Buffer] = field(default_factory=list)
    weights: list[QuantTensor] = field(default_factory=list)
    epilogue: Epilogue = Epilogue.STORE
    vector: Float32 | None = None
    eps: float = 0.0
    n_head: int = 0
    layer: int = 0
    input: int = 0
    barrier: bool = True

    @property
    def inputs(self) -> list[Buffer]:
        return [b for b in (self.x, self.y) if b is not None]

    @property
    def may_overwrite(self) -> list[Buffer]:
        if self.kind in (Kind.RMS_NORM, Kind.ROPE, Kind.SILU_MUL, Kind.ADD):
            return self.inputs
        return [self.y] if self.epilogue == Epilogue.ADD_RESIDUAL and self.y else []


def lower(program: Program) -> list[LoweredOp]:
    """The program as C ops in order."""
    lowered = _Fuser(program).run()
    for before, op in pairwise(lowered):
        both_row_wise = before.kind in ROW_WISE and op.kind in ROW_WISE
        op.barrier = not both_row_wise or before.rows != op.rows or op.kind == Kind.SELECT
    return lowered


class _Fuser:
    def __init__(self, program: Program) -> None:
        self._ops = program.ops
        self._readers: dict[int, list[int]] = {program.logits.id: [-1]}
        for i, op in enumerate(program.ops):
            for buffer in reads(op):
                self._readers.setdefault(buffer.id, []).append(i)
        self._done: set[int] = set()
        self._ready: set[int] = set()  # buffers computed so far
        self._out: list[LoweredOp] = []
        self._rounded: Buffer | None = None  # what the last QUANTIZE read

    def run(self) -> list[LoweredOp]:
        for i, op in enumerate(self._ops):
            if i in self._done:
                continue
            if isinstance(op, Linear):
                self._linear(i, op)
            else:
                self._emit(_plain(op))
        return self._out

    def _emit(self, op: LoweredOp) -> None:
        self._out.append(op)
        self._ready |= {b.id for b in op.out}

    def _only_reader(self, buffer: Buffer) -> int | None:
        readers = self._readers.get(buffer.id, [])
        return readers[0] if len(readers) == 1 else None

    def _linear(self, first: int, op: Linear) -> None:
        group = {first: op}
        for i in range(first + 1, len(self._ops)):
            other = self._ops[i]
            if i not in self._done and isinstance(other, Linear) and other.x == op.x:
                group[i] = other
        if any(linear.weight.qtype.activation == "q8" for linear in group.values()) and self._rounded != op.x:
            self._emit(LoweredOp(Kind.QUANTIZE, op.x.rows, op.x.width, x=op.x))
            self._rounded = op.x
        self._done |= set(group)
        stored = []
        for i, linear in group.items():
            if not self._as_pair(linear, group) and not self._as_residual(linear):
                stored.append(self._ops[i])
        for at in range(0, len(stored), MAX_WEIGHTS):
            self._emit_linear([s for s in stored[at : at + MAX_WEIGHTS] if isinstance(s, Linear)])

    def _emit_linear(self, linears: list[Linear], **rest: object) -> None:
        x = linears[0].x
        out = [linear.out for linear in linears]
        weights = [linear.weight for linear in linears]
        self._emit(LoweredOp(Kind.LINEAR, x.rows, x.width, x=x, **{"out": out, "weights": weights, **rest}))  # type: ignore[arg-type]

    def _as_pair(self, linear: Linear, group: dict[int, Linear]) -> bool:
        """gate and up with nothing but one SiluMul behind them; true also for the second of the two."""
        at = self._only_reader(linear.out)
        op = self._ops[at] if at is not None and at >= 0 else None
        if not isinstance(op, SiluMul):
            return False
        assert at is not None
        by_out = {member.out.id: member for member in group.values()}
        gate, up = by_out.get(op.gate.id), by_out.get(op.up.id)
        if gate is None or up is None or gate is up or self._only_reader(gate.out) != self._only_reader(up.out):
            return False
        if gate.weight.qtype.activation != up.weight.qtype.activation:
            return False
        if at not in self._done:
            self._done.add(at)
            self._emit_linear([gate, up], out=[op.out], epilogue=Epilogue.SILU_MUL)
        return True

    def _as_residual(self, linear: Linear) -> bool:
        """A result that is only added to something that is there already."""
        at = self._only_reader(linear.out)
        op = self._ops[at] if at is not None and at >= 0 else None
        if not isinstance(op, Add) or op.a == op.b:
            return False
        other = op.b if op.a == linear.out else op.a
        if other.id not in self._ready:
            return False
        assert at is not None
        self._done.add(at)
        self._emit_linear([linear], y=other, out=[op.out], epilogue=Epilogue.ADD_RESIDUAL)
        return True


def _plain(op: Op) -> LoweredOp:
    if isinstance(op, Input):
        return LoweredOp(Kind.INPUT, op.out.rows, op.out.width, out=[op.out], input=op.index)
    if isinstance(op, Embed):
        return LoweredOp(Kind.EMBED, op.out.rows, op.out.width, out=[op.out], weights=[op.weight])
    if isinstance(op, RmsNorm):
        return LoweredOp(Kind.RMS_NORM, op.x.rows, op.x.width, op.x, out=[op.out], vector=op.weight, eps=op.eps)
    if isinstance(op, Rope):
        return LoweredOp(Kind.ROPE, op.x.rows, op.x.width, op.x, out=[op.out], n_head=op.n_head)
    if isinstance(op, WriteKV):
        return LoweredOp(Kind.WRITE_KV, op.k.rows, op.k.width, op.k, op.v, layer=op.layer)
    if isinstance(op, Attend):
        return LoweredOp(Kind.ATTEND, op.q.rows, op.q.width, op.q, out=[op.out], n_head=op.n_head, layer=op.layer)
    if isinstance(op, SiluMul):
        return LoweredOp(Kind.SILU_MUL, op.out.rows, op.out.width, op.gate, op.up, [op.out])
    if isinstance(op, Add):
        return LoweredOp(Kind.ADD, op.out.rows, op.out.width, op.a, op.b, [op.out])
    assert isinstance(op, SelectOutputs)
    return LoweredOp(Kind.SELECT, op.out.rows, op.out.width, op.x, out=[op.out])


def assign_slots(ops: list[LoweredOp], logits: Buffer) -> tuple[dict[int, int], list[int]]:
    """Shares memory between buffers: (slot of each buffer id but the logits, width of each slot).

    A slot becomes free at the next barrier after its last reader, because until then threads may still be reading
    other rows of it; an op may take the place of an input of the same shape at once.
    """
    last_read = {b.id: i for i, op in enumerate(ops) for b in op.inputs}
    slot_of: dict[int, int] = {}
    widths: list[int] = []
    free: list[int] = []
    dying: list[int] = []
    for i, op in enumerate(ops):
        if op.barrier:
            free.extend(dying)
            dying = []
        ends = {b.id: b for b in op.inputs if last_read[b.id] == i and b.id in slot_of}
        for out in op.out:
            if out.id == logits.id:
                continue
            heirs = [b for b in op.may_overwrite if b.id in ends and (b.width, b.rows) == (out.width, out.rows)]
            if heirs:
                slot_of[out.id] = slot_of[heirs[0].id]
                del ends[heirs[0].id]
                continue
            fit = min(free, key=lambda s: (widths[s] < out.width, abs(widths[s] - out.width)), default=None)
            if fit is None:
                fit = len(widths)
                widths.append(out.width)
            else:
                free.remove(fit)
                widths[fit] = max(widths[fit], out.width)
            slot_of[out.id] = fit
        dying.extend(slot_of[b] for b in ends)
        dying.extend(slot_of[b.id] for b in op.out if b.id not in last_read and b.id in slot_of)
    return slot_of, widths
