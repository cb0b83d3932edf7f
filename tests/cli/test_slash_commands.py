"""The commands of the prompt, on a real model without a terminal."""

from __future__ import annotations

import json
import os

import pytest

from localcoder.cli.terminal.commands import COMMANDS, Desk, run_command
from localcoder.cli.terminal.conversation import Conversation
from localcoder.coder import Coder
from localcoder.errors import ContextLengthError, LocalcoderError


@pytest.fixture
def desk(tmp_path_factory):
    from tiny_model import write_tiny_model

    from localcoder.tokenizer.chat_template import FAMILY_TEMPLATE

    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_model(path, name="tiny-instruct", chat_template=FAMILY_TEMPLATE, n_ctx=1024, scale=3.0)
    with Coder(path) as coder:
        yield Desk(coder, Conversation(coder, is_chat=True, system=None, options={"max_tokens": 6}))


def ask(desk: Desk, text: str) -> str:
    answer = "".join(desk.conversation.ask(text))
    desk.conversation.settle()
    return answer


def test_the_answers_are_those_of_the_api(desk):
    first = ask(desk, "one")
    assert first == desk.coder.chat("one", max_tokens=6)
    told = [{"role": "user", "content": "one"}, {"role": "assistant", "content": first}]
    assert ask(desk, "two") == desk.coder.chat([*told, {"role": "user", "content": "two"}], max_tokens=6)


def test_undo_and_retry(desk):
    ask(desk, "one")
    before = list(desk.conversation.messages)
    ask(desk, "two")
    run_command(desk, "/undo")
    assert desk.conversation.messages == before
    run_command(desk, "/retry")
    assert (desk.question, desk.conversation.messages) == ("one", [])


def test_files_go_with_the_next_message(desk, tmp_path):
    (tmp_path / "a.py").write_bytes(b"x = 1\r\ny = 2")
    run_command(desk, f"/file {tmp_path / 'a.py'}")
    ask(desk, "what?")
    question = desk.conversation.messages[0]["content"]
    assert question == f"{tmp_path / 'a.py'}:\n```\nx = 1\ny = 2\n```\n\nwhat?"
    ask(desk, "and now?")
    assert desk.conversation.messages[2]["content"] == "and now?"


def test_system(desk):
    without = ask(desk, "one")
    run_command(desk, "/clear")
    run_command(desk, "/system Be brief.")
    assert ask(desk, "one") == desk.coder.chat("one", system="Be brief.", max_tokens=6) != without


def test_set(desk, capsys):
    run_command(desk, "/set temperature 0.5")
    run_command(desk, "/set stop a\\nb")
    run_command(desk, "/set speculate off")
    run_command(desk, "/set seed 3")
    run_command(desk, "/set syntax python")
    expected = {
        "max_tokens": 6,
        "temperature": 0.5,
        "stop": ["a\nb"],
        "speculate": False,
        "seed": 3,
        "syntax": "python",
    }
    assert desk.conversation.options == expected
    capsys.readouterr()
    run_command(desk, "/set")
    assert "temperature = 0.5\n" in capsys.readouterr().err
    for key in ("temperature", "stop", "speculate", "seed", "syntax"):
        run_command(desk, f"/set {key}")
    assert desk.conversation.options == {"max_tokens": 6}


def test_stats(desk, capsys):
    ask(desk, "one")
    run_command(desk, "/stats")
    shown = capsys.readouterr().err
    assert "6 tokens at" in shown
    assert f"{desk.conversation.n_positions} of 1024 positions" in shown


def test_save_and_load(desk, tmp_path):
    desk.conversation.system = "Ω"
    ask(desk, "one")
    path = tmp_path / "talk.json"
    run_command(desk, f"/save {path}")
    told = list(desk.conversation.messages)
    run_command(desk, "/clear")
    desk.conversation.system = None
    run_command(desk, f"/load {path}")
    assert (desk.conversation.messages, desk.conversation.system) == (told, "Ω")


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.update(messages=None),
        lambda saved: saved.update(system=1),
        lambda saved: saved["messages"].pop(),
        lambda saved: saved["messages"].reverse(),
        lambda saved: saved["messages"][0].update(content=1),
        lambda saved: saved["messages"][0].update(more="x"),
        lambda saved: saved["messages"][0].update(role="system"),
    ],
)
def test_a_file_that_is_no_conversation(desk, tmp_path, damage):
    path = tmp_path / "talk.json"
    saved = {"system": None, "messages": [{"role": r, "content": "x"} for r in ("user", "assistant")]}
    damage(saved)
    path.write_text(json.dumps(saved))
    ask(desk, "one")
    before = list(desk.conversation.messages)
    with pytest.raises(LocalcoderError, match="is no conversation"):
        run_command(desk, f"/load {path}")
    assert desk.conversation.messages == before


@pytest.mark.skipif(os.name != "posix", reason="a program that is a script")
def test_copy(desk, tmp_path, monkeypatch):
    program = tmp_path / "pbcopy"
    program.write_text(f"#!/bin/sh\n/bin/cat > {tmp_path}/clipboard\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = ask(desk, "one")
    run_command(desk, "/copy")
    assert (tmp_path / "clipboard").read_text() == answer


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nonsense", "unknown command /nonsense"),
        ("/", "unknown command /"),
        ("/undo", "nothing was said"),
        ("/retry", "nothing was said"),
        ("/stats", "no answer yet"),
        ("/copy", "no answer yet"),
        ("/clear now", "/clear takes nothing after it"),
        ("/file", "a path is expected"),
        ("/save", "a path is expected"),
        ("/load", "a path is expected"),
        ("/file missing.py", "missing.py: no such file"),
        ("/file .", "directory"),
        ("/load missing.json", "missing.json"),
        ("/set nonsense 1", "unknown option 'nonsense'"),
        ("/set temperature hot", "expected a number"),
        ("/set temperature -1", "expected a number from 0"),
        ("/set speculate maybe", "expected on or off"),
        ("/set samplers nonsense", "expected some of"),
        ("/set syntax ruby", "expected python"),
    ],
)
def test_mistakes(desk, line, message):
    with pytest.raises(LocalcoderError, match=message.replace("[", r"\[")):
        run_command(desk, line)


def test_a_question_that_does_not_fit_is_forgotten(desk):
    ask(desk, "one")
    before = list(desk.conversation.messages)
    with pytest.raises(ContextLengthError):
        ask(desk, "x" * 2000)
    desk.conversation.settle()
    assert desk.conversation.messages == before


def test_files_that_do_not_fit_are_forgotten(desk, tmp_path):
    (tmp_path / "a.py").write_text("x" * 2000)
    run_command(desk, f"/file {tmp_path / 'a.py'}")
    with pytest.raises(ContextLengthError):
        ask(desk, "one")
    desk.conversation.settle()
    assert ask(desk, "one") == desk.coder.chat("one", max_tokens=6)


def test_help_names_every_command(desk, capsys):
    run_command(desk, "/help")
    shown = capsys.readouterr().err
    for name in COMMANDS:
        assert f"/{name}" in shown
    run_command(desk, "/exit")
    assert desk.is_over


def test_a_model_that_completes(desk):
    conversation = Conversation(desk.coder, is_chat=False, system=None, options={"max_tokens": 6})
    assert "".join(conversation.ask("ab")) == desk.coder.complete("ab", max_tokens=6)
    conversation.settle()
    with pytest.raises(LocalcoderError, match="completes text"):
        run_command(Desk(desk.coder, conversation), "/system x")
