"""One-line messages on stderr."""

from __future__ import annotations

import contextlib

import click


def show_error(text: str) -> None:
    """`localcoder: error: …`"""
    _show("error", text)


def show_note(text: str) -> None:
    """`localcoder: note: …`"""
    _show("note", text)


def _show(kind: str, text: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(f"localcoder: {kind}: {_one_line(text)}", err=True)


def _one_line(text: str) -> str:
    """Text from files or users, safe to show on a terminal: no line breaks, no escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
