"""The C backend's own promises: which instruction set runs, what is fused, memory, forks, threads, mistakes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import psutil
import pytest
from random_blocks import random_tensor
from tiny_model import write_tiny_model

from localcoder.backends.c import CBackend, availability, instruction_sets, library
from localcoder.backends.c.lowering import Epilogue, Kind, assign_slots, lower
from localcoder.backends.program import KVShape, Program, Recorder, RopeTable, Step
from localcoder.backends.reference import ReferenceBackend
from localcoder.errors import BackendError, OptionError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine
from localcoder.model.hyperparameters import read_hyperparameters
from localcoder.model.llama import bind_weights, record
from localcoder.quants import QuantTensor, by_name

pytestmark = pytest.mark.skipif(availability() is not None, reason=str(availability()))

USABLE = [isa.name for isa in instruction_sets() if isa.usable] if availability() is None else []


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> GGUFFile:
    return GGUFFile.open(write_tiny_model(tmp_path_factory.mktemp("c") / "tiny.gguf", type_name="q8_0"))


def logits(engine: Engine, n: int = 40) -> np.ndarray:
    sequence = engine.new_sequence()
    result = engine.evaluate([Chunk(sequence, np.arange(n, dtype=np.int32), n)])
    sequence.close()
    return result


# Which instruction set


@pytest.mark.parametrize("isa", USABLE)
def test_the_forced_instruction_set_is_the_one_that_runs(isa):
    code = "from localcoder.backends.c import CBackend; print(CBackend(1).isa)"
    done = in_a_process(code, LOCALCODER_CPU=isa)
    assert done.stdout.strip() == isa, done.stderr


def test_without_force_the_best_runs(monkeypatch):
    monkeypatch.delenv("LOCALCODER_CPU", raising=False)
    assert CBackend(1).isa == USABLE[0]
    assert "ref" in USABLE


def test_a_wrong_name_fails_and_tells_the_right_ones(monkeypatch):
    monkeypatch.setenv("LOCALCODER_CPU", "sse9")
    with pytest.raises(BackendError, match=r"'sse9' \(LOCALCODER_CPU\); usable here: .*ref"):
        CBackend(1)


def test_an_instruction_set_of_another_machine_fails_with_the_reason(monkeypatch):
    other = next((isa for isa in instruction_sets() if not isa.usable), None)
    if other is None:
        pytest.skip("every instruction set is usable here")
    monkeypatch.setenv("LOCALCODER_CPU", other.name)
    with pytest.raises(BackendError, match=other.reason):
        CBackend(1)


def test_a_library_of_another_version_is_refused(monkeypatch):
    library.load.cache_clear()
    monkeypatch.setattr(library, "ABI_VERSION", 999)
    assert "build it again" in str(availability())
    monkeypatch.undo()
    library.load.cache_clear()
    assert availability() is None


def test_a_missing_library_is_explained(monkeypatch, tmp_path):
    library.load.cache_clear()
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    assert "was not built" in str(availability())
    monkeypatch.undo()
    library.load.cache_clear()


def test_threads_out_of_range():
    with pytest.raises(OptionError):
        CBackend(0)


# Compiling


def test_a_layer_becomes_ten_ops_or_so(file):
    hp = read_hyperparameters(file)
    program = record(hp, bind_weights(file, hp), n_ctx=64, page_size=64, kv_type="f16")
    ops = lower(program)
    layer = [op for op in ops[: len(ops) // 2] if op.kind == Kind.LINEAR]
    assert [len(op.weights) for op in layer[:4]] == [3, 1, 2, 1]
    assert [op.epilogue for op in layer[:4]] == [
        Epilogue.STORE,
        Epilogue.ADD_RESIDUAL,
        Epilogue.SILU_MUL,
        Epilogue.ADD_RESIDUAL,
    ]
    kinds = {op.kind for op in ops}
    assert kinds == set(Kind) - {Kind.ADD, Kind.SILU_MUL, Kind.INPUT}
    n_barriers = sum(op.barrier for op in ops)
    assert n_barriers <= 10 * hp.n_layer + 4


def test_slots_of_living_buffers_differ(file):
    hp = read_hyperparameters(file)
    program = record(hp, bind_weights(file, hp), n_ctx=64, page_size=64, kv_type="f16")
    ops = lower(program)
    slot_of, widths = assign_slots(ops, program.logits)
    assert len(widths) <= 6
    born = {b.id: i for i, op in enumerate(ops) for b in op.out}
    last = {b.id: i for i, op in enumerate(ops) for b in op.inputs}
    for a, slot in slot_of.items():
        for b in slot_of:
            if a < b and slot_of[b] == slot:
                first, second = (a, b) if born[a] < born[b] else (b, a)
                assert last.get(first, born[first]) <= born[second]
                in_place = last.get(first) == born[second]
                assert not in_place or second in {o.id for o in ops[born[second]].out}


def tensor(name: str, n_out: int, n_in: int, seed: int) -> QuantTensor:
    qtype = by_name(name)
    if qtype.quantize_blocks is None:
        return random_tensor(qtype, n_out, n_in, seed)
    x = np.random.default_rng(seed).standard_normal((n_out, n_in)).astype(np.float32)
    return QuantTensor(name, qtype, x.shape, qtype.quantize(x / np.float32(8)))


def odd_program() -> Program:
    """Every op in an order that a model would not have: nothing here can be fused the usual way."""
    ops = Recorder()
    x = ops.input(64)
    y = ops.embed(tensor("q4_0", 320, 64, 1))
    a = ops.linear(x, tensor("q8_0", 64, 64, 2))
    b = ops.linear(x, tensor("f16", 64, 64, 3))
    c = ops.linear(x, tensor("bf16", 64, 64, 4))
    d = ops.linear(x, tensor("iq4_nl", 64, 64, 5))
    gated = ops.silu_mul(a, b)
    total = ops.add(ops.add(a, gated), ops.add(c, c))
    normed = ops.rms_norm(ops.add(total, y), np.ones(64, np.float32), 1e-6)
    turned = ops.rope(d, 4)
    ops.write_kv(0, turned, normed)
    seen = ops.attend(0, ops.rope(normed, 4), 4)
    late = ops.add(ops.linear(seen, tensor("q5_0", 64, 64, 6)), ops.linear(y, tensor("q8_0", 64, 64, 7)))
    picked = ops.select_outputs(ops.add(late, x))
    more = ops.silu_mul(ops.linear(picked, tensor("q8_0", 96, 64, 8)), ops.linear(picked, tensor("q4_0", 96, 64, 9)))
    last = ops.linear(more, tensor("q8_0", 40, 96, 10))
    angles = np.arange(100)[:, None] / np.arange(1, 9)
    rope = RopeTable(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
    return ops.finish(last, KVShape(1, 4, 16, 8), rope)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("n", [1, 20])
def test_any_program_runs(n_threads, n):
    program = odd_program()
    step = Step(
        np.arange(n, dtype=np.int32),
        np.arange(n, dtype=np.int32),
        np.zeros(n, np.int32),
        np.array([[2, 0, 1, 3]], np.int32),
        np.arange(0, n, 3, dtype=np.int32),
        (np.random.default_rng(0).standard_normal((n, 64)).astype(np.float32),),
    )
    results = []
    for backend in (ReferenceBackend(), CBackend(n_threads)):
        kv = backend.new_kv_store(program.kv, 4)
        results.append(backend.compile(program, kv, 32).run(step))
    expected, result = results
    assert result.shape == expected.shape == (len(step.outputs), 40)
    assert np.linalg.norm(result - expected) <= 0.01 * np.linalg.norm(expected)


def test_a_step_out_of_range_is_refused(file):
    engine = Engine(file, CBackend(1), n_ctx=64)
    bad = np.array([400], np.int32)
    zero = np.zeros(1, np.int32)
    with pytest.raises(BackendError):
        engine._executable.run(Step(bad, zero, zero, np.zeros((1, 1), np.int32), zero))


def test_a_closed_program_says_so(file):
    engine = Engine(file, CBackend(1), n_ctx=64)
    engine._executable.close()
    engine._executable.close()
    with pytest.raises(BackendError, match="closed"):
        logits(engine)


# Threads, forks, memory


def test_any_number_of_threads_gives_the_same_bits(file):
    expected = logits(Engine(file, CBackend(1), n_ctx=64))
    for n_threads in (2, 3, 5, 9):
        np.testing.assert_array_equal(logits(Engine(file, CBackend(n_threads), n_ctx=64)), expected)


def test_two_engines_in_two_threads(file):
    shared = CBackend(2)
    engines = [Engine(file, shared, n_ctx=64), Engine(file, shared, n_ctx=64), Engine(file, CBackend(2), n_ctx=64)]
    expected = logits(engines[0])
    wrong = []

    def work(engine: Engine) -> None:
        for _ in range(20):
            if not np.array_equal(logits(engine), expected):
                wrong.append(engine)

    threads = [threading.Thread(target=work, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes_too(tmp_path):
    path = write_tiny_model(tmp_path / "tiny.gguf")
    code = f"""
