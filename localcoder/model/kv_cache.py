"""Which page of the KV store holds which positions of which sequence.

Pages are counted: a fork shares every page and copies one only when a sharer writes into it. Nothing here touches the
pages' contents but through the store's `copy_page`.
"""

from __future__ import annotations

from collections.abc import Iterable

from localcoder.backends.base import KVStore
from localcoder.errors import ContextLengthError


class PagedKV:
    """The pages of one KV store: which are free, and how many sequences share each."""

    def __init__(self, store: KVStore) -> None:
        self.store = store
        self.page_size = store.shape.page_size
        self._free = list(range(store.n_pages - 1, -1, -1))
        self._sharers = [0] * store.n_pages

    @property
    def n_free_pages(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A free page, now owned once."""
        if not self._free:
            n = self.store.n_pages * self.page_size
            raise ContextLengthError(f"all {n} positions of the KV cache are in use; close a session or raise n_ctx")
        page = self._free.pop()
        self._sharers[page] = 1
        return page

    def share(self, page: int) -> None:
        self._sharers[page] += 1

    def drop(self, page: int) -> None:
        self._sharers[page] -= 1
        if self._sharers[page] == 0:
            self._free.append(page)

    def writable(self, page: int) -> int:
        """`page` itself if it has one owner, else a private copy that replaces this owner's share."""
        if self._sharers[page] == 1:
            return page
        copy = self.take()
        self.store.copy_page(page, copy)
        self.drop(page)
        return copy


class SequencePages:
    """One sequence's page table: position p lies in `pages[p // page_size]`."""

    def __init__(self, kv: PagedKV) -> None:
        self._kv = kv
        self.n_past = 0  # positions already in the cache
        self.pages: list[int] = []

    def reserve(self, n_tokens: int) -> None:
        """Makes positions n_past .. n_past + n_tokens - 1 writable."""
        size = self._kv.page_size
        if n_tokens and self.n_past % size:
            self.own([self.n_past // size])
        while len(self.pages) * size < self.n_past + n_tokens:
            self.pages.append(self._kv.take())

    def own(self, numbers: Iterable[int]) -> None:
        """Makes these pages writable."""
        for i in numbers:
            self.pages[i] = self._kv.writable(self.pages[i])

    def repeat(self, n_past: int) -> None:
        """Goes on to `n_past` positions with copies of the pages that are there: a long past without computing it, for
        measuring speed."""
        n_pages, size = len(self.pages), self._kv.page_size
        assert self.n_past == n_pages * size, "only whole pages can be repeated"
        self.reserve(n_past - self.n_past)
        for i, page in enumerate(self.pages[n_pages:]):
            self._kv.store.copy_page(self.pages[i % n_pages], page)
        self.n_past = n_past

    def trim(self, n_past: int) -> None:
        """Forgets every position from `n_past` on."""
        assert 0 <= n_past <= self.n_past
        keep = -(-n_past // self._kv.page_size)
        for page in self.pages[keep:]:
            self._kv.drop(page)
        del self.pages[keep:]
        self.n_past = n_past

    def fork(self) -> SequencePages:
        """A second sequence with the same past; pages are shared until one of the two writes."""
        twin = SequencePages(self._kv)
        twin.n_past = self.n_past
        twin.pages = list(self.pages)
        for page in twin.pages:
            self._kv.share(page)
        return twin

    def close(self) -> None:
        """Gives all pages back."""
        for page in self.pages:
            self._kv.drop(page)
        self.pages = []
        self.n_past = 0
