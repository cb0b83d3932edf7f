"""A real card: NVIDIA's driver through cuda-core, kernels from the store of compiled modules, steps as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.base import InstructionSet
from localcoder.backends.cuda.backend import CudaBackend
from localcoder.backends.cuda.cards import Card, checked, driver_api, survey_cards
from localcoder.backends.cuda.compile import (
    PLAIN_MODULES,
    Module,
    ModuleStore,
    all_ready_made,
    cache_folder,
    compiler_version,
    module_of,
    nvrtc_compile,
    ready_made,
)
from localcoder.backends.cuda.device import Device, Launch
from localcoder.errors import BackendError, OptionError
from localcoder.quants import QuantType

RESERVED_BYTES = 512 << 20  # of a card, for the display, compiled kernels, graphs and what rounding of sizes costs


def availability() -> str | None:
    """Why no card can be used, or None if one can."""
    survey = survey_cards()
    if survey.reason is not None:
        return survey.reason
    try:
        _compiler()
    except BackendError as e:
        return str(e)
    return None


def _compiler() -> str:
    """Its version, or that none is needed; BackendError where one is and is not there."""
    return "none" if all_ready_made() else compiler_version()


def instruction_sets() -> list[InstructionSet]:
    """One line a card."""
    survey = survey_cards()
    detail = f"driver for CUDA {survey.driver}"
    return [
        InstructionSet(f"cuda:{card.index}", card.reason is None, card.reason, detail=f"{card_line(card)}, {detail}")
        for card in survey.cards
    ]


def card_line(card: Card) -> str:
    major, minor = card.capability
    return f"{card.name}, compute capability {major}.{minor}, {card.total_bytes / 2**30:.1f} GiB"


def choose_card(cards: Sequence[Card], index: int | None) -> Card:
    """Card number `index`, or the usable one with the most memory.

    Raises:
        OptionError: no card has that number.
        BackendError: it cannot be used.
    """
    if index is None:
        usable = [card for card in cards if card.reason is None]
        if not usable:
            raise BackendError("no NVIDIA card can be used here")
        return max(usable, key=lambda card: (card.total_bytes, -card.index))
    if not 0 <= index < len(cards):
        known = ", ".join(f"cuda:{card.index}" for card in cards)
        raise OptionError(f"there is no cuda:{index} here; there is {known}")
    card = cards[index]
    if card.reason is not None:
        raise BackendError(f"cuda:{index} ({card.name}) cannot be used: {card.reason}")
    return card


def open_cards(index: int | None = None) -> list[Callable[[], CudaBackend]]:
    """Each opens a card: number `index`, or all that can be used, that with the most memory first.

    Raises:
        OptionError, BackendError: as `choose_card`.
    """
    cards = survey_cards().cards
    first = choose_card(cards, index)
    others = [card for card in cards if index is None and card.reason is None and card is not first]
    others.sort(key=lambda card: -card.total_bytes)
    return [partial(CardBackend, index=card.index) for card in (first, *others)]


class CardDevice(Device):
    """Card `card`, with a stream of its own.

    Args:
        store: its compiled kernels.
        api: cuda.bindings.driver.
        core: cuda.core.
    """

    def __init__(self, card: Card, store: ModuleStore, api: Any, core: Any) -> None:
        self.description = card_line(card)
        self._store, self._api, self._core = store, api, core
        self._modules: dict[str, Any] = {}
        self._kernels: dict[str, Any] = {}
        try:
            self._device = core.Device(card.index)
            self._device.set_current()
            self._stream = self._device.create_stream()
        except Exception as e:
            raise BackendError(f"{card.name} does not start: {' '.join(str(e).split())[:200]}") from None

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Makes the card that of this thread. What the driver or its library then complain about becomes one line: a
        BackendError, or a MemoryError; a card that has failed fails from then on."""
        try:
            self._device.set_current()
            yield
        except (BackendError, MemoryError):
            raise
        except Exception as e:
            reason = " ".join(str(e).split())[:200] or type(e).__name__
            if "OUT_OF_MEMORY" in reason:
                raise MemoryError(f"{self.description}: its memory is used up") from None
            raise BackendError(f"{self.description} fails: {reason}") from None

    @property
    def free_bytes(self) -> int:
        with self._current():
            free, _ = checked(self._api.cuMemGetInfo())
            return int(free)

    @property
    def usable_bytes(self) -> int:
        return max(self.free_bytes - RESERVED_BYTES, 0)

    def allocate(self, n_bytes: int) -> int:
        try:
            with self._current():
                return int(checked(self._api.cuMemAlloc(max(n_bytes, 1))))
        except MemoryError:
            needed, free = (n / 2**30 for n in (n_bytes, self.free_bytes))
            raise MemoryError(
                f"{self.description}: {needed:.2f} GiB more are needed, {free:.2f} GiB are free"
            ) from None

    def release(self, address: int) -> None:
        with suppress(Exception):  # the driver is gone already, or the card has failed
            self._device.set_current()
            self._api.cuMemFree(address)

    def write(self, address: int, data: NDArray[Any]) -> None:
        with self._current():
            checked(self._api.cuMemcpyHtoDAsync(address, data.ctypes.data, data.nbytes, self._stream.handle))
            self._stream.sync()  # `data` may go away

    def read(self, address: int, data: NDArray[Any]) -> None:
        with self._current():
            checked(self._api.cuMemcpyDtoHAsync(data.ctypes.data, address, data.nbytes, self._stream.handle))
            self._stream.sync()

    def copy(self, source: int, target: int, n_bytes: int) -> None:
        with self._current():
            checked(self._api.cuMemcpyDtoDAsync(target, source, n_bytes, self._stream.handle))

    def _kernel(self, launch: Launch) -> Any:
        kernel = self._kernels.get(launch.kernel)
        if kernel is None:
            module = self._module(module_of(launch.kernel, launch.weight))
            kernel = self._kernels[launch.kernel] = module.get_kernel(launch.kernel)
        return kernel

    def _module(self, module: Module) -> Any:
        if module.name not in self._modules:
            ready, kinds = ready_made(module), self._core.ObjectCode
            code = self._store.load(module) if ready is None else ready
            load = kinds.from_cubin if ready is None else kinds.from_fatbin
            self._modules[module.name] = load(code, name=module.name)
        return self._modules[module.name]

    def prepare(self, weights: Iterable[QuantType]) -> None:
        with self._current():
            for module in (*PLAIN_MODULES, *(Module("linear", qtype) for qtype in weights)):
                _ = self._module(module).handle  # loaded on the card, which would else be done at the first launch

    def _launch_on(self, where: Any, launch: Launch) -> None:
        config = self._core.LaunchConfig(grid=launch.grid, block=launch.threads)
        words = [np.uint64(argument) for argument in launch.arguments]
        self._core.launch(where, config, self._kernel(launch), *words)

    def launch(self, launch: Launch) -> None:
        with self._current():
            self._launch_on(self._stream, launch)

    def record(self, launches: Sequence[Launch]) -> object:
        with self._current():
            for launch in launches:
                self._kernel(launch)  # compiled and loaded before the recording
            builder = self._stream.create_graph_builder()
            builder.begin_building()
            for launch in launches:
                self._launch_on(builder, launch)
            builder.end_building()
            graph = builder.complete()
            builder.close()
            return graph

    def replay(self, recorded: object) -> None:
        with self._current():
            recorded.launch(self._stream)  # type: ignore[attr-defined]

    def close(self) -> None:
        self._kernels.clear()
        self._modules.clear()


class CardBackend(CudaBackend):
    """The backend on a real card.

    Args:
        threads: those of the CPU: not needed.
        index: which card; default: the usable one with the most memory.

    Raises:
        BackendError: no card, driver or compiler, or the card does not start.
        OptionError: no card has that number.
    """

    def __init__(self, threads: int = 1, index: int | None = None) -> None:
        del threads
        reason = availability()
        if reason is not None:
            raise BackendError(reason)
        from cuda import core

        card = choose_card(survey_cards().cards, index)
        store = ModuleStore(card.architecture, nvrtc_compile, _compiler(), cache_folder())
        super().__init__(CardDevice(card, store, driver_api(), core))
