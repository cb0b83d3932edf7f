"""The `cuda` backend: weights, cache and buffers on a device; a step is one list of launches, recorded and replayed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.base import Backend, Executable, KVStore
from localcoder.backends.c.lowering import Kind, LoweredOp, assign_slots, lower
from localcoder.backends.cuda import plan
from localcoder.backends.cuda.device import Device, Launch, Memory, Room
from localcoder.backends.cuda.layout import row_bytes
from localcoder.backends.cuda.plan import NONE, Places, Planner, StepSize
from localcoder.backends.highest import MAX_HIGHEST, Candidates, Wanted
from localcoder.backends.program import Buffer, KVShape, Program, Step
from localcoder.errors import BackendError
from localcoder.quants import by_name
from localcoder.quants.iq_grids import grid_of
from localcoder.quants.spec import Bytes, Float32, QuantTensor, QuantType

KV_TYPES = ("f16", "q8_0")
_UPLOAD_BYTES = 64 << 20  # of a weight's blocks at once, before they are put into planes
_HIGHEST_ROWS = 32  # of more rows in a step, all logits are copied
_MAX_PLANS = 64  # recorded steps kept
_MOST_GRIDS = 1 << 16  # bytes of the tables of all formats


class CudaBackend(Backend):
    """The kernels of csrc/cuda on one device."""

    name = "cuda"

    def __init__(self, device: Device) -> None:
        self.device = device
        self.description = device.description
        self._weights: WeakValueDictionary[int, _Matrix] = WeakValueDictionary()
        self._vectors: WeakValueDictionary[int, _Vector] = WeakValueDictionary()
        self._grids: dict[str, Memory] = {}

    @property
    def usable_bytes(self) -> int:
        """Memory of the device that a model may take."""
        return self.device.usable_bytes

    def bytes_needed(self, program: Program, n_pages: int, max_tokens: int) -> int:
        """Memory of the device that `program` takes: weights, cache, and buffers for steps of `max_tokens` tokens.

        Raises:
            BackendError: its cache does not run on a card.
        """
        _check_cache(program.kv)
        ops = lower(program)
        matrices = {id(w): w for op in ops for w in op.weights}.values()
        weights = sum(w.shape[0] * row_bytes(w.qtype, w.shape[1]) for w in matrices)
        staging = max((_staging_rows(w) * w.qtype.row_bytes(w.shape[1]) for w in matrices), default=0)
        vectors = {id(op.vector): op.vector.nbytes for op in ops if op.vector is not None}
        tables = program.rope.cos.nbytes + program.rope.sin.nbytes + _MOST_GRIDS
        cache = 2 * program.kv.n_layer * n_pages * _page_bytes(program.kv)
        _, widths = assign_slots(ops, program.logits)
        a_token = 4 * sum(widths) + 4 * sum(op.width for op in ops if op.kind == Kind.INPUT)
        a_token += sum(_scratch_sizes(ops).values()) + 4 * program.logits.width
        n_head = max((op.n_head for op in ops if op.kind == Kind.ATTEND), default=0)
        splits = plan.rounded_up(-(-len(program.rope.cos) // plan.KEYS))
        partial = 4 * min(max_tokens, plan.SPLIT_TOKENS) * n_head * splits * (program.kv.head_dim + 2)
        record = 4 * (6 * max_tokens + 4 * plan.rounded_up(n_pages))
        n_vocab, k = program.logits.width, min(program.logits.width, MAX_HIGHEST)
        found = min(max_tokens, _HIGHEST_ROWS) * (8 * k + sum(_keys_sizes(n_vocab, k)))
        work = max_tokens * a_token + partial + record + found
        return weights + staging + sum(vectors.values()) + tables + cache + Room.grown(work)

    def new_kv_store(self, shape: KVShape, n_pages: int) -> KVStore:
        _check_cache(shape)
        with _explained():
            return DeviceKVStore(self.device, shape, n_pages)

    def compile(self, program: Program, kv: KVStore, max_tokens: int) -> Executable:
        assert isinstance(kv, DeviceKVStore)
        with _explained():
            return CudaExecutable(self, program, kv, max_tokens)

    def quantize(self, qtype: QuantType, x: Float32) -> Bytes:
        return qtype.quantize(x)

    def matrix(self, tensor: QuantTensor) -> _Matrix:
        """The matrix on the device, put there once for as long as anybody holds it."""
        found = self._weights.get(id(tensor))
        if found is None:
            found = self._weights[id(tensor)] = _Matrix(self.device, tensor)
        return found

    def vector(self, array: Float32) -> _Vector:
        found = self._vectors.get(id(array))
        if found is None:
            found = self._vectors[id(array)] = _Vector(self.device, array)
        return found

    def grid(self, qtype: QuantType) -> int:
        """Address of the table that the codes of `qtype` are looked up in, or NONE."""
        if not qtype.name.startswith(("iq1", "iq2", "iq3")):
            return NONE
        if qtype.name not in self._grids:
            self._grids[qtype.name] = _uploaded(self.device, grid_of(qtype))
        return self._grids[qtype.name].address

    def close(self) -> None:
        self._grids.clear()
        self.device.close()


def _check_cache(shape: KVShape) -> None:
    if shape.kv_type not in KV_TYPES:
        raise BackendError(f"a card's KV cache is {' or '.join(KV_TYPES)}, not {shape.kv_type}")
    if shape.head_dim > plan.MAX_DIM or shape.head_dim % 2:
        raise BackendError(f"heads of {shape.head_dim} values do not run on a card: even, at most {plan.MAX_DIM}")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """A device's MemoryError as one that tells what to do."""
    try:
        yield
    except MemoryError as e:
        advice = "choose a smaller context (--n-ctx), a smaller quantization, or --device cpu"
        raise BackendError(f"the model does not fit on the card: {e}; {advice}") from None


