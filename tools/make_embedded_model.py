"""Makes the model that ships inside the package from the trained checkpoint.

    python tools/make_embedded_model.py [CHECKPOINT]

The same checkpoint gives the same bytes on every machine.
"""

from __future__ import annotations

from pathlib import Path

import click

from localcoder.convert.choice import Choice
from localcoder.convert.converter import convert
from localcoder.convert.recipes import recipe_by_name
from localcoder.quants.search import requantize

PROJECT = Path(__file__).resolve().parents[1]
CHECKPOINT = PROJECT.parent / "shared" / "checkpoints" / "python-9m"
TARGET = PROJECT / "localcoder" / "data" / "python-9m.gguf"


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path), default=CHECKPOINT)
@click.option("--out", type=click.Path(path_type=Path), default=TARGET, help="[default: the package's data]")
def main(checkpoint: Path, out: Path) -> None:
    convert(checkpoint, out, Choice(recipe_by_name("q8_0")), requantize=requantize, name="python-9m")
    click.echo(f"wrote {out}: {out.stat().st_size:,} bytes", err=True)


if __name__ == "__main__":
    main()
