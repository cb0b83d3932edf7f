"""`localcoder edit`, `explain`, `test` and `review`: what they ask, and what they make of the answer."""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import dataclass

import pytest

from localcoder.coder import Coder
from localcoder.session.generation import Completion, Timings

CODE = "import os\n\n\ndef area(r):\n    return 3 * r\n\n\nprint(area(2))\n"


@dataclass
class Answers:
    """Stands in for what a model that was tuned for instructions says; everything else is real."""

    text: str = ""
    finish_reason: str = "stop"
    prompt: str = ""
    options: dict | None = None

    def __iter__(self):
        yield from self.text

    @property
    def completion(self) -> Completion:
        return Completion(self.text, self.finish_reason, 1, len(self.text), 0, Timings(0, 0.0, 0.0, 0.0, 0.0))


@pytest.fixture
def answers(monkeypatch) -> Answers:
    said = Answers()

    def start_chat(self, messages, **options):
        said.prompt, said.options = messages, options
        return said

    monkeypatch.setattr(Coder, "start_chat", start_chat)
    return said


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "shapes.py"
    path.write_bytes(CODE.encode())
    return path


@pytest.fixture
def pipe(monkeypatch):
    """Sets what is on stdin."""

    def set_(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    set_(b"")
    return set_


@pytest.fixture
def model(tmp_path_factory):
    from tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", n_ctx=2048)


def block(code: str) -> str:
    return f"Here it is:\n```python\n{code}```\n"


def test_an_edit_with_yes(cli, model, file, answers, pipe):
    changed = CODE.replace("3 * r", "3.14 * r * r")
    answers.text = block(changed)
    result = cli("edit", "-m", model, file, "Use the right formula", "--yes")
    assert (result.code, result.err) == (0, "")
    assert file.read_text() == changed
    assert "\n-    return 3 * r\n+    return 3.14 * r * r\n" in result.out
    assert "Use the right formula" in answers.prompt
    assert f"```python\n{CODE}```" in answers.prompt
    assert answers.options["max_tokens"] > len(CODE)


def test_without_consent_nothing_is_written(cli, model, file, answers, pipe):
    answers.text = block("x = 1\n")
    result = cli("edit", "-m", model, file, "x")
    assert (result.code, "+x = 1" in result.out) == (0, True)
    assert result.err == "localcoder: note: nothing was written; --yes applies the change\n"
    assert file.read_text() == CODE


def test_json(cli, model, file, answers, pipe):
    answers.text = block(CODE.replace("area", "surface"))
    shown = json.loads(cli("edit", "-m", model, file, "x", "--json").out)
    assert (shown["applied"], shown["file"]) == (False, str(file))
    assert "+def surface(r):\n" in shown["diff"]
    assert json.loads(cli("edit", "-m", model, file, "x", "--json", "--yes").out)["applied"] is True
    assert "surface" in file.read_text()


def test_a_range_keeps_its_place_and_depth(cli, model, file, answers, pipe):
    answers.text = block("return 3.14 * r * r\n")
    assert cli("edit", "-m", model, f"{file}:5-5", "x", "--yes").code == 0
    assert file.read_text() == CODE.replace("3 * r", "3.14 * r * r")
    assert "import os" not in answers.prompt
    assert "lines 5 to 5" in answers.prompt


def test_line_ends_byte_order_mark_and_a_missing_last_one_stay(cli, model, file, answers, pipe):
    file.write_bytes(b"\xef\xbb\xbfa = 1\r\nb = 2\r\nc = 3")
    answers.text = block("a = 1\nb = 2\nc = 4\n")
    assert cli("edit", "-m", model, file, "x", "--yes").code == 0
    assert file.read_bytes() == b"\xef\xbb\xbfa = 1\r\nb = 2\r\nc = 4"


def test_nothing_to_change(cli, model, file, answers, pipe):
    answers.text = block(CODE)
    before = file.stat().st_mtime_ns
    result = cli("edit", "-m", model, file, "x", "--yes")
    assert (result.code, result.out, result.err) == (0, "", "localcoder: note: the model changes nothing\n")
    assert file.stat().st_mtime_ns == before


def test_a_file_that_changed_meanwhile_is_refused(cli, model, file, answers, pipe, monkeypatch):
    answers.text = block("x = 1\n")
    monkeypatch.setattr(Answers, "__iter__", lambda self: iter([file.write_text("mine\n") and ""]))
    result = cli("edit", "-m", model, file, "x", "--yes")
    assert (result.code, "changed while the model was writing" in result.err) == (2, True)
    assert file.read_text() == "mine\n"


@pytest.mark.parametrize(
    ("answer", "finish_reason", "message"),
    [
        ("I cannot.", "stop", "gave no complete code block"),
        ("```python\nx = 1\n", "stop", "gave no complete code block"),
        (block("x = 1\n"), "length", "was not complete after"),
    ],
)
def test_answers_that_are_no_edit(cli, model, file, answers, pipe, answer, finish_reason, message):
    answers.text, answers.finish_reason = answer, finish_reason
    result = cli("edit", "-m", model, file, "x", "--yes")
    assert (result.code, result.out, message in result.err) == (2, "", True)
    assert file.read_text() == CODE


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["edit", "-", "x"], "a file is expected"),
        (["edit", "FILE", " "], "WHAT is empty"),
        (["edit", "FILE:3-90", "x"], "no lines 3-90; it has 8"),
        (["edit", "FILE:5-4", "x"], "no lines 5-4"),
        (["edit", "FILE:0-4", "x"], "no lines 0-4"),
        (["edit", "FILE:2-3", "x"], "lines 2-3 are blank"),
        (["edit", "FILE", "x", "--n-ctx", 100], "do not fit in a context of 100"),
        (["explain", "FILE:9-9"], "no lines 9-9; it has 8"),
        (["review"], "the diff is empty"),
    ],
)
def test_mistakes(cli, model, file, answers, pipe, args, message):
    result = cli(args[0], "-m", model, *(str(arg).replace("FILE", str(file)) for arg in args[1:]))
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert message in result.err


