"""Random tensors of every block format, also of those that localcoder only reads."""

from __future__ import annotations

import numpy as np

from localcoder.quants import QuantTensor, QuantType

IQ1_M_D = 0x2400  # bits of the half 2^-6, which this format spreads over four words


def random_tensor(qtype: QuantType, n_out: int, n_in: int, seed: int = 0, name: str = "w") -> QuantTensor:
    """Random bits in every field but the scales, which are such that values stay around 1."""
    rng = np.random.default_rng(seed)
    n_blocks = n_out * n_in // qtype.block_elems
    data = rng.integers(0, 256, n_blocks * qtype.block_bytes, np.uint8)
    blocks = data.view(qtype.block)
    if qtype.name in ("f32", "f16", "bf16"):
        return QuantTensor(name, qtype, (n_out, n_in), qtype.quantize(_floats(rng, n_out, n_in)))
    for field in ("d", "dmin", "m"):
        if field in (qtype.block.names or ()) and blocks[field].dtype == np.dtype("<f2"):
            blocks[field] = rng.normal(0, 1 / 16, n_blocks)
    if qtype.name == "mxfp4":
        blocks["e"] = rng.integers(120, 128, n_blocks)
    if qtype.name == "nvfp4":
        blocks["d"] = rng.integers(0x20, 0x40, blocks["d"].shape)
    if qtype.name == "iq1_m":
        nibbles = np.array([IQ1_M_D << 12, IQ1_M_D << 8, IQ1_M_D << 4, IQ1_M_D], np.uint32) & 0xF000
        blocks["scales"] = (blocks["scales"] & 0x0FFF) | nibbles.astype(np.uint16)
    return QuantTensor(name, qtype, (n_out, n_in), data.reshape(n_out, -1))


def _floats(rng: np.random.Generator, n_out: int, n_in: int) -> np.ndarray:
    return rng.standard_normal((n_out, n_in)).astype(np.float32)
