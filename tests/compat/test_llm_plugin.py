"""Models of localcoder in the command-line tool `llm`, through its own command line and its Python API."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import write_tiny_model

from localcoder import Coder

llm = pytest.importorskip("llm")
pytest.importorskip("llm.parts")

PROMPT = "def add(a, b):"
INSTRUCT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n"
    "{% elif m.role == 'system' %}{{ m.content }}\n"
    "{% else %}### Response:\n{{ m.content }}\n<|EOT|>\n{% endif %}{% endfor %}### Response:\n"
)


@pytest.fixture(autouse=True)
def plugin(monkeypatch, tmp_path):
    """The plugin, registered with `llm` as the installed package would be, and a model folder."""
    from localcoder.compat import llm_plugin

    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    monkeypatch.setenv("LOCALCODER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LLM_RAISE_ERRORS", "1")
    folder = tmp_path / "home" / "models"
    folder.mkdir(parents=True)
    write_tiny_model(folder / "mine.gguf", n_ctx=1024)
    write_tiny_model(folder / "helper.gguf", n_ctx=1024, name="tiny-instruct", chat_template=INSTRUCT_TEMPLATE)
    llm.load_plugins()
    if not any(getattr(p, "__name__", "") == llm_plugin.__name__ for p in llm.pm.get_plugins()):
        llm.pm.register(llm_plugin)
    yield llm_plugin
    llm_plugin._open.cache_clear()


def run(*arguments: str) -> str:
    from click.testing import CliRunner
    from llm.cli import cli

    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_models_are_listed():
    listed = run("models", "list")
    assert re.search(r"^LocalcoderModel: localcoder$", listed, re.M)
    assert re.search(r"^LocalcoderModel: localcoder/mine$", listed, re.M)
    assert re.search(r"^LocalcoderModel: localcoder/helper$", listed, re.M)
    assert "localcoder" in run("embed-models", "list")
    assert "repeat_penalty" in run("models", "list", "--options", "-q", "localcoder")


@pytest.mark.parametrize("stream", [(), ("--no-stream",)])
def test_a_prompt_is_completed(stream):
    with Coder() as coder:
        expected = coder.complete(PROMPT, max_tokens=12)
    assert run("-m", "localcoder", PROMPT, "-o", "max_tokens", "12", *stream) == expected + "\n"
    (logged,) = json.loads(run("logs", "--json"))
    assert logged["response"] == expected
    assert logged["output_tokens"] == 12
    assert logged["response_json"]["finish_reason"] == "length"


def test_an_instruct_model_answers_with_the_conversation_in_view(tmp_path):
    model = llm.get_model("localcoder/helper")
    conversation = model.conversation()
    first = conversation.prompt("one", system="Be brief.", max_tokens=8)
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}]
    with Coder(tmp_path / "home" / "models" / "helper.gguf") as coder:
        assert coder.is_instruct
        assert first.text() == coder.chat(told, max_tokens=8)
        second = conversation.prompt("two", max_tokens=8)
        told += [{"role": "assistant", "content": first.text()}, {"role": "user", "content": "two"}]
        assert second.text() == coder.chat(told, max_tokens=8)
    assert second.usage().output <= 8


def test_a_base_model_takes_no_conversation():
    model = llm.get_model("localcoder/mine")
    with pytest.raises(ValueError, match="localcoder/mine is a base model"):
        model.prompt("x", system="y").text()


def test_wrong_options_are_errors():
    model = llm.get_model("localcoder")
    with pytest.raises(ValueError, match="top_p"):
        model.prompt("x", top_p=3).text()
    with pytest.raises(Exception, match="topp"):
        model.prompt("x", topp=3)


@pytest.mark.parametrize("stream", [True, False])
def test_asyncio(stream):
    async def main():
        model = llm.get_async_model("localcoder")
        response = model.prompt(PROMPT, stream=stream, max_tokens=12)
        return [piece async for piece in response]

    with Coder() as coder:
        assert "".join(asyncio.run(main())) == coder.complete(PROMPT, max_tokens=12)


def test_embeddings():
    model = llm.get_embedding_model("localcoder")
    with Coder() as coder:
        assert model.embed(PROMPT) == coder.embed(PROMPT).tolist()
        assert list(model.embed_multi(["a", "b"])) == coder.embed(["a", "b"]).tolist()


def test_the_entry_point_names_the_plugin(plugin):
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    (name,) = re.findall(r'\[project\.entry-points\.llm\]\nlocalcoder = "(.*)"', project)
    assert name == plugin.__name__


def test_listing_models_opens_none():
    heavy = {"numba", "tokenizers", "localcoder.coder"}
    code = f"import sys, localcoder.compat.llm_plugin; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
