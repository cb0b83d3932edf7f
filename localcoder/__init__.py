"""localcoder: a quantized local runtime for the DeepSeek-Coder models.

from localcoder import Coder

with Coder() as coder:
    print(coder.complete("def fibonacci(n):"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localcoder.async_coder import AsyncCoder
    from localcoder.coder import Coder
    from localcoder.errors import (
        BackendError,
        CheckpointError,
        ContextLengthError,
        FileError,
        GGUFError,
        HubError,
        LocalcoderError,
        ModelError,
        NumericsError,
        OptionError,
        OutputError,
        SandboxError,
        TokenizerError,
    )
    from localcoder.session.generation import Completion, Timings
    from localcoder.session.infill import InfillRequest
    from localcoder.session.options import GenerationOptions

    __version__: str

__all__ = [
    "AsyncCoder",
    "BackendError",
    "CheckpointError",
    "Coder",
    "Completion",
    "ContextLengthError",
    "FileError",
    "GGUFError",
    "GenerationOptions",
    "HubError",
    "InfillRequest",
    "LocalcoderError",
    "ModelError",
    "NumericsError",
    "OptionError",
    "OutputError",
    "SandboxError",
    "Timings",
    "TokenizerError",
    "__version__",
]

_HOMES = {  # imported when first asked for, so that `import localcoder` costs nothing
    "AsyncCoder": "localcoder.async_coder",
    "Coder": "localcoder.coder",
    "Completion": "localcoder.session.generation",
    "GenerationOptions": "localcoder.session.options",
    "InfillRequest": "localcoder.session.infill",
    "Timings": "localcoder.session.generation",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'localcoder' has no attribute {name!r}")
    if name == "__version__":
        from localcoder.version import package_version

        value: Any = package_version()
    else:
        value = getattr(importlib.import_module(_HOMES.get(name, "localcoder.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
