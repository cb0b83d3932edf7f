"""`localcoder eval` with models: writing, resuming, several at once."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import sys

import pytest
from tiny_model import write_tiny_model

from localcoder.coder import Coder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the programs are ended by signals")

PROMPT = "def f(x):\n"
N_CTX = 600


@pytest.fixture(autouse=True)
def _batch_invariant(_quick_backend, monkeypatch):
    # Texts must not depend on their neighbours in a step, as they do in the reference: its products are BLAS's.
    if os.environ["LOCALCODER_BACKEND"] == "numpy":
        monkeypatch.delenv("LOCALCODER_BACKEND")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    rows = [
        {
            "task_id": f"Python/{i}",
            "prompt": f"{PROMPT}    # {i}\n",
            "test": "assert f(1) == 1",
            "canonical_solution": "    return x\n",
        }
        for i in range(4)
    ]
    (folder / "humaneval-python.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for name in ("a", "b"):
        write_tiny_model(folder / f"{name}.gguf", scale=3.0, n_ctx=N_CTX, seed=len(name) + ord(name))
    return folder


@pytest.fixture
def evaluate(cli, files):
    def run(*args):
        return cli("eval", "humaneval", "--data", files, "-m", files / "a.gguf", *args)

    return run


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_completions_are_as_if_written_alone(evaluate, files, tmp_path):
    out = tmp_path / "out.jsonl"
    result = evaluate("--no-execute", "--output", out, "--json", "--parallel", 3)
    assert (result.code, json.loads(result.out)["completions"]) == (0, 4)
    stops = ["\ndef", "\nclass", "\nif", "\n#", "\nprint"]
    with Coder(files / "a.gguf") as coder:
        alone = {f"Python/{i}": coder.complete(f"{PROMPT}    # {i}", stop=stops, max_tokens=500) for i in range(4)}
    assert {row["task_id"]: row["completion"] for row in rows_of(out)} == alone


def test_an_interrupted_run_goes_on(evaluate, files, tmp_path):
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    arguments = ["--no-execute", "--samples", 2, "--temperature", 0.8]
    evaluate(*arguments, "--output", whole)
    lines = whole.read_text().splitlines(keepends=True)
    assert len(lines) == 8
    assert len({json.loads(line)["completion"] for line in lines}) == 8
    part.write_text("".join(lines[:3]) + lines[3][:20])
    evaluate(*arguments, "--output", part)
    assert part.read_text().startswith("".join(lines[:3]))
    assert sorted(part.read_text().splitlines()) == sorted(whole.read_text().splitlines())
    evaluate(*arguments, "--output", part)
    assert len(rows_of(part)) == 8
    result = evaluate("--no-execute", "--output", part)
    assert result.code == 2
    assert "line 1 comes from another model or other options" in result.err


def test_figures(evaluate, tmp_path):
    found = json.loads(evaluate("--json", "--limit", 2, "--output", tmp_path / "o.jsonl").out)
    assert (found["pass@1"], found["passed"], found["failed"]) == (0, 0, 2)
    assert {row["task_id"] for row in found["tasks"]} == {"Python/0", "Python/1"}
    assert (found["protocol"], found["published"]) == ("base", None)
    # What has been written is run again: here by right answers in its place.
    rows = [{**row, "completion": "    return x"} for row in rows_of(tmp_path / "o.jsonl")]
    (tmp_path / "o.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "pass@1 100.0%  (2 of 2 passed)" in evaluate("--limit", 2, "--output", tmp_path / "o.jsonl").out


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="no matplotlib")
def test_several_models_and_a_plot(evaluate, files, tmp_path):
    plot, folder = tmp_path / "plot.svg", tmp_path / "outs"
    result = evaluate("-m", files / "b.gguf", "--limit", 1, "--plot", plot, "--output", folder, "--json")
    found = json.loads(result.out)["models"]
    assert [model["model"] for model in found] == [str(files / "a.gguf"), str(files / "b.gguf")]
    assert sorted(path.name for path in folder.iterdir()) == ["a.jsonl", "b.jsonl"]
    drawn = plot.read_text()  # every text of the picture stands in it as a comment, too
    assert all(f"<!-- {text} -->" in drawn for text in ("a", "b", "pass@1, %", "File size and solved problems"))


def test_several_models_make_a_table(evaluate, files, tmp_path):
    lines = tmp_path / "results.jsonl"
    models = ["-m", files / "b.gguf", "--samples", 2, "--temperature", 1, "--limit", 2, "--results", lines]
    head, *rows = evaluate(*models).out.splitlines()
    assert head.split() == ["pass@1", "passed", "published", "size", "file"]
    size = f"{(files / 'a.gguf').stat().st_size / 1e9:.3g}"
    assert [row.split() for row in rows] == [
        ["0.0%", "0", "of", "4", "-", size, "GB", str(files / f"{name}.gguf")] for name in "ab"
    ]
    assert head.index("published") + len("published") == rows[0].index("-") + 1
    found = [(row["model"], row["task_id"]) for row in rows_of(lines)]
    expected = [(str(files / f"{model}.gguf"), f"Python/{i}") for model in "ab" for i in (0, 1) for _ in range(2)]
    assert sorted(found) == expected
    assert all(row["outcome"] in ("failed", "error") and row["completion"] for row in rows_of(lines))


def test_an_instruct_model_answers_in_a_chat(cli, files, tmp_path, monkeypatch):
    """The prompt is that of the family's template; what counts of the answer is its code block."""
    from localcoder.measure.evaluation import generation
    from localcoder.tokenizer.chat_template import FAMILY_TEMPLATE

    instruct = write_tiny_model(
        tmp_path / "instruct.gguf", n_ctx=2000, chat_template=FAMILY_TEMPLATE, name="x-instruct"
    )
    asked = []
    whole = generation.BatchGenerator.generate

    def generate(self, work):
        for written in whole(self, work):
            asked.append(work[written.number][0])
            yield dataclasses.replace(written, text="Sure:\n```python\ndef f(x):\n    return x\n```\nDone.")

    monkeypatch.setattr(generation.BatchGenerator, "generate", generate)
    found = json.loads(cli("eval", "humaneval", "--data", files, "-m", instruct, "--limit", 2, "--json").out)
    assert (found["protocol"], found["pass@1"]) == ("instruct", 1)
    with Coder(instruct) as coder:
        text = coder.detokenize(asked[0].prompt)
    assert "### Instruction:\nPlease continue to complete the function." in text
    assert text.endswith("```\n### Response:\n")
    assert asked[0].max_tokens == 1024


