"""Our GGUF reader against what the `gguf` package writes and reads."""

from __future__ import annotations

import math
import time

import gguf
import numpy as np
import pytest
from raw_gguf import STRING, RawGGUF, pair
from tiny_model import write_tiny_model

from localcoder.errors import GGUFError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.quants import ALL

SCALARS = {
    "uint8": 255,
    "int8": -128,
    "uint16": 65535,
    "int16": -32768,
    "uint32": 2**32 - 1,
    "int32": -(2**31),
    "uint64": 2**64 - 1,
    "int64": -(2**63),
    "float32": 0.1,
    "float64": 0.1,
    "bool": True,
    "string": "｜ünïcode▁\n\0",
}
DTYPES = {"uint8": "u1", "float32": "f4", "float64": "f8", "bool": "?"} | {
    f"{sign}int{bits}": f"{sign or 'i'}{bits // 8}" for sign in ("u", "") for bits in (8, 16, 32, 64)
}


def write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", SCALARS)
def test_metadata_of_every_type(tmp_path, kind):
    value = SCALARS[kind]
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    getattr(writer, f"add_{kind}")("scalar", value)
    array = gguf.GGUFValueType.ARRAY
    writer.add_key_value("array", [value, value], array, sub_type=gguf.GGUFValueType[kind.upper()])
    write(writer)
    with GGUFFile.open(tmp_path / "x.gguf") as file:
        found, items = file.metadata["scalar"], file.metadata["array"]
        assert type(found) is type(value)
        assert found == (float(np.float32(value)) if kind == "float32" else value)
        if kind == "string":
            assert items == file.get_strings("array") == [value, value]
        else:
            assert file.get_array("array").dtype == DTYPES[kind]
            assert items.tolist() == [found, found]
        fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
        assert (found, [*items]) == (fields["scalar"].contents(), fields["array"].contents())


@pytest.mark.parametrize("qtype", ALL, ids=lambda t: t.name)
def test_tensors_of_every_type(tmp_path, qtype):
    rng = np.random.default_rng(0)
    shapes = {"vector": (512,), "matrix": (3, 256), "cube": (2, 3, 256), "four": (2, 1, 3, 256)}
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    for name, shape in shapes.items():
        raw = rng.integers(0, 256, (*shape[:-1], qtype.row_bytes(shape[-1])), np.uint8)
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType(qtype.gguf_id))
    write(writer)
    with GGUFFile.open(tmp_path / "x.gguf") as file:
        assert list(file.tensors) == list(shapes)
        for theirs in gguf.GGUFReader(tmp_path / "x.gguf").tensors:
            ours = file.tensors[theirs.name]
            assert ours.qtype is qtype
            assert ours.shape == shapes[theirs.name]
            assert ours.data.tobytes() == theirs.data.tobytes()
        summary = file.summary()
        assert summary.file_bytes == (tmp_path / "x.gguf").stat().st_size
        n = sum(map(math.prod, shapes.values()))
        assert (summary.total.n_params, list(summary.by_type)) == (n, [qtype.name])
        assert summary.total.bits_per_weight == qtype.bits_per_weight


@pytest.mark.parametrize("options", [{"split_max_tensors": 4}, {"split_max_size": 30_000}, {"small_first_shard": True}])
def test_split_files(tmp_path, monkeypatch, options):
    whole = write_tiny_model(tmp_path / "whole.gguf", type_name="q8_0", n_ff=64)
    plain = gguf.GGUFWriter
    options = {"split_max_tensors": 8, **options}
    monkeypatch.setattr(gguf, "GGUFWriter", lambda path, arch: plain(path, arch, **options))
    write_tiny_model(tmp_path / "split.gguf", type_name="q8_0", n_ff=64)
    parts = sorted(tmp_path.glob("split-*"))
    assert len(parts) > 1
    for part in (parts[0], parts[-1]):
        with GGUFFile.open(part) as split, GGUFFile.open(whole) as file:
            assert split.path == parts[0]
            assert list(split.tensors) == list(file.tensors)
            assert file.metadata.keys() <= split.metadata.keys()
            for name, tensor in file.tensors.items():
                assert split.tensors[name].data.tobytes() == tensor.data.tobytes()
            assert split.summary().total == file.summary().total


