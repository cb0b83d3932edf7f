"""`localcoder run` on a terminal, as somebody who sits before it sees it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

if os.name != "posix":
    pytest.skip("needs POSIX terminals", allow_module_level=True)
pytest.importorskip("pyte")

from terminal_screen import Terminal

ONLY_A = ("--logit-bias", f"{ord('a')}=1000")  # the answer is "aaaa…"
COLOUR = re.compile(rb"\x1b\[[0-9;]*3[0-9][0-9;]*m")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    from tiny_model import write_tiny_model

    from localcoder.tokenizer.chat_template import FAMILY_TEMPLATE

    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    return write_tiny_model(path, name="tiny-instruct", chat_template=FAMILY_TEMPLATE, n_ctx=2048)


@pytest.fixture
def terminal(start, model, tmp_path):
    """Starts a terminal; each has a home of its own."""

    def open_(*args: object, **env: str) -> Terminal:
        opened = Terminal(
            start, "run", model, "--max-tokens", "8", *ONLY_A, *args, **{"LOCALCODER_HOME": str(tmp_path), **env}
        )
        opened.wait_for_prompt()
        return opened

    return open_


def ask(terminal: Terminal, text: str) -> None:
    terminal.type(text + "\r")
    terminal.wait_for("> " + text.partition("\n")[0])
    terminal.wait_for_prompt()


def test_an_answer_and_the_status_line(terminal):
    shown = terminal()
    assert "tiny.gguf" in shown.text
    assert "context 0/2048 (0%)" in shown.text
    ask(shown, "hello")
    assert "\naaaaaaaa\n" in shown.text
    assert re.search(r"tiny\.gguf +\d+\.\d tokens/s +context \d+/2048 \(\d+%\)", shown.text)
    ask(shown, "")
    shown.type("\x04")
    assert shown.end() == 0


def test_a_paste_of_several_lines_and_a_conversation(terminal, tmp_path):
    shown = terminal()
    shown.type("\x1b[200~first\nsecond\x1b[201~")
    shown.wait_for("  second")
    shown.type("\x1b\rthird\r")  # Alt-Enter: one more line
    shown.wait_for("aaaaaaaa")
    shown.wait_for_prompt()
    ask(shown, "again")
    ask(shown, f"/save {tmp_path}/talk.json")
    saved = json.loads((tmp_path / "talk.json").read_text())
    said = [(message["role"], message["content"]) for message in saved["messages"]]
    answer = ("assistant", "aaaaaaaa")
    assert said == [("user", "first\nsecond\nthird"), answer, ("user", "again"), answer]
    ask(shown, "/clear")
    ask(shown, f"/load {tmp_path}/talk.json")
    assert "2 turns taken up" in shown.text
    ask(shown, "/undo")
    assert "1 turns are left" in shown.text
    shown.type("/exit\r")
    assert shown.end() == 0


def test_history_outlives_the_process(terminal, tmp_path):
    shown = terminal()
    ask(shown, "remember me")
    shown.type("\x04")
    assert shown.end() == 0
    assert (tmp_path / "history").stat().st_mode & 0o077 == 0
    shown = terminal()
    shown.type("\x1b[A")
    shown.wait_for("> remember me")
    shown.type("\r")
    shown.wait_for("aaaaaaaa")
    shown.wait_for_prompt()
    shown.type("\x04")
    assert shown.end() == 0


def test_tab_completes_commands_paths_and_options(terminal, tmp_path):
    (tmp_path / "unmistakable.py").write_text("x = 1\n")
    shown = terminal()
    shown.type("/sta\t")
    shown.wait_for("> /stats")
    shown.type("\x03")
    shown.wait_for_prompt()
    shown.type(f"/file {tmp_path}/unmis\t")
    shown.wait_for("unmistakable.py")
    shown.type("\r")
    shown.wait_for("sent with your next message")
    shown.wait_for_prompt()
    shown.type("/set temper\t")
    shown.wait_for("/set temperature")
    shown.type(" 0.5\r")
    shown.wait_for("temperature = 0.5")
    shown.wait_for_prompt()
    shown.type("\x04")
    assert shown.end() == 0


def test_ctrl_c_stops_an_answer_and_keeps_the_conversation(terminal, tmp_path):
    shown = terminal("--max-tokens", "1900")
    shown.type("hello\r")
    shown.wait_for("aaaa")
    shown.type("\x03")
    shown.wait_for_prompt()
    assert "Traceback" not in shown.text
    ask(shown, f"/save {tmp_path}/talk.json")
    question, answer = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert question["content"] == "hello"
    assert re.fullmatch("a{4,1899}", answer["content"])
    shown.type("half a prompt\x03")
    shown.wait_for_prompt()
    shown.type("\x04")
    assert shown.end() == 0


def test_an_error_keeps_the_loop(terminal):
    shown = terminal("--n-ctx", "100")
    shown.type("x" * 120 + "\r")
    shown.wait_for("error: the last message takes")
    shown.wait_for_prompt()
    ask(shown, "/nonsense")
    assert "unknown command /nonsense; /help lists them" in shown.text
    ask(shown, "/help")
    for command in ("/system [TEXT]", "/file PATH", "/set [KEY [VALUE]]", "/copy", "/exit"):
        assert command in shown.text
    shown.type("\x04")
    assert shown.end() == 0


def test_no_color(terminal):
    shown = terminal(NO_COLOR="1")
    ask(shown, "hello")
    assert "\naaaaaaaa\n" in shown.text
    assert not COLOUR.search(shown.seen)
    shown.type("\x04")
    assert shown.end() == 0


def test_plain_text_in_a_pipe(start, model):
    process = start("run", model, "--max-tokens", "8", *ONLY_A)
    out, err = process.communicate(b"hello")
    assert (process.returncode, out, err) == (0, b"aaaaaaaa", b"")
