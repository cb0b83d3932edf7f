"""The C and the numba backend compute the same bits wherever activations are rounded: the order and rounding of every
float operation is written down in csrc/cpu/kernel_table.h, and a difference would grow with every rounded value."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_tiny_model

pytest.importorskip("numba")

from localcoder.backends.c import CBackend, availability, instruction_sets
from localcoder.backends.numba import NumbaBackend, codes
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine
from localcoder.quants import BY_ID

pytestmark = pytest.mark.skipif(availability() is not None, reason=str(availability()))

ISAS = [isa.name for isa in instruction_sets() if isa.usable] if availability() is None else []
ISAS = [name for name in ISAS if not name.startswith("amx_bf16")]  # many tokens have other bits there, by design
TYPES = [BY_ID[i].name for i in sorted(codes.CODE_ROWS)]
SHAPES = {
    "gqa": {"n_head": 4, "n_head_kv": 2, "head_dim": 16},
    "mqa": {"n_head": 4, "n_head_kv": 1, "head_dim": 32},
    "mha": {"n_head": 4, "n_head_kv": 4, "head_dim": 80},
    "group of 7": {"n_head": 14, "n_head_kv": 2, "head_dim": 16},
    "head of 128": {"n_head": 2, "n_head_kv": 1, "head_dim": 128},
    "head of 24": {"n_head": 4, "n_head_kv": 2, "head_dim": 24},
}
CUTS = ((), (1, 2, 8, 24, 64, 65, 70))


def logits(engine: Engine, cuts: tuple[int, ...] = (), n: int = 90) -> np.ndarray:
    ids = np.random.default_rng(1).integers(0, 256, n).astype(np.int32)
    sequence = engine.new_sequence()
    pieces = [engine.evaluate([Chunk(sequence, piece, len(piece))]) for piece in np.split(ids, cuts)]
    sequence.close()
    return np.concatenate(pieces)


def assert_same(path: Path, **options: str) -> None:
    file = GGUFFile.open(path)
    expected = logits(Engine(file, CBackend(1), **options))
    assert np.isfinite(expected).all()
    for cuts in CUTS:
        np.testing.assert_array_equal(logits(Engine(file, NumbaBackend(2), **options), cuts), expected)


@pytest.mark.parametrize("type_name", TYPES)
def test_every_rounded_format(type_name, tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf", type_name=type_name, n_embd=256, n_ff=256, head_dim=64, tied=True)
    assert_same(path)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("type_name", ["q8_0", "q4_0"])
def test_head_shapes(type_name, shape, tmp_path):
    assert_same(write_tiny_model(tmp_path / "m.gguf", type_name=type_name, **SHAPES[shape]))


@pytest.mark.parametrize("kv_type", ["f32", "q8_0", "q4_0"])
def test_other_kinds_of_cache(kv_type, tmp_path):
    assert_same(write_tiny_model(tmp_path / "m.gguf", type_name="q8_0", head_dim=32), kv_type=kv_type)


def test_activations_too_small_to_be_scaled_up(tmp_path):
    assert_same(write_tiny_model(tmp_path / "m.gguf", type_name="q8_0", scale=1e-20))


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa, tmp_path):
    paths = [
        write_tiny_model(tmp_path / f"{t}.gguf", type_name=t, n_embd=256, n_ff=256, head_dim=64)
        for t in ("q8_0", "q4_k", "q6_k")
    ]
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import numpy as np
from test_same_bits import CBackend, Engine, GGUFFile, logits
assert CBackend(1).isa == {isa!r}
np.savez(sys.argv[1], *[logits(Engine(GGUFFile.open(p), CBackend(2))) for p in sys.argv[2:]])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "out.npz"), *map(str, paths)]
    subprocess.run(command, env={**os.environ, "LOCALCODER_CPU": isa}, check=True)
    found = np.load(tmp_path / "out.npz")
    for path, name in zip(paths, found.files):
        np.testing.assert_array_equal(found[name], logits(Engine(GGUFFile.open(path), NumbaBackend(1))))
