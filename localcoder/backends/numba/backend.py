"""A recorded program becomes an op table; a step is one call of `replay` on every thread.

Formats that `rows` does not know run through their plain numpy definition, a bounded chunk of weight rows at a time:
the op table is cut there, and Python does that one op.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.base import Backend, Executable, HostKVStore, KVStore
from localcoder.backends.numba import rows
from localcoder.backends.numba.codes import CODE_ROWS, SUM_GROUP
from localcoder.backends.numba.emit import GROUP
from localcoder.backends.numba.jit import compilation_shown, host_description
from localcoder.backends.numba.linear import encode_rows
from localcoder.backends.numba.replay import CELL_STRIDE, N_COLUMNS, Code, Column, replay
from localcoder.backends.numba.team import ThreadTeam
from localcoder.backends.numba.tiles import TILE_TOKENS
from localcoder.backends.program import (
    Add,
    Attend,
    Buffer,
    Embed,
    Input,
    KVShape,
    Linear,
    Op,
    Program,
    RmsNorm,
    Rope,
    SelectOutputs,
    SiluMul,
    Step,
    WriteKV,
    assign_slots,
    reads,
)
from localcoder.errors import BackendError
from localcoder.quants import BY_ID, by_name
from localcoder.quants.search import is_searched
from localcoder.quants.spec import Bytes, Float32, QuantTensor, QuantType

Table = NDArray[np.int64]

_CHUNK_VALUES = 1 << 20  # weights dequantized at once by the plain definition
_BLOCK_QUERIES = 64  # queries that share a pass over the keys: tokens times heads of a group
_BLOCK_TOKENS = 16


class NumbaBackend(Backend):
    name = "numba"

    def __init__(self, threads: int) -> None:
        self._team = ThreadTeam(threads)
        self.description = f"{host_description()}, {threads} threads"

    def new_kv_store(self, shape: KVShape, n_pages: int) -> KVStore:
        kv_type = by_name(shape.kv_type)
        if kv_type.gguf_id not in rows.KV_ROWS:
            known = ", ".join(sorted(BY_ID[i].name for i in rows.KV_ROWS))
            raise BackendError(f"the numba backend has no KV cache in {kv_type.name}; known: {known}")
        return HostKVStore(shape, n_pages, kv_type.row_bytes(shape.head_dim))

    def compile(self, program: Program, kv: KVStore, max_tokens: int) -> Executable:
        assert isinstance(kv, HostKVStore)
        return NumbaExecutable(program, kv, max_tokens, self._team)

    def quantize(self, qtype: QuantType, x: Float32) -> Bytes:
        if qtype.gguf_id not in rows.ENCODED_ROWS:
            return qtype.quantize(x)
        n, n_in = x.shape
        values = np.ascontiguousarray(x, np.float32)
        out = np.empty((n, qtype.row_bytes(n_in)), np.uint8)
        arguments = (n_in, out.reshape(-1), out.shape[1], np.zeros(1, np.int64))
        with compilation_shown():
            encode_rows(qtype.gguf_id, values.ctypes.data, 0, *arguments)
        arguments[-1][0] = 0
        failed = np.zeros(1, np.int64)
        self._team.run(encode_rows, qtype.gguf_id, values.ctypes.data, n, *arguments, cells=failed)
        return out

    def quantize_best(self, qtype: QuantType, x: Float32, weights: Float32 | None = None) -> Bytes:
        if not is_searched(qtype):
            return super().quantize_best(qtype, x, weights)
        from localcoder.backends.numba.search import quantize_best

        return quantize_best(qtype, x, weights, self._team)

    def close(self) -> None:
        self._team.close()


@dataclass(frozen=True, eq=False)
class _PlainLinear:
    """A Linear whose weight's format has no kernel: x, float32 or rounded, meets dequantized rows, chunk by chunk."""

    weight: QuantTensor
    out: Buffer
    x_address: int


Part = Table | _PlainLinear | Embed | Input


