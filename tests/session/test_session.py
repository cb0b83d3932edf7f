"""The timeline: what is re-used, what is computed, and that nothing breaks it."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import CountingEngine

from localcoder.errors import ContextLengthError, OptionError
from localcoder.session.options import SamplingOptions
from localcoder.session.pool import MAX_IDLE, SessionPool
from localcoder.session.sampler import Sampler
from localcoder.session.session import Session


def greedy() -> Sampler:
    return Sampler(SamplingOptions())


def test_only_what_follows_the_shared_prefix_is_computed():
    engine = CountingEngine()
    session = Session(engine)
    assert session.sync(list(range(20))).argmax() == 20
    assert [len(step) for step in engine.evaluated] == [8, 8, 4]
    engine.evaluated.clear()
    assert session.sync([*range(18), 50, 51]).argmax() == 52
    assert engine.evaluated == [[50, 51]]
    session.sync([*range(18), 50, 51])
    assert engine.evaluated == [[50, 51]]  # nothing new
    assert session.sync(list(range(10))).argmax() == 10
    assert engine.evaluated == [[50, 51], [9]]  # the last token again, for its logits
    assert session.tokens == list(range(10))


def test_generation_ends_at_a_stop_id_or_the_limit_and_computes_nothing_more():
    engine = CountingEngine()
    assert list(Session(engine).generate([1, 2, 3], greedy(), max_tokens=4)) == [4, 5, 6, 7]
    assert engine.n_evaluated == 6
    assert list(Session(engine).generate([1, 2, 3], greedy(), stop_ids={6})) == [4, 5, 6]


def test_generation_ends_at_the_end_of_the_context():
    engine = CountingEngine(n_ctx=16)
    assert list(Session(engine).generate(range(10), greedy())) == [10, 11, 12, 13, 14, 15, 16]
    session = Session(CountingEngine(n_ctx=16))
    assert list(session.generate(range(16), greedy())) == [16]
    with pytest.raises(ContextLengthError, match="17 tokens do not fit in a context of 16"):
        session.sync(range(17))
    assert session.tokens == list(range(16))


def test_no_tokens_and_impossible_ids_are_errors():
    session = Session(CountingEngine())
    with pytest.raises(OptionError, match="no tokens"):
        session.sync([])
    with pytest.raises(OptionError, match="token id 99999999999 is outside"):
        session.sync([1, 99999999999])


@pytest.mark.parametrize("step", range(6))
def test_an_interruption_at_any_step_leaves_a_usable_session(step):
    engine = CountingEngine()
    session = Session(engine)
    engine.interrupt_at = step
    with pytest.raises(KeyboardInterrupt):
        list(session.generate(range(20), greedy(), max_tokens=6))
    assert len(session.tokens) == engine.n_evaluated
    assert list(session.generate(range(20), greedy(), max_tokens=6)) == [20, 21, 22, 23, 24, 25]
    if step < 3:  # interrupted within the prompt: what was done of it is not done again
        assert engine.n_evaluated == 25


def test_a_generator_that_is_dropped_leaves_a_usable_session():
    session = Session(CountingEngine())
    generator = session.generate(range(5), greedy())
    assert [next(generator) for _ in range(3)] == [5, 6, 7]
    generator.close()
    assert list(session.generate(range(9), greedy(), max_tokens=2)) == [9, 10]


def test_scoring_gives_a_row_for_every_token():
    engine = CountingEngine()
    session = Session(engine)
    logits = np.concatenate(list(session.score(list(range(20)))))
    assert logits.argmax(axis=1).tolist() == list(range(1, 21))
    engine.evaluated.clear()
    session.sync([*range(20), 7])
    assert engine.evaluated == [[7]]


def test_the_pool_lends_the_session_that_shares_most():
    engine = CountingEngine(n_pages=100)
    pool = SessionPool(engine)
    first, second = [1, 2, 3, 4], [9, 8, 7, 6]
    for tokens in (first, second):
        with pool.lend(tokens) as session:
            session.sync(tokens)
    engine.evaluated.clear()
    with pool.lend([*first, 5]) as session:
        session.sync([*first, 5])
    assert engine.evaluated == [[5]]


def test_the_pool_keeps_a_few_idle_sessions_and_gives_up_the_oldest():
    engine = CountingEngine(n_pages=100)
    pool = SessionPool(engine)
    for start in range(0, 90, 10):
        with pool.lend([start]) as session:
            session.sync([start, start + 1])
    assert engine.n_free_pages == 100 - MAX_IDLE


def test_a_full_cache_takes_the_place_of_idle_sessions_only():
    engine = CountingEngine(n_ctx=16)  # two pages of eight
    pool = SessionPool(engine)
    with pool.lend([1]) as session:
        session.sync([1, 2])
    with pool.lend([30]) as session:
        assert len(list(session.generate([30], greedy(), max_tokens=15))) == 15  # needs both pages
        with pool.lend([50]) as other, pytest.raises(ContextLengthError):
            other.sync([50, 51])
