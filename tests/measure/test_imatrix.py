"""Importance matrices collected by running a model."""

from __future__ import annotations

import numpy as np
from tiny_model import write_tiny_model

from localcoder.backends.reference import ReferenceBackend
from localcoder.backends.select import open_backend
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.imatrix import ImportanceMatrix
from localcoder.measure.chunks import cut_chunks
from localcoder.measure.imatrix import CHUNKS_AT_A_TIME, collect

N_CTX = 16


def collected(path, n_chunks: int, *, start: ImportanceMatrix | None = None) -> ImportanceMatrix:
    ids = np.random.default_rng(0).integers(0, 256, n_chunks * N_CTX).tolist()
    matrix = start or ImportanceMatrix(N_CTX)
    with GGUFFile.open(path) as file:
        for _ in collect(file, open_backend(), cut_chunks(ids, N_CTX, 256), matrix):
            pass
    return matrix


def test_sums_are_those_of_the_inputs(tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf", n_layer=1)
    matrix = collected(path, 2)
    assert matrix.counts == dict.fromkeys(matrix.sums, 2 * N_CTX)
    assert set(matrix.sums) == {
        *(f"blk.0.{part}.weight" for part in ("attn_q", "attn_k", "attn_v", "attn_output")),
        *(f"blk.0.{part}.weight" for part in ("ffn_gate", "ffn_up", "ffn_down")),
        "output.weight",
    }
    assert np.array_equal(matrix.sums["blk.0.attn_q.weight"], matrix.sums["blk.0.attn_v.weight"])
    # The first layer's input is the normalized embedding, which needs no model to compute.
    ids = cut_chunks(np.random.default_rng(0).integers(0, 256, 2 * N_CTX).tolist(), N_CTX, 256).ravel()
    with GGUFFile.open(path) as file:
        x = file.tensors["token_embd.weight"].dequantize()[ids].astype(np.float64)
        norm = file.tensors["blk.0.attn_norm.weight"].dequantize()
    h = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-6) * norm
    assert np.allclose(matrix.importance("blk.0.attn_k.weight", 64), (h * h).mean(axis=0), rtol=1e-4)


def test_an_interrupted_run_can_be_resumed(tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf", n_layer=1)
    n = 2 * CHUNKS_AT_A_TIME + 1
    whole = collected(path, n)
    ids = np.random.default_rng(0).integers(0, 256, n * N_CTX).tolist()
    part = ImportanceMatrix(N_CTX)
    with GGUFFile.open(path) as file:
        next(collect(file, ReferenceBackend(), cut_chunks(ids, N_CTX, 256), part))
    assert part.n_chunks == CHUNKS_AT_A_TIME
    part.save(tmp_path / "i.gguf")
    resumed = collected(path, n, start=ImportanceMatrix.open(tmp_path / "i.gguf"))
    assert resumed.n_chunks == whole.n_chunks == n
    for name, sums in whole.sums.items():
        assert np.allclose(resumed.sums[name], sums, rtol=1e-3)
