"""`localcoder review`: what a reviewer would say about a change."""

from __future__ import annotations

import re
import sys
from typing import Any

import click

from localcoder.cli.asking import Asking, ask, asking_options, show_answer
from localcoder.cli.source import read_source
from localcoder.errors import OptionError

_DIFF = re.compile(r"^(diff --git |@@ .*@@|--- )", re.M)


@click.command()
@asking_options
def review(asking: Asking, options: dict[str, Any]) -> None:
    """Review a change, a diff on stdin.

    For example `git diff | localcoder review`. This takes a model that was tuned for instructions.
    """
    if sys.stdin.isatty():
        raise click.UsageError("a diff is expected on stdin, as in `git diff | localcoder review`")
    diff = read_source(None).text
    if not diff.strip():
        raise OptionError("stdin: the diff is empty; there is nothing to review")
    if not _DIFF.search(diff):
        raise OptionError("stdin: holds no diff; expected one as `git diff` writes it")
    with asking.open() as coder:
        ended = diff if diff.endswith("\n") else diff + "\n"
        show_answer(coder, ask(coder, "review", {"diff": ended}, options), asking.as_json)
