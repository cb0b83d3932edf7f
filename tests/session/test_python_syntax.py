"""syntax="python": beside Python's own parser, on the standard library, and on it with words left out and put in."""

from __future__ import annotations

import ast
import gzip
import json
import os
import random
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_tiny_model

from localcoder import Coder
from localcoder.errors import OptionError
from localcoder.session.constraint import Surroundings
from localcoder.session.grammar.python.constraint import PythonSyntax
from localcoder.session.options import GenerationOptions

WARM = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
PROMPT = "import os\n\n\ndef read(path):\n    "
LIBRARY = sorted(p for p in Path(os.__file__).parent.rglob("*.py") if "site-packages" not in p.parts)
WORDS = re.compile(r'\s+|\w+|"""|\'\'\'|[fbr]?["\']|\.\.\.|->|:=|[-+*/=!<>|&^%@]=|\*\*|//|<<|>>|.')
# fmt: off
PUT_IN = [
    "(", ")", "[", "]", "{", "}", ",", ":", "=", "*", "**", ".", "in ", " for ", " if ", " else ", "x", "1", "b'c'",
    " as ", "lambda ", "yield ", "await ", "async ", "+", "-", "not ", ":=", "/", "->", "@", ";", "f'{x}'", "...",
    "match ", "case ", "type ", "_", " is ", "+=", "==", "del ", "import ", "from ", "return ", "except ", "def ",
    "class ", "0", ".5", "1e5", "é", "pass ", "\n", "\n    ",
]
NO_PYTHON = [
    "f(x for x in y, 1)", "def f(a=1, b): pass", "f(**a, *b)", "x, y: int", "(a, b) += 1", "[*a, 1] = b", "del *a",
    "for f() in x: pass", "'a' b'c'", "b'é'", "'\\x1'", "'\\U00110000'", "f'{}'", "f'}'", "1__0", "01", "0x", "a →",
    "def f(*): pass", "lambda *: 1", "try: pass", "import a as b.c", "x = yield = 1", "{a: 1, b}", "(*a)", "!x",
]
# fmt: on


@pytest.fixture(scope="module")
def coder():
    with Coder(n_sequences=4) as coder:
        yield coder


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", scale=3.0, n_ctx=1024)
    with Coder(path) as coder:
        yield coder


def sources(seed: int, n: int, most_bytes: int = 40_000) -> list[str]:
    """Files of the standard library that are Python to this Python."""
    found = []
    for path in random.Random(seed).sample(LIBRARY, len(LIBRARY)):
        if len(found) == n:
            break
        data = path.read_bytes()
        if 0 < len(data) < most_bytes and parses(data):
            found.append(data.decode("utf-8-sig", errors="replace"))
    return found


def parses(text: str | bytes) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except (SyntaxError, ValueError):
            return False
    return True


def syntax(coder: Coder, before: str = "", **options) -> PythonSyntax:
    return PythonSyntax(coder.tokenizer, coder.n_vocab, Surroundings(before.encode()), **options)


def allowed(constraint: PythonSyntax, coder: Coder) -> np.ndarray:
    return np.isfinite(constraint.restrict(np.zeros(coder.n_vocab, np.float32)))


def accepts(coder: Coder, text: str, version: tuple[int, int] | None = None) -> bool:
    """Whether `text` is a file."""
    try:
        constraint = syntax(coder, text, version=version)
    except OptionError:
        return False
    return bool(allowed(constraint, coder)[sorted(coder.tokenizer.stop_ids)].all())


def test_every_token_of_real_files_may_come(coder):
    chance = random.Random(1)
    for text in sources(1, 200):
        cut = text[: chance.randrange(1, len(text) + 1)][:4000]
        constraint = syntax(coder)
        ids = coder.tokenize(cut, bos=False)
        looked_at = set(chance.sample(range(len(ids)), min(8, len(ids))))
        for place, token in enumerate(ids):
            if place in looked_at:
                assert allowed(constraint, coder)[token], coder.detokenize(ids[: place + 1])[-200:]
            constraint.accept(token)  # an error where it may not


def test_the_mask_says_what_each_token_alone_would(coder):
    chance = random.Random(2)
    for text in sources(2, 40):
        constraint = syntax(coder, text[: chance.randrange(len(text))])
        mask = allowed(constraint, coder)
        for token in [*chance.sample(range(coder.n_vocab), 60), *np.flatnonzero(mask)[:20].tolist()]:
            if token in coder.tokenizer.stop_ids:
                continue
            try:
                constraint.copy().accept(token)
                may_come = bool(token < coder.tokenizer.n_vocab and coder.tokenizer.token_bytes(token))
            except OptionError:
                may_come = False
            assert mask[token] == may_come, (text[-80:], coder.detokenize([token]))


