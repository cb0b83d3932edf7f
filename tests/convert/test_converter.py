"""Whole conversions of random checkpoints, read back by the `gguf` package and run by llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from checkpoints import save_checkpoint

from localcoder.backends.select import open_backend, usable_backends
from localcoder.convert.choice import Choice
from localcoder.convert.converter import convert
from localcoder.convert.recipes import recipe_by_name
from localcoder.quants import by_name
from localcoder.quants.search import quantize_best, requantize

SHAPES = {
    "gqa": {},
    "mqa": {"n_head_kv": 1},
    "mha": {"n_head_kv": 4, "old_config": True},
    "tied": {"tied": True},
    "tied, both matrices saved": {"tied": True, "file_format": "bin"},
    "unscaled": {"rope_factor": None},
    "unscaled, old config": {"rope_factor": None, "old_config": True},
    "groups of 7": {"n_embd": 112, "n_head": 14, "n_head_kv": 2, "n_ff": 192},
    "wide heads": {"head_dim": 32},
    "odd widths": {"n_embd": 72, "n_ff": 100, "head_dim": 18},
    "sharded": {"shard_bytes": 60_000, "dtype": "bfloat16"},
    "torch": {"file_format": "bin", "dtype": "bfloat16"},
    "torch, sharded": {"file_format": "bin", "shard_bytes": 60_000, "dtype": "float16"},
    "full vocabulary": {"n_vocab": 300},
}


def run(source: Path, target: Path, type_name: str = "f32", **options) -> None:
    convert(source, target, Choice(recipe_by_name(type_name)), requantize=requantize, **options)


def expected_tensors(model) -> dict[str, np.ndarray]:
    """The checkpoint's tensors under GGUF names, with Q and K rows in interleaved order, computed row by row."""
    config = model.config
    plain = {
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    result = {
        "token_embd.weight": tensors["model.embed_tokens.weight"],
        "output_norm.weight": tensors["model.norm.weight"],
    }
    if not config.tie_word_embeddings:
        result["output.weight"] = tensors["lm_head.weight"]
    half = config.head_dim // 2
    for i in range(config.num_hidden_layers):
        for theirs, ours in plain.items():
            result[f"blk.{i}.{ours}.weight"] = tensors[f"model.layers.{i}.{theirs}.weight"]
        for letter, n_head in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            matrix = tensors[f"model.layers.{i}.self_attn.{letter}_proj.weight"]
            rows = []
            for head in range(n_head):
                for pair in range(half):
                    first = head * config.head_dim + pair
                    rows += [matrix[first], matrix[first + half]]
            result[f"blk.{i}.attn_{letter}.weight"] = np.stack(rows)
    return result


def read_values(path: Path) -> dict[str, np.ndarray]:
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


def read_metadata(path: Path) -> dict[str, object]:
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_are_those_of_the_checkpoint(tmp_path, shape):
    pytest.importorskip("transformers")
    options = SHAPES[shape]
    model = save_checkpoint(tmp_path / "source", **options)
    type_name = {"bfloat16": "bf16", "float16": "f16"}.get(options.get("dtype"), "f32")
    run(tmp_path / "source", tmp_path / "out.gguf", type_name)
    found, expected = read_values(tmp_path / "out.gguf"), expected_tensors(model)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name].reshape(values.shape), values, err_msg=name)


