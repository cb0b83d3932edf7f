"""Holes in source files, and how what is written into them is judged."""

from __future__ import annotations

import ast
import difflib
import json

import pytest

from localcoder.coder import Coder
from localcoder.errors import FileError, OptionError
from localcoder.measure.evaluation import fim
from localcoder.measure.evaluation.fim import Hole, Source, fill, make_holes, read_sources, summarize

TEXT = "".join(f"def f{i}(x):\n    y = x + {i}\n    return y * {i}\n\n\n" for i in range(40))
FEW = TEXT[: TEXT.index("def f8")]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b.py").write_text(TEXT)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.js").write_bytes(b"function f(x) {\r\n  return x;\r\n}\r\n" * 20)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "c.py").write_text(TEXT)
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large.py").write_text("x = 1\n" * 200_000)
    (tmp_path / "data.csv").write_text("1,2\n")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_sources(folder):
    found = read_sources(folder)
    assert [source.name for source in found] == ["b.py", "sub/a.js"]
    assert "\r" not in found[1].text
    assert [source.name for source in read_sources(folder / "b.py")] == ["b.py"]
    with pytest.raises(FileError, match="no such file"):
        read_sources(folder / "none")
    with pytest.raises(FileError, match="holds no source files"):
        read_sources(folder / ".hidden" / ".." / "empty")


def test_holes(folder):
    sources = read_sources(folder)
    holes = make_holes(sources, 30, seed=1)
    assert [sum(hole.kind == kind for hole in holes) for kind in fim.KINDS] == [30, 30, 30]
    assert holes == make_holes(sources, 30, seed=1) != make_holes(sources, 30, seed=2)
    for hole in holes:
        text, truth = hole.source.text, hole.truth
        assert truth.strip()
        assert text[hole.end :].strip()
        before = text[: hole.begin].rpartition("\n")[2]
        if hole.kind == "line":
            assert "\n" not in truth
            assert not before.strip()
            assert truth == truth.strip()
        elif hole.kind == "lines":
            assert before == ""
            assert text[hole.end] == "\n"
        request = hole.request()
        assert request.prefix + truth + request.suffix == text
    with pytest.raises(OptionError, match="too short"):
        make_holes([Source("x.py", "x")], 3, seed=0)


class Answering:
    """Stands in for a Coder: gives set answers."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def start_infill(self, request, max_tokens):
        assert max_tokens == fim.MAX_TOKENS
        return self

    def run(self):
        self.text = self.answers.pop(0)
        return self


def test_judgement():
    source, other = Source("x.py", "a = [1]\nb = 2\n"), Source("x.js", "a = [1]\nb = 2\n")
    hole = Hole("line", source, 0, 7)
    answers = ["a = [1]", " a = [1]\n", "a = [1", "a = (1)"]
    filled = list(fill(Answering(*answers, "a"), [hole] * 4 + [Hole("span", other, 0, 7)]))
    assert [f.is_exact for f in filled] == [True, True, False, False, False]
    assert [f.parses for f in filled] == [True, False, False, True, None]
    assert filled[3].similarity == difflib.SequenceMatcher(None, "a = [1]", "a = (1)").ratio()
    line, span = summarize(filled)
    assert (line.n_holes, line.exact_match, line.n_parsed, line.parses) == (4, 0.5, 4, 0.5)
    assert (span.kind, span.n_holes, span.parses) == ("span", 1, None)


def test_with_the_embedded_model(tmp_path, capsys):
    (tmp_path / "x.py").write_text(FEW)
    with Coder(n_ctx=512) as coder:
        filled = list(fill(coder, make_holes(read_sources(tmp_path), 1, seed=3)))
    assert len(filled) == 3
    for f in filled:
        text = FEW[: f.hole.begin] + f.answer + FEW[f.hole.end :]
        try:
            ast.parse(text)
            assert f.parses
        except SyntaxError:
            assert not f.parses


def test_the_command(tmp_path, capsys):
    from localcoder.cli.main import main

    (tmp_path / "x.py").write_text(FEW)

    def run(*args):
        with pytest.raises(SystemExit) as exit_:
            main(["eval", "fim", "--data", str(tmp_path), *args])
        return exit_.value.code or 0, *capsys.readouterr()

    code, out, _ = run("--limit", "1", "--json")
    found = json.loads(out)
    assert code == 0
    assert [row["kind"] for row in found["holes"]] == ["line", "lines", "span"]
    code, out, _ = run("--limit", "1")
    assert out.splitlines()[0].split() == ["holes", "exact", "similarity", "parses", "file"]
    code, _, err = run("--samples", "2", "--temperature", "1")
    assert code == 2
    assert "fim takes" in err
