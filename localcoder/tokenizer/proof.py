"""The proof that two tokenizers are one: the same ids over a corpus that has what source files have."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from localcoder.errors import TokenizerError
from localcoder.tokenizer.tokenizer import Tokenizer, rust_errors
from localcoder.tokenizer.vocabulary import SPECIAL_ROLES

MAX_LIBRARY_CHARACTERS = 500_000

FIXED_TEXTS = (
    "def f(x):\r\n\treturn [1234, 0x5f, 3.14e-10]\r\n\r\r\n\n\n  \t x  \n",
    "你好，世界！这是一个测试。日本語のテキスト、ひらがな 한국어 텍스트",
    "Привет, мир! Ελληνικά العربية עברית हिन्दी ไทย naïve Ünïcödé õ÷ÁýÀÿøúþüùöû",
    "👋🏽 👩‍👩‍👧‍👦 e\u0301 n\u0303 \u200d\ufeff \0\x01\x7f\x85\xa0\u2028\u3000",
    "١٢٣ ½ Ⅻ ² 12345678901234567890 “quotes” — … += <= != ^ ~ $ | ` @ {} \\ //",
    "<|im_start|> </s> <s> [INST] <unk> [PAD32022] <|EOT |> <｜fim▁hole| >",
)


def proof_corpus() -> Iterator[str]:
    """Half a megabyte and more: many scripts, every special token as text, modules of the standard library."""
    yield from FIXED_TEXTS
    spellings = [spelling for _, spelling in SPECIAL_ROLES.values()]
    yield "".join(f"{token}x {token}\n{token}" for token in spellings)
    for first in range(0, 0x20000, 256):
        if not 0xD800 <= first < 0xE000:
            yield "".join(map(chr, range(first, first + 256, 3)))
    left = MAX_LIBRARY_CHARACTERS
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        yield text
        left -= len(text)
        if left <= 0:
            return


def prove_equal(ours: Tokenizer, tokenizer_json: Path, corpus: Iterable[str] | None = None) -> None:
    """Compares a tokenizer with the tokenizer.json that it was made from: tokens, ids over a corpus, text from ids.

    Raises:
        TokenizerError: they differ; the message shows the first difference.
    """
    from tokenizers import Tokenizer as RustTokenizer

    with rust_errors(str(tokenizer_json)):
        source = RustTokenizer.from_file(str(tokenizer_json))
        vocabulary = source.get_vocab()
    for token, i in vocabulary.items():
        if ours.id_of(token) != i:
            raise TokenizerError(
                f"{ours.name}: token {token!r} has id {ours.id_of(token)}; in {tokenizer_json} it has {i}"
            )
    for text in proof_corpus() if corpus is None else corpus:
        expected = source.encode(text, add_special_tokens=False).ids
        found = ours.tokenize(text, bos=False, parse_special=True)
        if found != expected:
            raise TokenizerError(f"{ours.name}: {_first_difference(ours, found, expected)} in {tokenizer_json}")
        if ours.detokenize(found, special=True) != text:
            raise TokenizerError(f"{ours.name}: the ids of {text[:60]!a} do not give the text back")


def _first_difference(ours: Tokenizer, found: list[int], expected: list[int]) -> str:
    n_same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(found, expected)))
    before = ours.detokenize(found[:n_same], special=True)[-30:]
    here = ours.detokenize(found[n_same : n_same + 6], special=True)
    return f"after {before!a}, {here!a} has ids {found[n_same : n_same + 6]}, but {expected[n_same : n_same + 6]}"
