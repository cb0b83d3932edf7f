"""How close to the original the quantizers come, beside llama.cpp's at the same type.

    python tools/quantization_error.py CHECKPOINT [TYPE ...]

For every type: Σ(x - x')²/Σx² over all matrices of a Hugging Face checkpoint, by llama.cpp's rounding and by our
search, and their ratio; then the ratio on random values (normal, and Student's t with 3 degrees of freedom). No
importance matrix on either side. Needs llama-cpp-python, whose library holds the functions that llama-quantize calls.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import llama_cpp
import numpy as np

from localcoder.files.checkpoint import Checkpoint
from localcoder.quants import ALL, QuantType, by_name
from localcoder.quants.search import is_searched, quantize_best
from localcoder.quants.spec import Bytes, Float32

SLICE_ROWS = 1024
RANDOM_SHAPE = (2048, 256)


def load_llama_cpp() -> Callable[[QuantType, Float32], Bytes]:
    """llama.cpp's quantizer: (type, float32 [n_rows, n]) -> uint8 [n_rows, row_bytes]."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(path for path in folder.iterdir() if "ggml-base" in path.name)))
    quantize_chunk = library.ggml_quantize_chunk
    quantize_chunk.restype = ctypes.c_size_t
    quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def quantize(qtype: QuantType, x: Float32) -> Bytes:
        out = np.zeros((len(x), qtype.row_bytes(x.shape[1])), np.uint8)
        quantize_chunk(qtype.gguf_id, x.ctypes.data, out.ctypes.data, 0, *x.shape, None)
        return out

    return quantize


def slices_of(checkpoint: Checkpoint, qtype: QuantType) -> Iterator[Float32]:
    """The matrices whose rows are whole blocks, in slices of rows."""
    for tensor in checkpoint.tensors.values():
        if len(tensor.shape) == 2 and tensor.shape[1] % qtype.block_elems == 0:
            for start in range(0, tensor.shape[0], SLICE_ROWS):
                yield tensor.rows(start, min(start + SLICE_ROWS, tensor.shape[0]))


def squared_errors(
    qtype: QuantType, slices: Iterator[Float32], by_llama_cpp: Callable[[QuantType, Float32], Bytes]
) -> tuple[float, float]:
    """Relative squared errors, theirs and ours."""
    theirs = ours = energy = 0.0
    for x in slices:
        exact = x.astype(np.float64)
        theirs += ((qtype.dequantize(by_llama_cpp(qtype, x)) - exact) ** 2).sum()
        ours += ((qtype.dequantize(quantize_best(qtype, x)) - exact) ** 2).sum()
        energy += (exact**2).sum()
    return theirs / energy, ours / energy


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False))
@click.argument("types", nargs=-1)
def main(checkpoint: str, types: tuple[str, ...]) -> None:
    by_llama_cpp = load_llama_cpp()
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(RANDOM_SHAPE, np.float32)
    heavy = rng.standard_t(3, RANDOM_SHAPE).astype(np.float32)
    click.echo(f"{'type':8}{'llama.cpp':>12}{'ours':>12}{'ratio':>8}{'normal':>8}{'t3':>8}")
    with Checkpoint.open(checkpoint) as opened:
        for qtype in [by_name(name) for name in types] or [t for t in ALL if is_searched(t)]:
            theirs, ours = squared_errors(qtype, slices_of(opened, qtype), by_llama_cpp)
            ratios = [ours / theirs]
            for x in (normal, heavy):
                random_theirs, random_ours = squared_errors(qtype, iter([x * np.float32(0.02)]), by_llama_cpp)
                ratios.append(random_ours / random_theirs)
            click.echo(f"{qtype.name:8}{theirs:12.4e}{ours:12.4e}" + "".join(f"{ratio:8.3f}" for ratio in ratios))


if __name__ == "__main__":
    main()
