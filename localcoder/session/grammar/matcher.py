"""The constraint that a grammar makes, by the library llguidance (the extra `grammar`)."""

from __future__ import annotations

import functools
import json
import re
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from localcoder.errors import OptionError
from localcoder.quants.spec import Float32
from localcoder.session.constraint import Surroundings
from localcoder.session.grammar.gbnf import lark_of_gbnf
from localcoder.session.grammar.python.constraint import PythonSyntax
from localcoder.session.grammar.schema import find_fault, read_schema
from localcoder.session.options import GenerationOptions
from localcoder.tokenizer.tokenizer import Tokenizer

_MOST_CHARACTERS = 1 << 20  # of a regular expression or grammar
_MOST_ITEMS = 200_000  # of the parser in one step, four times the library's own limit: GBNF goes by single characters
_CARET = re.compile(r"^ *(\^)", re.MULTILINE)
_ERROR = re.compile(r"^error: (.*)$", re.MULTILINE)
# JSON as people and models write it: a space, or a line break and indentation; not white space without end.
_JSON_STYLE = {"whitespace_pattern": r" |\n {0,32}|\n\t{0,16}"}

# What the library makes of a vocabulary takes a moment, and is the same for all grammars.
_vocabularies: weakref.WeakKeyDictionary[Tokenizer, Any] = weakref.WeakKeyDictionary()


class Grammar:
    """A constraint: the text is what a grammar describes, and its end may come exactly where the grammar's may.

    Special tokens never count as text. Raises OptionError where the grammar outgrows what may be spent on one step.

    Args:
        name: the option that it comes from.
        matcher: what the library knows of the text so far.
    """

    def __init__(self, name: str, matcher: Any, tokenizer: Tokenizer) -> None:
        self._name = name
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._stop_ids = np.array(sorted(tokenizer.stop_ids), np.intp)

    @property
    def is_complete(self) -> bool:
        return bool(self._matcher.is_stopped() and self._matcher.is_accepting())

    def copy(self) -> Grammar:
        """One for another text that begins where this one is."""
        return Grammar(self._name, self._matcher.deep_copy(), self._tokenizer)

    def restrict(self, logits: Float32) -> Float32:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._require_sound()
        allowed = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(np.bool_)
        allowed[self._stop_ids] = self._matcher.is_accepting()
        restricted = np.where(allowed, logits, np.float32(-np.inf))
        if not np.isfinite(restricted).any():
            raise OptionError(f"{self._name}: no token of the vocabulary, or none that may be sampled, can come next")
        return restricted

    def accept(self, token: int) -> None:
        if token not in self._tokenizer.stop_ids:
            self._matcher.consume_token(token)
            self._require_sound()

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise OptionError(f"{self._name}: {_first_line(self._matcher.get_error())}")


def make_grammar(
    tokenizer: Tokenizer,
    n_vocab: int,
    options: GenerationOptions,
    prompt: Sequence[int] = (),
    around: Surroundings | None = None,
) -> Grammar | PythonSyntax | None:
    """The constraint that options ask for; None where they ask for none.

    Args:
        n_vocab: rows of the model's output.
        prompt: token ids.
        around: what the text stands in; None: the prompt is before it.

    Raises:
        OptionError: the regular expression, schema or grammar is wrong, or too large; says where. Or the library is not
            installed.
    """
    name = options.grammar_option
    if name is None:
        return None
    if name == "syntax":
        return PythonSyntax(tokenizer, n_vocab, around or Surroundings(b"".join(map(tokenizer.token_bytes, prompt))))
    library = load_library()
    source = _source(library, name, getattr(options, name))
    limits = library.LLParserLimits(step_max_items=_MOST_ITEMS, verbose_errors=False)
    matcher = library.LLMatcher(_vocabulary(library, tokenizer, n_vocab), source, log_level=0, limits=limits)
    if matcher.is_error():
        raise OptionError(_explain(library, options, matcher.get_error()))
    return Grammar(name, matcher, tokenizer)


def check_grammar(options: GenerationOptions) -> None:
    """Raises what `make_grammar` would, before there is a model."""
    if options.grammar_option not in (None, "syntax"):
        library = load_library()
        source = _source(library, options.grammar_option, getattr(options, options.grammar_option))
        error = library.LLMatcher.validate_grammar(source)
        if error:
            raise OptionError(_explain(library, options, error))


def _source(library: Any, name: str, value: Any) -> str:
    """The grammar in the library's own form."""
    compiler = library.LLMatcher
    if name == "json_schema":
        return _source_of_schema(compiler, read_schema(value))
    if len(value) > _MOST_CHARACTERS:
        raise OptionError(f"{name}: {len(value)} characters are too many; {_MOST_CHARACTERS} at most")
    return compiler.grammar_from_regex(value) if name == "regex" else compiler.grammar_from_lark(lark_of_gbnf(value))


def _source_of_schema(compiler: Any, schema: dict[str, Any]) -> str:
    try:
        return compiler.grammar_from_json_schema(json.dumps(schema), overrides=_JSON_STYLE)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"json_schema: {_first_line(str(error))}") from None


def _explain(library: Any, options: GenerationOptions, error: str) -> str:
    """The library's error in one line, with the place."""
    name = options.grammar_option
    if name == "regex":
        caret, reason = _CARET.search(error), _ERROR.search(error)
        if caret and reason:  # the expression stands above the caret, indented by four columns
            return f"regex: character {caret.start(1) - caret.start() - 3}: {reason[1]}"
    if name == "json_schema":
        compiler = library.LLMatcher
        schema = read_schema(options.json_schema if options.json_schema is not None else {})
        found = find_fault(schema, lambda part: compiler.validate_grammar(_source_of_schema(compiler, part)))
        place, error = found or ("#", error)
        return f"json_schema: {place}: {_first_line(error)}"
    return f"{name}: {_first_line(error)}"


def _first_line(error: str) -> str:
    """What of the library's messages, some of which are pages, a person can use."""
    head = error.split("\n<state>")[0].split("\n<grammar>")[0]
    reason = _ERROR.search(head)
    return reason[1] if reason else " ".join(head.split("\n")[0].split())[:300]


def _vocabulary(library: Any, tokenizer: Tokenizer, n_vocab: int) -> Any:
    known = _vocabularies.get(tokenizer)
    if known is None or known.vocab_size < n_vocab:
        known = _vocabularies[tokenizer] = library.LLTokenizer(
            library.TokenizerWrapper(_Vocabulary(tokenizer, n_vocab))
        )
    return known


class _Vocabulary:
    """A tokenizer as the library wants it: the bytes of each token, and none for what is no text."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        n_known = min(tokenizer.n_vocab, n_vocab)
        ends = tokenizer.stop_ids or {n_vocab}  # the library needs one; beyond the rows, nothing can choose it
        self.tokens = [tokenizer.token_bytes(i) if i < n_known else b"" for i in range(n_vocab + 1)]
        for i in ends:
            self.tokens[i] = b"\xff<end>"  # 0xff marks what no text spells
        self.special_token_ids = sorted(ends)
        self.eos_token_id, self.bos_token_id = self.special_token_ids[0], tokenizer.bos_id
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.tokenize(text, bos=False)


@functools.cache
def load_library() -> Any:
    """The package llguidance.

    Raises:
        OptionError: it is not installed.
    """
    try:
        import llguidance
    except ImportError:
        raise OptionError(
            "regex, json_schema and grammar need llguidance: install it, or the extra `grammar` of localcoder-runtime"
        ) from None
    return llguidance