@pytest.fixture
def split(tmp_path):
    """Paths of a model in three parts of one tensor each."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=1)
    for name in "abc":
        writer.add_tensor(name, np.zeros(8, np.float32))
    write(writer)
    return sorted(tmp_path.glob("m-*"))


def refused(path, match):
    with pytest.raises(GGUFError, match=match):
        GGUFFile.open(path)


def test_split_parts_that_do_not_fit(split):
    first, second, third = split
    with GGUFFile.open(third) as file:
        assert list(file.tensors) == ["a", "b", "c"]
    refused(first.with_name("m-00004-of-00003.gguf"), "its name says part 4 of 3")
    refused(first.with_name("m-00001-of-99999.gguf"), "expected 1 to 1024 parts")
    original = second.read_bytes()
    second.unlink()
    refused(first, "m-00002-of-00003.gguf: no such file; it is a part of the model")
    second.write_bytes(third.read_bytes())
    refused(first, "says it is part 2 of 3, expected 1 of 3")
    second.write_bytes(original.replace(b"\x01\x00\x00\x00\x00\x00\x00\x00b", b"\x01\x00\x00\x00\x00\x00\x00\x00a"))
    refused(first, "tensor a is also in another part")
    alone = first.with_name("alone.gguf")
    alone.write_bytes(original)
    refused(alone, "part of a split file, but not named like one")


@pytest.mark.parametrize("key", ["split.no", "split.count", "split.tensors.count"])
def test_split_keys_of_a_wrong_type(tmp_path, key):
    raw = RawGGUF()
    raw.pairs.append(pair(key, STRING, "x"))
    (tmp_path / "x.gguf").write_bytes(raw.bytes())
    refused(tmp_path / "x.gguf", f"metadata key {key} is a string, expected an integer")


def test_version_2(tmp_path):
    path = write_tiny_model(tmp_path / "x.gguf")
    with GGUFFile.open(path) as file:
        expected = {name: tensor.data.tobytes() for name, tensor in file.tensors.items()}
    data = bytearray(path.read_bytes())
    data[4] = 2
    path.write_bytes(data)
    with GGUFFile.open(path) as file:
        assert file.version == 2
        assert {name: tensor.data.tobytes() for name, tensor in file.tensors.items()} == expected


def test_big_endian(tmp_path):
    write(gguf.GGUFWriter(tmp_path / "x.gguf", "llama", endianess=gguf.GGUFEndian.BIG))
    refused(tmp_path / "x.gguf", r"GGUF version 50331648 \(a big-endian file\?\); expected 2 or 3")


def test_typed_getters(tmp_path):
    (tmp_path / "x.gguf").write_bytes(RawGGUF().bytes())
    with GGUFFile.open(tmp_path / "x.gguf") as file:
        assert file.get_str("general.architecture") == "llama"
        assert file.get_strings("tokens") == ["a", "｜", ""]
        assert file.get_array("scores").tolist() == [0.5, 1.0]
        assert file.get_bool("flag") is True
        assert (file.get_int("none", 3), file.get_float("none", 3), file.get_bool("none", False)) == (3, 3.0, False)
        getters = [file.get_int, file.get_float, file.get_bool, file.get_str, file.get_strings, file.get_array]
        for get in getters:
            with pytest.raises(GGUFError, match="metadata key none is missing"):
                get("none")
        right = {"general.architecture": "get_str", "tokens": "get_strings", "scores": "get_array", "flag": "get_bool"}
        for key, name in right.items():
            for get in getters:
                if get.__name__ != name:
                    with pytest.raises(GGUFError, match=f"metadata key {key} is .*, expected "):
                        get(key)


def test_views_outlive_the_file(tmp_path):
    path = write_tiny_model(tmp_path / "x.gguf")
    with GGUFFile.open(path) as file:
        tensor = file.tensors["output_norm.weight"]
        before = tensor.dequantize()
    assert file.tensors == {}
    np.testing.assert_array_equal(tensor.dequantize(), before)


@pytest.mark.parametrize(("name", "n_tokens"), [("vocab.gguf", 32256), ("vocab-v1.5.gguf", 102400)])
def test_real_vocabulary_opens_quickly(shared, name, n_tokens):
    path = shared / "deepseek-coder" / name
    times = []
    for _ in range(5):
        start = time.process_time()
        with GGUFFile.open(path) as file:
            times.append(time.process_time() - start)
            tokens = file.get_strings("tokenizer.ggml.tokens")
    assert len(tokens) == n_tokens
    assert min(times) < 0.2
    assert file.get_int("tokenizer.ggml.bos_token_id") == tokens.index("<｜begin▁of▁sentence｜>")
