"""Vocabularies as they are found: old files, files of other kinds, and hostile ones."""

from __future__ import annotations

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.models import BPE

from localcoder.errors import GGUFError, LocalcoderError, TokenizerError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.tokenizer import Tokenizer
from localcoder.tokenizer.tokenizer import rust_errors

from .conftest import ADDED_CHARACTERS, CONTROL, NORMAL, SPECIAL, UNUSED, USER_DEFINED

TEXT = "def naïve(õ):\r\n\treturn 12 # 你好 Привет <|EOT|> [PAD950]\n"


def same(ours: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers do the same with a text and know the same special tokens."""
    public = ("bos_id", "eos_id", "eot_id", "fim_prefix_id", "fim_suffix_id", "fim_middle_id", "stop_ids", "add_bos")
    return (
        ours.tokenize(TEXT) == other.tokenize(TEXT)
        and ours.tokenize(TEXT, parse_special=True) == other.tokenize(TEXT, parse_special=True)
        and ours.detokenize(ours.tokenize(TEXT)) == TEXT
        and all(getattr(ours, name) == getattr(other, name) for name in public)
        and (ours.unsampleable(960) == other.unsampleable(960)).all()
    )


def test_ids_named_in_the_file_come_first(trained_metadata, tmp_path):
    """The newer keys before the older, both before the spelling."""
    ids = {spelling: trained_metadata.tokens.index(spelling) for spelling in SPECIAL}
    user, assistant, pad = ids["<|User|>"], ids["<|Assistant|>"], ids["<pad>"]
    trained_metadata.scalars |= {
        "ggml.prefix_token_id": user,
        "ggml.suffix_token_id": assistant,
        "ggml.fim_suf_token_id": pad,
        "ggml.eos_token_id": user,
        "ggml.eot_token_id": assistant,
    }
    ours = trained_metadata.open(tmp_path)
    assert (ours.fim_prefix_id, ours.fim_suffix_id, ours.fim_middle_id) == (user, pad, ids["<｜fim▁end｜>"])
    assert (ours.eos_id, ours.eot_id) == (user, assistant)
    assert ours.stop_ids == {user, assistant, ids["<｜end▁of▁sentence｜>"], ids["<|EOT|>"]}


def test_ids_not_named_are_found_by_spelling(trained_metadata, trained, tmp_path):
    for key in [key for key in trained_metadata.scalars if key.endswith("token_id")]:
        del trained_metadata.scalars[key]
    assert same(trained_metadata.open(tmp_path), trained)


def test_a_vocabulary_without_special_tokens(trained_metadata, tmp_path):
    n = trained_metadata.tokens.index(SPECIAL[0])
    del trained_metadata.tokens[n:], trained_metadata.types[n:]
    for key in [key for key in trained_metadata.scalars if key.endswith("token_id")]:
        del trained_metadata.scalars[key]
    ours = trained_metadata.open(tmp_path)
    assert ours.bos_id is ours.eos_id is ours.eot_id is ours.fim_prefix_id is None
    assert ours.stop_ids == frozenset()
    assert not ours.add_bos
    assert ours.detokenize(ours.tokenize(TEXT, parse_special=True)) == TEXT
    with pytest.raises(TokenizerError, match="has no BOS token"):
        ours.tokenize("x", bos=True)


@pytest.mark.parametrize("old", [USER_DEFINED, CONTROL])
def test_types_of_old_converters(trained_metadata, trained, tmp_path, old):
    """All that is not made by merges was typed alike: as text to match, or as control."""
    trained_metadata.types = [NORMAL if kind == NORMAL else old for kind in trained_metadata.types]
    assert same(trained_metadata.open(tmp_path), trained)


def test_padding_called_dummy(trained_metadata, trained, tmp_path):
    n = trained_metadata.types.index(UNUSED)
    trained_metadata.tokens[n:] = [f"<dummy{i:05}>" for i in range(len(trained_metadata.tokens) - n)]
    trained_metadata.types[n:] = [CONTROL] * (len(trained_metadata.tokens) - n)
    assert same(trained_metadata.open(tmp_path), trained)


def test_without_types(trained_metadata, trained, tmp_path):
    trained_metadata.types = None
    ours = trained_metadata.open(tmp_path)
    assert any("no token types" in note for note in ours.notes)
    assert (ours.unsampleable(960) == trained.unsampleable(960)).all()
    for text in ("x", TEXT.replace("õ", "o").replace("ï", "i")):
        assert ours.tokenize(text) == trained.tokenize(text)
        assert ours.tokenize(text, parse_special=True) == trained.tokenize(text, parse_special=True)


@pytest.mark.parametrize("pre", [None, "default"])
def test_the_pre_tokenizer_is_assumed_where_none_is_named(trained_metadata, trained, tmp_path, pre):
    trained_metadata.scalars.pop("ggml.pre")
    if pre:
        trained_metadata.scalars["ggml.pre"] = pre
    ours = trained_metadata.open(tmp_path)
    assert same(ours, trained)
    assert [note for note in ours.notes if "deepseek-coder assumed" in note]
    assert trained.notes == []


def test_the_pre_tokenizer_of_the_large_vocabulary_is_assumed(shared):
    with GGUFFile.open(shared / "deepseek-coder/vocab-v1.5.gguf") as file:
        named = Tokenizer.from_gguf(file)
        del file.metadata["tokenizer.ggml.pre"]
        assumed = Tokenizer.from_gguf(file)
        file.metadata["tokenizer.ggml.pre"] = "deepseek-coder"
        other = Tokenizer.from_gguf(file)
    assert "deepseek-llm assumed" in assumed.notes[0]
    text = "हिन्दी 「x」"
    assert assumed.tokenize(text) == named.tokenize(text) != other.tokenize(text)


@pytest.mark.parametrize("add_bos", [True, False])
def test_add_bos(trained_metadata, tmp_path, add_bos):
    trained_metadata.scalars["ggml.add_bos_token"] = add_bos
    ours = trained_metadata.open(tmp_path)
    assert ours.add_bos is add_bos
    assert (ours.tokenize("x")[0] == ours.bos_id) is add_bos
    del trained_metadata.scalars["ggml.add_bos_token"]
    ours = trained_metadata.open(tmp_path)
    assert ours.add_bos
    assert "assumed that it does" in ours.notes[0]


def test_chat_template(trained_metadata, trained, tmp_path):
    assert trained.chat_template is None
    trained_metadata.scalars["chat_template"] = "{{ bos_token }}"
    assert trained_metadata.open(tmp_path).chat_template == "{{ bos_token }}"


def test_a_named_token_is_not_padding(trained_metadata, tmp_path):
    trained_metadata.scalars["ggml.eot_token_id"] = 950
    ours = trained_metadata.open(tmp_path)
    assert not ours.unsampleable(960)[950]
    assert 950 in ours.stop_ids


def test_merges_cannot_make_a_special_token(trained_metadata, tmp_path):
    """A forged file joins what a user types to <|EOT|>."""
    trained_metadata.merges += ["< |", "<| E"]
    with pytest.raises(TokenizerError, match="out of vocabulary"):
        trained_metadata.open(tmp_path)


def spoil_twice(m):
    m.tokens[300] = m.tokens[400]


def spoil_empty(m):
    m.tokens[300] = ""


def spoil_byte(m):
    m.tokens[m.tokens.index("Ċ")] = "no newline"


def spoil_byte_type(m):
    m.types[m.tokens.index("A")] = CONTROL


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.scalars.update({"ggml.model": "llama"}), "'llama' .*SentencePiece"),
        (lambda m: m.scalars.update({"ggml.model": "bert"}), "'bert', expected 'gpt2'"),
        (lambda m: m.scalars.update({"ggml.pre": "qwen2"}), "'qwen2'; supported are deepseek-coder, deepseek-llm"),
        (spoil_twice, "is in the vocabulary twice: 300 and 400"),
        (spoil_empty, "token 300 is empty"),
        (spoil_byte, r"no token for the byte 0x0A \(1 missing\)"),
        (spoil_byte_type, "no token for the byte 0x41"),
        (lambda m: m.types.pop(), "token_type has 959 entries for 960 tokens"),
        (lambda m: m.types.__setitem__(7, 9), "not token types"),
        (lambda m: m.types.__setitem__(7, -1), "not token types"),
        (lambda m: m.merges.__setitem__(5, "ab"), "merge 5 is 'ab'"),
        (lambda m: m.merges.__setitem__(5, "a b c"), "merge 5 is 'a b c'"),
        (lambda m: m.merges.__setitem__(5, " b"), "merge 5 is ' b'"),
        (lambda m: m.merges.__setitem__(5, "a "), "merge 5 is 'a '"),
        (lambda m: m.merges.__setitem__(5, "zzz qqq"), "`zzz` out of vocabulary"),
        (lambda m: m.merges.__setitem__(5, "Ċ Ċ"), "`ĊĊ` out of vocabulary"),
        (lambda m: m.merges.clear(), "merges is missing"),
        (lambda m: m.types.__setitem__(m.tokens.index("Ġi"), USER_DEFINED), "merge 'Ġ' 'i' makes .* typed as text"),
        (lambda m: m.scalars.update({"ggml.eos_token_id": 960}), "eos_token_id is 960, the vocabulary has 960"),
        (lambda m: m.scalars.update({"ggml.fim_pre_token_id": 2**32 - 1}), "fim_pre_token_id is 4294967295"),
    ],
)
def test_hostile_vocabularies(trained_metadata, tmp_path, spoil, message):
    spoil(trained_metadata)
    with pytest.raises(TokenizerError, match=message) as caught:
        trained_metadata.open(tmp_path)
    assert "vocabulary.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["ggml.model", "ggml.tokens"])
def test_missing_keys(trained_metadata, tmp_path, key):
    with GGUFFile.open(trained_metadata.write(tmp_path / "v.gguf")) as file:
        del file.metadata[f"tokenizer.{key}"]
        with pytest.raises(GGUFError, match=key):
            Tokenizer.from_gguf(file)


def test_any_value_under_any_key_is_an_error_or_works(trained_metadata, tmp_path):
    """No metadata of the wrong kind reaches Python's own exceptions."""
    with GGUFFile.open(trained_metadata.write(tmp_path / "v.gguf")) as file:
        original = copy.copy(file.metadata)
        messages = []
        values = [True, 0, -1, 2**63, 1.5, float("nan"), "", "x", [], ["a", "a"], ["\0"]]
        values += [original["tokenizer.ggml.token_type"][:3], original["tokenizer.ggml.token_type"] * 1.5]
        for key in [*(key for key in original if key.startswith("tokenizer.")), "tokenizer.chat_template"]:
            for value in values:
                file.metadata = {**original, key: value}
                try:
                    Tokenizer.from_gguf(file).tokenize(TEXT, parse_special=True)
                except LocalcoderError as e:
                    messages.append(str(e))
    assert len(messages) > 80
    assert all("v.gguf: " in message for message in messages)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, derandomize=True, max_examples=60)
