"""Whole files against llama.cpp's quantizer: types, sizes and metadata; and what must be refused."""

from __future__ import annotations

import os
import struct
import subprocess
import sys

import gguf
import numpy as np
import pytest
from tiny_model import write_tiny_model

from localcoder.convert import stream
from localcoder.convert.choice import Choice
from localcoder.convert.quantizer import quantize_file
from localcoder.convert.recipes import ALL, Override, recipe_by_name
from localcoder.errors import FileError, ModelError, OptionError, OutputError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.imatrix import ImportanceMatrix
from localcoder.quants import by_name
from localcoder.quants.search import quantize_best, requantize

SHAPE = dict(n_layer=2, n_embd=256, n_ff=288, n_head=4, n_head_kv=2, n_vocab=272)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("source") / "model.gguf", type_name="f16", **SHAPE)


def run(source, target, type_name, *, overrides=(), imatrix=None, **options):
    choice = Choice(recipe_by_name(type_name), tuple(map(Override.parse, overrides)), imatrix)
    return quantize_file(source, target, choice, requantize=requantize, **options)


def types_of(path) -> dict[str, str]:
    return {t.name: t.tensor_type.name.lower() for t in gguf.GGUFReader(path).tensors}


def fields_of(path) -> dict[str, tuple[object, list[int]]]:
    fields = gguf.GGUFReader(path).fields
    return {key: (f.contents(), f.types) for key, f in fields.items() if not key.startswith("GGUF.")}


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_files_are_those_of_llama_quantize_but_for_the_rounding(source, tmp_path, recipe):
    oracle = pytest.importorskip("llama_quantize")
    theirs = oracle.llama_quantize(source, tmp_path / "theirs.gguf", recipe.file_type)
    outcome = run(source, tmp_path / "ours.gguf", recipe.name)
    assert types_of(tmp_path / "ours.gguf") == theirs
    assert fields_of(tmp_path / "ours.gguf") == fields_of(tmp_path / "theirs.gguf")
    sizes = [(tmp_path / name).stat().st_size for name in ("ours.gguf", "theirs.gguf")]
    assert sizes[0] == outcome.n_bytes == pytest.approx(sizes[1], rel=0.005)


@pytest.mark.parametrize("type_name", ["q4_k_m", "iq4_xs", "q8_0"])
def test_bytes_are_those_of_the_search(source, tmp_path, monkeypatch, type_name):
    monkeypatch.setattr(stream, "SLICE_VALUES", 256 * 20)
    run(source, tmp_path / "out.gguf", type_name)
    with GGUFFile.open(source) as before, GGUFFile.open(tmp_path / "out.gguf") as after:
        for name, tensor in after.tensors.items():
            values = before.tensors[name].dequantize()
            rounded = quantize_best(tensor.qtype, values.reshape(-1, values.shape[-1]))
            assert rounded.tobytes() == tensor.data.tobytes(), name


