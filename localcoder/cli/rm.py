"""`localcoder rm`: deletes models of the model folder."""

from __future__ import annotations

import click

from localcoder.errors import OptionError


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def rm(names: tuple[str, ...]) -> None:
    """Delete models from this machine.

    NAME is one that `localcoder list` shows. Nothing is deleted if one of them is not there.
    """
    from localcoder.store.folder import find_stored, remove

    found = []
    for name in names:
        model = find_stored(name)
        if model is None:
            raise OptionError(f"{name}: no model of this name; `localcoder list` shows what there is")
        found.append(model)
    for model in dict.fromkeys(found):
        remove(model)
        click.echo(f"deleted {model.path}", err=True)
