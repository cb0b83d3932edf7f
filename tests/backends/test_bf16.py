"""Prompts on tiles of bf16, which is how machines with AMX read them by default."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_model import write_tiny_model

from localcoder.backends.c import CBackend, availability, instruction_sets
from localcoder.backends.reference import ReferenceBackend
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine

ISA = "amx_bf16"
usable = [isa.name for isa in instruction_sets() if isa.usable] if availability() is None else []
pytestmark = pytest.mark.skipif(ISA not in usable, reason="this machine has no tiles of bf16")

N = 90
TYPES = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"]


def logits(engine: Engine, cuts: tuple[int, ...] = ()) -> NDArray[np.float32]:
    ids = np.random.default_rng(1).integers(0, 256, N).astype(np.int32)
    sequence = engine.new_sequence()
    pieces = [engine.evaluate([Chunk(sequence, piece, len(piece))]) for piece in np.split(ids, cuts)]
    sequence.close()
    return np.concatenate(pieces)


def error(result: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


def test_it_is_the_default_there():
    assert usable[0] == ISA


@pytest.mark.parametrize("type_name", TYPES)
def test_as_close_as_activations_of_8_bits(type_name, tmp_path):
    """The reference rounds activations to 8 bits; beside it, bf16 is another rounding, no larger one."""
    path = write_tiny_model(tmp_path / "m.gguf", type_name=type_name, n_embd=256, n_ff=512, head_dim=64)
    file = GGUFFile.open(path)
    expected = logits(Engine(file, ReferenceBackend()))
    result = logits(Engine(file, CBackend(2, isa=ISA)))
    assert 0 < error(result, expected) < 0.03


@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize(("n_head", "n_head_kv", "head_dim"), [(4, 2, 64), (8, 1, 32), (2, 2, 128), (4, 4, 96)])
def test_pieces_and_threads_change_no_bit(n_head, n_head_kv, head_dim, kv_type, tmp_path):
    shape = {"n_head": n_head, "n_head_kv": n_head_kv, "head_dim": head_dim}
    path = write_tiny_model(tmp_path / "m.gguf", type_name="q8_0", n_embd=256, n_ff=352, **shape)
    file = GGUFFile.open(path)
    expected = logits(Engine(file, CBackend(1, isa=ISA), kv_type=kv_type))
    assert np.isfinite(expected).all()
    for threads in (1, 2, 5):
        engine = Engine(file, CBackend(threads, isa=ISA), kv_type=kv_type)
        for cuts in ((), (17,), (40, 73), (20, 37, 54, 71)):
            np.testing.assert_array_equal(logits(engine, cuts), expected)


def test_few_tokens_have_the_bits_of_other_sets(tmp_path):
    """Decoding, speculation and many sequences at once: nothing there depends on how many tokens a step has."""
    file = GGUFFile.open(write_tiny_model(tmp_path / "m.gguf", type_name="q4_k", n_embd=256, n_ff=256, head_dim=64))
    cuts = (1, 2, 10, 26, 42, 58, 74)
    expected = logits(Engine(file, CBackend(2, isa="avx512vnni")), cuts)
    np.testing.assert_array_equal(logits(Engine(file, CBackend(2, isa=ISA)), cuts), expected)

    engines = [Engine(file, CBackend(2, isa=isa), n_sequences=24) for isa in ("avx512vnni", ISA)]
    results = []
    for engine in engines:
        sequences = [engine.new_sequence() for _ in range(24)]
        results.append(engine.evaluate([Chunk(s, np.array([i], np.int32)) for i, s in enumerate(sequences)]))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("type_name", ["f32", "f16", "bf16"])
def test_files_of_floats_are_not_rounded(type_name, tmp_path):
    file = GGUFFile.open(write_tiny_model(tmp_path / "m.gguf", type_name=type_name))
    expected = logits(Engine(file, CBackend(2, isa="avx512vnni")))
    np.testing.assert_array_equal(logits(Engine(file, CBackend(2, isa=ISA))), expected)


def test_not_finite_weights_are_not_hidden(tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf", type_name="q8_0", n_embd=256, n_ff=256, head_dim=64)
    data = bytearray(path.read_bytes())
    blocks = GGUFFile.open(path).tensors["blk.0.ffn_down.weight"].data.tobytes()
    at = data.find(blocks)
    data[at : at + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(data)
    assert not np.isfinite(logits(Engine(GGUFFile.open(path), CBackend(2, isa=ISA)))).all()
