"""`localcoder quantize`: its table, its messages, its file."""

from __future__ import annotations

import gguf
import pytest


def test_quantize(cli, model, tmp_path):
    result = cli("quantize", model, tmp_path / "out.gguf", "Q8_0", "--tensor-type", "attn_v=q4_0", "--threads", 1)
    assert result.code == 0, result.err
    assert result.err.startswith(f"wrote {tmp_path / 'out.gguf'}: ")
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert (types["blk.1.attn_v.weight"], types["blk.1.attn_q.weight"]) == ("Q4_0", "Q8_0")


def test_dry_run(cli, model, tmp_path):
    result = cli("quantize", model, tmp_path / "out.gguf", "q4_k_m", "--dry-run")
    assert list(tmp_path.iterdir()) == []
    lines = result.out.splitlines()
    assert lines[0].split() == ["tensor", "shape", "type", "bytes"]
    assert lines[1].split() == ["token_embd.weight", "320", "x", "64", "q5_0", "14,080"]
    cli("quantize", model, tmp_path / "out.gguf", "q4_k_m")
    assert lines[-1].startswith(f"the file would take {(tmp_path / 'out.gguf').stat().st_size:,} bytes")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["q9"], "unknown type 'q9'; known: f32, f16"),
        (["q8_0", "--tensor-type", "attn_x=q4_0"], "no matrix of this model has 'attn_x' in its name"),
        (["q8_0", "--tensor-type", "attn_q=x"], "unknown type 'x' for a tensor"),
        (["q8_0", "--imatrix", "nowhere.gguf"], "nowhere.gguf: cannot be read"),
    ],
)
def test_mistakes(cli, model, tmp_path, options, problem):
    result = cli("quantize", model, tmp_path / "out.gguf", *options)
    assert result.code == 2
    assert problem in result.err
    assert len(result.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_same_path_and_missing_input(cli, model, tmp_path):
    assert "is being read" in cli("quantize", model, model, "q8_0").err
    assert "nothing.gguf" in cli("quantize", tmp_path / "nothing.gguf", tmp_path / "out.gguf", "q8_0").err


def test_calibrate(cli, model, tmp_path):
    (tmp_path / "text.txt").write_text("def f(x):\n    return x\n" * 20)
    options = ["--calibrate", tmp_path / "text.txt", "--calibrate-ctx", 32, "--calibrate-chunks", 2]
    result = cli("quantize", model, tmp_path / "out.gguf", "q4_0", *options)
    assert result.code == 0, result.err
    cli("quantize", model, tmp_path / "plain.gguf", "q4_0")
    assert (tmp_path / "out.gguf").stat().st_size == (tmp_path / "plain.gguf").stat().st_size
    assert (tmp_path / "out.gguf").read_bytes() != (tmp_path / "plain.gguf").read_bytes()
    (tmp_path / "text.txt").write_text("short")
    result = cli("quantize", model, tmp_path / "short.gguf", "q4_0", *options)
    assert result.code == 2
    assert "one chunk takes 32" in result.err
    assert not (tmp_path / "short.gguf").exists()
