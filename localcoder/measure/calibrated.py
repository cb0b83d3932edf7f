"""Quantizing a file with error feedback: what `quantize --calibrate` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.base import Backend
from localcoder.convert.quantizer import prepare, refuse_quantized
from localcoder.convert.stream import Choice, Outcome, Progress, check_table, write_tensors
from localcoder.errors import OptionError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.measure.calibrate import calibrate
from localcoder.model.stages import StagedModel
from localcoder.quants import QuantTensor


def quantize_calibrated(
    source: str | Path,
    target: str | Path,
    choice: Choice,
    backend: Backend,
    chunks: NDArray[np.int32],
    *,
    progress: Progress | None = None,
) -> Outcome:
    """As `convert.quantizer.quantize_file`, every matrix rounded on the inputs that it sees in `chunks`.

    The file lists its tensors in the order in which the model uses them.

    Args:
        choice: without an importance matrix: calibration knows more.
        chunks: int32 [n_chunks, n_ctx], as `cut_chunks` makes them.

    Raises:
        NumericsError: the model computed something that is not finite.
        and as `quantize_file`, which here must have a float source.
    """
    if choice.imatrix:
        raise OptionError("calibration takes the place of an importance matrix: give one of them")
    with GGUFFile.open(source) as file:
        refuse_quantized(file)
        out, tensors = prepare(file, target, choice)
        for tensor in tensors:
            tensor.check()
        names = StagedModel(file, backend, chunks.shape[1]).matrices
        by_name = {tensor.info.name: tensor for tensor in tensors}
        plain = [tensor for tensor in tensors if tensor.info.name not in names]
        ordered = [*plain, *(by_name[name] for name in names)]
        infos = [tensor.info for tensor in ordered]
        with out:
            outcome = Outcome(ordered, out.begin(infos))
            write_tensors(out, plain, backend.requantize)
            n_bytes = sum(info.nbytes for info in infos)
            n_written = sum(tensor.info.nbytes for tensor in plain)

            def emit(tensor: QuantTensor) -> None:
                nonlocal n_written
                out.write(tensor.name, tensor.data)
                n_written += tensor.nbytes
                if progress:
                    progress(n_written, n_bytes)

            types = {info.name: info.qtype for info in infos}
            calibrate(file, backend, chunks, types, emit, folder=out.temporary.parent)
            out.finish()
            with GGUFFile.open(out.temporary) as written:
                check_table(written, ordered, out.path)
    return outcome
