"""The adapters for LangChain, driven through LangChain."""

from __future__ import annotations

import asyncio
import doctest

import pytest
from tiny_model import write_tiny_model

from localcoder import Coder
from localcoder.errors import FileError, OptionError

core = pytest.importorskip("langchain_core")

from langchain_core.callbacks import BaseCallbackHandler  # noqa: E402
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage  # noqa: E402
from langchain_core.output_parsers import StrOutputParser  # noqa: E402
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate  # noqa: E402
from pydantic import ValidationError  # noqa: E402

import localcoder.compat.langchain as adapters  # noqa: E402
from localcoder.compat.langchain import ChatLocalcoder, LocalcoderLLM  # noqa: E402

PROMPT = "def add(a, b):"
MESSAGES = [SystemMessage("Be brief."), HumanMessage("one"), AIMessage("two"), HumanMessage("three")]
TOLD = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]


@pytest.fixture(scope="module")
def coder():
    with Coder() as coder:
        yield coder


@pytest.fixture
def llm(coder):
    return LocalcoderLLM(coder=coder, max_tokens=12)


@pytest.fixture
def chat(coder):
    return ChatLocalcoder(coder=coder, max_tokens=12)


class Heard(BaseCallbackHandler):
    def __init__(self):
        self.tokens = []

    def on_llm_new_token(self, token, **_):
        self.tokens.append(token)


def test_examples():
    failed, tried = doctest.testmod(adapters)
    assert tried >= 6
    assert not failed


def test_completions(coder, llm):
    expected = coder.complete(PROMPT, max_tokens=12)
    assert llm.invoke(PROMPT) == expected
    assert llm.invoke(PROMPT, stop=[" "]) == expected.split(" ")[0]
    assert llm.invoke(PROMPT, max_tokens=2) == coder.complete(PROMPT, max_tokens=2)
    assert llm.batch([PROMPT, "import "]) == [expected, coder.complete("import ", max_tokens=12)]
    assert asyncio.run(llm.ainvoke(PROMPT)) == expected
    result = llm.generate([PROMPT, "import "])
    assert result.generations[0][0].generation_info["finish_reason"] == "length"
    assert result.llm_output["token_usage"]["completion_tokens"] == 24


def test_completions_in_pieces(coder, llm):
    heard = Heard()
    pieces = list(llm.stream(PROMPT, config={"callbacks": [heard]}))
    assert "".join(pieces) == coder.complete(PROMPT, max_tokens=12)
    assert len(pieces) > 2
    assert heard.tokens == [piece for piece in pieces if piece]

    async def main():
        return [piece async for piece in llm.astream(PROMPT)]

    assert asyncio.run(main()) == pieces


def test_chains(coder, llm, chat):
    chain = PromptTemplate.from_template("def {name}(a, b):") | llm | StrOutputParser()
    assert chain.invoke({"name": "add"}) == coder.complete(PROMPT, max_tokens=12)
    chain = ChatPromptTemplate([("system", "Be {how}."), ("human", "{what}")]) | chat | StrOutputParser()
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]
    assert chain.invoke({"how": "brief", "what": "x"}) == coder.chat(told, max_tokens=12)


def test_answers(coder, chat):
    expected = coder.chat(TOLD, max_tokens=12)
    answer = chat.invoke(MESSAGES)
    assert answer.content == expected
    assert answer.response_metadata["finish_reason"] in ("length", "stop")
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert asyncio.run(chat.ainvoke(MESSAGES)).content == expected
    parts = [HumanMessage([{"type": "text", "text": "one"}, " more"])]
    assert chat.invoke(parts).content == coder.chat("one more", max_tokens=12)


def test_answers_in_pieces(coder, chat):
    heard = Heard()
    chunks = list(chat.stream(MESSAGES, config={"callbacks": [heard]}))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.content == coder.chat(TOLD, max_tokens=12) == "".join(heard.tokens)
    assert whole.usage_metadata["output_tokens"] <= 12
    assert whole.response_metadata["finish_reason"] in ("length", "stop")

    async def main():
        return [chunk.content async for chunk in chat.astream(MESSAGES)]

    assert "".join(asyncio.run(main())) == whole.content


def test_what_is_not_text_is_refused(chat):
    with pytest.raises(OptionError, match="type 'tool'"):
        chat.invoke([ToolMessage("x", tool_call_id="1"), HumanMessage("y")])
    with pytest.raises(OptionError, match="reads text only"):
        chat.invoke([HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])])


def test_unknown_arguments_are_errors(llm):
    with pytest.raises(ValidationError, match="temprature"):
        LocalcoderLLM(temprature=1)
    with pytest.raises(OptionError, match="unknown option topp"):
        llm.invoke(PROMPT, topp=1)
    with pytest.raises(ValidationError, match="either a coder, or a model"):
        LocalcoderLLM(coder=llm.coder, model="x")


def test_opening_a_model(tmp_path, monkeypatch):
    path = write_tiny_model(tmp_path / "tiny.gguf")
    llm = LocalcoderLLM(model=str(path), coder_options={"n_ctx": 64}, options={"top_k": 3}, temperature=1, seed=2)
    assert llm.invoke("x", max_tokens=4) == llm.invoke("x", max_tokens=4)
    assert llm._identifying_params["top_k"] == 3
    assert llm.get_num_tokens("abc") == 3
    monkeypatch.setenv("LOCALCODER_HOME", str(tmp_path / "home"))
    with pytest.raises(FileError, match="no such file"):
        ChatLocalcoder(model="nobody/nothing")
