"""What a checkpoint's config.json says about its model, read strictly.

Two generations are in use: `rope_scaling` beside `rope_theta`, and `rope_parameters` that holds both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localcoder.errors import CheckpointError

if TYPE_CHECKING:
    import gguf

MAX_LAYERS = 4096
MAX_WIDTH = 1 << 20


@dataclass(frozen=True)
class ModelConfig:
    """Model dimensions; names as in GGUF.

    Attributes:
        rope_factor: linear RoPE scaling; positions are divided by it. None: not scaled.
        tied: the output matrix is the embedding.
    """

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_ctx_train: int
    rms_norm_eps: float
    rope_freq_base: float
    rope_factor: float | None
    tied: bool

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        """Adds the `llama.*` keys, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""
        from gguf import RopeScalingType

        writer.add_vocab_size(self.n_vocab)
        writer.add_context_length(self.n_ctx_train)
        writer.add_embedding_length(self.n_embd)
        writer.add_block_count(self.n_layer)
        writer.add_feed_forward_length(self.n_ff)
        writer.add_head_count(self.n_head)
        writer.add_head_count_kv(self.n_head_kv)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_layer_norm_rms_eps(self.rms_norm_eps)
        writer.add_rope_dimension_count(self.head_dim)
        writer.add_rope_freq_base(self.rope_freq_base)
        if self.rope_factor is None:
            # Said, because files of this family that say nothing are taken for scaled ones that lack the key.
            writer.add_rope_scaling_type(RopeScalingType.NONE)
        else:
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(self.rope_factor)


def read_config(config: Mapping[str, Any], path: Path) -> ModelConfig:
    """The dimensions in `config`; CheckpointError names `path`, the key, what was found and what was expected."""
    reader = _Reader(config, path)
    reader.refuse_other_architectures()
    n_embd, n_head = reader.count("hidden_size"), reader.count("num_attention_heads")
    n_head_kv = reader.count("num_key_value_heads", n_head)
    if n_head % n_head_kv:
        raise CheckpointError(path, f"{n_head} heads cannot share {n_head_kv} KV heads evenly")
    if config.get("head_dim") is None and n_embd % n_head:
        raise CheckpointError(path, f"hidden_size {n_embd} is not a multiple of num_attention_heads {n_head}")
    head_dim = reader.count("head_dim", n_embd // n_head)
    if head_dim % 2:
        raise CheckpointError(path, f"head_dim is {head_dim}; RoPE rotates pairs, so it must be even")
    freq_base, factor = reader.rope()
    return ModelConfig(
        n_layer=reader.count("num_hidden_layers", most=MAX_LAYERS),
        n_embd=n_embd,
        n_ff=reader.count("intermediate_size"),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        n_vocab=reader.count("vocab_size", most=1 << 24),
        n_ctx_train=reader.count("max_position_embeddings", most=1 << 24),
        rms_norm_eps=reader.number("rms_norm_eps", config, 1e-6, below=1),
        rope_freq_base=freq_base,
        rope_factor=factor,
        tied=reader.flag("tie_word_embeddings"),
    )


class _Reader:
    """Typed reads of one config; null counts as missing, as in transformers."""

    def __init__(self, config: Mapping[str, Any], path: Path) -> None:
        self._config = config
        self._path = path

    def _wrong(self, key: str, value: object, expected: str) -> CheckpointError:
        found = "missing" if value is None else repr(value)
        return CheckpointError(self._path, f"{key} is {found}; expected {expected}")

    def count(self, key: str, default: int | None = None, *, most: int = MAX_WIDTH) -> int:
        value = self._config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self._wrong(key, value, f"a whole number from 1 to {most}")
        return value

    def number(self, key: str, table: Mapping[str, Any], default: float | None, *, below: float = math.inf) -> float:
        value = table.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < below:
            limit = "" if below == math.inf else f" below {below:g}"
            raise self._wrong(key, value, f"a positive number{limit}")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self._config.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return bool(value)

    def refuse_other_architectures(self) -> None:
        config = self._config
        if config.get("model_type") != "llama":
            raise self._wrong("model_type", config.get("model_type"), "'llama', as in the DeepSeek-Coder models")
        if config.get("architectures") not in (None, [], ["LlamaForCausalLM"]):
            raise self._wrong("architectures", config["architectures"], "['LlamaForCausalLM']")
        if config.get("hidden_act", "silu") not in ("silu", "swish"):
            raise self._wrong("hidden_act", config["hidden_act"], "'silu'")
        for key in ("attention_bias", "mlp_bias"):
            if self.flag(key):
                raise self._wrong(key, True, "false: matrices with biases are not supported")
        for key in ("num_local_experts", "num_experts", "n_routed_experts"):
            if config.get(key):
                raise self._wrong(key, config[key], "none: mixture-of-experts models are not supported")
        if config.get("quantization_config"):
            raise CheckpointError(
                self._path, "quantization_config: the weights are quantized already; convert the original checkpoint"
            )

    def rope(self) -> tuple[float, float | None]:
        """(frequency base, linear factor or None). Where both generations are present the older one wins, as in
        transformers."""
        config = self._config
        key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        table = config.get(key) or {}
        if not isinstance(table, dict):
            raise self._wrong(key, table, "an object")
        base = self.number("rope_theta", {**config, **table}, 10000.0)
        if base <= 1:
            raise self._wrong("rope_theta", base, "a number above 1")
        if self.number("partial_rotary_factor", {**config, **table}, 1.0) != 1:
            raise CheckpointError(self._path, "partial_rotary_factor is not 1; RoPE must rotate whole heads")
        kind = table.get("rope_type", table.get("type", "default"))
        if kind == "default":
            return base, None
        if kind != "linear":
            raise self._wrong(f"the type of {key}", kind, "'linear' or 'default'")
        return base, self.number("factor", table, None)
