"""The pages of help are what the commands say."""

from __future__ import annotations

from checkpoints import load_tool


def test_the_pages_are_up_to_date(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")  # whatever the terminal
    tool = load_tool("make_help")
    there = {path.name: path.read_text(encoding="utf-8") for path in tool.FOLDER.iterdir()}
    assert there == tool.pages(), "run `python tools/make_help.py`"


def test_every_command_has_a_page_with_its_options():
    from localcoder.cli.main import COMMANDS

    pages = load_tool("make_help").pages()
    assert set(pages) == {"README.md", *(f"{name}.md" for name in COMMANDS)}
    for name in COMMANDS:
        assert f"Usage: localcoder {name} " in pages[f"{name}.md"]
    assert "--temperature" in pages["run.md"]