def test_metadata_is_what_llama_cpp_writes(tmp_path):
    """The keys and value types that its converter writes for this architecture, from a config that has head_dim."""
    pytest.importorskip("transformers")
    save_checkpoint(tmp_path / "tiny-coder", n_head_kv=1)
    run(tmp_path / "tiny-coder", tmp_path / "out.gguf", "f16")
    kinds = gguf.GGUFValueType
    expected = {
        "general.architecture": ("llama", kinds.STRING),
        "general.type": ("model", kinds.STRING),
        "general.name": ("tiny-coder", kinds.STRING),
        "general.size_label": ("99K", kinds.STRING),
        "general.file_type": (1, kinds.UINT32),
        "general.quantization_version": (2, kinds.UINT32),
        "llama.block_count": (2, kinds.UINT32),
        "llama.context_length": (512, kinds.UINT32),
        "llama.embedding_length": (64, kinds.UINT32),
        "llama.feed_forward_length": (96, kinds.UINT32),
        "llama.attention.head_count": (4, kinds.UINT32),
        "llama.attention.head_count_kv": (1, kinds.UINT32),
        "llama.attention.key_length": (16, kinds.UINT32),
        "llama.attention.value_length": (16, kinds.UINT32),
        "llama.attention.layer_norm_rms_epsilon": (float(np.float32(1e-6)), kinds.FLOAT32),
        "llama.rope.freq_base": (100000.0, kinds.FLOAT32),
        "llama.rope.dimension_count": (16, kinds.UINT32),
        "llama.rope.scaling.type": ("linear", kinds.STRING),
        "llama.rope.scaling.factor": (4.0, kinds.FLOAT32),
        "llama.vocab_size": (320, kinds.UINT32),
    }
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    found = {key: (f.contents(), f.types[0]) for key, f in fields.items() if not key.startswith(("tokenizer", "GGUF"))}
    assert found == expected
    tokenizer = {key.removeprefix("tokenizer.ggml.") for key in fields if key.startswith("tokenizer.")}
    assert tokenizer >= {"model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id"}
    assert tokenizer >= {"eot_token_id", "fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id", "add_bos_token"}
    assert len(fields["tokenizer.ggml.tokens"].contents()) == 320


def test_unscaled_files_say_so(tmp_path):
    """A file of this family that says nothing is taken for one that lacks the key for factor 4."""
    pytest.importorskip("transformers")
    save_checkpoint(tmp_path / "source", rope_factor=None)
    run(tmp_path / "source", tmp_path / "out.gguf", name="named")
    metadata = read_metadata(tmp_path / "out.gguf")
    assert metadata["llama.rope.scaling.type"] == "none"
    assert "llama.rope.scaling.factor" not in metadata
    assert metadata["general.name"] == "named"


@pytest.mark.parametrize(
    ("type_name", "file_type", "down", "output"),
    [("f32", 0, "F32", "F32"), ("bf16", 32, "BF16", "BF16"), ("q8_0", 7, "F16", "Q8_0"), ("q4_0", 2, "F16", "Q8_0")],
)
def test_types(tmp_path, type_name, file_type, down, output):
    """Vectors stay f32, rows of 100 values do not fit in blocks of 32, and the bytes are those of the search."""
    pytest.importorskip("transformers")
    model = save_checkpoint(tmp_path / "source", n_ff=100)
    run(tmp_path / "source", tmp_path / "out.gguf", type_name)
    assert (
        gguf.LlamaFileType[{0: "ALL_F32", 32: "MOSTLY_BF16", 7: "MOSTLY_Q8_0", 2: "MOSTLY_Q4_0"}[file_type]]
        == (read_metadata(tmp_path / "out.gguf")["general.file_type"])
    )
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    for name, values in expected_tensors(model).items():
        kind = tensors[name].tensor_type
        if values.ndim == 1:
            assert kind.name == "F32"
        elif name.endswith("ffn_down.weight"):
            assert kind.name == down
        else:
            assert kind.name == (output if name == "output.weight" else type_name.upper())
        rounded = quantize_best(by_name(kind.name.lower()), values.reshape(-1, values.shape[-1]))
        assert tensors[name].data.tobytes() == rounded.tobytes(), name


def test_tied_embedding_has_the_type_of_an_output_matrix(tmp_path):
    pytest.importorskip("transformers")
    save_checkpoint(tmp_path / "source", tied=True)
    run(tmp_path / "source", tmp_path / "out.gguf", "q4_0")
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"
    assert "output.weight" not in tensors


