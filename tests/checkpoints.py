"""Random checkpoints in Hugging Face layout, made by transformers and torch, for tests of the converter."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@cache
def load_tool(name: str) -> ModuleType:
    """tools/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def save_checkpoint(
    folder: Path,
    *,
    n_embd: int = 64,
    n_layer: int = 2,
    n_ff: int = 96,
    n_head: int = 4,
    n_head_kv: int = 2,
    head_dim: int | None = None,
    n_vocab: int = 320,
    n_tokens: int = 300,
    n_ctx: int = 512,
    rope_theta: float = 100000.0,
    rope_factor: float | None = 4.0,
    tied: bool = False,
    old_config: bool = False,
    dtype: str = "float32",
    file_format: str = "safetensors",
    shard_bytes: int | None = None,
    seed: int = 0,
) -> Any:
    """Saves a model of random weights with a small tokenizer of its own; returns the transformers model (float32).

    Args:
        dtype: of the saved weights; the returned model has the same values.
        old_config: write `rope_scaling` and `rope_theta` instead of `rope_parameters`.
        file_format: `safetensors` (by transformers) or `bin` (by torch.save).
        shard_bytes: cut the weights into files of about this size.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": rope_theta}
    if rope_factor is not None:
        rope |= {"rope_type": "linear", "factor": rope_factor}
    config = LlamaConfig(
        hidden_size=n_embd,
        num_hidden_layers=n_layer,
        intermediate_size=n_ff,
        num_attention_heads=n_head,
        num_key_value_heads=n_head_kv,
        head_dim=head_dim or n_embd // n_head,
        vocab_size=n_vocab,
        max_position_embeddings=n_ctx,
        rms_norm_eps=1e-6,
        rope_parameters=rope,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values / parameter.shape[-1] ** 0.5 if parameter.dim() == 2 else 1 + 0.1 * values)
    model = model.to(getattr(torch, dtype))
    folder.mkdir(parents=True, exist_ok=True)
    if file_format == "bin":
        model.config.save_pretrained(folder)
        _save_torch(folder, model.state_dict(), shard_bytes)
    else:
        model.save_pretrained(folder, max_shard_size=shard_bytes or "5GB")
    if old_config:
        path = folder / "config.json"
        written = json.loads(path.read_text())
        del written["rope_parameters"]
        written["rope_theta"] = rope_theta
        written["rope_scaling"] = None if rope_factor is None else {"type": "linear", "factor": rope_factor}
        path.write_text(json.dumps(written))
    load_tool("make_checkpoint").write_tokenizer(folder, n_tokens)
    return model.float().eval()


def _save_torch(folder: Path, tensors: dict[str, Any], shard_bytes: int | None) -> None:
    import torch

    if shard_bytes is None:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    shards: list[dict[str, Any]] = [{}]
    for name, tensor in tensors.items():
        if sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > shard_bytes and shards[-1]:
            shards.append({})
        shards[-1][name] = tensor.clone()
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file_name = f"pytorch_model-{i:05}-of-{len(shards):05}.bin"
        torch.save(shard, folder / file_name)
        weight_map |= dict.fromkeys(shard, file_name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