def test_explain(cli, model, file, answers, pipe):
    answers.text = "It prints."
    result = cli("explain", "-m", model, f"{file}:4-5")
    assert (result.code, result.out, result.err) == (0, "It prints.", "")
    assert "def area(r):\n    return 3 * r\n```" in answers.prompt
    pipe(b"x = 1")
    assert cli("explain", "-m", model, "-").code == 0
    assert "from stdin" in answers.prompt


def test_tests(cli, model, file, answers, pipe, tmp_path):
    answers.text = block("def test_area():\n    pass\n")
    assert cli("test", "-m", model, file).out == "def test_area():\n    pass\n"
    out = tmp_path / "test_shapes.py"
    result = cli("test", "-m", model, file, "-o", out)
    assert (result.code, result.out) == (0, "")
    assert out.read_text() == "def test_area():\n    pass\n"
    assert "is the file that is being read" in cli("test", "-m", model, file, "-o", file).err
    assert "its folder does not exist" in cli("test", "-m", model, file, "-o", tmp_path / "no" / "t.py").err
    answers.text = "Sorry."
    result = cli("test", "-m", model, file)
    assert (result.code, result.out) == (0, "Sorry.\n")
    assert "no complete code block" in result.err


def test_review(cli, model, answers, pipe):
    diff = "--- a.py\n+++ a.py\n@@ -1 +1 @@\n-x = 1\n+x = 2\n"
    pipe(diff.encode())
    answers.text = "Fine."
    assert cli("review", "-m", model).out == "Fine."
    assert f"```diff\n{diff}```" in answers.prompt
    pipe(b"hello")
    assert "holds no diff" in cli("review", "-m", model).err


def test_a_users_own_prompt(cli, model, file, answers, pipe, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALCODER_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text('[prompts]\nexplain = "Erkläre: {code}"\n', encoding="utf-8")
    cli("explain", "-m", model, f"{file}:1-1")
    assert answers.prompt == "Erkläre: import os\n"


@pytest.mark.skipif(os.name != "posix", reason="file permissions")
def test_permissions_stay(cli, model, file, answers, pipe):
    file.chmod(0o755)
    answers.text = block("x = 1\n")
    cli("edit", "-m", model, file, "x", "--yes")
    assert file.stat().st_mode & 0o777 == 0o755
