"""Whole models on the emulated card, logits beside the numpy reference's: every format, shape of heads, kind of cache,
chunks, several sequences. Where values are rounded, the reference takes the card's codes (tools/same_rounding.py)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from gpu_check import compare
from same_rounding import FollowingBackend, ListeningBackend
from tiny_model import SHAPES, TYPES, tokens, write_tiny_model

from localcoder.backends.cuda import emulated
from localcoder.backends.cuda.device import Device
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine
from localcoder.quants import ALL, by_name

_REASON = emulated.availability()
pytestmark = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))

CHUNKS = ((5, 9, 1, 2), (70, 1, 3, 0), (1, 17, 0, 2))  # tokens of three sequences in four steps


class Bounds(NamedTuple):
    """What sums in another order explain.

    Attributes:
        logits: largest error, relative to the largest logit.
        activations: how far from a tie one may be rounded the other way, relative to the largest of its group.
        moved: part of the activations that may be.
        cache: as `activations`, relative to the largest of its head.
    """

    logits: float = 1e-5
    activations: float = 1e-5
    moved: float = 1e-4
    cache: float = 1e-5


EXACT = Bounds()
BF16 = Bounds(logits=1e-4, cache=1e-4)  # many tokens' activations are in two parts of 8 bits
Q8_0_CACHE = Bounds(1e-3, 2e-3, 1e-2, 2.0**-9)  # the cache's scales are halves; many tokens meet its values as halves


@cache
def card() -> Device:
    return emulated.EmulatedCudaBackend().device


def check(
    path: Path,
    *,
    rounded: bool,
    kv_type: str = "f16",
    n_ubatch: int = 512,
    bounds: Bounds = EXACT,
    its: Path | None = None,
) -> None:
    """Runs CHUNKS on both, all logits of each step; the card computes `its` file, if it has one of its own."""
    listening = ListeningBackend(card())
    reference = FollowingBackend(listening)
    options = {"n_ctx": 128, "n_sequences": len(CHUNKS), "kv_type": kv_type, "n_ubatch": n_ubatch}
    engines = [
        Engine(GGUFFile.open(file), backend, **options)
        for file, backend in ((its or path, listening), (path, reference))
    ]
    sequences = [[engine.new_sequence() for _ in CHUNKS] for engine in engines]
    for i, lengths in enumerate(zip(*CHUNKS)):
        ids = [tokens(n, seed=10 * i + n) for n in lengths]
        result, expected = (
            engine.evaluate([Chunk(s, piece, len(piece)) for s, piece in zip(of_engine, ids) if len(piece)])
            for engine, of_engine in zip(engines, sequences)
        )
        assert result.shape == (sum(lengths), engines[0].n_vocab)
        assert np.abs(result - expected).max() <= bounds.logits * np.abs(expected).max()  # NaN is not
    assert not listening.n_unasked
    for choices, worst in ((reference.activations, bounds.activations), (reference.cache, bounds.cache)):
        assert choices.worst <= worst
    assert reference.activations.n_moved <= bounds.moved * reference.activations.n
    assert (reference.activations.n > 0) == rounded
    kv = engines[0].kv_shape
    assert reference.cache.n == 2 * kv.n_layer * kv.n_head_kv * kv.head_dim * sum(map(sum, CHUNKS))
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("type_name", TYPES)
def test_every_format(type_name, tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf", type_name=type_name, n_embd=256, n_ff=512, n_head=4)
    bounds = BF16 if type_name == "bf16" else EXACT
    check(path, rounded=by_name(type_name).activation == "q8", bounds=bounds)


@pytest.mark.parametrize("type_name", [t.name for t in ALL if t.name not in TYPES])
def test_formats_that_are_only_read(type_name):
    """In random blocks, as `gpu_check.py` tries a real card."""
    (result,) = compare(emulated.EmulatedCudaBackend(), type_name, "f16", [21, 1, 3], 1, 64, 2)
    assert result["ok"]
    assert result["max_error"] <= EXACT.logits


@pytest.mark.parametrize("type_name", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_heads(type_name, shape, tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf", type_name=type_name, n_embd=64, n_ff=96, **SHAPES[shape])
    check(path, rounded=type_name != "f16")


@pytest.mark.parametrize("type_name", ["f16", "q4_0"])
def test_odd_widths_and_tied_embeddings(type_name, tmp_path):
    sizes = {"n_embd": 160, "n_ff": 416, "n_head": 5, "n_head_kv": 1, "n_vocab": 301, "n_layer": 3}
    check(write_tiny_model(tmp_path / "m.gguf", type_name=type_name, tied=True, **sizes), rounded=type_name != "f16")


def test_widths_that_no_block_divides(tmp_path):
    sizes = {"n_embd": 36, "n_ff": 50, "n_head": 3, "n_head_kv": 1}
    check(write_tiny_model(tmp_path / "m.gguf", type_name="f16", **sizes), rounded=False)


@pytest.mark.parametrize("type_name", ["f32", "q4_0"])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("n_ubatch", [1, 40])
def test_kinds_of_cache_in_steps_of_any_size(type_name, kv_type, n_ubatch, tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf", type_name=type_name, head_dim=32)
    bounds = Q8_0_CACHE if kv_type == "q8_0" else EXACT
    check(path, kv_type=kv_type, n_ubatch=n_ubatch, rounded=type_name != "f32", bounds=bounds)


def test_one_wrong_code_of_a_weight_shows(tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf", type_name="q4_0")
    data = bytearray(path.read_bytes())
    block = GGUFFile.open(path).tensors["blk.1.attn_q.weight"].data[5, :18].tobytes()
    data[data.index(block) + 9] ^= 1
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(data)
    check(path, rounded=True)
    with pytest.raises(AssertionError):
        check(path, rounded=True, its=damaged)
