"""What `syntax="python"` is worth, and what it costs.

    python tools/measure_syntax.py [-m MODEL.gguf] [--files N] [--texts N] [--n-tokens N] [--out RESULT.md]

Rows:

    real tokens       tokens of standard-library files that were fed one by one, and how many of them were refused
    parse             texts drawn at temperature 1, without top-k and top-p, after the heads of library modules: how
                      many are, up to their last whole line, how a Python file begins, with the constraint and without
    ms a token        processor time of the constraint for each token of those files: mean, median, 99th percentile
"""

from __future__ import annotations

import ast
import itertools
import random
import statistics
import sysconfig
import time
import warnings
from pathlib import Path

import click
import numpy as np
from figures import machine, write_table

from localcoder import Coder
from localcoder.errors import OptionError
from localcoder.session.constraint import Surroundings
from localcoder.session.grammar.python.constraint import PythonSyntax

_FLAGS = ast.PyCF_ONLY_AST | 0x4000  # PyCF_ALLOW_INCOMPLETE_INPUT, which codeop uses; from Python 3.11 on
_INCOMPLETE = ("incomplete input", "was never closed", "triple-quoted")


def is_beginning(text: str) -> bool:
    """Whether Python finds nothing wrong before the end of the last whole line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(text[: text.rfind("\n") + 1], "text", "exec", _FLAGS)
        except SyntaxError as error:
            return any(words in str(error) for words in _INCOMPLETE)
    return True


def is_python(coder: Coder, prompt: str) -> bool:
    """Whether a file may begin so; no head of one may, that was cut within a string."""
    try:
        PythonSyntax(coder.tokenizer, coder.n_vocab, Surroundings(prompt.encode()))
    except OptionError:
        return False
    return True


def feed(coder: Coder, text: str) -> tuple[list[float], int]:
    """The seconds that the constraint takes for each token of a file, and how many it refuses: one is the last."""
    constraint = PythonSyntax(coder.tokenizer, coder.n_vocab, Surroundings())
    logits = np.zeros(coder.n_vocab, np.float32)
    seconds = []
    for token in coder.tokenize(text, bos=False):
        start = time.thread_time()
        is_allowed = np.isfinite(constraint.restrict(logits)[token])
        try:
            constraint.accept(token)
        except OptionError:
            is_allowed = False
        seconds.append(time.thread_time() - start)
        if not is_allowed:
            return seconds, 1
    return seconds, 0


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), help="Default: the embedded model.")
@click.option("--files", default=100, help="Files of the standard library.")
@click.option("--most-characters", default=6000, help="Of each file.")
@click.option("--texts", default=100)
@click.option("--n-tokens", default=100, help="Of each text.")
@click.option("--seed", default=0)
@click.option("--out", type=click.Path(path_type=Path), help="Also write the table, as Markdown.")
def main(
    model: Path | None, files: int, most_characters: int, texts: int, n_tokens: int, seed: int, out: Path | None
) -> None:
    """Measure the constraint to Python's syntax."""
    chance = random.Random(seed)
    library = chance.sample(sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")), files)
    rows = []
    with Coder(model) as coder:
        fed = [feed(coder, path.read_text("utf-8")[:most_characters]) for path in library]
        times = sorted(1000 * second for seconds, _ in fed for second in seconds)
        rows.append(["real tokens", f"{len(times)}", f"{sum(refused for _, refused in fed)} refused"])
        heads = [path.read_text("utf-8").split("\ndef ")[0][:400] for path in library]
        prompts = [f"{head[: head.rfind(chr(10)) + 1]}\n\ndef " for head in heads]
        prompts = [prompt for prompt in prompts if is_python(coder, prompt)] or ["def "]
        for name, options in (("with", {"syntax": "python"}), ("without", {})):
            drawn = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_tokens": n_tokens, **options}
            done = [
                (prompt, coder.complete(prompt, seed=seed + number, **drawn))
                for number, prompt in zip(range(texts), itertools.cycle(prompts))
            ]
            n_right = sum(is_beginning(prompt + text) for prompt, text in done)
            rows.append([f"parse, {name}", f"{n_right} of {len(done)}", f"{n_right / len(done):.0%}"])
    p99 = times[len(times) * 99 // 100]
    rows.append(
        ["ms a token", f"{statistics.fmean(times):.2f}", f"median {statistics.median(times):.2f}, 99%: {p99:.2f}"]
    )
    for row in rows:
        click.echo("  ".join(f"{cell:<16}" for cell in row).rstrip())
    if out is not None:
        notes = [f"{coder.path.name}; {machine()}.", "", "`tools/measure_syntax.py` says what the rows are."]
        write_table(out, "Python's syntax as a constraint", notes, ["", "n", "found"], rows)


if __name__ == "__main__":
    main()
