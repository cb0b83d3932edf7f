"""Moves what is in a KV cache to lower positions.

RoPE turns each pair of a key's values by an angle that is linear in the position (https://arxiv.org/abs/2104.09864), so
one more turn, by the angle of -n, makes of a key at position p that at p - n; values know no position. Keys are rounded
once more by that.

The result is not what computing the text afresh at its new place would give: above the first layer, keys and values
hold what their tokens saw before them, and that was the text which is now left out. On the demonstration model the
likeliest next token stays the same at 94% of the positions, at a divergence of 0.007 nats; the text that really follows
is as likely as after computing afresh, within 0.003 nats (`tools/measure_shift.py`, which has the figures for quantized
caches, too).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from localcoder.backends.base import KVStore
from localcoder.backends.program import RopeTable
from localcoder.model.kv_cache import SequencePages
from localcoder.quants import QuantType, by_name
from localcoder.quants.spec import Bytes, Float32


def cut_positions(
    sequence: SequencePages,
    store: KVStore,
    rope: RopeTable,
    start: int,
    stop: int,
    quantize: Callable[[QuantType, Float32], Bytes],
) -> None:
    """Forgets positions start .. stop - 1 of a sequence, and moves what follows to `start`.

    Whatever interrupts it, the positions before `start` stay.

    Args:
        quantize: float32 [n_rows, n] -> uint8 [n_rows, row_bytes].

    Raises:
        ContextLengthError: a page is shared with another sequence, and none is free for a copy. Nothing has changed.
    """
    if stop == sequence.n_past:
        sequence.trim(start)
        return
    n_cut, n_left = stop - start, sequence.n_past - (stop - start)
    size = store.shape.page_size
    targets = range(start // size, -(-n_left // size))
    sequence.own(targets)
    sequence.n_past = start
    pages = _Pages(store, sequence.pages)
    for target in targets:
        first, end = max(target * size, start), min((target + 1) * size, n_left)
        rows = pages.positions(first + n_cut, end + n_cut)  # what is there is overwritten only after it was read
        rows[:, 0] = _turned_back(rows[:, 0], store.shape.kv_type, rope, n_cut, quantize)
        pages.write(target, first - target * size, rows)
    sequence.n_past = n_left
    sequence.trim(n_left)


class _Pages:
    """Positions of a sequence as arrays uint8 [n_layer, 2 (keys, values), n_head_kv, n_positions, row_bytes]."""

    def __init__(self, store: KVStore, pages: list[int]) -> None:
        shape = store.shape
        self._store, self._pages, self._size = store, pages, shape.page_size
        row_bytes = by_name(shape.kv_type).row_bytes(shape.head_dim)
        self._dims = (shape.n_layer, 2, shape.n_head_kv, shape.page_size, row_bytes)

    def _read(self, number: int) -> Bytes:
        return self._store.read_page(self._pages[number]).reshape(-1).view(np.uint8).reshape(self._dims)

    def positions(self, first: int, end: int) -> Bytes:
        """A copy of positions first .. end - 1."""
        numbers = range(first // self._size, -(-end // self._size))
        offset = first - numbers.start * self._size
        return np.concatenate([self._read(i) for i in numbers], axis=3)[:, :, :, offset : offset + end - first]

    def write(self, number: int, offset: int, rows: Bytes) -> None:
        """Puts rows into a page, from `offset` on."""
        page = self._read(number)
        page[:, :, :, offset : offset + rows.shape[3]] = rows
        self._store.write_page(self._pages[number], page.reshape(-1))


def _turned_back(
    keys: Bytes, kv_type: str, rope: RopeTable, n: int, quantize: Callable[[QuantType, Float32], Bytes]
) -> Bytes:
    """Keys [..., row_bytes] as they are `n` positions earlier."""
    qtype = by_name(kv_type)
    values = qtype.dequantize(keys)
    even, odd = values[..., 0::2], values[..., 1::2]
    cos, sin = rope.cos[n], rope.sin[n]
    turned = np.empty_like(values)
    turned[..., 0::2] = even * cos + odd * sin
    turned[..., 1::2] = odd * cos - even * sin
    return quantize(qtype, turned.reshape(-1, values.shape[-1])).reshape(keys.shape)
