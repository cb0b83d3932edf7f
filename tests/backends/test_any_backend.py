"""What every backend must do, checked on each one that is usable here, against the numpy reference.

To run it for one backend only: LOCALCODER_BACKEND=<name> pytest tests/backends/test_any_backend.py
"""

from __future__ import annotations

import os
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tiny_model import SHAPES, TYPES, tokens, write_tiny_model

from localcoder.backends import select
from localcoder.backends.base import Backend
from localcoder.backends.program import Attend, Buffer, Input, Linear, Op, Program, SelectOutputs, Step, WriteKV, reads
from localcoder.backends.reference import ReferenceBackend
from localcoder.errors import BackendError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine
from localcoder.quants import by_name

TOLERANCE = 1e-3  # of the largest logit; the f16 cache alone rounds to 5e-4


def names() -> list[str]:
    forced = os.environ.get("LOCALCODER_BACKEND")
    return [forced] if forced else select.usable_backends()


@cache
def opened(name: str, threads: int) -> Backend:
    return select._by_name(name).open(threads)


@pytest.fixture(params=names())
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model(folder):
    """A function that opens the tiny model of given properties, written once."""

    @cache
    def make(**properties) -> GGUFFile:
        file_name = "-".join(f"{k}={v}" for k, v in properties.items()) or "plain"
        return GGUFFile.open(write_tiny_model(folder / f"{file_name}.gguf", **properties))

    return make


def all_logits(engine: Engine, ids: np.ndarray, cuts: tuple[int, ...] = ()) -> np.ndarray:
    """Logits of every position, evaluated in pieces that end at `cuts`."""
    sequence = engine.new_sequence()
    pieces = [engine.evaluate([Chunk(sequence, piece, len(piece))]) for piece in np.split(ids, cuts)]
    sequence.close()
    return np.concatenate(pieces)


