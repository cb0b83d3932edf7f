"""The search for scales: against plain rounding, llama.cpp's quantizers, exhaustive search, and at the edges."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from localcoder.errors import OptionError
from localcoder.quants import ALL, by_name
from localcoder.quants.search import is_searched, quantize_best

SEARCHED = [t for t in ALL if is_searched(t)]
# Squared error over llama.cpp's on the same values, both without an importance matrix.
MOST_ALLOWED = {"q4_0": 0.92, "q5_0": 0.92, "q4_1": 0.82, "q5_1": 0.82, "q8_0": 0.87}


def normal(n_rows=128, n=512, seed=0):
    return np.random.default_rng(seed).standard_normal((n_rows, n), np.float32) * np.float32(0.02)


def error(qtype, data, x, weights=1.0):
    return float((weights * (qtype.dequantize(data).astype(np.float64) - x) ** 2).sum())


@pytest.fixture(scope="module")
def quantize_by_llama_cpp():
    llama_cpp = pytest.importorskip("llama_cpp")
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = next(p for p in folder.iterdir() if "ggml-base" in p.name)
    quantize_chunk = ctypes.CDLL(str(library)).ggml_quantize_chunk
    quantize_chunk.restype = ctypes.c_size_t
    quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def quantize(qtype, x, weights=None):
        out = np.zeros((len(x), qtype.row_bytes(x.shape[1])), np.uint8)
        importance = None if weights is None else weights.ctypes.data
        n_bytes = quantize_chunk(qtype.gguf_id, x.ctypes.data, out.ctypes.data, 0, *x.shape, importance)
        assert n_bytes == out.nbytes
        return out

    return quantize


def test_every_type_that_llama_quantize_users_write_is_searched():
    names = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"]
    assert {t.name for t in SEARCHED} == set(names)


@pytest.mark.parametrize("qtype", SEARCHED, ids=repr)
def test_closer_than_llama_cpp(qtype, quantize_by_llama_cpp):
    x = normal()
    ratio = error(qtype, quantize_best(qtype, x), x) / error(qtype, quantize_by_llama_cpp(qtype, x), x)
    assert ratio <= MOST_ALLOWED.get(qtype.name, 0.97)


@pytest.mark.parametrize("scale", [1e-4, 30.0])
@pytest.mark.parametrize("qtype", SEARCHED, ids=repr)
def test_closer_than_llama_cpp_on_heavy_tails_at_any_scale(qtype, scale, quantize_by_llama_cpp):
    """At 1e-4 the stored half-precision scales are subnormal and coarse."""
    x = np.random.default_rng(1).standard_t(3, (64, 512)).astype(np.float32) * np.float32(scale)
    ratio = error(qtype, quantize_best(qtype, x), x) / error(qtype, quantize_by_llama_cpp(qtype, x), x)
    assert ratio <= 0.97


@pytest.mark.parametrize("qtype", SEARCHED, ids=repr)
def test_closer_than_llama_cpp_with_weights(qtype, quantize_by_llama_cpp):
    x = normal(seed=2)
    weights = np.random.default_rng(3).gamma(0.5, size=512).astype(np.float32)
    if qtype.name == "q8_0":
        weights = np.ones_like(weights)  # llama.cpp ignores them there
    ours = error(qtype, quantize_best(qtype, x, weights), x, weights)
    assert ours <= 0.97 * error(qtype, quantize_by_llama_cpp(qtype, x, weights), x, weights)


@pytest.mark.parametrize("qtype", SEARCHED, ids=repr)
def test_the_trained_checkpoint(qtype, shared, quantize_by_llama_cpp):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors")
    ours = theirs = 0.0
    for path in sorted((shared / "checkpoints" / "python-9m").glob("*.safetensors")):
        with safetensors.safe_open(path, "pt") as file:
            for name in [name for name in file.keys() if name.endswith("proj.weight")]:  # noqa: SIM118
                x = np.ascontiguousarray(file.get_tensor(name).to(torch.float32).numpy()[::16])
                ours += error(qtype, quantize_best(qtype, x), x)
                theirs += error(qtype, quantize_by_llama_cpp(qtype, x), x)
    assert 0 < ours <= MOST_ALLOWED.get(qtype.name, 0.97) * theirs


@pytest.mark.parametrize(("name", "least", "most"), [("q4_0", -8, 7), ("q5_0", -16, 15), ("q8_0", -127, 127)])
def test_near_the_exhaustive_optimum(name, least, most):
    x = normal(n_rows=64, n=32, seed=4)
    extreme = np.abs(x).max(axis=1)
    best = np.full(len(x), np.inf)
    reach = np.linspace(0.85 * most, 1.15 * most, 2001)
    for step in np.concatenate([reach, -reach]):
        d = extreme / step
        q = np.clip(np.rint(x / d[:, None]), least, most)
        best = np.minimum(best, ((x - d[:, None] * q) ** 2).sum(axis=1))
    qtype = by_name(name)
    assert error(qtype, quantize_best(qtype, x), x) <= 1.04 * best.sum()


@pytest.mark.parametrize("qtype", SEARCHED, ids=repr)
def test_weights_move_the_error_where_it_matters_less(qtype):
    x = normal(seed=5)
    weights = np.where(np.arange(512) % 2, np.float32(20), np.float32(1))
    plain, weighted = (qtype.dequantize(quantize_best(qtype, x, w)) for w in (None, weights))
    heavy = np.s_[:, 1::2]
    assert ((weighted - x)[heavy] ** 2).sum() < 0.95 * ((plain - x)[heavy] ** 2).sum()


@pytest.mark.parametrize("qtype", SEARCHED, ids=repr)
def test_only_ratios_of_weights_matter(qtype):
    x = normal(n_rows=8)
    weights = np.random.default_rng(6).random(512, np.float32)
    expected = quantize_best(qtype, x, weights)
    np.testing.assert_array_equal(quantize_best(qtype, x, weights * 2**40), expected)
    np.testing.assert_array_equal(quantize_best(qtype, x, np.tile(weights, (8, 1))), expected)
    equal = quantize_best(qtype, x, np.full(512, 3.0))
    np.testing.assert_array_equal(quantize_best(qtype, x, np.zeros(512)), equal)
    assert error(qtype, equal, x) == pytest.approx(error(qtype, quantize_best(qtype, x), x), rel=0.1)


@pytest.mark.parametrize("qtype", SEARCHED, ids=repr)
def test_a_block_does_not_depend_on_its_neighbours(qtype):
    x = normal(n_rows=5)
    whole = quantize_best(qtype, x)
    first = np.concatenate([quantize_best(qtype, x[:1, : qtype.block_elems]), quantize_best(qtype, x[:1])], axis=1)
    np.testing.assert_array_equal(first[0, : qtype.block_bytes], whole[0, : qtype.block_bytes])
    np.testing.assert_array_equal(first[0, qtype.block_bytes :], whole[0])


@pytest.mark.parametrize("qtype", SEARCHED, ids=repr)
def test_edges(qtype):
    n = 512
    ramp = np.linspace(-1, 1, n, dtype=np.float32)
    rows = {
        "zeros": np.zeros(n),
        "one value": np.where(np.arange(n) == 77, -3.0, 0.0),
        "constant": np.full(n, 0.25),
        "negative constant": np.full(n, -0.25),
        "offset": ramp + 100,
        "negative offset": ramp - 100,
        "positive": np.abs(ramp),
        "two values": np.where(np.arange(n) % 3, -1.0, 1.0),
    }
    for name, row in rows.items():
        x = row.astype(np.float32)[None]
        back = qtype.dequantize(quantize_best(qtype, x))
        tolerance = {"q2_k": 0.35, "q3_k": 0.3}.get(qtype.name, 0.15) * np.abs(x).max()
        assert np.isfinite(back).all(), name
        assert np.abs(back - x).max() <= tolerance, name
    np.testing.assert_array_equal(qtype.dequantize(quantize_best(qtype, np.zeros((2, n), np.float32))), 0)


@pytest.mark.parametrize("factor", [1e-44, 1e-38, 1e-30, 1e-12, 1e6, 1e18, 1e30])
@pytest.mark.parametrize("qtype", SEARCHED, ids=repr)
def test_extreme_magnitudes_stay_finite(qtype, factor):
    x = normal(n_rows=4) * np.float32(factor)
    back = qtype.dequantize(quantize_best(qtype, x))
    assert np.isfinite(back).all()
    if factor < 1e-20:
        np.testing.assert_array_equal(back, 0)


def test_types_without_a_search_are_rounded_plainly():
    x = normal(n_rows=2)
    np.testing.assert_array_equal(quantize_best(by_name("f16"), x), by_name("f16").quantize(x))
    with pytest.raises(OptionError, match="read but not written"):
        quantize_best(by_name("iq2_xs"), x)


@pytest.mark.parametrize("weights", [np.ones(3), np.ones((3, 512)), -np.ones(512), np.full(512, np.nan)])
def test_bad_weights(weights):
    with pytest.raises(OptionError, match="weights"):
        quantize_best(by_name("q4_k"), normal(n_rows=2), weights)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value):
    x = normal(n_rows=3)
    x[1, 300] = value
    with pytest.raises(OptionError, match=f"row 1, column 300 is {value}"):
        quantize_best(by_name("q4_0"), x)


def test_rows_that_are_not_whole_blocks():
    with pytest.raises(OptionError, match="not a multiple of 256"):
        quantize_best(by_name("q4_k"), np.zeros((1, 288), np.float32))
