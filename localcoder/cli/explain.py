"""`localcoder explain`: what a piece of code does."""

from __future__ import annotations

from typing import Any

import click

from localcoder.cli.asking import Asking, ask, asking_options, read_excerpt, show_answer


@click.command()
@click.argument("place", metavar="FILE[:A-B]")
@asking_options
def explain(place: str, asking: Asking, options: dict[str, Any]) -> None:
    """Explain a file, or lines of it.

    A and B are the first and the last line. `-` reads stdin. This takes a model that was tuned for instructions.
    """
    excerpt = read_excerpt(place)
    with asking.open() as coder:
        show_answer(coder, ask(coder, "explain", excerpt.fields(), options), asking.as_json)
