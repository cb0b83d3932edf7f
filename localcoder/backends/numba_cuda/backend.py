"""The `numba-cuda` backend: ops in their order, each a launch, over buffers that live as long as the program."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numba import cuda

from localcoder.backends.base import Backend, Executable, KVStore
from localcoder.backends.numba_cuda import is_simulated, kernels
from localcoder.backends.numba_cuda.formats import READERS
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
    writes,
)
from localcoder.errors import BackendError
from localcoder.quants import by_name
from localcoder.quants.spec import Bytes, Float32, QuantTensor, QuantType

THREADS = kernels.THREADS


class NumbaCudaBackend(Backend):
    """The first card, by kernels that numba compiles.

    Raises:
        BackendError: the card does not start.
    """

    name = "numba-cuda"

    def __init__(self, threads: int = 1) -> None:
        del threads  # those of the CPU
        try:
            about = "simulated by numba (for testing)" if is_simulated() else _name_of_card()
        except Exception as e:
            raise BackendError(f"numba cannot use the card: {' '.join(str(e).split())[:200]}") from None
        self.description = f"{about}, plain kernels compiled by numba"
        self._weights: WeakValueDictionary[int, _Matrix] = WeakValueDictionary()

    def new_kv_store(self, shape: KVShape, n_pages: int) -> KVStore:
        if shape.kv_type != "f16":
            raise BackendError(f"numba's kernels for cards have a KV cache of f16, not {shape.kv_type}")
        if shape.head_dim > kernels.MAX_DIM or shape.head_dim % 2:
            raise BackendError(
                f"heads of {shape.head_dim} values do not run on a card: even, at most {kernels.MAX_DIM}"
            )
        return _CardKVStore(shape, n_pages)

    def compile(self, program: Program, kv: KVStore, max_tokens: int) -> Executable:
        assert isinstance(kv, _CardKVStore)
        try:
            return _CardExecutable(self, program, kv, max_tokens)
        except Exception as e:
            if "OUT_OF_MEMORY" not in str(e):
                raise
            raise BackendError(
                "the model does not fit on the card; choose a smaller context (--n-ctx), a smaller quantization, or "
                "--device cpu"
            ) from None

    def quantize(self, qtype: QuantType, x: Float32) -> Bytes:
        return qtype.quantize(x)

    def matrix(self, tensor: QuantTensor) -> _Matrix:
        """The matrix on the card, put there once for as long as anybody holds it."""
        found = self._weights.get(id(tensor))
        if found is None:
            found = self._weights[id(tensor)] = _Matrix(tensor)
        return found


def _name_of_card() -> str:
    name = cuda.get_current_device().name
    return name.decode() if isinstance(name, bytes) else str(name)


class _Matrix:
    """A weight on the card: its file's bytes, or halves (for bf16, floats) where no kernel reads those."""

    def __init__(self, tensor: QuantTensor) -> None:
        self.tensor = tensor  # its id is the key
        qtype = tensor.qtype
        if qtype.name not in READERS:
            self.qtype = by_name("f32" if qtype.name == "bf16" else "f16")
            data = self.qtype.quantize(tensor.dequantize())
        else:
            self.qtype, data = qtype, np.ascontiguousarray(tensor.data)
        bytes_ = cuda.to_device(data.reshape(-1))
        self.layout = (
            bytes_,
            bytes_.view(np.float32 if self.qtype.name == "f32" else np.float16),
            self.qtype.row_bytes(tensor.shape[1]),
            self.qtype.block_elems,
            self.qtype.block_bytes,
        )
        if self.qtype.block_elems == 1:  # a row is one block
            self.layout = (*self.layout[:3], tensor.shape[1], self.layout[2])


class _CardKVStore(KVStore):
    """Pages on the card: k and v are float16 [n_layer, n_pages, n_head_kv, page_size, head_dim]."""

    def __init__(self, shape: KVShape, n_pages: int) -> None:
        self.shape, self.n_pages = shape, n_pages
        dims = (shape.n_layer, n_pages, shape.n_head_kv, shape.page_size, shape.head_dim)
        self.k, self.v = cuda.device_array(dims, np.float16), cuda.device_array(dims, np.float16)
        self._page = dims[2:]

    @property
    def nbytes(self) -> int:
        return 2 * 2 * self.shape.n_layer * self.n_pages * int(np.prod(self._page))

    def copy_page(self, source: int, target: int) -> None:
        self.write_page(target, self.read_page(source))

    def read_page(self, page: int) -> Bytes:
        pairs = [
            np.ascontiguousarray(store[layer, page].copy_to_host()).view(np.uint8).reshape(-1)
            for layer in range(self.shape.n_layer)
            for store in (self.k, self.v)
        ]
        return np.concatenate(pairs)

    def write_page(self, page: int, data: Bytes) -> None:
        pairs = np.ascontiguousarray(data).view(np.float16).reshape(self.shape.n_layer, 2, *self._page)
        for layer, pair in enumerate(pairs):
            for store, values in zip((self.k, self.v), pair):
                store[layer, page].copy_to_device(np.ascontiguousarray(values))


