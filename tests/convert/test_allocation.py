"""Sharing out bytes: the arithmetic against trying everything, files against their budget."""

from __future__ import annotations

import itertools

import gguf
import numpy as np
import pytest
from checkpoints import save_checkpoint
from tiny_model import write_tiny_model

from localcoder.backends.select import open_backend
from localcoder.convert.allocation import Option, lower_hull, share_out, usual_sensitivity
from localcoder.convert.choice import Budget, Choice
from localcoder.convert.converter import convert
from localcoder.convert.quantizer import quantize_file
from localcoder.convert.recipes import Override, recipe_by_name
from localcoder.errors import FileError, OptionError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.quants import by_name

SHAPE = {"n_embd": 256, "n_ff": 512, "n_vocab": 320, "n_layer": 2}
TYPES = [by_name(name) for name in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0")]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("source") / "model.gguf", **SHAPE)


@pytest.fixture(scope="module")
def run():
    """Quantizes by a budget; every type is tried on every matrix, so with the quickest backend."""
    backend = open_backend()

    def quantize(source, target, budget, *overrides, pad=False, **options):
        choice = Choice(recipe_by_name("f32"), tuple(map(Override.parse, overrides)), pad_ffn=pad, budget=budget)
        return quantize_file(source, target, choice, requantize=backend.requantize, **options)

    yield quantize
    backend.close()


def random_options(rng) -> list[Option]:
    n_bytes = np.sort(rng.choice(np.arange(1, 100), len(TYPES), replace=False))
    losses = rng.exponential(size=len(TYPES)) * 2.0 ** -np.arange(len(TYPES))
    return [Option(*each) for each in zip(TYPES, n_bytes.tolist(), losses.tolist(), strict=True)]


@pytest.mark.parametrize("seed", range(20))
def test_near_the_best_of_all_combinations(seed):
    rng = np.random.default_rng(seed)
    options = {name: random_options(rng) for name in "abcd"}
    smallest = sum(min(o.n_bytes for o in each) for each in options.values())
    n_bytes = smallest + int(rng.integers(0, 200))
    types = share_out(options, n_bytes)
    chosen = [next(o for o in options[name] if o.qtype is types[name]) for name in options]
    assert sum(o.n_bytes for o in chosen) <= n_bytes
    combinations = itertools.product(*options.values())
    best = min(sum(o.loss for o in each) for each in combinations if sum(o.n_bytes for o in each) <= n_bytes)
    first = [min(each, key=lambda o: o.n_bytes) for each in options.values()]
    found = sum(o.loss for o in chosen)
    # What steps along the hulls miss is less than one step; with four matrices that is a good part of the whole way.
    assert best <= found + 1e-12
    assert found - best <= 0.25 * (sum(o.loss for o in first) - best) + 1e-12


def test_hull():
    options = [Option(*each) for each in zip(TYPES, (10, 20, 30, 40, 50, 60), (9.0, 8.0, 3.0, 3.5, 2.0, 0.0))]
    assert [o.n_bytes for o in lower_hull(options)] == [10, 30, 60]


def test_sensitivity():
    def usual(name, n_layer=24, tied=False):
        return usual_sensitivity(f"{name}.weight", n_layer, tied)

    assert usual("blk.7.attn_v") == usual("blk.8.attn_v") == 2 * usual("blk.7.attn_v", 48)
    assert usual("blk.23.ffn_down") > usual("blk.1.ffn_down")
    assert usual("token_embd", tied=True) > usual("output") > usual("token_embd") > usual("blk.7.ffn_up")


@pytest.mark.parametrize("part", [0.02, 0.2, 0.5, 0.9])
def test_never_above_the_target(run, source, tmp_path, part):
    low = run(source, tmp_path / "out.gguf", Budget(bits_per_weight=2.7), dry_run=True).n_bytes
    target = int(low + part * (source.stat().st_size - low))
    outcome = run(source, tmp_path / "out.gguf", Budget(file_bytes=target))
    size = (tmp_path / "out.gguf").stat().st_size
    assert outcome.n_bytes == size <= target
    assert size > 0.9 * target
    found = run(source, tmp_path / "out.gguf", Budget(file_bytes=target), dry_run=True)
    assert found.n_bytes == size


@pytest.mark.parametrize("bits", [2.8, 4.8, 7.0])
def test_bits_per_weight(run, source, tmp_path, bits):
    outcome = run(source, tmp_path / "out.gguf", Budget(bits_per_weight=bits))
    assert 0.9 * bits < outcome.bits_per_weight <= bits
    tensors = gguf.GGUFReader(tmp_path / "out.gguf").tensors
    assert 8 * sum(int(t.n_bytes) for t in tensors) <= bits * sum(int(t.n_elements) for t in tensors)


def test_more_bytes_less_error(run, source, tmp_path):
    errors = []
    for bits in (3, 4, 5, 6.5):
        run(source, tmp_path / "out.gguf", Budget(bits_per_weight=bits))
        with GGUFFile.open(source) as before, GGUFFile.open(tmp_path / "out.gguf") as after:
            tensors = [(t.dequantize(), after.tensors[t.name].dequantize()) for t in before.tensors.values()]
        errors.append(sum(float(np.sum((a - b) ** 2)) for a, b in tensors))
    assert errors == sorted(errors, reverse=True)


def test_overrides_are_kept(run, source, tmp_path):
    run(source, tmp_path / "out.gguf", Budget(bits_per_weight=4.5), "attn_q=q8_0", "blk.0.ffn_up=q2_k")
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert {types[f"blk.{i}.attn_q.weight"] for i in range(2)} == {"Q8_0"}
    assert types["blk.0.ffn_up.weight"] == "Q2_K"
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_the_smallest_file_is_named_and_can_be_had(run, source, tmp_path):
    with pytest.raises(OptionError, match="is too little: the smallest possible file takes ") as raised:
        run(source, tmp_path / "out.gguf", Budget(file_bytes=1000))
    assert list(tmp_path.iterdir()) == []
    smallest = int(str(raised.value).split("takes ")[1].split(" bytes")[0].replace(",", ""))
    with pytest.raises(OptionError, match="is too little"):
        run(source, tmp_path / "out.gguf", Budget(file_bytes=smallest - 1))
    assert run(source, tmp_path / "out.gguf", Budget(file_bytes=smallest)).n_bytes == smallest


def test_the_file_type_is_that_of_most_weights(run, source, tmp_path):
    run(source, tmp_path / "out.gguf", Budget(bits_per_weight=2.66))
    assert gguf.GGUFReader(tmp_path / "out.gguf").get_field("general.file_type").contents() == 10


def test_with_padding(run, tmp_path):
    source = write_tiny_model(tmp_path / "in.gguf", **SHAPE | {"n_ff": 288})
    target = run(source, tmp_path / "out.gguf", Budget(bits_per_weight=3.5), pad=True).n_bytes
    run(source, tmp_path / "out.gguf", Budget(file_bytes=target), pad=True)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    assert reader.get_field("llama.feed_forward_length").contents() == 512
    assert (tmp_path / "out.gguf").stat().st_size <= target


def test_values_that_are_not_finite(run, tmp_path):
    source = write_tiny_model(tmp_path / "in.gguf")
    data = source.read_bytes()
    with GGUFFile.open(source) as file:
        at = data.index(file.tensors["blk.1.ffn_up.weight"].data.tobytes())
    source.write_bytes(data[:at] + np.float32(np.nan).tobytes() + data[at + 4 :])
    with pytest.raises(FileError, match=r"blk.1.ffn_up.weight, row 0, column 0, is nan"):
        run(source, tmp_path / "out.gguf", Budget(bits_per_weight=5))
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


def test_interrupt_leaves_nothing(run, source, tmp_path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out.gguf", Budget(bits_per_weight=5), progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint(tmp_path):
    pytest.importorskip("torch")
    save_checkpoint(tmp_path / "source", n_embd=256, n_ff=288)
    choice = Choice(recipe_by_name("f32"), pad_ffn=True, budget=Budget(file_bytes=600_000))
    backend = open_backend()
    convert(tmp_path / "source", tmp_path / "out.gguf", choice, requantize=backend.requantize)
    backend.close()
    assert 0.9 * 600_000 < (tmp_path / "out.gguf").stat().st_size <= 600_000
