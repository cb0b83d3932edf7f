"""Grammars, JSON mode and a chosen tool in the drop-in for llama-cpp-python; beside the real one where that is here."""

from __future__ import annotations

import json
import re

import pytest

import localcoder.compat.llama_cpp as ours
from localcoder.coder import embedded_model
from localcoder.compat.llama_cpp.llama_grammar import LlamaGrammar
from localcoder.errors import FileError, OptionError

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

ASK = [{"role": "user", "content": "Extract Jason is 25 years old"}]
DETAIL = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "UserDetail", "parameters": DETAIL}}]
CHOICE = {"type": "function", "function": {"name": "UserDetail"}}
DATE = 'root ::= year "-" month\nyear ::= [0-9]{4}\nmonth ::= "0" [1-9] | "1" [0-2]\n'


@pytest.fixture(scope="module")
def path():
    with embedded_model() as path:
        yield str(path)


@pytest.fixture(scope="module")
def llm(path):
    llm = ours.Llama(path, n_ctx=512, verbose=False)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def real(path):
    theirs = pytest.importorskip("llama_cpp")
    llm = theirs.Llama(path, n_ctx=512, verbose=False, n_threads=2)
    yield llm
    llm.close()


def shape(value):
    if isinstance(value, dict):
        return {key: shape(v) for key, v in value.items()}
    return [shape(v) for v in value] if isinstance(value, list) else type(value).__name__


def test_a_completion_of_a_grammar(llm, tmp_path):
    file = tmp_path / "date.gbnf"
    file.write_text(DATE)
    for grammar in (LlamaGrammar.from_string(DATE, verbose=False), LlamaGrammar.from_file(file)):
        choice = llm("date = ", grammar=grammar, max_tokens=20, seed=1)["choices"][0]
        assert re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", choice["text"])
        assert choice["finish_reason"] == "stop"
    tokens = list(llm.generate(llm.tokenize(b"date = "), grammar=LlamaGrammar.from_string(DATE)))
    assert re.fullmatch(rb"\d{4}-\d\d", llm.detokenize(tokens))
    pieces = llm("p = ", grammar=LlamaGrammar.from_json_schema(json.dumps(DETAIL)), max_tokens=200, stream=True, seed=1)
    jsonschema.validate(json.loads("".join(piece["choices"][0]["text"] for piece in pieces)), DETAIL)


def test_json_mode(llm):
    form = {"type": "json_object", "schema": DETAIL}
    for seed in range(3):
        answer = llm.create_chat_completion(ASK, response_format=form, temperature=0.9, seed=seed, max_tokens=200)
        jsonschema.validate(json.loads(answer["choices"][0]["message"]["content"]), DETAIL)
    free = llm.create_chat_completion(ASK, response_format={"type": "json_object"}, max_tokens=30)
    assert free["choices"][0]["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    "arguments",
    [
        {"tools": TOOLS, "tool_choice": CHOICE},
        {"functions": [TOOLS[0]["function"]], "function_call": {"name": "UserDetail"}},
    ],
)
def test_a_call_of_a_tool_has_the_shape_of_the_real_one(llm, real, arguments):
    options = {"max_tokens": 200, "temperature": 0.0, **arguments}
    mine, theirs = (of.create_chat_completion(ASK, **options) for of in (llm, real))
    assert shape(mine) == shape(theirs)
    choice = mine["choices"][0]
    assert choice["finish_reason"] == theirs["choices"][0]["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "UserDetail"
    jsonschema.validate(json.loads(call["function"]["arguments"]), DETAIL)
    mine, theirs = (list(of.create_chat_completion(ASK, **options, stream=True)) for of in (llm, real))
    for at in (0, 1, -2, -1):
        assert shape(mine[at]) == shape(theirs[at])
    deltas = [chunk["choices"][0]["delta"] for chunk in mine]
    written = "".join(delta["tool_calls"][0]["function"]["arguments"] for delta in deltas if delta["tool_calls"])
    assert written == call["function"]["arguments"]
    assert mine[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_the_format_for_calls_tells_the_model_of_the_function(path):
    llm = ours.Llama(path, chat_format="chatml-function-calling", n_ctx=1024, verbose=False)
    answer = llm.create_chat_completion(ASK, tools=TOOLS, tool_choice=CHOICE, max_tokens=200)
    plain = llm.create_chat_completion(ASK, max_tokens=1)
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    jsonschema.validate(json.loads(call["function"]["arguments"]), DETAIL)
    described = len(llm.tokenize(json.dumps(DETAIL).encode(), add_bos=False))
    assert answer["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + described - 8
    llm.close()


def test_a_call_that_is_cut_says_so_and_none_is_an_answer(llm):
    cut = llm.create_chat_completion(ASK, tools=TOOLS, tool_choice=CHOICE, max_tokens=2)
    assert cut["choices"][0]["finish_reason"] == "length"
    answer = llm.create_chat_completion(ASK, tools=TOOLS, tool_choice="none", max_tokens=2)
    assert isinstance(answer["choices"][0]["message"]["content"], str)


def test_greedy_texts_are_those_of_the_real_one(llm, real):
    theirs = pytest.importorskip("llama_cpp")
    for rules in (DATE, 'root ::= ("self." [a-z]+ " = " [a-z]+ "\\n"){3}', "root ::= [^aeiou]{12}"):
        options = {"temperature": 0.0, "max_tokens": 40, "repeat_penalty": 1.0}
        mine = llm("def f(self):\n    ", grammar=LlamaGrammar.from_string(rules), **options)
        expected = real("def f(self):\n    ", grammar=theirs.LlamaGrammar.from_string(rules, verbose=False), **options)
        assert mine["choices"][0]["text"] == expected["choices"][0]["text"]


def test_what_is_wrong_is_refused(llm, tmp_path):
    with pytest.raises(OptionError, match="grammar: line 1, column 10"):
        llm("x", grammar=LlamaGrammar.from_string('root ::= "a'))
    with pytest.raises(OptionError, match="exclude each other"):
        llm.create_chat_completion(ASK, tools=TOOLS, tool_choice=CHOICE, response_format={"type": "json_object"})
    (tmp_path / "wrong.gbnf").write_bytes(b"\xff")
    for name in ("wrong.gbnf", "missing.gbnf"):
        with pytest.raises(FileError, match=name):
            LlamaGrammar.from_file(tmp_path / name)
