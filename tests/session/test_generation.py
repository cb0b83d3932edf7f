"""Text in pieces: stop strings, half characters, and what is reported at the end."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
from fakes import CountingEngine
from hypothesis import given
from hypothesis import strategies as st

from localcoder.session.generation import Generation, StopStrings
from localcoder.session.options import GenerationOptions
from localcoder.session.session import Session


def fed(pieces, stop) -> tuple[list[str], bool]:
    stops = StopStrings(stop)
    out = [stops.feed(piece) for piece in pieces]
    return [*out, stops.flush()], stops.found


def test_a_stop_string_in_one_piece_or_in_many():
    assert fed(["ab", "cd", "ef"], ["d"]) == (["ab", "c", "", ""], True)
    assert fed(["a\n", "\nb"], ["\n\n"]) == (["a", "", ""], True)
    assert fed(["a\n", "b\n"], ["\n\n"]) == (["a", "\nb", "\n"], False)
    assert fed(["aaa", "ab"], ["aab"]) == (["a", "a", ""], True)


@given(st.text("ab\n", max_size=20), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.data())
def test_the_cuts_between_pieces_do_not_matter(text, stop, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
    out, found = fed(pieces, stop)
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    assert found == bool(ends)
    assert "".join(out) == (text[: min(ends)[1]] if ends else text)


END, PADDING = 255, 254


class ByteTokenizer:
    """Token t is the byte t, but for the last two."""

    stop_ids = frozenset({END})

    def unsampleable(self, n_vocab):
        return np.arange(n_vocab) == PADDING

    def _shown_bytes(self, token, special):
        return b"" if token == END else bytes([token])


def generation(prompt: bytes, following=None, **options) -> Generation:
    session = Session(CountingEngine(n_vocab=256, n_ctx=512, following=following or {}))
    return Generation(lambda _: nullcontext(session), ByteTokenizer(), 256, list(prompt), GenerationOptions(**options))


def test_the_limit_on_tokens():
    g = generation(b"a", max_tokens=3)
    assert "".join(g) == "bcd" == g.completion.text
    done = g.completion
    assert (done.finish_reason, done.n_prompt_tokens, done.n_tokens) == ("length", 1, 3)
    assert done.timings.n_prefill == 1
    assert done.timings.total_s >= done.timings.first_token_s > 0
    assert done.timings.decode_tps > 0
    assert done.timings.prefill_tps > 0


def test_a_stop_string():
    g = generation(b"a", stop=["ef"])
    assert list(g) == ["b", "c", "d"]
    assert (g.completion.finish_reason, g.completion.n_tokens) == ("stop", 5)


def test_the_end_token_ends_the_text_and_is_not_counted():
    g = generation(b"a", following={ord("c"): END}, stop=["cx"])
    assert list(g) == ["b", "c"]
    assert (g.completion.finish_reason, g.completion.n_tokens) == ("stop", 2)


def test_padding_is_never_sampled():
    g = generation(b"a", following={ord("b"): PADDING}, max_tokens=3)
    assert "".join(g) == "b\x00\x01"  # all other logits are equal: the first id follows


def test_an_iteration_that_is_left_has_no_finish_reason():
    g = generation(b"a")
    for piece in g:
        assert piece == "b"
        break
    assert g.completion.finish_reason is None
    assert g.completion.text == "b"


def test_half_a_character_is_never_shown():
    snowman = "\N{SNOWMAN}".encode()
    following = {ord("a"): snowman[0], snowman[0]: snowman[1], snowman[1]: snowman[2], snowman[2]: ord("z")}
    assert list(generation(b"a", following, max_tokens=4)) == ["\N{SNOWMAN}", "z"]
    assert list(generation(b"a", following, max_tokens=2)) == ["\N{REPLACEMENT CHARACTER}"]
