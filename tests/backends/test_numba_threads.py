"""The numba backend's threads: failures, forks, several users, and what a terminal sees while kernels compile."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import numba
import numpy as np
import pytest
from tiny_model import write_tiny_model

from localcoder.backends.numba import NumbaBackend
from localcoder.backends.numba.replay import CELL_STRIDE, meet
from localcoder.backends.numba.team import ThreadTeam
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine

TOKENS = np.arange(40, dtype=np.int32)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", type_name="q8_0")


def logits(path: Path, backend: NumbaBackend) -> np.ndarray:
    engine = Engine(GGUFFile.open(path), backend)
    return engine.evaluate([Chunk(engine.new_sequence(), TOKENS, len(TOKENS))])


def test_every_member_gets_the_call_and_the_team_can_be_reopened():
    before = threading.active_count()
    team = ThreadTeam(4)
    seen: list[int] = []
    for _ in range(2):
        seen.clear()
        team.run(lambda: seen.append(threading.get_ident()), cells=np.zeros(1, np.int64))
        assert len(set(seen)) == 4
        team.close()
    assert threading.active_count() == before


def test_a_failure_in_one_thread_frees_the_others_and_is_raised():
    team = ThreadTeam(3)
    cells = np.zeros(4 * CELL_STRIDE, np.int64)
    caller = threading.get_ident()

    def fail_in_a_member() -> None:
        if threading.get_ident() != caller and cells[2 * CELL_STRIDE] == 0:
            cells[2 * CELL_STRIDE] = 1
            raise MemoryError("no room")
        meet(cells, CELL_STRIDE, 3)

    with pytest.raises(MemoryError, match="no room"):
        team.run(fail_in_a_member, cells=cells)
    cells[:] = 0
    done = []
    team.run(lambda: done.append(meet(cells, CELL_STRIDE, 3)), cells=cells)
    assert done == [True] * 3
    team.close()


@pytest.mark.parametrize("shared_backend", [True, False])
def test_two_engines_in_two_threads(path, shared_backend):
    expected = logits(path, NumbaBackend(1))
    first = NumbaBackend(2)
    backends = [first, first if shared_backend else NumbaBackend(2)]
    results: list[np.ndarray] = []

    def work(backend: NumbaBackend) -> None:
        for _ in range(5):
            results.append(logits(path, backend))

    users = [threading.Thread(target=work, args=(backend,)) for backend in backends]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert len(results) == 10
    for result in results:
        np.testing.assert_array_equal(result, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes(path):
    script = f"""
import os, sys, warnings
sys.path[:0] = {sys.path!r}
warnings.simplefilter("ignore", DeprecationWarning)  # forking a process with threads is what is tested
import numpy as np
from localcoder.backends.numba import NumbaBackend
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine
engine = Engine(GGUFFile.open({str(path)!r}), NumbaBackend(2))
tokens = np.arange(40, dtype=np.int32)
expected = engine.evaluate([Chunk(engine.new_sequence(), tokens)])
child = os.fork()
found = engine.evaluate([Chunk(engine.new_sequence(), tokens)])
if not child:
    os._exit(0 if np.array_equal(found, expected) else 3)
sys.exit(os.waitpid(child, 0)[1])
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_nothing_is_drawn_where_stderr_is_no_terminal(path, capfd, caplog):
    with caplog.at_level(logging.WARNING):
        logits(path, NumbaBackend(2))
    assert capfd.readouterr().err == ""
    assert not caplog.records


def test_a_terminal_is_told_that_kernels_compile(monkeypatch, capsys):
    from localcoder.backends.numba import jit

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)

    @numba.njit  # not kept: it compiles in every run
    def new_kernel(x):
        return x + 1

    with jit.compilation_shown():
        assert new_kernel(1) == 2
    assert "compiling kernels" in capsys.readouterr().err
    with jit.compilation_shown():
        new_kernel(2)
    assert capsys.readouterr().err == ""
