"""The searched quantizers of the backends: byte for byte what localcoder/quants/search.py gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_blocks import random_tensor

from localcoder.backends.c import CBackend, availability, instruction_sets
from localcoder.backends.numba import NumbaBackend
from localcoder.errors import OptionError
from localcoder.quants import ALL, by_name
from localcoder.quants.search import is_searched, quantize_best

ROOT = Path(__file__).resolve().parents[2]
NAMES = [t.name for t in ALL if is_searched(t)]
NEEDS_C = pytest.mark.skipif(availability() is not None, reason=str(availability()))
ISAS = [isa.name for isa in instruction_sets() if isa.usable] if availability() is None else []


@pytest.fixture(scope="module", params=[*ISAS, "numba"])
def backend(request):
    """Every instruction set of the C core, and numba."""
    if request.param == "numba":
        backend = NumbaBackend(2)
    else:
        backend = CBackend(2, isa=request.param)
        assert backend.isa == request.param
    yield backend
    backend.close()


def hard_rows(n: int = 768, seed: int = 0) -> np.ndarray:
    """Values with heavy tails at every magnitude that float32 has, and rows with many ties, zeros and equal values."""
    rng = np.random.default_rng(seed)
    exponents = np.concatenate([np.full(12, -6), rng.integers(-22, 16, 12), [-149, -140, -126, -80, 60, 100, 118, 122]])
    x = (rng.standard_t(3, (len(exponents), n)) * np.exp2(exponents[:, None].astype(np.float64))).astype(np.float32)
    x[0] = 0
    x[1, ::5] = 0
    x[2] = np.round(x[2] * 256) / 256
    x[3, :] = np.float32(-1.5)
    x[4] = np.abs(x[4])
    x[5] = -np.abs(x[5])
    x[6] = np.where(np.arange(n) % 37 == 5, x[6], 0)
    x[7] = np.where(np.arange(n) % 256 == 77, -3.0, -0.0)
    x[8] += 100
    x[9, :32] = 0
    x[-1, ::3] = np.float32(3.4028234e38)
    x[-1, 1::3] = np.float32(-3.4028234e38)
    return x


def hard_weights(n: int = 768, seed: int = 1) -> np.ndarray:
    weights = np.random.default_rng(seed).gamma(0.3, size=n).astype(np.float32)
    weights[:40] = 0
    weights[100] = 1e6
    return weights


def assert_same_blocks(qtype, result, expected):
    differing = np.flatnonzero((result != expected).reshape(-1, qtype.block_bytes).any(axis=1))
    assert differing.size == 0, f"{len(differing)} of {expected.size // qtype.block_bytes} blocks: {differing[:20]}"


@pytest.mark.parametrize("name", NAMES)
def test_same_bytes(backend, name):
    qtype, x = by_name(name), hard_rows()
    assert_same_blocks(qtype, backend.quantize_best(qtype, x), quantize_best(qtype, x))


@pytest.mark.parametrize("name", NAMES)
def test_same_bytes_with_weights(backend, name):
    qtype, x, weights = by_name(name), hard_rows(seed=2), hard_weights()
    assert_same_blocks(qtype, backend.quantize_best(qtype, x, weights), quantize_best(qtype, x, weights))


@pytest.mark.parametrize("name", NAMES)
def test_same_bytes_with_weights_for_every_row(backend, name):
    qtype = by_name(name)
    x = hard_rows(256, seed=3)[:11]
    weights = np.stack([hard_weights(256, seed) for seed in range(11)])
    weights[4] = 0
    assert_same_blocks(qtype, backend.quantize_best(qtype, x, weights), quantize_best(qtype, x, weights))


@pytest.mark.parametrize("open_backend", [pytest.param(CBackend, marks=NEEDS_C), NumbaBackend])
@pytest.mark.parametrize("name", ["q4_0", "q8_0", "q5_1", "q4_k", "q6_k", "iq4_xs"])
def test_any_number_of_rows_and_threads(name, open_backend):
    """Lanes that are not full, several chunks, more threads than work."""
    qtype = by_name(name)
    x = np.random.default_rng(4).standard_normal((300, 512), np.float32)
    weights = np.random.default_rng(5).random((300, 512), np.float32)
    expected, weighted = quantize_best(qtype, x), quantize_best(qtype, x, weights)
    for threads in (1, 2, 3):
        backend = open_backend(threads)
        for n in (0, 1, 2, 3, 7, 17, 300):
            np.testing.assert_array_equal(backend.quantize_best(qtype, x[:n]), expected[:n])
        np.testing.assert_array_equal(backend.quantize_best(qtype, x[::2], weights[::2]), weighted[::2])
        backend.close()


@pytest.mark.parametrize("source", ["f32", "f16", "bf16", "q8_0", "q4_k", "iq2_s"])
def test_from_another_format(backend, source):
    """f32 at an odd address, too."""
    tensor = random_tensor(by_name(source), 70, 768)
    qtype, weights = by_name("q4_0"), hard_weights()
    shifted = np.frombuffer(b"?" + tensor.data.tobytes(), np.uint8)[1:].reshape(tensor.data.shape)
    expected = quantize_best(qtype, tensor.dequantize(), weights)
    np.testing.assert_array_equal(backend.requantize(qtype, tensor.qtype, shifted, weights), expected)
    exact = backend.requantize(by_name("f32"), tensor.qtype, tensor.data)
    np.testing.assert_array_equal(exact, tensor.dequantize().view(np.uint8))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["q4_0", "q5_1", "q4_k", "q6_k"])
def test_values_that_are_not_finite(backend, name, value):
    x = np.ones((5, 512), np.float32)
    x[3, 400] = value
    with pytest.raises(OptionError, match=f"row 3, column 400 is {value}"):
        backend.quantize_best(by_name(name), x)


def test_what_cannot_be_quantized(backend):
    x = np.ones((2, 288), np.float32)
    with pytest.raises(OptionError, match="not a multiple of 256"):
        backend.quantize_best(by_name("q4_k"), x)
    with pytest.raises(OptionError, match="weights"):
        backend.quantize_best(by_name("q4_0"), x, np.ones(17, np.float32))
    with pytest.raises(OptionError, match="read but not written"):
        backend.quantize_best(by_name("iq2_xs"), np.ones((2, 256), np.float32))


def test_types_without_a_search_are_rounded_plainly(backend):
    x = hard_rows()[:12]
    np.testing.assert_array_equal(backend.quantize_best(by_name("f16"), x), by_name("f16").quantize(x))


def test_the_header_is_what_the_tool_writes():
    done = subprocess.run([sys.executable, ROOT / "tools" / "gen_search_tables.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "run: python tools/gen_search_tables.py"
