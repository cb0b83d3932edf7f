"""Small codes packed into bytes.

All GGUF formats pack alike: a run of `run` bytes holds 8/n_bits runs of `run` codes, the first run in the lowest bits
of every byte, the next one above it. With run 1 that is plain little-endian bit order.
"""

from __future__ import annotations

import numpy as np

from localcoder.quants.spec import Bytes, Codes


def unpack_bits(data: Bytes, n_bits: int, run: int) -> Bytes:
    """uint8 [n, n_bytes] -> codes uint8 [n, n_bytes * 8 / n_bits]."""
    n, n_bytes = data.shape
    shifts = np.arange(0, 8, n_bits, dtype=np.uint8)
    runs = data.reshape(n, n_bytes // run, 1, run) >> shifts[:, None]
    return (runs & np.uint8((1 << n_bits) - 1)).reshape(n, n_bytes * len(shifts))


def pack_bits(codes: Codes, n_bits: int, run: int) -> Bytes:
    """The inverse of `unpack_bits`; only the lowest n_bits of each code are kept."""
    n, n_codes = codes.shape
    shifts = np.arange(0, 8, n_bits, dtype=np.uint8)
    runs = (
        (codes & np.uint8((1 << n_bits) - 1))
        .astype(np.uint8)
        .reshape(n, n_codes // (run * len(shifts)), len(shifts), run)
    )
    return np.bitwise_or.reduce(runs << shifts[:, None], axis=2).reshape(n, n_codes // len(shifts))
