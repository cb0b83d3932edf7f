"""Steps over sequences, on the reference backend: what the engine adds to the program."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_model import write_tiny_model

from localcoder.backends.reference import ReferenceBackend
from localcoder.errors import ContextLengthError, OptionError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine


@pytest.fixture
def file(tmp_path):
    with GGUFFile.open(write_tiny_model(tmp_path / "m.gguf")) as f:
        yield f


def ids(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, n).astype(np.int32)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= 2e-3 * np.abs(b).max())


def test_chunks_and_steps_do_not_change_the_logits(file):
    tokens = ids(150)
    whole = Engine(file, ReferenceBackend(), n_ubatch=512)
    expected = whole.evaluate([Chunk(whole.new_sequence(), tokens, 150)])
    engine = Engine(file, ReferenceBackend(), n_ubatch=32)
    sequence = engine.new_sequence()
    rows = [engine.evaluate([Chunk(sequence, part, len(part))]) for part in np.array_split(tokens, 7)]
    assert close(np.concatenate(rows), expected)
    assert sequence.n_past == 150


def test_several_sequences_in_one_step(file):
    engine = Engine(file, ReferenceBackend(), n_sequences=3, n_ubatch=16)
    inputs = [ids(n, n) for n in (5, 70, 1)]
    together = engine.evaluate([Chunk(engine.new_sequence(), t, 1) for t in inputs])
    for row, tokens in zip(together, inputs):
        alone = Engine(file, ReferenceBackend())
        assert close(row, alone.evaluate([Chunk(alone.new_sequence(), tokens)])[0])


def test_a_fork_goes_its_own_way(file):
    engine = Engine(file, ReferenceBackend(), n_sequences=2)
    first = engine.new_sequence()
    engine.evaluate([Chunk(first, ids(70))])
    second = first.fork()
    a = engine.evaluate([Chunk(first, ids(3, 1))])
    engine.evaluate([Chunk(second, ids(9, 2))])
    second.trim(70)
    assert close(engine.evaluate([Chunk(second, ids(3, 1))]), a)


def test_nothing_is_appended_when_the_context_is_full(file):
    engine = Engine(file, ReferenceBackend(), n_ctx=100)
    sequence = engine.new_sequence()
    engine.evaluate([Chunk(sequence, ids(90))])
    with pytest.raises(ContextLengthError, match="101 tokens do not fit in a context of 100"):
        engine.evaluate([Chunk(sequence, ids(11))])
    assert sequence.n_past == 90
    assert len(engine.evaluate([Chunk(sequence, ids(10))])) == 1


def test_wrong_options_and_ids(file):
    for bad in ({"n_ctx": 0}, {"n_ubatch": 0}, {"n_sequences": 0}, {"n_ctx": 1 << 40}):
        with pytest.raises(OptionError):
            Engine(file, ReferenceBackend(), **bad)
    engine = Engine(file, ReferenceBackend())
    for bad_ids in ([-1], [320]):
        with pytest.raises(OptionError, match="token ids must be 0 to 319"):
            engine.evaluate([Chunk(engine.new_sequence(), np.array(bad_ids, np.int32))])
    with pytest.raises(OptionError, match="2 rows of logits wanted of 1"):
        engine.evaluate([Chunk(engine.new_sequence(), ids(1), 2)])


def test_a_context_beyond_training_is_noted(file):
    assert "256 positions" in Engine(file, ReferenceBackend(), n_ctx=512).notes[-1]


def test_no_tokens_no_logits(file):
    engine = Engine(file, ReferenceBackend())
    assert engine.evaluate([]).shape == (0, 320)
    assert engine.evaluate([Chunk(engine.new_sequence(), ids(0), 0)]).shape == (0, 320)
