"""`localcoder test`: tests for a file. stdout holds their code and nothing else."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from localcoder.assist.prompts import code_block
from localcoder.cli.asking import Asking, ask, asking_options, note_full_context, read_excerpt
from localcoder.cli.common import echo_json
from localcoder.cli.messages import show_note
from localcoder.cli.source import visible


@click.command()
@click.argument("place", metavar="FILE[:A-B]")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT", help="Write them to a file.")
@asking_options
def test(place: str, output: Path | None, asking: Asking, options: dict[str, Any]) -> None:
    """Write tests for a file, or for lines of it.

    A and B are the first and the last line. `-` reads stdin. This takes a model that was tuned for instructions.
    """
    from localcoder.files.atomic import OutputFile
    from localcoder.session.generation import Completion

    excerpt = read_excerpt(place)
    inputs = [excerpt.source.path] if excerpt.source.path else []
    out = OutputFile(output, inputs=inputs) if output else None  # fails before the model has worked
    with asking.open() as coder:
        generation = ask(coder, "test", excerpt.fields(), options)
        for _ in generation:
            pass
        done: Completion = generation.completion
        note_full_context(coder, done)
        code = code_block(done.text)
        if code is None:
            show_note("the answer has no complete code block; this is all of it")
        if asking.as_json:
            echo_json({"model": str(coder.path), "code": code, **asdict(done)})
    text = done.text if code is None else code
    if out:
        with out:
            out.write(text.encode())
    elif not asking.as_json:
        click.echo(visible(text), nl=not text.endswith("\n"))
