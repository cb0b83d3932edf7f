"""The tensors of a model: names, shapes, and which of them hold rotated heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from localcoder.convert.config import ModelConfig
from localcoder.files.tensor_names import checkpoint_name
from localcoder.quants.spec import Bytes


@dataclass(frozen=True)
class TensorSpec:
    """One tensor.

    Attributes:
        name: in the GGUF file.
        shape: (n_out, n_in), or (n,) for a norm.
        n_head: how many rotated heads its rows make up; 0 where none do.
    """

    name: str
    shape: tuple[int, ...]
    n_head: int = 0

    @property
    def checkpoint_name(self) -> str:
        return checkpoint_name(self.name)

    @property
    def head_dim(self) -> int:
        """Rows of one rotated head; 1 where rows stand alone."""
        return self.shape[0] // self.n_head if self.n_head else 1


def tensors_of(config: ModelConfig) -> Iterator[TensorSpec]:
    """Every tensor of a model, in the order in which a GGUF file lists them."""
    n_embd, n_ff = config.n_embd, config.n_ff
    q_width, kv_width = config.n_head * config.head_dim, config.n_head_kv * config.head_dim
    yield TensorSpec("token_embd.weight", (config.n_vocab, n_embd))
    for i in range(config.n_layer):
        yield TensorSpec(f"blk.{i}.attn_norm.weight", (n_embd,))
        yield TensorSpec(f"blk.{i}.attn_q.weight", (q_width, n_embd), config.n_head)
        yield TensorSpec(f"blk.{i}.attn_k.weight", (kv_width, n_embd), config.n_head_kv)
        yield TensorSpec(f"blk.{i}.attn_v.weight", (kv_width, n_embd))
        yield TensorSpec(f"blk.{i}.attn_output.weight", (n_embd, q_width))
        yield TensorSpec(f"blk.{i}.ffn_norm.weight", (n_embd,))
        yield TensorSpec(f"blk.{i}.ffn_gate.weight", (n_ff, n_embd))
        yield TensorSpec(f"blk.{i}.ffn_up.weight", (n_ff, n_embd))
        yield TensorSpec(f"blk.{i}.ffn_down.weight", (n_embd, n_ff))
    yield TensorSpec("output_norm.weight", (n_embd,))
    if not config.tied:
        yield TensorSpec("output.weight", (config.n_vocab, n_embd))


def interleave_heads(rows: Bytes, head_dim: int) -> Bytes:
    """Reorders the rows of whole heads from RoPE over halves to RoPE over neighbours.

    A checkpoint rotates row i of a head with row i + head_dim/2; in GGUF files of this architecture the two stand
    together as rows 2i and 2i + 1. uint8 [n * head_dim, row_bytes] -> the same shape.
    """
    halves = rows.reshape(-1, 2, head_dim // 2, rows.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)
