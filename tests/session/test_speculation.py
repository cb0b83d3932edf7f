"""Speculation with a draft model: the same text, or equally distributed, whatever it guesses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from click.testing import CliRunner
from fakes import CountingEngine
from tiny_model import write_tiny_model

from localcoder import Coder
from localcoder.cli.main import main
from localcoder.errors import ModelError, OptionError
from localcoder.session.lookup import Lookup
from localcoder.session.options import SamplingOptions
from localcoder.session.sampler import Candidates, Guess, Sampler
from localcoder.session.session import Session
from localcoder.session.speculation import Drafting, Pace, Speculation

PROMPT = "def area(r):"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    large = write_tiny_model(folder / "large.gguf", scale=3.0, n_layer=4, seed=1)
    small = write_tiny_model(folder / "small.gguf", scale=3.0, n_layer=1, seed=2)
    return large, small


def biased(probabilities, seed):
    return Sampler(SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, seed=seed)), np.log(
        np.array(probabilities, np.float32)
    )


@pytest.mark.parametrize("options", [{}, {"repeat_penalty": 1.3}, {"temperature": 0.8, "seed": 3}])
def test_the_same_weights_guess_everything_right(models, options):
    large, _ = models
    with Coder(large, draft_model=large) as coder:
        done = coder.generate(PROMPT, max_tokens=100, **options)
    assert done.n_drafted == done.n_accepted > 0
    if "temperature" not in options:
        with Coder(large) as coder:
            assert done.text == coder.complete(PROMPT, max_tokens=100, speculate=False, **options)


@pytest.mark.parametrize("options", [{}, {"repeat_penalty": 1.3, "dry_multiplier": 1.0}, {"stop": "e"}])
def test_other_weights_change_nothing(models, options):
    large, small = models
    with Coder(small) as draft, Coder(large, draft_model=draft) as coder:
        for prompt in (PROMPT, PROMPT + "\n    return r", "import os"):  # the draft's past is re-used, too
            done = coder.generate(prompt, max_tokens=120, **options)
            alone = coder.generate(prompt, max_tokens=120, speculate=False, **options)
            assert (done.text, done.finish_reason, done.n_tokens) == (alone.text, alone.finish_reason, alone.n_tokens)
        draft.complete("it stays open", max_tokens=1)


def test_up_to_the_end_of_the_context(models):
    large, small = models
    with Coder(large, draft_model=small, n_ctx=96) as coder, Coder(large, n_ctx=96) as alone:
        assert coder.complete(PROMPT, max_tokens=None) == alone.complete(PROMPT, max_tokens=None, speculate=False)
    with Coder(small, n_ctx=32) as short, Coder(large, draft_model=short, n_ctx=96) as coder:
        assert coder.n_ctx == 96
        coder.complete(PROMPT * 4, max_tokens=20)  # longer than what the draft model can hold


def test_between_two_texts(models):
    """The edges of an infill constrain what is chosen, not what is guessed."""
    large, small = models
    prefix, suffix = "def area(r):\n    retu", "rn 2\n\nprint(area(1))\n"
    with Coder(large, draft_model=small) as coder:
        for options in ({}, {"temperature": 0.0, "repeat_penalty": 1.2}):
            alone = coder.infill(prefix, suffix, max_tokens=60, speculate=False, **options)
            assert coder.infill(prefix, suffix, max_tokens=60, **options) == alone


def test_several_threads_and_one_that_is_cancelled(models):
    large, small = models
    prompts = [PROMPT, "import os\n", "class Shape:", "x = "]
    with (
        Coder(small) as draft,  # has room for one long text only, and may have to give up guessing
        Coder(large, draft_model=draft, n_sequences=4) as coder,
        ThreadPoolExecutor(len(prompts)) as threads,
    ):
        alone = [coder.complete(prompt, max_tokens=60, speculate=False) for prompt in prompts]
        assert list(threads.map(lambda prompt: coder.complete(prompt, max_tokens=60), prompts)) == alone
        generation = coder.start(PROMPT, max_tokens=200)
        for n_pieces, _ in enumerate(generation, 1):
            if n_pieces == 5:
                generation.cancel()
        assert n_pieces == 5
        assert generation.completion.finish_reason is None
        assert coder.complete(PROMPT, max_tokens=60) == alone[0]


def test_a_draft_model_that_fails_says_so(models):
    large, small = models
    with Coder(small) as draft, Coder(large, draft_model=draft) as coder:
        draft.close()
        with pytest.raises(OptionError, match="closed"):
            coder.complete(PROMPT, max_tokens=20)
        coder.complete(PROMPT, max_tokens=20, speculate=False)


def test_in_the_terminal(models, tmp_path):
    large, small = models
    arguments = ["run", str(large), PROMPT, "--max-tokens", "30"]
    alone = CliRunner().invoke(main, arguments)
    quick = CliRunner().invoke(main, [*arguments, "--draft-model", str(small)])
    assert quick.exit_code == 0
    assert quick.stdout == alone.stdout
    other = write_tiny_model(tmp_path / "other.gguf", n_vocab=384)
    refused = CliRunner().invoke(main, [*arguments, "--draft-model", str(other)])
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert "other.gguf: has 384 rows" in refused.stderr


def test_a_model_of_another_vocabulary(models, tmp_path):
    large, _ = models
    other = write_tiny_model(tmp_path / "other.gguf", n_vocab=384)
    with pytest.raises(ModelError, match=r"other\.gguf: has 384 rows of vocabulary, .*large\.gguf has 320"):
        Coder(large, draft_model=other)
    with Coder(large) as closed:
        pass
    with pytest.raises(OptionError, match="closed"):
        Coder(large, draft_model=closed)


P = [0.5, 0.3, 0.1, 0.1, 0.0]


@pytest.mark.parametrize("q", [P, [0.1, 0.2, 0.3, 0.2, 0.2], [0.0, 0.0, 0.0, 0.5, 0.5], [1.0, 0.0, 0.0, 0.0, 0.0]])
def test_what_is_drawn_has_the_large_models_distribution(q):
    with np.errstate(divide="ignore"):
        sampler, p_logits = biased(np.maximum(P, 1e-30), 5)
        q_logits = np.log(np.maximum(np.array(q, np.float32), np.float32(1e-30)))
    counts = np.zeros(5, int)
    n, n_accepted = 6000, 0
    for _ in range(n):
        guess = sampler.guess(q_logits, [])
        token = sampler.sample(p_logits, [], None, guess)
        counts[token] += 1
        n_accepted += token == guess.token
    assert counts[4] == 0
    expected = n * np.array(P[:4])
    assert ((counts[:4] - expected) ** 2 / expected).sum() < 16.3  # chi-square of 3 degrees of freedom: p = 0.001
    # At least what the theory accepts; a guess can also be drawn again, never after it was rejected.
    assert abs(n_accepted / n - np.minimum(P, q).sum()) < 0.02


class Chain(CountingEngine):
    """A Markov chain: the distribution of the next token depends on the last."""

    def __init__(self, seed: int, **options) -> None:
        super().__init__(n_vocab=4, n_ctx=512, n_ubatch=32, **options)
        self.logits = np.random.default_rng(seed).standard_normal((4, 4)).astype(np.float32)

    def evaluate(self, chunks):
        super().evaluate(chunks)
        tokens = chunks[0].tokens
        return self.logits[tokens[len(tokens) - chunks[0].n_logits :]]


@pytest.mark.parametrize("filters", [{"top_k": 0, "top_p": 1.0}, {"top_k": 3}, {"mirostat_tau": 1.5}])
def test_texts_are_distributed_as_without_it(filters):
    """Frequencies of the four-token texts, against those of plain sampling."""
    large, small = Chain(1), Chain(2)
    session, draft_session = Session(large), Session(small)
    counts = np.zeros((2, 4**4))
    for speculates in (0, 1):
        for seed in range(2000):
            sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed, **filters))
            speculation = None
            if speculates:
                speculation = Speculation(Lookup([]), Drafting(draft_session, sampler, cost=0.05))
            tokens = list(session.generate([0], sampler, max_tokens=4, speculation=speculation))
            counts[speculates, np.ravel_multi_index(tokens, (4,) * 4)] += 1
    often = counts.sum(0) > 30
    plain, quick = counts[:, often]
    statistic = ((plain - quick) ** 2 / (plain + quick)).sum()  # two samples of one size
    n = int(often.sum())
    assert n > 10
    assert statistic < n + 4 * np.sqrt(2 * n)


def test_few_steps_of_the_large_model():
    large = CountingEngine(n_vocab=100, n_ctx=512, n_ubatch=32)
    small = CountingEngine(n_vocab=100, n_ctx=512, n_ubatch=32)
    sampler = Sampler(SamplingOptions())
    speculation = Speculation(Lookup([0]), Drafting(Session(small), sampler, cost=0.05))
    tokens = list(Session(large).generate([0], sampler, max_tokens=90, speculation=speculation))
    assert tokens == list(range(1, 91))
    assert len(large.evaluated) < 15
    assert speculation.n_accepted == speculation.n_drafted > 75


def test_the_text_itself_is_asked_first():
    large = CountingEngine(n_vocab=100, n_ctx=512, n_ubatch=64, following={19: 0})
    small = CountingEngine(n_vocab=100, n_ctx=512, n_ubatch=64)
    sampler = Sampler(SamplingOptions())
    prompt = list(range(20)) * 3
    speculation = Speculation(Lookup(prompt), Drafting(Session(small), sampler, cost=0.05))
    list(Session(large).generate(prompt, sampler, max_tokens=60, speculation=speculation))
    assert small.evaluated == []


def test_lengths_follow_what_is_accepted():
    good, bad = Pace(0.2), Pace(0.2)
    for _ in range(40):
        n = good.length()
        good.learn(n, n)
        n = bad.length()
        if n:
            bad.learn(n, 0)
    assert good.length() > 10
    assert sum(bad.length() for _ in range(100)) <= 5  # a try now and then
    for _ in range(40):
        bad.learn(4, 4)
    assert bad.length() > 10
    assert Pace(2.0).length() <= 1  # a draft model larger than the model


def test_a_guess_outside_of_what_is_allowed_is_refused():
    _, logits = biased([0.5, 0.5, 1e-9], 1)
    allowed = Candidates(np.array([2]), np.zeros(1, np.float32))
    strict = Sampler(SamplingOptions(temperature=1.0, top_k=2, seed=1))
    assert {strict.sample(logits, [], None, Guess(2, allowed)) for _ in range(200)} == {0, 1}
