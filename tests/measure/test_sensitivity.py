"""What noise in a matrix does: measured, and put to use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_model import write_tiny_model

from localcoder.backends.reference import ReferenceBackend
from localcoder.backends.select import open_backend
from localcoder.convert.choice import Budget, Choice
from localcoder.convert.converter import convert
from localcoder.convert.quantizer import quantize_file
from localcoder.convert.recipes import recipe_by_name
from localcoder.errors import FileError, OptionError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.measure.calibrated import quantize_calibrated
from localcoder.measure.calibration import calibration_text
from localcoder.measure.chunks import cut_chunks
from localcoder.measure.divergence import DivergenceSamples
from localcoder.measure.perplexity import scored_pieces
from localcoder.measure.sensitivity import measure_sensitivity
from localcoder.model.engine import Engine
from localcoder.tokenizer.tokenizer import Tokenizer

CHUNKS = np.random.default_rng(0).integers(0, 256, (2, 64)).astype(np.int32)


def scaled(source, target, factors):
    """A copy of a float32 file with some matrices multiplied."""
    data = bytearray(source.read_bytes())
    with GGUFFile.open(source) as file:
        for name, factor in factors.items():
            values = file.tensors[name].data.tobytes()
            at = data.index(values)
            data[at : at + len(values)] = (np.frombuffer(values, np.float32) * np.float32(factor)).tobytes()
    target.write_bytes(data)
    return target


def test_a_matrix_that_does_little_counts_little(tmp_path):
    source = write_tiny_model(tmp_path / "in.gguf", n_layer=3, scale=2.0)
    quiet = [f"blk.1.{part}.weight" for part in ("attn_output", "ffn_down")]
    scaled(source, tmp_path / "quiet.gguf", dict.fromkeys(quiet, 1e-3))
    steps = []
    with GGUFFile.open(tmp_path / "quiet.gguf") as file:
        found = measure_sensitivity(file, ReferenceBackend(), CHUNKS, lambda *step: steps.append(step))
        matrices = {name for name, tensor in file.tensors.items() if len(tensor.shape) == 2}
    assert found.keys() == matrices
    assert all(value >= 0 for value in found.values())
    loud = ["blk.0.ffn_down.weight", "blk.2.ffn_down.weight", "output.weight"]
    for name in (*quiet, "blk.1.attn_v.weight", "blk.1.ffn_up.weight"):
        assert found[name] < 1e-2 * min(found[other] for other in loud), name
    assert steps == [(i, len(steps)) for i in range(1, len(steps) + 1)]


def test_deep_models_are_measured_in_groups(tmp_path):
    source = write_tiny_model(tmp_path / "in.gguf", n_layer=14, n_embd=32, n_ff=32, n_head=2, n_head_kv=1)
    steps = []
    with GGUFFile.open(source) as file:
        found = measure_sensitivity(file, ReferenceBackend(), CHUNKS[:1], lambda *step: steps.append(step))
    assert len(steps) == 2 + 7 * 8
    by_layer = [found[f"blk.{i}.ffn_up.weight"] for i in range(14)]
    assert len(set(by_layer)) == 8
    assert by_layer[1] == by_layer[2]
    assert by_layer[0] != by_layer[1]


def test_it_decides_where_the_bytes_go(tmp_path):
    source = write_tiny_model(tmp_path / "in.gguf")
    types = []
    for name in ("blk.0.ffn_up.weight", "blk.0.ffn_gate.weight"):
        budget = Budget(bits_per_weight=6.0, sensitivity={name: 100.0})
        choice = Choice(recipe_by_name("f32"), budget=budget)
        outcome = quantize_file(
            source, tmp_path / "out.gguf", choice, requantize=ReferenceBackend().requantize, dry_run=True
        )
        types.append({tensor.info.name: tensor.info.qtype.row_bytes(64) for tensor in outcome.tensors})
        assert types[-1][name] == max(n for other, n in types[-1].items() if "norm" not in other)
    assert types[0] != types[1]


def test_what_cannot_be_measured(tmp_path):
    source = write_tiny_model(tmp_path / "in.gguf")
    scaled(source, tmp_path / "nan.gguf", {"blk.1.ffn_up.weight": np.nan})
    with GGUFFile.open(tmp_path / "nan.gguf") as file, pytest.raises(FileError, match=r"blk.1.ffn_up.weight, row 0"):
        measure_sensitivity(file, ReferenceBackend(), CHUNKS)
    write_tiny_model(tmp_path / "q8_0.gguf", type_name="q8_0")
    with GGUFFile.open(tmp_path / "q8_0.gguf") as file, pytest.raises(OptionError, match="is quantized already"):
        measure_sensitivity(file, ReferenceBackend(), CHUNKS)


@pytest.mark.slow
@pytest.mark.parametrize("type_name", ["q3_k_m", "q4_k_m", "q5_k_m"])
def test_trained_checkpoint(tmp_path, shared, type_name):
    """KL divergence on held-out text, beside the recipe of the same size, plain and calibrated."""
    folder = shared / "checkpoints" / "python-9m"
    backend = open_backend()
    source = tmp_path / "f32.gguf"
    convert(folder, source, Choice(recipe_by_name("f32")), requantize=backend.requantize)
    with GGUFFile.open(source) as file:
        tokenizer = Tokenizer.from_gguf(file)
        chunks = cut_chunks(tokenizer.tokenize(calibration_text(), parse_special=True), 512, None)[:64]
        sensitivity = measure_sensitivity(file, backend, chunks)
    recipe = Choice(recipe_by_name(type_name))
    size = quantize_file(source, tmp_path / "recipe.gguf", recipe, requantize=backend.requantize).n_bytes
    shared_out = replace(recipe, budget=Budget(size))
    quantize_file(source, tmp_path / "shared_out.gguf", shared_out, requantize=backend.requantize)
    measured = replace(recipe, budget=Budget(size, sensitivity=sensitivity))
    for name, choice in (("recipe", recipe), ("shared_out", measured)):
        quantize_calibrated(source, tmp_path / f"calibrated_{name}.gguf", choice, backend, chunks)
    held_out = tokenizer.tokenize((folder / "heldout.txt").read_text(encoding="utf-8"))
    test_chunks = cut_chunks(held_out, 256, None)[:24]
    found = {
        name: kl_divergence(source, tmp_path / f"{name}.gguf", test_chunks, backend)
        for name in ("recipe", "shared_out", "calibrated_recipe", "calibrated_shared_out")
    }
    backend.close()
    assert found["shared_out"] < 0.95 * found["recipe"], found
    assert found["calibrated_shared_out"] < 0.95 * found["calibrated_recipe"], found
    assert (tmp_path / "calibrated_shared_out.gguf").stat().st_size <= size


def kl_divergence(base, other, chunks, backend) -> float:
    samples = DivergenceSamples()
    with GGUFFile.open(base) as first, GGUFFile.open(other) as second:
        engines = [Engine(file, backend, n_ctx=chunks.shape[1]) for file in (first, second)]
        for pair in zip(*(scored_pieces(engine, chunks) for engine in engines), strict=True):
            samples.add(*pair)
        for engine in engines:
            engine.close()
    return samples.mean_kl
