"""Writes a page of help for each command into tools/help, from what `localcoder COMMAND --help` prints.

    python tools/make_help.py

A test compares the pages with the commands.
"""

from __future__ import annotations

from pathlib import Path

import click

from localcoder.cli.main import COMMANDS, main

FOLDER = Path(__file__).with_name("help")
_WIDTH = 100


def pages() -> dict[str, str]:
    """The pages by file name."""
    context = main.make_context("localcoder", [], resilient_parsing=True)
    index = ["# Commands", ""]
    found = {}
    for name, text in COMMANDS.items():
        command = main.get_command(context, name)
        assert command is not None
        about = click.Context(command, info_name=name, parent=context, terminal_width=_WIDTH, max_content_width=_WIDTH)
        found[f"{name}.md"] = f"# localcoder {name}\n\n```text\n{command.get_help(about)}\n```\n"
        index.append(f"- [{name}]({name}.md): {text}")
    return {"README.md": "\n".join(index) + "\n", **found}


def write_pages() -> None:
    """Makes the folder hold these pages and no others."""
    FOLDER.mkdir(exist_ok=True)
    wanted = pages()
    for path in FOLDER.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_pages()
