"""Which backend computes, and why another does not.

A backend is one line in `_BACKENDS`: a module with `availability() -> str | None` (None: usable; else the reason why
not), `instruction_sets() -> list[InstructionSet]`, and a class made by `class_name(threads)`. Modules are imported only
when they are asked about, and none may import its heavy libraries before it is opened.
"""

from __future__ import annotations

import importlib
import logging
import os
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from localcoder.backends.base import Backend, InstructionSet
from localcoder.backends.threads import thread_count
from localcoder.errors import BackendError, OptionError

log = logging.getLogger("localcoder")


@dataclass(frozen=True)
class _Entry:
    name: str
    device: str
    summary: str
    module: str
    class_name: str
    automatic: bool = True  # may be chosen when nobody asks for it
    has_cards: bool = False  # the module has open_cards(number)

    def load(self) -> Any:
        return importlib.import_module(self.module)

    def unavailable_because(self) -> str | None:
        try:
            return self.load().availability()
        except ModuleNotFoundError as error:
            return f"{error.name} is not in this installation"

    def open(self, threads: int) -> Backend:
        try:
            return getattr(self.load(), self.class_name)(threads)
        except ImportError as error:  # a library is installed and does not load: its versions do not fit
            raise BackendError(f"the {self.name} backend cannot be loaded: {error}") from None


_BACKENDS = (  # in order of preference
    _Entry(
        "cuda", "cuda", "kernels for NVIDIA cards", "localcoder.backends.cuda.driver", "CardBackend", has_cards=True
    ),
    _Entry(
        "numba-cuda",
        "cuda",
        "plain kernels for NVIDIA cards, compiled by numba",
        "localcoder.backends.numba_cuda",
        "NumbaCudaBackend",
    ),
    _Entry("c", "cpu", "C core with run-time choice of instruction set", "localcoder.backends.c", "CBackend"),
    _Entry("numba", "cpu", "kernels compiled by numba", "localcoder.backends.numba", "NumbaBackend"),
    _Entry("numpy", "cpu", "plain reference, for testing", "localcoder.backends.reference", "ReferenceBackend", False),
    _Entry(
        "cuda-emulated",
        "cuda-emulated",
        "CUDA kernels run by the CPU, for testing",
        "localcoder.backends.cuda.emulated",
        "EmulatedCudaBackend",
        automatic=False,
        has_cards=True,
    ),
)
_DEVICES = ("auto", *dict.fromkeys(entry.device for entry in _BACKENDS))


