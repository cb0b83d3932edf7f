"""Collecting an importance matrix: which inputs of each weight matrix a text uses, and how much."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.base import Backend
from localcoder.errors import NumericsError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.imatrix import ImportanceMatrix
from localcoder.model.stages import StagedModel
from localcoder.quants.spec import Float32, QuantTensor

CHUNKS_AT_A_TIME = 8  # between two of them the matrix is complete and can be saved


def collect(file: GGUFFile, backend: Backend, chunks: NDArray[np.int32], into: ImportanceMatrix) -> Iterator[int]:
    """Adds the chunks from number `into.n_chunks` on to `into`.

    Yields the number of chunks done whenever `into` is complete up to there.

    Args:
        chunks: int32 [n_chunks, chunk_size], as `cut_chunks` makes them.

    Raises:
        NumericsError: the model computed something that is not finite.
    """
    model = StagedModel(file, backend, chunks.shape[1])

    def visit(names: tuple[str, ...], inputs: Iterable[Float32]) -> Mapping[str, QuantTensor]:
        for x in inputs:
            if not np.isfinite(x).all():
                raise NumericsError(f"the input of {names[0]} is not finite: the model's file is damaged")
            for name in names:
                into.add(name, x)
        return {}

    for at in range(into.n_chunks, len(chunks), CHUNKS_AT_A_TIME):
        batch = chunks[at : at + CHUNKS_AT_A_TIME]
        model.run(batch, visit)
        into.n_chunks += len(batch)
        yield into.n_chunks
