"""The options that `convert` and `quantize` share: targets, padding, fitting into memory."""

from __future__ import annotations

import json

import gguf
import pytest
from checkpoints import save_checkpoint
from tiny_model import write_tiny_model

SHAPE = {"n_embd": 256, "n_ff": 288, "n_vocab": 320, "n_layer": 2}
RUNTIME = 60 << 20


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.delenv("LOCALCODER_BACKEND")  # to share out a budget every type is tried on every matrix
    monkeypatch.setattr("localcoder.measure.plan.measure_runtime", lambda threads=None: RUNTIME)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("source") / "model.gguf", n_ctx=2048, **SHAPE)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("checkpoint") / "source"
    save_checkpoint(folder, n_embd=256, n_ff=288)
    return folder


@pytest.mark.parametrize("size", ["0.7MB", "650KiB", "700000"])
def test_target_size(cli, source, tmp_path, size):
    n_bytes = {"0.7MB": 700_000, "650KiB": 650 << 10, "700000": 700_000}[size]
    result = cli("quantize", source, tmp_path / "out.gguf", "--target-size", size)
    assert result.code == 0, result.err
    assert 0.95 * n_bytes < (tmp_path / "out.gguf").stat().st_size <= n_bytes


def test_target_bpw_and_dry_run(cli, source, tmp_path):
    options = ["--target-bpw", 4.8, "--tensor-type", "attn_q=q8_0", "--pad-ffn"]
    shown = cli("quantize", source, tmp_path / "out.gguf", *options, "--dry-run")
    assert shown.code == 0, shown.err
    assert list(tmp_path.iterdir()) == []
    cli("quantize", source, tmp_path / "out.gguf", *options)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    types = {t.name: t.tensor_type.name.lower() for t in reader.tensors}
    *lines, last = shown.out.splitlines()
    assert {line.split()[0]: line.split()[-2] for line in lines[1:]} == types
    assert types["blk.0.attn_q.weight"] == "q8_0"
    assert last.startswith(f"the file would take {(tmp_path / 'out.gguf').stat().st_size:,} bytes")
    assert float(last.split(", ")[-1].split()[0]) <= 4.8
    assert reader.get_field("llama.feed_forward_length").contents() == 512


def test_target_with_calibration(cli, source, tmp_path):
    (tmp_path / "text.txt").write_text("def f(x):\n    return x\n" * 20)
    options = ["--calibrate", tmp_path / "text.txt", "--calibrate-ctx", 32, "--calibrate-chunks", 4]
    result = cli("quantize", source, tmp_path / "out.gguf", "--target-size", "0.7MB", *options)
    assert result.code == 0, result.err
    size = (tmp_path / "out.gguf").stat().st_size
    assert 0.95 * 700_000 < size <= 700_000
    shown = cli("quantize", source, tmp_path / "other.gguf", "--target-size", "0.7MB", *options, "--dry-run")
    assert shown.out.splitlines()[-1].startswith(f"the file would take {size:,} bytes")
    assert not (tmp_path / "other.gguf").exists()


def test_convert(cli, checkpoint, tmp_path):
    result = cli("convert", checkpoint, tmp_path / "out.gguf", "--target-size", "600KB", "--pad-ffn")
    assert result.code == 0, result.err
    assert 0.9 * 600_000 < (tmp_path / "out.gguf").stat().st_size <= 600_000
    assert cli("convert", checkpoint, tmp_path / "q8_0.gguf").code == 0
    assert gguf.GGUFReader(tmp_path / "q8_0.gguf").get_field("general.file_type").contents() == 7


def test_fit_takes_the_best(cli, source, tmp_path):
    result = cli("quantize", source, tmp_path / "out.gguf", "--fit", "1GiB")
    assert result.code == 0, result.err
    assert result.err.splitlines()[0].startswith("localcoder: note: bf16: with a context of 2048 it takes ")
    assert gguf.GGUFReader(tmp_path / "out.gguf").get_field("general.file_type").contents() == 32