@given(data=st.data())
def test_forged_lists(trained_metadata, tmp_path, data):
    """Random edits of tokens, types and merges: an error of ours, or a tokenizer that still gives every text back."""
    metadata = copy.deepcopy(trained_metadata)
    for _ in range(data.draw(st.integers(1, 4))):
        i = data.draw(st.integers(0, 959))
        match data.draw(st.sampled_from(["token", "type", "merge", "swap"])):
            case "token":
                metadata.tokens[i] = data.draw(
                    st.text(max_size=4) | st.sampled_from(["<|x|>", "\n", " ", "[PAD1]", "def"])
                )
            case "type":
                metadata.types[i] = data.draw(st.integers(1, 6))
            case "merge":
                pieces = [metadata.tokens[data.draw(st.integers(0, 959))] for _ in range(2)]
                metadata.merges.insert(i % len(metadata.merges), " ".join(pieces))
            case "swap":
                metadata.merges.reverse()
    try:
        ours = metadata.open(tmp_path)
    except TokenizerError:
        return
    assert ours.detokenize(ours.tokenize(TEXT)) == TEXT
    assert ours.detokenize(ours.tokenize(TEXT, parse_special=True), special=True).count("<|EOT|>") == 1


def test_a_panic_of_the_library_is_an_error():
    """An empty left half of a merge made tokenizers 0.23 panic, which is no Exception."""
    with pytest.raises(TokenizerError, match=r"^here: "), rust_errors("here"):
        BPE(vocab={"a": 0, "b": 1, "": 2}, merges=[("", "b"), ("ab", "b")])


def test_the_added_characters_are_matched(trained):
    for c in ADDED_CHARACTERS:
        assert trained.tokenize(c, bos=False) == [trained.id_of(c)]
        assert trained.token_bytes(trained.id_of(c)) == c.encode()
