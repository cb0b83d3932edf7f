"""The script that compares speed: the two programs take turns, and results of several runs are put together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from localcoder.coder import embedded_model

TOOL = Path(__file__).parents[2] / "tools" / "compare_llama_cpp.py"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    pytest.importorskip("llama_cpp")
    path = tmp_path_factory.mktemp("compare") / "out.json"
    with embedded_model() as model:
        for tests in ("tg2@70", "pp8,tg2@70,tg8x4"):
            command = [sys.executable, TOOL, model, "--tests", tests, "--rounds", "2", "--threads", "1", "--out", path]
            subprocess.run([*map(str, command), "--variants", "default"], check=True, capture_output=True)
    return path


def test_parts_are_put_together(out):
    results = json.loads(out.read_text(encoding="utf-8"))["results"]
    assert [r["test"] for r in results] == ["pp8", "tg2@70", "tg8x4"]
    for result in results:
        assert result["ours"] > 0
        assert result["theirs"] > 0
        assert len(result["ratios"]) == 2
        assert result["ratios"][0] <= result["ratio"] <= result["ratios"][1]
        assert result["variant"] == "default"


def test_table(out):
    table = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "| python-9m | f16 | tg2@70 |" in table