def test_a_file_may_end_where_python_says_so(coder):
    """Real files, and the same with words left out, put in and doubled."""
    chance = random.Random(3)
    n_right = 0
    for text in sources(3, 150):
        lines = text.split("\n")
        start = chance.randrange(len(lines))
        block = lines[start : start + chance.randrange(1, 12)]
        n_spaces = len(block[0]) - len(block[0].lstrip())
        words = WORDS.findall("\n".join(line[n_spaces:] for line in block))
        for _ in range(12):
            changed = list(words)
            place = chance.randrange(len(words) + 1)
            changed[place : place + chance.randrange(2)] = [chance.choice([*PUT_IN, *words])] * chance.randrange(2)
            changed_text = "".join(changed)
            if "\\" not in changed_text:  # names of characters, and backslashes at the start of a line
                assert accepts(coder, changed_text) == parses(changed_text), changed_text
                n_right += parses(changed_text)
    assert n_right > 200


@pytest.mark.parametrize("seed", range(6))
def test_what_is_written_is_python_up_to_its_last_line(coder, untrained, seed):
    for model in (coder, untrained):
        done = model.generate(PROMPT, syntax="python", max_tokens=150, seed=seed, **WARM)
        assert is_beginning(PROMPT + done.text)
    loose = [coder.generate(PROMPT, max_tokens=150, seed=100 * seed + i, **WARM).text for i in range(4)]
    assert not all(is_beginning(PROMPT + text) for text in loose)


def is_beginning(text: str) -> bool:
    """Whether Python's parser finds nothing wrong before the end; a line that is not whole does not count."""
    flags = ast.PyCF_ONLY_AST | 0x4000  # PyCF_ALLOW_INCOMPLETE_INPUT, which codeop uses
    if sys.version_info < (3, 11):
        pytest.skip("this Python cannot tell an incomplete text from a wrong one")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for shown in (text, text[: text.rfind("\n") + 1]):
            try:
                compile(shown, "text", "exec", flags)
            except SyntaxError as error:
                if (
                    "incomplete input" in str(error)
                    or "was never closed" in str(error)
                    or "triple-quoted" in str(error)
                ):
                    return True
                continue
            return True
    return False


def test_the_end_comes_where_a_file_may_end(coder):
    ends = coder.tokenizer.stop_ids
    whole = [coder.generate("x = 1\n", syntax="python", logit_bias={i: 40.0 for i in ends}, max_tokens=99)]
    whole.append(
        coder.generate("def f(a,", syntax="python", logit_bias={i: 40.0 for i in ends}, max_tokens=200, **WARM)
    )
    assert (whole[0].text, whole[0].finish_reason) == ("", "stop")
    assert whole[1].finish_reason == "length" or parses("def f(a," + whole[1].text)


def test_an_infill_ends_where_its_suffix_may_follow(coder):
    ends = {i: 40.0 for i in coder.tokenizer.stop_ids}
    suffix = ", 2)\n\nprint(y)\n"
    done = coder.infill("y = f(", suffix, syntax="python", logit_bias=ends, max_tokens=100, temperature=1.0, seed=3)
    assert done
    assert parses("y = f(" + done + suffix.split("\n")[0])
    assert coder.infill("y = f(1", ")\n", syntax="python", logit_bias=ends, scope="line") == ""


@pytest.mark.parametrize(
    ("before", "written", "after", "may_end"),
    [
        ("y = f(", "#", ", 2)\n", False),
        ("y = f(", "1, # first\n#", "2)\n", False),
        ("y = f(", "1, # first\n", "2)\n", True),
        ("y = f(", "1, # first", " \n2)\n", True),
        ("y = f(2)  # the ", "value", " of x\n", True),
        ("y = f(2)\n# the ", "value", " of x\n", True),
        ("y = f(2)\n# the ", "value\n#", "z = 3\n", False),
        ("y = f(2)\n", "# the value", "z = 3\n", False),
    ],
)
def test_a_comment_of_an_infill_does_not_take_in_code(coder, before, written, after, may_end):
    """What goes on with a comment that was there may end in it, and any comment where the line ends."""
    tokenizer = coder.tokenizer
    syntax = PythonSyntax(tokenizer, tokenizer.n_vocab, Surroundings(before.encode(), after.encode()))
    for token in tokenizer.tokenize(written, bos=False):
        syntax.accept(token)
    restricted = syntax.restrict(np.zeros(tokenizer.n_vocab, np.float32))
    assert np.isfinite(restricted[sorted(tokenizer.stop_ids)]).all() == may_end


