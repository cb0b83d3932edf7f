"""Quantizing with error feedback: every matrix is rounded on the inputs that it will really see.

The model runs over a calibration text stage by stage; each matrix is rounded with the second moments of its inputs
(convert/feedback.py) and its rounded form is used from there on, so that later matrices make good what earlier ones
lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.base import Backend
from localcoder.convert.feedback import Feedback
from localcoder.convert.stream import SLICE_VALUES
from localcoder.errors import NumericsError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.stages import StagedModel
from localcoder.quants import QuantTensor, QuantType
from localcoder.quants.codes import has_codes
from localcoder.quants.spec import Bytes, Float32

Emit = Callable[[QuantTensor], None]


def calibrate(
    file: GGUFFile,
    backend: Backend,
    chunks: NDArray[np.int32],
    types: Mapping[str, QuantType],
    emit: Emit,
    *,
    folder: Path | None = None,
) -> None:
    """Rounds every matrix of `file`, calling `emit` with each as it is done: the embedding, then layer by layer.

    Args:
        file: a model in a float format.
        chunks: int32 [n_chunks, n_ctx] calibration tokens, as `measure.chunks.cut_chunks` makes them.
        types: the format of each matrix, by tensor name.
        folder: on whose disk the hidden states of all chunks lie meanwhile; None: where temporary files do.

    Raises:
        NumericsError: the model computed something that is not finite.
        OutputError: no room on the disk for the states.
    """
    embedding_name = "token_embd.weight"

    def rounded(name: str, feedback: Feedback | None) -> QuantTensor:
        tensor, qtype = file.tensors[name], types[name]
        if feedback and has_codes(qtype):
            slices = (feedback.round(qtype, tensor.qtype.dequantize(rows)) for rows in _slices(tensor))
        else:
            importance = feedback.importance if feedback else None
            slices = (backend.requantize(qtype, tensor.qtype, rows, importance) for rows in _slices(tensor))
        done = QuantTensor(name, qtype, tensor.shape, np.concatenate(list(slices)))
        emit(done)
        return done

    def visit(names: tuple[str, ...], inputs: Iterable[Float32]) -> Mapping[str, QuantTensor]:
        if names == (embedding_name,):  # tied: it was rounded before anything could be known
            return {}
        try:
            feedback = Feedback(inputs, backend.quantize_best)
        except NumericsError:
            problem = f"the input of {names[0]} is not finite: the model's file is damaged"
            raise NumericsError(problem) from None
        return {name: rounded(name, feedback) for name in names}

    model = StagedModel(file, backend, chunks.shape[1], folder=folder)
    model.run(chunks, visit, embedding=rounded(embedding_name, None))


def _slices(tensor: QuantTensor) -> Iterator[Bytes]:
    """The rows of a matrix as they are stored, some at a time."""
    n_rows = max(1, SLICE_VALUES // tensor.shape[-1])
    return (tensor.data[at : at + n_rows] for at in range(0, len(tensor.data), n_rows))
