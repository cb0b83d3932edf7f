"""The command line: one command for each stage."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from localcoder.errors import LocalcoderError, OptionError

from .settings import FILE, Settings, read_settings
from .work import Work

DEFAULT_WORK = Path(__file__).resolve().parents[2] / "build" / "train"
F = TypeVar("F", bound=Callable[..., Any])


class _Group(click.Group):
    """Says errors on one line and ends with exit code 2, as localcoder does."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LocalcoderError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)


@click.group(cls=_Group)
@click.option("--work", type=click.Path(path_type=Path), default=DEFAULT_WORK, help="[default: build/train]")
@click.option("--profile", default="gpu", show_default=True, help="A part of the settings file: gpu, cpu or trial.")
@click.option("--settings", "file", type=click.Path(path_type=Path), default=FILE, help="[default: settings.json]")
@click.pass_context
def main(ctx: click.Context, work: Path, profile: str, file: Path) -> None:
    """Train the small model that ships inside the package.

    Stages, each on what the one before left in the work folder: data, tokenizer, pack, train, export, report. Between
    train and export, average may mix in an earlier model.
    """
    ctx.obj = Work(work.absolute()), read_settings(profile, file)


def _say(text: str) -> None:
    click.echo(text, err=True)


@main.command()
@click.option("--packages", type=click.Path(path_type=Path), help="The list.  [default: packages.tsv]")
@click.option("--installed", is_flag=True, help="Take what is installed here; fetch nothing.")
@click.option("--leave-out", type=click.Path(path_type=Path, exists=True), help="A text not to train on any part of.")
@click.pass_obj
def data(obj: tuple[Work, Settings], packages: Path | None, installed: bool, leave_out: Path | None) -> None:
    """Fetch the packages, check their licences, clean, and leave copies out."""
    from .data import make_data
    from .sources import LIST, fetch, fetched_projects, installed_projects, read_list, standard_library

    work, settings = obj
    listed = read_list(packages or LIST)
    if not installed:
        fetch(listed, work.wheels)
    projects = [*(installed_projects(listed) if installed else fetched_projects(listed, work.wheels))]
    left_out = leave_out.read_text(encoding="utf-8") if leave_out else ""
    projects.append(standard_library())
    made = make_data(projects, work, project_mb=settings.documents.project_mb, leave_out=left_out)
    for project in made["projects"]:
        part = "held out" if project["heldout"] else "train"
        _say(f"{project['bytes'] / 1e6:8.2f} MB {project['files']:6} files  {part:8}  {project['licence']:20} "
             f"{project['name']} {project['version']}")  # fmt: skip
    _say(f"{work.corpus}: {made['corpus_bytes'] / 1e6:.1f} MB")


@main.command()
@click.option("--from", "checkpoint", type=click.Path(path_type=Path), help="Take over an earlier checkpoint's.")
@click.pass_obj
def tokenizer(obj: tuple[Work, Settings], checkpoint: Path | None) -> None:
    """Learn the vocabulary."""
    from .data import read_corpus
    from .vocabulary import copy_tokenizer, open_tokenizer, sample_of, save_tokenizer, train_tokenizer

    work, settings = obj
    if checkpoint:
        copy_tokenizer(checkpoint, work.tokenizer)
    else:
        texts = sample_of(source.text for source in read_corpus(work))
        save_tokenizer(train_tokenizer(texts, settings.model.n_vocab), work.tokenizer)
    _say(f"{work.tokenizer}: {open_tokenizer(work.tokenizer).n_vocab} tokens")


@main.command()
@click.option("--workers", type=click.IntRange(1), default=os.cpu_count() or 1, help="[default: the cores]")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--textbooks",
    type=click.FloatRange(0, 1, min_open=True),
    help="To end a training with: how much of the text has to be from what the list has several times.",
)
@click.pass_obj
def pack(obj: tuple[Work, Settings], workers: int, seed: int, textbooks: float | None) -> None:
    """Turn the data into rows of tokens."""
    from .packing import make_rows

    work, settings = obj
    for number, made in enumerate(make_rows(work, settings, workers=workers, seed=seed, textbooks=textbooks)["passes"]):
        share = made["whole_tokens"] / made["tokens"]
        _say(f"pass {number}: {made['rows']} rows, {made['tokens']:,} tokens, {made['documents']} documents, "
             f"of which {made['whole']} infill or chat with {share:.0%} of the tokens")  # fmt: skip


