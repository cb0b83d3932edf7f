"""What guessing repeated text is worth: known answers are replayed over a model, with and without speculation.

    python tools/measure_speculation.py FILE... -m MODEL.gguf [--tasks N] [--n-tokens N]

The tasks are edits of functions from Python files: rename a variable, add an argument, insert a docstring. The prompt
is the function, the answer the edited function, whatever the model itself would say: the weights may be random. The
last row replays functions after prompts that have nothing to do with them, where nothing should be lost.
"""

from __future__ import annotations

import ast
import random
import re
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import click

from localcoder import Coder
from localcoder.session.lookup import Lookup
from localcoder.session.sampler import Sampler
from localcoder.session.session import Session
from localcoder.session.speculation import Speculation

Task = tuple[str, str, str]  # kind, prompt, answer


class Replay(Sampler):
    """Chooses the tokens of a known answer."""

    def __init__(self, n_prompt: int, answer: Sequence[int]) -> None:
        self._n_prompt, self._answer = n_prompt, answer

    def sample(self, logits: object, history: Sequence[int], constraint: object = None, guess: object = None) -> int:
        return self._answer[len(history) - self._n_prompt]


def functions_of(text: str) -> list[str]:
    lines = text.split("\n")
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    found = ["\n".join(lines[node.lineno - 1 : node.end_lineno]) + "\n" for node in nodes]
    return [function for function in found if 400 < len(function) < 1500]


def edit(function: str, kind: str, rng: random.Random) -> str | None:
    if kind == "rename":
        names = [name for name in re.findall(r"\b[a-z_]{4,}\b", function) if function.count(name) > 2]
        if not names:
            return None
        name = rng.choice(names)
        return re.sub(rf"\b{name}\b", f"new_{name}", function)
    if kind == "argument":
        return re.sub(r"\((.*?)\):", r"(\1, verbose=False):", function, count=1)
    head, _, body = function.partition(":\n")
    indent = re.match(r"\s*", body)[0]  # type: ignore[index]  # always matches
    return f'{head}:\n{indent}"""Returns what the tests expect."""\n{body}'


def replay(coder: Coder, prompt: str, answer: str, n_tokens: int, *, speculate: bool) -> tuple[float, int, int]:
    """Seconds of decoding, tokens, and how many of them were guessed rightly."""
    ids, target = coder.tokenize(prompt), coder.tokenize(answer, bos=False)[:n_tokens]
    with closing(Session(coder.engine)) as session:
        session.sync(ids)
        speculation = Speculation(Lookup(ids)) if speculate else None
        start = time.perf_counter()
        chooser = Replay(len(ids), target)
        for _ in session.generate(ids, chooser, max_tokens=len(target), speculation=speculation):
            pass
        return time.perf_counter() - start, len(target), speculation.n_accepted if speculation else 0


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("-m", "--model", type=click.Path(path_type=Path), help="Default: the embedded model.")
@click.option("--tasks", default=7, help="Tasks of each kind.")
@click.option("--n-tokens", default=200, help="Most tokens of an answer.")
@click.option("--seed", default=0)
def main(files: tuple[Path, ...], model: Path | None, tasks: int, n_tokens: int, seed: int) -> None:
    """Measure speculation."""
    rng = random.Random(seed)
    functions = [function for file in files for function in functions_of(file.read_text("utf-8"))]
    made: list[Task] = []
    for kind in ("rename", "argument", "docstring"):
        pairs = [(f, edit(f, kind, rng)) for f in rng.sample(functions, min(3 * tasks, len(functions)))]
        made += [(kind, f"{f}\n# {kind}\n", answer) for f, answer in pairs if answer][:tasks]
    a, b = rng.sample(functions, tasks), rng.sample(functions, tasks)
    made += [("unrelated", f"{f}\n\n", answer) for f, answer in zip(a, b)]
    with Coder(model, n_ctx=2048) as coder:
        replay(coder, made[0][1], made[0][2], 8, speculate=True)  # warms up
        click.echo(f"{'tasks':<12}{'plain t/s':>10}{'guessing':>10}{'ratio':>7}{'right':>7}")
        for kind in dict.fromkeys(kind for kind, _, _ in made):
            plain = quick = n = n_right = 0.0
            for _, prompt, answer in [task for task in made if task[0] == kind]:
                seconds, n_answer, _ = replay(coder, prompt, answer, n_tokens, speculate=False)
                plain, n = plain + seconds, n + n_answer
                seconds, _, right = replay(coder, prompt, answer, n_tokens, speculate=True)
                quick, n_right = quick + seconds, n_right + right
            click.echo(f"{kind:<12}{n / plain:>10.1f}{n / quick:>10.1f}{plain / quick:>7.2f}{n_right / n:>7.0%}")


if __name__ == "__main__":
    main()
