"""Every block format in the C core: dequantizing is bit for bit numpy's, so is quantizing, and products agree with the
reference backend on every instruction set that this machine can run, whatever the shape of the step."""

from __future__ import annotations

import numpy as np
import pytest
from random_blocks import random_tensor

from localcoder.backends.c import CBackend, availability, instruction_sets
from localcoder.backends.c.library import load
from localcoder.backends.program import KVShape, Program, Recorder, RopeTable, Step
from localcoder.backends.reference import ReferenceBackend
from localcoder.quants import ALL, QuantTensor, QuantType, by_name
from localcoder.quants.iq_grids import grid_of

pytestmark = pytest.mark.skipif(availability() is not None, reason=str(availability()))

ISAS = [isa.name for isa in instruction_sets() if isa.usable] if availability() is None else []
NAMES = [t.name for t in ALL]


@pytest.fixture(scope="module", params=ISAS)
def backend(request):
    return CBackend(2, isa=request.param)


def dequantize(backend: CBackend, tensor: QuantTensor) -> np.ndarray:
    ffi, lib = load()
    out = np.full(tensor.shape, np.nan, np.float32)
    grid = ffi.NULL
    if lib.lc_grid_bytes(tensor.qtype.gguf_id):
        grid = ffi.from_buffer("int8_t[]", grid_of(tensor.qtype))
    backend.check(
        lib.lc_dequantize(
            backend.pool,
            tensor.qtype.gguf_id,
            ffi.from_buffer("uint8_t[]", tensor.data),
            grid,
            *tensor.shape,
            ffi.from_buffer("float[]", out, require_writable=True),
        )
    )
    return out


@pytest.mark.parametrize("name", NAMES)
def test_dequantizing_is_bit_for_bit_numpys(name):
    tensor = random_tensor(by_name(name), 7, 768)
    np.testing.assert_array_equal(dequantize(CBackend(2), tensor), tensor.dequantize())


def test_grid_sizes_match():
    for qtype in ALL:
        n_bytes = load().lib.lc_grid_bytes(qtype.gguf_id)
        assert n_bytes == (grid_of(qtype).size if qtype.name.startswith(("iq1", "iq2", "iq3")) else 0)


@pytest.mark.parametrize("name", [t.name for t in ALL if t.quantize_blocks is not None])
def test_quantizing_is_bit_for_bit_numpys(name):
    qtype = by_name(name)
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((40, 768)) * np.exp2(rng.integers(-24, 12, (40, 1)))).astype(np.float32)
    x[3] = 0
    x[4, ::5] = 0
    x[5] = np.round(x[5] * 4) / 4  # many ties
    x[6, :32] = np.float32(1.5)
    np.testing.assert_array_equal(CBackend(3).quantize(qtype, x), qtype.quantize(x))


def linear_program(weights: list[QuantTensor]) -> Program:
    """x -> W2(W1(x)): the result of the first is rounded again for the second."""
    ops = Recorder()
    x = ops.input(weights[0].shape[1])
    for weight in weights:
        x = ops.linear(x, weight)
    table = np.zeros((4096, 1), np.float32)
    return ops.finish(x, KVShape(1, 1, 2, 4096), RopeTable(table, table))


def multiply(backend, weights: list[QuantTensor], x: np.ndarray) -> np.ndarray:
    program = linear_program(weights)
    n = len(x)
    kv = backend.new_kv_store(program.kv, 1)
    executable = backend.compile(program, kv, n)
    zeros = np.zeros(n, np.int32)
    step = Step(zeros, np.arange(n, dtype=np.int32), zeros, np.zeros((1, 1), np.int32), zeros[:0], (x,))
    result = executable.run(step)
    executable.close()
    return result


def lengths(qtype: QuantType) -> list[int]:
    """Rows of one block, a few, and more than a panel holds."""
    unit = max(qtype.block_elems, 32) if qtype.activation == "q8" else qtype.block_elems
    return [unit, 3 * unit, 5 * unit + (0 if unit > 1 else 2), (1280 // unit) * unit]


@pytest.mark.parametrize("name", NAMES)
def test_products_agree_with_the_reference(backend, name):
    qtype = by_name(name)
    rng = np.random.default_rng(1)
    for seed, n_in in enumerate(lengths(qtype)):
        weight = random_tensor(qtype, 37, n_in, seed)
        x = rng.standard_normal((29, n_in)).astype(np.float32) * np.exp(rng.standard_normal((29, 1))).astype(np.float32)
        expected = multiply(ReferenceBackend(), [weight], x)
        result = multiply(backend, [weight], x)
        # As near as another order of sums; in bf16 as near as another rounding of activations.
        bound = 0.02 if backend.prefill_peak == "bf16" and qtype.activation == "q8" else 2e-6
        assert np.abs(result - expected).max() <= bound * np.abs(expected).max() * max(1, np.sqrt(n_in) / 16)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_its_neighbours(backend, name):
    weight = random_tensor(by_name(name), 75, 768)
    x = np.random.default_rng(2).standard_normal((27, 768)).astype(np.float32)
    for most, fewer in (
        (13, (1, 2, 3, 4, 5, 6, 7, 8, 12)),
        (27, (17, 26) if backend.prefill_peak == "bf16" else (1, 13, 26)),
    ):
        together = multiply(backend, [weight], x[:most])
        for n in fewer:
            np.testing.assert_array_equal(multiply(backend, [weight], x[:n]), together[:n])
        if 1 in fewer:
            np.testing.assert_array_equal(multiply(backend, [weight], x[7:8]), together[7:8])


def test_bf16_depends_on_the_tokens_of_a_sequence_not_of_a_step(backend):
    """27 sequences of a token each are as each alone."""
    weight = random_tensor(by_name("q4_k"), 75, 768)
    x = np.random.default_rng(2).standard_normal((27, 768)).astype(np.float32)
    program = linear_program([weight])
    kv = backend.new_kv_store(program.kv, 27)
    executable = backend.compile(program, kv, len(x))
    each = np.arange(27, dtype=np.int32)
    step = Step(0 * each, 0 * each, each, each[:, None], each[:0], (x,))
    together = executable.run(step)
    executable.close()
    np.testing.assert_array_equal(together, np.concatenate([multiply(backend, [weight], row[None]) for row in x]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k", "iq2_s"])
def test_values_that_are_not_finite_show(backend, name, value):
    weight = random_tensor(by_name(name), 40, 512)
    x = np.ones((14, 512), np.float32)
    x[5, 77] = value
    x[13, 511] = value
    result = multiply(backend, [weight], x)
    finite = np.isfinite(result).all(axis=1)
    assert not finite[[5, 13]].any()
    assert finite[np.setdiff1d(np.arange(14), [5, 13])].all()
