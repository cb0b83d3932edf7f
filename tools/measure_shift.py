"""What it costs to keep keys and values whose positions change: against computing the text that is left afresh.

    python tools/measure_shift.py -m MODEL.gguf [--kv-type TYPE] [--texts N] [--n-ctx N]

Two cases, on files of the standard library: `shift`, a context whose older half is forgotten while the text goes on
(`context_overflow="shift"`), and `edit`, a few lines in the middle of a file that are deleted, so that what follows
would only have to be moved. In both, tokens are cut out of the cache, and the next ones are predicted from what is
left.

Figures of the demonstration model as f32, 10 texts of 256 tokens (mean divergence in nats, share of positions with the
same likeliest token, loss of what really follows):

    KV cache   shift                                 edit
    f16        0.0068   94.3%   3.2816 -> 3.2828     0.0023   98.3%   3.2828 -> 3.2744
    q8_0       0.0070   94.0%   3.2815 -> 3.2840     0.0025   97.5%   3.2836 -> 3.2766
    q4_0       0.0478   88.9%   3.3872 -> 3.3889     0.0601   90.2%   3.3893 -> 3.3850

So a shift costs nothing that the loss would show, and is done that way: the text of a full context has no right answer
that it could miss. After an edit it has one, that of a fresh session, and one greedy token in fifty would differ from
it, though nothing was inserted or renamed that the moved text ought to have seen. So an edit re-uses what stands before
it, and nothing after it.

Contexts longer than what a model was trained on say little: at 1024 tokens this one, which was trained on 512, predicts
nothing well either way (`shift` 0.36 nats, 69%).
"""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from localcoder import Coder
from localcoder.model.engine import Chunk, Engine
from localcoder.model.kv_types import KV_TYPES
from localcoder.session.sampler import logprobs

N_SCORED = 64  # tokens after what is in the cache
EDIT_TOKENS = 24
CASES = ("shift", "edit")


def files_of_the_library(rng: random.Random) -> Iterator[str]:
    """Texts of the running interpreter's standard library, in an order of chance."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    rng.shuffle(paths)
    for path in paths:
        yield path.read_text("utf-8", errors="replace")


def predictions(engine: Engine, tokens: np.ndarray, cut: tuple[int, int], *, afresh: bool) -> np.ndarray:
    """Log-probabilities [N_SCORED, n_vocab] after each of the last tokens, the others being in the cache without those
    from cut[0] to cut[1]."""
    past, scored = tokens[:-N_SCORED], tokens[-N_SCORED:]
    sequence = engine.new_sequence()
    try:
        if afresh:
            past = np.concatenate([past[: cut[0]], past[cut[1] :]])
        engine.evaluate([Chunk(sequence, past, 0)])
        if not afresh:
            engine.cut(sequence, *cut)
        return np.stack([logprobs(row) for row in engine.evaluate([Chunk(sequence, scored, N_SCORED)])])
    finally:
        sequence.close()


def compare(engine: Engine, tokens: np.ndarray, cut: tuple[int, int]) -> list[tuple[float, float, float, float]]:
    """For each position: divergence, whether the likeliest token is the same, losses afresh and moved."""
    fresh = predictions(engine, tokens, cut, afresh=True)
    moved = predictions(engine, tokens, cut, afresh=False)
    divergence = (np.exp(fresh) * (fresh - moved)).sum(-1)[:-1]
    same = (fresh.argmax(-1) == moved.argmax(-1))[:-1]
    following = tokens[-N_SCORED + 1 :]
    rows = np.arange(len(following))
    return list(zip(divergence, same, -fresh[rows, following], -moved[rows, following]))


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), help="Default: the embedded model.")
@click.option("--kv-type", type=click.Choice(KV_TYPES), default=KV_TYPES[0])
@click.option("--texts", default=30, help="Files to look at.")
@click.option("--n-ctx", default=256, help="Tokens that are computed before some are cut out.")
@click.option("--seed", default=0)
def main(model: Path | None, kv_type: str, texts: int, n_ctx: int, seed: int) -> None:
    """Measure what moved keys cost."""
    rng = random.Random(seed)
    found: dict[str, list[tuple[float, float, float, float]]] = {case: [] for case in CASES}
    with Coder(model, n_ctx=n_ctx + N_SCORED, kv_type=kv_type) as coder:
        n_texts = 0
        for text in files_of_the_library(rng):
            tokens = np.array(coder.tokenize(text)[: n_ctx + N_SCORED], np.int32)
            if len(tokens) < n_ctx + N_SCORED:
                continue
            middle = n_ctx // 2
            found["shift"] += compare(coder.engine, tokens, (1, 1 + middle))
            found["edit"] += compare(coder.engine, tokens, (middle, middle + EDIT_TOKENS))
            n_texts += 1
            if n_texts == texts:
                break
    click.echo(f"{'case':<6}{'mean KL':>9}{'99% KL':>9}{'same top':>10}{'loss afresh':>13}{'moved':>8}")
    for case, rows in found.items():
        divergence, same, fresh, moved = np.array(rows).T
        tail = np.quantile(divergence, 0.99)
        figures = f"{divergence.mean():>9.4f}{tail:>9.3f}{same.mean():>10.1%}{fresh.mean():>13.4f}{moved.mean():>8.4f}"
        click.echo(f"{case:<6}{figures}")


if __name__ == "__main__":
    main()
