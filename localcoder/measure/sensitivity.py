"""What noise in each matrix does to a model, measured on a text: for sharing out a budget (`convert/allocation.py`).

Matrices are rounded a few at a time, all others left as they are, and the KL divergence from the model as it is is
taken over the text. It is proportional to the noise: the linearity theorem of Malinovskii et al., "Pushing the Limits
of Large Language Model Quantization via the Linearity Theorem" (2024, arXiv 2411.17525), for perplexity. On a small
trained model it held from Q2_K to Q6_K, over a range of 200. So what one type does tells what every type will do.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.base import Backend
from localcoder.convert.quantizer import refuse_quantized
from localcoder.convert.stream import SLICE_VALUES, GGUFSource, PlannedTensor
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.gguf_writer import TensorInfo
from localcoder.measure.divergence import DivergenceSamples
from localcoder.measure.perplexity import ScoredPiece, scored_pieces
from localcoder.model.engine import Engine
from localcoder.quants import QuantTensor, by_name

PROBE = by_name("q4_0")  # enough noise to be seen over the backend's own rounding, and blocks that fit most rows
N_TOKENS = 4096  # half of them scored
_MOST_PARTS = 8  # into which the layers are cut
_LAYER = re.compile(r"blk\.([0-9]{1,6})\.(.+)")

Steps = Callable[[int, int], None]  # groups done, groups in all


def measure_sensitivity(
    file: GGUFFile,
    backend: Backend,
    chunks: NDArray[np.int32],
    progress: Steps | None = None,
    *,
    n_tokens: int = N_TOKENS,
) -> dict[str, float]:
    """KL divergence, in nats, for a unit of relative noise in the output of each matrix that `PROBE` fits.

    A part of a layer is measured together with the same part of its neighbours in deep models.

    Args:
        file: a model in a float format.
        chunks: int32 [n_chunks, n_ctx], as `cut_chunks` makes them.
        n_tokens: how many of them the model runs over for each group.

    Raises:
        FileError: a weight is not finite.
        OptionError: the file is quantized already.
        NumericsError: the model computed something that is not finite.
    """
    refuse_quantized(file)
    for tensor in file.tensors.values():
        _check(file, tensor)
    chunks = chunks[:: max(1, chunks.size // n_tokens)]
    base = list(_pieces(file, backend, chunks))
    found = {}
    groups = _groups(file.tensors)
    for n_done, names in enumerate(groups, 1):
        rounded, noises = {}, []
        for name in names:
            rounded[name], noise = _rounded(file.tensors[name], backend)
            noises.append(noise)
        samples = DivergenceSamples()
        for pieces in zip(base, _pieces(_with(file, rounded), backend, chunks), strict=True):
            samples.add(*pieces)
        found.update(dict.fromkeys(names, samples.mean_kl / max(sum(noises), np.finfo(np.float32).tiny)))
        if progress:
            progress(n_done, len(groups))
    return found


def _groups(tensors: Mapping[str, QuantTensor]) -> list[Sequence[str]]:
    """Names of the matrices that are measured together: one part of some consecutive layers, the outer ones alone."""
    groups: list[Sequence[str]] = []
    parts: dict[str, list[str]] = {}  # what a layer has -> names in the order of layers
    for name, tensor in tensors.items():
        if len(tensor.shape) != 2 or tensor.shape[1] % PROBE.block_elems:
            continue
        match = _LAYER.fullmatch(name)
        if match:
            parts.setdefault(match[2], []).append(name)
        else:
            groups.append([name])
    for names in parts.values():
        names.sort(key=lambda name: int(name.split(".")[1]))
        groups += ([names[0]], *(part.tolist() for part in np.array_split(names[1:-1], _MOST_PARTS - 2)), [names[-1]])
    return [names for names in groups if names]


def _pieces(file: GGUFFile, backend: Backend, chunks: NDArray[np.int32]) -> Iterator[ScoredPiece]:
    engine = Engine(file, backend, n_ctx=chunks.shape[1])
    try:
        yield from scored_pieces(engine, chunks)
    finally:
        engine.close()


def _with(file: GGUFFile, tensors: Mapping[str, QuantTensor]) -> GGUFFile:
    """The same open file with other tensors in the place of some."""
    other = copy.copy(file)
    other.tensors = {**file.tensors, **tensors}
    return other


def _check(file: GGUFFile, tensor: QuantTensor) -> None:
    """FileError if a value is not finite."""
    info = TensorInfo(tensor.name, by_name("f32"), tensor.shape)
    PlannedTensor(info, GGUFSource(file.path, tensor)).check()


def _rounded(tensor: QuantTensor, backend: Backend) -> tuple[QuantTensor, float]:
    """A matrix in PROBE, and its squared error over its own square."""
    n_rows, n_in = tensor.shape
    step = max(1, SLICE_VALUES // n_in)
    slices, error, energy = [], 0.0, 0.0
    for at in range(0, n_rows, step):
        stored = tensor.data[at : at + step]
        slices.append(backend.requantize(PROBE, tensor.qtype, stored))
        x = tensor.qtype.dequantize(stored)
        error += float(np.square(PROBE.dequantize(slices[-1]) - x, dtype=np.float64).sum())
        energy += float(np.square(x, dtype=np.float64).sum())
    noise = error / max(energy, float(np.finfo(np.float32).tiny))
    return QuantTensor(tensor.name, PROBE, tensor.shape, np.concatenate(slices)), noise
