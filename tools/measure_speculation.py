"""What guessing repeated text is worth: known answers are replayed over a model, with and without speculation.

    python tools/measure_speculation.py [-m MODEL.gguf] [--tasks N] [--n-tokens N] [--out RESULT.md] [FILE...]

    python tools/measure_speculation.py --shape 1.3b --type q4_0 [...]     random weights, made for the moment

The tasks are edits of functions from Python files, by default those of the running interpreter's standard library:
rename a variable, add an argument, insert a docstring. The prompt is the function, the answer the edited function,
whatever the model itself would say: the weights may be random, and what is measured is the speed. The last row replays
functions after prompts that have nothing to do with them, where nothing should be lost.

Columns: tokens per second of plain decoding and with guesses; their ratio over whole answers; `accepted part`: the same
for the steps that had a right guess; how many of the tokens were guessed rightly. Each task is run both ways in turn,
`--rounds` times; the best round of each counts, so that another program's work is not taken for ours.

It ends with exit code 1 if the accepted part is less than 2 times as fast as plain decoding, or if unrelated text is
slower than 0.97 times.
"""

from __future__ import annotations

import ast
import random
import re
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click
from figures import machine, write_table
from make_checkpoint import SHAPES, make_config, write_gguf

from localcoder import Coder
from localcoder.session.lookup import Lookup
from localcoder.session.sampler import Draft, Sampler
from localcoder.session.session import Session
from localcoder.session.speculation import Speculation

KINDS = ("rename", "argument", "docstring")
UNRELATED = "unrelated"
LEAST_ACCEPTED, LEAST_UNRELATED = 2.0, 0.97
_SIZES = range(400, 1500)  # characters of a function


@dataclass(frozen=True)
class Task:
    kind: str
    prompt: str
    answer: str


@dataclass
class Timed:
    """Tokens and the seconds that they took."""

    n: int = 0
    seconds: float = 0.0

    def add(self, n: int, seconds: float) -> None:
        self.n, self.seconds = self.n + n, self.seconds + seconds

    @property
    def speed(self) -> float:
        return self.n / self.seconds if self.seconds else float("nan")


class Replay(Sampler):
    """Chooses the tokens of a known answer."""

    def __init__(self, n_prompt: int, answer: Sequence[int]) -> None:
        self._n_prompt, self._answer = n_prompt, answer

    def wanted(self, n_vocab: int) -> None:
        """All logits are asked for, as for a choice that needs them."""

    def sample(self, logits: object, history: Sequence[int], constraint: object = None, guess: object = None) -> int:
        return self._answer[len(history) - self._n_prompt]


class Watched(Speculation):
    """Notes the steps in which a guess was right, from the guess to its judgement."""

    def __init__(self, lookup: Lookup) -> None:
        super().__init__(lookup)
        self.accepted = Timed()
        self._start = 0.0

    def draft(self, history: Sequence[int], n_most: int) -> Draft:
        self._start = time.perf_counter()
        return super().draft(history, n_most)

    def learn(self, n_drafted: int, n_accepted: int) -> None:
        if n_accepted:
            self.accepted.add(n_accepted + 1, time.perf_counter() - self._start)  # the step's last token comes free
        super().learn(n_drafted, n_accepted)


def functions_of(text: str) -> Iterator[str]:
    """The functions of a file that are neither short nor long, without the indentation that they share."""
    lines = text.split("\n")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            depth = node.col_offset
            found = "\n".join(line[depth:] for line in lines[node.lineno - 1 : node.end_lineno]) + "\n"
            if len(found) in _SIZES and _is_python(found):
                yield found