class _CardExecutable(Executable):
    def __init__(self, backend: NumbaCudaBackend, program: Program, kv: _CardKVStore, max_tokens: int) -> None:
        self._program, self._kv = program, kv
        self._matrices = {
            id(op.weight): backend.matrix(op.weight) for op in program.ops if isinstance(op, (Embed, Linear))
        }
        self._vectors = {
            id(op.weight): cuda.to_device(np.ascontiguousarray(op.weight, np.float32))
            for op in program.ops
            if isinstance(op, RmsNorm)
        }
        self._cos, self._sin = cuda.to_device(program.rope.cos), cuda.to_device(program.rope.sin)
        self._slot_of, widths = assign_slots(program)
        self._slots = [cuda.device_array(max_tokens * width, np.float32) for width in widths]
        rounded = max((op.x.width for op in program.ops if isinstance(op, Linear)), default=1)
        self._rounded = cuda.device_array(max_tokens * rounded, np.float32)
        self._closed = False

    def close(self) -> None:
        self._closed = True
        self._matrices.clear()
        self._vectors.clear()
        self._slots.clear()

    def run(self, step: Step) -> Float32:
        if self._closed:
            raise BackendError("this program was closed")
        counts = {"tokens": len(step.tokens), "outputs": len(step.outputs)}
        self._step = {
            name: cuda.to_device(getattr(step, name)) for name in ("tokens", "positions", "sequences", "page_table")
        }
        if counts["outputs"]:
            self._step["outputs"] = cuda.to_device(step.outputs)
        self._inputs, self._counts = step.inputs, counts
        for op in self._program.ops:
            out = writes(op)
            if all(counts[b.rows] for b in (*reads(op), *([out] if out else []))):
                self._launch(op)
        result = self._program.logits
        if not counts[result.rows]:
            return np.empty((0, result.width), np.float32)
        return np.ascontiguousarray(self._of(result).copy_to_host())

    def _of(self, buffer: Buffer) -> Any:
        """The buffer's memory as a matrix of this step's rows."""
        n = self._counts[buffer.rows]
        return self._slots[self._slot_of[buffer.id]][: n * buffer.width].reshape(n, buffer.width)

    def _launch(self, op: Op) -> None:
        step, kv = self._step, self._kv
        n = self._counts[(op.k if isinstance(op, WriteKV) else op.out).rows]
        if isinstance(op, Input):
            self._of(op.out).copy_to_device(self._inputs[op.index])
        elif isinstance(op, Embed):
            matrix = self._matrices[id(op.weight)]
            kernels.embed_of(matrix.qtype)[n, THREADS](*matrix.layout, step["tokens"], self._of(op.out))
        elif isinstance(op, RmsNorm):
            kernels.rms_norm[n, THREADS](self._of(op.x), self._vectors[id(op.weight)], op.eps, self._of(op.out))
        elif isinstance(op, Linear):
            self._multiply(op, n)
        elif isinstance(op, Rope):
            half = op.x.width // op.n_head // 2
            angles = (step["positions"], self._cos, self._sin, half)
            kernels.rope[n, THREADS](self._of(op.x), *angles, self._of(op.out))
        elif isinstance(op, WriteKV):
            where = (op.layer, step["positions"], step["sequences"], step["page_table"])
            kernels.write_kv[n, THREADS](self._of(op.k), kv.k, *where)
            kernels.write_kv[n, THREADS](self._of(op.v), kv.v, *where)
        elif isinstance(op, Attend):
            where = (op.layer, step["positions"], step["sequences"], step["page_table"])
            kernels.attend[(n, op.n_head), THREADS](self._of(op.q), kv.k, kv.v, *where, op.n_head, self._of(op.out))
        elif isinstance(op, SiluMul):
            kernels.silu_mul[n, THREADS](self._of(op.gate), self._of(op.up), self._of(op.out))
        elif isinstance(op, Add):
            kernels.add[n, THREADS](self._of(op.a), self._of(op.b), self._of(op.out))
        else:
            assert isinstance(op, SelectOutputs)
            kernels.select_rows[n, THREADS](self._of(op.x), step["outputs"], self._of(op.out))

    def _multiply(self, op: Linear, n: int) -> None:
        matrix, x = self._matrices[id(op.weight)], self._of(op.x)
        if op.weight.qtype.activation == "q8":
            rounded = self._rounded[: n * op.x.width].reshape(n, op.x.width)
            kernels.round_q8[(-(-op.x.width // 32 // THREADS), n), THREADS](x, rounded)
            x = rounded
        grid = (op.weight.shape[0], -(-n // kernels.TOKENS))
        kernels.matmul_of(matrix.qtype)[grid, THREADS](*matrix.layout, x, self._of(op.out))
