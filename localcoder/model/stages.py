"""The forward pass one stage at a time, with every matrix's input in the caller's hands.

What learns from activations (importance matrix, error-feedback rounding) needs to see the input of each matrix, and the
latter to replace the matrix before anything behind it is computed. So each layer runs as small programs of the same op
set, over fixed sequences of tokens, and the hidden states of all of them stay in memory between two stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.base import Backend
from localcoder.backends.program import Buffer, KVShape, Recorder, RopeTable, Step
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.hyperparameters import Hyperparameters, read_hyperparameters
from localcoder.model.llama import LayerWeights, attention, bind_weights, gated
from localcoder.quants.spec import Float32, QuantTensor

_LAYER_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")

Visit = Callable[[tuple[str, ...], Float32], Mapping[str, QuantTensor]]


class StagedModel:
    """Runs a model over sequences of equal length, stage by stage.

    Args:
        file: an open GGUF file.
        backend: where to compute.
        n_ctx: tokens a sequence.
    """

    def __init__(self, file: GGUFFile, backend: Backend, n_ctx: int) -> None:
        self.hyperparameters: Hyperparameters = read_hyperparameters(file)
        self._weights = bind_weights(file, self.hyperparameters)
        self._tied = "output.weight" not in file.tensors
        self._backend = backend
        self._n_ctx = n_ctx
        hp = self.hyperparameters
        self._shape = KVShape(n_layer=1, n_head_kv=hp.n_head_kv, head_dim=hp.head_dim)
        n_pages = -(-n_ctx // self._shape.page_size)
        self._store = backend.new_kv_store(self._shape, n_pages)
        self._page_table = np.arange(n_pages, dtype=np.int32)[None, :]
        self._rope: RopeTable = hp.rope_table(n_ctx)

    @property
    def n_stages(self) -> int:
        """How often `visit` is called by one `run`."""
        return 4 * self.hyperparameters.n_layer + 1

    @property
    def matrices(self) -> list[str]:
        """The embedding and every matrix, in the order in which `run` comes to them."""
        layers = (_names(i, part) for i in range(self.hyperparameters.n_layer) for part in _LAYER_MATRICES)
        output = [] if self._tied else ["output.weight"]
        return ["token_embd.weight", *(name for names in layers for name in names), *output]

    def run(self, tokens: NDArray[np.int32], visit: Visit, *, embedding: QuantTensor | None = None) -> None:
        """Computes all stages, calling `visit` before each matrix is used.

        Args:
            tokens: int32 [n_sequences, n_ctx].
            visit: is given the names of the matrices that share an input and that input, float32
                [n_sequences * n_ctx, n_in]; returns the tensors (by name) to go on with instead, if any.
            embedding: used instead of the file's token_embd.weight.
        """
        hp, eps = self.hyperparameters, self.hyperparameters.rms_norm_eps
        weights = self._weights
        x = self._stage(tokens, lambda ops: ops.embed(embedding or weights.token_embd))
        for i, layer in enumerate(weights.layers):
            h = self._norm(tokens, x, layer.attn_norm, eps)
            layer = _replaced(layer, visit(_names(i, "attn_q", "attn_k", "attn_v"), h))
            h = self._stage(tokens, lambda ops, h, layer=layer: attention(ops, hp, 0, h, layer), h)
            layer = _replaced(layer, visit(_names(i, "attn_output"), h))
            x = self._stage(tokens, lambda ops, x, h, layer=layer: ops.add(x, ops.linear(h, layer.attn_output)), x, h)
            h = self._norm(tokens, x, layer.ffn_norm, eps)
            layer = _replaced(layer, visit(_names(i, "ffn_gate", "ffn_up"), h))
            h = self._stage(tokens, lambda ops, h, layer=layer: gated(ops, h, layer), h)
            layer = _replaced(layer, visit(_names(i, "ffn_down"), h))
            x = self._stage(tokens, lambda ops, x, h, layer=layer: ops.add(x, ops.linear(h, layer.ffn_down)), x, h)
        h = self._norm(tokens, x, weights.output_norm, eps)
        visit(("token_embd.weight" if self._tied else "output.weight",), h)

    def _norm(self, tokens: NDArray[np.int32], x: Float32, weight: Float32, eps: float) -> Float32:
        return self._stage(tokens, lambda ops, x: ops.rms_norm(x, weight, eps), x)

    def _stage(self, tokens: NDArray[np.int32], body: Callable[..., Buffer], *inputs: Float32) -> Float32:
        """Runs one small program over every sequence; inputs and result are [n_sequences * n_ctx, width]."""
        ops = Recorder()
        result = body(ops, *(ops.input(x.shape[1]) for x in inputs))
        executable = self._backend.compile(ops.finish(result, self._shape, self._rope), self._store, self._n_ctx)
        positions = np.arange(self._n_ctx, dtype=np.int32)
        zeros = np.zeros(self._n_ctx, np.int32)
        out = np.empty((tokens.size, result.width), np.float32)
        try:
            for i, ids in enumerate(tokens):
                rows = slice(i * self._n_ctx, (i + 1) * self._n_ctx)
                chunk = tuple(x[rows] for x in inputs)
                step = Step(ids, positions, zeros, self._page_table, zeros[:0], chunk)
                out[rows] = executable.run(step)
        finally:
            executable.close()
        return out


def _names(i: int, *parts: str) -> tuple[str, ...]:
    return tuple(f"blk.{i}.{part}.weight" for part in parts)


def _replaced(layer: LayerWeights, tensors: Mapping[str, QuantTensor]) -> LayerWeights:
    fields: dict[str, Any] = {name.split(".")[2]: tensor for name, tensor in tensors.items()}
    return replace(layer, **fields)
