"""What a file may say about its model, and what it may not."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from tiny_model import write_tiny_model

from localcoder.errors import GGUFError, ModelError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.hyperparameters import read_hyperparameters
from localcoder.model.llama import bind_weights


def edited(path, changes: dict[str, object]) -> GGUFFile:
    """A tiny model whose metadata was changed after reading (None removes a key)."""
    file = GGUFFile.open(write_tiny_model(path))
    for key, value in changes.items():
        if value is None:
            del file.metadata[key]
        else:
            file.metadata[key] = value
    return file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "qwen2"}, "architecture 'qwen2'"),
        ({"general.architecture": None}, "general.architecture is missing"),
        ({"llama.block_count": None}, "llama.block_count is missing"),
        ({"llama.block_count": 0}, "llama.block_count is 0"),
        ({"llama.block_count": "2"}, "is a string, expected an integer"),
        ({"llama.embedding_length": 1 << 40}, "llama.embedding_length is 1099511627776"),
        ({"llama.attention.head_count_kv": 3}, "4 heads cannot share 3 KV heads"),
        ({"llama.attention.key_length": 8}, "keys and values of different length"),
        ({"llama.attention.value_length": 8}, "keys and values of different length"),
        ({"llama.rope.dimension_count": 8}, "RoPE must rotate whole heads"),
        ({"llama.expert_count": 8}, "mixture-of-experts"),
        ({"llama.rope.freq_base": 0.0}, "llama.rope.freq_base is 0.0"),
        ({"llama.rope.freq_base": float("nan")}, "llama.rope.freq_base is nan"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "layer_norm_rms_epsilon is -1"),
        ({"llama.rope.scaling.type": "yarn"}, "RoPE scaling 'yarn'"),
        ({"llama.rope.scaling.factor": float("inf")}, "RoPE scaling factor is inf"),
        ({"llama.rope.scaling.factor": None}, "llama.rope.scaling.factor is missing"),
    ],
)
def test_wrong_metadata_is_named(tmp_path, changes, message):
    with edited(tmp_path / "m.gguf", changes) as file:
        with pytest.raises((ModelError, GGUFError), match=r"m\.gguf") as error:
            read_hyperparameters(file)
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "factor", "note"),
    [
        ({}, 4.0, None),
        ({"llama.rope.scaling.type": None, "llama.rope.scaling.factor": None}, 4.0, "assumed linear by 4"),
        (
            {
                "llama.rope.scaling.type": None,
                "llama.rope.scaling.factor": None,
                "llama.rope.scale_linear": 2.0,
            },
            2.0,
            "old key",
        ),
        (
            {
                "llama.rope.scaling.type": None,
                "llama.rope.scaling.factor": None,
                "llama.rope.freq_base": 10000.0,
            },
            1.0,
            None,
        ),
        ({"llama.rope.scaling.type": "none"}, 1.0, "taken as the file says"),
    ],
)
def test_rope_scaling_and_what_was_assumed(tmp_path, changes, factor, note):
    with edited(tmp_path / "m.gguf", changes) as file:
        hp = read_hyperparameters(file)
    assert hp.rope_factor == factor
    if note is None:
        assert hp.notes == ()
    else:
        assert note in hp.notes[0]


def test_heads_without_a_length_share_the_embedding(tmp_path):
    with edited(tmp_path / "m.gguf", {"llama.attention.key_length": None, "llama.attention.value_length": None}) as f:
        assert read_hyperparameters(f).head_dim == 16


def test_a_tensor_of_another_shape_is_named(tmp_path):
    with edited(tmp_path / "m.gguf", {"llama.feed_forward_length": 64}) as file:
        hp = read_hyperparameters(file)
        with pytest.raises(ModelError, match=r"blk.0.ffn_gate.weight has shape \(96, 64\), expected \(64, 64\)"):
            bind_weights(file, hp)


def test_a_missing_and_a_surplus_tensor_are_named(tmp_path):
    with edited(tmp_path / "m.gguf", {}) as file:
        hp = read_hyperparameters(file)
        file.tensors["blk.0.attn_q.bias"] = file.tensors["output_norm.weight"]
        with pytest.raises(ModelError, match=r"does not have: blk.0.attn_q.bias"):
            bind_weights(file, hp)
        del file.tensors["blk.1.ffn_up.weight"]
        with pytest.raises(ModelError, match=r"blk.1.ffn_up.weight is missing"):
            bind_weights(file, hp)


def test_norms_that_are_not_finite_are_refused(tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf")
    reader = gguf.GGUFReader(path, "r+")
    tensor = next(t for t in reader.tensors if t.name == "blk.0.attn_norm.weight")
    tensor.data[3] = np.nan
    reader.data.flush()
    with GGUFFile.open(path) as file, pytest.raises(ModelError, match="not finite"):
        bind_weights(file, read_hyperparameters(file))