import os, sys
import numpy as np
from localcoder.backends.c import CBackend
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine
engine = Engine(GGUFFile.open({str(path)!r}), CBackend(3), n_ctx=256)
def logits():
    sequence = engine.new_sequence()
    return engine.evaluate([Chunk(sequence, np.arange(20, dtype=np.int32), 20)])
before = logits()
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(logits(), before) else 7)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
sys.exit(code or not np.array_equal(logits(), before))
"""
    done = in_a_process(code)
    assert done.returncode == 0, done.stderr


def test_unused_pages_and_buffers_take_no_memory(file):
    process = psutil.Process()
    backend = CBackend(2)
    warm = Engine(file, backend, n_ctx=64)
    logits(warm)
    before = process.memory_info().rss
    engine = Engine(file, backend, n_ctx=1 << 16, n_sequences=16)  # 256 MiB of cache
    assert engine.kv_bytes >= 1 << 28
    logits(engine)
    assert process.memory_info().rss - before < 48 << 20


def test_decoding_allocates_nothing(file):
    engine = Engine(file, CBackend(2), n_ctx=4096)
    sequence = engine.new_sequence()
    token = np.zeros(1, np.int32)
    for _ in range(200):
        engine.evaluate([Chunk(sequence, token)])
    process = psutil.Process()
    before = process.memory_info().rss
    for _ in range(2000):
        engine.evaluate([Chunk(sequence, token)])
    pages = 2000 * engine.kv_bytes // 4096
    assert process.memory_info().rss - before < pages + (4 << 20)
