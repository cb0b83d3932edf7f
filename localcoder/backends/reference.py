"""The reference backend: every op in plain numpy, in the order of its definition.

It defines the results that the other backends are tested against and is far too slow for anything else.
LOCALCODER_BACKEND=numpy runs it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.base import Backend, Executable, HostKVStore, InstructionSet, KVStore
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
    writes,
)
from localcoder.quants import by_name
from localcoder.quants.activations import dequantize_q8, quantize_q8
from localcoder.quants.spec import Bytes, Float32, QuantTensor, QuantType


def availability() -> str | None:
    """Why the reference cannot run here: None, it always can."""
    return None


def instruction_sets() -> list[InstructionSet]:
    return []


class ReferenceBackend(Backend):
    name = "numpy"
    description = "numpy reference (slow; for testing)"

    def __init__(self, threads: int = 1) -> None:
        del threads  # numpy decides for itself

    def new_kv_store(self, shape: KVShape, n_pages: int) -> KVStore:
        return HostKVStore(shape, n_pages, by_name(shape.kv_type).row_bytes(shape.head_dim))

    def compile(self, program: Program, kv: KVStore, max_tokens: int) -> Executable:
        assert isinstance(kv, HostKVStore)
        return ReferenceExecutable(program, kv)

    def quantize(self, qtype: QuantType, x: Float32) -> Bytes:
        return qtype.quantize(x)


class ReferenceExecutable(Executable):
    def __init__(self, program: Program, kv: HostKVStore) -> None:
        self._program = program
        self._kv = kv
        self._dequantized = cache(QuantTensor.dequantize)  # one float32 copy of each weight

    def run(self, step: Step) -> Float32:
        values: dict[int, Float32] = {}
        for op in self._program.ops:
            out = writes(op)
            result = self._evaluate(op, values, step)
            if out is not None:
                assert result is not None
                values[out.id] = result
        return values[self._program.logits.id]

    def close(self) -> None:
        self._dequantized.cache_clear()

    def _evaluate(self, op: Op, values: dict[int, Float32], step: Step) -> Float32 | None:
        if isinstance(op, Input):
            return step.inputs[op.index]
        if isinstance(op, Embed):
            return op.weight.qtype.dequantize(op.weight.data[step.tokens])
        if isinstance(op, RmsNorm):
            exact = values[op.x.id].astype(np.float64)
            norm = np.sqrt((exact * exact).mean(axis=1, keepdims=True) + op.eps)
            return (exact / norm * op.weight).astype(np.float32)
        if isinstance(op, Linear):
            x = values[op.x.id]
            if op.weight.qtype.activation == "q8":
                x = self.round_activations(op.x, x)
            return x @ self._dequantized(op.weight).T
        if isinstance(op, Rope):
            return self._rotate(values[op.x.id], op.n_head, step)
        if isinstance(op, WriteKV):
            self._write_kv(op, values, step)
            return None
        if isinstance(op, Attend):
            return self._attend(op, values[op.q.id], step)
        if isinstance(op, SiluMul):
            gate = values[op.gate.id]
            return gate / (1 + np.exp(-gate)) * values[op.up.id]
        if isinstance(op, Add):
            return values[op.a.id] + values[op.b.id]
        assert isinstance(op, SelectOutputs)
        return values[op.x.id][step.outputs]

    def round_activations(self, buffer: Buffer, x: Float32) -> Float32:
        """What a product of x, the values of `buffer`, is computed from."""
        del buffer
        return dequantize_q8(*quantize_q8(x))

    def _rotate(self, x: Float32, n_head: int, step: Step) -> Float32:
        cos = self._program.rope.cos[step.positions][:, None, :]
        sin = self._program.rope.sin[step.positions][:, None, :]
        pairs = x.reshape(len(x), n_head, -1, 2)
        even, odd = pairs[..., 0], pairs[..., 1]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)

    def _write_kv(self, op: WriteKV, values: dict[int, Float32], step: Step) -> None:
        shape = self._kv.shape
        pages = step.page_table[step.sequences, step.positions // shape.page_size]
        slots = step.positions % shape.page_size
        for i, (store, buffer) in enumerate(((self._kv.k, op.k), (self._kv.v, op.v))):
            rows = values[buffer.id].reshape(-1, shape.n_head_kv, shape.head_dim)
            store[op.layer, pages, :, slots] = self.round_for_cache(op, i, rows, pages, slots)

    def round_for_cache(
        self, op: WriteKV, i: int, rows: Float32, pages: NDArray[np.int32], slots: NDArray[np.int32]
    ) -> Bytes:
        """Keys (i = 0) or values (1), [n_tokens, n_head_kv, head_dim], as the cache stores them in those places."""
        del op, i, pages, slots
        return by_name(self._kv.shape.kv_type).quantize(rows)

    def _attend(self, op: Attend, q: Float32, step: Step) -> Float32:
        shape = self._kv.shape
        kv_type = by_name(shape.kv_type)
        group = op.n_head // shape.n_head_kv
        out = np.empty_like(q).reshape(len(q), shape.n_head_kv, group, shape.head_dim)
        for t, position in enumerate(step.positions):
            n = position + 1
            pages = step.page_table[step.sequences[t], : -(-n // shape.page_size)]
            k, v = (
                kv_type.dequantize(store[op.layer, pages]).swapaxes(0, 1).reshape(shape.n_head_kv, -1, shape.head_dim)
                for store in (self._kv.k, self._kv.v)
            )
            heads = q[t].reshape(shape.n_head_kv, group, shape.head_dim)
            scores = heads @ k[:, :n].swapaxes(1, 2) / np.sqrt(np.float32(shape.head_dim))
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[t] = weights @ v[:, :n] / weights.sum(axis=-1, keepdims=True)
        return out.reshape(q.shape)
