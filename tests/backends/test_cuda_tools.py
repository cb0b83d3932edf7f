"""The programs that check CUDA kernels: without a card (NVRTC's log) and with one (here: the emulated one)."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from localcoder.backends.cuda import emulated
from localcoder.backends.cuda.compile import Module
from localcoder.backends.select import open_backend
from localcoder.quants import ALL, by_name

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def tool(name: str):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


LOG = """ptxas info    : Compiling entry function 'lc_few_q4_k_1' for 'sm_90'
ptxas info    : Function properties for lc_few_q4_k_1
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 67 registers, used 1 barriers, 64 bytes smem
ptxas info    : Compiling entry function 'lc_many_q4_k' for 'sm_90'
ptxas info    : Function properties for lc_many_q4_k
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 64 bytes smem
ptxas info    : Compiling entry function 'lc_split_q4_k' for 'sm_90'
ptxas info    : Function properties for lc_split_q4_k
ptxas         .     8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 28 registers, used 0 barriers
"""


def test_spills_of_hot_kernels_are_found():
    check = tool("check_cuda_kernels")
    found = check.usages(LOG)
    assert [(u.kernel, u.stack, u.spilled, u.registers) for u in found] == [
        ("lc_few_q4_k_1", 0, 0, 67),
        ("lc_many_q4_k", 8, 16, 128),
        ("lc_split_q4_k", 8, 0, 28),
    ]
    module = Module("linear", by_name("q4_k"))
    (problem,) = check.problems(module, "sm_90", found, LOG)
    assert problem == "linear-q4_k for sm_90: lc_many_q4_k spills 16 bytes and has 8 bytes of local memory"
    assert list(check.problems(module, "sm_90", [], "")) == ["linear-q4_k for sm_90: the assembler names no kernel"]
    assert "declared but never used" in next(
        check.problems(module, "sm_90", found, "x.h: warning: declared but never used")
    )


def test_kernels_of_a_module_are_checked():
    pytest.importorskip("cuda.core")
    check = tool("check_cuda_kernels")
    module, architecture, found, log = check.compile_one((Module("linear", by_name("q6_k")), "sm_86"))
    assert {"lc_few_q6_k_1", "lc_few_q6_k_16", "lc_many_q6_k", "lc_embed_q6_k"} <= {usage.kernel for usage in found}
    assert not list(check.problems(module, architecture, found, log))


@pytest.mark.parametrize("qtype", ALL, ids=lambda t: t.name)
def test_random_weights_of_the_check_are_of_a_trained_size(qtype):
    rows = tool("gpu_check").random_rows(qtype, 80, 512)
    spread = np.std(qtype.dequantize(rows)) * np.sqrt(512)
    assert rows.shape == (80, qtype.row_bytes(512))
    assert 0.1 <= spread <= 10


@pytest.mark.skipif(emulated.availability() is not None, reason=str(emulated.availability()))
def test_the_check_runs_and_writes_its_results(tmp_path, monkeypatch, capsys):
    check = tool("gpu_check")
    backend = open_backend("cuda-emulated")
    two = [next(check.correctness(backend))]
    assert two[0]["ok"]
    monkeypatch.setattr(
        check, "correctness", lambda backend: iter([{"part": "correctness", "ok": False, "max_error": 1.0}])
    )
    arguments = ["--device", "cuda-emulated", "--shapes", "tiny", "--types", "q4_k_m", "--out", str(tmp_path)]
    assert check.main([*arguments, "--parts", "roofline,speed"]) == 0
    (path,) = tmp_path.iterdir()
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert {result["part"] for result in results} == {"roofline", "decode", "prefill"}
    assert all(result["tokens_per_s"] > 0 for result in results if result["part"] != "roofline")
    assert check.main([*arguments, "--parts", "correctness"]) == 1
    assert "1 results, 1 wrong" in capsys.readouterr().out