@pytest.mark.skipif(importlib.util.find_spec("pyte") is None, reason="no pyte")
def test_the_bar_tells_what_has_passed_so_far(start, files, tmp_path):
    from terminal_screen import Terminal

    completions = tmp_path / "c.jsonl"
    rows = [{"task_id": f"Python/{i % 4}", "completion": f"    return {'x' if i % 2 else '0'}"} for i in range(24)]
    completions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = ["eval", "humaneval", "--data", files, "--completions", completions, "--workers", 1]
    terminal = Terminal(start, *arguments)
    terminal.wait_for("(12 of 24 passed)")
    assert terminal.end() == 0
    bars = re.findall(rb"pass@1.{0,400}?(\d+)/24.{0,40}?(\d+\.\d)%", terminal.seen, re.DOTALL)
    assert any(0 < int(n_done) < 24 for n_done, _ in bars)
    for n_done, rate in bars:
        n_passed = int(n_done) // 2
        assert float(rate) == pytest.approx(100 * n_passed / int(n_done), abs=0.06)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-execute"], "it needs --output"),
        (["--no-execute", "--output", "o.jsonl", "--results", "r.jsonl"], "no --completions or --results"),
        (["--results", "no-such-folder/r.jsonl"], "its folder does not exist"),
        (["--samples", "2"], "differ only with a --temperature"),
        (["--completions", "canonical", "--samples", "2"], "no model writes anything"),
        (["--plot", "x.jpg"], "a plot's name ends in"),
        (["--temperature", "-1"], "temperature is -1"),
        (["-m", "missing.gguf", "--output", "o"], "missing.gguf: no such file"),
        (["-m", "elsewhere/a.gguf", "--output", "o"], "two of these have the same name"),
    ],
)
def test_mistakes(evaluate, files, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(files / "a.gguf", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    result = evaluate(*arguments)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "o").exists()


def test_a_context_that_is_too_short(cli, files, tmp_path):
    short = write_tiny_model(tmp_path / "short.gguf", n_ctx=128)
    result = cli("eval", "humaneval", "--data", files, "-m", short)
    assert result.code == 2
    assert "do not fit in a context of 128" in result.err
