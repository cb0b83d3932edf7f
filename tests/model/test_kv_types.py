"""The formats of the KV cache: what they cost in memory and in truth, on every way to compute."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_model import write_tiny_model

from localcoder import Coder
from localcoder.backends.reference import ReferenceBackend
from localcoder.errors import OptionError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine
from localcoder.model.kv_types import KV_TYPES


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("kv") / "m.gguf"
    return GGUFFile.open(write_tiny_model(path, type_name="f32", n_head=4, n_head_kv=2, head_dim=64))


def probabilities(file, kv_type):
    engine = Engine(file, ReferenceBackend(), n_ctx=160, kv_type=kv_type)
    tokens = np.random.default_rng(0).integers(0, engine.n_vocab, 150).astype(np.int32)
    logits = engine.evaluate([Chunk(engine.new_sequence(), tokens, 150)]).astype(np.float64)
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


def test_closeness_to_the_unrounded_cache(model):
    exact = probabilities(model, "f32")
    divergence = {}
    for kv_type in KV_TYPES:
        rounded = probabilities(model, kv_type)
        divergence[kv_type] = float((exact * np.log(exact / rounded)).sum(1).mean())
    assert divergence["f16"] < 1e-5
    assert divergence["f16"] < divergence["q8_0"] < 1e-3
    assert divergence["q8_0"] < divergence["q4_0"] < 0.1


@pytest.mark.parametrize(("kv_type", "bits"), [("f16", 16), ("q8_0", 8.5), ("q4_0", 4.5)])
def test_memory(model, kv_type, bits):
    engine = Engine(model, ReferenceBackend(), n_ctx=128, kv_type=kv_type)
    hp = engine.hyperparameters
    assert engine.kv_bytes == 2 * hp.n_layer * hp.n_head_kv * hp.head_dim * 128 * bits / 8


def test_heads_that_are_no_whole_blocks(tmp_path):
    file = GGUFFile.open(write_tiny_model(tmp_path / "m.gguf", type_name="f32", head_dim=24))
    with pytest.raises(OptionError, match="q8_0 needs heads of a multiple of 32 values, not 24"):
        Engine(file, ReferenceBackend(), kv_type="q8_0")


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_the_embedded_model(kv_type):
    with Coder(n_ctx=256, kv_type=kv_type) as coder:
        assert coder.engine.kv_type == kv_type
        assert coder.complete("def add(a, b):\n    return ", max_tokens=4)


def test_on_the_command_line(capsys):
    from localcoder.cli.main import main

    with pytest.raises(SystemExit) as exit_:
        main(["run", "def f(", "--max-tokens", "3", "--n-ctx", "64", "--kv-type", "q8_0"])
    assert not exit_.value.code
    assert capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        main(["run", "def f(", "--kv-type", "q3_0"])
    assert exit_.value.code == 2
