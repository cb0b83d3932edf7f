"""What of a Python file was read, and which words may come next."""

from __future__ import annotations

from typing import NamedTuple

from localcoder.session.grammar.python.lexer import SOFT_KEYWORDS, Event
from localcoder.session.grammar.python.table import Node, Table

_MOST_INDENTATIONS, _MOST_BRACKETS = 99, 190  # CPython refuses 100 and 200
_OPENING = {"(", "[", "{", "FIELD_START"}
_CLOSING = {")", "]", "}", "FIELD_END"}
_AMBIGUOUS = {*SOFT_KEYWORDS, "(", ".."}


class Parse(NamedTuple):
    """What was read; never changes.

    Attributes:
        nodes: the parser's stacks, one for each meaning that the text may still have.
        indentations: of the blocks around, with tabs to columns of eight, and with tabs as one column.
        n_brackets: how many are open.
        is_in_line: whether the line has a word yet.
    """

    table: Table
    nodes: tuple[Node, ...]
    indentations: tuple[tuple[int, int], ...] = ((0, 0),)
    n_brackets: int = 0
    is_in_line: bool = False

    def feed(self, event: Event) -> Parse | None:
        """What it is after one more word or line break; None where that cannot come."""
        if isinstance(event, tuple):
            return self._begin_line(event[1], event[2])
        if event == "..":
            once = self.feed(".")
            return once and once.feed(".")
        terminals = [self.table.terminals.get(event, event)]
        if event in SOFT_KEYWORDS:
            terminals.append("NAME")
        if event == "(":
            terminals.append("WITH_PAREN")
        after = self._shift(*terminals)
        n_brackets = self.n_brackets + (event in _OPENING) - (event in _CLOSING)
        if not after or n_brackets > _MOST_BRACKETS:
            return None
        return Parse(self.table, after, self.indentations, n_brackets, True)

    def may_come(self, event: str) -> bool:
        """Whether a word may come; with "LINE", whether a line may end here."""
        if event == "LINE":
            return self.n_brackets > 0 or not self.is_in_line or bool(self._shift("NEWLINE"))
        terminal = self.table.terminals.get(event, event)
        if any(self.table.shift(node, terminal) is not None for node in self.nodes):
            return True
        return event in _AMBIGUOUS and self.feed(event) is not None

    @property
    def may_end(self) -> bool:
        """Whether the file may end here."""
        end = self.feed(("LINE", 0, 0))
        return self.n_brackets == 0 and end is not None and any(map(self.table.may_end, end.nodes))

    def _shift(self, *terminals: str) -> tuple[Node, ...]:
        after = (self.table.shift(node, terminal) for node in self.nodes for terminal in terminals)
        return tuple(node for node in after if node is not None)

    def _begin_line(self, column: int, least: int) -> Parse | None:
        """After a line break and the indentation of the line that follows."""
        if self.n_brackets:
            return self
        if not self.is_in_line:  # of the file, nothing but empty lines
            return self if column == 0 else None
        after, around = self._replaced(self._shift("NEWLINE")), self.indentations
        if column > around[-1][0]:
            if least <= around[-1][1] or len(around) > _MOST_INDENTATIONS:
                return None
            around = (*around, (column, least))
            after = self._replaced(after._shift("INDENT"))
        while column < around[-1][0]:
            around = around[:-1]
            after = self._replaced(after._shift("DEDENT"))
        if not after.nodes or around[-1] != (column, least):
            return None
        return Parse(self.table, after.nodes, around)

    def _replaced(self, nodes: tuple[Node, ...]) -> Parse:
        return Parse(self.table, nodes, self.indentations)
