"""`localcoder perplexity`: how well models predict a text, and how far they are from a base model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localcoder.cli.common import (
    MODEL_FILE,
    device_option,
    echo_json,
    gpu_layers_option,
    json_option,
    kv_type_option,
    open_coder,
    read_text,
    step_progress,
    threads_option,
)
from localcoder.errors import FileError, OptionError, printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from localcoder.coder import Coder
    from localcoder.measure.divergence import Divergence
    from localcoder.measure.perplexity import Perplexity
    from localcoder.measure.saved_logits import SavedLogits


@click.command()
@click.argument("models", metavar="FILE...", nargs=-1, required=True, type=MODEL_FILE)
@click.option("--file", "text_file", required=True, type=click.Path(path_type=Path), help="The text, UTF-8.")
@click.option("--n-ctx", default=512, show_default=True, help="Tokens in a chunk.")
@click.option(
    "--kl-base", type=click.Path(path_type=Path), metavar="BASE",
    help="Compare with this GGUF file, or with logits saved from one.",
)  # fmt: skip
@click.option(
    "--save-logits", type=click.Path(path_type=Path), metavar="OUT", help="Keep the logits, for a later --kl-base."
)
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="OUT.png|svg",
    help="Draw size against KL divergence of all FILEs.",
)  # fmt: skip
@kv_type_option
@threads_option
@device_option
@gpu_layers_option
@json_option
def perplexity(
    models: tuple[Path, ...],
    text_file: Path,
    n_ctx: int,
    kl_base: Path | None,
    save_logits: Path | None,
    plot: Path | None,
    kv_type: str,
    threads: int | None,
    device: str,
    gpu_layers: int | None,
    as_json: bool,
) -> None:
    """Measure how well a model predicts a text.

    The definition is llama-perplexity's: chunks of n_ctx tokens, each begun with BOS and scored over its second half.

    With --kl-base each FILE is also compared with a base model, usually the unquantized one: mean and 99th percentile
    of the KL divergence (nats) and how often both have the same likeliest token. Standard errors take the chunks of
    the text as what varies. All files are open at the same time.
    """
    if save_logits and (kl_base or len(models) > 1):
        raise click.UsageError("--save-logits takes one FILE, without --kl-base")
    if plot and not kl_base:
        raise click.UsageError("--plot shows the KL divergence: it needs --kl-base")
    if plot:
        from localcoder.measure.plot import check_plot_target

        check_plot_target(plot)
    text = read_text(text_file)
    with contextlib.ExitStack() as stack:

        def opened(path: Path) -> Coder:
            return stack.enter_context(
                open_coder(path, n_ctx=n_ctx, threads=threads, device=device, gpu_layers=gpu_layers, kv_type=kv_type)
            )

        coders = [opened(path) for path in models]
        texts = [_cut(coder, text, n_ctx) for coder in coders]
        results: Sequence[Perplexity | Divergence]
        if kl_base:
            base = opened(kl_base) if _is_gguf(kl_base) else stack.enter_context(_saved_logits(kl_base))
            results = _diverge(base, coders, texts, text)
        else:
            results = [_measure(coder, chunks, save_logits) for coder, chunks in zip(coders, texts)]
        described = [{**_about(coder), **asdict(result)} for coder, result in zip(coders, results)]
    if plot:
        from localcoder.measure.plot import plot_divergences

        plot_divergences(described, plot, base_name=kl_base.stem if kl_base else "", text_name=text_file.name)
    if as_json:
        about = {"file": str(text_file), "n_ctx": n_ctx, "kl_base": str(kl_base) if kl_base else None}
        echo_json({**described[0], **about} if len(described) == 1 else {**about, "models": described})
    else:
        for line in _table(described) if kl_base else map(_line, described):
            click.echo(line)


def _cut(coder: Coder, text: str, n_ctx: int) -> NDArray[np.int32]:
    from localcoder.measure.chunks import cut_chunks

    bos_id = coder.tokenizer.bos_id if coder.tokenizer.add_bos else None
    return cut_chunks(coder.tokenize(text), n_ctx, bos_id)


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as f:
            return f.read(4) == b"GGUF"
    except OSError as error:
        raise FileError(path, (error.strerror or str(error)).lower()) from None


def _saved_logits(path: Path) -> SavedLogits:
    from localcoder.measure.saved_logits import SavedLogits

    return SavedLogits(path)


def _about(coder: Coder) -> dict[str, Any]:
    summary = coder.engine.file.summary()
    return {
        "model": str(coder.path),
        "file_bytes": summary.file_bytes,
        "bits_per_weight": summary.total.bits_per_weight,
    }


def _measure(coder: Coder, chunks: NDArray[np.int32], save_logits: Path | None) -> Perplexity:
    from localcoder.measure.perplexity import chunk_losses, scored_pieces, summarize
    from localcoder.measure.saved_logits import LogitsWriter, saving

    pieces = scored_pieces(coder.engine, chunks)
    losses: list[NDArray[np.float64]] = []
    with contextlib.ExitStack() as stack:
        if save_logits:
            writer = LogitsWriter(save_logits, chunks, coder.n_vocab, inputs=[coder.path])
            pieces = saving(pieces, stack.enter_context(writer))
        progress = stack.enter_context(step_progress("perplexity"))
        for loss in chunk_losses(pieces):
            losses.append(loss)
            progress(len(losses), len(chunks), f"{summarize(losses).perplexity:.4f}")
    return summarize(losses)


def _diverge(
    base: Coder | SavedLogits, coders: Sequence[Coder], texts: Sequence[NDArray[np.int32]], text: str
) -> list[Divergence]:
    """Runs the base and all models side by side, so that nobody's logits need to be kept."""
    import numpy as np

    from localcoder.measure.divergence import compare_pieces
    from localcoder.measure.perplexity import scored_pieces
    from localcoder.measure.saved_logits import SavedLogits
    from localcoder.model.engine import check_same_vocabulary

    if isinstance(base, SavedLogits):
        base_chunks, base_pieces = base.chunks, base.pieces()
        n_vocab = base.logits.shape[2]
    else:
        base_chunks = _cut(base, text, texts[0].shape[1])
        base_pieces, n_vocab = scored_pieces(base.engine, base_chunks), base.n_vocab
        for coder in coders:
            check_same_vocabulary(base.engine, coder.engine)
    for coder, chunks in zip(coders, texts):
        if coder.n_vocab != n_vocab or not np.array_equal(chunks, base_chunks):
            found = f"{coder.path} has {chunks.shape} tokens (chunks, n_ctx) and a vocabulary of {coder.n_vocab}"
            expected = f"the base {base.path} {base_chunks.shape} and {n_vocab}"
            raise OptionError(f"not the same text, n_ctx or vocabulary: {found}; {expected}, or other tokens")
    with step_progress("divergence") as progress:
        models = [scored_pieces(coder.engine, chunks) for coder, chunks in zip(coders, texts)]
        for n_done, samples in enumerate(compare_pieces(base_pieces, models), 1):
            progress(n_done, len(base_chunks), f"{samples[0].mean_kl:.5f}")
    return [sample.summarize() for sample in samples]


