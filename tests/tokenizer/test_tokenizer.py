"""The tokenizer built from GGUF metadata against `tokenizers` on the tokenizer.json it came from, and llama.cpp."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Oracle

from localcoder.errors import TokenizerError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.tokenizer import StreamDecoder, Tokenizer

from .conftest import ADDED_CHARACTERS, SPECIAL

TEXTS = [
    "",
    " ",
    "def f(x):\r\n\treturn [1234, 0x5f, 3.14e-10]\r\n",
    "a\rb\r\n\n\n  c\n",
    "\t\tif x:\n\t\t    pass  \n   ",
    "你好，世界！这是一个测试。",
    "Привет, мир! Съешь же ещё этих мягких французских булок.",
    "日本語のテキスト、ひらがな、カタカナ 한국어 텍스트 العربية עברית हिन्दी ไทย",
    "👋🏽 👩‍👩‍👧‍👦 🇩🇪 emoji 🎉🎉",
    "e\u0301 combining n\u0303 Z\u0351\u036b\u0343 \u200d\u200b\ufeff",
    "\0 NUL \x01\x1b[0m \x7f\x85\xa0\u2028\u2029\u3000",
    "١٢٣ ½ Ⅻ ² ① 1２3 00012345678901234567890",
    "“quotes” — … «» ¿¡ §¶ += <= >= != == ^ ~ $ | ` @",
    "ÁÀÿ" + ADDED_CHARACTERS + "naïve õpen ÷ ÁÁ",
    "x" * 3000 + "=" * 3000 + " " * 3000,
    "[PAD32022] [PAD8191] <dummy00001>",
]
TEXTS.append("".join(TEXTS))

any_text = st.text(st.characters(exclude_categories=["Cs"]))
# Made of the pieces that the splitting rules treat apart, so that their borders meet often.
border_text = st.lists(
    st.sampled_from(
        ["\r", "\n", " ", "  ", "\t", "a", "Ж", "9", "٣", "!", "+", "。", "中", "가", "õ", "\u3000", "é", "👋", "_"]
    )
).map("".join)


def ids_of(oracle: Oracle, text: str) -> list[int]:
    """What tokenizer.json says; special tokens spelled in the text are tokens to it."""
    return oracle.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", TEXTS)
def test_agrees_with_tokenizer_json(pair, text):
    ours, oracle = pair
    assert ours.tokenize(text, bos=False) == ids_of(oracle, text)
    assert ours.detokenize(ours.tokenize(text)) == text


def test_agrees_on_every_unicode_block(pair):
    ours, oracle = pair
    for first in (*range(0, 0x20000, 128), *range(0x20000, 0x110000, 4096)):
        text = "".join(map(chr, range(first, first + 128)))
        if first in range(0xD800, 0xE000):
            continue
        assert ours.tokenize(text, bos=False) == ids_of(oracle, text), hex(first)
        assert ours.detokenize(ours.tokenize(text)) == text, hex(first)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, derandomize=True, max_examples=300
)
@given(text=any_text | border_text)
def test_agrees_on_random_text(pair, text):
    ours, oracle = pair
    ids = ours.tokenize(text, bos=False)
    assert ids == ids_of(oracle, text)
    assert ours.detokenize(ids) == text


def standard_library() -> dict[Path, str]:
    """The modules of the standard library (its own test suites left out), each without the lines of those before it.

    That is all of it in two thirds of the time: line ends are split off first, so no line depends on another.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    texts: dict[Path, str] = {}
    seen: set[str] = set()
    for path in sorted(folder.rglob("*.py")):
        if not {"site-packages", "test", "tests", "idle_test"} & set(path.relative_to(folder).parts):
            lines = path.read_bytes().decode("utf-8", errors="replace").splitlines(keepends=True)
            texts[path] = "".join(line for line in lines if line not in seen)
            seen.update(lines)
    return texts


def test_agrees_on_the_standard_library(shared):
    with GGUFFile.open(shared / "deepseek-coder/vocab.gguf") as file:
        ours = Tokenizer.from_gguf(file)
    oracle = Oracle.from_file(str(shared / "deepseek-coder/tokenizer.json"))
    texts = standard_library()
    assert len(texts) > 300
    expected = oracle.encode_batch_fast(list(texts.values()), add_special_tokens=False)
    for (path, text), encoding in zip(texts.items(), expected):
        ids = ours.tokenize(text, bos=False)
        assert ids == encoding.ids, path
        assert ours.detokenize(ids) == text, path


@pytest.mark.parametrize("text", ["x {} y", "{}", "<{}", "{}{}", "{}\n", " {} ", "{}".join("õ1中 ")])
def test_special_tokens_are_text_unless_asked_for(pair, text):
    ours, oracle = pair
    for spelling in SPECIAL:
        spelled = text.replace("{}", spelling)
        plain = ours.tokenize(spelled, bos=False)
        special_ids = {oracle.token_to_id(special) for special in SPECIAL}
        assert not special_ids & set(plain)
        assert ours.detokenize(plain) == spelled
        parsed = ours.tokenize(spelled, bos=False, parse_special=True)
        assert parsed == ids_of(oracle, spelled)
        assert ours.detokenize(parsed, special=True) == spelled
        assert ours.detokenize(parsed) == text.replace("{}", "")


