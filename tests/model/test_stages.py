"""Stage by stage equals the whole: the inputs that `visit` sees are those of the forward pass."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_model import write_tiny_model

from localcoder.backends.select import open_backend
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine
from localcoder.model.stages import StagedModel
from localcoder.quants import QuantTensor


@pytest.mark.parametrize("tied", [False, True])
def test_the_last_input_gives_the_logits(tmp_path, tied):
    tokens = np.random.default_rng(0).integers(0, 256, (3, 40)).astype(np.int32)
    seen: dict[str, tuple[int, ...]] = {}

    def visit(names, inputs):
        x = np.concatenate(list(inputs))
        seen.update({name: x.shape for name in names})
        visit.last = x
        return {}

    backend = open_backend()
    with GGUFFile.open(write_tiny_model(tmp_path / "m.gguf", tied=tied)) as file:
        staged = StagedModel(file, backend, n_ctx=40)
        staged.run(tokens, visit)
        output = file.tensors["token_embd.weight" if tied else "output.weight"]
        engine = Engine(file, backend)
        expected = np.concatenate([engine.evaluate([Chunk(engine.new_sequence(), ids, 40)]) for ids in tokens])
        found = visit.last @ output.dequantize().T
        assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
        matrices = {name for name, tensor in file.tensors.items() if len(tensor.shape) == 2}
    assert set(seen) == (matrices if tied else matrices - {"token_embd.weight"})
    assert seen["blk.1.ffn_down.weight"] == (120, 96)


def test_a_replaced_matrix_is_used_from_there_on(tmp_path):
    tokens = np.zeros((1, 8), np.int32)
    inputs: dict[str, np.ndarray] = {}

    def visit(names, x):
        inputs[names[0]] = np.concatenate(list(x))
        if names == ("blk.0.ffn_down.weight",):
            old = file.tensors[names[0]]
            return {names[0]: QuantTensor(old.name, old.qtype, old.shape, np.zeros_like(old.data))}
        return {}

    with GGUFFile.open(write_tiny_model(tmp_path / "m.gguf", n_layer=2)) as file:
        StagedModel(file, open_backend(), n_ctx=8).run(tokens, visit)
        norm = file.tensors["blk.1.attn_norm.weight"].dequantize()
        gate = file.tensors["blk.0.ffn_norm.weight"].dequantize()
    # With ffn_down zero the second layer's input is the first's middle state: both norms see the same x.
    assert np.allclose(
        inputs["blk.1.attn_q.weight"] / norm, inputs["blk.0.ffn_gate.weight"] / gate, rtol=1e-4, atol=1e-5
    )
