"""The CUDA kernels compute the CPU's bits (csrc/cpu/kernel_table.h) in every op but two: attention, whose sums over a
split cache have another order, and products for few tokens, where the lanes of a warp share a row. Both are off by last
bits, which move a model's logits only where they turn the rounding of an activation."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from tiny_model import write_tiny_model

from localcoder.backends.c import CBackend
from localcoder.backends.c import availability as c_availability
from localcoder.backends.cuda import emulated
from localcoder.backends.program import (
    Attend,
    Buffer,
    Input,
    KVShape,
    Linear,
    Program,
    Recorder,
    RopeTable,
    SelectOutputs,
    Step,
    WriteKV,
    reads,
)
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Engine
from localcoder.quants import ALL

_REASON = emulated.availability() or c_availability()
pytestmark = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))

ROUNDED = [t.name for t in ALL if t.activation == "q8"]
LAST_BITS = 3e-6  # of the largest value


def run(backend, program: Program, step: Step) -> np.ndarray:
    executable = backend.compile(program, backend.new_kv_store(program.kv, 1), len(step.tokens))
    result = executable.run(step)
    executable.close()
    return result


def over_tokens(op):
    """The same op with its inputs over all tokens, as those of a program are."""
    names = [f.name for f in fields(op) if f.name != "out" or not isinstance(op, SelectOutputs)]
    buffers = {name: getattr(op, name) for name in names if isinstance(getattr(op, name), Buffer)}
    return replace(op, **{name: replace(buffer, rows="tokens") for name, buffer in buffers.items()})


@pytest.mark.parametrize("type_name", ROUNDED)
@pytest.mark.parametrize("n", [1, 24])
def test_every_op_has_the_bits_of_the_cpu(type_name, n, tmp_path):
    """Each op from the same inputs, those that the CPU computed."""
    path = write_tiny_model(tmp_path / "m.gguf", type_name=type_name, n_embd=256, n_ff=512, n_head=4)
    cpu, card = CBackend(1), emulated.EmulatedCudaBackend()
    program = Engine(GGUFFile.open(path), cpu, n_ctx=64)._program
    count = np.arange(n, dtype=np.int32)
    tokens = np.random.default_rng(1).integers(0, 256, n).astype(np.int32)
    step = Step(tokens, count, 0 * count, np.zeros((1, 1), np.int32), count)
    values: dict[int, np.ndarray] = {}
    cache: list[WriteKV] = []
    n_same = 0
    for op in map(over_tokens, program.ops):
        if isinstance(op, WriteKV):
            cache = [op]
            continue
        ops = [*cache, op] if isinstance(op, Attend) else [op]
        read = [buffer for one in ops for buffer in reads(one)]
        piece = Program((*(Input(i, b) for i, b in enumerate(read)), *ops), op.out, program.kv, program.rope)
        given = step._replace(inputs=tuple(values[b.id] for b in read))
        expected, result = run(cpu, piece, given), run(card, piece, given)
        if isinstance(op, Attend) or (isinstance(op, Linear) and n == 1):
            assert np.abs(result - expected).max() <= LAST_BITS * np.abs(expected).max(), op
        else:
            np.testing.assert_array_equal(result, expected, err_msg=str(op)[:200])
            n_same += 1
        values[op.out.id] = expected
    assert n_same == (17 if n == 1 else 32)


def same(record, *inputs: np.ndarray) -> None:
    """Asserts that both compute the same with the ops that `record` makes."""
    ops = Recorder()
    result = record(ops, *(ops.input(x.shape[1]) for x in inputs))
    n = len(inputs[0])
    table = np.zeros((n, 1), np.float32)
    program = ops.finish(result, KVShape(1, 1, 2, n), RopeTable(table, table))
    count, zeros = np.arange(n, dtype=np.int32), np.zeros(n, np.int32)
    step = Step(zeros, count, zeros, np.zeros((1, 1), np.int32), count, inputs)
    np.testing.assert_array_equal(*(run(b, program, step) for b in (CBackend(1), emulated.EmulatedCudaBackend())))


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1, 1e6])
@pytest.mark.parametrize("width", [32, 96, 2048, 5632])
def test_norms_have_the_bits_of_the_cpu(scale, width):
    rng = np.random.default_rng(width)
    x = (scale * rng.standard_normal((16, width))).astype(np.float32)
    weight = rng.standard_normal(width).astype(np.float32)
    same(lambda ops, h: ops.rms_norm(h, weight, float(np.float32(1e-6))), x)


def test_gates_have_the_bits_of_the_cpu():
    rng = np.random.default_rng(1)
    gate = (np.exp(rng.uniform(-20, 6, (3, 4096))) * rng.choice([-1, 1], (3, 4096))).astype(np.float32)
    same(lambda ops, a, b: ops.silu_mul(a, b), gate, rng.standard_normal((3, 4096)).astype(np.float32))
