"""Several texts at once are those that each would be alone."""

from __future__ import annotations

import threading

import pytest
from tiny_model import write_tiny_model

from localcoder import Coder
from localcoder.errors import ContextLengthError, OptionError

PROMPT = "def f(x):\n    return "
WARM = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 7}


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", scale=3.0, n_ctx=1024)
    with Coder(path, n_sequences=4) as coder:
        yield coder


def test_each_is_what_its_seed_gives_alone(coder):
    found = coder.choices(PROMPT, n=5, max_tokens=70, **WARM)  # past a page of the cache
    assert [done.seed for done in found] == [7, 8, 9, 10, 11]
    alone = [coder.generate(PROMPT, max_tokens=70, **{**WARM, "seed": done.seed}) for done in found]
    for done, one in zip(found, alone):
        assert (done.text, done.finish_reason, done.n_tokens) == (one.text, one.finish_reason, one.n_tokens)
    assert len({done.text for done in found}) == 5


def test_some_end_before_others(coder):
    """By a stop string, and the others go on as if nothing were."""
    free = coder.choices(PROMPT, n=4, max_tokens=30, **WARM)
    stop = free[2].text[3:5]
    found = coder.choices(PROMPT, n=4, max_tokens=30, stop=stop, **WARM)
    for done, without in zip(found, free):
        expected = without.text.split(stop)[0]
        assert done.text == expected
        assert done.finish_reason == ("stop" if stop in without.text else "length")
    assert {done.finish_reason for done in found} == {"stop", "length"}


def test_the_prompt_is_computed_once_and_a_step_has_a_token_of_each(coder, monkeypatch):
    sizes = []
    evaluate = coder.engine.evaluate
    monkeypatch.setattr(
        coder.engine, "evaluate", lambda chunks: sizes.append([len(c.tokens) for c in chunks]) or evaluate(chunks)
    )
    found = coder.choices("Z" * 20, n=3, max_tokens=4, **WARM)
    assert sizes == [[21], [1] * 3, [1] * 3, [1] * 3]
    assert {done.timings.n_prefill for done in found} == {21}


def test_the_best_are_those_with_the_highest_mean_log_probability(coder):
    everything = coder.choices(PROMPT, n=6, max_tokens=12, logprobs=0, **WARM)
    ranked = sorted(everything, key=lambda d: -sum(r.logprob for r in d.logprobs) / len(d.logprobs))
    best = coder.choices(PROMPT, n=2, best_of=6, max_tokens=12, **WARM)
    assert [done.text for done in best] == [done.text for done in ranked[:2]]
    assert best[0].mean_logprob >= best[1].mean_logprob


def test_pieces_come_with_the_number_of_their_text(coder):
    several = coder.start_choices(PROMPT, n=3, max_tokens=20, **WARM)
    texts = ["", "", ""]
    for number, piece in several:
        texts[number] += piece
    assert texts == [done.text for done in several.completions]


def test_a_conversation(coder):
    messages = [{"role": "user", "content": "hello"}]
    found = coder.choices(messages, n=2, max_tokens=10, **WARM)
    assert found[1].text == coder.chat(messages, max_tokens=10, **{**WARM, "seed": 8})


def test_pages_are_given_back(coder):
    free = coder.engine._kv.n_free_pages
    several = coder.start_choices("Y" * 100, n=3, max_tokens=100, **WARM)
    for _ in several:
        several.cancel()
    assert all(done.finish_reason is None for done in several.completions)
    coder.choices("Y" * 100, n=3, max_tokens=100, **WARM)
    assert coder.engine._kv.n_free_pages >= free - 2  # those of the prompt, kept for the next


def test_a_cache_that_is_too_small(tmp_path):
    with Coder(write_tiny_model(tmp_path / "tiny.gguf"), n_ctx=256) as coder:
        with pytest.raises(ContextLengthError, match="KV cache are in use"):
            coder.choices("x" * 100, n=8, max_tokens=None, **WARM)
        assert len(coder.choices("x", n=3, max_tokens=8, **WARM)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": 2.0}, "n is 2.0"),
        ({"n": 3, "best_of": 2}, "best_of is 2; expected a whole number from 3 on"),
        ({"n": 2, "temperature": 0}, "2 texts at temperature 0 would all be the same"),
        ({"n": 1, "best_of": 2, "temperature": 0}, "temperature 0"),
        ({"n": 2, "on_token": print}, "on_token is for one text"),
    ],
)
def test_what_makes_no_sense_is_refused(coder, options, message):
    with pytest.raises(OptionError, match=message):
        coder.choices(PROMPT, **{**WARM, **options})


def test_one_greedy_text(coder):
    (done,) = coder.choices(PROMPT, n=1, max_tokens=20)
    assert done.text == coder.complete(PROMPT, max_tokens=20)


def test_threads(coder):
    expected = [coder.choices(p, n=2, max_tokens=20, **WARM) for p in "abc"]
    results = {}

    def work(prompt):
        results[prompt] = coder.choices(prompt, n=2, max_tokens=20, **WARM)

    threads = [threading.Thread(target=work, args=[p]) for p in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[d.text for d in results[p]] for p in "abc"] == [[d.text for d in e] for e in expected]
