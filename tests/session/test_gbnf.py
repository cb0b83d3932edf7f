"""GBNF, read: what is wrong in it is found where it is."""

from __future__ import annotations

import pytest

from localcoder.errors import OptionError
from localcoder.session.grammar.gbnf import lark_of_gbnf


@pytest.mark.parametrize(
    ("text", "line", "column", "what"),
    [
        ("", 1, 1, "there is no rule root"),
        ("# only a comment", 1, 17, "there is no rule root"),
        ('rot ::= "a"\n', 2, 1, "there is no rule root"),
        ("root = a", 1, 6, "'::=' expected after root"),
        ("root ::= a\nb ::= c", 1, 10, "there is no rule a"),
        ('root ::= "a"\nroot ::= "b"', 2, 1, "the rule root is there already"),
        ('root ::= "a" )', 1, 14, "the rule should end here"),
        ('root ::= ("a"', 1, 10, "the bracket is not closed"),
        ('root ::= "a', 1, 10, '" is missing for what begins'),
        ("root ::= [a", 1, 10, "] is missing for what begins"),
        ("root ::= []", 1, 10, "the class is empty"),
        ("root ::= [z-a]", 1, 11, "ends the wrong way round"),
        ('root ::=\n  "a\\q"', 2, 5, "no such escape"),
        ('root ::= "\\u12"', 1, 11, "no such escape"),
        ('root ::= "\\uD800"', 1, 11, "no character has this code"),
        ('root ::= "a"{2', 1, 13, "a count such as"),
        ('root ::= "a"{3,2}', 1, 13, "the wrong way round"),
        ('root ::= "a"{999999}', 1, 13, "the count is more than"),
        ('root ::= "a"{99999999999999999999}', 1, 13, "the count is more than"),
        ("root ::= <think>", 1, 10, "tokens are no part of a text here"),
        ("root ::= !<[1000]>", 1, 10, "tokens are no part of a text here"),
        ("root ::= " + "(" * 100_000, 1, 74, "brackets within each other"),
        ("@", 1, 1, "the name of a rule expected"),
    ],
)
def test_an_error_names_its_place(text, line, column, what):
    with pytest.raises(OptionError, match="grammar: ") as error:
        lark_of_gbnf(text)
    assert str(error.value).startswith(f"grammar: line {line}, column {column}: ")
    assert what in str(error.value)


def test_rules_may_be_spread_over_lines_where_the_notation_has_it():
    spread = 'root ::= # why\r\n  "a" |\r\n\r\n  ( # in\r\n "b"\r\n | c-D )\r\n\r\nc-D ::= "c"'
    assert lark_of_gbnf(spread) == lark_of_gbnf('root ::= "a" | ("b" | c-D)\nc-D ::= "c"')