def test_speculation_and_several_texts_change_nothing(coder):
    options = {"syntax": "python", "max_tokens": 120}
    guessed = coder.generate(PROMPT, **options)
    assert guessed.n_accepted > 0
    assert guessed.text == coder.generate(PROMPT, speculate=False, **options).text
    several = coder.choices(PROMPT, n=3, seed=5, **options, **WARM)
    alone = [coder.complete(PROMPT, seed=done.seed, **options, **WARM) for done in several]
    assert [done.text for done in several] == alone


def test_an_answer_is_a_file_of_its_own(coder):
    answer = coder.chat("x = = (", syntax="python", max_tokens=60)
    assert is_beginning(answer)
    assert is_beginning(PROMPT + "".join(coder.stream(PROMPT, syntax="python", max_tokens=20)))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("x = = 1", "line 1, column 5"),
        ("def f():\nreturn 1\n", "line 2, column 1"),
        ("if x:\n    y\n  z", "line 3, column 3"),
        ("x = 'a\n", "line 1, column 7"),
        ("f() = 1", "line 1, column 5"),
        ("a b", "line 1, column 3"),
        ("é = (\n1]", "line 2, column 2"),
        ("\0", "line 1, column 1"),
        ("f(a=1, b)", "line 1, column 9"),
    ],
)
def test_a_prompt_that_is_no_python_is_refused_with_the_place(coder, prompt, message):
    with pytest.raises(OptionError, match=f"^syntax: the text is no beginning of a Python file: {message}$"):
        coder.start(prompt, syntax="python")


@pytest.mark.parametrize(
    "prompt", ["", "\ufeffx = 1\r\nif x:\r\n\ty\r\n", "# only\n\n", "x = '", "def f(", "@", "\\"][:-1]
)
def test_beginnings(coder, prompt):
    assert syntax(coder, prompt)


def test_options():
    with pytest.raises(OptionError, match=r"^syntax is 'ruby'; expected python$"):
        GenerationOptions(syntax="ruby")
    with pytest.raises(OptionError, match=r"^regex and syntax exclude each other"):
        GenerationOptions(syntax="python", regex="a")


@pytest.mark.parametrize(
    ("since", "text"),
    [
        (
            10,
            "match x:\n    case [1, *_] | {'a': b.c, **d} if e: pass\n"
            "match = 1\nmatch(x)\nmatch[x]\nprint(match, case)\n",
        ),
        (10, "with (open(a) as b, c as d,): pass\nwith (a, b): pass\nwith (a), (b): pass\n"),
        (11, "try: pass\nexcept* (A, B) as e: pass\nx[*a]\ndef f(*a: *b): pass\n"),
        (12, "type A[T: int, *U, **V] = B\ntype = 1\ntype(x)\nclass C[T]: pass\ndef f[T](x): pass\n"),
        (12, "f'{'a'}' f'{x # y\n}' f'{\"\\n\"}'\n"),
        (13, "def f[T = int](x): pass\n"),
        (14, "try: pass\nexcept A, B: pass\nt'{x}'\n"),
    ],
)
def test_each_version_knows_its_own(coder, since, text):
    for minor in range(10, 15):
        assert accepts(coder, text, version=(3, minor)) == (minor >= since)
    if sys.version_info < (3, 15):
        assert parses(text) == (sys.version_info >= (3, since))


@pytest.mark.parametrize("text", NO_PYTHON)
def test_what_looks_like_python_is_not(coder, text):
    assert not parses(text)
    assert not accepts(coder, text)


def test_the_tables_are_those_of_the_grammar():
    gen = pytest.importorskip("gen_python_tables")
    made, kept = gen.tables((gen.FOLDER / "python.lark").read_text("utf-8")), gen.FOLDER / "tables.json.gz"
    assert json.loads(gzip.decompress(made)) == json.loads(gzip.decompress(kept.read_bytes())), (
        "run: python tools/gen_python_tables.py"
    )
