"""The table of an LALR(1) parser for Python, made of `python.lark` by `tools/gen_python_tables.py`."""

from __future__ import annotations

import functools
import gzip
import importlib.resources
import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# What may be done to an expression: nothing; assigned to; the same, as a sequence; the same, with a `*` in it.
_VALUE, _PLACE, _PLACES, _STARRED = range(4)
_TARGETS = {
    "target": {_PLACE, _PLACES, _STARRED},
    "target_list": {_PLACE, _PLACES, _STARRED},
    "single_target": {_PLACE},
    "del_target": {_PLACE, _PLACES},
}
_SEQUENCES = ("sequence", "star_exprs", "star_named_list", "__sequence", "__star_exprs", "__star_named_list")


Action = int | tuple[str, int]  # the next state, or the rule to reduce with its length


class Node(NamedTuple):
    """A stack of states: that on top, what may be done to what was read for it (None: no expression), and the rest."""

    state: int
    kind: int | None
    below: Node | None


EMPTY = Node(0, None, None)


@dataclass(frozen=True)
class Table:
    """An LALR(1) table, with which expressions may be assigned to worked out on the way.

    Attributes:
        states: for each state, by terminal or rule: the next state, or the rule to reduce with its length.
        terminals: the names of terminals by what they spell.
        end: the state in which everything was read; the first is 0.
    """

    states: list[dict[str, Action]]
    terminals: dict[str, str]
    end: int
    _raised: dict[Any, tuple[int, int | None, Action] | None] = field(default_factory=dict)

    def shift(self, node: Node, terminal: str) -> Node | None:
        """The stack after a terminal; None where it cannot come."""
        top: Node | None = node
        while top is not None:
            raised = self._raise(top, terminal)
            if raised is None:
                return None
            state, kind, action = raised
            if isinstance(action, int):
                return Node(action, _PLACE if terminal == "NAME" else None, Node(state, kind, top.below))
            top = self._reduce(Node(state, kind, top.below), *action)
        return None

    def _raise(self, node: Node, terminal: str) -> tuple[int, int | None, Action] | None:
        """The top of the stack after all reductions before a terminal that leave its height, and what comes then.

        From a name up to an expression there are many of them, always the same: they are remembered.
        """
        key = (node.state, node.kind, -1 if node.below is None else node.below.state, terminal)
        if key in self._raised:
            return self._raised[key]
        top: Node | None = node
        found = None
        while top is not None:
            action = self.states[top.state].get(terminal)
            if action is None or isinstance(action, int) or action[1] != 1:
                found = None if action is None else (top.state, top.kind, action)
                break
            top = self._reduce(top, *action)
        self._raised[key] = found
        return found

    def may_end(self, node: Node) -> bool:
        """Whether the text may end here."""
        top: Node | None = node
        while top is not None and top.state != self.end:
            action = self.states[top.state].get("$END")
            top = None if action is None or isinstance(action, int) else self._reduce(top, *action)
        return top is not None

    def _reduce(self, node: Node, rule: str, n: int) -> Node | None:
        kinds: list[int | None] = []
        for _ in range(n):
            kinds.append(node.kind)
            assert node.below is not None
            node = node.below
        kind = _kind(rule, kinds)
        if rule in _TARGETS and kind not in _TARGETS[rule]:
            return None
        state = self.states[node.state][rule]
        assert isinstance(state, int)
        return Node(state, kind, node)


def _kind(rule: str, kinds: list[int | None]) -> int:
    """What may be done to what a rule describes, with parts of these kinds."""
    if rule == "element":
        return _PLACE
    values = [kind for kind in kinds if kind is not None]
    if rule.startswith(_SEQUENCES) and len(kinds) != 1:
        return _VALUE if _VALUE in values else max([_PLACES, *values])
    if not values or rule == "constant":
        return _VALUE
    if rule == "starred":
        return _STARRED if values[0] != _VALUE else _VALUE
    return values[0] if len(kinds) == 1 or rule == "group" else _VALUE


@functools.cache
def load_table(version: tuple[int, int]) -> Table:
    """The table for a version of the language."""
    packed = (importlib.resources.files(__package__) / "tables.json.gz").read_bytes()
    made = json.loads(gzip.decompress(packed))[f"{version[0]}.{version[1]}"]
    reductions = [
        {name: (rule, n) for rule, n, names in rules for name in names.split()} for rules in made["reductions"]
    ]
    states = [{**shifts, **reductions[number]} for shifts, number in made["states"]]
    return Table(states, made["terminals"], made["end"])
