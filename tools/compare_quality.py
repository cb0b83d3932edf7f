"""How close to the original model our files are, beside those of llama.cpp's quantizer.

    python tools/compare_quality.py MODEL [--types q4_0,q4_k_m,...] [--text FILE] [--calibration FILE]

MODEL is a checkpoint folder or a GGUF file of floats. For every type four files are written: ours as
`localcoder quantize` makes it, ours with `--calibrate`, llama.cpp's, and llama.cpp's with an importance matrix of the
calibration text. Each is compared with the float model over the first part of a held-out text: perplexity, KL
divergence (mean and 99th percentile), size; our plain file also runs in llama.cpp, over the same tokens. Without
--calibration, the calibration text is a later part of the held-out text, apart from what is measured on.

The figures go to tools/results/ as a table and as JSON; a run adds to what an earlier one measured in the same way, so
that a long comparison can be made in parts. Needs llama-cpp-python.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import llama_cpp
import numpy as np
from numpy.typing import NDArray

from localcoder import Coder
from localcoder.backends.select import open_backend
from localcoder.backends.threads import usable_cores
from localcoder.convert.choice import Choice
from localcoder.convert.converter import convert
from localcoder.convert.quantizer import FLOATS, quantize_file
from localcoder.convert.recipes import NAMES, recipe_by_name
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.imatrix import ImportanceMatrix
from localcoder.measure.calibrated import quantize_calibrated
from localcoder.measure.chunks import cut_chunks
from localcoder.measure.compare import compare_tensors, relative_error
from localcoder.measure.divergence import Divergence, compare_pieces
from localcoder.measure.imatrix import collect
from localcoder.measure.machine import this_machine
from localcoder.measure.perplexity import negative_log_likelihoods, scored_pieces, summarize
from localcoder.quants.spec import Float32
from localcoder.version import package_version

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from llama_quantize import llama_quantize

TEST_CHARACTERS = 60_000  # measured on, at the text's beginning
CALIBRATION_CHARACTERS = slice(-120_000, -20_000)
OURS, CALIBRATED, THEIRS, WITH_IMATRIX = VARIANTS = ("ours", "ours calibrated", "llama.cpp", "llama.cpp imatrix")
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Quality:
    """One file.

    Attributes:
        squared_error: of its quantized matrices, relative.
        divergence: from the float model.
    """

    n_bytes: int
    squared_error: float | None
    divergence: Divergence


@dataclass(frozen=True)
class Row:
    """One type.

    Attributes:
        by_variant: the files that were made.
        perplexity_in_llama_cpp: of our plain file.
    """

    type_name: str
    by_variant: dict[str, Quality]
    perplexity_in_llama_cpp: float


class Bench:
    """What all types have in common: the float model, the texts in its tokens, and the importance matrix."""

    def __init__(
        self, model: Path, folder: Path, test: str, calibration: str, n_ctx: int, threads: int | None = None
    ) -> None:
        self.folder, self.base, self.threads = folder, model, threads or usable_cores()
        self.backend = open_backend(threads=threads)
        if model.is_dir():
            self.base = folder / "float.gguf"
            convert(
                model, self.base, Choice(recipe_by_name("f32")), requantize=self.backend.requantize, name=model.name
            )
        with self.opened(self.base, n_ctx) as coder:
            bos_id = coder.tokenizer.bos_id if coder.tokenizer.add_bos else None
            self.test, self.calibration = (cut_chunks(coder.tokenize(t), n_ctx, bos_id) for t in (test, calibration))

    def opened(self, path: Path, n_ctx: int) -> Coder:
        return Coder(path, n_ctx=n_ctx, threads=self.threads)

    def close(self) -> None:
        self.backend.close()

    @cached_property
    def importance(self) -> dict[str, Float32]:
        """By matrix; not of the output matrix, which llama-imatrix leaves out unless told otherwise."""
        matrix = ImportanceMatrix(self.calibration.shape[1])
        with GGUFFile.open(self.base) as file:
            for _ in collect(file, self.backend, self.calibration, matrix):
                pass
            widths = {name: tensor.shape[-1] for name, tensor in file.tensors.items() if name in matrix.sums}
        found = {name: matrix.importance(name, n) for name, n in widths.items() if name != "output.weight"}
        return {name: values for name, values in found.items() if values is not None}

    def write(self, type_name: str, variant: str) -> Path:
        """One file."""
        path = self.folder / f"{type_name} {variant}.gguf"
        recipe = recipe_by_name(type_name)
        if variant == OURS:
            quantize_file(self.base, path, Choice(recipe), requantize=self.backend.requantize)
        elif variant == CALIBRATED:
            quantize_calibrated(self.base, path, Choice(recipe), self.backend, self.calibration)
        else:
            imatrix = self.importance if variant == WITH_IMATRIX else None
            llama_quantize(self.base, path, recipe.file_type, imatrix=imatrix)
        return path

    def measure(self, type_name: str, variants: Sequence[str] = VARIANTS) -> Row:
        """Writes and compares the files of one type; float types come without calibration."""
        if type_name in FLOATS:
            variants = [variant for variant in variants if variant in (OURS, THEIRS)]
        paths = {variant: self.write(type_name, variant) for variant in variants}
        n_ctx = self.test.shape[1]
        with contextlib.ExitStack() as stack:
            base, *others = (stack.enter_context(self.opened(path, n_ctx)) for path in (self.base, *paths.values()))
            pieces = [scored_pieces(coder.engine, self.test) for coder in others]
            *_, samples = compare_pieces(scored_pieces(base.engine, self.test), pieces)
            by_variant = {
                variant: Quality(path.stat().st_size, self._squared_error(path), sample.summarize())
                for (variant, path), sample in zip(paths.items(), samples, strict=True)
            }
        row = Row(type_name, by_variant, perplexity_in_llama_cpp(paths[OURS], self.test, self.threads))
        for path in paths.values():
            path.unlink()
        return row

    def _squared_error(self, path: Path) -> float | None:
        with GGUFFile.open(self.base) as a, GGUFFile.open(path) as b:
            return relative_error([d for d in compare_tensors(a, b) if d.is_quantized])


def perplexity_in_llama_cpp(path: Path, chunks: NDArray[np.int32], threads: int) -> float:
    """llama.cpp's perplexity of a file over the same chunks, scored as ours are."""
    n_ctx = chunks.shape[1]
    model = llama_cpp.Llama(
        str(path),
        n_ctx=n_ctx,
        n_batch=n_ctx,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        verbose=False,
    )
    losses = []
    for chunk in chunks:
        model.reset()
        model.eval(chunk.tolist())
        first = n_ctx // 2
        losses.append(negative_log_likelihoods(model.scores[first : n_ctx - 1], chunk[first + 1 :]))
    model.close()
    return summarize(losses).perplexity


