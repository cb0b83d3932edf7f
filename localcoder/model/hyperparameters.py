"""What a GGUF file says about its model, read strictly; what it should say and does not comes from `faults.py`.

Keys are those of the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from localcoder.backends.program import RopeTable
from localcoder.errors import ModelError
from localcoder.faults import examine, notes_of
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.faults import MODEL_RULES

_MAX_LAYERS = 4096
_MAX_WIDTH = 1 << 20


@dataclass(frozen=True)
class Hyperparameters:
    """Model dimensions; names as in GGUF without the `llama.` prefix.

    Attributes:
        rope_factor: linear RoPE scaling; positions are divided by it (1.0: none).
        notes: what was assumed about the file or is probably wrong in it, one line each.
    """

    architecture: str
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
    rope_factor: float
    notes: tuple[str, ...] = ()

    def rope_table(self, n_ctx: int) -> RopeTable:
        """Cosines and sines of positions 0 .. n_ctx - 1: angle = position / factor · base^(-2i / head_dim)."""
        exponents = -2 * np.arange(self.head_dim // 2) / self.head_dim
        angles = np.arange(n_ctx)[:, None] / self.rope_factor * np.power(self.rope_freq_base, exponents)[None, :]
        return RopeTable(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))


def read_hyperparameters(file: GGUFFile) -> Hyperparameters:
    """Reads and checks the model's dimensions; ModelError names the key, what was found and what was expected."""
    file, faults = examine(file, MODEL_RULES)
    architecture = file.get_str("general.architecture")
    if architecture != "llama":
        raise ModelError(
            file.path,
            f"architecture {architecture!r}: localcoder runs the DeepSeek-Coder models, which are 'llama' in GGUF",
        )

    def count(key: str, most: int, default: int | None = None) -> int:
        value = file.get_int(f"llama.{key}", default)
        if not 1 <= value <= most:
            raise ModelError(file.path, f"llama.{key} is {value}; expected 1 to {most}")
        return value

    n_embd = count("embedding_length", _MAX_WIDTH)
    n_head = count("attention.head_count", _MAX_WIDTH)
    n_head_kv = count("attention.head_count_kv", _MAX_WIDTH, n_head)
    if n_head % n_head_kv:
        raise ModelError(file.path, f"{n_head} heads cannot share {n_head_kv} KV heads evenly")
    if "llama.attention.key_length" not in file.metadata and n_embd % n_head:
        raise ModelError(file.path, f"embedding length {n_embd} is not a multiple of {n_head} heads")
    head_dim = count("attention.key_length", _MAX_WIDTH, n_embd // n_head)
    if count("attention.value_length", _MAX_WIDTH, head_dim) != head_dim:
        raise ModelError(file.path, "keys and values of different length are not supported")
    if count("rope.dimension_count", _MAX_WIDTH, head_dim) != head_dim or head_dim % 2:
        raise ModelError(file.path, f"RoPE must rotate whole heads of even length; head_dim is {head_dim}")
    if file.get_int("llama.expert_count", 0):
        raise ModelError(file.path, "mixture-of-experts models are not supported")

    freq_base = file.get_float("llama.rope.freq_base", 10000.0)
    if not (freq_base > 1 and math.isfinite(freq_base)):
        raise ModelError(file.path, f"llama.rope.freq_base is {freq_base}; expected a number above 1")
    eps = file.get_float("llama.attention.layer_norm_rms_epsilon")
    if not 0 < eps < 1:
        raise ModelError(file.path, f"llama.attention.layer_norm_rms_epsilon is {eps}; expected 0 to 1")

    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(file.path, "token_embd.weight is missing or not a matrix")
    return Hyperparameters(
        architecture=architecture,
        n_layer=count("block_count", _MAX_LAYERS),
        n_embd=n_embd,
        n_ff=count("feed_forward_length", _MAX_WIDTH),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        n_vocab=embedding.shape[0],
        n_ctx_train=count("context_length", 1 << 24),
        rms_norm_eps=eps,
        rope_freq_base=freq_base,
        rope_factor=_rope_factor(file),
        notes=tuple(notes_of(faults)),
    )


def _rope_factor(file: GGUFFile) -> float:
    scaling = file.get_str("llama.rope.scaling.type", "")
    if scaling not in ("", "none", "linear"):
        raise ModelError(file.path, f"RoPE scaling {scaling!r} is not supported; this family uses 'linear'")
    if scaling == "none" or (scaling == "" and "llama.rope.scaling.factor" not in file.metadata):
        return 1.0
    factor = file.get_float("llama.rope.scaling.factor")
    if not (factor > 0 and math.isfinite(factor)):
        raise ModelError(file.path, f"RoPE scaling factor is {factor}; expected a positive number")
    return factor
