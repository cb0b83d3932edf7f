"""The C core through cffi: one foreign call per step."""

from localcoder.backends.c.backend import CBackend
from localcoder.backends.c.library import availability, instruction_sets

__all__ = ["CBackend", "availability", "instruction_sets"]
