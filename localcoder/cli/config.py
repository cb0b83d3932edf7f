"""`localcoder config`: the user's defaults."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import click

from localcoder.cli.common import echo_json, json_option
from localcoder.cli.settings import KEYS, config_path, read_settings
from localcoder.errors import printable
from localcoder.session.options import GenerationOptions


@click.command()
@json_option
def config(as_json: bool) -> None:
    """Show the defaults of options that are set, and what can be set.

    They stand in the file config.toml, in the folder that LOCALCODER_HOME names or the platform's usual place. What is
    printed is such a file. An option on the command line counts before the environment, and that before this file.
    """
    path, settings = config_path(), read_settings()
    if as_json:
        echo_json({"file": str(path), "exists": path.exists(), "settings": settings})
        return
    click.echo(f"# {printable(str(path))}{'' if path.exists() else ' (not there yet)'}")
    for line in _lines(settings):
        click.echo(line)


def _lines(settings: dict[str, Any]) -> list[str]:
    from localcoder.assist.prompts import PROMPTS

    defaults = {spec.name: spec.default for spec in fields(GenerationOptions)}
    lines = []
    for key in KEYS:
        if key in settings:
            lines.append(f"{key} = {_toml(settings[key])}")
        else:
            default = defaults.get(key)
            shown = isinstance(default, (int, float, str)) or default
            lines.append(f"# {key} = {_toml(default)}" if shown else f"# {key} =")
    prompts = settings.get("prompts", {})
    lines += ["", "[prompts]"]
    lines += [
        f"{'' if name in prompts else '# '}{name} = {_toml(prompts.get(name, text))}" for name, text in PROMPTS.items()
    ]
    return lines


def _toml(value: Any) -> str:
    """A text, number, truth value or list of those: JSON writes them as TOML does."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
