"""The script that measures speculation: its tasks are real edits, and its figures come from replaying them."""

from __future__ import annotations

import ast
import random
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
from checkpoints import load_tool
from click.testing import CliRunner
from tiny_model import write_tiny_model

LIBRARY = [Path(sysconfig.get_path("stdlib")) / name for name in ("argparse.py", "shutil.py", "tarfile.py")]


@pytest.fixture(scope="module")
def tool():
    return load_tool("measure_speculation")


def test_tasks_are_valid_edits_of_real_functions(tool):
    tasks = tool.make_tasks(LIBRARY, 20, random.Random(0))
    assert Counter(task.kind for task in tasks) == {"rename": 7, "argument": 7, "docstring": 6, "unrelated": 7}
    for task in tasks:
        ast.parse(task.prompt)
        ast.parse(task.answer)
        assert task.answer not in task.prompt
    added = {"argument": "verbose=False", "docstring": "Returns what the tests expect", "rename": "new_"}
    assert all(added[task.kind] in task.answer for task in tasks if task.kind in added)


def test_a_run(tool, tmp_path):
    model = write_tiny_model(tmp_path / "tiny.gguf", n_ctx=2048)
    arguments = [*map(str, LIBRARY), "-m", str(model), "--tasks", "3", "--rounds", "1", "--n-tokens", "200"]
    result = CliRunner().invoke(tool.main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)  # how fast it was is not tested here
    rows = {line.split()[1]: line.split()[2:] for line in result.stdout.splitlines()[1:]}
    assert list(rows) == ["rename", "argument", "docstring", "unrelated"]
    right = {kind: int(figures[-1].rstrip("%")) for kind, figures in rows.items()}
    assert right.pop("unrelated") < min(right.values()) > 40
