"""`localcoder pull`: fetches a model into the model folder."""

from __future__ import annotations

import click

from localcoder.cli.common import byte_progress, threads_option
from localcoder.cli.convert import DEFAULT_TYPE, convert_checkpoint
from localcoder.cli.messages import show_note
from localcoder.cli.quantizing import TYPES_NOTE, make_choice, nothing_wanted


@click.command(epilog=TYPES_NOTE)
@click.argument("name", metavar="REPO[:TYPE]")
@threads_option
def pull(name: str, threads: int | None) -> None:
    """Fetch a model.

    REPO is OWNER/NAME on the Hugging Face hub, or a short name of the family such as deepseek-coder:1.3b-instruct. Of a
    repository with GGUF files the one of that TYPE is fetched, or the only one; of any other the checkpoint, which is
    converted to TYPE (q8_0 where none is named). An interrupted download goes on where it was. HF_ENDPOINT, HF_TOKEN
    and HF_HUB_OFFLINE are honoured.
    """
    from localcoder.convert.recipes import recipe_by_name
    from localcoder.store.folder import CHECKPOINT, path_of, remove_empty
    from localcoder.store.hub import fetch_as, fetch_checkpoint, look_up
    from localcoder.store.names import ModelName, require_name

    wanted = require_name(name)
    if wanted.type_name and path_of(wanted).exists():
        show_note(f"{wanted} is here already; `localcoder rm {wanted}` deletes it")
        return
    repository = look_up(wanted.repo)
    folder = path_of(ModelName(wanted.repo, CHECKPOINT)).parent
    try:
        if repository.gguf_files():
            type_name, file = repository.gguf_file(wanted.type_name)
            target = path_of(ModelName(wanted.repo, type_name))
            if target.exists():
                show_note(f"{ModelName(wanted.repo, type_name)} is here already")
                return
            with byte_progress(file.name) as progress:
                fetch_as(repository, file, target, progress)
            click.echo(f"fetched {target}: {file.n_bytes / 2**20:,.1f} MiB", err=True)
            return
        type_name = wanted.type_name or DEFAULT_TYPE
        if type_name != CHECKPOINT:
            recipe_by_name(type_name)  # before gigabytes are fetched
        with byte_progress(wanted.repo) as progress:
            checkpoint = fetch_checkpoint(repository, progress)
        if type_name != CHECKPOINT:
            choice = make_choice(type_name, nothing_wanted(), checkpoint)
            target = path_of(ModelName(wanted.repo, type_name))
            convert_checkpoint(checkpoint, target, choice, name=wanted.repo.split("/")[1], threads=threads)
            show_note(f"the checkpoint stays for other types; `localcoder rm {wanted.repo}:{CHECKPOINT}` deletes it")
    finally:
        remove_empty(folder)