def error(result: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Largest error of each row, relative to the largest logit."""
    return np.abs(result - expected).max(axis=1) / np.abs(expected).max()


def batch_tolerance(name: str, rounded: bool = False) -> float:
    """How much a token's result may depend on what else is in its step: nothing but in the reference's BLAS, and where
    tensor cores compute steps of many tokens."""
    if name.startswith("cuda") and rounded:
        return 0.03
    return TOLERANCE if name.startswith(("numpy", "cuda")) else 0.0


def assert_close(result: np.ndarray, expected: np.ndarray, rounded: bool) -> None:
    """`rounded`: activations are rounded to 8 bits, where a last-bit difference may move a value by a whole step."""
    errors = error(result, expected)
    assert (errors <= (0.03 if rounded else TOLERANCE)).all()  # NaN is not


@pytest.mark.parametrize("type_name", TYPES)
def test_every_format_agrees_with_the_reference(name, model, type_name):
    size = {"n_embd": 256, "n_ff": 512, "n_head": 4} if by_name(type_name).block_elems > 32 else {}
    file = model(type_name=type_name, **size)
    ids = tokens(24)
    reference = Engine(file, ReferenceBackend(), n_ctx=64)
    expected = all_logits(reference, ids)
    engine = Engine(file, opened(name, 2), n_ctx=64)
    rounded = by_name(type_name).activation == "q8"
    assert_close(all_logits(engine, ids), expected, rounded)
    assert_close(all_logits(engine, ids[:5], (1, 2, 3, 4)), expected[:5], rounded)
    first_tokens = [
        error(all_logits(engine, ids[i : i + 1]), all_logits(reference, ids[i : i + 1]))[0] for i in range(len(ids))
    ]
    assert np.median(first_tokens) <= 1e-5  # most meet no value that is rounded the other way
    engine.close()


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("n", [1, 24])
def test_every_op_agrees_on_the_same_inputs(name, model, type_name, n):
    """A model's logits may differ by a percent where last bits decide how an activation is rounded to 8 bits: one that
    is rounded the other way moves the inputs of the next rounding, until the errors of two runs have nothing in common.
    The reference itself does, when its inputs are off by a last bit. Op by op, from the same inputs, nothing may.
    """
    file = model(type_name=type_name, n_embd=256, n_ff=512, n_head=4)
    program = Engine(file, ReferenceBackend(), n_ctx=64)._program
    count = np.arange(n, dtype=np.int32)
    step = Step(tokens(n), count, 0 * count, np.zeros((1, 1), np.int32), count)
    values: dict[int, np.ndarray] = {}
    cache: list[WriteKV] = []
    n_linear = 0
    for op in map(_over_tokens, program.ops):
        if isinstance(op, WriteKV):
            cache = [op]
            continue
        ops, out = ([*cache, op] if isinstance(op, Attend) else [op]), op.out
        read = [buffer for one in ops for buffer in reads(one)]
        piece = Program((*(Input(i, b) for i, b in enumerate(read)), *ops), out, program.kv, program.rope)
        given = step._replace(inputs=tuple(values[b.id] for b in read))
        expected, result = (run_once(b, piece, given) for b in (ReferenceBackend(), opened(name, 2)))
        assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max(), op
        values[out.id] = expected
        n_linear += isinstance(op, Linear)
    assert n_linear == 15


def _over_tokens(op: Op) -> Op:
    """The same with its inputs over all tokens, as those of a program are."""
    read = {f.name: getattr(op, f.name) for f in fields(op) if f.name != "out"}
    if not isinstance(op, SelectOutputs) and getattr(op, "out", None) is not None:
        read["out"] = op.out
    return replace(op, **{k: replace(v, rows="tokens") for k, v in read.items() if isinstance(v, Buffer)})


def run_once(backend: Backend, program: Program, step: Step) -> np.ndarray:
    executable = backend.compile(program, backend.new_kv_store(program.kv, 1), len(step.tokens))
    result = executable.run(step)
    executable.close()
    return result


@pytest.mark.parametrize("shape", SHAPES)
def test_head_shapes_agree_with_the_reference(name, model, shape):
    file = model(n_embd=64, n_ff=96, **SHAPES[shape])
    ids = tokens(90)
    expected = all_logits(Engine(file, ReferenceBackend()), ids)
    engine = Engine(file, opened(name, 2))
    assert_close(all_logits(engine, ids, (70,)), expected, rounded=False)
    engine.close()


@pytest.mark.parametrize("properties", [{"tied": True}, {"n_embd": 36, "n_ff": 50, "n_head": 3, "n_head_kv": 1}])
def test_odd_widths_and_tied_embeddings(name, model, properties):
    file = model(**properties)
    expected = all_logits(Engine(file, ReferenceBackend()), tokens(20))
    assert_close(all_logits(Engine(file, opened(name, 2)), tokens(20)), expected, rounded=False)


@pytest.mark.parametrize("type_name", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_a_result_depends_neither_on_chunks_nor_on_threads(name, model, type_name):
    if batch_tolerance(name):
        pytest.skip("the order of sums depends on the number of tokens (few on a card: test_cuda_kernels.py)")
    file = model(type_name=type_name)
    ids = tokens(150)
    whole = all_logits(Engine(file, opened(name, 1)), ids)
    for threads in (1, 2, 3):
        engine = Engine(file, opened(name, threads))
        for cuts in ((), (1, 2, 7, 15, 16, 17, 63, 64, 65, 128), (149,)):
            np.testing.assert_array_equal(all_logits(engine, ids, cuts), whole)
        small_steps = Engine(file, opened(name, threads), n_ubatch=11)
        np.testing.assert_array_equal(all_logits(small_steps, ids), whole)


@pytest.mark.parametrize("type_name", ["f32", "q4_0"])
def test_sequences_in_one_step_are_as_each_alone(name, model, type_name):
    file = model(type_name=type_name)
    engine = Engine(file, opened(name, 2), n_sequences=4)
    prompts = [tokens(n, seed=n) for n in (3, 70, 1, 20)]
    alone = [all_logits(engine, prompt) for prompt in prompts]
    sequences = [engine.new_sequence() for _ in prompts]
    together = engine.evaluate([Chunk(s, p, len(p)) for s, p in zip(sequences, prompts)])
    tolerance = batch_tolerance(name, by_name(type_name).activation == "q8")
    for result, expected in zip(np.split(together, np.cumsum([len(p) for p in prompts])[:-1]), alone):
        assert error(result, expected).max() <= tolerance
    step = [tokens(1, seed=40 + i) for i in range(4)]
    decoded = engine.evaluate([Chunk(s, t) for s, t in zip(sequences, step)])
    for row, prompt, token in zip(decoded, prompts, step):
        expected = all_logits(engine, np.concatenate([prompt, token]))[-1:] if engine._kv.n_free_pages else None
        if expected is not None:
            assert error(row[None], expected).max() <= tolerance


def test_only_the_wanted_rows_come_back(name, model):
    engine = Engine(model(), opened(name, 2))
    ids = tokens(10)
    everything = all_logits(engine, ids)
    sequence = engine.new_sequence()
    assert engine.evaluate([Chunk(sequence, ids[:4], 0)]).shape == (0, engine.n_vocab)
    last = engine.evaluate([Chunk(sequence, ids[4:], 2)])
    assert error(last, everything[-2:]).max() <= batch_tolerance(name)
    assert last.flags.owndata or last.base.flags.owndata
    kept = last.copy()
    engine.evaluate([Chunk(sequence, ids[:3], 1)])
    np.testing.assert_array_equal(last, kept)


@pytest.mark.parametrize("n_past", [30, 64, 65, 127, 128])
def test_forks_and_trims(name, model, n_past):
    engine = Engine(model(), opened(name, 2), n_sequences=3)
    ids, other = tokens(n_past), tokens(9, seed=5)
    expected = all_logits(engine, np.concatenate([ids, other]))[-9:]
    tail = all_logits(engine, np.concatenate([ids, ids[:7]]))[-7:]
    sequence = engine.new_sequence()
    engine.evaluate([Chunk(sequence, ids)])
    twin = sequence.fork()
    tolerance = batch_tolerance(name)
    assert error(engine.evaluate([Chunk(twin, other, 9)]), expected).max() <= tolerance
    assert error(engine.evaluate([Chunk(sequence, ids[:7], 7)]), tail).max() <= tolerance
    sequence.trim(n_past)
    assert error(engine.evaluate([Chunk(sequence, other, 9)]), expected).max() <= tolerance
    twin.trim(n_past)
    assert error(engine.evaluate([Chunk(twin, ids[:7], 7)]), tail).max() <= tolerance


def test_a_saved_page_comes_back(name, model):
    engine = Engine(model(), opened(name, 1), n_ctx=64)
    sequence = engine.new_sequence()
    engine.evaluate([Chunk(sequence, tokens(20))])
    saved = engine._store.read_page(sequence.pages[0]).copy()
    expected = engine.evaluate([Chunk(sequence, tokens(1))])
    sequence.trim(0)
    engine.evaluate([Chunk(sequence, tokens(20, seed=9))])
    engine._store.write_page(sequence.pages[0], saved)
    sequence.n_past = 20
    np.testing.assert_array_equal(engine.evaluate([Chunk(sequence, tokens(1))]), expected)


@pytest.mark.parametrize("kv_type", ["f32", "q8_0", "q4_0"])
def test_other_kinds_of_cache(name, model, kv_type):
    file = model(head_dim=32)
    expected = all_logits(Engine(file, ReferenceBackend(), kv_type=kv_type), tokens(70))
    try:
        engine = Engine(file, opened(name, 2), kv_type=kv_type)
    except BackendError as refusal:
        pytest.skip(str(refusal))
    assert_close(all_logits(engine, tokens(70)), expected, rounded=kv_type != "f32")


def test_a_weight_that_is_not_finite_shows(name, model, folder):
    file = model(seed=7)
    tensor = file.tensors["blk.0.ffn_gate.weight"]
    damaged = folder / "nan.gguf"
    data = bytearray((folder / "seed=7.gguf").read_bytes())
    at = bytes(data).index(tensor.data[3].tobytes())
    data[at : at + 4] = np.float32(np.nan).tobytes()
    damaged.write_bytes(data)
    assert np.isnan(all_logits(Engine(GGUFFile.open(damaged), opened(name, 2)), tokens(8))).any()


@pytest.mark.parametrize("type_name", ["f32", "f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("n_rows", [1, 5])
def test_quantize_is_the_plain_rounding_bit_for_bit(name, type_name, n_rows):
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((n_rows, 320)) * 10.0 ** rng.integers(-9, 5, (n_rows, 320))).astype(np.float32)
    x[0, :32] = 0
    x[0, 32:64] = np.arange(-16, 16)  # ties
    x[0, 64:96] = 1e-41  # subnormal
    x[-1, 96:128] = 6e-8 * np.arange(32)  # subnormal halves
    qtype = by_name(type_name)
    np.testing.assert_array_equal(opened(name, 2).quantize(qtype, x), qtype.quantize(x))
