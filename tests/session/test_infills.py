"""Several infills of one hole are those that each would be alone."""

from __future__ import annotations

import re

import pytest
from tiny_model import write_tiny_model

from localcoder import Coder, InfillRequest
from localcoder.errors import OptionError

PREFIX, SUFFIX = "def area(r):\n    retu", "rn 2\n\nprint(area(1))\n"  # both edges are in the middle of a word
WARM = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 7, "max_tokens": 40}


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", scale=3.0, n_ctx=1024)
    with Coder(path, n_sequences=4) as coder:
        yield coder


@pytest.mark.parametrize("scope", [None, "line", "block"])
def test_each_is_what_its_seed_gives_alone(coder, scope):
    request = InfillRequest(PREFIX, SUFFIX, scope=scope)
    found = coder.start_infills(request, n=4, **WARM).run()
    assert [done.seed for done in found] == [7, 8, 9, 10]
    alone = [coder.start_infill(request, **{**WARM, "seed": done.seed}).run() for done in found]
    for done, one in zip(found, alone):
        assert (done.text, done.finish_reason, done.n_tokens) == (one.text, one.finish_reason, one.n_tokens)
    assert len({done.text for done in found}) > 1
    assert coder.infill(PREFIX, SUFFIX, scope=scope, n=4, **WARM) == [done.text for done in found]


def test_with_the_embedded_model():
    """Tokens that are longer than the end of the prefix, which a vocabulary of bytes does not have."""
    with Coder(n_sequences=2) as coder:
        request = InfillRequest("import os\nimport sys\n\nprint(sys.pla", "\n", scope="line")
        found = coder.start_infills(request, n=3, temperature=0.8, seed=3, max_tokens=12).run()
        assert coder.start_infill(request).prompt.begun
        for done in found:
            alone = coder.start_infill(request, temperature=0.8, seed=done.seed, max_tokens=12).run()
            assert done.text == alone.text


def test_the_best_come_first(coder):
    ranked = coder.start_infills(InfillRequest(PREFIX, SUFFIX), n=2, best_of=5, **WARM).run()
    assert ranked[0].mean_logprob >= ranked[1].mean_logprob
    everything = coder.start_infills(InfillRequest(PREFIX, SUFFIX), n=5, logprobs=0, **WARM).run()
    assert ranked[0].text == max(everything, key=lambda done: done.mean_logprob).text


def test_one_that_is_cancelled_ends(coder):
    infills = coder.start_infills(InfillRequest(PREFIX, SUFFIX), n=3, **WARM)
    infills.cancel()
    assert all(done.n_tokens <= 1 for done in infills.run())


def test_what_cannot_be(coder):
    with pytest.raises(OptionError, match="at temperature 0 would all be the same"):
        coder.infill("x = ", "\n", n=2)
    with pytest.raises(OptionError, match="n is 0; expected a whole number from 1 on"):
        coder.infill("x = ", "\n", n=0)
    with pytest.raises(OptionError, match="best_of needs n"):
        coder.infill("x = ", "\n", best_of=2, **WARM)


def test_with_a_grammar(coder):
    found = coder.infill("x = ", "\n", n=3, regex="[0-9]{1,3}(, [0-9]{1,3}){2}", **WARM)
    assert all(re.fullmatch("[0-9]{1,3}(, [0-9]{1,3}){2}", text) for text in found)
    assert len(set(found)) > 1
