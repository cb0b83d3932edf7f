"""`localcoder eval` with problems from a hub: a hub on this machine."""

from __future__ import annotations

import json
import os
import sys

import pytest
from hub_server import serve

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the programs are ended by signals")

FILE = "data/python/problems.jsonl"
ROWS = [
    {
        "task_id": f"Python/{i}",
        "prompt": f"def plus_{i}(x):\n",
        "test": f"def check(f):\n    assert f(1) == {i + 1}\n\ncheck(plus_{i})",
        "canonical_solution": f"    return x + {i}\n",
    }
    for i in range(3)
]
DATA = "\n".join(map(json.dumps, ROWS)).encode()


@pytest.fixture
def hub():
    with serve({}) as found:
        found.datasets = {"owner/problems": {FILE: DATA, "README.md": b"hello"}, "owner/other": {"a.parquet": b"x"}}
        yield found


@pytest.fixture
def evaluate(hub, tmp_path, start):
    def run(data: str, **more: str) -> tuple[int, str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HTTP"))}
        env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "LOCALCODER_HOME": str(tmp_path / "home")}
        env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", **more}
        process = start("eval", "humaneval", "--data", data, "--completions", "canonical", env=env)
        out, err = process.communicate(timeout=60)
        return process.returncode, out.decode(), err.decode()

    return run


def test_problems_are_fetched_once(hub, evaluate, tmp_path):
    code, out, err = evaluate(f"owner/problems:{FILE}")
    assert (code, out) == (0, "pass@1 100.0%  (3 of 3 passed)\n"), err
    assert (tmp_path / "home" / "datasets" / "owner" / "problems" / FILE).read_bytes() == DATA
    n_requests = len(hub.requests)
    code, out, err = evaluate(f"owner/problems:{FILE}", HF_HUB_OFFLINE="1")
    assert (code, out) == (0, "pass@1 100.0%  (3 of 3 passed)\n"), err
    assert len(hub.requests) == n_requests


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("owner/problems:mbpp.jsonl", f"owner/problems: has no mbpp.jsonl; it has {FILE}"),
        ("owner/other:mbpp.jsonl", "it has no files of JSON lines"),
        ("owner/none:mbpp.jsonl", "owner/none: no such repository"),
        ("owner/problems:../mbpp.jsonl", "no such file"),
        ("owner/problems:/mbpp.jsonl", "no such file"),
        ("owner/other:a.parquet", "no such file"),
    ],
)
def test_what_is_not_there(evaluate, data, message, tmp_path):
    code, out, err = evaluate(data)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message in err
    assert not list(tmp_path.rglob("*.jsonl"))


def test_data_that_are_not_what_was_announced(hub, evaluate, tmp_path):
    hub.corrupt = {FILE}
    code, _, err = evaluate(f"owner/problems:{FILE}")
    assert code == 2
    assert "instead of" in err
    assert not list((tmp_path / "home").rglob("*.jsonl*"))


def test_gated_data_name_their_page(hub, evaluate):
    hub.gated = {"owner/problems"}
    code, _, err = evaluate(f"owner/problems:{FILE}")
    assert code == 2
    assert f"{hub.url}/datasets/owner/problems" in err
