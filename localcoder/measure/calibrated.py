"""Quantizing a file with error feedback: what `quantize --calibrate` does."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.base import Backend
from localcoder.convert.choice import Choice
from localcoder.convert.quantizer import prepare, quantize_file, refuse_quantized
from localcoder.convert.recipes import recipe_by_name
from localcoder.convert.stream import Outcome, Progress, check_table, write_tensors
from localcoder.errors import OptionError
from localcoder.files.atomic import OutputFile
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
    if choice.pad_ffn:
        with _padded_copy(Path(source), Path(target), choice, backend) as padded:
            choice = replace(choice, pad_ffn=False)
            return quantize_calibrated(padded, target, choice, backend, chunks, progress=progress)
    with GGUFFile.open(source) as file:
        refuse_quantized(file)
        out, tensors = prepare(file, target, choice, backend.requantize)
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


@contextlib.contextmanager
def _padded_copy(source: Path, target: Path, choice: Choice, backend: Backend) -> Iterator[Path]:
    """`source` with a padded feed-forward part, in the type that it has, beside `target`: what is calibrated is run."""
    with GGUFFile.open(source) as file:
        refuse_quantized(file)
        OutputFile(target, inputs=file.paths)  # an error comes before the work
        types = {tensor.qtype.name for tensor in file.tensors.values() if len(tensor.shape) > 1}
    kept = replace(choice, recipe=recipe_by_name(types.pop() if len(types) == 1 else "f32"), overrides=(), budget=None)
    with tempfile.TemporaryDirectory(prefix=".localcoder-", suffix=".tmp", dir=target.parent) as folder:
        padded = Path(folder) / "padded.gguf"
        quantize_file(source, padded, kept, requantize=backend.requantize)
        yield padded
