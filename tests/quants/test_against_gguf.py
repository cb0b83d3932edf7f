"""Reading and plain rounding, bit for bit against the `gguf` package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from localcoder.quants import ALL, by_name

READABLE = [t for t in ALL if t.gguf_id in {0, 1} | {int(known) for known in gguf.quants._type_traits}]
WRITABLE = [t for t in READABLE if t.quantize_blocks is not None]


def dequantize_by_gguf(qtype, data):
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType(qtype.gguf_id))


def quantize_by_gguf(qtype, x):
    with np.errstate(all="ignore"):
        return gguf.quants.quantize(x, gguf.GGMLQuantizationType(qtype.gguf_id)).view(np.uint8)


@pytest.mark.parametrize("qtype", READABLE, ids=repr)
def test_dequantize_any_bytes(qtype):
    """Every bit pattern is legal input: infinities and NaNs among the scales included."""
    data = np.random.default_rng(7).integers(0, 256, (1500, qtype.block_bytes), np.uint8)
    ours, theirs = qtype.dequantize(data), dequantize_by_gguf(qtype, data)
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("qtype", READABLE, ids=repr)
def test_dequantize_every_byte_in_every_place(qtype):
    patterns = [np.full((1, qtype.block_bytes), byte, np.uint8) for byte in range(256)]
    data = np.concatenate(patterns)
    ours, theirs = qtype.dequantize(data), dequantize_by_gguf(qtype, data)
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_dequantize_every_value_of_the_short_floats(name):
    data = np.arange(1 << 16, dtype="<u2").view(np.uint8)
    ours, theirs = by_name(name).dequantize(data), dequantize_by_gguf(by_name(name), data)
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def inputs():
    rng = np.random.default_rng(11)
    shape = (96, 256)
    normal = rng.standard_normal(shape, np.float32)
    grid = rng.integers(-8, 9, shape).astype(np.float32) / 2
    yield pytest.param(normal, id="normal")
    yield pytest.param(rng.standard_t(2, shape).astype(np.float32), id="heavy-tailed")
    yield pytest.param(grid, id="ties")
    yield pytest.param(np.zeros(shape, np.float32), id="zeros")
    yield pytest.param(np.full(shape, -0.0, np.float32), id="minus-zeros")
    yield pytest.param(np.where(rng.random(shape) < 0.97, np.float32(0), normal), id="sparse")
    yield pytest.param(np.full(shape, np.float32(-3.7)), id="constant")
    yield pytest.param(-np.abs(normal), id="all-negative")
    yield pytest.param(normal + 10, id="offset")
    yield pytest.param(normal * np.float32(1e-6), id="half-precision subnormals")
    yield pytest.param(normal * np.float32(1e-30), id="scale rounds to zero")
    yield pytest.param(normal * np.float32(1e7), id="scale overflows")
    yield pytest.param(normal * np.logspace(-20, 20, 256, dtype=np.float32), id="wide range")


@pytest.mark.parametrize("x", list(inputs()))
@pytest.mark.parametrize("qtype", WRITABLE, ids=repr)
def test_quantize(qtype, x):
    ours, theirs = qtype.quantize(x), quantize_by_gguf(qtype, x)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("qtype", WRITABLE, ids=repr)
def test_single_precision_subnormals_become_zero_or_stay(qtype):
    """Too small for a reciprocal: gguf's result is undefined there, ours is the nearest storable value."""
    x = np.full((1, 256), 3e-39, np.float32)
    back = qtype.dequantize(qtype.quantize(x))
    np.testing.assert_allclose(back, x, rtol=0, atol={"f32": 0, "bf16": 5e-41}.get(qtype.name, 3e-39))


def test_bf16_keeps_nan_and_infinity():
    x = np.array([np.nan, -np.nan, np.inf, -np.inf, 3.4e38, -3.4e38], np.float32)
    x[0] = np.array([0x7F800001], np.uint32).view(np.float32)[0]  # its payload would vanish in the upper half
    np.testing.assert_array_equal(by_name("bf16").quantize(x), quantize_by_gguf(by_name("bf16"), x))


# Relative root-mean-square error on standard normal values, from the step of each format; a wrong bit breaks it.
ERRORS = {
    "f32": 0.0,
    "f16": 2.5e-4,
    "bf16": 2e-3,
    "q8_0": 0.006,
    "q5_1": 0.038,
    "q5_0": 0.046,
    "q4_1": 0.078,
    "q4_0": 0.093,
    "mxfp4": 0.13,
    "tq2_0": 0.9,
    "tq1_0": 0.9,
}


@pytest.mark.parametrize("qtype", WRITABLE, ids=repr)
def test_round_trip_error(qtype):
    x = np.random.default_rng(5).standard_normal((256, 256), np.float32)
    error = np.sqrt(np.mean((qtype.dequantize(qtype.quantize(x)) - x) ** 2))
    assert ERRORS[qtype.name] / 1.6 <= error <= ERRORS[qtype.name]


SYMMETRIC = [t for t in WRITABLE if "m" not in t.block.names]  # a stored minimum is rounded, which moves the range


@pytest.mark.parametrize("qtype", SYMMETRIC, ids=repr)
def test_quantizing_again_changes_nothing(qtype):
    x = np.random.default_rng(3).standard_normal((64, 256), np.float32)
    once = qtype.dequantize(qtype.quantize(x))
    np.testing.assert_allclose(qtype.dequantize(qtype.quantize(once)), once, rtol=2e-3, atol=1e-6)
