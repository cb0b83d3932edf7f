"""Where the layers of a model go: to cards as far as they fit, the rest to the CPU.

The last layers go to the cards, so the embedding, of which a step reads a few rows only, is the first thing that stays
in main memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from localcoder.backends.base import Backend, Executable, KVStore
from localcoder.backends.cuda.backend import CudaBackend
from localcoder.backends.program import KVShape, Program
from localcoder.backends.split import Part, SplitBackend, part_of
from localcoder.errors import BackendError
from localcoder.quants.spec import Bytes, Float32, QuantType

log = logging.getLogger("localcoder")


class CardsBackend(Backend):
    """Cards, and the CPU for what they have no room for. `place` says how a model is shared out among them.

    What was not placed is computed by the first card alone.

    Args:
        name: of the backend that the cards have.
        cards: each opens one, best first; a later one is opened when the earlier ones are full.
        cpu: opens the CPU's.
        gpu_layers: how many layers the cards compute, counted from the last; None: as many as fit.
    """

    def __init__(
        self,
        name: str,
        cards: Sequence[Callable[[], CudaBackend]],
        cpu: Callable[[], Backend],
        gpu_layers: int | None = None,
    ) -> None:
        self.name = name
        self._open_cards, self._open_cpu, self._gpu_layers = cards, cpu, gpu_layers
        self._cards: list[CudaBackend] = []
        self._cpu: Backend | None = None
        self.description = self.card(0).description

    def card(self, i: int) -> CudaBackend:
        """The i-th best card."""
        while len(self._cards) <= i:
            self._cards.append(self._open_cards[len(self._cards)]())
        return self._cards[i]

    def _cpu_backend(self) -> Backend:
        if self._cpu is None:
            self._cpu = self._open_cpu()
        return self._cpu

    def new_kv_store(self, shape: KVShape, n_pages: int) -> KVStore:
        return self.card(0).new_kv_store(shape, n_pages)

    def compile(self, program: Program, kv: KVStore, max_tokens: int) -> Executable:
        return self.card(0).compile(program, kv, max_tokens)

    def quantize(self, qtype: QuantType, x: Float32) -> Bytes:
        return self._cpu_backend().quantize(qtype, x)

    def place(self, program: Program, n_pages: int, max_tokens: int) -> Backend:
        """A backend for a model of these layers.

        Raises:
            BackendError: no layer fits on the cards, or not as many as were asked for.
        """
        n_layer = program.kv.n_layer
        wanted = n_layer if self._gpu_layers is None else min(self._gpu_layers, n_layer)
        parts: list[Part] = []
        end, has_start = n_layer, False
        for i in range(len(self._open_cards)):
            if end == n_layer - wanted:
                break
            fit = _Fit(self.card(i), program, n_pages, max_tokens)
            first = fit.lowest(end, n_layer - wanted)
            has_start = first == 0 and fit.fits(0, end, with_start=True)
            if first < end:
                parts.insert(0, Part(self.card(i), first, end))
                end = first
        n_placed = n_layer - end
        if wanted and (n_placed == 0 or (self._gpu_layers is not None and n_placed < wanted)):
            raise BackendError(self._refusal(program, n_pages, max_tokens, wanted if self._gpu_layers else 1, n_placed))
        if not has_start:
            parts.insert(0, Part(self._cpu_backend(), 0, end))
        placed = parts[0].backend if len(parts) == 1 else SplitBackend(parts)
        log.info("%s", placed.description)
        return placed

    def _refusal(self, program: Program, n_pages: int, max_tokens: int, wanted: int, n_placed: int) -> str:
        """Why `wanted` layers do not fit, and what would."""
        n_layer, card = program.kv.n_layer, self.card(0)
        fit = _Fit(card, program, n_pages, max_tokens)
        where = card.description if len(self._cards) == 1 else f"{len(self._cards)} cards"
        free = sum(c.usable_bytes for c in self._cards)
        what = f"{wanted} of the model's {n_layer} layers need" if wanted > 1 else "a layer of the model needs"
        problem = (
            f"the model does not fit on the card: {what} {fit.needed(n_layer - wanted, n_layer) / 2**30:.2f} GiB with "
            f"this context, and {where} has {free / 2**30:.2f} GiB to give"
        )
        ways = [f"--gpu-layers {n_placed}"] if n_placed else []
        page_size = program.kv.page_size
        least, most = 0, n_pages  # pages with which all of `wanted` fit; with which they do not
        while most - least > 1:
            middle = (least + most) // 2
            fewer = _Fit(card, program, middle, min(max_tokens, middle * page_size))
            least, most = (middle, most) if fewer.fits(n_layer - wanted, n_layer) else (least, middle)
        if least:
            ways.append(f"--n-ctx {least * page_size}")
        ways += ["a smaller quantization", "--device cpu"]
        return f"{problem}; choose {', '.join(ways[:-1])} or {ways[-1]}"

    def close(self) -> None:
        for backend in (*self._cards, *([self._cpu] if self._cpu else [])):
            backend.close()


class _Fit:
    """Which layers of a program fit on a card."""

    def __init__(self, card: CudaBackend, program: Program, n_pages: int, max_tokens: int) -> None:
        self._card, self._n_pages, self._max_tokens = card, n_pages, max_tokens
        self._program = program
        self._free = card.usable_bytes

    def needed(self, first: int, end: int, *, with_start: bool = False) -> int:
        """Bytes for layers `first` to `end` - 1."""
        program = part_of(self._program, first, end, with_start=with_start)
        assert program is not None
        return self._card.bytes_needed(program, self._n_pages, self._max_tokens)

    def fits(self, first: int, end: int, *, with_start: bool = False) -> bool:
        return self.needed(first, end, with_start=with_start) <= self._free

    def lowest(self, end: int, floor: int) -> int:
        """The first of the layers that fit, up to `end` - 1 and none below `floor`."""
        low, high = floor, end
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.fits(middle, end) else (middle + 1, high)
        return high
