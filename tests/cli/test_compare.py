"""`localcoder compare`."""

from __future__ import annotations

import json

import pytest
from tiny_model import write_tiny_model


@pytest.fixture
def pair(tmp_path):
    return write_tiny_model(tmp_path / "a.gguf"), write_tiny_model(tmp_path / "b.gguf", type_name="q4_0")


def test_the_command(pair, cli):
    result = cli("compare", *pair, "--json")
    found = json.loads(result.out)
    assert (result.code, result.err) == (0, "")
    assert found["n_quantized"] == 16
    assert 1e-3 < found["relative_error"] < found["relative_error_quantized"] < 1e-1
    assert len(found["tensors"]) == 21
    assert found["tensors"][0]["type_b"] == "q4_0"
    assert 1e-3 < found["tensors"][0]["relative_error"] < 1e-1
    shown = cli("compare", *pair).out
    assert "blk.1.ffn_down.weight" in shown
    assert f"relative error {found['relative_error_quantized']:.4e}" in shown


def test_the_command_names_a_missing_file(pair, cli):
    result = cli("compare", pair[0], "missing.gguf")
    assert result.code == 2
    assert "missing.gguf: no such file" in result.err
