"""Padding the feed-forward part: nothing changes but the types that fit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from checkpoints import save_checkpoint
from tiny_model import write_tiny_model

from localcoder.backends.reference import ReferenceBackend
from localcoder.convert.choice import Choice
from localcoder.convert.converter import convert
from localcoder.convert.quantizer import quantize_file
from localcoder.convert.recipes import recipe_by_name
from localcoder.errors import OptionError, OutputError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.imatrix import ImportanceMatrix
from localcoder.measure.calibrated import quantize_calibrated
from localcoder.model.engine import Chunk, Engine
from localcoder.quants.search import requantize

SHAPE = {"n_embd": 256, "n_ff": 288, "n_vocab": 320, "n_layer": 2}
IDS = (np.arange(100) * 7 % 256).astype(np.int32)


def padded(source, target, type_name, imatrix=None, **options):
    choice = Choice(recipe_by_name(type_name), imatrix=imatrix, pad_ffn=True)
    return quantize_file(source, target, choice, requantize=requantize, **options)


def logits_of(path) -> np.ndarray:
    backend = ReferenceBackend()
    with GGUFFile.open(path) as file:
        engine = Engine(file, backend, n_ctx=128)
        try:
            return engine.evaluate([Chunk(engine.new_sequence(), IDS, len(IDS))])
        finally:
            engine.close()


def tensors_of(path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("type_name", ["f32", "f16", "bf16"])
def test_the_model_computes_the_same(tmp_path, type_name):
    source = write_tiny_model(tmp_path / "in.gguf", type_name=type_name, **SHAPE)
    padded(source, tmp_path / "out.gguf", type_name)
    assert gguf.GGUFReader(tmp_path / "out.gguf").get_field("llama.feed_forward_length").contents() == 512
    before, after = tensors_of(source), tensors_of(tmp_path / "out.gguf")
    for name, tensor in after.items():
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        expected = gguf.dequantize(before[name].data, before[name].tensor_type)
        cut = tuple(slice(n) for n in expected.shape)
        np.testing.assert_array_equal(values[cut], expected)
        assert np.count_nonzero(values) == np.count_nonzero(expected)
    # Sums over more terms are taken in another order.
    np.testing.assert_allclose(logits_of(tmp_path / "out.gguf"), logits_of(source), rtol=0, atol=2e-4)


def test_k_quants_fit(tmp_path):
    source = write_tiny_model(tmp_path / "in.gguf", **SHAPE)
    matrix = ImportanceMatrix(64, 1, ["text"])
    for i in range(SHAPE["n_layer"]):
        matrix.sums[f"blk.{i}.ffn_down.weight"] = np.ones(288, np.float32)
        matrix.counts[f"blk.{i}.ffn_down.weight"] = 8
    for imatrix in (None, matrix):
        padded(source, tmp_path / "out.gguf", "q4_k_s", imatrix)
        down = tensors_of(tmp_path / "out.gguf")["blk.1.ffn_down.weight"]
        assert (down.tensor_type.name, down.shape.tolist()) == ("Q4_K", [512, 256])
        with GGUFFile.open(source) as file:
            expected = file.tensors["blk.1.ffn_down.weight"].dequantize()
        found = gguf.dequantize(down.data, down.tensor_type)[:, :288]
        assert np.sum((found - expected) ** 2) / np.sum(expected**2) < 0.01


def test_quantized_input(tmp_path):
    source = write_tiny_model(tmp_path / "in.gguf", type_name="q8_0", **SHAPE)
    padded(source, tmp_path / "out.gguf", "q8_0", allow_requantize=True)
    before, after = tensors_of(source), tensors_of(tmp_path / "out.gguf")
    name = "blk.0.ffn_down.weight"
    found = gguf.dequantize(after[name].data, after[name].tensor_type)
    np.testing.assert_array_equal(found[:, :288], gguf.dequantize(before[name].data, before[name].tensor_type))


def test_calibrated(tmp_path):
    source = write_tiny_model(tmp_path / "in.gguf", **SHAPE | {"n_layer": 1})
    choice = Choice(recipe_by_name("q4_k_s"), pad_ffn=True)
    chunks = np.random.default_rng(0).integers(0, 256, (24, 64)).astype(np.int32)
    quantize_calibrated(source, tmp_path / "out.gguf", choice, ReferenceBackend(), chunks)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.gguf", "out.gguf"]
    padded(source, tmp_path / "plain.gguf", "q4_k_s")
    found, plain = tensors_of(tmp_path / "out.gguf"), tensors_of(tmp_path / "plain.gguf")
    assert {n: (t.tensor_type, *t.shape) for n, t in found.items()} == {
        n: (t.tensor_type, *t.shape) for n, t in plain.items()
    }
    expected = logits_of(source)
    errors = [np.linalg.norm(logits_of(tmp_path / name) - expected) for name in ("out.gguf", "plain.gguf")]
    assert errors[0] < 1.2 * errors[1]


def test_interrupt_leaves_nothing(tmp_path):
    source = write_tiny_model(tmp_path / "in.gguf")
    choice = Choice(recipe_by_name("q4_0"), pad_ffn=True)
    chunks = np.zeros((1, 64), np.int32)
    seen = []

    def interrupt(done: int, total: int) -> None:
        seen.extend(path.name for path in tmp_path.glob(".localcoder-*.tmp") if path.is_dir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_calibrated(source, tmp_path / "out.gguf", choice, ReferenceBackend(), chunks, progress=interrupt)
    assert seen, "the padded copy is to be under a name that says what it is"
    with pytest.raises(OutputError, match="is the file that is being read"):
        quantize_calibrated(source, source, choice, ReferenceBackend(), chunks)
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


def test_what_cannot_be_padded(tmp_path):
    source = write_tiny_model(tmp_path / "in.gguf", n_ff=512)
    with pytest.raises(OptionError, match="nothing to pad: the feed-forward width 512"):
        padded(source, tmp_path / "out.gguf", "q8_0")
    for shape in ((96,), (2, 96, 64), (80, 64)):
        writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
        writer.add_block_count(1)
        writer.add_head_count(4)
        writer.add_feed_forward_length(96)
        writer.add_tensor("blk.0.ffn_up.weight", np.ones(shape, np.float32))
        writer.add_tensor("blk.0.ffn_gate.weight", np.ones((96, 64), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(OptionError, match="cannot be padded"):
            padded(tmp_path / "odd.gguf", tmp_path / "out.gguf", "q8_0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.gguf", "odd.gguf"]


def test_llama_cpp_computes_the_same(tmp_path):
    """A padded file is a standard file: llama.cpp's logits are those of the file as it was."""
    llama_cpp = pytest.importorskip("llama_cpp")
    pytest.importorskip("torch")
    save_checkpoint(tmp_path / "source", n_embd=256, n_ff=288)
    found = []
    for name, pad in (("plain.gguf", False), ("padded.gguf", True)):
        choice = Choice(recipe_by_name("f32"), pad_ffn=pad)
        convert(tmp_path / "source", tmp_path / name, choice, requantize=requantize)
        model = llama_cpp.Llama(str(tmp_path / name), n_ctx=128, n_batch=128, logits_all=True, verbose=False)
        model.eval(IDS.tolist())
        found.append(np.array(model.scores[: len(IDS)]))
        model.close()
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=5e-4)
