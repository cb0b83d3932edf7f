"""Positions that are cut out of a KV cache: the keys behind them as if they had been computed where they are now."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_model import write_tiny_model

from localcoder.backends.select import open_backend, usable_backends
from localcoder.errors import ContextLengthError, OptionError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import PAGE_SIZE, Chunk, Engine
from localcoder.quants import by_name

N_CTX = 8 * PAGE_SIZE


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory):
    """With one layer, keys and values depend on their own token alone, so that a cut is exact but for rounding."""
    path = tmp_path_factory.mktemp("model") / "one.gguf"
    return write_tiny_model(path, n_layer=1, head_dim=32, n_ctx=N_CTX, scale=2.0)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 256, N_CTX).astype(np.int32)


def opened(path, monkeypatch, backend="numpy", n_sequences=1, **options):
    monkeypatch.setenv("LOCALCODER_BACKEND", backend)
    return Engine(GGUFFile.open(path), open_backend("auto", 1), n_ctx=N_CTX, n_sequences=n_sequences, **options)


def computed(engine, tokens):
    sequence = engine.new_sequence()
    engine.evaluate([Chunk(sequence, np.array(tokens, np.int32))])
    return sequence


def logits_after(engine, sequence, token):
    return engine.evaluate([Chunk(sequence, np.array([token], np.int32))])[0]


def keys_and_values(engine, sequence):
    """float32 [n_layer, n_head_kv, n_past, head_dim] each."""
    shape = engine.kv_shape
    pages = [
        page.reshape(shape.n_layer, 2, shape.n_head_kv, shape.page_size, -1) for page in engine.read_pages(sequence)
    ]
    rows = by_name(shape.kv_type).dequantize(np.concatenate(pages, axis=3))
    return rows[:, 0, :, : sequence.n_past], rows[:, 1, :, : sequence.n_past]


def error(x, y):
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


@pytest.mark.parametrize(("kv_type", "rounding"), [("f16", 5e-4), ("q8_0", 0.015), ("q4_0", 0.2)])
@pytest.mark.parametrize(("start", "stop"), [(1, 130), (0, 64), (64, 192), (70, 75), (3, 298), (100, 101)])
def test_keys_are_as_if_computed_there(one_layer, tokens, monkeypatch, kv_type, rounding, start, stop):
    engine = opened(one_layer, monkeypatch, kv_type=kv_type, n_sequences=2)
    moved = computed(engine, tokens[:300])
    fresh = computed(engine, np.concatenate([tokens[:start], tokens[stop:300]]))
    was, _ = keys_and_values(engine, moved)
    engine.cut(moved, start, stop)
    assert (moved.n_past, len(moved.pages)) == (fresh.n_past, len(fresh.pages))
    keys, values = keys_and_values(engine, moved)
    expected, same = keys_and_values(engine, fresh)
    assert (keys[:, :, :start] == was[:, :, :start]).all()
    assert error(keys[:, :, start:], expected[:, :, start:]) < rounding
    assert (
        error(was[:, :, stop:], expected[:, :, start:]) > 1.5 * rounding or stop - start == 1
    )  # they had to be turned
    assert error(values, same) < rounding


@pytest.mark.parametrize("backend", usable_backends())
def test_every_backend(one_layer, tokens, monkeypatch, backend):
    engine = opened(one_layer, monkeypatch, backend, n_sequences=3)
    kept = np.concatenate([tokens[:1], tokens[130:300]])
    moved, fresh = computed(engine, tokens[:300]), computed(engine, kept)
    unmoved = computed(engine, kept[::-1])
    engine.cut(moved, 1, 130)
    expected = logits_after(engine, fresh, 7)
    assert np.abs(logits_after(engine, moved, 7) - expected).max() < 0.02
    assert np.abs(logits_after(engine, unmoved, 7) - expected).max() > 0.2
    engine.close()


def test_up_to_the_end(one_layer, tokens, monkeypatch):
    engine = opened(one_layer, monkeypatch)
    sequence = computed(engine, tokens[:150])
    engine.cut(sequence, 100, 150)
    assert (sequence.n_past, len(sequence.pages)) == (100, 2)
    engine.cut(sequence, 0, 100)
    assert (sequence.n_past, len(sequence.pages)) == (0, 0)


def test_pages_that_others_share_stay_as_they_are(one_layer, tokens, monkeypatch):
    engine = opened(one_layer, monkeypatch, n_sequences=3)
    whole = computed(engine, tokens[:200])
    twin = whole.fork()
    engine.cut(twin, 10, 100)
    fresh = computed(engine, tokens[:200])
    assert (logits_after(engine, whole, 5) == logits_after(engine, fresh, 5)).all()
    crowded = opened(one_layer, monkeypatch)
    whole = computed(crowded, tokens[: N_CTX - 1])
    twin = whole.fork()
    with pytest.raises(ContextLengthError):
        crowded.cut(twin, 10, 100)
    assert twin.n_past == N_CTX - 1
    whole.close()
    assert np.isfinite(logits_after(crowded, twin, 5)).all()


def test_an_interruption_leaves_what_is_before_the_cut(one_layer, tokens, monkeypatch):
    engine = opened(one_layer, monkeypatch, n_sequences=2)
    sequence = computed(engine, tokens[:300])

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.backend, "quantize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.cut(sequence, 100, 200)
    assert sequence.n_past == 100
    other = computed(engine, tokens[:300])  # not 100: how the reference rounds depends on what else is in a step
    other.trim(100)
    assert (logits_after(engine, sequence, 5) == logits_after(engine, other, 5)).all()


def test_a_closed_engine(one_layer, monkeypatch):
    engine = opened(one_layer, monkeypatch)
    engine.close()
    with pytest.raises(OptionError, match="closed"):
        engine.cut(engine.new_sequence(), 0, 0)
