"""The CUDA kernels, emulated: every block format, every number of tokens, odd shapes, against the numpy reference.

LOCALCODER_CUDA_EMULATED names the library. A part of the tests runs on the checked one beside it (CMake builds both),
which fails on races in shared memory and on accesses outside the buffers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from random_blocks import random_tensor

from localcoder.backends.cuda import emulated, plan
from localcoder.backends.cuda.backend import CudaBackend
from localcoder.backends.cuda.device import Launch, Memory
from localcoder.backends.cuda.emulated import EmulatedDevice
from localcoder.backends.cuda.layout import planes, row_bytes
from localcoder.backends.highest import MAX_HIGHEST
from localcoder.backends.program import KVShape, Program, Recorder, RopeTable, Step
from localcoder.backends.reference import ReferenceBackend
from localcoder.errors import BackendError
from localcoder.quants import ALL, QuantTensor, by_name

pytestmark = pytest.mark.skipif(emulated.availability() is not None, reason=str(emulated.availability()))

NAMES = [t.name for t in ALL]
PLAIN = Path(os.environ.get(emulated.VARIABLE) or "emulated")
CHECKED = PLAIN.with_name(PLAIN.name.replace("emulated", "checked"))
KINDS = ["plain", "checked"]


@cache
def backend_of(kind: str) -> CudaBackend:
    path = PLAIN if kind == "plain" else CHECKED
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return CudaBackend(EmulatedDevice(path))


def run(backend, program: Program, n: int, *inputs: np.ndarray, positions=None, outputs=(), tokens=None) -> np.ndarray:
    kv = backend.new_kv_store(program.kv, 1)
    executable = backend.compile(program, kv, n)
    zeros = np.zeros(n, np.int32)
    where = np.arange(n, dtype=np.int32) if positions is None else positions
    ids = zeros if tokens is None else tokens
    step = Step(ids, where, zeros, np.zeros((1, 1), np.int32), np.array(outputs, np.int32), inputs)
    result = executable.run(step)
    executable.close()
    return result


def program_of(record, *widths: int) -> Program:
    """A program of the ops that `record` makes from inputs of these widths."""
    ops = Recorder()
    result = record(ops, *(ops.input(width) for width in widths))
    table = np.zeros((4096, 1), np.float32)
    return ops.finish(result, KVShape(1, 1, 2, 4096), RopeTable(table, table))


def multiply(backend, weight: QuantTensor, x: np.ndarray) -> np.ndarray:
    return run(backend, program_of(lambda ops, h: ops.linear(h, weight), x.shape[1]), len(x), x)


def floats(n: int, width: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, width)) * np.exp(rng.standard_normal((n, 1)))).astype(np.float32)


@pytest.mark.parametrize("script", ["gen_planes.py"])
def test_the_generated_header_is_up_to_date(script):
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, str(root / "tools" / script), "--check"], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_planes_hold_the_same_bytes(name):
    qtype = by_name(name)
    assert sum(planes(qtype)) == qtype.block_bytes
    tensor = random_tensor(qtype, 3, 768)
    matrix = backend_of("plain").matrix(tensor)
    lying = np.empty((3, row_bytes(qtype, 768)), np.uint8)
    matrix.memory.read(lying)
    n = 768 // qtype.block_elems
    blocks, at, column = tensor.data.reshape(3, n, -1), 0, 0
    for size in planes(qtype):
        np.testing.assert_array_equal(
            lying[:, at : at + n * size].reshape(3, n, size), blocks[..., column : column + size]
        )
        at, column = at + -(-n * size // 16) * 16, column + size


@pytest.mark.parametrize("name", NAMES)
def test_embedding_rows_are_the_dequantized_weights(name):
    weight = random_tensor(by_name(name), 9, 768)
    tokens = np.array([8, 0, 3, 3], np.int32)
    result = run(backend_of("plain"), program_of(lambda ops: ops.embed(weight)), 4, tokens=tokens)
    expected = weight.dequantize()[tokens]
    assert np.abs(result - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_tokens", [1, 3, 16, 21, 70])
def test_products_agree_with_the_reference(name, n_tokens):
    qtype = by_name(name)
    unit = max(qtype.block_elems, 32) if qtype.block_elems > 1 else 2
    widths = [unit, 3 * unit] if unit == 256 else [unit, 5 * unit, 1280]
    for seed, n_in in enumerate(widths):
        weight = random_tensor(qtype, 131 if n_in < 1000 else 7, n_in, seed)
        x = floats(n_tokens, n_in)
        expected, result = multiply(ReferenceBackend(), weight, x), multiply(backend_of("plain"), weight, x)
        tolerance = 1e-5 if name == "bf16" and n_tokens > 16 else 3e-6  # activations in two bf16 have 16 bits
        assert (np.abs(result - expected).max(axis=1) <= tolerance * np.abs(expected).max(axis=1) * np.sqrt(n_in)).all()


@pytest.mark.parametrize("name", ["f32", "q8_0", "q4_k", "q6_k"])
@pytest.mark.parametrize("n_in", [4096, 8192])
def test_long_rows_are_shared_by_warps(name, n_in):
    weight, x = random_tensor(by_name(name), 9, n_in), floats(2, n_in)
    expected, result = multiply(ReferenceBackend(), weight, x), multiply(backend_of("plain"), weight, x)
    assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_a_token_does_not_depend_on_the_few_beside_it(name):
    weight, x = random_tensor(by_name(name), 11, 768), floats(16, 768)
    together = multiply(backend_of("plain"), weight, x)
    for n in (1, 2, 4, 7):
        np.testing.assert_array_equal(multiply(backend_of("plain"), weight, x[:n]), together[:n])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k", "iq2_s"])
@pytest.mark.parametrize("n_tokens", [5, 20])
def test_values_that_are_not_finite_show(name, value, n_tokens):
    weight, x = random_tensor(by_name(name), 40, 512), np.ones((n_tokens, 512), np.float32)
    x[3, 77] = value
    finite = np.isfinite(multiply(backend_of("plain"), weight, x)).all(axis=1)
    assert not finite[3]
    assert finite[np.arange(n_tokens) != 3].all()


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e4, 1e30])
@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "iq3_s"])
def test_tensor_cores_keep_large_and_small_activations(name, scale):
    weight, x = random_tensor(by_name(name), 20, 256), floats(20, 256) * np.float32(scale)
    expected, result = multiply(ReferenceBackend(), weight, x), multiply(backend_of("plain"), weight, x)
    assert (np.abs(result - expected).max(axis=1) <= 1e-5 * np.abs(expected).max(axis=1)).all()


@pytest.mark.parametrize("types", [("q4_k", "q4_k", "q6_k"), ("q4_0", "q4_0", "q4_0"), ("f32", "q8_0", "f16")])
@pytest.mark.parametrize("n_tokens", [1, 6, 20])
def test_matrices_over_one_input_and_epilogues(types, n_tokens):
    """Three results of one input; then gate, up and their product; then a sum with the residual."""
    q, gate, up = (random_tensor(by_name(name), 256, 256, seed) for seed, name in enumerate(types))
    down = random_tensor(by_name(types[2]), 256, 256, 7)

    def record(ops, x):
        first = ops.add(ops.add(ops.linear(x, q), ops.linear(x, gate)), ops.linear(x, up))
        h = ops.rms_norm(first, np.full(256, 0.005, np.float32), 1e-6)
        return ops.add(h, ops.linear(ops.silu_mul(ops.linear(h, gate), ops.linear(h, up)), down))

    program, x = program_of(record, 256), floats(n_tokens, 256)
    expected, result = run(ReferenceBackend(), program, n_tokens, x), run(backend_of("plain"), program, n_tokens, x)
    error = np.abs(result - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert error.max() <= 0.03  # a value that is rounded the other way
    assert np.median(error) <= 1e-4


def attention(backend, kv_type: str, n_head: int, n_head_kv: int, head_dim: int, cuts: list[int]) -> np.ndarray:
    """Attention of 200 positions, in steps that end at `cuts`, over pages in disorder."""
    rng = np.random.default_rng(n_head)
    q, k, v = (
        rng.standard_normal((200, heads * head_dim)).astype(np.float32) for heads in (n_head, n_head_kv, n_head_kv)
    )
    ops = Recorder()
    query, keys, values = (ops.input(a.shape[1]) for a in (q, k, v))
    ops.write_kv(0, keys, values)
    table = np.zeros((256, head_dim // 2), np.float32)
    result = ops.attend(0, query, n_head)
    program = ops.finish(result, KVShape(1, n_head_kv, head_dim, 16, kv_type), RopeTable(table, table))
    store = backend.new_kv_store(program.kv, 16)
    executable = backend.compile(program, store, 200)
    page_table = rng.permutation(16).astype(np.int32)[None, :13]
    pieces = []
    for part in np.split(np.arange(200, dtype=np.int32), cuts):
        zeros = np.zeros(len(part), np.int32)
        inputs = tuple(np.ascontiguousarray(a[part]) for a in (q, k, v))
        pieces.append(executable.run(Step(zeros, part, zeros, page_table, zeros[:0], inputs)))
    executable.close()
    return np.concatenate(pieces)


@pytest.mark.parametrize(
    "shape",
    [(4, 4, 16), (8, 1, 32), (14, 2, 64), (3, 3, 80), (2, 1, 128), (2, 2, 10), (9, 1, 20), (5, 1, 192), (3, 3, 256)],
)
@pytest.mark.parametrize("cuts", [[], [3, 9, 130, 131, 135, 199], [150]])
def test_attention_agrees_with_the_reference(shape, cuts):
    result = attention(backend_of("plain"), "f16", *shape, cuts)
    expected = attention(ReferenceBackend(), "f16", *shape, cuts)
    assert np.abs(result - expected).max() <= 2e-6 * np.abs(expected).max() * 10


@pytest.mark.parametrize("cuts", [[], [3, 9, 130, 131, 135, 199]])
@pytest.mark.parametrize("head_dim", [64, 192])
def test_attention_over_a_rounded_cache(head_dim, cuts):
    result = attention(backend_of("plain"), "q8_0", 4, 2, head_dim, cuts)
    expected = attention(ReferenceBackend(), "q8_0", 4, 2, head_dim, cuts)
    assert np.abs(result - expected).max() <= 1e-3 * np.abs(expected).max()


def test_attention_does_not_depend_on_the_few_tokens_of_a_step():
    alone = attention(backend_of("plain"), "f16", 4, 2, 32, [100, *range(120, 141), 180])
    some = attention(backend_of("plain"), "f16", 4, 2, 32, [100, *range(120, 141, 5), 180])
    np.testing.assert_array_equal(some, alone)


@pytest.mark.parametrize(
    "name", ["f32", "f16", "q4_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "iq2_xs"]
)
@pytest.mark.parametrize("n_tokens", [2, 18])
def test_kernels_keep_to_their_memory_and_do_not_race(name, n_tokens):
    backend = backend_of("checked")
    weight = random_tensor(by_name(name), 131, 256)
    program = program_of(lambda ops, h: ops.linear(ops.rms_norm(h, np.ones(256, np.float32), 1e-6), weight), 256)
    run(backend, program, n_tokens, floats(n_tokens, 256))


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize(("head_dim", "cuts"), [(64, []), (64, [197]), (256, [197])])
def test_attention_keeps_to_its_memory_and_does_not_race(kv_type, head_dim, cuts):
    attention(backend_of("checked"), kv_type, 4, 2, head_dim, cuts)


def test_steps_out_of_range_are_refused():
    weight = random_tensor(by_name("f32"), 9, 64)
    program = program_of(lambda ops: ops.embed(weight))
    for step in ({"tokens": np.array([9], np.int32)}, {"tokens": np.array([-1], np.int32)}, {"outputs": (1,)}):
        with pytest.raises(BackendError, match="out of range"):
            run(backend_of("plain"), program, 1, **step)
    with pytest.raises(BackendError, match="out of range"):
        run(backend_of("plain"), program, 1, positions=np.array([4096], np.int32))


def test_caches_that_a_card_does_not_have_are_refused():
    with pytest.raises(BackendError, match="f16 or q8_0, not q4_0"):
        backend_of("plain").new_kv_store(KVShape(1, 1, 32, 64, "q4_0"), 1)
    with pytest.raises(BackendError, match="heads of 258"):
        backend_of("plain").new_kv_store(KVShape(1, 1, 258, 64), 1)


# --- the emulation itself --------------------------------------------------------------------------------------------


def launch(kind: str, kernel: str, *arguments: int) -> np.ndarray:
    device = backend_of(kind).device
    memory = Memory(device, 256)
    memory.write(np.arange(64, dtype=np.int32))
    device.launch(Launch(kernel, (1, 1, 1), 64, (memory.address, *arguments)))
    out = np.empty(64, np.int32)
    memory.read(out)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_right_passes(kind):
    np.testing.assert_array_equal(launch(kind, "lc_fine"), np.arange(64)[::-1])
    np.testing.assert_array_equal(launch(kind, "lc_only_warps_meet", 5), np.arange(64) ^ 5)
    launch(kind, "lc_write_at", 63)


@pytest.mark.parametrize(
    ("kernel", "arguments", "message"),
    [
        ("lc_divergent_barrier", (), "different barriers"),
        ("lc_barrier_for_some", (), "wait for others"),
        ("lc_shuffle_for_some", (), "wait for others"),
        ("lc_no_wait_for_copies", (), "without waiting for its asynchronous copies"),
        ("lc_no_such_kernel", (), "no such kernel"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_threads_that_do_not_meet_are_found(kind, kernel, arguments, message):
    with pytest.raises(BackendError, match=message):
        launch(kind, kernel, *arguments)


@pytest.mark.parametrize(
    ("kernel", "arguments", "message"),
    [
        ("lc_without_barrier", (), "race in shared memory"),
        ("lc_written_after_reading", (), "race in shared memory"),
        ("lc_only_warps_meet", (32,), "race in shared memory"),
        ("lc_read_before_the_wait", (), "race in shared memory"),
        ("lc_write_at", (64,), "outside every buffer"),
        ("lc_write_at", (-1,), "outside every buffer"),
    ],
)
def test_races_and_stray_accesses_are_found(kernel, arguments, message):
    with pytest.raises(BackendError, match=message):
        launch("checked", kernel, *arguments)


def test_constants_of_the_kernels_and_their_launches_agree():
    """What plan.py repeats of the sources."""
    sources = "".join(
        (Path(__file__).resolve().parents[2] / "csrc" / "cuda" / name).read_text(encoding="utf-8")
        for name in ("few.h", "many.h", "attention.cu", "elementwise.cu", "highest.cu")
    )
    for name in (
        "FEW_ROWS",
        "MAX_WEIGHTS",
        "MANY_ROWS",
        "MANY_TOKENS",
        "MANY_K",
        "KEYS",
        "TILE",
        "MAX_DIM",
        "ROW_THREADS",
        "HIGHEST_GROUP",
    ):
        assert f"{name} = {getattr(plan, name)}" in sources
    assert f"MAX_HIGHEST = {MAX_HIGHEST}" in sources
