"""--regex, --json-schema and --grammar."""

from __future__ import annotations

import json
import re

import pytest
from tiny_model import write_tiny_model

pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", scale=3.0, n_ctx=1024)


def test_the_text_is_what_was_asked_for(cli, model, tmp_path):
    result = cli("run", model, "x", "--regex", r"[a-z]{4}-\d")
    assert (result.code, result.err) == (0, "")
    assert re.fullmatch(r"[a-z]{4}-\d", result.out)
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}))
    found = json.loads(cli("run", model, "x", "--json-schema", schema, "--temperature", 1).out)
    assert [type(value) for value in found] == [bool, bool]
    grammar = tmp_path / "answer.gbnf"
    grammar.write_text('\ufeffroot ::= "yes" | "no"\n', encoding="utf-8")
    assert cli("run", model, "x", "--grammar", grammar).out in ("yes", "no")
    assert json.loads(cli("run", model, "x", "--grammar", grammar, "--json").out)["finish_reason"] == "stop"


def test_a_completion_in_a_file_takes_it_too(cli, tmp_path):
    source = tmp_path / "area.py"
    source.write_text("def area(r):\n    return \n")
    result = cli("complete", f"{source}:2", "--regex", r"r \* \d\.\d\d", "--write")
    assert result.code == 0
    assert re.fullmatch(r"def area\(r\):\n    return ?r \* \d\.\d\d\n", source.read_text())


@pytest.mark.parametrize(
    ("option", "content", "found"),
    [
        ("--grammar", b'root ::= "a"\nroot ::= b', "line 2, column 1: the rule root is there already"),
        ("--grammar", b"root ::= [a", "line 1, column 10: ] is missing for what begins"),
        ("--grammar", b"", "line 1, column 1: there is no rule root"),
        ("--grammar", b"\xff", "not UTF-8 text (byte 0xff at 0)"),
        ("--grammar", b" " * ((1 << 20) + 1), "is longer than 1048576 bytes"),
        ("--json-schema", b'{\n "a" 1}', "line 2, column 6: Expecting ':' delimiter"),
        ("--json-schema", b'{"items": {"type": "strin"}}', "#/items: Invalid type: strin"),
        ("--json-schema", b"", "line 1, column 1: Expecting value"),
    ],
)
def test_a_wrong_file_is_named_with_what_was_found(cli, model, tmp_path, option, content, found):
    path = tmp_path / "wrong"
    path.write_bytes(content)
    result = cli("run", model, "x", option, path)
    assert (result.code, result.out) == (2, "")
    assert f"{path}: {found}" in result.err
    assert result.err.count("\n") == 1


def test_other_mistakes(cli, model, tmp_path):
    missing = cli("run", model, "x", "--grammar", tmp_path / "missing.gbnf")
    assert missing.code == 2
    assert "missing.gbnf" in missing.err
    assert cli("run", model, "x", "--json-schema", tmp_path).code == 2
    wrong = cli("run", model, "x", "--regex", "a(b")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    assert "regex: character 2: unclosed group" in wrong.err
    grammar = tmp_path / "a.gbnf"
    grammar.write_text('root ::= "a"')
    both = cli("run", model, "x", "--regex", "a", "--grammar", grammar)
    assert both.code == 2
    assert "regex and grammar exclude each other" in both.err


def test_syntax(cli, tmp_path):
    result = cli(
        "run", "def f(x):", "--syntax", "python", "--temperature", 1, "--top-k", 0, "--max-tokens", 40, "--seed", 3
    )
    assert (result.code, result.err) == (0, "")
    wrong = cli("run", "x = = 1", "--syntax", "python")
    assert (wrong.code, wrong.out, wrong.err.count("\n")) == (2, "", 1)
    assert "syntax: the text is no beginning of a Python file: line 1, column 5" in wrong.err
    assert "'ruby' is not 'python'" in cli("run", "x", "--syntax", "ruby").err
    assert "regex and syntax exclude each other" in cli("run", "x", "--syntax", "python", "--regex", "a").err
    source = tmp_path / "area.py"
    source.write_bytes(b"def area(r):\r\n    return \r\n\r\nprint(area(1))\r\n")
    done = cli("complete", f"{source}:2", "--syntax", "python", "--max-tokens", 30)
    assert (done.code, done.err) == (0, "")
    again = cli(
        "run", f"def area(r):\n    return {done.out}", "--syntax", "python", "--max-tokens", 1
    )  # a beginning, too
    assert (again.code, again.err) == (0, "")
