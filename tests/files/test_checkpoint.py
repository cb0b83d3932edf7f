"""Checkpoint folders, against safetensors and torch as the writers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from localcoder.errors import CheckpointError
from localcoder.files.checkpoint import Checkpoint
from localcoder.quants import by_name

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def random_tensors(*names: str, dtype: type = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((6, 5)).astype(dtype) for name in names}


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    return tmp_path


@pytest.fixture
def sharded(folder):
    """A checkpoint of two shards with tensors a, b and c."""
    save_file(random_tensors("a", "b"), folder / SHARDS[0])
    save_file(random_tensors("c"), folder / SHARDS[1])
    write_json(
        folder / "model.safetensors.index.json", {"weight_map": {"a": SHARDS[0], "b": SHARDS[0], "c": SHARDS[1]}}
    )
    return folder


def refused(folder: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        Checkpoint.open(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_slices_equal_the_whole(folder, dtype):
    tensors = random_tensors("x", dtype=dtype)
    tensors["v"] = np.arange(7, dtype=dtype)
    save_file(tensors, folder / "model.safetensors")
    with Checkpoint.open(folder) as checkpoint:
        for name, expected in tensors.items():
            tensor = checkpoint.tensors[name]
            n = len(expected)
            assert tensor.shape == expected.shape
            assert tensor.nbytes == expected.nbytes
            whole = tensor.rows(0, n)
            assert whole.dtype == np.float32
            np.testing.assert_array_equal(whole, expected.astype(np.float32))
            np.testing.assert_array_equal(np.concatenate([tensor.rows(i, i + 1) for i in range(n)]), whole)
            assert tensor.rows(n, n).shape == (0, *expected.shape[1:])
            assert tensor.raw_rows(1, n).tobytes() == expected[1:].tobytes()
            assert tensor.raw_rows(1, n).shape == by_name(tensor.dtype).quantize(whole[1:]).shape
            with pytest.raises(IndexError):
                tensor.rows(0, n + 1)


def test_other_dtypes_are_listed_but_not_read(folder):
    save_file({"ids": np.arange(3), "d": np.zeros((2, 2))}, folder / "model.safetensors")
    with Checkpoint.open(folder) as checkpoint:
        assert {t.dtype for t in checkpoint.tensors.values()} == {"i64", "f64"}
        with pytest.raises(CheckpointError, match="tensor d is f64; expected f32, f16, bf16"):
            checkpoint.tensors["d"].rows(0, 1)
        with pytest.raises(CheckpointError, match="tensor ids is i64"):
            checkpoint.tensors["ids"].raw_rows(0, 1)


def test_shards(sharded):
    with Checkpoint.open(sharded) as checkpoint:
        assert set(checkpoint.tensors) == {"a", "b", "c"}
        expected = load_file(sharded / SHARDS[1])["c"]
        np.testing.assert_array_equal(checkpoint.tensors["c"].rows(0, 6), expected)


def test_safetensors_before_bin_and_any_name_alone(folder):
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    save_file(random_tensors("x"), folder / "model.safetensors")
    with Checkpoint.open(folder) as checkpoint:
        assert set(checkpoint.tensors) == {"x"}
    (folder / "pytorch_model.bin").unlink()
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with Checkpoint.open(folder) as checkpoint:
        assert set(checkpoint.tensors) == {"x"}
    save_file(random_tensors("x"), folder / "second.safetensors")
    refused(folder, "has 2 safetensors files and no model.safetensors.index.json")


def test_missing_parts(sharded):
    index = sharded / "model.safetensors.index.json"
    (sharded / SHARDS[1]).rename(sharded / "kept")
    refused(sharded, f"{SHARDS[1]}: this shard is missing")
    (sharded / "kept").rename(sharded / SHARDS[1])
    write_json(index, {"weight_map": {"a": SHARDS[0], "d": SHARDS[1]}})
    refused(sharded, "tensor d is missing; the index says that it is in this file")
    write_json(index, {"weight_map": {"a": SHARDS[1], "c": SHARDS[1]}})
    refused(sharded, "tensor a is missing")
    save_file(random_tensors("a", "c"), sharded / SHARDS[1])
    write_json(index, {"weight_map": {"a": SHARDS[0], "c": SHARDS[1]}})
    refused(sharded, f"tensor a is also in {SHARDS[0]}")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "sub/x", "sub\\x", "..", ".", "", "C:x", "C:\\x", "a\0b"])
def test_index_names_only_neighbours(sharded, name):
    write_json(sharded / "model.safetensors.index.json", {"weight_map": {"a": name}})
    refused(sharded, "expected one beside the index|is missing")


@pytest.mark.parametrize("content", [{}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 1}}])
def test_index_without_a_map(sharded, content):
    write_json(sharded / "model.safetensors.index.json", content)
    refused(sharded, "weight_map")


def test_wrong_folders(tmp_path):
    refused(tmp_path / "none", "no such folder")
    refused(tmp_path / "nul\0", "cannot be listed|no such folder")
    refused(tmp_path, "config.json: no such file")
    write_json(tmp_path / "config.json", {})
    refused(tmp_path, "has no weights")
    refused(tmp_path / "config.json", "is a file; expected a folder")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not valid JSON"),
        (b"[1]", "a JSON list; expected an object"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": ' + b"[" * 200_000, "not valid JSON"),
        (b'{"a": 1}' + b" " * (4 << 20), "is longer than 4194304 bytes"),
    ],
)
def test_config_is_strict(tmp_path, content, match):
    (tmp_path / "config.json").write_bytes(content)
    refused(tmp_path, match)


def test_files_beside_the_weights(folder):
    save_file(random_tensors("x"), folder / "model.safetensors")
    with Checkpoint.open(folder) as checkpoint:
        assert (checkpoint.tokenizer_config, checkpoint.generation_config, checkpoint.chat_template) == ({}, {}, None)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file"):
            _ = checkpoint.tokenizer
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    for found, expected in (("one", "one"), (named, "D"), (named[:1], None)):
        write_json(folder / "tokenizer_config.json", {"chat_template": found})
        assert Checkpoint.open(folder).chat_template == expected
    write_json(folder / "tokenizer_config.json", {"chat_template": 5})
    with pytest.raises(CheckpointError, match="chat_template is not text"):
        _ = Checkpoint.open(folder).chat_template
    (folder / "chat_template.jinja").write_text("{{ ｜ }}", encoding="utf-8")
    assert Checkpoint.open(folder).chat_template == "{{ ｜ }}"


def test_trained_checkpoint(shared):
    torch_tensors = pytest.importorskip("safetensors.torch")
    pytest.importorskip("torch")
    folder = shared / "checkpoints" / "python-9m"
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.config["model_type"] == "llama"
        assert checkpoint.tokenizer["model"]["type"] == "BPE"
        assert "bos_token" in (checkpoint.chat_template or "")
        assert len(checkpoint.tensors) == len({**checkpoint.tensors})
        n_seen = 0
        for path in folder.glob("*.safetensors"):
            for name, expected in torch_tensors.load_file(path).items():
                tensor = checkpoint.tensors[name]
                assert tensor.dtype == "bf16"
                np.testing.assert_array_equal(tensor.rows(0, tensor.shape[0]), expected.float().numpy())
                n_seen += 1
        assert n_seen == len(checkpoint.tensors)
