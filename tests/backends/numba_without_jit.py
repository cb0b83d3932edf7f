"""Run by test_numba_kernels.py with NUMBA_DISABLE_JIT=1: a tiny model on uncompiled kernels, against the reference."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numba
import numpy as np
from tiny_model import write_tiny_model

from localcoder.backends.numba import NumbaBackend
from localcoder.backends.reference import ReferenceBackend
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine

assert numba.config.DISABLE_JIT
for type_name in ("f16", "q4_0", "q8_0"):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = write_tiny_model(
            Path(folder) / "tiny.gguf", type_name=type_name, n_layer=1, n_embd=32, n_ff=32, n_head=2, n_head_kv=1
        )
        results = []
        for backend in (ReferenceBackend(), NumbaBackend(1)):
            engine = Engine(GGUFFile.open(path), backend, n_ctx=64)
            sequence = engine.new_sequence()
            pieces = [np.arange(7, dtype=np.int32), np.array([9, 8], np.int32)]
            results.append(np.concatenate([engine.evaluate([Chunk(sequence, p, len(p))]) for p in pieces]))
        error = np.abs(results[0] - results[1]).max() / np.abs(results[0]).max()
        if not error <= 1e-3:
            sys.exit(f"{type_name}: off by {error}")
        print(type_name)
