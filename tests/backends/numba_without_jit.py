"""Run by test_numba_kernels.py, with NUMBA_DISABLE_JIT=1 and without: saves logits of tiny models in the file named."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tiny_model import write_tiny_model

from localcoder.backends.numba import NumbaBackend
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine

logits = {}
for type_name in ("f16", "q4_0", "q8_0"):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = write_tiny_model(
            Path(folder) / "tiny.gguf", type_name=type_name, n_layer=1, n_embd=32, n_ff=32, n_head=2, n_head_kv=1
        )
        engine = Engine(GGUFFile.open(path), NumbaBackend(1), n_ctx=64)
        sequence = engine.new_sequence()
        pieces = [np.arange(7, dtype=np.int32), np.array([9, 8], np.int32)]
        logits[type_name] = np.concatenate([engine.evaluate([Chunk(sequence, p, len(p))]) for p in pieces])
np.savez(sys.argv[1], **logits)
