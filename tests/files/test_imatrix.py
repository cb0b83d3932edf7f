"""Importance matrices: both formats of llama.cpp, and what is wrong with a file."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest

from localcoder.errors import FileError
from localcoder.files.imatrix import ImportanceMatrix


def observed() -> ImportanceMatrix:
    matrix = ImportanceMatrix(chunk_size=4)
    x = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
    matrix.add("blk.0.attn_q.weight", x[:4])
    matrix.add("blk.0.attn_q.weight", x[4:])
    matrix.add("output.weight", x)
    matrix.datasets, matrix.n_chunks = ["text"], 2
    observed.mean = (x.astype(np.float64) ** 2).mean(axis=0)
    return matrix


def test_what_is_saved_is_what_the_gguf_package_reads(tmp_path):
    path = tmp_path / "i.gguf"
    observed().save(path)
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.type").contents() == "imatrix"
    assert reader.get_field("imatrix.datasets").contents() == ["text"]
    assert reader.get_field("imatrix.chunk_count").contents() == 2
    assert reader.get_field("imatrix.chunk_size").contents() == 4
    tensors = {t.name: t for t in reader.tensors}
    assert tensors["output.weight.in_sum2"].shape.tolist() == [5, 1]  # as a two-dimensional tensor of one matrix
    assert tensors["output.weight.counts"].data.tolist() == [[8.0]]
    assert np.allclose(tensors["output.weight.in_sum2"].data / 8, observed.mean, rtol=1e-6)


def test_round_trip(tmp_path):
    path = tmp_path / "i.gguf"
    observed().save(path)
    found = ImportanceMatrix.open(path)
    assert np.allclose(found.importance("blk.0.attn_q.weight", 5), observed.mean, rtol=1e-6)
    assert found.importance("blk.1.attn_q.weight", 5) is None
    with pytest.raises(FileError, match="belongs to another model"):
        found.importance("output.weight", 6)


def written_elsewhere(path, *, counts=True, kind="imatrix", value=1.0):
    """The format as llama.cpp writes it, by the `gguf` package: with `in_sum`, without an architecture's keys."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["a.txt", "b.txt"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("blk.0.ffn_up.weight.in_sum2", np.full((1, 4), value, np.float32))
    writer.add_tensor("blk.0.ffn_up.weight.in_sum", np.zeros((1, 4), np.float32))
    if counts:
        writer.add_tensor("blk.0.ffn_up.weight.counts", np.full((1, 1), 2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_from_elsewhere(tmp_path):
    found = ImportanceMatrix.open(written_elsewhere(tmp_path / "i.gguf"))
    assert found.importance("blk.0.ffn_up.weight", 4).tolist() == [0.5] * 4
    assert (found.n_chunks, found.chunk_size, found.datasets) == (3, 512, ["a.txt", "b.txt"])


def legacy(values=(2.0, 4.0), n_calls=2) -> bytes:
    name = b"blk.0.ffn_up.weight"
    entry = struct.pack("<i", len(name)) + name + struct.pack("<ii", n_calls, len(values))
    return struct.pack("<i", 1) + entry + struct.pack(f"<{len(values)}f", *values) + struct.pack("<ii", 7, 3) + b"c.x"


def test_the_older_format(tmp_path):
    path = tmp_path / "i.dat"
    path.write_bytes(legacy())
    found = ImportanceMatrix.open(path)
    assert found.importance("blk.0.ffn_up.weight", 2).tolist() == [1.0, 2.0]  # values are mean times calls
    assert (found.n_chunks, found.datasets) == (7, ["c.x"])


def test_wrong_files_are_named(tmp_path):
    path = tmp_path / "i.dat"
    cases = [b"", b"\xff" * 100, struct.pack("<i", 5), legacy(values=(1.0, float("nan"))), legacy(values=(-1.0,))]
    cases += [legacy()[:n] for n in range(1, len(legacy()) - 14)]
    for data in cases:
        path.write_bytes(data)
        with pytest.raises(FileError, match=r"i\.dat"):
            ImportanceMatrix.open(path)
    for name, changes in (("a", {"counts": False}), ("b", {"kind": "model"}), ("c", {"value": np.inf})):
        with pytest.raises(FileError, match=rf"{name}\.gguf"):
            ImportanceMatrix.open(written_elsewhere(tmp_path / f"{name}.gguf", **changes))
    with pytest.raises(FileError):
        ImportanceMatrix.open(tmp_path / "missing")
    with pytest.raises(FileError):
        ImportanceMatrix.open(tmp_path)
