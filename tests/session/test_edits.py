"""Edits in the middle of a long file: what stands before each is not computed again, and the answers are the same."""

from __future__ import annotations

import pytest
from tiny_model import write_tiny_model

from localcoder import Coder, InfillRequest

N_TOKENS = 4000
EDITS = [
    0.5,
    0.55,
    0.45,
    0.6,
    0.5,
    0.4,
    0.62,
    0.58,
]  # where in the file; the fourth jumps ahead of the third, and so on
FILE = "".join(f"value_{i} = compute({i * 7919 % 1000})\n" for i in range(200))[: N_TOKENS - 1]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A token of this model is a byte."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", scale=3.0, n_ctx=6144)


def edited_files():
    """(the file after each edit, where that edit is)."""
    text = FILE
    for number, share in enumerate(EDITS):
        at = text.index("\n", int(share * len(text))) + 1
        text = text[:at] + f"# edit {number}\n" + text[at:]
        yield text, at


def test_only_what_follows_an_edit_is_computed(path):
    n_computed = n_after = 0
    with Coder(path) as coder:
        coder.complete(FILE, max_tokens=8)
        for text, at in edited_files():
            done = coder.generate(text, max_tokens=8)
            assert done.n_prompt_tokens > N_TOKENS
            n_computed += done.timings.n_prefill
            n_after += len(text) - at
            with Coder(path) as fresh:
                assert fresh.generate(text, max_tokens=8).text == done.text
    assert n_computed <= 1.5 * n_after


def test_typing_between_two_texts(path):
    """Of an infill, what is before the last edit of the prefix is not computed again."""
    n_computed = n_after = 0
    with Coder(path) as coder:
        for number, (text, at) in enumerate(edited_files()):
            request = InfillRequest(text[: at + 9], text[at + 9 :])
            done = coder.start_infill(request, max_tokens=8).run()
            if number:  # the first fills the cache
                n_computed += done.timings.n_prefill
                n_after += len(text) - at
            with Coder(path) as fresh:
                assert fresh.start_infill(request, max_tokens=8).run().text == done.text
    assert n_computed <= 1.5 * n_after
