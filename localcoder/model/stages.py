"""The forward pass one stage at a time, with every matrix's input in the caller's hands.

What learns from activations (importance matrix, error-feedback rounding) needs to see the input of each matrix, and the
latter to replace the matrix before anything behind it is computed. So each layer runs as small programs of the same op
set, over fixed sequences of tokens. The states of all of them lie on the disk between two stages: in memory is one
sequence at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.base import Backend
from localcoder.backends.program import Buffer, KVShape, Recorder, RopeTable, Step
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.scratch import ScratchArray
from localcoder.model.hyperparameters import Hyperparameters, read_hyperparameters
from localcoder.model.llama import LayerWeights, attention, bind_weights, gated
from localcoder.quants.spec import Float32, QuantTensor

_LAYER_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")

# Called with the names of matrices that share an input, and that input: float32 [n_ctx, n_in] for each sequence in
# turn, computed when it is iterated over, as often as wanted. Returns the tensors (by name) to go on with, if any.
Visit = Callable[[tuple[str, ...], Iterable[Float32]], Mapping[str, QuantTensor]]


class StagedModel:
    """Runs a model over sequences of equal length, stage by stage.

    Args:
        file: an open GGUF file.
        backend: where to compute.
        n_ctx: tokens a sequence.
        folder: on whose disk the states lie; None: where the system keeps temporary files.
    """

    def __init__(self, file: GGUFFile, backend: Backend, n_ctx: int, *, folder: Path | None = None) -> None:
        self.hyperparameters: Hyperparameters = read_hyperparameters(file)
        self._weights = bind_weights(file, self.hyperparameters)
        self._tied = "output.weight" not in file.tensors
        self._backend = backend
        self._n_ctx = n_ctx
        self._folder = folder
        hp = self.hyperparameters
        self._shape = KVShape(n_layer=1, n_head_kv=hp.n_head_kv, head_dim=hp.head_dim)
        n_pages = -(-n_ctx // self._shape.page_size)
        self._store = backend.new_kv_store(self._shape, n_pages)
        self._page_table = np.arange(n_pages, dtype=np.int32)[None, :]
        self._rope: RopeTable = hp.rope_table(n_ctx)

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
            embedding: used instead of the file's token_embd.weight.

        Raises:
            OutputError: no room on the disk for the states.
        """
        hp, weights = self.hyperparameters, self._weights

        def norm(ops: Recorder, x: Buffer, weight: Float32) -> Buffer:
            return ops.rms_norm(x, weight, hp.rms_norm_eps)

        def stage(body: Callable[..., Buffer], *inputs: ScratchArray) -> _Stage:
            return _Stage(self, tokens, body, inputs)

        with contextlib.ExitStack() as stack:

            def states(width: int) -> ScratchArray:
                return stack.enter_context(ScratchArray(len(tokens), (self._n_ctx, width), self._folder))

            x, heads, gates = states(hp.n_embd), states(hp.n_head * hp.head_dim), states(hp.n_ff)
            x.fill(stage(lambda ops: ops.embed(embedding or weights.token_embd)))
            for i, layer in enumerate(weights.layers):
                inputs = stage(lambda ops, x, w=layer: norm(ops, x, w.attn_norm), x)
                layer = _replaced(layer, visit(_names(i, "attn_q", "attn_k", "attn_v"), inputs))
                heads.fill(stage(lambda ops, x, w=layer: attention(ops, hp, 0, norm(ops, x, w.attn_norm), w), x))
                layer = _replaced(layer, visit(_names(i, "attn_output"), heads))
                x.fill(stage(lambda ops, x, h, w=layer: ops.add(x, ops.linear(h, w.attn_output)), x, heads))
                inputs = stage(lambda ops, x, w=layer: norm(ops, x, w.ffn_norm), x)
                layer = _replaced(layer, visit(_names(i, "ffn_gate", "ffn_up"), inputs))
                gates.fill(stage(lambda ops, x, w=layer: gated(ops, norm(ops, x, w.ffn_norm), w), x))
                layer = _replaced(layer, visit(_names(i, "ffn_down"), gates))
                x.fill(stage(lambda ops, x, h, w=layer: ops.add(x, ops.linear(h, w.ffn_down)), x, gates))
            output = "token_embd.weight" if self._tied else "output.weight"
            visit((output,), stage(lambda ops, x: norm(ops, x, weights.output_norm), x))

    def compute(
        self, tokens: NDArray[np.int32], body: Callable[..., Buffer], inputs: Sequence[ScratchArray]
    ) -> Iterator[Float32]:
        """Runs a part of the model over every sequence in turn: yields float32 [n_ctx, width]."""
        ops = Recorder()
        result = body(ops, *(ops.input(x.width) for x in inputs))
        executable = self._backend.compile(ops.finish(result, self._shape, self._rope), self._store, self._n_ctx)
        positions = np.arange(self._n_ctx, dtype=np.int32)
        zeros = np.zeros(self._n_ctx, np.int32)
        try:
            for i, ids in enumerate(tokens):
                step = Step(ids, positions, zeros, self._page_table, zeros[:0], tuple(x[i] for x in inputs))
                yield executable.run(step)
        finally:
            executable.close()


@dataclass(frozen=True, eq=False)
class _Stage:
    """What a part of the model makes of some states, computed anew whenever it is iterated over."""

    model: StagedModel
    tokens: NDArray[np.int32]
    body: Callable[..., Buffer]
    inputs: tuple[ScratchArray, ...]

    def __iter__(self) -> Iterator[Float32]:
        return self.model.compute(self.tokens, self.body, self.inputs)


def _names(i: int, *parts: str) -> tuple[str, ...]:
    return tuple(f"blk.{i}.{part}.weight" for part in parts)


def _replaced(layer: LayerWeights, tensors: Mapping[str, QuantTensor]) -> LayerWeights:
    fields: dict[str, Any] = {name.split(".")[2]: tensor for name, tensor in tensors.items()}
    return replace(layer, **fields)
