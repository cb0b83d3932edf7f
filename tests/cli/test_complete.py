"""`localcoder complete`: what it prints, what it writes, and every kind of wrong file."""

from __future__ import annotations

import json
import re

import pytest
from tiny_model import write_tiny_model

from localcoder import Coder, InfillRequest

TEXT = "import os\n\n\ndef read(path):\n    return open(\n\n\nprint(read('x'))\n"
PLACE = "5:17"
OPTIONS = ("--max-tokens", 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", scale=3.0, n_ctx=512)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "code.py"
    path.write_bytes(TEXT.encode())
    return path


@pytest.fixture(scope="module")
def middle(model) -> str:
    at = TEXT.index("open(") + 5
    with Coder(model) as coder:
        request = InfillRequest(TEXT[:at], TEXT[at:], path="code.py")
        text = coder.start_infill(request, max_tokens=8, temperature=1, seed=3).run().text
    assert text
    return text


SEED = (*OPTIONS, "--temperature", 1, "--seed", 3)


@pytest.mark.parametrize("place", [PLACE, "5"])
def test_stdout_holds_the_middle_and_nothing_else(cli, model, file, middle, place):
    result = cli("complete", f"{file}:{place}", "-m", model, *SEED)
    assert (result.code, result.out, result.err) == (0, middle, "")
    assert file.read_bytes() == TEXT.encode()


def test_a_file_from_a_pipe(start, model, middle):
    process = start("complete", f":{PLACE}", "-m", model, *SEED)
    out, err = process.communicate(TEXT.encode())
    assert (process.returncode, out.decode(), err) == (0, middle, b"")


def test_json(cli, model, file, middle):
    answer = json.loads(cli("complete", f"{file}:{PLACE}", "-m", model, *SEED, "--json").out)
    assert answer["text"] == middle
    assert answer["n_tokens"] <= 8


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_write_puts_it_into_the_file_in_its_own_line_ends(cli, model, file, middle, newline, bom):
    file.write_bytes(bom + TEXT.encode().replace(b"\n", newline))
    result = cli("complete", f"{file}:{PLACE}", "-m", model, *SEED, "--write")
    assert (result.code, result.out, result.err) == (0, "", "")
    at = TEXT.index("open(") + 5
    expected = TEXT[:at] + middle + TEXT[at:]
    assert file.read_bytes() == bom + expected.encode().replace(b"\n", newline)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_diff_shows_the_change_and_writes_nothing(cli, model, file, middle):
    result = cli("complete", f"{file}:{PLACE}", "-m", model, *SEED, "--diff")
    lines = result.out.splitlines()
    assert lines[0].startswith("--- ")
    assert "-    return open(" in lines
    assert any(line.startswith("+    return open(") for line in lines)
    assert file.read_bytes() == TEXT.encode()


def test_a_file_that_changes_meanwhile_is_left_alone(cli, model, file, monkeypatch):
    from localcoder.session.infill import Infill

    run = Infill.run

    def run_while_somebody_types(self):
        file.write_text("other")
        return run(self)

    monkeypatch.setattr(Infill, "run", run_while_somebody_types)
    result = cli("complete", f"{file}:{PLACE}", "-m", model, *SEED, "--write")
    assert result.code == 2
    assert "changed while the model was writing" in result.err
    assert file.read_text() == "other"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("FILE", "names no place; expected FILE:LINE"),
        ("FILE:0", "no line 0; it has 9"),
        ("FILE:10", "no line 10; it has 9"),
        ("FILE:1:11", "no column 11 in line 1; expected 1 to 10"),
        ("FILE:1:0", "no column 0"),
        ("FILE:x", "names no place"),
        ("missing.py:1", "missing.py: no such file"),
        ("FOLDER:1", "is a directory"),
        ("BINARY:1", "not UTF-8 text (byte 0xff at 0)"),
        ("NUL:1", "not a text file"),
    ],
)
def test_a_wrong_place_is_one_line_and_exit_code_2(cli, model, file, place, message):
    (file.parent / "binary").write_bytes(b"\xff\x00\x01" * 50)
    (file.parent / "nul").write_bytes(b"a\0b")
    names = {"FILE": file, "FOLDER": file.parent, "BINARY": file.parent / "binary", "NUL": file.parent / "nul"}
    name, colon, rest = place.partition(":")
    result = cli("complete", f"{names.get(name, name)}{colon}{rest}", "-m", model)
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(r"localcoder: error: [^\n]+\n", result.err)
    assert message in result.err.lower() or message in result.err


def test_an_empty_file(cli, model, file):
    file.write_bytes(b"")
    result = cli("complete", f"{file}:1", "-m", model, *OPTIONS)
    assert result.code == 0


def test_a_file_of_a_megabyte(cli, model, file):
    file.write_text("value = 1\n" * 100_000)
    result = cli("complete", f"{file}:50000", "-m", model, "--max-tokens", 2)
    assert result.code == 0
    assert re.search(r"code\.py: \d+ characters far from the place do not fit", result.err)
    assert "Traceback" not in result.err


def test_options_that_exclude_each_other(cli, model, file):
    for words in (["--json", "--diff"], ["--scope", "page"]):
        assert cli("complete", f"{file}:1", "-m", model, *words).code == 2
    assert "--write needs a file" in cli("complete", ":1", "-m", model, "--write").err


def test_the_context_of_a_repository(cli, model, file):
    (file.parent / "lib").mkdir()
    (file.parent / "lib/helper.py").write_text("def read_lines(path):\n    return open(path)\n")
    file.write_text("from lib.helper import read_lines\n" + TEXT)
    result = cli("complete", f"{file}:6:17", "-m", model, *OPTIONS, "--repo", file.parent, "--show-context")
    assert result.code == 0
    assert result.err.splitlines()[0].startswith("lib/helper.py: imported, shares ")
    (file.parent / "lib/helper.py").unlink()
    result = cli("complete", f"{file}:6:17", "-m", model, *OPTIONS, "--repo", file.parent, "--show-context")
    assert result.err.splitlines()[0] == "no related files"


@pytest.mark.parametrize(("repo", "message"), [("missing", "is no folder"), ("FOLDER", "is not in")])
def test_a_wrong_repository(cli, model, file, repo, message):
    (file.parent / "empty").mkdir()
    folder = file.parent / "empty" if repo == "FOLDER" else repo
    result = cli("complete", f"{file}:1", "-m", model, "--repo", folder)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
