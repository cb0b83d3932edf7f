"""What noise in each kind of matrix does to a model: the factors in localcoder/convert/allocation.py.

    python tools/measure_sensitivity.py CHECKPOINT HELD_OUT_TEXT

For each kind, all matrices of that kind are rounded to Q4_0 and to Q3_K and the rest is left alone. A factor is the
KL divergence that this causes, over the mean of the relative noises that the matrices' outputs get (errors and weights
weighed by the inputs' second moments, from our calibration text); given is the geometric mean of the two types'.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import numpy as np

from localcoder.backends.base import Backend
from localcoder.backends.select import open_backend
from localcoder.convert.allocation import SENSITIVITY, noises_of
from localcoder.convert.choice import Choice
from localcoder.convert.converter import convert
from localcoder.convert.quantizer import prepare, quantize_file
from localcoder.convert.recipes import Override, recipe_by_name
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.imatrix import ImportanceMatrix
from localcoder.measure.calibration import calibration_text
from localcoder.measure.chunks import cut_chunks
from localcoder.measure.divergence import DivergenceSamples
from localcoder.measure.imatrix import collect
from localcoder.measure.perplexity import scored_pieces
from localcoder.model.engine import Engine
from localcoder.tokenizer.tokenizer import Tokenizer

TYPES = ("q4_0", "q3_k")
N_CTX = 256


def kl_divergence(base: Path, other: Path, chunks: np.ndarray, backend: Backend) -> float:
    samples = DivergenceSamples()
    with GGUFFile.open(base) as first, GGUFFile.open(other) as second:
        engines = [Engine(file, backend, n_ctx=N_CTX) for file in (first, second)]
        for pair in zip(*(scored_pieces(engine, chunks) for engine in engines), strict=True):
            samples.add(*pair)
        for engine in engines:
            engine.close()
    return samples.mean_kl


def noises(base: Path, imatrix: ImportanceMatrix, backend: Backend) -> dict[tuple[str, str], float]:
    """(kind, type) -> mean of the relative noises of the matrices of that kind."""
    found: dict[tuple[str, str], list[float]] = {}
    with GGUFFile.open(base) as file:
        _, tensors = prepare(
            file, base.with_name("unused"), Choice(recipe_by_name("f32"), imatrix=imatrix), backend.requantize
        )
        for tensor in tensors:
            name = tensor.info.name
            if len(tensor.info.shape) == 1:
                continue
            kind = name.split(".")[-2]
            for qtype, noise in noises_of(tensor, backend.requantize).items():
                found.setdefault((kind, qtype.name), []).append(noise)
    return {key: float(np.mean(each)) for key, each in found.items()}


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("text", type=click.Path(path_type=Path))
@click.option("--chunks", "n_chunks", default=16, show_default=True)
def main(checkpoint: Path, text: Path, n_chunks: int) -> None:
    backend = open_backend()
    with tempfile.TemporaryDirectory() as name:
        base, other = Path(name) / "base.gguf", Path(name) / "other.gguf"
        convert(checkpoint, base, Choice(recipe_by_name("f32")), requantize=backend.requantize)
        imatrix = ImportanceMatrix(512)
        with GGUFFile.open(base) as file:
            tokenizer = Tokenizer.from_gguf(file)
            seen = cut_chunks(tokenizer.tokenize(calibration_text(), parse_special=True), 512, None)[:32]
            for _ in collect(file, backend, seen, imatrix):
                pass
        chunks = cut_chunks(tokenizer.tokenize(text.read_text(encoding="utf-8")), N_CTX, None)[:n_chunks]
        noise = noises(base, imatrix, backend)
        factors = {}
        for kind in SENSITIVITY:
            each = []
            for type_name in TYPES:
                pattern = rf"(^|\.){kind}\.={type_name}"
                choice = Choice(recipe_by_name("f32"), (Override.parse(pattern),), imatrix)
                quantize_file(base, other, choice, requantize=backend.requantize)
                each.append(kl_divergence(base, other, chunks, backend) / noise[kind, type_name])
            factors[kind] = float(np.sqrt(each[0] * each[1]))
            click.echo(f"{kind:12}" + "".join(f"{value:10.4f}" for value in each))
    for kind, factor in factors.items():
        click.echo(f'    "{kind}": {factor / factors["ffn_up"]:.2f},')


if __name__ == "__main__":
    main()
