"""The programs that check CUDA kernels: without a card (NVRTC's log) and with one (here: the emulated one)."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from localcoder.backends.cuda import emulated
from localcoder.backends.cuda.compile import Module
from localcoder.quants import ALL, by_name

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def tool(name: str):
    if str(TOOLS) not in sys.path:
        sys.path.append(str(TOOLS))
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


EMULATED = ["--device", "cuda-emulated", "--shapes", "tiny", "--types", "q4_k_m"]
needs_emulation = pytest.mark.skipif(emulated.availability() is not None, reason=str(emulated.availability()))


def results_in(folder: Path) -> list[dict]:
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text(encoding="utf-8"))["results"]


@needs_emulation
def test_the_check_runs_and_writes_its_results(tmp_path, capfd):
    check = tool("gpu_check")
    arguments = [*EMULATED, "--out", str(tmp_path)]
    assert check.main([*arguments, "--parts", "highest,roofline,decode,prefill"]) == 0
    results = results_in(tmp_path)
    assert {result["part"] for result in results} == {"highest", "roofline", "decode", "prefill"}
    assert all(result["tokens_per_s"] > 0 for result in results if result["part"] in ("decode", "prefill"))
    assert all(result["of_limit"] > 0 for result in results if result["part"] in ("decode", "prefill"))
    (table,) = tmp_path.glob("*.md")
    assert "| tiny q4_k_m | 2 | 0 |" in table.read_text(encoding="utf-8")
    assert check.main([*arguments, "--parts", "decode"]) == 0  # done already
    assert results_in(tmp_path) == results
    assert check.main([*arguments, "--parts", "correctness", "--minutes", "0"]) == 0
    assert re.search(r"0 wrong, \d\d checks left", capfd.readouterr().out)


@needs_emulation
def test_a_failure_does_not_keep_the_others_from_running(tmp_path, monkeypatch, capsys):
    check = tool("gpu_check")
    arguments = [*EMULATED, "--out", str(tmp_path), "--in-this-process"]

    def fails(*_):
        yield {"batch": 1}
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS:\nan illegal memory access")

    decode = check.decode
    monkeypatch.setattr(check, "decode", fails)
    monkeypatch.setattr(check, "compare", lambda *case: iter([{"max_error": 1.0, "ok": "q4_k" not in case}]))
    assert check.main([*arguments, "--parts", "decode,prefill"]) == check.RESTART
    assert check.main([*arguments, "--parts", "decode,prefill"]) == 1
    assert [r.get("error") for r in results_in(tmp_path) if r["part"] == "decode"] == [
        None,
        "RuntimeError: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access",
    ]
    assert [r["part"] for r in results_in(tmp_path)] == ["decode", "decode", "prefill"]
    monkeypatch.setattr(check, "decode", decode)
    assert check.main([*arguments, "--parts", "decode,prefill", "--again"]) == 0
    assert check.main([*arguments, "--parts", "correctness"]) == 1
    assert "1 wrong, 0 checks left" in capsys.readouterr().out


def test_a_process_that_was_killed_is_noted(tmp_path):
    report = tool("gpu_report")
    first = report.Report("Card, 8.6", tmp_path)
    first.starts(report.Check("decode", "6.7b q4_k_m", iter))
    second = report.Report("Card, 8.6", tmp_path)
    assert second.done == {"decode 6.7b q4_k_m"}
    assert second.failed[0]["error"] == "the process ended in the middle of it"
    second.forget_failed()
    assert not report.Report("Card, 8.6", tmp_path).done


@pytest.mark.parametrize("arguments", [["--parts", "speed"], ["--shapes", "7b"], ["--types", "q9"]])
def test_wrong_names_are_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        tool("gpu_check").main(arguments)
    assert ended.value.code == 2
    assert "known: " in capsys.readouterr().err


@needs_emulation
def test_the_check_compares_with_the_cpu():
    check = tool("gpu_check")
    checks = {c.key: c for c in check.correctness_checks(emulated.EmulatedCudaBackend())}
    (result,) = next(c for key, c in checks.items() if " q5_1 " in key).run()
    assert result["ok"]