@dataclass(frozen=True)
class BackendReport:
    """What `localcoder devices` says about one backend.

    Attributes:
        usable: whether `open_backend` can open it here.
        reason: why not, if it is not usable.
        is_default: whether `open_backend()` opens it.
        instruction_sets: those this build knows, best first.
    """

    name: str
    device: str
    description: str
    usable: bool
    reason: str | None
    is_default: bool
    instruction_sets: tuple[InstructionSet, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def open_backend(device: str = "auto", threads: int | None = None, gpu_layers: int | None = None) -> Backend:
    """The backend for `device` ("auto", "cpu", "cuda" or "cuda:N"), or the one that LOCALCODER_BACKEND names.

    Args:
        threads: default: LOCALCODER_THREADS, else the physical cores this process may use.
        gpu_layers: how many of a model's layers cards compute, counted from the last; None: as many as fit.

    Raises:
        OptionError: an unknown backend or device, or a number out of its range.
        BackendError: the backend or device is not available here; the message has the reason.
    """
    n_threads = thread_count(threads)
    if gpu_layers is not None and gpu_layers < 0:
        raise OptionError(f"gpu_layers is {gpu_layers}; expected 0 or more, or None for as many as fit")
    kind, _, number = device.partition(":")
    entry = _choose(device)
    if entry.has_cards and gpu_layers != 0:
        from localcoder.backends.placement import CardsBackend

        cards = entry.load().open_cards(int(number) if number and kind == entry.device else None)
        return CardsBackend(entry.name, cards, lambda: _open_on_cpu(n_threads), gpu_layers)
    if entry.has_cards:
        return _open_on_cpu(n_threads)
    if entry.device == "cuda":
        _require_whole(entry, gpu_layers, number)
    elif gpu_layers:
        if device != "auto":
            raise OptionError(f"gpu_layers is {gpu_layers}, which needs a card, and the device is {device}")
        log.warning("no layer goes to a card: %s; computing on the CPU", _why_no_card())
    if _forced() is None and entry.device == "cpu" and entry is not _best_on_cpu():
        _warn_slower(entry.name)
    return entry.open(n_threads)


def _require_whole(entry: _Entry, gpu_layers: int | None, number: str) -> None:
    """For a backend that computes whole models on the first card."""
    if gpu_layers is not None or number not in ("", "0"):
        raise BackendError(f"{entry.name} computes whole models on the first card: leave out gpu_layers and the number")


def _open_on_cpu(threads: int) -> Backend:
    """The best backend of the CPU that can be used, even where LOCALCODER_BACKEND names a card's."""
    usable = (entry for entry in _BACKENDS if entry.device == "cpu" and entry.unavailable_because() is None)
    return next(usable).open(threads)


def _why_no_card() -> str | None:
    return next((entry.unavailable_because() for entry in _BACKENDS if entry.device == "cuda"), None)


def _best_on_cpu() -> _Entry:
    return next(entry for entry in _BACKENDS if entry.device == "cpu")


def is_on_cpu(device: str) -> bool:
    """Whether `open_backend(device)` opens a backend of the CPU, and not of a card."""
    return _choose(device).device == "cpu"


@cache  # once a process
def _warn_slower(name: str) -> None:
    best = _best_on_cpu()
    log.warning("running on %s, which is slower than %s: %s", name, best.name, best.unavailable_because())


def survey() -> list[BackendReport]:
    """Every backend of this version: is it usable here, and if not, why."""
    try:
        default = _choose("auto").name
    except (BackendError, OptionError):
        default = None
    reports = []
    for entry in _BACKENDS:
        reason = entry.unavailable_because()
        if reason and not entry.automatic and entry.device != "cpu":
            continue  # only for testing, and not here
        sets = () if reason else tuple(entry.load().instruction_sets())
        reports.append(
            BackendReport(entry.name, entry.device, entry.summary, reason is None, reason, entry.name == default, sets)
        )
    return reports


def usable_backends() -> list[str]:
    """Names of the backends that can be opened here."""
    return [entry.name for entry in _BACKENDS if entry.unavailable_because() is None]


def _forced() -> str | None:
    return os.environ.get("LOCALCODER_BACKEND") or None


def _choose(device: str) -> _Entry:
    kind, colon, number = device.partition(":")
    if kind not in _DEVICES or (colon and not (kind == "cuda" and number.isdecimal())):
        raise OptionError(f"unknown device {device!r}; known: {', '.join(_DEVICES)} (cuda:1 is the second card)")
    forced = _forced()
    if forced is not None:
        return _by_name(forced)
    reasons = []
    for entry in _BACKENDS:
        if kind != entry.device and not (kind == "auto" and entry.automatic):
            continue
        reason = entry.unavailable_because()
        if reason is None:
            return entry
        reasons.append(f"{entry.name}: {reason}")
    raise BackendError(f"no backend for device {device!r} is usable here ({'; '.join(reasons)})")


def _by_name(name: str) -> _Entry:
    entry = next((e for e in _BACKENDS if e.name == name), None)
    if entry is None:
        names = ", ".join(e.name for e in _BACKENDS)
        raise OptionError(f"LOCALCODER_BACKEND is {name!r}; known: {names}")
    reason = entry.unavailable_because()
    if reason is not None:
        raise BackendError(f"LOCALCODER_BACKEND asks for {name}, which is not usable here: {reason}")
    return entry
