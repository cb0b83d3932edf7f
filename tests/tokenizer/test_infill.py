"""The prompts for infill, built from ids: compared with the `tokenizers` library and with the published form."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localcoder.errors import ModelError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.tokenizer import Tokenizer
from localcoder.tokenizer.infill import infill_prompt

BEGIN, HOLE, END = "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"
PREFIX, SUFFIX = "def quick_sort(arr):\n    pivot = arr[0]\n", "\n    return left + [pivot]\n"


def ids_of(oracle, *parts: str) -> list[int]:
    """Special tokens by name, texts as the `tokenizers` library cuts them."""
    ids = []
    for part in parts:
        special = oracle.token_to_id(part) if part.startswith("<") else None
        ids += oracle.encode(part, add_special_tokens=False).ids if special is None else [special]
    return ids


def test_the_published_form(pair):
    tokenizer, oracle = pair
    expected = ids_of(oracle, "<｜begin▁of▁sentence｜>", BEGIN, PREFIX, HOLE, SUFFIX, END)
    assert infill_prompt(tokenizer, PREFIX, SUFFIX).ids == tuple(expected)


def test_files_of_the_repository_come_first_each_led_by_its_path(pair):
    tokenizer, oracle = pair
    prompt = infill_prompt(
        tokenizer, PREFIX, SUFFIX, path="src/sort.cpp", extra_files={"a.py": "x = 1\n", "b/c.rs": "fn f() {}"}
    )
    text = "#a.py\nx = 1\n#b/c.rs\nfn f() {}\n#src/sort.cpp\n" + PREFIX
    assert prompt.ids == tuple(ids_of(oracle, "<｜begin▁of▁sentence｜>", BEGIN, text, HOLE, SUFFIX, END))


@settings(deadline=None, max_examples=50)
@given(text=st.text(max_size=30), data=st.data())
def test_a_prompt_holds_the_text_and_four_special_tokens_whatever_it_spells(pair, text, data):
    tokenizer, _ = pair
    marker = data.draw(st.sampled_from([BEGIN, HOLE, END, "<|EOT|>", "<｜begin▁of▁sentence｜>"]))
    prefix, suffix = text + marker, marker + text
    prompt = infill_prompt(tokenizer, prefix, suffix)
    special = [i for i in prompt.ids if not tokenizer.token_bytes(i)]
    assert special == [
        tokenizer.bos_id,
        tokenizer.fim_prefix_id,
        tokenizer.fim_suffix_id,
        tokenizer.fim_middle_id,
    ]
    hole = prompt.ids.index(tokenizer.fim_suffix_id)
    seen = b"".join(map(tokenizer.token_bytes, prompt.ids[:hole]))
    assert seen + bytes_of(tokenizer, prompt.begun) == prefix.encode()
    assert prompt.after + tokenizer.detokenize(prompt.ids[hole:]) == suffix


@settings(deadline=None)
@given(cut=st.integers(1, 60))
def test_what_is_taken_out_is_the_beginning_of_a_longer_token(pair, cut):
    tokenizer, _ = pair
    text = "    self.assertEqual(response.status_code, expected_value)   "[:cut]
    prompt = infill_prompt(tokenizer, text, "")
    if prompt.begun:
        begun = bytes_of(tokenizer, prompt.begun)
        assert any(len(tokenizer.token_bytes(i)) > len(begun) for i in tokenizer.index.beginning_with(begun))
        assert text.encode().endswith(begun)
    assert infill_prompt(tokenizer, text, "", heal_prefix=False).begun == ()


def bytes_of(tokenizer, ids) -> bytes:
    return b"".join(map(tokenizer.token_bytes, ids))


@pytest.mark.parametrize("prefix", ["x = 1\n", "x = 1", "", "\n\n"])
def test_nothing_is_taken_out_where_a_token_ends_for_certain(pair, prefix):
    assert infill_prompt(pair[0], prefix, "\n").begun == ()


def test_only_a_word_that_the_hole_splits_is_healed_behind_it(pair):
    tokenizer, _ = pair
    assert infill_prompt(tokenizer, "    retu", "rn x\n").after == "rn"
    assert infill_prompt(tokenizer, "    retu", "rn x\n", heal_suffix=False).after == ""
    for prefix, suffix in [("    return ", "x\n"), ("f(", "x)"), ("x", ""), ("x", " y"), ("", "x")]:
        assert infill_prompt(tokenizer, prefix, suffix).after == ""


def test_the_index_agrees_with_a_look_at_every_token(pair):
    tokenizer, _ = pair
    everything = {i: tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab) if tokenizer.token_bytes(i)}
    for text in (b" re", b"self", b"\xe4", b"\xff", b"    ", "é".encode(), b" return x"):
        longer = {i for i, data in everything.items() if data.startswith(text)}
        assert set(tokenizer.index.beginning_with(text)) == longer
        assert tokenizer.index.is_extended(text) == any(len(everything[i]) > len(text) for i in longer)


def test_a_vocabulary_without_infill_tokens_is_refused(shared):
    with GGUFFile.open(shared / "deepseek-coder/vocab-v1.5.gguf") as file:
        tokenizer = Tokenizer.from_gguf(file)
    with pytest.raises(ModelError, match=r"cannot infill.*v1\.5, which was never trained to; take a base model"):
        infill_prompt(tokenizer, PREFIX, SUFFIX)
