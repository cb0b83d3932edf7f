"""From lowered ops to kernel launches, for steps of one size.

A step of few tokens (up to 16) multiplies with dp4a, row by row; one of many on tensor cores. Attention is split over
the keys while each sequence brings few tokens, and tiled over tokens otherwise.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import groupby

from localcoder.backends.c.lowering import Epilogue, Kind, LoweredOp
from localcoder.backends.cuda.device import Launch
from localcoder.backends.highest import Wanted
from localcoder.backends.program import Buffer, KVShape
from localcoder.quants.spec import QuantTensor, QuantType

# As in csrc/cuda: few.h, many.h, attention.cu, elementwise.cu, highest.cu.
FEW_COLUMNS = (1, 2, 4, 8, 16)
FEW_ROWS, FEW_WARPS, MAX_WEIGHTS = 2, 4, 3
MANY_ROWS, MANY_TOKENS, MANY_K = 128, 64, 64
KEYS, TILE, MAX_DIM = 128, 64, 256
SPLIT_DIMS, TILE_DIMS = (128, 256), (64, 128)  # head_dim up to which there are kernels
FEW_HEADS = (1, 4, 8)
ROW_THREADS = 256
HIGHEST_GROUP = 4096
SMALL_BLOCKS, SMALL_THREADS = ("lc_few_", "lc_embed_", "lc_attend_", "lc_combine"), 128
LONG_RUN = 9  # neighbouring tokens of a sequence from which tiles pay
SPLIT_TOKENS = 16  # whose attention is split at once: their partial results need room

Q8, NONE = "q8", 0


@dataclass(frozen=True)
class StepSize:
    """All of a step that its launches depend on.

    `n_entries` and `n_splits` are `rounded_up`. `n_tiles` is 0 where attention is split over the keys, into `n_splits`.
    `wanted`: of the result's rows.
    """

    n_tokens: int
    n_outputs: int
    n_entries: int
    n_splits: int
    n_tiles: int
    wanted: Wanted | None = None


@dataclass(frozen=True)
class Places:
    """Addresses on the device of everything but buffers and weights."""

    tokens: int
    positions: int
    sequences: int
    outputs: int
    tiles: int
    page_table: int
    cos: int
    sin: int
    k: int
    v: int
    layer_bytes: int
    codes: int
    meta: int
    parts: int
    factors: int
    gate: int
    up: int
    partial: int
    max_sum: int
    keys: tuple[int, int]
    highest: int


def rounded_up(n: int) -> int:
    """To one of few sizes, four an octave, so that steps of a growing context share a plan."""
    size = 1 << max(n.bit_length() - 3, 0)
    return -(-n // size) * size


def highest_groups(n: int, k: int) -> list[int]:
    """How many groups are left of a row of n logits after each launch that takes groups down to their k highest."""
    groups = [-(-n // HIGHEST_GROUP)]
    while groups[-1] > 1:
        groups.append(-(-groups[-1] * k // HIGHEST_GROUP))
    return groups


class Planner:
    """Makes the launches of one step.

    Args:
        result: the program's.
        buffer: address of each buffer.
        weight: address of a matrix in planes.
        vector: address of a float32 vector.
        grid: address of a format's grid, or NONE.
    """

    def __init__(  # type: ignore[no-untyped-def]
        self, ops, result: Buffer, kv: KVShape, size: StepSize, places: Places, *, buffer, weight, vector, grid
    ) -> None:
        self._ops: list[LoweredOp] = ops
        self._result = result
        self._kv, self._size, self._places = kv, size, places
        self._buffer, self._weight, self._vector, self._grid = buffer, weight, vector, grid
        self._launches: list[Launch] = []
        self._in_parts: tuple[Buffer, bool] | None = None  # what `parts` holds, and whether as bf16

    def plan(self) -> list[Launch]:
        fused = False
        for i, op in enumerate(self._ops):
            if self._rows(op.rows) == 0 or fused:
                fused = False
                continue
            following = self._ops[i + 1] if i + 1 < len(self._ops) else None
            if op.kind == Kind.RMS_NORM:
                fused = following is not None and following.kind == Kind.QUANTIZE and following.x == op.out[0]
                self._norm(op, fused)
            else:
                getattr(self, f"_{op.kind.name.lower()}")(op)
        if self._size.wanted is not None and self._rows(self._result.rows):
            self._highest(self._result)
        return self._launches

    def _highest(self, logits: Buffer) -> None:
        """Leaves what is wanted of the result."""
        wanted, p, x = self._size.wanted, self._places, self._buffer(logits)
        assert wanted is not None
        k, rows = wanted.k, self._rows(logits.rows)
        n_keys = 0
        for i, n_groups in enumerate(highest_groups(logits.width, k)):
            target = (NONE, p.highest) if n_groups == 1 else (p.keys[i % 2], NONE)
            grid, row = (n_groups, rows), (x, logits.width)
            if i == 0:
                self._launch("lc_highest", grid, *row, wanted.n_ids, k, n_groups, *target)
            else:
                self._launch("lc_highest_again", grid, p.keys[(i - 1) % 2], n_keys, *row, k, n_groups, *target)
            n_keys = n_groups * k

    def _rows(self, rows: str) -> int:
        return self._size.n_tokens if rows == "tokens" else self._size.n_outputs

    def _launch(self, kernel: str, grid: tuple[int, ...], *arguments: int, weight: QuantType | None = None) -> None:
        x, y, z = (*grid, 1, 1)[:3]
        threads = SMALL_THREADS if kernel.startswith(SMALL_BLOCKS) else ROW_THREADS
        self._launches.append(Launch(kernel, (x, y, z), threads, arguments, weight))

    # --- one method a kind of op ---------------------------------------------------------------------------------

    def _input(self, op: LoweredOp) -> None:
        pass  # written before the step

    def _embed(self, op: LoweredOp) -> None:
        weight = op.weights[0]
        out = self._buffer(op.out[0])
        arguments = (self._weight(weight), self._grid(weight.qtype), self._places.tokens, out, op.width)
        self._launch(f"lc_embed_{weight.qtype.name}", (self._rows(op.rows),), *arguments, weight=weight.qtype)

    def _norm(self, op: LoweredOp, with_q8: bool) -> None:
        assert op.x is not None
        out = op.out[0]
        p = self._places
        eps = int.from_bytes(struct.pack("<f", op.eps), "little")
        codes, meta = (p.codes, p.meta) if with_q8 else (NONE, NONE)
        kept = self._buffer(out) if not with_q8 or self._is_read_as_float(out) else NONE
        x = self._buffer(op.x)
        self._launch(
            "lc_rms_norm", (self._rows(op.rows),), x, self._vector(op.vector), eps, op.width, kept, codes, meta
        )

    def _is_read_as_float(self, buffer: Buffer) -> bool:
        for op in self._ops:
            if buffer not in op.inputs or op.kind == Kind.QUANTIZE:
                continue
            if op.kind != Kind.LINEAR or op.y == buffer or any(w.qtype.activation != Q8 for w in op.weights):
                return True
        return False

    def _quantize(self, op: LoweredOp) -> None:
        assert op.x is not None
        p = self._places
        self._launch("lc_quantize", (self._rows(op.rows),), self._buffer(op.x), op.width, p.codes, p.meta)

    def _rope(self, op: LoweredOp) -> None:
        assert op.x is not None
        p = self._places
        arguments = (self._buffer(op.x), p.positions, p.cos, p.sin, self._buffer(op.out[0]), op.n_head)
        self._launch("lc_rope", (self._rows(op.rows),), *arguments, self._kv.head_dim)

    def _write_kv(self, op: LoweredOp) -> None:
        assert op.x is not None
        assert op.y is not None
        keys, values = self._buffer(op.x), self._buffer(op.y)
        grid = (self._size.n_tokens, 2)
        k, v = self._layer(op.layer)
        self._launch(f"lc_write_kv_{self._kv.kv_type}", grid, keys, values, k, v, *self._sequence_arguments())

    def _layer(self, layer: int) -> tuple[int, int]:
        p = self._places
        return p.k + layer * p.layer_bytes, p.v + layer * p.layer_bytes

    def _sequence_arguments(self, first: int = 0) -> tuple[int, ...]:
        """From token `first` on."""
        p, kv = self._places, self._kv
        shape = (self._size.n_entries, kv.page_size, kv.n_head_kv, kv.head_dim)
        return (p.positions + 4 * first, p.sequences + 4 * first, p.page_table, *shape)

    def _attend(self, op: LoweredOp) -> None:
        assert op.x is not None
        p, kv, size = self._places, self._kv, self._size
        q, out = self._buffer(op.x), self._buffer(op.out[0])
        if size.n_tiles:
            common = (q, *self._layer(op.layer), *self._sequence_arguments(), op.n_head)
            dim = next(d for d in TILE_DIMS if d >= kv.head_dim)
            self._launch(f"lc_attend_many_{kv.kv_type}_{dim}", (size.n_tiles, op.n_head), *common, p.tiles, out)
            return
        group = op.n_head // kv.n_head_kv
        heads = next((h for h in FEW_HEADS if h >= group), FEW_HEADS[-1])
        dim = next(d for d in SPLIT_DIMS if d >= kv.head_dim)
        kernel = f"lc_attend_few_{kv.kv_type}_{heads}_{dim}"
        row = 4 * op.n_head * kv.head_dim
        for t in range(0, size.n_tokens, SPLIT_TOKENS):
            n = min(SPLIT_TOKENS, size.n_tokens - t)
            common = (q + t * row, *self._layer(op.layer), *self._sequence_arguments(t), op.n_head)
            grid = (size.n_splits, kv.n_head_kv * -(-group // heads), n)
            self._launch(kernel, grid, *common, size.n_splits, p.partial, p.max_sum)
            arguments = (p.partial, p.max_sum, p.positions + 4 * t, op.n_head, size.n_splits, kv.head_dim)
            self._launch("lc_combine", (op.n_head, n), *arguments, out + t * row)

    def _elementwise(self, kernel: str, a: int, b: int, out: int, n: int) -> None:
        self._launch(kernel, (-(-n // ROW_THREADS),), a, b, out, n)

    def _silu_mul(self, op: LoweredOp) -> None:
        self._two("lc_silu_mul", op)

    def _add(self, op: LoweredOp) -> None:
        self._two("lc_add", op)

    def _two(self, kernel: str, op: LoweredOp) -> None:
        assert op.x is not None
        assert op.y is not None
        n = self._rows(op.rows) * op.width
        self._elementwise(kernel, self._buffer(op.x), self._buffer(op.y), self._buffer(op.out[0]), n)

    def _select(self, op: LoweredOp) -> None:
        assert op.x is not None
        x, out = self._buffer(op.x), self._buffer(op.out[0])
        self._launch("lc_select", (self._size.n_outputs,), x, self._places.outputs, out, op.width)

    # --- matrices ------------------------------------------------------------------------------------------------

    def _linear(self, op: LoweredOp) -> None:
        n = self._rows(op.rows)
        same_type = len({w.qtype.name for w in op.weights}) == 1
        few = n <= FEW_COLUMNS[-1]
        if op.epilogue == Epilogue.SILU_MUL and not (few and same_type):
            p = self._places
            targets = (p.gate, p.up)
            for weight, out in zip(op.weights, targets):
                self._multiply(op, [(weight, out)], Epilogue.STORE)
            self._elementwise("lc_silu_mul", *targets, self._buffer(op.out[0]), n * op.weights[0].shape[0])
            return
        if op.epilogue == Epilogue.SILU_MUL:
            self._multiply(op, [(weight, self._buffer(op.out[0])) for weight in op.weights], op.epilogue)
            return
        pairs = [(weight, self._buffer(out)) for weight, out in zip(op.weights, op.out)]
        if few:  # matrices of one format share a launch
            pairs.sort(key=lambda pair: pair[0].qtype.gguf_id)
            for _, group in groupby(pairs, key=lambda pair: pair[0].qtype.gguf_id):
                self._multiply(op, list(group), op.epilogue)
        else:
            for pair in pairs:
                self._multiply(op, [pair], op.epilogue)

    def _multiply(self, op: LoweredOp, pairs: list[tuple[QuantTensor, int]], epilogue: Epilogue) -> None:
        n = self._rows(op.rows)
        residual = self._buffer(op.y) if epilogue == Epilogue.ADD_RESIDUAL and op.y is not None else NONE
        if n <= FEW_COLUMNS[-1]:
            self._multiply_few(op, pairs, epilogue, residual, n)
        else:
            (pair,) = pairs
            self._multiply_many(op, *pair, epilogue, residual, n)

    def _multiply_few(
        self, op: LoweredOp, pairs: list[tuple[QuantTensor, int]], epilogue: Epilogue, residual: int, n: int
    ) -> None:
        assert op.x is not None
        p, qtype = self._places, pairs[0][0].qtype
        columns = next(c for c in FEW_COLUMNS if c >= n)
        n_in = op.width
        split = 4 if n_in >= 8192 else 2 if n_in >= 4096 else 1  # at least two units a lane
        is_pair = epilogue == Epilogue.SILU_MUL
        n_rows = pairs[0][0].shape[0] if is_pair else sum(weight.shape[0] for weight, _ in pairs)
        rows_a_block = FEW_WARPS // split * (1 if is_pair else FEW_ROWS)
        matrices = [word for weight, out in pairs for word in (self._weight(weight), weight.shape[0], out)]
        matrices += [NONE] * (3 * (MAX_WEIGHTS - len(pairs)))
        inputs = (p.codes, p.meta, NONE) if qtype.activation == Q8 else (NONE, NONE, self._buffer(op.x))
        arguments = (*inputs, self._grid(qtype), n_in, n, split, *matrices, residual, int(epilogue))
        grid = (-(-n_rows // rows_a_block), -(-n // columns))
        self._launch(f"lc_few_{qtype.name}_{columns}", grid, *arguments, weight=qtype)

    def _multiply_many(
        self, op: LoweredOp, weight: QuantTensor, out: int, epilogue: Epilogue, residual: int, n: int
    ) -> None:
        assert op.x is not None
        p, qtype = self._places, weight.qtype
        inputs = (p.codes, p.meta, NONE, NONE)
        if qtype.activation != Q8:
            inputs = (NONE, NONE, p.parts, p.factors)
            as_bf16 = qtype.name == "bf16"
            if self._in_parts != (op.x, as_bf16):
                padded = -(-op.width // MANY_K) * MANY_K
                target = (p.parts, p.factors, int(as_bf16))
                self._launch("lc_to_parts", (n,), self._buffer(op.x), n, op.width, padded, *target)
                self._in_parts = (op.x, as_bf16)
        n_out = weight.shape[0]
        arguments = (*inputs, self._grid(qtype), op.width, n, self._weight(weight), n_out, out, residual, int(epilogue))
        grid = (-(-n_out // MANY_ROWS), -(-n // MANY_TOKENS))
        self._launch(f"lc_many_{qtype.name}", grid, *arguments, weight=qtype)
