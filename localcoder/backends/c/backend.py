"""The `c` backend: compiles programs for the C core and replays each step in one foreign call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.base import Backend, Executable, HostKVStore, KVStore
from localcoder.backends.c.library import instruction_sets, load
from localcoder.backends.c.lowering import LoweredOp, assign_slots, lower
from localcoder.backends.highest import Candidates, Wanted
from localcoder.backends.program import Buffer, KVShape, Program, Step
from localcoder.backends.threads import thread_count
from localcoder.errors import BackendError
from localcoder.quants import by_name
from localcoder.quants.iq_grids import grid_of
from localcoder.quants.search import check_finite, is_searched, normalized_weights
from localcoder.quants.spec import Bytes, Float32, QuantType

_STEP_ARRAYS = ("tokens", "positions", "sequences", "page_table", "outputs")  # of a Step, as lc_step calls them


class CBackend(Backend):
    """The C core on `threads` threads (default: one a physical core).

    Args:
        threads: including the calling one.
        isa: instruction set to use; default: LOCALCODER_CPU, else the best that this machine has.

    Attributes:
        threads: how many run.
        isa: the instruction set in use.

    Raises:
        BackendError: no C core here, or the instruction set is unknown or cannot run here.
        OptionError: `threads` out of range.
    """

    name = "c"

    def __init__(self, threads: int | None = None, *, isa: str | None = None) -> None:
        self._ffi, self._lib = load()
        self.threads = thread_count(threads)
        (used,) = (known.name for known in instruction_sets(isa) if known.in_use)
        out = self._ffi.new("lc_pool **")
        self.check(self._lib.lc_pool_new(self.threads, used.encode(), out))
        self.pool = self._ffi.gc(out[0], self._lib.lc_pool_free)
        self.isa = self._ffi.string(self._lib.lc_pool_isa(self.pool)).decode()
        self.prefill_peak = "bf16" if self._lib.lc_prefill_peak(self.pool) == self._lib.LC_PEAK_BF16 else "int8"
        self.description = f"C core, {self.isa}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def check(self, status: int) -> None:
        """Turns a status of the C core into an exception."""
        if status == self._lib.LC_OK:
            return
        if status == self._lib.LC_NO_MEMORY:
            raise MemoryError("the C core found no memory for its work buffers")
        if status == self._lib.LC_NO_THREADS:
            raise BackendError(f"the system refused to start {self.threads} threads; choose fewer")
        raise BackendError(f"the C core refused an argument (status {status})")

    def has_kernel(self, qtype: QuantType) -> bool:
        """Whether blocks of `qtype` have kernels of their own; else plain C unpacks them ("reference speed")."""
        return bool(self._lib.lc_pool_has_kernel(self.pool, qtype.gguf_id))

    def read_memory(self, memory: Bytes) -> None:
        """Reads `memory` once on all threads, as fast as it goes."""
        self.check(self._lib.lc_read_memory(self.pool, self._ffi.from_buffer("uint8_t[]", memory), memory.nbytes))

    def run_peak(self, kind: str, rounds: int) -> int:
        """Multiply-adds of `kind` ("int8", "bf16" or "f32") on the registers of all threads.

        Returns:
            how many operations that was; 0 if the instruction set has none of the kind.
        """
        ops = self._ffi.new("int64_t *")
        self.check(self._lib.lc_run_peak(self.pool, getattr(self._lib, f"LC_PEAK_{kind.upper()}"), rounds, ops))
        return int(ops[0])

    def new_kv_store(self, shape: KVShape, n_pages: int) -> KVStore:
        return HostKVStore(shape, n_pages, by_name(shape.kv_type).row_bytes(shape.head_dim))

    def compile(self, program: Program, kv: KVStore, max_tokens: int) -> Executable:
        assert isinstance(kv, HostKVStore)
        return CExecutable(self, program, kv, max_tokens)

    def quantize(self, qtype: QuantType, x: Float32) -> Bytes:
        rows = np.ascontiguousarray(x, np.float32)
        blocks = np.empty((len(rows), qtype.row_bytes(rows.shape[1])), np.uint8)
        status = self._lib.lc_quantize(
            self.pool,
            qtype.gguf_id,
            self._ffi.from_buffer("float[]", rows),
            *rows.shape,
            self._ffi.from_buffer("uint8_t[]", blocks, require_writable=True),
        )
        if status == self._lib.LC_BAD_ARGUMENT:  # a format whose quantizer is not in C
            return qtype.quantize(rows)
        self.check(status)
        return blocks

    def quantize_best(self, qtype: QuantType, x: Float32, weights: Float32 | None = None) -> Bytes:
        if not is_searched(qtype):
            return super().quantize_best(qtype, x, weights)
        return self.requantize(qtype, by_name("f32"), np.ascontiguousarray(x, np.float32).view(np.uint8), weights)

    def requantize(self, qtype: QuantType, source: QuantType, data: Bytes, weights: Float32 | None = None) -> Bytes:
        if not is_searched(qtype):
            return super().requantize(qtype, source, data, weights)
        data = np.ascontiguousarray(data)
        n_rows, n = len(data), data.shape[1] // source.block_bytes * source.block_elems
        blocks = np.empty((n_rows, qtype.row_bytes(n)), np.uint8)
        normal = None if weights is None else normalized_weights(weights, (n_rows, n))
        from_buffer, null = self._ffi.from_buffer, self._ffi.NULL
        status = self._lib.lc_quantize_best(
            self.pool,
            qtype.gguf_id,
            null if normal is None else from_buffer("float[]", normal),
            0 if normal is None else len(normal),
            source.gguf_id,
            from_buffer("uint8_t[]", data),
            self._grid(source),
            n_rows,
            n,
            from_buffer("uint8_t[]", blocks, require_writable=True),
        )
        if status == self._lib.LC_NOT_FINITE:
            check_finite(source.dequantize(data))
        self.check(status)
        return blocks

    def _grid(self, qtype: QuantType) -> Any:
        """The grid that codes of `qtype` are looked up in, or NULL."""
        if not self._lib.lc_grid_bytes(qtype.gguf_id):
            return self._ffi.NULL
        return self._ffi.from_buffer("int8_t[]", grid_of(qtype))

    def close(self) -> None:
        """Stops the threads; programs compiled here must be closed first."""
        if self.pool is not None:
            self._ffi.release(self.pool)
            self.pool = None


class CExecutable(Executable):
    def __init__(self, backend: CBackend, program: Program, kv: HostKVStore, max_tokens: int) -> None:
        self._backend = backend
        self._ffi, self._lib = load()
        self._logits = program.logits
        self._kept: list[object] = [kv, program]  # what the C side borrows
        ops = lower(program)
        slot_of, widths = assign_slots(ops, program.logits)
        c_ops = self._ffi.new("lc_op[]", len(ops))
        for c_op, op in zip(c_ops, ops):
            self._fill(c_op, op, slot_of)
        shape = kv.shape
        c_kv = self._ffi.new(
            "lc_kv *",
            {
                "k": self._pointer("uint8_t[]", kv.k),
                "v": self._pointer("uint8_t[]", kv.v),
                "type": by_name(shape.kv_type).gguf_id,
                "n_layer": shape.n_layer,
                "n_pages": kv.n_pages,
                "n_head_kv": shape.n_head_kv,
                "page_size": shape.page_size,
                "head_dim": shape.head_dim,
            },
        )
        cos, sin = (np.ascontiguousarray(table, np.float32) for table in (program.rope.cos, program.rope.sin))
        out = self._ffi.new("lc_program **")
        backend.check(
            self._lib.lc_program_new(
                backend.pool,
                c_ops,
                len(ops),
                widths,
                len(widths),
                c_kv,
                self._pointer("float[]", cos),
                self._pointer("float[]", sin),
                len(cos),
                max_tokens,
                out,
            )
        )
        self._program = self._ffi.gc(out[0], self._lib.lc_program_free)
        self._step = self._ffi.new("lc_step *")
        self._inputs: dict[str, NDArray[np.int32]] = {}
        self._rows = self._ffi.new("float[]", 0)  # logits of which only the highest are wanted,
        self._highest = np.empty((0, 0), np.int64), np.empty((0, 0), np.float32)  # which go here
        self._to_highest: tuple[Any, Any] = (None, None)

    def _pointer(self, ctype: str, array: np.ndarray[Any, Any]) -> Any:
        """The array's memory, which then lives as long as this program."""
        buffer = self._ffi.from_buffer(ctype, array)
        self._kept.append(buffer)
        return buffer

    def _fill(self, c_op: Any, op: LoweredOp, slot_of: dict[int, int]) -> None:
        def slot(buffer: Buffer | None) -> int:
            if buffer is None:
                return self._lib.LC_NO_SLOT
            return slot_of.get(buffer.id, self._lib.LC_LOGITS_SLOT)

        c_op.kind, c_op.barrier, c_op.outputs = op.kind, op.barrier, op.rows == "outputs"
        c_op.x, c_op.y, c_op.width = slot(op.x), slot(op.y), op.width
        c_op.epilogue, c_op.n_weights = op.epilogue, len(op.weights)
        c_op.eps, c_op.n_head, c_op.layer, c_op.input = op.eps, op.n_head, op.layer, op.input
        outs: Iterable[Buffer | None] = [*op.out, None, None, None][:3]
        for i, out in enumerate(outs):
            c_op.out[i] = slot(out)
        for c_weight, weight in zip(c_op.weights, op.weights):
            c_weight.data = self._pointer("uint8_t[]", np.ascontiguousarray(weight.data))
            c_weight.type = weight.qtype.gguf_id
            if self._lib.lc_grid_bytes(weight.qtype.gguf_id):
                c_weight.grid = self._pointer("int8_t[]", grid_of(weight.qtype))
            c_weight.n_out, c_weight.n_in = weight.shape
        if op.vector is not None:
            c_op.vector = self._pointer("float[]", np.ascontiguousarray(op.vector, np.float32))

    def run(self, step: Step) -> Float32:
        logits = np.empty((self._n_rows(step), self._logits.width), np.float32)
        self._replay(step, self._ffi.from_buffer("float[]", logits, require_writable=True))
        return logits

    def run_highest(self, step: Step, wanted: Wanted) -> list[Candidates]:
        ffi, n_rows, width, k = self._ffi, self._n_rows(step), self._logits.width, wanted.k
        if len(self._rows) < n_rows * width:
            self._rows = ffi.new("float[]", n_rows * width)
        self._replay(step, self._rows)
        if self._highest[0].shape != (n_rows, k):
            self._highest = np.empty((n_rows, k), np.int64), np.empty((n_rows, k), np.float32)
            self._to_highest = (
                ffi.from_buffer("int64_t[]", self._highest[0]),
                ffi.from_buffer("float[]", self._highest[1]),
            )
        self._backend.check(self._lib.lc_highest(self._rows, n_rows, width, wanted.n_ids, k, *self._to_highest))
        return [Candidates(ids.copy(), logits.copy()) for ids, logits in zip(*self._highest)]

    def _n_rows(self, step: Step) -> int:
        return len(step.outputs if self._logits.rows == "outputs" else step.tokens)

    def _replay(self, step: Step, target: Any) -> None:
        if self._program is None:
            raise BackendError("this program was closed")
        c_step = self._step
        c_step.n_tokens, c_step.n_outputs = len(step.tokens), len(step.outputs)
        c_step.n_sequences, c_step.n_entries = step.page_table.shape
        for name in _STEP_ARRAYS:
            array = getattr(step, name)
            kept = self._inputs.get(name)
            if kept is None or len(kept) < array.size:
                kept = self._room(name, 2 * array.size)
            kept[: array.size] = array.ravel()
        matrices = [self._ffi.from_buffer("float[]", array) for array in step.inputs]
        c_step.inputs = c_inputs = self._ffi.new("float *[]", matrices) if matrices else self._ffi.NULL
        c_step.n_inputs = len(matrices)
        c_step.logits = target
        status = self._lib.lc_program_run(self._program, c_step)
        del matrices, c_inputs
        self._backend.check(status)

    def _room(self, name: str, size: int) -> NDArray[np.int32]:
        """Where the C side finds an array of the step. It stays: finding memory for each step takes longer."""
        kept = self._inputs[name] = np.empty(size, np.int32)
        setattr(self._step, name, self._ffi.from_buffer("int32_t[]", kept))
        return kept

    def close(self) -> None:
        if self._program is not None:
            self._ffi.release(self._program)
            self._program = None
            self._kept.clear()
