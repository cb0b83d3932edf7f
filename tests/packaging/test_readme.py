"""The README and the other documents tell the truth about commands, options, variables and names."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import click
import pytest

from localcoder.cli.main import COMMANDS
from localcoder.coder import embedded_model
from localcoder.convert import recipes

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(ROOT.glob("*.md"))


def command(name: str) -> click.Command:
    found = getattr(importlib.import_module(f"localcoder.cli.{name}"), name)
    assert isinstance(found, click.Command)
    return found


def shown_commands() -> list[str]:
    """Every command line of the README that calls localcoder, in code blocks and in tables."""
    blocks = re.findall(r"```(?:sh|bat)\n(.*?)```", README, re.S)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    parts = [part for line in lines for part in re.split(r"&&|\|", line)]
    parts += re.findall(r"`(localcoder [^`]+)`", README)
    calls = [re.search(r"\blocalcoder (?=[a-z])(.*)", part) for part in parts]
    return [call.group(1) for call in calls if call]


def test_commands_are_found() -> None:
    assert len(shown_commands()) > 10
    assert {line.split()[0] for line in shown_commands()} >= set(COMMANDS), "the README leaves out a command"


@pytest.mark.parametrize("line", shown_commands())
def test_commands_and_options_exist(line: str) -> None:
    name, *words = shlex.split(line.split(" > ")[0])
    known = {option for parameter in command(name).params for option in parameter.opts} | {"--help"}
    used = [word for word in words if word.startswith("-")]
    assert set(used) <= known


@pytest.mark.skipif(os.name != "posix", reason="the tour is for a POSIX shell")
def test_the_tour_runs_as_it_is_typed(tmp_path: Path) -> None:
    (tour,) = re.findall(r"<!-- tour -->\n```sh\n(.*?)```\n<!-- end tour -->", README, re.S)
    scripts = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": scripts}
    *lines, last = tour.splitlines()
    for line in lines:
        done = subprocess.run(
            ["sh", "-c", line], cwd=tmp_path, env=environment, input="", capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), line
    assert last.partition("#")[0].split() == ["localcoder", "run"]  # tests/cli/test_terminal.py has that
    assert not (tmp_path / "names.py").read_text(encoding="utf-8").endswith("os.list\n")


def test_json_where_the_readme_says_so() -> None:
    (sentence,) = re.findall(r"All but (.*), which write or delete files, print JSON with `--json`", README)
    without = {name for name in COMMANDS if not any("--json" in parameter.opts for parameter in command(name).params)}
    assert without == set(re.findall(r"`(\w+)`", sentence))


def test_the_table_of_speeds_is_drawn_from_the_results() -> None:
    from speed_table import END, START, speed_table

    assert README.split(START)[1].split(END)[0] == speed_table()


def test_types_exist() -> None:
    table = README.split("| `--type` |")[1].split("\n\n")[0]
    shown = set(re.findall(r"`([a-z0-9_]+)`", table))
    assert shown
    assert shown <= set(recipes.NAMES)


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", README, re.S))
def test_the_python_examples_run(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    for library in re.findall(r"from localcoder\.compat\.(langchain)", example):
        pytest.importorskip(f"{library}_core")
    with embedded_model() as path:
        names: dict[str, Any] = {"__name__": "example"}
        exec(example.replace("coder-1.3b.gguf", path.as_posix()), names)
    assert capsys.readouterr().out.strip()
    if "logits" in names:
        assert names["logits"].shape == (len(names["ids"]), names["coder"].n_vocab)


def test_variables_exist() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "localcoder").rglob("*.py"))
    for name in re.findall(r"(?<!define\.)LOCALCODER_[A-Z_]+", README):
        assert f'"{name}"' in sources, name
    for name in re.findall(r"cmake\.define\.([A-Z_]+)", README):
        assert f"option({name} " in (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"), name


def test_files_and_folders_exist() -> None:
    for name in re.findall(r"^\| `([a-z]+/[a-z/]*)` \|", README, re.M) + re.findall(r"\]\(([A-Za-z.]+)\)", README):
        assert (ROOT / name).exists(), name


def test_rooms_are_listed_in_the_order_of_imports() -> None:
    from test_layers import ROOMS

    listed = re.findall(r"^\| `localcoder/([a-z]+)/` \|", README, re.M)
    present = [path.name for path in (ROOT / "localcoder").iterdir() if path.is_dir() and path.name in ROOMS]
    assert set(listed) == set(present)
    assert [ROOMS[name] for name in listed] == sorted(ROOMS[name] for name in listed)


@pytest.mark.parametrize("path", [*DOCUMENTS, *sorted((ROOT / "localcoder").rglob("*.py"))], ids=lambda path: path.name)
def test_nobody_is_told_to_install_the_strangers_package(path: Path) -> None:
    """The plain name on the package index belongs to somebody else."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(
        r"(?:pip3?|uv|pipx|uvx)\s+(?:install\s+|add\s+|run\s+)?(?:-\S+\s+)*['\"]?localcoder(?![\w./-])", text
    )


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX shell commands")
@pytest.mark.parametrize("name", ["run", "test"])
def test_set_up_commands_are_one_line_each(name: str) -> None:
    """`.ci/run` takes them from between these marks."""
    (block,) = re.findall(rf"<!-- setup: {name} -->\n```sh\n(.*)\n```\n<!-- end setup -->", README)
    assert "pip install" in block
