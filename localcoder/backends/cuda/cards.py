"""The NVIDIA cards of this machine, and why one cannot be used. Asking starts the driver and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from localcoder.backends.cuda.compile import sources_folder

OLDEST_CAPABILITY = (7, 5)
OLDEST_DRIVER = 12000  # as cuDriverGetVersion counts: the first that runs what NVRTC 12 and 13 make


@dataclass(frozen=True)
class Card:
    """One card.

    Attributes:
        capability: (major, minor); machine code is made for it.
        reason: why it cannot be used, None if it can.
    """

    index: int
    name: str
    capability: tuple[int, int]
    total_bytes: int
    reason: str | None

    @property
    def architecture(self) -> str:
        return f"sm_{self.capability[0]}{self.capability[1]}"


@dataclass(frozen=True)
class Survey:
    """The cards, the driver's version (such as "13.0"), and why there are none."""

    cards: tuple[Card, ...]
    driver: str | None
    reason: str | None


class DriverError(Exception):
    """The driver's own word for what went wrong."""


def checked(result: tuple[Any, ...]) -> Any:
    """The value of a call of cuda.bindings.driver; MemoryError or DriverError if it failed."""
    status, *values = result
    if int(status) == 2:  # CUDA_ERROR_OUT_OF_MEMORY
        raise MemoryError("the card's memory is used up")
    if int(status) != 0:
        raise DriverError(getattr(status, "name", str(status)))
    return values[0] if len(values) == 1 else tuple(values)


def driver_api() -> Any:
    """cuda.bindings.driver; ImportError where the extra `cuda` is not installed."""
    from cuda.bindings import driver

    return driver


@cache
def survey_cards() -> Survey:
    """Looks once a process."""
    return look(driver_api)


def look(open_api: Any) -> Survey:
    """The cards that the driver shows; `open_api` returns its interface."""
    if sources_folder() is None:
        return Survey((), None, "the CUDA kernels' sources are not in this installation")
    try:
        api = open_api()
        checked(api.cuInit(0))
        version = int(checked(api.cuDriverGetVersion()))
        count = int(checked(api.cuDeviceGetCount()))
    except ImportError:
        return Survey((), None, "NVIDIA's library is not installed: install localcoder's extra `cuda`")
    except DriverError as e:
        return Survey((), None, _explain(str(e)))
    except Exception as e:  # the library for the driver is not there: each version of the bindings says it its own way
        detail = "" if "NotFound" in type(e).__name__ else f" ({' '.join(str(e).split())[:120]})"
        return Survey((), None, f"no NVIDIA driver was found{detail}")
    driver = f"{version // 1000}.{version % 1000 // 10}"
    if version < OLDEST_DRIVER:
        needed = f"{OLDEST_DRIVER // 1000}.0"
        return Survey((), driver, f"the NVIDIA driver is too old: it knows CUDA {driver}, and {needed} is needed")
    cards = tuple(_card(api, index) for index in range(count))
    reason = None
    if all(card.reason is not None for card in cards):
        reason = cards[0].reason if cards else "the NVIDIA driver sees no card"
    return Survey(cards, driver, reason)


def _explain(status: str) -> str:
    if "NO_DEVICE" in status:
        return "the NVIDIA driver sees no card"
    if "MISMATCH" in status:
        return "the NVIDIA driver and its library have different versions: restart the machine"
    return f"the NVIDIA driver does not start: {status}"


def _card(api: Any, index: int) -> Card:
    try:
        device = checked(api.cuDeviceGet(index))
        name = checked(api.cuDeviceGetName(128, device))
        attributes = api.CUdevice_attribute
        major, minor = (
            int(checked(api.cuDeviceGetAttribute(which, device)))
            for which in (
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        total = int(checked(api.cuDeviceTotalMem(device)))
    except (DriverError, MemoryError) as e:
        return Card(index, "?", (0, 0), 0, f"the driver cannot say what it is: {e}")
    reason = None
    if (major, minor) < OLDEST_CAPABILITY:
        needed = ".".join(map(str, OLDEST_CAPABILITY))
        reason = f"its compute capability is {major}.{minor}, and {needed} is needed"
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    return Card(index, text.rstrip("\0 "), (major, minor), total, reason)
