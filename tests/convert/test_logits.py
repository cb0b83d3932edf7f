"""From checkpoint to logits: a converted file computes what transformers computes, on every backend."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoints import save_checkpoint

from localcoder.backends.select import open_backend, usable_backends
from localcoder.convert.choice import Choice
from localcoder.convert.converter import convert
from localcoder.convert.recipes import recipe_by_name
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine
from localcoder.quants.search import requantize

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

SHAPES = {
    "gqa, new config": {},
    "mqa": {"n_head_kv": 1, "n_layer": 3},
    "mha, old config": {"n_head_kv": 4, "old_config": True},
    "tied": {"tied": True},
    "unscaled": {"rope_factor": None, "rope_theta": 10000.0},
    "unscaled, family's base": {"rope_factor": None},
    "groups of 7": {"n_embd": 224, "n_head": 14, "n_head_kv": 2, "n_ff": 352},
    "wide heads": {"head_dim": 48},
    "no whole blocks": {"n_embd": 72, "n_ff": 100, "head_dim": 18},
    "family's heads": {"n_embd": 384, "n_head": 3, "n_head_kv": 1, "n_ff": 544, "n_vocab": 1000, "n_layer": 1},
}
N_TOKENS = 150  # more than two pages of the KV cache


def relative_error(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def logits_of(path, ids, **options):
    backend = open_backend()
    with GGUFFile.open(path) as file:
        engine = Engine(file, backend, **options)
        sequence = engine.new_sequence()
        try:
            return engine.evaluate([Chunk(sequence, ids, len(ids))])
        finally:
            engine.close()
            backend.close()


@pytest.mark.parametrize("backend", usable_backends())
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(tmp_path, monkeypatch, shape, backend):
    monkeypatch.setenv("LOCALCODER_BACKEND", backend)
    model = save_checkpoint(tmp_path / "source", **SHAPES[shape])
    convert(tmp_path / "source", tmp_path / "out.gguf", Choice(recipe_by_name("f32")), requantize=requantize)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, N_TOKENS).astype(np.int32)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()
    found = logits_of(tmp_path / "out.gguf", ids, n_ctx=256, n_ubatch=64)
    assert relative_error(found, expected) <= 1e-3  # the KV cache is in half precision
    assert np.abs(found - expected).max() <= 2e-3 * np.abs(expected).max()
    if backend == "numpy":
        exact = logits_of(tmp_path / "out.gguf", ids, n_ctx=256, kv_type="f32")
        assert relative_error(exact, expected) <= 1e-5
