"""Quantizing with error feedback: every matrix is rounded on the inputs that it will really see.

The model runs over a calibration text stage by stage; each matrix is rounded with the second moments of its inputs
(convert/feedback.py) and its rounded form is used from there on, so that later matrices make good what earlier ones
lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.base import Backend
from localcoder.convert.feedback import Feedback
from localcoder.errors import NumericsError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.stages import StagedModel
from localcoder.quants import QuantTensor, QuantType
from localcoder.quants.codes import has_codes
from localcoder.quants.spec import Float32

Emit = Callable[[QuantTensor], None]


def calibrate(
    file: GGUFFile, backend: Backend, chunks: NDArray[np.int32], types: Mapping[str, QuantType], emit: Emit
) -> None:
    """Rounds every matrix of `file`, calling `emit` with each as it is done: the embedding, then layer by layer.

    Args:
        file: a model in a float format.
        chunks: int32 [n_chunks, n_ctx] calibration tokens, as `measure.chunks.cut_chunks` makes them.
        types: the format of each matrix, by tensor name.

    Raises:
        NumericsError: the model computed something that is not finite.
    """

    def plainly_rounded(tensor: QuantTensor, importance: Float32 | None = None) -> QuantTensor:
        qtype = types[tensor.name]
        return QuantTensor(
            tensor.name, qtype, tensor.shape, backend.quantize_best(qtype, tensor.dequantize(), importance)
        )

    def visit(names: tuple[str, ...], x: Float32) -> Mapping[str, QuantTensor]:
        moments = x.T @ x
        if not np.isfinite(moments).all():
            raise NumericsError(f"the input of {names[0]} is not finite: the model's file is damaged")
        feedback = Feedback(moments, backend.quantize_best)
        rounded = {}
        for name in names:
            tensor, qtype = file.tensors[name], types[name]
            if name == embedding.name:  # tied: it was rounded before anything could be known
                continue
            if has_codes(qtype):
                data = feedback.round(qtype, tensor.dequantize())
                rounded[name] = QuantTensor(name, qtype, tensor.shape, data)
            else:
                rounded[name] = plainly_rounded(tensor, feedback.importance)
            emit(rounded[name])
        return rounded

    embedding = plainly_rounded(file.tensors["token_embd.weight"])
    emit(embedding)
    StagedModel(file, backend, chunks.shape[1]).run(chunks, visit, embedding=embedding)
