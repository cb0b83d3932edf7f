"""Stage `export`: the trained weights as a checkpoint in Hugging Face layout, and that as a GGUF file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from localcoder.errors import FileError, OptionError
from localcoder.files.atomic import write_file
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.tensor_names import checkpoint_name

from .settings import ModelSettings
from .vocabulary import BOS, EOS, PAD, open_tokenizer
from .work import json_bytes, require

SHARD_BYTES = 14_000_000  # so that a checkpoint travels in pieces
MOST_BYTES = 20_000_000  # of the file in the package
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write_checkpoint(
    weights: dict[str, Tensor], settings: ModelSettings, tokenizer: Path, folder: Path, dtype: torch.dtype
) -> None:
    """Writes config, weights and tokenizer. A checkpoint that was there before is replaced.

    Raises:
        FileError: there is no tokenizer.
        OptionError: the settings say another vocabulary.
        OutputError: the folder cannot be written.
    """
    opened = open_tokenizer(tokenizer)
    if opened.n_vocab != settings.n_vocab:
        raise OptionError(f"the tokenizer has {opened.n_vocab} tokens, the model {settings.n_vocab}")
    ids = {name: opened.id_of(token) for name, token in (("bos", BOS), ("eos", EOS), ("pad", PAD))}
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    named = {f"{name}_token_id": i for name, i in ids.items()}
    write_file(folder / "config.json", json_bytes(make_config(settings) | named | {"dtype": str(dtype)[6:]}))
    write_file(folder / "generation_config.json", json_bytes(named))
    for name in _TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, folder / name)
    shards = _shards({name: weight.to(dtype).contiguous() for name, weight in weights.items()})
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards):
        write_file(folder / name, save(shard, {"format": "pt"}))
    places = {weight: name for name, shard in zip(names, shards) for weight in shard}
    total = sum(weight.numel() * weight.element_size() for shard in shards for weight in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_file(folder / "model.safetensors.index.json", json_bytes(index))


def make_config(settings: ModelSettings) -> dict[str, Any]:
    """config.json as the family's checkpoints have it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": settings.n_embd,
        "intermediate_size": settings.n_ff,
        "max_position_embeddings": settings.n_ctx_train,
        "num_attention_heads": settings.n_head,
        "num_key_value_heads": settings.n_head_kv,
        "num_hidden_layers": settings.n_layer,
        "head_dim": settings.head_dim,
        "rms_norm_eps": settings.rms_norm_eps,
        "rope_theta": settings.rope_freq_base,
        "rope_scaling": {"type": "linear", "factor": settings.rope_factor},
        "tie_word_embeddings": settings.tied,
        "vocab_size": settings.n_vocab,
    }


def _shards(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, weight in weights.items():
        n_bytes = weight.numel() * weight.element_size()
        if size + n_bytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = weight
        size += n_bytes
    return shards


def read_weights(source: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint in safetensors files, or of a GGUF file: float32 by the checkpoint's names.

    Raises:
        FileError: there are none.
    """
    if source.suffix == ".gguf":
        return _read_gguf(source)
    paths = sorted(require(source, "export").glob("*.safetensors"))
    if not paths:
        raise FileError(source, "holds no safetensors files")
    return {name: weight.float() for path in paths for name, weight in load_file(path).items()}


def _read_gguf(path: Path) -> dict[str, Tensor]:
    with GGUFFile.open(path) as file:
        heads = {
            "attn_q": file.get_int("llama.attention.head_count", 1),
            "attn_k": file.get_int("llama.attention.head_count_kv", 1),
        }
        weights = {}
        for name, tensor in file.tensors.items():
            rows = torch.from_numpy(tensor.dequantize())
            n_head = heads.get(name.split(".")[-2])
            # GGUF files have the two rows that are rotated together side by side, checkpoints half a head apart.
            weights[checkpoint_name(name)] = (
                rows if n_head is None else rows.unflatten(0, (n_head, -1, 2)).transpose(1, 2).flatten(0, 2)
            ).contiguous()
        return weights