@pytest.mark.parametrize("shape", ["gqa", "mqa", "tied", "groups of 7", "unscaled", "wide heads"])
def test_llama_cpp_computes_the_same_logits(tmp_path, shape):
    torch = pytest.importorskip("torch")
    llama_cpp = pytest.importorskip("llama_cpp")
    model = save_checkpoint(tmp_path / "source", **SHAPES[shape])
    run(tmp_path / "source", tmp_path / "out.gguf", "f32")
    ids = np.random.default_rng(1).integers(0, 256, 48)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    theirs = llama_cpp.Llama(str(tmp_path / "out.gguf"), n_ctx=64, logits_all=True, verbose=False, n_threads=1)
    try:
        theirs.eval(ids.tolist())
        found = np.array(theirs.scores[: len(ids)])
    finally:
        theirs.close()
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < 2e-3, error


def test_same_bytes_again(tmp_path):
    pytest.importorskip("transformers")
    save_checkpoint(tmp_path / "source")
    files = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for file in files:
        run(tmp_path / "source", file, "q4_0")
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("backend", usable_backends())
@pytest.mark.parametrize("type_name", ["bf16", "q8_0", "q4_0"])
def test_same_bytes_on_every_backend(tmp_path, monkeypatch, backend, type_name):
    pytest.importorskip("transformers")
    monkeypatch.setenv("LOCALCODER_BACKEND", backend)
    save_checkpoint(tmp_path / "source")
    run(tmp_path / "source", tmp_path / "plain.gguf", type_name)
    opened = open_backend(threads=2)
    convert(tmp_path / "source", tmp_path / "out.gguf", Choice(recipe_by_name(type_name)), requantize=opened.requantize)
    opened.close()
    assert (tmp_path / "plain.gguf").read_bytes() == (tmp_path / "out.gguf").read_bytes()


def test_slices_do_not_show(tmp_path, monkeypatch):
    """Slices of few rows, cut at heads, give the same file."""
    pytest.importorskip("transformers")
    save_checkpoint(tmp_path / "source")
    run(tmp_path / "source", tmp_path / "whole.gguf", "q4_0")
    monkeypatch.setattr("localcoder.convert.stream.SLICE_VALUES", 64 * 20)
    steps = []
    run(tmp_path / "source", tmp_path / "sliced.gguf", "q4_0", progress=lambda done, total: steps.append((done, total)))
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "sliced.gguf").read_bytes()
    assert len(steps) > 50
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert steps[-1][0] == steps[-1][1]


def test_interrupt_leaves_nothing(tmp_path):
    pytest.importorskip("transformers")
    save_checkpoint(tmp_path / "source")
    (tmp_path / "out").mkdir()

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "source", tmp_path / "out" / "out.gguf", progress=interrupt)
    assert list((tmp_path / "out").iterdir()) == []


def test_old_buffers_are_ignored(tmp_path):
    """Checkpoints of old versions of transformers hold tables of angles."""
    torch = pytest.importorskip("torch")
    save_checkpoint(tmp_path / "source", file_format="bin")
    path = tmp_path / "source" / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    torch.save(tensors, path)
    run(tmp_path / "source", tmp_path / "out.gguf")
    assert "inv_freq" not in str(list(read_values(tmp_path / "out.gguf")))


def test_trained_checkpoint(tmp_path, shared):
    """Every tensor, against the safetensors library's reading of it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = shared / "checkpoints" / "python-9m"
    run(source, tmp_path / "out.gguf", "bf16")
    model = transformers.LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
    found = read_values(tmp_path / "out.gguf")
    for name, values in expected_tensors(model).items():
        np.testing.assert_array_equal(found[name].reshape(values.shape), values, err_msg=name)
    config = json.loads((source / "config.json").read_text())
    assert len(read_metadata(tmp_path / "out.gguf")["tokenizer.ggml.tokens"]) == config["vocab_size"]
