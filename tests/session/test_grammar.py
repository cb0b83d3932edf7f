"""What a text has to be: the mask alone makes it so, with random weights, too, which have no liking for anything."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import write_tiny_model

from localcoder import Coder, InfillRequest
from localcoder.errors import OptionError
from localcoder.session.grammar.matcher import check_grammar, load_library, make_grammar
from localcoder.session.options import GenerationOptions
from localcoder.session.sampler import Sampler

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

PROMPT = "def f(x):\n    return "
WARM = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 7}
WAYS = pytest.mark.parametrize("way", [{}, WARM, {**WARM, "mirostat_tau": 3.0}, {**WARM, "top_k": 3, "top_p": 0.5}])
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "é", 'q"q', None]}, "minItems": 1, "maxItems": 3},
        "where": {"$ref": "#/$defs/point"},
    },
    "required": ["name", "age", "tags", "where"],
    "additionalProperties": False,
    "$defs": {"point": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "boolean"}], "items": False}},
}
SCHEMAS = [PERSON, {"anyOf": [{"const": 3.5}, {"type": "string", "pattern": "^[a-c]{2,4}$"}]}, {"type": "boolean"}]
PATTERNS = [
    r"[a-f]{3}-\d{2,4}",
    r"(foo|bar|äöü)+?x{2}",
    r"[a-zß]+@[^@.\n]{2,5}\.(com|org)",
    r"[^\n]{5,20};",
    r"((a|b)c){3}|日本",
]


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", scale=3.0, n_ctx=1024)
    with Coder(path, n_sequences=4) as coder:
        yield coder


@pytest.fixture(scope="module")
def trained():
    with Coder() as coder:
        yield coder


@pytest.fixture(params=["coder", "trained"])
def either(request):
    return request.getfixturevalue(request.param)


@WAYS
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_text_matches_its_regular_expression(either, pattern, way):
    done = either.generate(PROMPT, regex=pattern, max_tokens=400, **way)
    if done.finish_reason == "stop":
        assert re.fullmatch(pattern, done.text)
    else:
        assert done.n_tokens == 400
        assert "+" in pattern  # or else it has an end


@WAYS
@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_text_is_json_that_fits_its_schema(either, schema, way):
    done = either.generate(PROMPT, json_schema=schema, max_tokens=900, **way)
    if done.finish_reason == "length":  # digits of a number may go on
        assert schema is PERSON
        return
    jsonschema.validate(json.loads(done.text), schema)


def test_a_schema_may_be_text_and_fits_the_trained_model(trained):
    done = trained.generate('person = {"name": "Ann", ', json_schema=json.dumps(PERSON), max_tokens=200)
    assert done.finish_reason == "stop"
    jsonschema.validate(json.loads(done.text), PERSON)


@pytest.mark.parametrize("schema", [{}, {"type": "object"}, True])
def test_white_space_between_parts_of_json_is_bounded(coder, schema):
    done = coder.generate(PROMPT, json_schema=schema, max_tokens=300, **WARM)
    outside = re.sub(r'"(\\.|[^"\\])*("|$)', '""', done.text)
    assert not re.search(r"[ \t]{33}|\s\n", outside)
    if done.finish_reason == "stop":
        json.loads(done.text)


BALANCED = 'root ::= pair{1,3}\npair ::= "(" (pair | [a-c]){0,3} ")"  # nested\n'


@WAYS
def test_a_text_is_one_of_its_grammar(either, way):
    done = either.generate(PROMPT, grammar=BALANCED, max_tokens=400, **way)
    bare = re.sub("[a-c]", "", done.text)
    while "()" in bare:
        bare = bare.replace("()", "")
    assert re.fullmatch("[()a-c]+", done.text)
    assert bare == "" if done.finish_reason == "stop" else set(bare) == {"("}


LANGUAGE = ["a", "ab", "abx", "b", "bb", "bbb", "bx", "bbx", "bbbx", "print(x)", "print(y)", "éa", "èa"]


@pytest.mark.parametrize("of", ["regex", "grammar", "json"])
def test_exactly_the_tokens_that_lead_to_a_text_are_allowed(either, of):
    """Beside all texts of a small language: a token may come if one of them goes on so, an end if it is one."""
    language = [json.dumps(text, ensure_ascii=False) for text in LANGUAGE] if of == "json" else LANGUAGE
    options = {
        "regex": {"regex": r"abx?|a|b{1,3}x?|print\([xy]\)|[éè]a"},
        "grammar": {"grammar": r'root ::= "a" ("b" "x"?)? | "b"{1,3} "x"? | "print(" [xy] ")" | [\u00E8-\u00E9] "a"'},
        "json": {"json_schema": {"enum": LANGUAGE}},
    }[of]
    tokenizer, n_vocab = either.tokenizer, either.n_vocab
    texts = [text.encode() for text in language]
    spelled = [tokenizer.token_bytes(i) if i < tokenizer.n_vocab else b"" for i in range(n_vocab)]
    for text in language:
        grammar = make_grammar(tokenizer, n_vocab, GenerationOptions(**options))
        before = b""
        for token in [*tokenizer.tokenize(text, bos=False), None]:
            left = [t[len(before) :] for t in texts if t.startswith(before)]
            if left == [b""]:
                assert grammar.is_complete
                break
            mask = np.isfinite(grammar.restrict(np.zeros(n_vocab, np.float32)))
            expected = {i for i in range(n_vocab) if spelled[i] and any(rest.startswith(spelled[i]) for rest in left)}
            found = set(np.flatnonzero(mask).tolist())
            if len(left) > 1:
                assert found == expected | (tokenizer.stop_ids if b"" in left else set())
            else:  # of several tokens that spell what has to come, the library may leave only the usual one
                assert found
                assert found <= expected
            if token is not None:
                grammar.accept(token)
                before += spelled[token]


def test_where_anything_may_come_special_tokens_may_not(either):
    tokenizer, n_vocab = either.tokenizer, either.n_vocab
    grammar = make_grammar(tokenizer, n_vocab, GenerationOptions(regex="(?s:.*)"))
    mask = np.isfinite(grammar.restrict(np.zeros(n_vocab, np.float32)))
    spelled = np.array([i < tokenizer.n_vocab and bool(tokenizer.token_bytes(i)) for i in range(n_vocab)])
    assert set(np.flatnonzero(mask & ~spelled).tolist()) == tokenizer.stop_ids
    assert not (mask & tokenizer.unsampleable(n_vocab)).any()


def test_draws_follow_the_probabilities_of_what_is_allowed(coder):
    logits = np.random.default_rng(5).standard_normal(coder.n_vocab).astype(np.float32) * 2
    options = GenerationOptions(temperature=0.8, top_k=0, top_p=1.0, seed=3, regex="[a-h]|1+")
    sampler = Sampler(options)
    allowed = [ord(c) for c in "abcdefgh1"]
    weights = np.exp(logits[allowed].astype(np.float64) / 0.8)
    n = 4000
    grammar = make_grammar(coder.tokenizer, coder.n_vocab, options)
    counts = Counter(sampler.sample(logits, [], grammar) for _ in range(n))
    assert set(counts) <= set(allowed)
    expected = n * weights / weights.sum()
    found = np.array([counts[i] for i in allowed])
    assert (np.abs(found - expected) < 5 * np.sqrt(expected) + 5).all()


@WAYS
def test_speculation_changes_nothing(trained, way):
    schema = {"type": "array", "items": {"enum": ["read_the_file", "write_the_file"]}, "minItems": 12, "maxItems": 12}
    options = {"json_schema": schema, "max_tokens": 300, **way}
    plain = trained.generate(PROMPT, speculate=False, **options)
    guessed = trained.generate(PROMPT, speculate=True, **options)
    assert guessed.text == plain.text
    assert guessed.n_accepted > 0
    jsonschema.validate(json.loads(plain.text), schema)


@WAYS
def test_a_draft_model_that_knows_of_no_grammar_breaks_none(tmp_path, way):
    large = write_tiny_model(tmp_path / "large.gguf", scale=3.0, n_ctx=512)
    small = write_tiny_model(tmp_path / "small.gguf", scale=3.0, n_ctx=512, n_layer=1)
    pattern = "([a-d][0-3]){20}"
    with Coder(large, draft_model=small) as drafted, Coder(large) as alone:
        done = drafted.generate(PROMPT, regex=pattern, **way)
        assert re.fullmatch(pattern, done.text)
        if not way:
            assert done.text == alone.complete(PROMPT, regex=pattern)


def test_several_texts_are_those_that_each_would_be_alone(coder):
    options = {**WARM, "regex": "[a-z]{2,20}!", "max_tokens": 60}
    found = coder.choices(PROMPT, n=4, **options)
    alone = [coder.generate(PROMPT, **{**options, "seed": done.seed}) for done in found]
    assert [(d.text, d.finish_reason) for d in found] == [(d.text, d.finish_reason) for d in alone]
    assert all(re.fullmatch("[a-z]{2,20}!", done.text) for done in found)
    assert len({len(done.text) for done in found}) > 1


def test_conversations_streams_and_infills_take_it_too(coder, trained):
    assert re.fullmatch("yes|no", coder.chat("Is it so?", regex="yes|no"))
    assert re.fullmatch("yes|no", "".join(coder.stream("Is it so? ", grammar='root ::= "yes" | "no"')))
    middle = trained.infill("def area(r):\n    return mat", "\n", regex=r"[a-z.]{1,9} \* r\)\)")
    assert re.fullmatch(r"[a-z.]{1,9} \* r\)\)", middle)  # unbalanced brackets and all
    with pytest.raises(OptionError, match="scope and regex exclude each other"):
        trained.start_infill(InfillRequest("x", scope="line"), regex="a")


def test_ends(coder):
    cut = coder.generate(PROMPT, regex="a{50}", max_tokens=10)
    assert (cut.text, cut.finish_reason) == ("a" * 10, "length")
    whole = coder.generate(PROMPT, regex="a{50}", max_tokens=50, logprobs=2)
    assert (whole.text, whole.finish_reason, whole.n_tokens) == ("a" * 50, "stop", 50)
    assert len(whole.logprobs) == 50
    assert all(record.token == ord("a") for record in whole.logprobs)
    stopped = coder.generate(PROMPT, regex="abcdef", stop="cd", max_tokens=50)
    assert (stopped.text, stopped.finish_reason) == ("ab", "stop")
    held = coder.generate(PROMPT, regex="abc", stop="cd", max_tokens=50)
    assert (held.text, held.finish_reason) == ("abc", "stop")
    empty = coder.generate(PROMPT, regex="", max_tokens=50)
    assert (empty.text, empty.finish_reason) == ("", "stop")


def test_probabilities_are_those_of_the_model_without_the_grammar(coder):
    done = coder.generate(PROMPT, regex="q", logprobs=0)
    rows = coder.logits(coder.tokenize(PROMPT)).astype(np.float64)[-1]
    expected = rows[ord("q")] - rows.max() - np.log(np.exp(rows - rows.max()).sum())
    assert done.logprobs[0].logprob == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "a(b"}, r"^regex: character 2: unclosed group$"),
        ({"regex": "(?=a)b"}, r"^regex: character 1: look-around"),
        ({"regex": 3}, "regex is 3; expected a text"),
        ({"regex": "a" * ((1 << 20) + 1)}, "regex: 1048577 characters are too many"),
        ({"grammar": 'root ::= "a'}, r"^grammar: line 1, column 10: \" is missing"),
        ({"json_schema": "{"}, r"^json_schema: line 1, column 2: "),
        ({"json_schema": "[]"}, "a schema is an object, true or false, not"),
        ({"json_schema": 3}, "json_schema is 3; expected"),
        ({"json_schema": {"a": {1, 2}}}, "json_schema: not JSON"),
        ({"json_schema": {"type": "strin"}}, "^json_schema: #: Invalid type: strin"),
        ({"json_schema": {"properties": {"a/b": {"items": {"not": {}}}}}}, "^json_schema: #/properties/a~1b/items: "),
        ({"json_schema": False}, "^json_schema: no JSON fits it"),
        ({"json_schema": {"$ref": "https://example.org/x"}}, "^json_schema: #: Resource"),
        ({"json_schema": {"x-guidance": {"lenient": True}, "uniqueItems": True}}, "uniqueItems"),
        ({"json_schema": {}, "regex": "a"}, "^regex and json_schema exclude each other; give one of them$"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_anything_runs(coder, options, message):
    with pytest.raises(OptionError, match=message) as error:
        coder.start(PROMPT, **options)
    assert "\n" not in str(error.value)
    with pytest.raises(OptionError, match=message):
        check_grammar(GenerationOptions(**options))


def test_hostile_grammars_end_in_an_error_or_a_text(coder):
    nested: dict = {}
    for _ in range(900):
        nested = {"items": nested}
    rules = "\n".join(f'r{i} ::= r{i + 1} r{i + 1} | ""' for i in range(200))
    for options in (
        {"regex": "(" * 5000 + ")" * 5000},
        {"regex": "(a{1000}){1000}{1000}"},
        {"regex": "(a?){3000}a{3000}b"},
        {"json_schema": nested},
        {"json_schema": "[" * 100_000},
        {"grammar": f'root ::= r0\n{rules}\nr200 ::= "a"'},
        {"grammar": 'root ::= root root | ""'},
        {"grammar": 'root ::= "a"{99999}{99999}'},
    ):
        with contextlib.suppress(OptionError):
            coder.generate(PROMPT, max_tokens=5, **options)


def test_without_the_library_the_error_names_the_extra(coder, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    load_library.cache_clear()
    with pytest.raises(OptionError, match="the extra `grammar` of localcoder-runtime"):
        coder.complete(PROMPT, regex="a")
    assert coder.complete(PROMPT, max_tokens=1)


class Node:
    """The same small language in two notations."""

    def __init__(self, gbnf: str, pattern: str) -> None:
        self.gbnf, self.pattern = gbnf, pattern

    def __repr__(self) -> str:
        return self.gbnf


def _character(code: int) -> Node:
    return Node(rf"\U{code:08X}", rf"\U{code:08X}")


characters = st.sampled_from([*range(0x20, 0x7F), 0, 9, 10, 13, 0xE9, 0x4E2D, 0x1F600]).map(_character)
literals = st.lists(characters, min_size=1, max_size=3).map(
    lambda chars: Node('"' + "".join(c.gbnf for c in chars) + '"', "".join(c.pattern for c in chars))
)
classes = st.tuples(st.booleans(), st.lists(characters, min_size=1, max_size=3)).map(
    lambda c: Node(
        f"[{'^' * c[0]}{''.join(x.gbnf for x in c[1])}]", f"[{'^' * c[0]}{''.join(x.pattern for x in c[1])}]"
    )
)


def _joined(nodes: list[Node], gbnf: str, pattern: str) -> Node:
    return Node(f"({gbnf.join(n.gbnf for n in nodes)})", f"(?:{pattern.join(n.pattern for n in nodes)})")


def _larger(nodes: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    some = st.lists(nodes, min_size=1, max_size=3)
    times = st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}"])
    return st.one_of(
        some.map(lambda parts: _joined(parts, " ", "")),
        some.map(lambda parts: _joined(parts, " | ", "|")),
        st.tuples(nodes, times).map(lambda p: Node(f"{p[0].gbnf}{p[1]}", f"(?:{p[0].pattern}){p[1]}")),
    )


@given(st.recursive(literals | classes | st.just(Node(".", "(?s:.)")), _larger, max_leaves=8), st.integers(0, 9))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_grammars_mean_what_the_same_regular_expression_means_to_python(coder, node, seed):
    rules = f"root ::= the-Rule\nthe-Rule ::= # a comment\n  {node.gbnf} # another\n"
    done = coder.generate(PROMPT, grammar=rules, max_tokens=40, **{**WARM, "seed": seed})
    if done.finish_reason == "stop":
        assert re.fullmatch(node.pattern, done.text)
    else:
        assert re.search(r"[*+]|,\}", node.gbnf) or len(done.text.encode()) >= 39
