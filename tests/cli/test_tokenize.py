"""`localcoder tokenize`, on the tiny model whose tokens are single bytes."""

from __future__ import annotations

import json

import gguf
import pytest

TEXT = "aé\r\n\t<|EOT|>"
BOS, EOT = 256, 264


@pytest.fixture(scope="module")
def byte_ids(tmp_path_factory):
    """Bytes to ids, by the order in which the tiny model's writer numbers them."""
    return lambda text: list(text.encode())


def test_ids(cli, model, byte_ids):
    result = cli("tokenize", "-m", model, "--ids", TEXT)
    assert (result.code, result.err) == (0, "")
    assert result.out == " ".join(map(str, [BOS, *byte_ids(TEXT)])) + "\n"


def test_bos_and_special_tokens_as_asked(cli, model, byte_ids):
    result = cli("tokenize", "-m", model, "--ids", "--no-bos", "--special", TEXT)
    assert [int(i) for i in result.out.split()] == [*byte_ids("aé\r\n\t"), EOT]


def test_a_line_for_each_token(cli, model):
    result = cli("tokenize", "-m", model, "--special", "é\n'<|EOT|>")
    lines = [line.split(maxsplit=1) for line in result.out.splitlines()]
    assert lines == [
        ["256", "<｜begin▁of▁sentence｜>"],
        ["195", r"b'\xc3'"],
        ["169", r"b'\xa9'"],
        ["10", r"'\n'"],
        ["39", '"\'"'],
        ["264", "<|EOT|>"],
    ]


def test_json(cli, model, byte_ids):
    answer = json.loads(cli("tokenize", "-m", model, "--json", "hé").out)
    ids = [BOS, *byte_ids("hé")]
    assert answer == {"ids": ids, "pieces": ["<｜begin▁of▁sentence｜>", "h", "\ufffd", "\ufffd"], "n_tokens": len(ids)}


def test_text_from_a_file(cli, model, byte_ids, tmp_path):
    path = tmp_path / "text"
    path.write_bytes(TEXT.encode())
    assert cli("tokenize", "-m", model, "--no-bos", "--ids", "--file", path).out.split() == [
        str(i) for i in byte_ids(TEXT)
    ]


@pytest.mark.parametrize("words", [[], ["-"]])
def test_there_and_back_through_pipes(start, model, words):
    ids, err = start("tokenize", "-m", model, "--ids", *words).communicate(TEXT.encode())
    assert err == b""
    text, err = start("tokenize", "-m", model, "--decode", *words).communicate(ids)
    assert (text, err) == (TEXT.encode(), b"")


def test_decode(cli, model):
    assert cli("tokenize", "-m", model, "--decode", "[256, 97, 264]").out == "a"
    assert cli("tokenize", "-m", model, "--decode", "--special", "97,264 98").out == "a<|EOT|>b"
    assert json.loads(cli("tokenize", "-m", model, "--decode", "--json", "97 195").out) == {
        "ids": [97, 195],
        "text": "a\ufffd",
        "n_tokens": 2,
    }


def test_the_model_may_come_from_the_environment(cli, model, monkeypatch):
    monkeypatch.setenv("LOCALCODER_MODEL", str(model))
    assert cli("tokenize", "--ids", "a").out == "256 97\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--decode", "12 x"], "'x' is not a token id"),
        (["--decode", "-1"], "No such option"),
        (["--decode", "9" * 5000], "is not a token id"),
        (["--decode", "320"], "no token 320: the vocabulary has 320"),
        (["--ids", "--json", "a"], "--ids excludes --json"),
        (["--file", "f", "a"], "exclude each other"),
        (["--file", "missing"], "missing: no such file"),
        (["a\udc80"], "half a surrogate pair"),
    ],
)
def test_errors_are_one_line(cli, model, arguments, message):
    result = cli("tokenize", "-m", model, *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert result.err.count("\n") == 1


def test_input_that_is_not_utf8(start, model):
    out, err = start("tokenize", "-m", model).communicate(b"ab\xff")
    assert (out, err) == (b"", b"localcoder: error: stdin: not UTF-8 text (byte 0xff at 2)\n")


def test_what_is_assumed_is_said(cli, tmp_path):
    from tiny_model import SPECIAL_TOKENS, byte_alphabet

    writer = gguf.GGUFWriter(tmp_path / "old.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(byte_alphabet() + SPECIAL_TOKENS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    result = cli("tokenize", "-m", tmp_path / "old.gguf", "--ids", "a")
    assert result.out == "256 97\n"
    (line,) = result.err.splitlines()
    for assumed in (
        "no token types in the file",
        "no pre-tokenizer named in the file",
        "not said in the file whether text starts with BOS",
    ):
        assert assumed in line
