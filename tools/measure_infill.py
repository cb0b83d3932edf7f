"""What infill is worth on Python files that a model never saw, with every rule on and off.

    python tools/measure_infill.py FILE... [-m MODEL.gguf] [-n HOLES] [--seed SEED] [--out RESULT.md]

Holes are made in top-level statements of the files, which have to be Python as `ast` reads it:

    word    from within a word to the end of the line
    clean   from between two words to the end of the line
    split   from within a word to within a word of the same line
    lines   one to four whole lines of a block

For each kind and each set of rules: the share of exact answers (white space at their ends aside), the mean similarity
(difflib's ratio), and the share whose statement parses with the answer in the hole.
"""

from __future__ import annotations

import ast
import difflib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
from figures import machine, write_table

from localcoder import Coder, InfillRequest
from localcoder.assist.hygiene import ALL_RULES, NO_RULES, Rules, Scope

VARIANTS: dict[str, Rules] = {
    "all": ALL_RULES,
    "none": NO_RULES,
    **{f"no {name}": replace(ALL_RULES, **{name: False}) for name in vars(ALL_RULES)},
}
KINDS = ("word", "clean", "split", "lines")
BEFORE, AFTER = 2000, 600  # characters around a statement


@dataclass(frozen=True)
class Hole:
    """A hole in a file: `text[begin:end]` is missing; it lies in the statement `text[first:last]`."""

    text: str
    first: int
    last: int
    begin: int
    end: int
    scope: Scope

    def request(self, rules: Rules) -> InfillRequest:
        prefix = self.text[max(0, self.first - BEFORE) : self.begin]
        return InfillRequest(prefix, self.text[self.end : self.last + AFTER], "x.py", scope=self.scope, rules=rules)

    @property
    def truth(self) -> str:
        return self.text[self.begin : self.end]

    def parses(self, middle: str) -> bool:
        try:
            ast.parse(self.text[self.first : self.begin] + middle + self.text[self.end : self.last])
        except (SyntaxError, ValueError, RecursionError):
            return False
        return True


def make_holes(text: str, kind: str, n: int, rng: random.Random) -> Iterator[Hole]:
    """`n` holes of a kind in one text, at places that the generator draws."""
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    nodes = [node for node in ast.parse(text).body if (node.end_lineno or 0) - node.lineno in range(4, 200)]
    made = 0
    while made < n:
        node = rng.choice(nodes)
        first, last = starts[node.lineno - 1], starts[node.end_lineno or 0] - 1
        number = rng.randrange(node.lineno, node.end_lineno or 0)
        begin, end = starts[number], starts[number + 1] - 1
        line = text[begin:end]
        within = [begin + match.start() for match in re.finditer(r"(?<=\w)(?=\w)", line)]
        between = [begin + match.start() for match in re.finditer(r"(?<=\w)(?=\W)|(?<=[^\w\s])(?=\w)", line)]
        if not line.strip() or line.strip().startswith("#"):
            continue
        hole: tuple[int, int] | None = None
        if kind == "word" and within:
            hole = rng.choice(within), end
        elif kind == "clean" and between:
            hole = rng.choice(between), end
        elif kind == "split" and len(within) > 8:
            a, b = sorted(rng.sample(within, 2))
            hole = (a, b) if 2 <= b - a <= 30 else None
        elif kind == "lines" and number + 4 < (node.end_lineno or 0):
            hole = begin, starts[number + rng.randint(1, 4)] - 1
        if hole:
            made += 1
            yield Hole(text, first, last, *hole, scope="block" if kind == "lines" else "line")


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("-m", "--model", type=click.Path(path_type=Path), help="Default: the embedded model.")
@click.option("-n", "--holes", default=40, help="Holes of each kind in each file.")
@click.option("--seed", default=0)
@click.option("--kind", "kinds", multiple=True, default=KINDS, type=click.Choice(KINDS))
@click.option("--only", multiple=True, help="Sets of rules to measure.  [default: all of them]")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the table, as Markdown.")
def main(
    files: tuple[Path, ...],
    model: Path | None,
    holes: int,
    seed: int,
    kinds: tuple[str, ...],
    only: tuple[str, ...],
    out: Path | None,
) -> None:
    """Measure infill on held-out files."""
    with Coder(model) as coder:
        rows = []
        click.echo(f"{'holes':<8}{'rules':<16}{'exact':>8}{'similar':>9}{'parses':>8}")
        for kind in kinds:
            rng = random.Random(seed)
            made = [hole for file in files for hole in make_holes(file.read_text("utf-8"), kind, holes, rng)]
            names = only or tuple(VARIANTS)
            sums = {name: [0.0, 0.0, 0.0] for name in names}
            for hole in made:  # one after another, so that its sets of rules share what is computed of the prompt
                for name in names:
                    n_tokens = 64 if kind == "lines" else 24
                    answer = coder.start_infill(hole.request(VARIANTS[name]), max_tokens=n_tokens).run().text
                    truth, given = hole.truth.strip(), answer.strip()
                    similarity = difflib.SequenceMatcher(None, truth, given, autojunk=False).ratio()
                    for i, value in enumerate((truth == given, similarity, hole.parses(answer))):
                        sums[name][i] += value / len(made)
            for name, (exact, similar, parsed) in sums.items():
                click.echo(f"{kind:<8}{name:<16}{exact:>8.1%}{similar:>9.3f}{parsed:>8.1%}")
                rows.append([kind, name, str(len(made)), f"{exact:.1%}", f"{similar:.3f}", f"{parsed:.1%}"])
        if out is not None:
            notes = [f"{coder.path.name}; {machine()}.", "", "`tools/measure_infill.py` says what the columns are."]
            header = ["holes", "rules", "n", "exact", "similar", "parses"]
            write_table(out, "Infill, with the rules on and off", notes, header, rows)


if __name__ == "__main__":
    main()