def test_bos(pair):
    ours, oracle = pair
    assert ours.add_bos
    assert ours.tokenize("x") == [oracle.token_to_id(SPECIAL[0]), *ids_of(oracle, "x")]
    assert ours.tokenize("x", bos=False) == ids_of(oracle, "x")
    assert ours.tokenize("", bos=True) == [ours.bos_id]


def test_special_ids_are_found_by_spelling(pair):
    ours, oracle = pair
    begin, end, hole, fim_begin, fim_end, *_, eot = map(oracle.token_to_id, SPECIAL)
    assert (ours.bos_id, ours.eos_id, ours.eot_id) == (begin, end, eot)
    assert (ours.fim_prefix_id, ours.fim_suffix_id, ours.fim_middle_id) == (fim_begin, hole, fim_end)
    assert ours.stop_ids == {end, eot}
    assert ours.id_of("<|EOT|>") == eot
    assert ours.id_of("no such token") is None
    assert oracle.get_vocab_size() == ours.n_tokens


def test_padding_is_never_sampled(pair):
    ours, oracle = pair
    n_used = oracle.get_vocab_size()
    mask = ours.unsampleable(ours.n_vocab + 64)
    assert mask.tolist() == [i >= n_used for i in range(ours.n_vocab + 64)]
    assert not ours.unsampleable(100).any()


def test_agrees_with_llama_cpp(shared):
    """It differs where text spells padding, which this old file types as text to match; ours takes it for padding."""
    llama_cpp = pytest.importorskip("llama_cpp")
    for name in ("vocab.gguf", "vocab-v1.5.gguf"):
        path = shared / "deepseek-coder" / name
        with GGUFFile.open(path) as file:
            ours = Tokenizer.from_gguf(file)
        model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        try:
            blocks = ["".join(map(chr, range(i, i + 128))) for i in range(0, 0x30000, 128) if not 0xD800 <= i < 0xE000]
            for text in [text for text in TEXTS if "[PAD" not in text] + blocks:
                assert ours.tokenize(text, bos=False) == model.tokenize(text.encode(), add_bos=False), (name, text)
            assert ours.tokenize("x") == model.tokenize(b"x", add_bos=True)
            for spelling in SPECIAL[:2]:
                text = f"x {spelling}y"
                expected = model.tokenize(text.encode(), add_bos=False, special=True)
                assert ours.tokenize(text, bos=False, parse_special=True) == expected
            assert len(model.tokenize(b"[PAD100020]" if ours.eot_id is None else b"[PAD32022]", add_bos=False)) == 1
        finally:
            model.close()


def test_v15_vocabulary(shared):
    with GGUFFile.open(shared / "deepseek-coder/vocab-v1.5.gguf") as file:
        ours = Tokenizer.from_gguf(file)
    assert (ours.bos_id, ours.eos_id, ours.eot_id) == (100000, 100001, None)
    assert ours.fim_prefix_id is ours.fim_suffix_id is ours.fim_middle_id is None
    assert ours.n_tokens == 100015
    for text in TEXTS:
        assert ours.detokenize(ours.tokenize(text)) == text


def test_token_bytes_make_the_text(pair):
    ours, _ = pair
    text = TEXTS[-1]
    assert b"".join(map(ours.token_bytes, ours.tokenize(text))) == text.encode()
    assert ours.token_bytes(ours.eos_id) == b""
    for bad in (-1, ours.n_vocab):
        with pytest.raises(TokenizerError, match=f"no token {bad}"):
            ours.token_bytes(bad)


@pytest.mark.parametrize("text", ["\ud800", "abc\udc80def"])
def test_lone_surrogates_are_refused(trained, text):
    with pytest.raises(TokenizerError, match="half a surrogate pair"):
        trained.tokenize(text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, derandomize=True)
@given(text=any_text, data=st.data())
def test_stream_never_shows_half_a_character(trained, text, data):
    ids = trained.tokenize(text)
    decoder = StreamDecoder(trained)
    shown, at = "", 0
    while at < len(ids):
        n = data.draw(st.integers(1, 3))
        shown += decoder.feed(ids[at : at + n])
        at += n
        assert text.startswith(shown)
    assert decoder.flush() == ""
    assert shown == text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, derandomize=True)
@given(ids=st.lists(st.integers(0, 959)))
def test_stream_of_any_ids_equals_the_whole(trained, ids):
    for special in (False, True):
        decoder = StreamDecoder(trained, special=special)
        assert "".join(decoder.feed([i]) for i in ids) + decoder.flush() == trained.detokenize(ids, special=special)


def test_stream_ends_a_broken_character(trained):
    half = trained.tokenize("€", bos=False)[:1]
    assert trained.token_bytes(half[0]) != "€".encode()
    decoder = StreamDecoder(trained)
    assert decoder.feed(half) == ""
    assert decoder.flush() == "\ufffd"


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_loads_no_library():
    code = "import sys, localcoder.tokenizer; print('tokenizers' in sys.modules)"
    assert run_python(code).strip() == "False"


def test_the_real_vocabulary_is_quickly_ready(shared):
    """CPU seconds, so that a busy machine changes little; twice the 0.16 s measured where this was written."""
    code = f"""if True:
        import time
        import numpy
        start = time.process_time()
        from localcoder.files.gguf_reader import GGUFFile
        from localcoder.tokenizer import Tokenizer
        Tokenizer.from_gguf(GGUFFile.open({str(shared / "deepseek-coder/vocab.gguf")!r})).tokenize("x")
        print(time.process_time() - start)"""
    assert min(float(run_python(code)) for _ in range(3)) < 0.3
