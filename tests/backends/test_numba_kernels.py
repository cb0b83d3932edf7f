"""The numba backend's kernels one by one, against float64 and numpy."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from localcoder.backends.numba import codes, elementwise, halves, jit, linear, rows, simd
from localcoder.backends.numba.emit import GROUP
from localcoder.quants import ALL, BY_ID, by_name
from localcoder.quants.activations import quantize_q8

CODE_TYPES = [BY_ID[i].name for i in sorted(codes.CODE_ROWS)]
PADDING = 16


def counter() -> np.ndarray:
    return np.zeros(1, np.int64)


def random_rows(type_name: str, n_rows: int, n: int, seed: int = 0) -> np.ndarray:
    """Rows of random blocks, their half-precision fields finite and small."""
    qtype = by_name(type_name)
    rng = np.random.default_rng(seed)
    blocks = np.frombuffer(rng.bytes(n_rows * qtype.row_bytes(n)), qtype.block).copy()
    for field in ("d", "dmin", "m"):
        if field in (qtype.block.names or ()):
            blocks[field] = rng.standard_normal(len(blocks))
    return blocks.view(np.uint8).reshape(n_rows, -1)


def quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `quantize_tokens` makes of x; its areas full of nonsense before."""
    n, n_in = x.shape
    n_padded = -(-n // 16) * 16
    areas = (
        np.full(n_padded * n_in, 31000, np.int16),
        np.full(n_padded * n_in // GROUP, np.nan, np.float32),
        np.full(n_padded * n_in // codes.SUM_GROUP, np.nan, np.float32),
    )
    linear.quantize_tokens(x.reshape(-1), n, n_in, *areas, counter(), 0)
    return areas


def linear_codes(type_name: str, data: np.ndarray, x: np.ndarray) -> np.ndarray:
    n, (n_out, row_bytes) = len(x), data.shape
    out = np.full(n * n_out + PADDING, np.nan, np.float32)
    function = linear.linear_codes_tiled if n >= linear.MIN_TILED else linear.linear_codes
    kind = by_name(type_name).gguf_id
    function(kind, data.reshape(-1), row_bytes, n_out, x.shape[1], *quantized(x), n, out, counter(), 0)
    assert np.isnan(out[n * n_out :]).all()
    return out[: n * n_out].reshape(n, n_out)


@pytest.mark.parametrize("type_name", CODE_TYPES)
@pytest.mark.parametrize("n_out", [1, 19, 37])
def test_integer_dot_products_are_those_of_the_definition(type_name, n_out):
    n_in = 512
    data = random_rows(type_name, n_out, n_in)
    x = np.random.default_rng(1).standard_normal((21, n_in)).astype(np.float32)
    scales, steps = quantize_q8(x)
    rounded = (scales[..., None] * steps.reshape(21, -1, GROUP).astype(np.float64)).reshape(x.shape)
    weight = by_name(type_name).dequantize(data).astype(np.float64)
    expected = rounded @ weight.T
    bound = 1e-5 * (np.abs(rounded) @ np.abs(weight).T)
    many = linear_codes(type_name, data, x)
    assert (np.abs(many - expected) <= bound).all()
    for n in (1, 2, 5, 6, 16, 17):
        np.testing.assert_array_equal(linear_codes(type_name, data, x[:n]), many[:n])


@pytest.mark.parametrize("n", [1, 20])
def test_activations_are_rounded_as_defined(n):
    x = np.random.default_rng(2).standard_normal((n, 96)).astype(np.float32)
    x[0, :32] = 0
    x[0, 32:64] = np.arange(32) - 127 / 2  # ties
    found_codes, found_scales, _ = quantized(x)
    scales, steps = quantize_q8(x)
    if n >= linear.MIN_TILED:
        tiles = found_codes.reshape(-1, 3, GROUP // 2, 16, 2).transpose(0, 3, 1, 2, 4).reshape(-1, 96)
        found_codes, padding = tiles[:n], tiles[n:]
        assert not padding.any()
        found_scales = found_scales.reshape(-1, 3, 16).transpose(0, 2, 1).reshape(-1, 3)
    np.testing.assert_array_equal(found_codes.reshape(-1)[: n * 96].reshape(n, 96), steps)
    np.testing.assert_array_equal(found_scales.reshape(-1)[: n * 3].reshape(n, 3), scales)


@pytest.mark.parametrize("type_name", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("n_in", [1, 15, 16, 50, 257])
def test_float_dot_products(type_name, n_in):
    rng = np.random.default_rng(3)
    qtype = by_name(type_name)
    n_out = 21
    data = qtype.quantize(rng.standard_normal((n_out, n_in)).astype(np.float32))
    x = rng.standard_normal((7, n_in)).astype(np.float32)
    weight = qtype.dequantize(data).astype(np.float64)
    results = []
    for n in (1, 4, 7):
        out = np.full(n * 30 + PADDING, np.nan, np.float32)
        flat = np.concatenate([x[:n].reshape(-1), np.full(PADDING, np.nan, np.float32)])
        linear.linear_floats(
            qtype.gguf_id, data.reshape(-1), data.shape[1], n_out, n_in, flat, n, out, 30, counter(), 0
        )
        rows_out = out[: n * 30].reshape(n, 30)
        assert np.isnan(rows_out[:, n_out:]).all()
        assert np.isnan(out[n * 30 :]).all()
        results.append(rows_out[:, :n_out])
    assert (np.abs(results[-1] - x @ weight.T) <= 1e-6 * (np.abs(x) @ np.abs(weight).T)).all()
    np.testing.assert_array_equal(results[0], results[-1][:1])
    np.testing.assert_array_equal(results[1], results[-1][:4])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("n", [1, 7])
def test_values_that_are_not_finite_show(bad, n):
    x = np.ones((n, 64), np.float32)
    x[0, 40] = bad
    out = linear_codes("q8_0", random_rows("q8_0", 5, 64), x)
    assert not np.isfinite(out[0]).any()
    assert np.isfinite(out[1:]).all()


def test_every_half_is_widened_exactly():
    every = np.arange(1 << 16, dtype=np.uint16)
    expected = every.view(np.float16).astype(np.float32)
    for widen in {halves.f16_bits_to_f32, _native_widening()}:
        found = np.array([widen(bits) for bits in every], np.float32)
        np.testing.assert_array_equal(found, expected)


def _native_widening():
    @jit.kernel
    def widen(bits):
        return halves.f16_to_f32(bits)

    return widen


def test_rounding_to_halves():
    rng = np.random.default_rng(4)
    every = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (every[1:] + every[:-1]) / 2
    wild = np.frombuffer(rng.bytes(4 * 20000), np.float32)
    x = np.concatenate([every, -every, ties, -ties, np.nextafter(ties, 0), wild[np.isfinite(wild)], [np.inf, 65519.9]])
    x = np.concatenate([x, [65520, 1e-8, 2.0**-25, -0.0]]).astype(np.float32)
    x = np.resize(x, -(-len(x) // 32) * 32)
    for name in ("f16", "bf16"):
        qtype = by_name(name)
        found = np.empty(2 * len(x), np.uint8)
        linear.encode_rows(qtype.gguf_id, x.ctypes.data, 1, len(x), found, len(found), counter())
        np.testing.assert_array_equal(found, qtype.quantize(x))
    assert np.isnan(np.uint16(halves.f32_to_f16(np.float32(np.nan))).view(np.float16))


@pytest.mark.parametrize("type_name", [BY_ID[i].name for i in sorted(rows.KV_ROWS)])
def test_a_row_is_decoded_as_defined(type_name):
    qtype = by_name(type_name)
    data = qtype.quantize(np.random.default_rng(5).standard_normal(96).astype(np.float32))
    out = np.full(96 + PADDING, np.nan, np.float32)
    rows.decode_row(qtype.gguf_id, data, 0, 96, out, 0)
    np.testing.assert_array_equal(out[:96], qtype.dequantize(data))
    assert np.isnan(out[96:]).all()


def test_the_exponential():
    x = np.concatenate([np.linspace(-87, 88, 40001), [0.0, -0.0, 1e-30]]).astype(np.float32)
    found = np.array([elementwise.exp(v) for v in x], np.float64)
    expected = np.exp(x.astype(np.float64))
    assert (np.abs(found / expected - 1) <= 2e-7).all()
    assert elementwise.exp(np.float32(-np.inf)) == 0
    assert elementwise.exp(np.float32(-1000)) == 0
    assert elementwise.exp(np.float32(np.inf)) == elementwise.exp(np.float32(1000)) == found[40000]
    assert np.isnan(elementwise.exp(np.float32(np.nan)))


@pytest.mark.parametrize("fused", [simd.fused, simd.fused_by_doubles])
def test_multiply_and_add_is_rounded_once(fused):
    """Also where the CPU has no instruction for it; against exact fractions."""

    @jit.kernel
    def apply(a, b, c, out):
        for i in range(len(a)):
            out[i] = fused(a[i], b[i], c[i])

    rng = np.random.default_rng(6)
    a, b = (rng.integers(2048, 4096, 4000) * 2 + 1 for _ in range(2))  # products lie between two floats
    c = (rng.standard_normal(4000) * 1e-12).astype(np.float32)
    c[::2] = -a[::2] * b[::2] * (1 + rng.standard_normal(2000) * 1e-7)
    c[:3] = np.inf, np.nan, 0
    out = np.empty(4000, np.float32)
    apply(a.astype(np.float32), b.astype(np.float32), c, out)
    assert out[0] == np.inf
    assert np.isnan(out[1])
    for i in range(2, 4000):
        exact = int(a[i]) * int(b[i]) + Fraction(float(c[i]))
        near = [np.nextafter(out[i], np.float32(side)) for side in (-np.inf, np.inf)]
        assert all(abs(Fraction(float(out[i])) - exact) <= abs(Fraction(float(other)) - exact) for other in near)


def test_what_has_no_kernel_is_known():
    """Formats without a kernel of their own run through their definition; none of the common ones is among them."""
    native = {BY_ID[i].name for i in codes.CODE_ROWS | rows.FLOAT_ROWS}
    assert {t.name for t in ALL} - native <= {t.name for t in ALL if t.name.startswith(("iq", "tq"))} | {
        "mxfp4",
        "nvfp4",
    }


def test_kernels_are_kept_where_the_environment_says(tmp_path):
    code = "from localcoder.backends.numba.jit import cache_folder; print(cache_folder())"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert Path(result.stdout.strip()).parent == tmp_path / "localcoder"


def test_without_a_folder_that_can_be_written_kernels_last_for_the_process(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="ascii")
    code = "from localcoder.backends.numba.jit import cache_folder as f; print(f(), f().is_dir())"
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(blocked), "HOME": str(blocked), "LOCALAPPDATA": str(blocked)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    folder, existed = result.stdout.split()
    assert existed == "True"
    assert not Path(folder).exists()


def test_the_kernels_say_the_same_as_plain_python(tmp_path):
    """With NUMBA_DISABLE_JIT=1 the same sources run as Python, intrinsics as their twins: readable, and an oracle."""
    script = Path(__file__).with_name("numba_without_jit.py")
    logits = []
    for disabled in ("0", "1"):
        out = tmp_path / f"{disabled}.npz"
        environment = {**os.environ, "NUMBA_DISABLE_JIT": disabled}
        result = subprocess.run([sys.executable, script, out], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        logits.append(np.load(out))
    compiled, plain = logits
    assert sorted(plain) == ["f16", "q4_0", "q8_0"]
    for type_name in plain:
        largest = np.abs(plain[type_name]).max()
        assert largest > 0.1
        np.testing.assert_allclose(compiled[type_name], plain[type_name], rtol=0, atol=1e-6 * largest)
