"""`localcoder complete`: what belongs at a place in a file. stdout holds it and nothing else."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localcoder.assist.hygiene import SCOPES, Scope
from localcoder.assist.repository import Related, find_related
from localcoder.cli.common import (
    device_option,
    draft_model_option,
    echo_json,
    generation_options,
    given,
    gpu_layers_option,
    json_option,
    kv_type_option,
    model_option,
    n_ctx_option,
    open_coder,
    threads_option,
)
from localcoder.cli.messages import show_note
from localcoder.cli.source import echo_diff, offset_of, read_source, split_place, visible

if TYPE_CHECKING:
    from localcoder.assist.context import Context

_CHARS_PER_POSITION = 2  # of related files; the rest is for the file at hand and the answer


@click.command()
@click.argument("place", metavar="FILE:LINE[:COLUMN]")
@click.option("--scope", type=click.Choice(SCOPES), help="Most that is wanted.  [default: until the model ends]")
@click.option(
    "--repo", type=click.Path(path_type=Path), metavar="DIR", help="Show the model related files of this folder, too."
)
@click.option("--show-context", is_flag=True, help="List on stderr which of them, and why.")
@click.option("--diff", "as_diff", is_flag=True, help="Print the change as a diff.")
@click.option("--write", is_flag=True, help="Put the completion into the file.")
@model_option
@generation_options
@threads_option
@device_option
@gpu_layers_option
@kv_type_option
@n_ctx_option
@draft_model_option
@json_option
def complete(
    place: str,
    scope: Scope | None,
    repo: Path | None,
    show_context: bool,
    as_diff: bool,
    write: bool,
    model: Path | None,
    threads: int | None,
    device: str,
    gpu_layers: int | None,
    kv_type: str,
    n_ctx: int | None,
    draft_model: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Complete the code at a place in a file.

    The place is a line and a column, counted from 1 as editors do; without COLUMN it is the end of the line. The model
    sees the text before and after it. Without FILE, as in `:12:8`, the text is read from stdin.
    """
    from localcoder.session.infill import InfillRequest

    if as_json and as_diff:
        raise click.UsageError("--json and --diff exclude each other")
    path, line, column = split_place(place)
    if write and path is None:
        raise click.UsageError("--write needs a file, not stdin")
    source = read_source(path)
    at = offset_of(source, line, column)
    if repo is not None and path is None:
        raise click.UsageError("--repo needs a file in it, not stdin")
    with open_coder(
        model,
        n_ctx=n_ctx,
        threads=threads,
        device=device,
        gpu_layers=gpu_layers,
        kv_type=kv_type,
        draft_model=draft_model,
    ) as coder:
        related = []
        name = path.as_posix() if path else None
        if repo is not None and path is not None:
            related = find_related(repo, path, source.text, most_chars=coder.n_ctx * _CHARS_PER_POSITION)
            name = path.resolve().relative_to(repo.resolve()).as_posix()
        files = {file.path: file.text for file in related}
        request = InfillRequest(source.text[:at], source.text[at:], name, files, scope=scope)
        infill = coder.start_infill(request, **given(options))
        if show_context:
            _show_context(infill.context, related)
        if infill.context.n_left_out:
            show_note(f"{source.name}: {infill.context.n_left_out} characters far from the place do not fit")
        done = infill.run()
        if as_json:
            echo_json({"model": str(coder.path), **asdict(done)})
    if not done.text:
        show_note("the model has nothing to say there")
        return
    completed = source.text[:at] + done.text + source.text[at:]
    if as_diff:
        echo_diff(source, completed)
    elif not as_json and not write:
        click.echo(visible(done.text) if sys.stdout.isatty() else done.text, nl=sys.stdout.isatty())
    if write:
        source.replace(completed)


def _show_context(context: Context, related: list[Related]) -> None:
    for file in related:
        fits = "" if file.path in context.files else "left out, no room: "
        click.echo(visible(f"{fits}{file.path}: {', '.join(file.reasons)}").replace("\n", " "), err=True)
    if not related:
        click.echo("no related files", err=True)
