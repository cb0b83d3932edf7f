"""What narrows a choice: the first token, and what has to be there before the end."""

from __future__ import annotations

import numpy as np

from localcoder.session.constraint import Edges

VOCABULARY = [b"p", b"pr", b"print", b"i", b"in", b"n", b"(", b" "]
STOP = len(VOCABULARY)


class Words:
    def token_bytes(self, token):
        return b"" if token == STOP else VOCABULARY[token]


def allowed(edges: Edges) -> set[bytes]:
    logits = edges.restrict(np.zeros(STOP + 1, np.float32))
    return {Words().token_bytes(i) for i in np.flatnonzero(np.isfinite(logits)).tolist()}


def test_the_first_token_is_one_of_those_given_and_then_anything():
    edges = Edges(Words(), [1, 2], b"", {STOP})
    assert allowed(edges) == {b"pr", b"print"}
    edges.accept(2)
    assert allowed(edges) == {*VOCABULARY, b""}


def test_the_end_may_not_come_before_the_text_ends_as_asked():
    edges = Edges(Words(), (), b"in(", {STOP})
    for token in (b"pr", b"in", b"n", b"in"):
        assert b"" not in allowed(edges)
        edges.accept(VOCABULARY.index(token))
    edges.accept(VOCABULARY.index(b"("))
    assert b"" in allowed(edges)
    edges.accept(VOCABULARY.index(b" "))
    assert b"" not in allowed(edges)
