"""What noise in each kind of matrix does to a model: prints the factors of localcoder/convert/allocation.py.

python tools/measure_sensitivity.py CHECKPOINT
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from localcoder.backends.select import open_backend
from localcoder.convert.choice import Choice
from localcoder.convert.converter import convert
from localcoder.convert.recipes import recipe_by_name
from localcoder.files.gguf_reader import GGUFFile
from localcoder.measure.calibration import calibration_text
from localcoder.measure.chunks import cut_chunks
from localcoder.measure.sensitivity import measure_sensitivity
from localcoder.tokenizer.tokenizer import Tokenizer

N_CTX = 256


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--tokens", "n_tokens", default=16384, show_default=True, help="Of our calibration text.")
def main(checkpoint: Path, n_tokens: int) -> None:
    backend = open_backend()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        convert(checkpoint, path, Choice(recipe_by_name("f32")), requantize=backend.requantize)
        with GGUFFile.open(path) as file:
            tokens = Tokenizer.from_gguf(file).tokenize(calibration_text(), parse_special=True)
            n_layer = file.get_int("llama.block_count")
            found = measure_sensitivity(file, backend, cut_chunks(tokens, N_CTX, None), n_tokens=n_tokens)
    backend.close()
    layers: dict[str, list[float]] = {}
    for i in range(n_layer):
        for name, value in found.items():
            if name.startswith(f"blk.{i}."):
                layers.setdefault(name.split(".")[2], []).append(value)
    unit = sum(layers["ffn_up"])
    for kind, (first, *inner, last) in layers.items():
        factors = (first, sum(inner) / len(inner), last)
        click.echo(f'    "{kind}": ({", ".join(f"{n_layer * factor / unit:.2g}" for factor in factors)}),')
    for name in ("token_embd.weight", "output.weight"):
        if name in found:
            click.echo(f'    "{name.split(".")[0]}": {found[name] / unit:.2g},')


if __name__ == "__main__":
    main()
