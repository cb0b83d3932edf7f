"""`localcoder eval`: figures and messages."""

from __future__ import annotations

import json
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the programs are ended by signals")

PROMPT = 'def twice(x):\n    """Twice x."""\n'
TEST = "def check(f):\n    assert f(2) == 4\n\ncheck(twice)"


@pytest.fixture
def data(tmp_path):
    rows = [
        {"task_id": f"Python/{i}", "prompt": PROMPT, "test": TEST, "canonical_solution": "    return 2 * x\n"}
        for i in range(3)
    ]
    return write(tmp_path / "humaneval-python.jsonl", rows)


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def completions(tmp_path, *found):
    return write(tmp_path / "c.jsonl", [{"task_id": f"Python/{i}", "completion": text} for i, text in found])


def test_own_solutions(cli, data):
    result = cli("eval", "humaneval", "--data", data.parent, "--completions", "canonical")
    assert (result.code, result.out) == (0, "pass@1 100.0%  (3 of 3 passed)\n")


def test_json(cli, data, tmp_path):
    path = completions(tmp_path, (0, "    return x + x"), (1, "    return x"), (2, "    while True: pass"))
    found = json.loads(cli("eval", "humaneval", "--data", data, "--completions", path, "--timeout", 1, "--json").out)
    assert found["pass@1"] == pytest.approx(1 / 3)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 0)
    assert [(row["task_id"], row["outcome"]) for row in found["tasks"]] == [
        ("Python/0", "passed"),
        ("Python/1", "failed"),
        ("Python/2", "timeout"),
    ]
    assert (found["benchmark"], found["language"]) == ("humaneval", "python")


def test_every_completion_is_kept_with_its_outcome(cli, data, tmp_path):
    path, results = completions(tmp_path, (0, "    return x + x"), (2, "    return x")), tmp_path / "r.jsonl"
    cli("eval", "humaneval", "--data", data, "--completions", path, "--results", results)
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert [(row["task_id"], row["completion"], row["outcome"]) for row in rows] == [
        ("Python/0", "    return x + x", "passed"),
        ("Python/2", "    return x", "failed"),
    ]
    assert rows[1]["detail"] == "a test found a wrong result"
    before = results.read_bytes()
    assert cli("eval", "humaneval", "--data", data, "--completions", "missing.jsonl", "--results", results).code == 2
    assert results.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_several_samples_of_a_task(cli, data, tmp_path):
    path = completions(tmp_path, *[(0, f"    return {'x + x' if i < 2 else 0}") for i in range(10)])
    found = json.loads(cli("eval", "humaneval", "--data", data, "--completions", path, "--json").out)
    assert found["pass@1"] == pytest.approx(0.2)
    assert found["pass@10"] == 1
    assert "pass@100" not in found


def test_what_failed_is_said(cli, data, tmp_path):
    path = completions(tmp_path, (1, "    return y"))
    result = cli("eval", "humaneval", "--data", data, "--completions", path)
    assert result.out == "pass@1 0.0%  (0 of 1 passed)\n"
    assert "Python/1: error: NameError: name 'y' is not defined" in result.err


def test_a_missing_compiler(cli, tmp_path, monkeypatch):
    row = {
        "task_id": "a",
        "language": "cpp",
        "prompt": "int f() {",
        "test": "}\nint main() {\n}\n",
        "stop_tokens": ["\n}"],
    }
    data = write(tmp_path / "d.jsonl", [row])
    path = write(tmp_path / "c.jsonl", [{"task_id": "a", "completion": ""}])
    monkeypatch.setenv("PATH", "/nowhere")
    result = cli("eval", "humaneval", "--data", data, "--completions", path, "--json")
    found = json.loads(result.out)
    assert (found["pass@1"], found["skipped"], found["failed"]) == (None, 1, 0)
    assert "nothing was run" in cli("eval", "humaneval", "--data", data, "--completions", path).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "{data}", "--completions", "missing.jsonl"], "missing.jsonl: no such file"),
        (["--data", "missing", "--completions", "canonical"], "missing: no such file"),
        (["--data", "{data}", "--language", "cobol", "--completions", "canonical"], "no language 'cobol'"),
        (["--data", "{data}", "--language", "c++", "--completions", "canonical"], "python; --language is cpp"),
    ],
)  # fmt: skip
def test_mistakes(cli, data, arguments, message):
    result = cli("eval", "humaneval", *[argument.format(data=data) for argument in arguments])
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
