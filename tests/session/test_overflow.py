"""The end of the context: a clear stop, or the oldest text is forgotten and it goes on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from fakes import CountingEngine
from tiny_model import write_tiny_model

from localcoder import Coder
from localcoder.cli.main import main
from localcoder.errors import OptionError
from localcoder.session.lookup import Lookup
from localcoder.session.options import SamplingOptions
from localcoder.session.pool import SessionPool
from localcoder.session.sampler import Sampler
from localcoder.session.session import Session
from localcoder.session.speculation import Drafting, Speculation

N_CTX = 96


class ForgetfulEngine(CountingEngine):
    """Notes what was cut."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.cuts: list[tuple[int, int]] = []

    def cut(self, sequence, start, stop) -> None:
        self.cuts.append((start, stop))
        sequence.trim(sequence.n_past - (stop - start))


def endless(coder) -> dict[int, float]:
    """A logit bias that never lets the text end."""
    return {i: -np.inf for i in coder.tokenizer.stop_ids}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    large = write_tiny_model(folder / "large.gguf", scale=3.0, n_layer=3, seed=1)
    small = write_tiny_model(folder / "small.gguf", scale=3.0, n_layer=1, seed=2)
    return large, small


def greedy() -> Sampler:
    return Sampler(SamplingOptions())


@pytest.mark.parametrize("speculates", [False, True])
def test_the_older_half_goes_and_the_start_stays(speculates):
    engine, small = ForgetfulEngine(n_ctx=16), ForgetfulEngine(n_ctx=16)
    session = Session(engine)
    speculation = Speculation(Lookup([0]), Drafting(Session(small), greedy(), cost=0.05)) if speculates else None
    tokens = list(
        session.generate(range(10), greedy(), max_tokens=40, n_kept=4, speculation=speculation),
    )
    assert tokens == [i % 100 for i in range(10, 50)]
    assert set(engine.cuts) == {(4, 10)}
    assert session.tokens[:4] == [0, 1, 2, 3]
    assert session.tokens[4:] == list(range(49 - len(session.tokens[4:]), 49))
    session.forget_moved()
    assert session.tokens == [0, 1, 2, 3]
    if speculates:
        assert small.cuts
        assert len(engine.evaluated) < 25


def test_where_nothing_can_be_forgotten_it_ends():
    engine = ForgetfulEngine(n_ctx=16)
    session = Session(engine)
    assert list(session.generate(range(10), greedy(), n_kept=15)) == list(range(10, 17))
    assert list(session.generate(range(10), greedy(), n_kept=200)) == list(range(10, 17))
    assert engine.cuts == []


def test_what_moved_is_no_past_for_another_text():
    pool = SessionPool(ForgetfulEngine(n_ctx=16))
    with pool.lend(range(10)) as session:
        list(session.generate(range(10), greedy(), max_tokens=12, n_kept=2))
        window = session.tokens
    with pool.lend(window) as session:
        assert session.tokens == [0, 1]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 5}, {"repeat_penalty": 1.3}])
def test_a_long_text(models, options):
    large, _ = models
    with Coder(large, n_ctx=N_CTX) as coder:
        options = {**options, "logit_bias": endless(coder)}
        stopped = coder.generate("def area(r):", max_tokens=300, **options)
        assert (stopped.finish_reason, stopped.context_is_full) == ("length", True)
        assert stopped.n_prompt_tokens + stopped.n_tokens == N_CTX + 1
        alone, quick = (
            coder.generate("def area(r):", max_tokens=300, context_overflow="shift", speculate=speculate, **options)
            for speculate in (False, True)
        )
        assert (alone.n_tokens, alone.context_is_full) == (300, False)
        assert quick.text == alone.text
        assert alone.text.startswith(stopped.text.rstrip("\N{REPLACEMENT CHARACTER}"))
        again = coder.generate("def area(r):", max_tokens=20, **options)
        assert stopped.text.startswith(again.text.rstrip("\N{REPLACEMENT CHARACTER}"))


def test_with_a_draft_model(models):
    large, small = models
    with Coder(small, n_ctx=N_CTX) as draft, Coder(large, n_ctx=N_CTX, draft_model=draft) as coder:
        options = {"max_tokens": 300, "context_overflow": "shift", "logit_bias": endless(coder)}
        quick = coder.generate("x = ", **options)
        assert quick.text == coder.complete("x = ", **options, speculate=False)
        assert quick.n_tokens == 300
        with Coder(small, n_ctx=N_CTX) as fresh:  # the draft model can be used for itself afterwards
            assert draft.complete("x = ", max_tokens=40) == fresh.complete("x = ", max_tokens=40)


def test_a_chat_keeps_its_system_prompt(models, monkeypatch):
    large, _ = models
    with Coder(large, n_ctx=192) as coder:
        cuts = []
        cut = coder.engine.cut
        monkeypatch.setattr(coder.engine, "cut", lambda *a: [cuts.append(a[1:]), cut(*a)])
        system = "Answer in verse."
        options = {"max_tokens": 200, "context_overflow": "shift", "logit_bias": endless(coder)}
        answer = coder.start_chat("Why?", system=system, **options)
        assert answer.run().n_tokens == 200
    start, stop = cuts[0]
    assert len(coder.tokenize(system)) <= start < 130
    assert stop == start + (192 - start) // 2


def test_where_it_has_no_meaning(models):
    large, _ = models
    with Coder(large, n_ctx=N_CTX) as coder:
        with pytest.raises(OptionError, match="for one text at a time"):
            coder.choices("x", n=2, temperature=1.0, context_overflow="shift")
        with pytest.raises(OptionError, match="context_overflow is 'grow'; expected one of stop, shift"):
            coder.complete("x", context_overflow="grow")
        text = coder.infill("x = ", "\n", max_tokens=20, context_overflow="shift")
        assert text == coder.infill("x = ", "\n", max_tokens=20)


def test_in_the_terminal(models):
    large, _ = models
    with Coder(large) as coder:
        biases = [word for i in coder.tokenizer.stop_ids for word in ("--logit-bias", f"{i}=-inf")]
    arguments = ["run", str(large), "x = ", "--n-ctx", str(N_CTX), "--max-tokens", "200", *biases]
    stopped = CliRunner().invoke(main, arguments)
    assert "full: raise --n-ctx, or forget the oldest text with --on-overflow shift" in stopped.stderr
    shifted = CliRunner().invoke(main, [*arguments, "--on-overflow", "shift", "--json"])
    done = json.loads(shifted.stdout)
    assert (done["n_tokens"], done["context_is_full"], shifted.stderr) == (200, False, "")


def test_cutting_what_is_not_there():
    session = Session(ForgetfulEngine(n_ctx=16))
    logits = session.sync(range(8))
    session.cut(20, 30)
    assert session.tokens == list(range(8))
    assert np.array_equal(session.sync(range(8)), logits)
    session.cut(5, 30)
    assert session.tokens == list(range(5))
    session.cut(3, 3)
    assert session.tokens == list(range(5))
