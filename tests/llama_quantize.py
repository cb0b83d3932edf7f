"""llama.cpp's own quantizer, through llama-cpp-python: the oracle for recipes and for whole files."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

_LINE = re.compile(r"\] +(\S+) +- \[[^]]*\], type = +(\S+), (?:size = .*\((\S+)\)$)?")
_log: list[str] = []


@llama_cpp.llama_log_callback
def _keep_log(level: int, text: bytes, user_data: object) -> None:
    _log.append(text.decode(errors="replace"))


class _Importance(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t)]


def llama_quantize(
    source: Path,
    target: Path,
    file_type: int,
    *,
    imatrix: dict[str, np.ndarray] | None = None,
    dry_run: bool = False,
) -> dict[str, str]:
    """Quantizes `source` as llama-quantize does; the type of every tensor, by its GGUF name in lower case.

    Args:
        imatrix: float32 [n_in] by matrix name.
        dry_run: writes nothing, and is quick.
    """
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread, options.dry_run = file_type, 2, dry_run
    if imatrix is not None:
        arrays = {name: np.ascontiguousarray(values, np.float32) for name, values in imatrix.items()}
        rows = (_Importance * (len(arrays) + 1))()
        for row, (name, values) in zip(rows, arrays.items(), strict=False):
            row.name, row.size = name.encode(), values.size
            row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        options.imatrix = ctypes.cast(rows, type(options.imatrix))
    _log.clear()
    llama_cpp.llama_log_set(_keep_log, ctypes.c_void_p(0))
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    assert status == 0, "".join(_log[-5:])
    if not dry_run:
        return {t.name: t.tensor_type.name.lower() for t in gguf.GGUFReader(target).tensors}
    found = _types_in(_log)
    assert found, "the log has another form"
    return found


def _types_in(log: Sequence[str]) -> dict[str, str]:
    lines = (_LINE.search(line) for line in "".join(log).splitlines())
    return {match[1]: (match[3] or match[2]).lower() for match in lines if match}
