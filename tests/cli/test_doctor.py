"""`localcoder doctor`."""

from __future__ import annotations

import json

import gguf
import pytest
from tiny_model import write_tiny_model


@pytest.fixture
def bad(tmp_path):
    """Without a pre-tokenizer: its key is spoiled where it stands."""
    path = write_tiny_model(tmp_path / "bad.gguf")
    path.write_bytes(path.read_bytes().replace(b"tokenizer.ggml.pre", b"tokenizer.ggml.prf", 1))
    return path


def test_a_healthy_file(cli, model):
    result = cli("doctor", model)
    assert (result.code, result.out, result.err) == (0, f"{model}: healthy\n", "")
    found = json.loads(cli("doctor", model, "--json").out)
    assert found["healthy"] is True
    assert found["findings"] == found["remarks"] == []


def test_findings_and_repair(cli, bad, tmp_path):
    result = cli("doctor", bad, "--json")
    found = json.loads(result.out)
    assert result.code == 1
    assert (found["healthy"], found["repaired"]) == (False, None)
    (finding,) = found["findings"]
    assert finding["rule"] == "pre-tokenizer"
    assert finding["repairable"] is True
    assert finding["repair"] == "tokenizer.ggml.pre = deepseek-coder"
    shown = cli("doctor", bad)
    assert shown.code == 1
    assert "1 finding\n" in shown.out
    assert finding["problem"] in shown.out
    fixed = tmp_path / "fixed.gguf"
    result = cli("doctor", bad, "--repair", fixed, "--json")
    assert (result.code, json.loads(result.out)["left"]) == (0, [])
    assert cli("doctor", fixed).code == 0
    assert f"wrote {fixed}" in cli("doctor", bad, "--repair", fixed).out


def test_what_cannot_be_repaired_is_left(cli, bad, tmp_path):
    reader = gguf.GGUFReader(bad, "r+")
    next(t for t in reader.tensors if t.name == "output_norm.weight").data[3] = float("nan")
    reader.data.flush()
    result = cli("doctor", bad, "--repair", tmp_path / "fixed.gguf", "--json")
    found = json.loads(result.out)
    assert result.code == 1
    assert [fault["rule"] for fault in found["findings"]] == ["pre-tokenizer", "not-finite"]
    assert [fault["rule"] for fault in found["left"]] == ["not-finite"]
    assert found["left"][0]["repairable"] is False


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.gguf"], "no such file"),
        (["--repair", "BAD", "BAD"], "is the file that is being read"),
        (["--repair", "missing/folder.gguf", "BAD"], "its folder does not exist"),
        (["--permute-qk", "BAD"], "is for --repair"),
    ],
)
def test_mistakes(cli, bad, args, message):
    result = cli("doctor", *[bad if arg == "BAD" else arg for arg in args])
    assert result.code == 2
    assert message in result.err


def test_a_truncated_file_is_unreadable(cli, bad):
    bad.write_bytes(bad.read_bytes()[:1000])
    assert cli("doctor", bad).code == 2