def write_metadata(path, values) -> None:
    """A one-tensor model with these extra (key, value, type, element type)."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_head_count(4)
    for key, value, kind, element in values:
        writer.add_key_value(key, value, kind, element)
    writer.add_tensor("token_embd.weight", np.ones((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_metadata_keeps_its_types(tmp_path):
    kinds = gguf.GGUFValueType
    scalars = [
        (f"x.{kind.name}", 1, kind, None) for kind in kinds if kind not in (kinds.STRING, kinds.ARRAY, kinds.BOOL)
    ]
    arrays = [(f"x.array.{kind.name}", [1, 2, 3], kinds.ARRAY, kind) for _, _, kind, _ in scalars]
    others = [
        ("x.bool", True, kinds.BOOL, None),
        ("x.text", "｜ \0", kinds.STRING, None),
        ("x.texts", ["", "é"], kinds.ARRAY, kinds.STRING),
    ]
    write_metadata(tmp_path / "in.gguf", [*scalars, *arrays, *others, ("general.file_type", 0, kinds.UINT32, None)])
    run(tmp_path / "in.gguf", tmp_path / "out.gguf", "q8_0")
    before, after = fields_of(tmp_path / "in.gguf"), fields_of(tmp_path / "out.gguf")
    assert after.pop("general.file_type") == (7, [kinds.UINT32])
    assert after.pop("general.quantization_version") == (2, [kinds.UINT32])
    del before["general.file_type"]
    assert len(before) > 25
    assert after == before


def test_split_files_become_one(tmp_path, source):
    with GGUFFile.open(source) as file:
        shapes = list(file.tensors.items())
        for number, part in enumerate((shapes[:5], shapes[5:])):
            writer = gguf.GGUFWriter(tmp_path / f"m-0000{number + 1}-of-00002.gguf", "llama")
            if number == 0:
                for key, field in gguf.GGUFReader(source).fields.items():
                    if not key.startswith("GGUF.") and key != "general.architecture":
                        sub = field.types[1] if len(field.types) > 1 else None
                        writer.add_key_value(key, field.contents(), field.types[0], sub)
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", 2)
            writer.add_int32("split.tensors.count", len(shapes))
            for name, tensor in part:
                kind = gguf.GGMLQuantizationType(tensor.qtype.gguf_id)
                writer.add_tensor(name, np.array(tensor.data), raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
    run(source, tmp_path / "whole.gguf", "q8_0")
    run(tmp_path / "m-00002-of-00002.gguf", tmp_path / "split.gguf", "q8_0")
    assert fields_of(tmp_path / "split.gguf") == fields_of(tmp_path / "whole.gguf")
    tensors = [gguf.GGUFReader(tmp_path / name).tensors for name in ("whole.gguf", "split.gguf")]
    assert [t.data.tobytes() for t in tensors[0]] == [t.data.tobytes() for t in tensors[1]]
    with pytest.raises(OutputError, match="is being read"):
        run(tmp_path / "m-00001-of-00002.gguf", renamed(tmp_path / "m-00002-of-00002.gguf"), "q8_0")


def renamed(path):
    """Another name of the same file."""
    link = path.with_name("link.gguf")
    link.hardlink_to(path)
    return link


def importance(shapes, seed=0) -> ImportanceMatrix:
    rng = np.random.default_rng(seed)
    matrix = ImportanceMatrix(512, 7, ["text.txt"])
    for name, shape in shapes.items():
        matrix.sums[name] = rng.exponential(size=shape[-1]).astype(np.float32) ** 3
        matrix.counts[name] = 100
    return matrix


def shapes_of(path):
    with GGUFFile.open(path) as file:
        return {t.name: t.shape for t in file.tensors.values() if len(t.shape) > 1 and t.name != "token_embd.weight"}


def test_importance_matrix(source, tmp_path):
    matrix = importance(shapes_of(source))
    matrix.save(tmp_path / "im.gguf")
    run(source, tmp_path / "out.gguf", "q4_0", imatrix=ImportanceMatrix.open(tmp_path / "im.gguf"))
    fields = fields_of(tmp_path / "out.gguf")
    u32, text = [gguf.GGUFValueType.UINT32], [gguf.GGUFValueType.STRING]
    assert fields["quantize.imatrix.file"] == ("im.gguf", text)
    assert fields["quantize.imatrix.dataset"] == ("text.txt", text)
    assert fields["quantize.imatrix.entries_count"] == (len(matrix.sums), u32)
    assert fields["quantize.imatrix.chunks_count"] == (7, u32)
    name = "blk.1.ffn_up.weight"
    with GGUFFile.open(source) as before, GGUFFile.open(tmp_path / "out.gguf") as after:
        values = before.tensors[name].dequantize()
        weighted = quantize_best(by_name("q4_0"), values, matrix.importance(name, 256))
        assert after.tensors[name].data.tobytes() == weighted.tobytes()
        assert weighted.tobytes() != quantize_best(by_name("q4_0"), values).tobytes()


def test_importance_matrix_of_another_model(source, tmp_path):
    shapes = shapes_of(source)
    other = importance({name: (1, 128) for name in shapes})
    other.path = tmp_path / "im.gguf"
    with pytest.raises(FileError, match=r"im.gguf: .* has 256 columns and its importance matrix 128"):
        run(source, tmp_path / "out.gguf", "q4_0", imatrix=other)
    with pytest.raises(FileError, match="observed none of this model's matrices"):
        run(source, tmp_path / "out.gguf", "q4_0", imatrix=importance({"blk.9.attn_q.weight": (1, 256)}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type_name", ["q4_0", "f16", "f32"])
def test_values_that_are_not_finite(tmp_path, value, type_name):
    path = write_tiny_model(tmp_path / "in.gguf")
    with GGUFFile.open(path) as file:
        tensor = file.tensors["blk.1.ffn_up.weight"]
        at = path.read_bytes().index(tensor.data.tobytes()) + 4 * (5 * 64 + 3)
    data = bytearray(path.read_bytes())
    data[at : at + 4] = struct.pack("<f", value)
    path.write_bytes(data)
    with pytest.raises(FileError, match=r"in.gguf: tensor blk.1.ffn_up.weight, row 5, column 3, is .*not a finite"):
        run(path, tmp_path / "out.gguf", type_name)
    assert [p.name for p in tmp_path.iterdir()] == ["in.gguf"]


def test_quantized_input(source, tmp_path):
    run(source, tmp_path / "q8_0.gguf", "q8_0")
    with pytest.raises(OptionError, match=r"is quantized already \(q8_0\).*--allow-requantize"):
        run(tmp_path / "q8_0.gguf", tmp_path / "out.gguf", "q4_0")
    run(tmp_path / "q8_0.gguf", tmp_path / "out.gguf", "q4_0", allow_requantize=True)
    assert types_of(tmp_path / "out.gguf")["blk.0.attn_q.weight"] == "q4_0"
    run(tmp_path / "q8_0.gguf", tmp_path / "same.gguf", "q8_0", allow_requantize=True)
    tensors = [gguf.GGUFReader(tmp_path / name).tensors for name in ("q8_0.gguf", "same.gguf")]
    assert [t.data.tobytes() for t in tensors[0]] == [t.data.tobytes() for t in tensors[1]]


def test_dry_run_writes_nothing(source, tmp_path):
    outcome = run(source, tmp_path / "out.gguf", "q4_k_m", overrides=["attn_q=q8_0"], dry_run=True)
    assert list(tmp_path.iterdir()) == []
    assert run(source, tmp_path / "out.gguf", "q4_k_m", overrides=["attn_q=q8_0"]).n_bytes == outcome.n_bytes
    assert outcome.n_bytes == (tmp_path / "out.gguf").stat().st_size
    assert {t.info.name: t.info.qtype.name for t in outcome.tensors} == types_of(tmp_path / "out.gguf")


def test_same_path(tmp_path):
    path = write_tiny_model(tmp_path / "in.gguf")
    before = path.read_bytes()
    with pytest.raises(OutputError, match="is the file that is being read"):
        run(path, path, "q8_0")
    assert path.read_bytes() == before


def test_other_architectures(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "in.gguf", "qwen2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="architecture 'qwen2'"):
        run(tmp_path / "in.gguf", tmp_path / "out.gguf", "q8_0")


@pytest.mark.skipif(sys.platform == "win32", reason="needs setrlimit")
def test_disk_full(source, tmp_path):
    """A limit on the size of files fails in the middle of the tensors, as a disk that fills up does."""
    import resource

    command = [sys.executable, "-m", "localcoder", "quantize", str(source), str(tmp_path / "out.gguf"), "f32"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"LOCALCODER_BACKEND": "numpy"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be written" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_interrupt_leaves_nothing(source, tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out.gguf", "q8_0", progress=interrupt)
    assert list(tmp_path.iterdir()) == []
