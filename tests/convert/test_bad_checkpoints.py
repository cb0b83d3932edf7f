"""Checkpoints that cannot be converted, and outputs that cannot be written: one line that says why, and no file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import save_checkpoint
from click.testing import CliRunner

from localcoder.cli.main import main

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LOCALCODER_BACKEND", "numpy")  # the quickest to start
    save_checkpoint(tmp_path / "source", n_layer=1)
    return tmp_path / "source"


def change(source: Path, edit) -> None:
    """Applies `edit` to the dict of tensors."""
    from safetensors.torch import load_file, save_file

    path = source / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


def refused(source: Path, out: Path, *options: str) -> str:
    """The one line on stderr of a conversion that must fail with code 2 and leave nothing new beside `out`."""
    before = set(out.parent.iterdir()) if out.parent.is_dir() else None
    result = CliRunner().invoke(main, ["convert", str(source), str(out), *options])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("localcoder: note:")]
    assert len(lines) == 1
    if before is not None:
        assert set(out.parent.iterdir()) == before
    return lines[0]


Q = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"


def put(name: str, place, value: float):
    def edit(tensors) -> None:
        tensors[name][place] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "type_name", "messages"),
    [
        (lambda t: t.pop(Q), "f32", [f"tensor {Q} is missing"]),
        (lambda t: t.pop("lm_head.weight"), "f32", ["tensor lm_head.weight is missing"]),
        (lambda t: t.update({Q: torch.zeros(60, 64)}), "f32", [Q, "(60, 64)", "(64, 64)"]),
        (lambda t: t.update({Q: torch.zeros(64 * 64)}), "f32", [Q, "(4096,)", "(64, 64)"]),
        (lambda t: t.update({Q: torch.zeros(64, 64, dtype=torch.int64)}), "f32", [Q, "i64"]),
        (lambda t: t.update(surplus=torch.zeros(3)), "f32", ["surplus"]),
        (lambda t: t.update({Q.replace("weight", "bias"): torch.zeros(64)}), "f32", ["q_proj.bias"]),
        (put(Q, (37, 5), float("nan")), "f32", [Q, "row 37, column 5", "nan"]),
        (put(Q, (63, 63), float("-inf")), "q8_0", [Q, "row 63, column 63", "-inf"]),
        (put(NORM, 17, float("nan")), "f32", [NORM, "index 17", "nan"]),
        (put(Q, (1, 2), 70000.0), "f16", [Q, "row 1, column 2", "70000", "too large for f16"]),
        (put(Q, (1, 2), -70000.0), "q4_0", [Q, "row 1, column 2", "-70000", "too large for q4_0"]),
        (put(Q, (1, 2), 3.4e38), "bf16", [Q, "too large for bf16"]),
    ],
)
def test_weights(source, tmp_path, edit, type_name, messages):
    change(source, edit)
    line = refused(source, tmp_path / "out.gguf", "--type", type_name)
    for message in messages:
        assert message in line


def test_large_values_fit_where_the_type_has_the_range(source, tmp_path):
    change(source, put(Q, (1, 2), 70000.0))
    result = CliRunner().invoke(main, ["convert", str(source), str(tmp_path / "out.gguf"), "--type", "bf16"])
    assert result.exit_code == 0, result.output


def edit_config(source: Path, **changes: object) -> None:
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_vocabulary_smaller_than_the_tokenizer(source, tmp_path):
    edit_config(source, vocab_size=280)
    change(
        source,
        lambda t: t.update({name: t[name][:280].clone() for name in ("model.embed_tokens.weight", "lm_head.weight")}),
    )
    line = refused(source, tmp_path / "out.gguf")
    assert "280" in line
    assert "300" in line


def test_vocab_size_that_the_embedding_does_not_have(source, tmp_path):
    edit_config(source, vocab_size=32256)
    assert "(320, 64); config.json says (32256, 64)" in refused(source, tmp_path / "out.gguf")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_file(source, tmp_path, name):
    (source / name).unlink()
    line = refused(source, tmp_path / "out.gguf")
    assert name in line


def test_missing_shard(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALCODER_BACKEND", "numpy")
    save_checkpoint(tmp_path / "source", shard_bytes=60_000)
    shard = sorted((tmp_path / "source").glob("*-of-*"))[1]
    shard.unlink()
    assert shard.name in refused(tmp_path / "source", tmp_path / "out.gguf")


class Hostile:
    """Unpickled without care, it writes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return Path.touch, (self._path,)


def test_malicious_pickle(source, tmp_path):
    (source / "model.safetensors").unlink()
    torch.save({Q: Hostile(tmp_path / "executed")}, source / "pytorch_model.bin")
    assert "pytorch_model.bin" in refused(source, tmp_path / "out.gguf")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_truncated_file(source, tmp_path, name):
    whole = (source / name).read_bytes()
    (source / name).write_bytes(whole[: len(whole) // 2])
    assert name in refused(source, tmp_path / "out.gguf")


def test_missing_source(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALCODER_BACKEND", "numpy")
    assert "no such folder" in refused(tmp_path / "nowhere", tmp_path / "out.gguf")


def test_unknown_type(source, tmp_path):
    assert "q4_0" in CliRunner().invoke(main, ["convert", str(source), "x.gguf", "--type", "q9"]).stderr


# -- outputs


def test_output_is_an_input(source):
    before = (source / "model.safetensors").read_bytes()
    assert "is the file that is being read" in refused(source, source / "model.safetensors")
    assert (source / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_output_is_another_file_of_the_checkpoint(source, name):
    before = (source / name).read_bytes()
    assert "is the file that is being read" in refused(source, source / name)
    assert (source / name).read_bytes() == before


def test_output_is_a_folder(source, tmp_path):
    (tmp_path / "out.gguf").mkdir()
    assert "is a folder" in refused(source, tmp_path / "out.gguf")


def test_output_folder_is_missing(source, tmp_path):
    assert "folder does not exist" in refused(source, tmp_path / "nowhere" / "out.gguf")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_output_folder_is_read_only(source, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    assert "locked" in refused(source, folder / "out.gguf")


@pytest.mark.skipif(sys.platform == "win32", reason="needs setrlimit")
def test_disk_full(source, tmp_path):
    """A limit on the size of files fails in the middle of the tensors, as a disk that fills up does."""
    import resource

    folder = tmp_path / "out"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "localcoder", "convert", str(source), str(folder / "out.gguf"), "--type", "f32"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000)),
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be written" in done.stderr
    assert list(folder.iterdir()) == []


def test_output_named_like_a_part(source, tmp_path):
    """A reader would look for the other parts."""
    assert "00001-of-00003" in refused(source, tmp_path / "out-00001-of-00003.gguf")


def test_existing_output_survives_a_failure_and_is_replaced_by_success(source, tmp_path):
    out = tmp_path / "out.gguf"
    out.write_bytes(b"before")
    change(source, put(Q, (0, 0), float("nan")))
    refused(source, out)
    assert out.read_bytes() == b"before"
    change(source, put(Q, (0, 0), 0.0))
    assert CliRunner().invoke(main, ["convert", str(source), str(out)]).exit_code == 0
    assert out.read_bytes()[:4] == b"GGUF"
