"""config.json of both generations, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from localcoder.convert.config import read_config
from localcoder.errors import CheckpointError

PATH = Path("folder/config.json")
PLAIN = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "vocab_size": 32256,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-6,
}


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({}, (10000.0, None)),
        ({"rope_theta": 100000, "rope_scaling": {"type": "linear", "factor": 4.0}}, (100000.0, 4.0)),
        ({"rope_theta": 100000, "rope_scaling": {"rope_type": "linear", "factor": 4}}, (100000.0, 4.0)),
        ({"rope_theta": 100000, "rope_scaling": None}, (100000.0, None)),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0}}, (100000.0, 4.0)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}, (100000.0, None)),
        ({"rope_parameters": {"type": "linear", "factor": 2.0}, "rope_theta": 5e5}, (5e5, 2.0)),
    ],
)
def test_rope_of_both_generations(rope, expected):
    config = read_config(PLAIN | rope, PATH)
    assert (config.rope_freq_base, config.rope_factor) == expected


@pytest.mark.parametrize("rope", ["old", "new"])
def test_agrees_with_transformers(rope):
    transformers = pytest.importorskip("transformers")
    given = {"rope_theta": 100000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
    if rope == "new":
        given = {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0}}
    theirs = transformers.LlamaConfig(**(PLAIN | given))
    ours = read_config(PLAIN | given, PATH)
    assert ours.rope_freq_base == theirs.rope_parameters["rope_theta"]
    assert ours.rope_factor == theirs.rope_parameters["factor"]
    assert ours.n_head_kv == theirs.num_key_value_heads
    assert ours.head_dim == theirs.head_dim
    assert ours.tied == theirs.tie_word_embeddings


def test_family(shared):
    import json

    dims = {}
    for path in (shared / "deepseek-coder" / "configs").glob("*.json"):
        config = read_config(json.loads(path.read_text()), path)
        dims[path.stem] = (config.n_head, config.n_head_kv, config.head_dim, config.rope_freq_base, config.rope_factor)
    assert dims["33b"] == (56, 8, 128, 100000.0, 4.0)
    assert dims["5.7b-mqa"] == (32, 1, 128, 100000.0, 4.0)
    assert dims["7b-v1.5"] == (32, 32, 128, 10000.0, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "model_type is 'mixtral'"),
        ({"model_type": None}, "model_type is missing"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"num_local_experts": 8}, "num_local_experts is 8"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
        ({"hidden_size": 2049}, "not a multiple of num_attention_heads"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "2048"}, "hidden_size is '2048'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_key_value_heads": 5}, "cannot share 5 KV heads"),
        ({"head_dim": 33}, "head_dim is 33"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_theta": 1}, "rope_theta is 1"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "the type of rope_scaling is 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic'"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "factor is -1"),
        ({"rope_scaling": [4]}, r"rope_scaling is \[4\]"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}}, "'llama3'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
    ],
)
def test_refused(change, message):
    with pytest.raises(CheckpointError, match=message) as error:
        read_config(PLAIN | change, PATH)
    assert str(error.value).startswith(str(PATH))
    assert "\n" not in str(error.value)