HEADER = (
    "| type | MB | size | error | perplexity | in llama.cpp | KL plain | llama.cpp | ratio | 99% | llama.cpp "
    "| KL calibrated | llama.cpp imatrix | ratio | 99% | llama.cpp imatrix |"
)
NOTES = """\
`size` and `error` (squared, over the quantized matrices) are ours over llama.cpp's, plain files. `perplexity`: our
plain file, in localcoder and in llama.cpp over the same tokens. KL divergences from the float model in nats, mean and
99th percentile; `calibrated` is `--calibrate`, `llama.cpp imatrix` its quantizer with an importance matrix of the same
text; `ratio` is ours over llama.cpp's.
"""


def table(rows: list[Row]) -> Iterator[str]:
    yield HEADER
    yield "|---" + "|---:" * (HEADER.count("|") - 2) + "|"
    for row in rows:
        ours, theirs = (row.by_variant[variant] for variant in (OURS, THEIRS))
        error = ours.squared_error / theirs.squared_error if ours.squared_error and theirs.squared_error else None
        cells = [
            row.type_name,
            f"{ours.n_bytes / 1e6:.2f}",
            f"{ours.n_bytes / theirs.n_bytes:.4f}",
            "" if error is None else f"{error:.3f}",
            f"{ours.divergence.perplexity:.4f}",
            f"{row.perplexity_in_llama_cpp:.4f}",
        ]
        cells += [*_divergence_cells(row, OURS, THEIRS), *_divergence_cells(row, CALIBRATED, WITH_IMATRIX)]
        yield f"| {' | '.join(cells)} |"