def edit(function: str, kind: str, rng: random.Random) -> str | None:
    """The function after an edit; None if it has no place for one that leaves it valid."""
    if kind == "rename":
        names = [name for name in re.findall(r"\b[a-z_]{4,}\b", function) if function.count(name) > 2]
        if not names:
            return None
        name = rng.choice(names)
        edited = re.sub(rf"\b{name}\b", f"new_{name}", function)
    elif kind == "argument":
        edited = re.sub(r"\(([^()]+)\):", r"(\1, verbose=False):", function, count=1)
    else:
        edited = re.sub(r":\n( +)", r':\n\1"""Returns what the tests expect."""\n\1', function, count=1)
    return edited if edited != function and _is_python(edited) else None


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def make_tasks(files: Sequence[Path], n: int, rng: random.Random) -> list[Task]:
    """`n` edits, the kinds in turn, and as many unrelated answers as there are of a kind."""
    functions: list[str] = []
    for path in files:
        try:
            functions += functions_of(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # a file made to be wrong
            continue
    rng.shuffle(functions)
    left = iter(functions)
    made: list[Task] = []
    while len(made) < n:
        kind = KINDS[len(made) % len(KINDS)]
        function = next(left, None)
        if function is None:
            raise click.UsageError(f"these files have too few functions for {n} tasks; name more of them")
        answer = edit(function, kind, rng)
        if answer is not None:
            made.append(Task(kind, f"{function}\n# {kind}\n", answer))
    pairs = zip(left, left)
    return made + [Task(UNRELATED, f"{a}\n\n", b) for (a, b), _ in zip(pairs, range(-(-n // len(KINDS))))]


def replay(coder: Coder, task: Task, n_tokens: int, *, speculate: bool) -> tuple[Timed, Watched | None]:
    """How long decoding took, and what was guessed."""
    ids, target = coder.tokenize(task.prompt), coder.tokenize(task.answer, bos=False)[:n_tokens]
    with closing(Session(coder.engine)) as session:
        session.sync(ids)
        watched = Watched(Lookup(ids)) if speculate else None
        start = time.perf_counter()
        written = list(session.generate(ids, Replay(len(ids), target), max_tokens=len(target), speculation=watched))
        seconds = time.perf_counter() - start
    if written != target:
        raise RuntimeError("speculation changed the text")
    return Timed(len(target), seconds), watched


@dataclass
class Row:
    """What the tasks of a kind took."""

    plain: Timed
    quick: Timed
    accepted: Timed
    n_right: int = 0

    @property
    def ratio(self) -> float:
        return self.quick.speed / self.plain.speed

    @property
    def accepted_ratio(self) -> float:
        return self.accepted.speed / self.plain.speed


def measure(coder: Coder, tasks: Sequence[Task], n_tokens: int, rounds: int) -> Row:
    """The best round of each task, both ways."""
    row = Row(Timed(), Timed(), Timed())
    for task in tasks:
        plain, quick = [], []
        for _ in range(rounds):
            plain.append(replay(coder, task, n_tokens, speculate=False)[0])
            quick.append(replay(coder, task, n_tokens, speculate=True))
        best, watched = min(quick, key=lambda result: result[0].seconds)
        assert watched is not None
        row.plain.add(best.n, min(timed.seconds for timed in plain))
        row.quick.add(best.n, best.seconds)
        row.accepted.add(watched.accepted.n, watched.accepted.seconds)
        row.n_right += watched.n_accepted
    return row


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-m", "--model", type=click.Path(path_type=Path), help="Default: the embedded model.")
@click.option("--shape", type=click.Choice(list(SHAPES)), help="Instead of a model: random weights of this shape.")
@click.option("--type", "type_name", default="q4_0", show_default=True, help="Of those weights.")
@click.option("--tasks", default=20, help="Edits in all.")
@click.option("--n-tokens", default=200, help="Most tokens of an answer.")
@click.option("--rounds", type=click.IntRange(1), default=3)
@click.option("--threads", type=int)
@click.option("--seed", default=0)
@click.option("--out", type=click.Path(path_type=Path), help="Also write the table, as Markdown.")
def main(
    files: tuple[Path, ...],
    model: Path | None,
    shape: str | None,
    type_name: str,
    tasks: int,
    n_tokens: int,
    rounds: int,
    threads: int | None,
    seed: int,
    out: Path | None,
) -> None:
    """Measure speculation."""
    library = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    made = make_tasks(files or library, tasks, random.Random(seed))
    with tempfile.TemporaryDirectory() as folder:
        if shape is not None:
            model = Path(folder) / f"random-{shape}-{type_name}.gguf"
            write_gguf(model, make_config(**SHAPES[shape]), type_name)
        _measure(model, made, n_tokens, rounds, threads, out)


def _measure(
    model: Path | None, made: Sequence[Task], n_tokens: int, rounds: int, threads: int | None, out: Path | None
) -> None:
    with Coder(model, n_ctx=2048, threads=threads) as coder:
        replay(coder, made[0], 8, speculate=True)  # warms up
        click.echo(f"{'tasks':<14}{'plain t/s':>10}{'guessing':>10}{'ratio':>7}{'accepted part':>15}{'right':>7}")
        rows, shown = {}, []
        for kind in (*KINDS, UNRELATED):
            chosen = [task for task in made if task.kind == kind]
            row = rows[kind] = measure(coder, chosen, n_tokens, rounds)
            speeds = [f"{row.plain.speed:.1f}", f"{row.quick.speed:.1f}", f"{row.ratio:.2f}"]
            cells = [f"{len(chosen)} {kind}", *speeds, f"{row.accepted_ratio:.2f}", f"{row.n_right / row.plain.n:.0%}"]
            shown.append(cells)
            click.echo(f"{cells[0]:<14}{cells[1]:>10}{cells[2]:>10}{cells[3]:>7}{cells[4]:>15}{cells[5]:>7}")
        if out is not None:
            notes = [
                f"{coder.path.name}; {machine()}.",
                "",
                "`tools/measure_speculation.py` says what the columns are.",
            ]
            header = ["tasks", "plain tokens/s", "guessing", "ratio", "accepted part", "right"]
            write_table(out, "Guessing what repeats itself", notes, header, shown)
    missed = [kind for kind in KINDS if not rows[kind].accepted_ratio >= LEAST_ACCEPTED]
    missed += [UNRELATED] if not rows[UNRELATED].ratio >= LEAST_UNRELATED else []
    if missed:
        click.echo(f"below what it should be: {', '.join(missed)}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
