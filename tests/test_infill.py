"""Infill through `Coder`: what the hole's edges promise, on a small trained model and on a random one."""

from __future__ import annotations

import logging

import pytest
from tiny_model import write_tiny_model

from localcoder import Coder, InfillRequest
from localcoder.assist.hygiene import NO_RULES
from localcoder.errors import ContextLengthError, ModelError, OptionError

FILE = '''"""Shapes."""

import math


class Circle:
    def __init__(self, radius):
        self.radius = radius

    def area(self):
        return math.pi * self.radius ** 2

    def scaled(self, factor):
        return Circle(self.radius * factor)
'''


@pytest.fixture(scope="module")
def coder():
    with Coder() as coder:
        yield coder


@pytest.mark.parametrize("at", range(95, 165, 7))
def test_the_answer_goes_on_from_the_very_character(coder, at):
    """Whatever the cut does to tokens: what the model repeats of the prefix is byte for byte what was there."""
    infill = coder.start_infill(InfillRequest(FILE[:at], FILE[at:]), max_tokens=6)
    hole = infill.prompt.ids.index(coder.tokenizer.fim_suffix_id)
    assert coder.detokenize([*infill.prompt.ids[:hole], *infill.prompt.begun]) == FILE[:at]
    written, skipped = watch(coder, infill)
    assert written[:skipped] == b"".join(map(coder.tokenizer.token_bytes, infill.prompt.begun))[:skipped]
    assert coder.start_infill(InfillRequest(FILE[:at], FILE[at:], rules=NO_RULES)).prompt.begun == ()


def watch(coder, infill) -> tuple[bytes, int]:
    """The bytes of all tokens that an infill samples, and how many of them its text leaves out."""
    tokens, skipped = [], []
    generation = infill._generation
    sampled, decoder = generation._tokens, generation._transcript.decoder
    skip = decoder.skip
    decoder.skip = lambda n: (skipped.append(n), skip(n))

    def watched():
        for token in sampled():
            tokens.append(token)
            yield token

    generation._tokens = watched
    infill.run()
    return b"".join(map(coder.tokenizer.token_bytes, tokens)), sum(skipped)


def test_healing_only_where_it_is_the_likelier_reading(coder):
    """A name that is no beginning of a known token stays as it is spelled; half of a common one is finished."""
    n_healed = 0
    for at in range(95, 300):
        infill = coder.start_infill(InfillRequest(FILE[:at], FILE[at:]), max_tokens=1)
        n_healed += watch(coder, infill)[1] > 0
    assert 20 < n_healed < 150


def test_a_name_cut_in_two_is_finished(coder):
    prefix = (
        "import unittest\n\n\nclass TestShapes(unittest.TestCase):\n    def test_area(self):\n        self.assertEq"
    )
    assert coder.infill(prefix, "\n", max_tokens=4, scope="line").startswith("ual(")


def test_a_word_that_the_hole_splits_keeps_its_end(coder):
    at = FILE.index("return math") + 4
    done = coder.start_infill(InfillRequest(FILE[:at], FILE[at:]), max_tokens=8)
    assert done.prompt.after
    text = done.run().text
    assert not text.endswith(done.prompt.after)


def test_special_tokens_that_a_file_spells_stay_text(coder):
    prefix = "# <｜fim▁hole｜> and <|EOT|>\nx = "
    ids = coder.start_infill(InfillRequest(prefix, "\n")).prompt.ids
    assert ids.count(coder.tokenizer.fim_suffix_id) == 1
    assert coder.tokenizer.eot_id not in ids


def test_a_long_file_is_cut_to_the_context(coder):
    prefix = "import math\n" + "x = 1\n" * 5000 + "y = "
    infill = coder.start_infill(InfillRequest(prefix, "\nz = 2\n" * 5000), max_tokens=8)
    assert coder.n_ctx - 300 < len(infill.prompt.ids) <= coder.n_ctx - 8
    assert infill.context.prefix.startswith("import math\n")
    assert infill.context.n_left_out > 40_000
    assert infill.run().n_tokens <= 8


def test_a_megabyte_on_one_line(coder):
    infill = coder.start_infill(InfillRequest("x = [" + "1, " * 350_000, "]\n"), max_tokens=2)
    assert len(infill.prompt.ids) <= coder.n_ctx
    infill.run()


def test_a_model_without_infill_tokens_is_refused_and_an_instruct_model_warned_about(tmp_path, caplog):
    plain = write_tiny_model(tmp_path / "plain.gguf", special_tokens=False)
    with Coder(plain) as coder, pytest.raises(ModelError, match="cannot infill"):
        coder.infill("a", "b")
    instruct = write_tiny_model(tmp_path / "instruct.gguf", name="tiny-instruct")
    with caplog.at_level(logging.WARNING, "localcoder"), Coder(instruct) as coder:
        coder.infill("a", "b", max_tokens=1)
    assert "tuned to answer instructions" in caplog.text


def test_wrong_arguments(coder, tmp_path):
    with pytest.raises(OptionError, match="scope is 'page'"):
        coder.infill("a", scope="page")
    with pytest.raises(OptionError, match="unknown option topk"):
        coder.infill("a", topk=1)
    with (
        Coder(write_tiny_model(tmp_path / "tiny.gguf"), n_ctx=20) as small,
        pytest.raises(ContextLengthError, match="a context of 20 has no room"),
    ):
        small.infill("a")
