"""The LLaMA forward pass, as the DeepSeek-Coder models use it.

RMS norm before each half, rotary positions (interleaved pairs), grouped-query attention, SwiGLU, no biases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from localcoder.backends.program import Buffer, KVShape, Program, Recorder
from localcoder.errors import ModelError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.hyperparameters import Hyperparameters
from localcoder.quants.spec import Float32, QuantTensor


@dataclass(frozen=True, eq=False)
class LayerWeights:
    attn_norm: Float32  # [n_embd]
    attn_q: QuantTensor  # [n_head * head_dim, n_embd]
    attn_k: QuantTensor  # [n_head_kv * head_dim, n_embd]
    attn_v: QuantTensor  # [n_head_kv * head_dim, n_embd]
    attn_output: QuantTensor  # [n_embd, n_head * head_dim]
    ffn_norm: Float32  # [n_embd]
    ffn_gate: QuantTensor  # [n_ff, n_embd]
    ffn_up: QuantTensor  # [n_ff, n_embd]
    ffn_down: QuantTensor  # [n_embd, n_ff]


@dataclass(frozen=True, eq=False)
class Weights:
    token_embd: QuantTensor  # [n_vocab, n_embd]
    layers: tuple[LayerWeights, ...]
    output_norm: Float32  # [n_embd]
    output: QuantTensor  # [n_vocab, n_embd]; the embedding itself where the file ties them


def bind_weights(file: GGUFFile, hp: Hyperparameters) -> Weights:
    """Finds every tensor and checks its shape; ModelError names what is missing, extra or of another shape."""
    unused = set(file.tensors) - {"rope_freqs.weight"}

    def matrix(name: str, n_out: int, n_in: int) -> QuantTensor:
        tensor = file.tensors.get(name)
        if tensor is None:
            raise ModelError(file.path, f"tensor {name} is missing")
        if tensor.shape != (n_out, n_in):
            raise ModelError(file.path, f"tensor {name} has shape {tensor.shape}, expected {(n_out, n_in)}")
        unused.discard(name)
        return tensor

    def vector(name: str, n: int) -> Float32:
        tensor = file.tensors.get(name)
        if tensor is None:
            raise ModelError(file.path, f"tensor {name} is missing")
        if tensor.shape != (n,):
            raise ModelError(file.path, f"tensor {name} has shape {tensor.shape}, expected {(n,)}")
        unused.discard(name)
        values = tensor.dequantize()
        if not np.isfinite(values).all():
            raise ModelError(file.path, f"tensor {name} holds values that are not finite")
        return values

    q_width, kv_width = hp.n_head * hp.head_dim, hp.n_head_kv * hp.head_dim
    layers = tuple(
        LayerWeights(
            attn_norm=vector(f"blk.{i}.attn_norm.weight", hp.n_embd),
            attn_q=matrix(f"blk.{i}.attn_q.weight", q_width, hp.n_embd),
            attn_k=matrix(f"blk.{i}.attn_k.weight", kv_width, hp.n_embd),
            attn_v=matrix(f"blk.{i}.attn_v.weight", kv_width, hp.n_embd),
            attn_output=matrix(f"blk.{i}.attn_output.weight", hp.n_embd, q_width),
            ffn_norm=vector(f"blk.{i}.ffn_norm.weight", hp.n_embd),
            ffn_gate=matrix(f"blk.{i}.ffn_gate.weight", hp.n_ff, hp.n_embd),
            ffn_up=matrix(f"blk.{i}.ffn_up.weight", hp.n_ff, hp.n_embd),
            ffn_down=matrix(f"blk.{i}.ffn_down.weight", hp.n_embd, hp.n_ff),
        )
        for i in range(hp.n_layer)
    )
    tied = "output.weight" not in file.tensors
    weights = Weights(
        token_embd=matrix("token_embd.weight", hp.n_vocab, hp.n_embd),
        layers=layers,
        output_norm=vector("output_norm.weight", hp.n_embd),
        output=matrix("token_embd.weight" if tied else "output.weight", hp.n_vocab, hp.n_embd),
    )
    if unused:
        raise ModelError(file.path, f"tensors that this architecture does not have: {', '.join(sorted(unused)[:4])}")
    return weights


def attention(ops: Recorder, hp: Hyperparameters, i: int, h: Buffer, layer: LayerWeights) -> Buffer:
    """Normalized hidden state -> what the heads of layer `i` gather, before attn_output. Extends the KV cache."""
    q = ops.rope(ops.linear(h, layer.attn_q), hp.n_head)
    k = ops.rope(ops.linear(h, layer.attn_k), hp.n_head_kv)
    ops.write_kv(i, k, ops.linear(h, layer.attn_v))
    return ops.attend(i, q, hp.n_head)


def gated(ops: Recorder, h: Buffer, layer: LayerWeights) -> Buffer:
    """Normalized hidden state -> the feed-forward half before ffn_down."""
    return ops.silu_mul(ops.linear(h, layer.ffn_gate), ops.linear(h, layer.ffn_up))


def layers(ops: Recorder, hp: Hyperparameters, weights: Weights, n_layer: int) -> Buffer:
    """Tokens -> the state after the first `n_layer` layers."""
    x = ops.embed(weights.token_embd)
    for i, layer in enumerate(weights.layers[:n_layer]):
        h = ops.rms_norm(x, layer.attn_norm, hp.rms_norm_eps)
        x = ops.add(x, ops.linear(attention(ops, hp, i, h, layer), layer.attn_output))
        h = ops.rms_norm(x, layer.ffn_norm, hp.rms_norm_eps)
        x = ops.add(x, ops.linear(gated(ops, h, layer), layer.ffn_down))
    return x


def record(hp: Hyperparameters, weights: Weights, *, n_ctx: int, page_size: int, kv_type: str) -> Program:
    """The forward pass as a program for contexts of `n_ctx` positions."""
    ops = Recorder()
    x = ops.select_outputs(layers(ops, hp, weights, hp.n_layer))
    logits = ops.linear(ops.rms_norm(x, weights.output_norm, hp.rms_norm_eps), weights.output)
    kv = KVShape(hp.n_layer, hp.n_head_kv, hp.head_dim, page_size, kv_type)
    return ops.finish(logits, kv, hp.rope_table(n_ctx))


def record_states(hp: Hyperparameters, weights: Weights, whole: Program, n_layer: int | None) -> Program:
    """The part of `whole` up to the state after `n_layer` layers; None: after all of them and the last norm."""
    ops = Recorder()
    x = layers(ops, hp, weights, hp.n_layer if n_layer is None else n_layer)
    if n_layer is None:
        x = ops.rms_norm(x, weights.output_norm, hp.rms_norm_eps)
    return ops.finish(x, whole.kv, whole.rope)
