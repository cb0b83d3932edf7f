"""`localcoder run` in a pipe, on a terminal, and interrupted."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import pytest

from localcoder import Coder
from localcoder.files.gguf_reader import GGUFFile
from localcoder.tokenizer.tokenizer import Tokenizer

PROMPT = "def f(x):\n    return "
posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and terminals")


@pytest.fixture
def expected(model) -> str:
    with Coder(model) as coder:
        return coder.complete(PROMPT, max_tokens=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", scale=3.0, n_ctx=4096)


@pytest.mark.parametrize("order", [["MODEL", "PROMPT"], ["-m", "MODEL", "PROMPT"]])
def test_stdout_holds_the_completion_and_nothing_else(cli, model, expected, order):
    words = {"MODEL": model, "PROMPT": PROMPT}
    result = cli("run", *(words.get(w, w) for w in order), "--max-tokens", 12)
    assert (result.code, result.out, result.err) == (0, expected, "")


def test_the_model_may_come_from_the_environment(cli, model, expected, monkeypatch):
    monkeypatch.setenv("LOCALCODER_MODEL", str(model))
    assert cli("run", PROMPT, "--max-tokens", 12).out == expected
    monkeypatch.setenv("LOCALCODER_MODEL", "missing.gguf")
    assert cli("run", model, PROMPT, "--max-tokens", 12).out == expected


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("words", [[], ["-"]])
def test_a_prompt_from_a_pipe(start, model, expected, end, words):
    process = start("run", model, *words, "--max-tokens", 12)
    out, err = process.communicate((PROMPT + end).encode())
    assert (process.returncode, out.decode(), err) == (0, expected, b"")


@pytest.mark.parametrize(
    ("data", "message"), [(b"", b"the prompt is empty"), (b"ab\xff", b"stdin: not UTF-8 text (byte 0xff at 2)")]
)
def test_a_bad_prompt_from_a_pipe(start, model, data, message):
    process = start("run", model)
    out, err = process.communicate(data)
    assert (process.returncode, out) == (2, b"")
    assert message in err
    assert err.count(b"\n") == 1


def test_json(cli, model, expected):
    result = cli("run", model, PROMPT, "--max-tokens", 12, "--json", "--temperature", 0)
    answer = json.loads(result.out)
    assert answer["text"] == expected
    assert answer["finish_reason"] == "length"
    assert answer["n_tokens"] == 12
    assert answer["n_prompt_tokens"] == 1 + len(PROMPT)
    assert set(answer["timings"]) == {"n_prefill", "prefill_tps", "decode_tps", "first_token_s", "total_s"}
    again = cli("run", model, PROMPT, "--json", "--temperature", 2, "--max-tokens", 12)
    seed = json.loads(again.out)["seed"]
    repeated = cli("run", model, PROMPT, "--temperature", 2, "--max-tokens", 12, "--seed", seed)
    assert repeated.out == json.loads(again.out)["text"]


def test_stop_strings(cli, model, expected):
    stop = expected[4:6]
    result = cli("run", model, PROMPT, "--max-tokens", 12, "--stop", "never", "--stop", stop)
    assert result.out == expected[: expected.index(stop)]


def test_notes_go_to_stderr(cli, model, expected):
    result = cli("run", model, PROMPT, "--max-tokens", 12, "--n-ctx", 5000)
    assert result.out == expected
    assert result.err == (
        "localcoder: note: tiny.gguf: n_ctx 5000 is beyond the 4096 positions the model was trained for\n"
    )


def test_a_full_context_is_said(cli, model):
    full = cli("run", model, PROMPT, "--n-ctx", 30, "--max-tokens", 100, "--temperature", 1, "--seed", 1)
    assert full.err == (
        "localcoder: note: the text ends because the context of 30 positions is full: "
        "raise --n-ctx, or forget the oldest text with --on-overflow shift\n"
    )
    assert cli("run", model, PROMPT, "--n-ctx", 300, "--max-tokens", 3).err == ""


def endless(model, *more: object) -> list[object]:
    sampling = ["--temperature", 9, "--top-k", 0, "--top-p", 1]
    ends = Tokenizer.from_gguf(GGUFFile.open(model)).stop_ids
    biases = [word for token in ends for word in ("--logit-bias", f"{token}=-1000")]
    return ["run", model, PROMPT, "--max-tokens", 4000, *sampling, *biases, *more]


@posix_only
def test_ctrl_c_ends_it_cleanly(start, model):
    process = start(*endless(model))
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    (first + out).decode()  # no half character
    assert b"Traceback" not in err
    assert err.strip() == b""


@posix_only
def test_ctrl_c_before_the_first_token(start, model):
    process = start("run", model)  # waits for a prompt on stdin
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_a_reader_that_goes_away(start, model):
    process = start(*endless(model))
    process.stdin.close()
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(30) != 0
    assert err == b""
    process.stderr.close()


class Terminal:
    """A pseudo-terminal that can do nothing but print lines, with `localcoder run` in it."""

    def __init__(self, start, *args, **options) -> None:
        import pty

        self._ours, theirs = pty.openpty()
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs, **options}
        streams["env"] = {**os.environ, "TERM": "dumb"}
        self.process = start(*args, start_new_session=True, preexec_fn=_take_terminal, **streams)
        os.close(theirs)
        self.seen = ""

    def read_until(self, text: str, timeout: float = 30) -> str:
        """What appears up to `text`; fails if it does not come."""
        import select

        seen = ""
        deadline = time.monotonic() + timeout
        while text not in seen:
            ready, _, _ = select.select([self._ours], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"waited for {text!r}, saw {seen!r}"
            piece = self._read()
            assert piece, f"waited for {text!r}, saw {seen!r}"
            seen += piece
            self.seen += piece
        return seen

    def read_to_end(self) -> str:
        """What appears until the process is gone."""
        return "".join(iter(self._read, ""))

    def _read(self) -> str:
        try:
            return os.read(self._ours, 1 << 16).decode(errors="replace")
        except OSError:  # on Linux the end of a terminal is an error
            return ""

    def press_ctrl_c_until(self, text: str) -> None:
        """Again each second: a signal just before the process begins to wait for a key is seen at the next one only."""
        for _ in range(30):
            time.sleep(0.3)
            self.type("\x03")
            try:
                self.read_until(text, timeout=1)
            except AssertionError:
                continue
            return
        raise AssertionError(f"Ctrl-C did not lead to {text!r}; saw {self.seen!r}")

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> int:
        code = self.process.wait(30)
        os.close(self._ours)
        return code


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C typed into it is a signal


@posix_only
def test_the_prompt_loop(start, model, expected):
    terminal = Terminal(start, "run", model, "--max-tokens", 12, "--temperature", 1, "--seed", 5)
    assert "tiny.gguf" in terminal.read_until("> ")
    with Coder(model) as coder:
        answer = coder.complete("abc", max_tokens=12, temperature=1, seed=5)
    terminal.type("abc\n")
    shown = terminal.read_until("\n> ")
    printable = max("".join(c if " " <= c < "\x7f" else "\n" for c in answer).split("\n"), key=len)
    assert printable in shown
    terminal.type("\x04")
    assert terminal.end() == 0


@posix_only
@pytest.mark.parametrize("end", ["\x04", "/exit\n"])
def test_ctrl_c_stops_an_answer_and_keeps_the_loop(start, model, end):
    terminal = Terminal(start, *[a for a in endless(model) if a != PROMPT])
    terminal.read_until("> ")
    terminal.type("abc\n")
    terminal.read_until("abc\r\n")
    terminal.press_ctrl_c_until("\n> ")
    terminal.press_ctrl_c_until("> ")  # at the prompt: a new prompt
    time.sleep(0.5)
    terminal.type(end)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.seen


@posix_only
def test_an_error_keeps_the_loop(start, model):
    terminal = Terminal(start, "run", model, "--n-ctx", 16, "--max-tokens", 2)
    terminal.read_until("> ")
    terminal.type("a" * 40 + "\n")
    assert "41 tokens do not fit" in terminal.read_until("\n> ")
    terminal.type("\x04")
    assert terminal.end() == 0


@posix_only
def test_a_terminal_for_the_prompts_and_a_file_for_the_answers(start, model, tmp_path):
    with open(tmp_path / "out.txt", "wb") as out:
        terminal = Terminal(start, "run", model, "--max-tokens", 5, stdout=out)
        terminal.read_until("> ")
        terminal.type("abc\n")
        terminal.read_until("> ")
        terminal.type("\x04")
        assert terminal.end() == 0
    with Coder(model) as coder:
        assert (tmp_path / "out.txt").read_text(encoding="utf-8") == coder.complete("abc", max_tokens=5)


@posix_only
def test_control_characters_do_not_reach_a_terminal(start, model):
    terminal = Terminal(start, *endless(model, "--seed", 1, "--max-tokens", 300))
    shown = terminal.read_to_end()
    with Coder(model) as coder:
        text = coder.complete(PROMPT, max_tokens=300, temperature=9, top_k=0, top_p=1, seed=1)
    controls = {c for c in text if c < " " and c not in "\n\t"}
    assert controls
    assert not controls & set(shown.replace("\r\n", "\n"))
    assert terminal.end() == 0


def test_stdout_is_utf8_whatever_the_locale(start, model):
    env = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = start(*endless(model, "--seed", 1, "--max-tokens", 50), env=env)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")
    assert not out.decode().isascii()


def test_without_a_model_the_embedded_one_answers(start):
    process = start("run", "--max-tokens", 8)
    out, err = process.communicate(b"import os\nimport s")
    with Coder() as coder:
        expected = coder.complete("import os\nimport s", max_tokens=8, repeat_penalty=1.2)
    assert (process.returncode, out.decode(), err) == (0, expected, b"")


def test_an_instruct_model_answers(cli, tmp_path):
    from tiny_model import write_tiny_model

    from localcoder.tokenizer.chat_template import FAMILY_TEMPLATE

    path = write_tiny_model(
        tmp_path / "tiny.gguf", name="tiny-instruct", chat_template=FAMILY_TEMPLATE, scale=3.0, n_ctx=600
    )
    with Coder(path) as coder:
        answer = coder.chat("Sort.", max_tokens=8)
        brief = coder.chat("Sort.", system="Be brief.", max_tokens=8)
        completion = coder.complete("Sort.", max_tokens=8)
    assert len({answer, brief, completion}) == 3
    for words, expected in (([], answer), (["--system", "Be brief."], brief), (["--no-chat"], completion)):
        result = cli("run", path, "Sort.", "--max-tokens", 8, *words)
        assert (result.code, result.out, result.err) == (0, expected, "")


def test_the_demonstration_model_does_not_repeat_one_line_for_ever(cli, monkeypatch):
    monkeypatch.delenv("LOCALCODER_BACKEND")  # numpy is slow
    prompt = "def fibonacci(n):"
    with Coder() as coder:
        plain, penalized = (coder.complete(prompt, max_tokens=120, repeat_penalty=penalty) for penalty in (1.0, 1.2))
    arguments = ["run", prompt, "--max-tokens", 120]
    assert cli(*arguments).out == penalized
    assert cli(*arguments, "--repeat-penalty", 1).out == plain
    lines = [line for line in penalized.splitlines() if line.strip()]
    assert len(lines) > 3
    assert max(map(lines.count, lines)) <= 2
