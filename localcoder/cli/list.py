"""`localcoder list`: the models in the model folder."""

from __future__ import annotations

import click

from localcoder.cli.common import echo_json, json_option
from localcoder.cli.messages import show_note
from localcoder.errors import printable


@click.command()
@json_option
def list(as_json: bool) -> None:
    """List the models on this machine.

    Every command that takes a model file takes one of these names as well. The folder is HOME/models, where HOME is
    what LOCALCODER_HOME names or the platform's usual place; a GGUF file that is put there has its name without .gguf.
    """
    from localcoder.store.folder import models_folder, stored_models

    models = stored_models()
    if as_json:
        entries = [{"name": m.name, "file": str(m.path), "bytes": m.n_bytes} for m in models]
        echo_json({"folder": str(models_folder()), "models": entries})
        return
    width = max((len(printable(model.name)) for model in models), default=0)
    for model in models:
        click.echo(f"{printable(model.name):{width}}  {model.n_bytes / 2**20:>10,.1f} MiB")
    if not models:
        show_note(f"no models in {models_folder()}; `localcoder pull deepseek-coder:1.3b-instruct` fetches one")