def test_fit_says_what_was_too_much(cli, source, tmp_path):
    """A forecast of `plan` for the next better type is more than the budget."""
    totals = {}
    for name in ("q8_0", "q6_k"):
        shown = cli("plan", source, "--type", name, "--n-ctx", 512, "--json").out
        totals[name] = sum(json.loads(shown)[part] for part in ("weights", "kv_cache", "work", "tokenizer"))
    budget = RUNTIME + totals["q8_0"] - 1
    result = cli("quantize", source, tmp_path / "out.gguf", "--fit", budget, "--n-ctx", 512, "--dry-run")
    assert "q6_k: with a context of 512 it takes " in result.err
    assert "; q8_0 would take " in result.err
    result = cli("quantize", source, tmp_path / "out.gguf", "--fit", budget + 1, "--n-ctx", 512, "--dry-run")
    assert "q8_0: with a context of 512" in result.err


def test_fit_with_padding_of_a_checkpoint(cli, checkpoint, tmp_path):
    result = cli("convert", checkpoint, tmp_path / "out.gguf", "--fit", "1GiB", "--pad-ffn")
    assert result.code == 0, result.err
    assert gguf.GGUFReader(tmp_path / "out.gguf").get_field("llama.feed_forward_length").contents() == 512


def test_nothing_fits(cli, source, tmp_path):
    result = cli("quantize", source, tmp_path / "out.gguf", "--fit", "1MiB")
    assert result.code == 2
    assert "no type fits in 1 MiB: with a context of 2048 even q2_k takes " in result.err
    assert "a shorter context would not help" in result.err
    shorter = cli("quantize", source, tmp_path / "out.gguf", "--fit", RUNTIME + (8 << 20), "--n-ctx", 100_000)
    assert shorter.code == 2
    assert len(shorter.err.splitlines()) == 1
    n_ctx = int(shorter.err.split("--n-ctx ")[1].split()[0])
    fitting = cli("quantize", source, tmp_path / "out.gguf", "--fit", RUNTIME + (8 << 20), "--n-ctx", n_ctx)
    assert fitting.code == 0, fitting.err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "give one of: a type, --target-size, --target-bpw, --fit"),
        (["q8_0", "--target-size", "1GB"], "give one of"),
        (["--fit", "1GiB", "--target-bpw", "5"], "give one of"),
        (["--target-size", "small"], "'small' is not a size"),
        (["--target-size", ""], "'' is not a size"),
        (["--target-size", "1KB"], "the smallest possible file takes "),
        (["--target-bpw", "1.5"], "the smallest possible file takes "),
        (["--target-bpw", "0"], "--target-bpw is 0; expected more than 0 and at most 32"),
        (["--target-bpw", "nan"], "--target-bpw is nan"),
        (["--target-bpw", "x"], "--target-bpw"),
        (["--fit", "some"], "'some' is not a size"),
        (["--fit", "1GiB", "--n-ctx", "0"], "n_ctx is 0"),
        (["q8_0", "--n-ctx", "512"], "it needs --fit"),
        (["--target-bpw", "5", "--tensor-type", "attn_x=q4_0"], "no matrix of this model has 'attn_x' in its name"),
        (["--fit", "1GiB", "--tensor-type", "attn_x=q4_0"], "no matrix of this model has 'attn_x' in its name"),
    ],
)
def test_mistakes(cli, source, tmp_path, options, problem):
    result = cli("quantize", source, tmp_path / "out.gguf", *options)
    assert result.code == 2
    assert problem in result.err
    assert len(result.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_pad(cli, tmp_path):
    source = write_tiny_model(tmp_path / "in.gguf", n_ff=256)
    for options in (["q4_0"], ["--fit", "1GiB"], ["--target-bpw", "6"]):
        result = cli("quantize", source, tmp_path / "out.gguf", "--pad-ffn", *options)
        assert result.code == 2
        assert "there is nothing to pad: the feed-forward width 256" in result.err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]
