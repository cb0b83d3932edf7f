"""Quantizing with error feedback: whole files, and what they are better at."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from tiny_model import write_tiny_model

from localcoder.backends.reference import ReferenceBackend
from localcoder.backends.select import open_backend
from localcoder.convert.choice import Choice
from localcoder.convert.converter import convert
from localcoder.convert.quantizer import quantize_file
from localcoder.convert.recipes import Override, recipe_by_name
from localcoder.errors import FileError, OptionError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.imatrix import ImportanceMatrix
from localcoder.measure.calibrated import quantize_calibrated
from localcoder.measure.calibration import calibration_text
from localcoder.measure.chunks import cut_chunks
from localcoder.measure.divergence import DivergenceSamples
from localcoder.measure.perplexity import scored_pieces
from localcoder.model.engine import Engine
from localcoder.model.stages import StagedModel
from localcoder.quants.search import requantize
from localcoder.tokenizer.tokenizer import Tokenizer

N_CTX = 64


def random_chunks(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, N_CTX)).astype(np.int32)


def plainly(source, target, type_name, *overrides):
    return quantize_file(source, target, choice(type_name, *overrides), requantize=requantize)


def calibrated(source, target, type_name, chunks, *overrides, **options):
    return quantize_calibrated(source, target, choice(type_name, *overrides), ReferenceBackend(), chunks, **options)


def choice(type_name, *overrides) -> Choice:
    return Choice(recipe_by_name(type_name), tuple(map(Override.parse, overrides)))


def last_states(path, chunks) -> np.ndarray:
    """The input of the output matrix, float32 [n_tokens, n_embd]."""
    states = []

    def visit(names, inputs):
        states[:] = [np.concatenate(list(inputs))]
        return {}

    with GGUFFile.open(path) as file:
        StagedModel(file, ReferenceBackend(), N_CTX).run(chunks, visit)
    return states[0]


@pytest.mark.parametrize("type_name", ["q4_0", "q4_1", "iq4_nl"])
def test_states_are_closer_on_other_text(tmp_path, type_name):
    source = write_tiny_model(tmp_path / "in.gguf", n_embd=128, n_ff=256)
    exact = "token_embd=f32"  # its rounding knows of no inputs
    plainly(source, tmp_path / "plain.gguf", type_name, exact)
    steps = []
    calibrated(
        source, tmp_path / "out.gguf", type_name, random_chunks(40), exact, progress=lambda *step: steps.append(step)
    )
    expected = last_states(source, random_chunks(8, seed=1))
    errors = [
        float(((last_states(tmp_path / name, random_chunks(8, seed=1)) - expected) ** 2).mean())
        for name in ("out.gguf", "plain.gguf")
    ]
    assert errors[0] < 0.85 * errors[1], errors
    assert steps == sorted(set(steps))
    assert len(steps) == 1 + 2 * 7 + 1
    assert steps[-1][0] == steps[-1][1]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("type_name", ["q4_k_m", "q2_k", "bf16"])
def test_files_are_of_the_same_types_and_metadata(tmp_path, type_name, tied):
    source = write_tiny_model(tmp_path / "in.gguf", type_name="f16", n_embd=256, n_ff=288, n_layer=2, tied=tied)
    outcomes = [
        plainly(source, tmp_path / "plain.gguf", type_name),
        calibrated(source, tmp_path / "out.gguf", type_name, random_chunks(2)),
    ]
    assert outcomes[0].n_bytes == outcomes[1].n_bytes == (tmp_path / "out.gguf").stat().st_size
    readers = [gguf.GGUFReader(tmp_path / name) for name in ("plain.gguf", "out.gguf")]
    types = [{t.name: t.tensor_type for t in reader.tensors} for reader in readers]
    assert types[0] == types[1]
    fields = [{k: f.contents() for k, f in reader.fields.items()} for reader in readers]
    assert fields[0] == fields[1]
    norms = [{t.name: t.data.tobytes() for t in r.tensors if t.tensor_type.name == "F32"} for r in readers]
    assert norms[0] == norms[1]
    assert len(norms[0]) == 5


def test_what_cannot_be_calibrated(tmp_path):
    source = write_tiny_model(tmp_path / "in.gguf")
    plainly(source, tmp_path / "q8_0.gguf", "q8_0")
    with pytest.raises(OptionError, match="is quantized already"):
        calibrated(tmp_path / "q8_0.gguf", tmp_path / "out.gguf", "q4_0", random_chunks(1))
    both = Choice(recipe_by_name("q4_0"), imatrix=ImportanceMatrix(512))
    with pytest.raises(OptionError, match="give one of them"):
        quantize_calibrated(source, tmp_path / "out.gguf", both, ReferenceBackend(), random_chunks(1))
    data = source.read_bytes()
    with GGUFFile.open(source) as file:
        at = data.index(file.tensors["blk.1.ffn_up.weight"].data.tobytes())
    source.write_bytes(data[:at] + np.float32(np.nan).tobytes() + data[at + 4 :])
    with pytest.raises(FileError, match=r"tensor blk.1.ffn_up.weight, row 0, column 0, is nan"):
        calibrated(source, tmp_path / "out.gguf", "q4_0", random_chunks(1))
    assert not (tmp_path / "out.gguf").exists()


def test_interrupt_leaves_nothing(tmp_path):
    source = write_tiny_model(tmp_path / "in.gguf")

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrated(source, tmp_path / "out.gguf", "q4_0", random_chunks(1), progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


@pytest.mark.slow
@pytest.mark.parametrize(("type_name", "most"), [("q4_0", 0.6), ("q4_k_m", 0.7), ("q2_k", 0.7)])
def test_trained_checkpoint(tmp_path, shared, type_name, most):
    """KL divergence on held-out text, beside the same recipe without calibration."""
    folder = shared / "checkpoints" / "python-9m"
    backend = open_backend()
    convert(folder, tmp_path / "f32.gguf", choice("f32"), requantize=backend.requantize)
    with GGUFFile.open(tmp_path / "f32.gguf") as file:
        tokenizer = Tokenizer.from_gguf(file)
    tokens = tokenizer.tokenize(calibration_text(), parse_special=True)
    source = tmp_path / "f32.gguf"
    quantize_calibrated(source, tmp_path / "out.gguf", choice(type_name), backend, cut_chunks(tokens, 512, None)[:64])
    quantize_file(source, tmp_path / "plain.gguf", choice(type_name), requantize=backend.requantize)
    held_out = tokenizer.tokenize((folder / "heldout.txt").read_text(encoding="utf-8"))
    chunks = cut_chunks(held_out, 256, None)[:12]
    found = [kl_divergence(source, tmp_path / name, chunks, backend) for name in ("out.gguf", "plain.gguf")]
    backend.close()
    assert found[0] < most * found[1], found


def kl_divergence(base, other, chunks, backend) -> float:
    samples = DivergenceSamples()
    with GGUFFile.open(base) as first, GGUFFile.open(other) as second:
        engines = [Engine(file, backend, n_ctx=chunks.shape[1]) for file in (first, second)]
        for pair in zip(*(scored_pieces(engine, chunks) for engine in engines), strict=True):
            samples.add(*pair)
        for engine in engines:
            engine.close()
    return samples.summarize().kl_divergence
