"""Which machine this is, for results that name it."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from localcoder.backends.threads import usable_cores


@dataclass(frozen=True)
class Machine:
    """Attributes:
    cpu: the processor's name as the system gives it.
    cores: physical cores that this process may use.
    """

    cpu: str
    cores: int
    architecture: str
    system: str


def this_machine() -> Machine:
    return Machine(_cpu_name(), usable_cores(), platform.machine(), f"{platform.system()} {platform.release()}")


def _cpu_name() -> str:
    if sys.platform == "linux":
        try:
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "Hardware", "Model"):
                    return value.strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()