@main.command()
@click.option("--tokens", type=click.IntRange(1), help="Of the whole training; with the last the rates are at zero.")
@click.option("--decay", is_flag=True, help="With --resume: let the rates fall from here on, and so end the training.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after so long; --resume goes on.")
@click.option(
    "--from", "checkpoint", type=click.Path(path_type=Path), help="Start from an earlier checkpoint or GGUF file."
)
@click.option("--resume", is_flag=True, help="Go on where a training was stopped.")
@click.option("--device", help="[default: cuda where there is one, else cpu]")
@click.option("--dtype", type=click.Choice(["auto", "bf16", "f32"]), default="auto", show_default=True)
@click.option("--compile/--no-compile", "compiled", default=True, show_default=True)
@click.option("--micro-rows", type=click.IntRange(1), default=8, show_default=True, help="Rows computed at a time.")
@click.option("--save-minutes", type=float, default=3.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.pass_obj
def train(
    obj: tuple[Work, Settings],
    tokens: int | None,
    decay: bool,
    minutes: float | None,
    checkpoint: Path | None,
    resume: bool,
    device: str | None,
    dtype: str,
    compiled: bool,
    micro_rows: int,
    save_minutes: float,
    seed: int,
) -> None:
    """Train to the end that --tokens or --decay sets. Ctrl-C saves and stops; --resume goes on."""
    import torch

    from .export import read_weights
    from .training import Plan, Trainer, best_dtype

    work, settings = obj
    if resume and checkpoint:
        raise OptionError("--resume goes on with its own weights; leave out --from")
    if decay and (tokens is not None or not resume):
        raise OptionError("--decay ends a training that was begun: give it with --resume and without --tokens")
    if work.state.exists() and not resume:
        raise OptionError(f"{work.state} is there from an earlier training: give --resume, or remove it")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = {"auto": best_dtype(device), "bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    plan = Plan(device, kind, compiled, micro_rows, tokens, decay, minutes, save_minutes, seed)
    trainer = Trainer(work, settings, plan, read_weights(checkpoint) if checkpoint else None)
    if resume:
        trainer.resume()
    elif checkpoint:
        trainer.progress.started_from = checkpoint.resolve().stem
    n_weights = sum(weight.numel() for weight in trainer.model.parameters())
    _say(f"{n_weights / 1e6:.2f}M parameters on {device}, {kind}")
    ended = trainer.run(_say)
    if ended != "done":
        _say(f"stopped after {trainer.amount}; --resume goes on")
    if ended == "interrupted":
        sys.exit(130)


@main.command()
@click.option("--with", "other", type=click.Path(path_type=Path), required=True, help="A checkpoint or GGUF file.")
@click.option("--share", type=click.FloatRange(0, 1), default=0.75, show_default=True, help="Of the trained weights.")
@click.pass_obj
def average(obj: tuple[Work, Settings], other: Path, share: float) -> None:
    """Average the trained weights with those of an earlier model of the same shape."""
    from .training import average as average_state

    work, settings = obj
    average_state(work.state, settings, other, share)
    _say(f"{work.state}: {share:.0%} trained, {1 - share:.0%} {other}")


@main.command()
@click.option("--type", "type_name", help="The quant type.  [default: the profile's]")
@click.option("--dtype", type=click.Choice(["bf16", "f32"]), default="bf16", show_default=True, help="Checkpoint's.")
@click.option("--checkpoint-only", is_flag=True, help="No GGUF file; needs less installed.")
@click.pass_obj
def export(obj: tuple[Work, Settings], type_name: str | None, dtype: str, checkpoint_only: bool) -> None:
    """Write the trained model as a checkpoint, and convert that to GGUF."""
    import torch

    from .export import MOST_BYTES, write_checkpoint
    from .training import read_state

    work, settings = obj
    weights = read_state(work.state)["model"]
    kind = {"bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    write_checkpoint(weights, settings.model, work.tokenizer, work.checkpoint, kind)
    _say(f"wrote {work.checkpoint}")
    if checkpoint_only:
        return
    from .report import gguf_file, run_localcoder

    target = gguf_file(work, settings, weights)
    name = ["--name", target.stem]
    run_localcoder("convert", str(work.checkpoint), str(target), "--type", type_name or settings.type, *name)
    size = target.stat().st_size
    _say(f"wrote {target}: {size:,} bytes")
    if size > MOST_BYTES:
        raise OptionError(f"{target} has {size:,} bytes; the package takes {MOST_BYTES:,}: choose another --type")


@main.command()
@click.option("--humaneval", type=click.Path(path_type=Path), help="HumanEval's problems in Python (JSON lines).")
@click.option("--holes", type=click.IntRange(1), default=100, show_default=True, help="Holes of each kind to fill.")
@click.option("--asked", type=click.IntRange(1), default=30, show_default=True, help="Instructions to answer.")
@click.option("--shipped", is_flag=True, help="Measure the model in the package, on held-out data fetched for it.")
@click.pass_context
def report(ctx: click.Context, humaneval: Path | None, holes: int, asked: int, shipped: bool) -> None:
    """Measure the exported model, and write its card."""
    from .report import make_report, shipped_card, shipped_model, trained_model

    work, settings = ctx.obj
    if shipped:
        model, origin = shipped_model()
        settings = read_settings(origin["profile"])
        if not work.heldout_text.exists():
            _fetch_heldout(work, settings)
    else:
        assert ctx.parent is not None
        model, origin = trained_model(work, settings, ctx.parent.params["profile"])
    make_report(work, settings, model, origin, humaneval and humaneval.absolute(), n_holes=holes, n_asked=asked)
    _say(f"wrote {work.figures} and {work.card}")
    if shipped:
        before, now = shipped_card(), work.card.read_text(encoding="utf-8")
        _say("the card in the package says the same" if before == now else "the card in the package differs:")
        for line in difflib.unified_diff(
            before.splitlines(), now.splitlines(), "package", "measured", n=0, lineterm=""
        ):
            _say(line)


def _fetch_heldout(work: Work, settings: Settings) -> None:
    from .data import make_heldout
    from .sources import fetch, fetched_projects, read_list

    heldout = [package for package in read_list() if package.is_heldout]
    fetch(heldout, work.wheels)
    make_heldout(fetched_projects(heldout, work.wheels), work, project_mb=settings.documents.project_mb)