class NumbaExecutable(Executable):
    def __init__(self, program: Program, kv: HostKVStore, max_tokens: int, team: ThreadTeam) -> None:
        self._program, self._kv, self._max_tokens, self._team = program, kv, max_tokens, team
        self._cos, self._sin = (np.ascontiguousarray(t, np.float32) for t in (program.rope.cos, program.rope.sin))
        slot_of, widths = assign_slots(program)
        self._slots = [np.empty(max_tokens * width, np.float32) for width in widths]
        self._slot_of = slot_of
        widest = max((op.x.width for op in program.ops if isinstance(op, Linear)), default=0)
        n_padded = -(-max_tokens // TILE_TOKENS) * TILE_TOKENS
        self._codes = np.empty(n_padded * widest, np.int16)
        self._scales = np.empty(n_padded * widest // GROUP, np.float32)
        self._sums = np.empty(n_padded * widest // SUM_GROUP, np.float32)
        self._rounded = np.empty(0, np.float32)
        shape, kv_type = kv.shape, by_name(kv.shape.kv_type)
        self._kv_shape = np.array(
            [kv.n_pages, shape.n_head_kv, shape.page_size, shape.head_dim, kv_type.gguf_id, kv.k.shape[-1]], np.int64
        )
        self._group = max((op.n_head // shape.n_head_kv for op in program.ops if isinstance(op, Attend)), default=1)
        self._parts = self._build()
        longest = max((len(part) for part in self._parts if isinstance(part, np.ndarray)), default=0)
        self._cells = np.zeros((2 * longest + 3) * CELL_STRIDE, np.int64)
        self._compile_kernels()

    def run(self, step: Step) -> Float32:
        if not self._parts:
            raise BackendError("this program was closed")
        n_rows = {"tokens": len(step.tokens), "outputs": len(step.outputs)}
        arguments = self._arguments(step)
        for part in self._parts:
            if isinstance(part, np.ndarray):
                self._replay(part, arguments)
            elif isinstance(part, Embed):
                self._fill(part.out, part.weight.qtype.dequantize(part.weight.data[step.tokens]))
            elif isinstance(part, Input):
                self._fill(part.out, step.inputs[part.index])
            else:
                self._run_plain(part, n_rows[part.out.rows], arguments)
        result = self._program.logits
        n = n_rows[result.rows]
        return self._slot(result)[: n * result.width].reshape(n, result.width).copy()

    def close(self) -> None:
        self._slots, self._parts = [], []

    # Running

    def _fill(self, buffer: Buffer, values: Float32) -> None:
        self._slot(buffer)[: values.size] = values.reshape(-1)

    def _arguments(self, step: Step) -> tuple[Any, ...]:
        blocks = _token_blocks(step.sequences, max(1, min(_BLOCK_TOKENS, _BLOCK_QUERIES // self._group)))
        n_items = len(blocks) // 2 * self._kv.shape.n_head_kv
        n_parts = (
            1
            if n_items >= 2 * self._team.n_threads
            else min(self._group, -(-2 * self._team.n_threads // max(n_items, 1)))
        )
        return (
            np.ascontiguousarray(step.positions, np.int32),
            np.ascontiguousarray(step.sequences, np.int32),
            np.ascontiguousarray(step.page_table, np.int32),
            np.ascontiguousarray(step.outputs, np.int32),
            blocks,
            n_parts,
            self._kv_shape,
            self._kv.k.reshape(-1),
            self._kv.v.reshape(-1),
            self._cos,
            self._sin,
            self._codes,
            self._scales,
            self._sums,
        )

    def _replay(self, table: Table, arguments: tuple[Any, ...]) -> None:
        self._cells[:] = 0
        self._team.run(replay, table, self._cells, self._team.n_threads, *arguments, cells=self._cells)

    def _run_plain(self, op: _PlainLinear, n: int, arguments: tuple[Any, ...]) -> None:
        n_out, n_in = op.weight.shape
        n_rows = max(1, _CHUNK_VALUES // n_in)
        out = self._slot(op.out)
        for first in range(0, n_out if n else 0, n_rows):
            chunk = op.weight.qtype.dequantize(op.weight.data[first : first + n_rows])
            row = self._row(
                Code.LINEAR_FLOATS,
                op.out.rows,
                x=op.x_address,
                out=out.ctypes.data + 4 * first,
                weight=chunk.ctypes.data,
                n_in=n_in,
                n_out=len(chunk),
                kind=rows.F32_ID,
                row_bytes=4 * n_in,
                stride=n_out,
            )
            self._replay(np.array([row], np.int64), arguments)

    # Building

    def _slot(self, buffer: Buffer) -> Float32:
        return self._slots[self._slot_of[buffer.id]]

    def _address(self, buffer: Buffer) -> int:
        return self._slot(buffer).ctypes.data

    @staticmethod
    def _row(code: Code, row_kind: str, **fields: int) -> list[int]:
        row = [0] * N_COLUMNS
        row[Column.CODE] = code
        row[Column.OUTPUT_ROWS] = int(row_kind == "outputs")
        for name, value in fields.items():
            row[Column[name.upper()]] = value
        return row

    def _build(self) -> list[Part]:
        """The ops in order: tables for the kernels, cut by the ops that Python does."""
        parts: list[Part] = []
        table: list[list[int]] = []
        quantized: Buffer | None = None  # whose codes the work area holds

        def cut(part: Part | None = None) -> None:
            if table:
                parts.append(np.array(table, np.int64))
                table.clear()
            if part is not None:
                parts.append(part)

        for op in self._program.ops:
            if isinstance(op, Embed | Input):
                cut(op)
            elif not isinstance(op, Linear):
                table.append(self._row_of(op))
            elif op.weight.qtype.gguf_id in CODE_ROWS:
                if quantized is not op.x:
                    table.append(self._row(Code.QUANTIZE, op.x.rows, x=self._address(op.x), n_in=op.x.width))
                    quantized = op.x
                table.append(self._linear_row(Code.LINEAR_CODES, op))
            elif op.weight.qtype.gguf_id in rows.FLOAT_ROWS:
                table.append(self._linear_row(Code.LINEAR_FLOATS, op))
            else:
                x, width = self._address(op.x), op.x.width
                if op.weight.qtype.activation == "q8":
                    rounded = self._rounded_area()
                    table.append(self._row(Code.ROUND, op.x.rows, x=x, n_in=width, out=rounded, stride=width))
                    x = rounded
                cut(_PlainLinear(op.weight, op.out, x))
        cut()
        return parts

    def _linear_row(self, code: Code, op: Linear) -> list[int]:
        return self._row(
            code,
            op.out.rows,
            x=self._address(op.x),
            out=self._address(op.out),
            weight=op.weight.data.ctypes.data,
            n_in=op.x.width,
            n_out=op.out.width,
            stride=op.out.width,
            kind=op.weight.qtype.gguf_id,
            row_bytes=op.weight.data.shape[-1],
        )

    def _rounded_area(self) -> int:
        if not self._rounded.size:
            widest = max(op.x.width for op in self._program.ops if isinstance(op, Linear))
            self._rounded = np.empty(self._max_tokens * widest, np.float32)
        return self._rounded.ctypes.data

    def _row_of(self, op: Op) -> list[int]:
        if isinstance(op, RmsNorm):
            assert op.weight.dtype == np.float32
            assert op.weight.flags.c_contiguous
            eps = int(np.float64(op.eps).view(np.int64))
            row = self._row(Code.RMS_NORM, op.x.rows, n_in=op.x.width, weight=op.weight.ctypes.data, extra=eps)
        elif isinstance(op, Rope):
            row = self._row(Code.ROPE, op.x.rows, n_in=op.x.width, extra=op.n_head)
        elif isinstance(op, WriteKV):
            row = self._row(Code.WRITE_KV, op.k.rows, n_in=op.k.width, extra=op.layer)
            row[Column.X], row[Column.Y] = self._address(op.k), self._address(op.v)
            return row
        elif isinstance(op, Attend):
            row = self._row(Code.ATTEND, op.q.rows, n_in=op.q.width, kind=op.n_head, extra=op.layer)
        elif isinstance(op, SiluMul):
            row = self._row(Code.SILU_MUL, op.gate.rows, n_in=op.gate.width)
        elif isinstance(op, Add):
            row = self._row(Code.ADD, op.a.rows, n_in=op.a.width)
        else:
            assert isinstance(op, SelectOutputs)
            row = self._row(Code.SELECT, "outputs", n_in=op.x.width)
        for column, buffer in zip((Column.X, Column.Y), reads(op)):
            row[column] = self._address(buffer)
        row[Column.OUT], row[Column.STRIDE] = self._address(op.out), op.out.width
        return row

    def _compile_kernels(self) -> None:
        """Compiles `replay`, or loads it from the cache, so that no thread waits for it at an unannounced moment."""
        none = np.empty(0, np.int32)
        step = Step(none, none, none, np.zeros((1, 1), np.int32), none)
        with compilation_shown():
            replay(np.empty((0, N_COLUMNS), np.int64), self._cells, 1, *self._arguments(step))


def _token_blocks(sequences: NDArray[np.int32], most: int) -> NDArray[np.int32]:
    """Runs of at most `most` tokens of one sequence: first, last (excluded), first, last, ..."""
    n = len(sequences)
    starts = np.flatnonzero(np.diff(sequences, prepend=-1)) if n else np.empty(0, np.int64)
    blocks = []
    for start, end in zip(starts, [*starts[1:], n]):
        for first in range(start, end, most):
            blocks += [first, min(first + most, end)]
    return np.array(blocks, np.int32)