def _line(described: dict[str, Any]) -> str:
    return (
        f"perplexity {described['perplexity']:.4f} ± {described['standard_error']:.4f} "
        f"({described['n_tokens']} tokens scored in {described['n_chunks']} chunks): {described['model']}"
    )


def _table(described: Sequence[dict[str, Any]]) -> Iterator[str]:
    first = described[0]
    scored = f"{first['n_tokens']} tokens scored in {first['n_chunks']} chunks"
    yield f"{scored}; base perplexity {first['base_perplexity']:.4f}"
    header = f"{'GB':>7} {'bpw':>5}  {'KL divergence':>20}  {'99%':>18}  {'top-1 %':>14}  {'perplexity / base':>17}"
    yield f"{header}  file"
    for d in described:
        cells = [
            f"{d['file_bytes'] / 1e9:7.3g} {d['bits_per_weight']:5.2f}",
            f"{d['kl_divergence']:.3g} ± {_se(d['kl_divergence_se'], '.1g'):>7}".rjust(20),
            f"{d['kl_p99']:.3g} ± {_se(d['kl_p99_se'], '.1g'):>6}".rjust(18),
            f"{100 * d['top1_agreement']:.2f} ± {_se(d['top1_agreement_se'], '.2f', 100):>4}".rjust(14),
            f"{d['perplexity_ratio']:.4f} ± {_se(d['perplexity_ratio_se'], '.4f'):>6}".rjust(17),
            printable(d["model"]),
        ]
        yield "  ".join(cells)


def _se(error: float | None, form: str, factor: float = 1) -> str:
    return "?" if error is None else format(factor * error, form)
