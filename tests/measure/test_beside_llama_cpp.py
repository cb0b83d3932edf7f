"""Whole quantized files of the trained checkpoint, beside llama.cpp's: does it read ours, and whose are closer?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import load_tool

from localcoder.convert.recipes import NAMES
from localcoder.measure.calibration import calibration_text

pytest.importorskip("llama_cpp")
N_CTX = 256
N_TEST = 16_000  # characters of the held-out text
N_CALIBRATION = 24_000  # of ours
# The most that our KL divergence may be of llama.cpp's, calibrated against importance matrix.
CALIBRATED = {"q4_0": 0.6, "q4_k_m": 0.7, "q3_k_m": 0.7, "q2_k": 0.7}


@pytest.fixture(scope="module")
def bench(shared, tmp_path_factory):
    folder = shared / "checkpoints" / "python-9m"
    test = (folder / "heldout.txt").read_text(encoding="utf-8")[:N_TEST]
    tool = load_tool("compare_quality")
    found = tool.Bench(folder, tmp_path_factory.mktemp("bench"), test, calibration_text()[:N_CALIBRATION], N_CTX, 1)
    yield found
    found.close()


@pytest.mark.parametrize("type_name", NAMES)
def test_both_programs_say_the_same_of_each_type(bench, type_name):
    row = bench.measure(type_name, ["ours"])
    assert row.by_variant["ours"].divergence.perplexity == pytest.approx(row.perplexity_in_llama_cpp, rel=0.01)


@pytest.mark.parametrize(
    "type_name", ["q4_0", "q2_k", *(pytest.param(name, marks=pytest.mark.slow) for name in ("q4_k_m", "q3_k_m"))]
)
def test_calibrated_files_are_closer_than_those_with_an_importance_matrix(bench, type_name):
    row = bench.measure(type_name)
    found = {name: quality.divergence.kl_divergence for name, quality in row.by_variant.items()}
    assert found["ours calibrated"] <= CALIBRATED[type_name] * found["llama.cpp imatrix"], found
    assert found["ours"] <= 1.03 * found["llama.cpp"], found


def test_results_are_added_to_those_of_an_earlier_run(tmp_path, monkeypatch):
    tool = load_tool("compare_quality")
    found = json.loads((tool.RESULTS / "quality-python-9m.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(tool, "RESULTS", tmp_path)
    rows = tool.read_rows(Path(tool.__file__).parent / "results" / "quality-python-9m.json", found["about"])
    assert len(rows) == len(NAMES)
    tool.write_results("x", found["about"], rows[5:])
    tool.write_results("x", found["about"], rows[:7])
    assert json.loads((tmp_path / "quality-x.json").read_text(encoding="utf-8")) == found
    path = tool.write_results("x", ["another text"], rows[:1])
    assert tool.read_rows(path.with_suffix(".json"), ["another text"]) == rows[:1]
