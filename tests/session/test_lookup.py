"""Speculation: the same tokens as without it, whatever is guessed, and fewer steps where text repeats itself."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import CountingEngine
from tiny_model import write_tiny_model

from localcoder import Coder
from localcoder.session.lookup import Lookup
from localcoder.session.options import SamplingOptions
from localcoder.session.sampler import Sampler
from localcoder.session.session import Session
from localcoder.session.speculation import Speculation


class RandomEngine(CountingEngine):
    """Expects a token that depends on the last two, in a way that repeats itself now and then."""

    def evaluate(self, chunks):
        (chunk,) = chunks
        past = getattr(chunk.sequence, "seen", [])[: chunk.sequence.n_past]
        super().evaluate(chunks)
        chunk.sequence.seen = tokens = [*past, *chunk.tokens.tolist()]
        rows = []
        for end in range(len(tokens) - chunk.n_logits, len(tokens)):
            rng = np.random.default_rng(tokens[max(end - 1, 0) : end + 1])
            rows.append(rng.standard_normal(self.n_vocab))
        return 2 * np.array(rows, np.float32).reshape(chunk.n_logits, self.n_vocab)


def generated(engine, prompt, *, speculate: bool, **options) -> list[int]:
    session = Session(engine)
    lookup = Speculation(Lookup(prompt)) if speculate else None
    sampler = Sampler(SamplingOptions(seed=1, **options))
    tokens = list(session.generate(prompt, sampler, max_tokens=200, speculation=lookup))
    assert session.tokens[: len(prompt)] == list(prompt)
    return tokens


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 0.3, "repeat_penalty": 1.2}])
@pytest.mark.parametrize("n_vocab", [4, 8, 60])
def test_the_tokens_are_the_same_with_it_and_without(options, n_vocab):
    prompt = [1, 2, 3] * 5
    plain = RandomEngine(n_vocab=n_vocab, n_ctx=512)
    quick = RandomEngine(n_vocab=n_vocab, n_ctx=512)
    expected = generated(plain, prompt, speculate=False, **options)
    assert generated(quick, prompt, speculate=True, **options) == expected
    assert len(expected) == 200


def test_a_repeating_text_takes_few_steps():
    engine = CountingEngine(n_vocab=100, n_ctx=512, n_ubatch=32, following={19: 0})
    prompt = list(range(20)) * 3
    assert generated(engine, prompt, speculate=True) == [i % 20 for i in range(200)]
    assert len(engine.evaluated) < 20


def test_guesses_that_fail_become_rare():
    rng = np.random.default_rng(0)
    lookup = Lookup([1, 2, 3, 4])
    n_drafted = 0
    for _ in range(500):  # the same run of tokens again and again, always followed by something else
        for token in (1, 2, 3):
            lookup.add(token)
        draft = lookup.draft(8)
        if draft:
            n_drafted += 1
            lookup.learn(len(draft), 0)
        lookup.add(int(rng.integers(10, 1000)))
    assert n_drafted < 500 * 4 / 60 + 8


def test_a_draft_is_what_followed_and_no_longer_than_asked():
    lookup = Lookup([1, 2, 3, 4, 5, 6, 7, 1, 2, 3])
    assert lookup.draft(2) == [4, 5]
    assert lookup.draft(0) == []
    assert Lookup([1, 2, 3, 4]).draft(8) == []


def test_the_end_of_the_context_and_a_full_cache():
    engine = CountingEngine(n_vocab=100, n_ctx=64, n_ubatch=32, following={9: 0})
    session = Session(engine)
    prompt = list(range(10)) * 3
    tokens = list(session.generate(prompt, Sampler(SamplingOptions()), speculation=Speculation(Lookup(prompt))))
    assert len(tokens) == 64 - 30 + 1
    crowded = CountingEngine(n_vocab=100, n_ctx=64, n_ubatch=32, following={9: 0}, n_pages=6)  # 48 positions
    other = Session(crowded)
    other.sync([50])
    tokens = []
    generator = Session(crowded).generate(
        prompt, Sampler(SamplingOptions()), speculation=Speculation(Lookup(prompt)), max_tokens=10
    )
    assert list(generator) == list(range(10))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_real_model_writes_the_same(tmp_path, temperature):
    text = "def area(r):\n    return 3 * r * r\n\n\n" * 4
    options = {"max_tokens": 60, "temperature": temperature, "seed": 3}
    with Coder() as coder:
        plain = coder.generate(text, speculate=False, **options)
    with Coder() as coder:
        quick = coder.generate(text, speculate=True, **options)
    assert quick.text == plain.text
    assert (plain.n_drafted, plain.n_accepted) == (0, 0)
    if not temperature:
        assert quick.n_accepted > 10
    with Coder(write_tiny_model(tmp_path / "tiny.gguf", scale=3.0)) as coder:
        one, two = (coder.complete("ab" * 20, speculate=flag, **options) for flag in (False, True))
    assert one == two
