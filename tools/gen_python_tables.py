"""Writes `localcoder/session/grammar/python/tables.json.gz`: an LALR(1) table for each version of Python.

`python.lark` beside it is the source; the library lark (extra `test`) computes the tables.

    python tools/gen_python_tables.py
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lark import Lark
from lark.lexer import Lexer
from lark.parsers.lalr_analysis import Shift

FOLDER = Path(__file__).parents[1] / "localcoder/session/grammar/python"
VERSIONS = range(10, 15)
_SINCE = re.compile(r"// 3\.(\d+)$")


class NoLexer(Lexer):
    """Words come from elsewhere."""

    def __init__(self, _: Any) -> None:
        pass

    def lex(self, *_: Any) -> Iterator[Any]:
        return iter(())


def tables(grammar: str) -> bytes:
    """The file, the same whenever and wherever it is made."""
    found = {f"3.{minor}": _table(grammar, minor) for minor in VERSIONS}
    return gzip.compress(json.dumps(found, separators=(",", ":")).encode(), mtime=0)


def _table(grammar: str, minor: int) -> dict[str, Any]:
    """One table, as `localcoder/session/grammar/python/table.py` reads it."""
    lines = [line for line in grammar.splitlines() if not (since := _SINCE.search(line)) or int(since[1]) <= minor]
    parser = Lark("\n".join(lines), parser="lalr", lexer=NoLexer)
    made = parser.parse_interactive("").parser_state.parse_conf.parse_table
    order = [made.start_states["start"]]  # lark's own numbers are different each time
    numbers = {order[0]: 0}
    reductions: dict[str, int] = {}
    rows: list[Any] = []
    for state in order:
        shifts: dict[str, int] = {}
        rules: dict[tuple[str, int], list[str]] = {}
        for name, (action, to) in sorted(made.states[state].items()):
            if action is Shift:
                if to not in numbers:
                    numbers[to] = len(order)
                    order.append(to)
                shifts[name] = numbers[to]
            else:
                rules.setdefault((str(to.origin.name), len(to.expansion)), []).append(name)
        reduced = json.dumps([[*rule, " ".join(names)] for rule, names in sorted(rules.items())])
        rows.append([shifts, reductions.setdefault(reduced, len(reductions))])
    return {
        "terminals": {t.pattern.value: t.name for t in sorted(parser.terminals, key=lambda t: t.name)},
        "end": numbers[made.end_states["start"]],
        "reductions": [json.loads(reduced) for reduced in reductions],
        "states": rows,
    }


def main() -> None:
    (FOLDER / "tables.json.gz").write_bytes(tables((FOLDER / "python.lark").read_text("utf-8")))


if __name__ == "__main__":
    main()