def _divergence_cells(row: Row, of: str, to: str) -> list[str]:
    if of not in row.by_variant:
        return [""] * 5
    a, b = (row.by_variant[variant].divergence for variant in (of, to))
    ratio = f"{a.kl_divergence / b.kl_divergence:.3f}" if b.kl_divergence else ""
    return [*(f"{d.kl_divergence:.3g}" for d in (a, b)), ratio, *(f"{d.kl_p99:.3g}" for d in (a, b))]


def split(text: str) -> tuple[str, str]:
    """What to measure on and what to calibrate on, apart from each other."""
    first, last, _ = CALIBRATION_CHARACTERS.indices(len(text))
    if first < TEST_CHARACTERS:
        raise click.UsageError(f"the text has {len(text)} characters; without --calibration it takes 180,000")
    return text[:TEST_CHARACTERS], text[first:last]


def read_rows(path: Path, about: list[str]) -> list[Row]:
    """What an earlier run measured in the same way; nothing if it measured in another."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if found.get("about") != about:
        return []
    return [Row(**{**row, "by_variant": _by_variant(row["by_variant"])}) for row in found["rows"]]


def _by_variant(found: dict[str, dict[str, Any]]) -> dict[str, Quality]:
    return {
        variant: Quality(**{**quality, "divergence": Divergence(**quality["divergence"])})
        for variant, quality in found.items()
    }


def write_results(name: str, about: list[str], rows: list[Row]) -> Path:
    """Adds the rows to those of earlier runs, or replaces them."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"quality-{name}.md"
    by_type = {row.type_name: row for row in [*read_rows(path.with_suffix(".json"), about), *rows]}
    rows = [by_type[type_name] for type_name in NAMES if type_name in by_type]
    path.write_text("\n".join([f"# Quality of quantized files: {name}", "", *about, "", NOTES, *table(rows), ""]))
    path.with_suffix(".json").write_text(json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=1))
    return path


def describe(bench: Bench, text: Path, calibration: Path) -> list[str]:
    machine = this_machine()
    tokens = [
        f"{chunks.size} tokens of {path.name}"
        for chunks, path in ((bench.test, text), (bench.calibration, calibration))
    ]
    return [
        f"{machine.cpu}, {machine.system}; "
        f"localcoder {package_version()}, llama-cpp-python {version('llama-cpp-python')}.",
        f"Chunks of {bench.test.shape[1]} tokens: measured on {tokens[0]}, calibrated on {tokens[1]}.",
    ]


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--types", default=",".join(NAMES), help="Comma-separated.  [default: all]")
@click.option("--text", type=click.Path(path_type=Path), help="Held-out text.  [default: heldout.txt in MODEL]")
@click.option("--calibration", type=click.Path(path_type=Path), help="Another text to calibrate on.")
@click.option("--n-ctx", default=512, show_default=True)
@click.option("--threads", type=int)
@click.option("--name", help="Of the results.  [default: the model's]")
def main(
    model: Path, types: str, text: Path | None, calibration: Path | None, n_ctx: int, threads: int | None,
    name: str | None,
) -> None:  # fmt: skip
    text = text or model / "heldout.txt"
    whole = text.read_text(encoding="utf-8")
    if calibration:
        test, calibration_text = whole[:TEST_CHARACTERS], calibration.read_text(encoding="utf-8")
    else:
        test, calibration_text = split(whole)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(model, Path(folder), test, calibration_text, n_ctx, threads)
        about = describe(bench, text, calibration or text)
        rows: list[Row] = []
        for type_name in types.split(","):
            rows.append(bench.measure(type_name))
            path = write_results(name or model.stem, about, rows)
            click.echo("\n".join([*table(rows)][0 if len(rows) == 1 else -1 :]))
        bench.close()
    click.echo(f"wrote {path}")


if __name__ == "__main__":
    main()
