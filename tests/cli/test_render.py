"""Streaming rendering: after all pieces the screen shows the text, coloured, and no line was ever moved."""

from __future__ import annotations

import io
import random
import re

import pytest

pyte = pytest.importorskip("pyte")

from localcoder.cli.terminal import render  # noqa: E402

ANSWER = """# Title

Some `code` and **bold** text, which is long enough to take more than one row of a narrow screen: äöü 漢字.

```python
def area(r):
    \"\"\"Several
    lines.\"\"\"
\treturn 3 * r  # why
```

The end.
"""


class TerminalFile(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def show(monkeypatch):
    """Feeds an answer in pieces; gives the screen and what was written."""

    def show_(text: str, pieces: list[str], *, columns: int = 60, lines: int = 40):
        file = TerminalFile()
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("LINES", str(lines))
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setattr("sys.stdout", file)
        with render.AnswerView() as view:
            for piece in pieces:
                view.feed(piece)
        assert "".join(pieces) == text
        screen = pyte.Screen(columns, lines)
        pyte.Stream(screen).feed(file.getvalue().replace("\n", "\r\n"))
        return screen, file.getvalue()

    return show_


def rows_of(text: str, columns: int) -> list[str]:
    """What a terminal shows of plain text."""
    screen = pyte.Screen(columns, 40)
    pyte.Stream(screen).feed(text.replace("\t", "    ").replace("\n", "\r\n"))
    return [row.rstrip() for row in screen.display]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("columns", [20, 41, 80])
def test_the_screen_shows_the_text_however_it_is_cut(show, seed, columns):
    rng = random.Random(seed)
    pieces, at = [], 0
    while at < len(ANSWER):
        n = rng.randint(1, 9)
        pieces.append(ANSWER[at : at + n])
        at += n
    screen, _ = show(ANSWER, pieces, columns=columns)
    assert [row.rstrip() for row in screen.display] == rows_of(ANSWER, columns)


def test_code_is_coloured(show):
    screen, _ = show(ANSWER, list(ANSWER))
    rows = screen.display

    def style(word):
        y = next(y for y, row in enumerate(rows) if word in row)
        return screen.buffer[y][rows[y].index(word)]

    plain = style("The end.").fg
    assert style("def").fg != plain
    assert style("lines.").fg != plain, "a text of several lines is one text"
    assert style("# why").fg != style("return").fg
    assert style("# Title").bold
    assert style("**bold").bold
    assert style("`code`").fg == "cyan"
    assert style("Some").fg == plain


def test_nothing_above_the_current_line_is_touched(show):
    """The cursor goes up by no more rows than the current line has, and nothing is erased."""
    _, written = show(ANSWER, list(ANSWER), columns=20)
    longest = max(len(line) * 2 for line in ANSWER.split("\n")) // 20 + 1
    ups = [int(n) for n in re.findall(r"\x1b\[(\d+)A", written)]
    assert ups
    assert max(ups) < longest
    assert not re.search(r"\x1b\[\d*[JKLMST]", written)


def test_what_comes_is_seen_at_once(show):
    _, written = show("abc", ["a", "b", "c"])
    assert written.startswith("abc")
    _, written = show("```\nabc", ["```\n", "a", "b", "c"])
    assert "abc" in written


def test_a_line_higher_than_the_screen_is_left_alone(show):
    text = "x" * 500 + "\n"
    _, written = show(text, [text], columns=20, lines=5)
    assert "\x1b[" not in written


def test_an_answer_cannot_drive_the_terminal(show):
    text = "a\x1b[2J\x1b]0;title\x07b\r\n`\x9b2J`\n"
    _, written = show(text, [text])
    assert "\x1b[2J" not in written
    assert "\x07" not in written
    assert "\x9b" not in written
