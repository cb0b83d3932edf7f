"""`localcoder perplexity`: how well a model predicts a text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from localcoder.cli.common import (
    device_option,
    echo_json,
    json_option,
    open_coder,
    read_text,
    step_progress,
    threads_option,
)


@click.command()
@click.argument("model", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--file", "text_file", required=True, type=click.Path(path_type=Path), help="The text, UTF-8.")
@click.option("--n-ctx", default=512, show_default=True, help="Tokens in a chunk.")
@threads_option
@device_option
@json_option
def perplexity(model: Path, text_file: Path, n_ctx: int, threads: int | None, device: str, as_json: bool) -> None:
    """Measure how well a model predicts a text.

    The definition is llama-perplexity's: chunks of n_ctx tokens, each begun with BOS and scored over its second half.
    """
    from localcoder.measure.perplexity import chunk_losses, summarize

    text = read_text(text_file)
    with open_coder(model, n_ctx=n_ctx, threads=threads, device=device) as coder:
        tokens = coder.tokenize(text)
        bos_id = coder.tokenizer.bos_id if coder.tokenizer.add_bos else None
        losses = []
        with step_progress("perplexity") as progress:
            for chunk in chunk_losses(coder.engine, tokens, n_ctx, bos_id):
                losses.append(chunk)
                progress(len(losses), len(tokens) // n_ctx, f"{summarize(losses).perplexity:.4f}")
    result = summarize(losses)
    if as_json:
        echo_json({"model": str(model), "file": str(text_file), "n_ctx": n_ctx, **asdict(result)})
    else:
        click.echo(
            f"perplexity {result.perplexity:.4f} ± {result.standard_error:.4f} "
            f"({result.n_tokens} tokens scored in {result.n_chunks} chunks of {n_ctx})"
        )