def _uploaded(device: Device, array: NDArray[Any]) -> Memory:
    memory = Memory(device, max(array.nbytes, 1))
    memory.write(array)
    return memory


class _Vector:
    """A float32 array on the device. Holds the array too: its id is the key."""

    def __init__(self, device: Device, array: Float32) -> None:
        self.array = array
        self.memory = _uploaded(device, np.ascontiguousarray(array, np.float32))


class _Matrix:
    """A weight matrix in planes. Holds the tensor too: its id is the key."""

    def __init__(self, device: Device, tensor: QuantTensor) -> None:
        self.tensor = tensor
        n_out, n_in = tensor.shape
        qtype = tensor.qtype
        target_bytes, source_bytes = row_bytes(qtype, n_in), qtype.row_bytes(n_in)
        self.memory = Memory(device, n_out * target_bytes)
        data = tensor.data.reshape(n_out, source_bytes)
        step = _staging_rows(tensor)
        staging = Memory(device, step * source_bytes)
        n_blocks = n_in // qtype.block_elems
        for row in range(0, n_out, step):
            rows = data[row : row + step]
            staging.write(rows)
            grid = (-(-len(rows) * n_blocks // plan.ROW_THREADS), 1, 1)
            arguments = (staging.address, self.memory.address + row * target_bytes, len(rows), n_blocks)
            device.launch(Launch(f"lc_split_{qtype.name}", grid, plan.ROW_THREADS, arguments, qtype))
        staging.free()


def _staging_rows(tensor: QuantTensor) -> int:
    """How many rows are uploaded at once."""
    return max(1, min(tensor.shape[0], _UPLOAD_BYTES // tensor.qtype.row_bytes(tensor.shape[1])))


def _page_bytes(shape: KVShape) -> int:
    """Keys or values of one layer in one page."""
    return shape.n_head_kv * shape.page_size * by_name(shape.kv_type).row_bytes(shape.head_dim)


class DeviceKVStore(KVStore):
    """Pages on the device, byte for byte as `HostKVStore` has them: k and v are [n_layer, n_pages, n_head_kv,
    page_size, row_bytes]."""

    def __init__(self, device: Device, shape: KVShape, n_pages: int) -> None:
        self.shape = shape
        self.n_pages = n_pages
        self._device = device
        self.page_bytes = _page_bytes(shape)
        self.layer_bytes = n_pages * self.page_bytes
        self.k = Memory(device, shape.n_layer * self.layer_bytes)
        self.v = Memory(device, shape.n_layer * self.layer_bytes)

    @property
    def nbytes(self) -> int:
        return self.k.n_bytes + self.v.n_bytes

    def _offsets(self, page: int) -> list[int]:
        return [layer * self.layer_bytes + page * self.page_bytes for layer in range(self.shape.n_layer)]

    def copy_page(self, source: int, target: int) -> None:
        for at, to in zip(self._offsets(source), self._offsets(target)):
            for store in (self.k, self.v):
                self._device.copy(store.address + at, store.address + to, self.page_bytes)

    def read_page(self, page: int) -> Bytes:
        data = np.empty((self.shape.n_layer, 2, self.page_bytes), np.uint8)
        for pair, at in zip(data, self._offsets(page)):
            self.k.read(pair[0], at)
            self.v.read(pair[1], at)
        return data.reshape(-1)

    def write_page(self, page: int, data: Bytes) -> None:
        for pair, at in zip(data.reshape(self.shape.n_layer, 2, self.page_bytes), self._offsets(page)):
            self.k.write(pair[0], at)
            self.v.write(pair[1], at)


class CudaExecutable(Executable):
    def __init__(self, backend: CudaBackend, program: Program, kv: DeviceKVStore, max_tokens: int) -> None:
        self._backend, self._kv, self._max_tokens = backend, kv, max_tokens
        self._device = device = backend.device
        self._result = program.logits
        self._ops = lower(program)
        self._closed = False
        device.prepare(dict.fromkeys(weight.qtype for op in self._ops for weight in op.weights))
        self._n_ctx, self._n_vocab = len(program.rope.cos), _smallest_vocabulary(self._ops)
        self._kept: list[object] = [backend.matrix(w) for op in self._ops for w in op.weights]
        self._kept += [backend.vector(op.vector) for op in self._ops if op.vector is not None]
        self._cos, self._sin = backend.vector(program.rope.cos), backend.vector(program.rope.sin)

        slot_of, widths = assign_slots(self._ops, program.logits)
        self._slots = [Memory(device, max_tokens * width * 4) for width in widths]
        self._slot_of = slot_of
        self._inputs = {
            op.input: Memory(device, max_tokens * op.width * 4) for op in self._ops if op.kind == Kind.INPUT
        }
        self._input_of = {op.out[0].id: op.input for op in self._ops if op.kind == Kind.INPUT}
        self._scratch = {
            name: Memory(device, max(max_tokens * size, 1)) for name, size in _scratch_sizes(self._ops).items()
        }
        self._logits, self._step, self._partial = Room(device), Room(device), Room(device)
        self._keys, self._highest = (Room(device), Room(device)), Room(device)
        self._plans: dict[StepSize, object] = {}
        self._n_head = max((op.n_head for op in self._ops if op.kind == Kind.ATTEND), default=0)

    # --- a step --------------------------------------------------------------------------------------------------

    def run(self, step: Step) -> Float32:
        n_rows = self._replay(step)
        result = np.empty((n_rows, self._result.width), np.float32)
        return _read(self._logits, result)

    def run_highest(self, step: Step, wanted: Wanted) -> list[Candidates]:
        if len(step.outputs) > _HIGHEST_ROWS:
            return super().run_highest(step, wanted)
        n_rows = self._replay(step, wanted)
        pairs = _read(self._highest, np.empty((n_rows, wanted.k, 2), np.int32))
        ids, logits = pairs[..., 0].astype(np.intp), pairs.view(np.float32)[..., 1]
        return [Candidates(*row) for row in zip(ids, logits.copy())]

    def _replay(self, step: Step, wanted: Wanted | None = None) -> int:
        """Computes a step; returns how many rows its result has."""
        if self._closed:
            raise BackendError("this program was closed")
        self._check(step)
        with _explained():
            return self._replay_checked(step, wanted)

    def _replay_checked(self, step: Step, wanted: Wanted | None) -> int:
        tiles = self._tiles(step)
        size = StepSize(
            n_tokens=len(step.tokens),
            n_outputs=len(step.outputs),
            n_entries=plan.rounded_up(step.page_table.shape[1]),
            n_splits=0 if len(tiles) else plan.rounded_up(int(step.positions.max()) // plan.KEYS + 1),
            n_tiles=len(tiles),
            wanted=wanted,
        )
        for index, memory in self._inputs.items():
            memory.write(step.inputs[index])
        n_rows = size.n_outputs if self._result.rows == "outputs" else size.n_tokens
        places = self._write_step(step, tiles, size, n_rows)
        if size not in self._plans:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[size] = self._device.record(self._plan(size, places))
        self._device.replay(self._plans[size])
        return n_rows

    def _check(self, step: Step) -> None:
        """BackendError if anything in the step is out of range: a kernel would read or write elsewhere."""
        n, kv = len(step.tokens), self._kv
        fine = (
            1 <= n <= self._max_tokens
            and len(step.positions) == len(step.sequences) == n
            and _within(step.tokens, self._n_vocab)
            and _within(step.positions, min(self._n_ctx, step.page_table.shape[1] * kv.shape.page_size))
            and _within(step.sequences, len(step.page_table))
            and _within(step.outputs, n)
            and len(step.inputs) >= len(self._inputs)
        )
        if fine:
            last = np.zeros(len(step.page_table), np.int32)  # entries that a sequence uses
            np.maximum.at(last, step.sequences, step.positions // kv.shape.page_size + 1)
            used = np.arange(step.page_table.shape[1]) < last[:, None]
            fine = _within(step.page_table[used], kv.n_pages)
        if not fine:
            raise BackendError("the step has a token, position, page or index out of range")

    def _tiles(self, step: Step) -> NDArray[np.int32]:
        """[n, 2] first token and length of the tiles of a step with long runs of tokens; else empty."""
        breaks = np.flatnonzero((np.diff(step.sequences) != 0) | (np.diff(step.positions) != 1)) + 1
        starts = np.concatenate([[0], breaks])
        lengths = np.diff(np.concatenate([starts, [len(step.tokens)]]))
        if lengths.max() < plan.LONG_RUN or self._kv.shape.head_dim > plan.TILE_DIMS[-1]:
            return np.empty((0, 2), np.int32)
        tiles = [
            (at, min(plan.TILE, start + length - at))
            for start, length in zip(starts, lengths)
            for at in range(start, start + length, plan.TILE)
        ]
        tiles.reverse()  # the last ones have the most keys: first
        return np.array(tiles, np.int32)

    def _write_step(self, step: Step, tiles: NDArray[np.int32], size: StepSize, n_rows: int) -> Places:
        """Puts the step's arrays on the device and makes room for its results."""
        most = self._max_tokens
        n_sequences, n_entries = step.page_table.shape
        record = np.zeros(6 * most + n_sequences * size.n_entries, np.int32)
        arrays = (step.tokens, step.positions, step.sequences, step.outputs, tiles.reshape(-1))
        for i, array in enumerate(arrays):
            record[i * most : i * most + len(array)] = array
        record[6 * most :].reshape(n_sequences, size.n_entries)[:, :n_entries] = step.page_table
        few = 0 if size.n_tiles else min(size.n_tokens, plan.SPLIT_TOKENS) * self._n_head * size.n_splits
        dim = self._kv.shape.head_dim
        width = self._result.width
        k = size.wanted.k if size.wanted else 0
        rooms = [(self._step, record.nbytes), (self._logits, 4 * n_rows * width), (self._partial, 4 * few * (dim + 2))]
        rooms += [(self._highest, 8 * n_rows * k)]
        rooms += [(room, n_rows * n_bytes) for room, n_bytes in zip(self._keys, _keys_sizes(width, k))]
        if not all(room.has(n_bytes) for room, n_bytes in rooms):
            self._plans.clear()  # they know the addresses
            for room, n_bytes in rooms:
                room.reserve(n_bytes)
        self._step.in_use.write(record)
        base, scratch = self._step.in_use.address, self._scratch
        return Places(
            tokens=base,
            positions=base + 4 * most,
            sequences=base + 8 * most,
            outputs=base + 12 * most,
            tiles=base + 16 * most,
            page_table=base + 24 * most,
            cos=self._cos.memory.address,
            sin=self._sin.memory.address,
            k=self._kv.k.address,
            v=self._kv.v.address,
            layer_bytes=self._kv.layer_bytes,
            partial=self._partial.in_use.address,
            max_sum=self._partial.in_use.address + 4 * few * dim,
            keys=(self._keys[0].in_use.address, self._keys[1].in_use.address),
            highest=self._highest.in_use.address,
            **{name: memory.address for name, memory in scratch.items()},
        )

    def _plan(self, size: StepSize, places: Places) -> list[Launch]:
        backend = self._backend

        def buffer(b: Buffer) -> int:
            if b.id == self._result.id:
                return self._logits.in_use.address
            if b.id in self._input_of:
                return self._inputs[self._input_of[b.id]].address
            return self._slots[self._slot_of[b.id]].address

        return Planner(
            self._ops,
            self._result,
            self._kv.shape,
            size,
            places,
            buffer=buffer,
            weight=lambda tensor: backend.matrix(tensor).memory.address,
            vector=lambda array: backend.vector(array).memory.address,
            grid=backend.grid,
        ).plan()

    def close(self) -> None:
        self._closed = True
        self._plans.clear()
        self._kept.clear()
        for memory in (*self._slots, *self._inputs.values(), *self._scratch.values()):
            memory.free()
        for room in (self._logits, self._step, self._partial, self._highest, *self._keys):
            room.free()


def _scratch_sizes(ops: list[LoweredOp]) -> dict[str, int]:
    """Bytes a token of activations, rounded or in parts, and of a gate and its `up`, for the widest op."""
    linears = [op for op in ops if op.kind in (Kind.LINEAR, Kind.QUANTIZE)]
    width = max((op.width for op in linears), default=0)
    padded = -(-width // plan.MANY_K) * plan.MANY_K
    gate = max((op.weights[0].shape[0] for op in linears if len(op.weights) == 2 and op.epilogue == 2), default=0)
    sizes = {"codes": width, "meta": width // 32 * 8, "parts": 4 * padded, "factors": 4, "gate": 4 * gate}
    return {**sizes, "up": sizes["gate"]}


def _keys_sizes(n: int, k: int) -> tuple[int, int]:
    """Bytes of the keys that two launches in a row leave of a row of n logits, each the most of any such launch."""
    left = [8 * k * groups for groups in plan.highest_groups(n, k) if groups > 1]
    return max(left[::2], default=0), max(left[1::2], default=0)


def _read(room: Room, data: NDArray[Any]) -> NDArray[Any]:
    if data.size:
        room.in_use.read(data)
    return data


def _within(array: NDArray[np.int32], end: int) -> bool:
    return not array.size or bool(array.min() >= 0 and array.max() < end)


def _smallest_vocabulary(ops: list[LoweredOp]) -> int:
    return min((op.weights[0].shape[0] for op in ops if op.kind == Kind.EMBED), default=np.iinfo(np.int32).max)
