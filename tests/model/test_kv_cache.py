"""Page tables: sharing, copy on write, trimming, running out."""

from __future__ import annotations

import numpy as np
import pytest

from localcoder.backends.base import HostKVStore
from localcoder.backends.program import KVShape
from localcoder.errors import ContextLengthError
from localcoder.model.kv_cache import PagedKV, SequencePages

SHAPE = KVShape(n_layer=2, n_head_kv=1, head_dim=4, page_size=4)


@pytest.fixture
def kv() -> PagedKV:
    return PagedKV(HostKVStore(SHAPE, n_pages=4, row_bytes=8))


def append(sequence: SequencePages, n: int) -> None:
    sequence.reserve(n)
    sequence.n_past += n


def test_pages_are_taken_only_when_needed(kv):
    sequence = SequencePages(kv)
    append(sequence, 4)
    assert len(sequence.pages) == 1
    append(sequence, 1)
    assert len(sequence.pages) == 2
    sequence.trim(4)
    assert len(sequence.pages) == 1
    assert kv.n_free_pages == 3
    sequence.close()
    assert kv.n_free_pages == 4


def test_a_fork_shares_full_pages_and_copies_the_one_it_writes(kv):
    first = SequencePages(kv)
    append(first, 6)
    kv.store.k[:, first.pages[1]] = 7
    second = first.fork()
    assert second.pages == first.pages
    assert kv.n_free_pages == 2
    append(second, 1)
    assert second.pages[0] == first.pages[0]
    assert second.pages[1] != first.pages[1]
    assert (kv.store.k[:, second.pages[1]] == 7).all()
    append(first, 1)  # now the only owner: no copy
    assert kv.n_free_pages == 1
    first.close()
    assert kv.n_free_pages == 2  # the shared page still belongs to the fork
    second.close()
    assert kv.n_free_pages == 4


def test_a_fork_at_a_page_boundary_shares_everything(kv):
    first = SequencePages(kv)
    append(first, 4)
    second = first.fork()
    append(second, 1)
    assert first.pages[0] == second.pages[0]
    assert kv.n_free_pages == 2


def test_trimming_into_a_shared_page_then_writing_copies_it(kv):
    first = SequencePages(kv)
    append(first, 4)
    second = first.fork()
    second.trim(2)
    append(second, 1)
    assert second.pages != first.pages


def test_running_out_names_the_remedy(kv):
    sequence = SequencePages(kv)
    with pytest.raises(ContextLengthError, match="n_ctx"):
        append(sequence, 17)


def test_pages_survive_saving(kv):
    rng = np.random.default_rng(0)
    kv.store.k[...] = rng.integers(0, 256, kv.store.k.shape, np.uint8)
    kv.store.v[...] = rng.integers(0, 256, kv.store.v.shape, np.uint8)
    saved = kv.store.read_page(1)
    assert saved.nbytes == kv.store.nbytes // kv.store.n_pages
    kv.store.write_page(2, saved)
    assert (kv.store.k[:, 2] == kv.store.k[:, 1]).all()
    assert (kv.store.v[:, 2] == kv.store.v[:, 1]).all()
