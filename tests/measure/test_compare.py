"""Weights against weights; dequantized by the `gguf` package for the expected figures."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from tiny_model import write_tiny_model

from localcoder.errors import ModelError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.measure.compare import compare_tables, compare_tensors, relative_error


def weights(path) -> dict[str, np.ndarray]:
    return {
        t.name: gguf.quants.dequantize(np.array(t.data), t.tensor_type).astype(np.float64)
        for t in gguf.GGUFReader(path).tensors
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return write_tiny_model(folder / "a.gguf", type_name="f32"), write_tiny_model(folder / "b.gguf", type_name="q4_0")


@pytest.mark.parametrize("slice_values", [1 << 20, 100])
def test_errors_are_those_of_the_dequantized_tensors(pair, monkeypatch, slice_values):
    monkeypatch.setattr("localcoder.measure.compare._SLICE_VALUES", slice_values)
    a, b = map(weights, pair)
    with GGUFFile.open(pair[0]) as file_a, GGUFFile.open(pair[1]) as file_b:
        found = list(compare_tensors(file_a, file_b))
    assert [d.name for d in found] == list(a)
    for d in found:
        assert d.squared_error == pytest.approx(((a[d.name] - b[d.name]) ** 2).sum(), rel=1e-12)
        assert d.squared_norm == pytest.approx((a[d.name] ** 2).sum(), rel=1e-12)
        assert d.is_quantized == (d.type_b == "q4_0")
    quantized = [d for d in found if d.is_quantized]
    expected = sum(((a[d.name] - b[d.name]) ** 2).sum() for d in quantized)
    expected /= sum((a[d.name] ** 2).sum() for d in quantized)
    assert relative_error(quantized) == pytest.approx(expected, rel=1e-12)
    assert 1e-3 < expected < 1e-1


def test_a_file_is_equal_to_itself(pair):
    with GGUFFile.open(pair[1]) as one, GGUFFile.open(pair[1]) as other:
        assert relative_error(list(compare_tensors(one, other))) == 0


def test_what_cannot_be_compared_is_named(pair, tmp_path):
    wide = write_tiny_model(tmp_path / "wide.gguf", n_ff=128, n_layer=3)
    with GGUFFile.open(pair[0]) as a, GGUFFile.open(wide) as b:
        tables = compare_tables(a, b)
        n_compared = sum(1 for _ in compare_tensors(a, b))
    assert not tables.only_in_a
    assert len(tables.only_in_b) == 9
    assert all(name.startswith("blk.2.") for name in tables.only_in_b)
    assert [(m.name, m.shape_a, m.shape_b) for m in tables.shape_mismatch[:2]] == [
        ("blk.0.ffn_gate.weight", (96, 64), (128, 64)),
        ("blk.0.ffn_up.weight", (96, 64), (128, 64)),
    ]
    assert n_compared == 21 - 6


def test_different_models_are_refused(pair, tmp_path):
    other = write_tiny_model(tmp_path / "m.gguf", n_embd=32, n_vocab=300)
    with GGUFFile.open(pair[0]) as a, GGUFFile.open(other) as b, pytest.raises(ModelError, match="different models"):
        compare_tables(a, b)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_give_no_number(pair, tmp_path, value):
    path = write_tiny_model(tmp_path / "m.gguf")
    reader = gguf.GGUFReader(path, "r+")
    reader.tensors[1].data[3] = value
    reader.data.flush()
    with GGUFFile.open(pair[0]) as a, GGUFFile.open(path) as b:
        found = list(compare_tensors(a, b))
    assert [d.relative_error is None for d in found] == [i == 1 for i in range(len(found))]
    assert relative_error(found) is None
    with GGUFFile.open(path) as b:
        assert [d.relative_error for d in compare_tensors(b, b)][1] is None
