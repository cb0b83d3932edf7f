"""The model card, from the figures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .settings import Settings

_TEXT = """\
# {name}

The model inside the package: every command works with it on a fresh machine, without a download. It is a
demonstration, not an assistant. What it writes looks like Python; it is seldom right.

| | |
| --- | --- |
| File | `{file}`, GGUF v3, {type}, {megabytes:.1f} MB |
| Parameters | {millions:.1f} million: {n_layer} layers, width {n_embd}, {n_head} heads over {n_head_kv} KV heads, \
feed-forward width {n_ff}, {tying} |
| Architecture | LLaMA as the DeepSeek-Coder models use it: RoPE base {base:g}, linear scaling {factor:g}, no biases |
| Vocabulary | {n_vocab:,} tokens of byte-level BPE, with DeepSeek-Coder's pre-tokenizer and special tokens |
| Context | {n_ctx:,} positions (trained on {row_tokens:,} at a time) |
| Infill | prefix, suffix, middle; {fim_share:.0%} of the files |
| Chat | DeepSeek-Coder's instruct prompt; functions from the data and their docstrings' first sentences |
| Licence | the project's |

## Data

{beginning}{corpus_mb:.0f} MB of Python: a pass through all of it has {corpus_tokens:,} tokens, of which the training
saw {trained_tokens:,} in {minutes} minutes{ending}. Tests, generated files, vendored code and near copies were left
out. {averaged}Licences as the packages' own metadata state them:

{train}

Held out, and trained on neither as they are nor in copies that others carry:

{heldout}

## Figures

On the held-out projects alone.

| | |
| --- | --- |
{figures}

## Limits

Python only. It knows few facts and has no safeguards; it may repeat fragments of its training data. Use it to try the
program, not to write programs.

Made by `tools/train`; `python tools/train report --shipped --humaneval humaneval-python.jsonl` measures the figures
again, on the same held-out files, which it fetches.
"""


def make_card(figures: Mapping[str, Any], settings: Settings) -> str:
    """The card's text.

    Args:
        figures: as `make_report` puts them together.
    """
    model, documents, origin = settings.model, settings.documents, figures["origin"]
    data = origin["projects"]
    return _TEXT.format(
        name=figures["file"].removesuffix(".gguf"),
        file=figures["file"],
        type=settings.type,
        megabytes=figures["file_bytes"] / 1e6,
        millions=origin["n_weights"] / 1e6,
        n_layer=model.n_layer,
        n_embd=model.n_embd,
        n_head=model.n_head,
        n_head_kv=model.n_head_kv,
        n_ff=model.n_ff,
        tying="output tied to the embedding" if model.tied else "output of its own",
        base=model.rope_freq_base,
        factor=model.rope_factor,
        n_vocab=model.n_vocab,
        n_ctx=model.n_ctx_train,
        row_tokens=documents.row_tokens,
        fim_share=documents.fim_share,
        corpus_mb=sum(project["bytes"] for project in data if not project["heldout"]) / 1e6,
        corpus_tokens=origin["corpus_tokens"],
        trained_tokens=origin["trained_tokens"],
        minutes=round(origin["trained_seconds"] / 60),
        beginning=_beginning(origin["started_from"]),
        averaged=_averaged(origin["averaged"]),
        ending=_ending(origin["textbooks"], origin["trained_tokens"]),
        train=_projects([project for project in data if not project["heldout"]]),
        heldout=_projects([project for project in data if project["heldout"]]),
        figures="\n".join(f"| {name} | {value} |" for name, value in _rows(figures)),
    )


def _beginning(name: str) -> str:
    """What is known of the checkpoint that the training began with: a file beside this one, called as it is."""
    if not name:
        return ""
    about = Path(__file__).with_name(f"{name}.md")
    known = about.read_text(encoding="utf-8").strip() if about.exists() else f"The training began with {name}."
    return f"{known}\n\n"


def _ending(textbooks: tuple[float, int] | None, n_tokens: int) -> str:
    if textbooks is None:
        return ""
    share, begun = textbooks
    return f",\nthe last {n_tokens - begun:,} of them with {share:.0%} of the text from what a pass has several times"


def _averaged(averaged: tuple[str, float] | None) -> str:
    if averaged is None:
        return ""
    name, share = averaged
    return f"The weights are {share:.0%} of the trained ones and {1 - share:.0%} of the earlier {name}'s.\n"


def _projects(projects: Sequence[Mapping[str, Any]]) -> str:
    lines: list[str] = []
    for licence in sorted({project["licence"] for project in projects}):
        named = (_named(p) for p in projects if p["licence"] == licence and p["files"])
        text = f"- {licence}: {', '.join(named)}"
        lines.append(textwrap.fill(text, 118, subsequent_indent="  ", break_on_hyphens=False))
    return "\n".join(lines)


def _named(project: Mapping[str, Any]) -> str:
    times = f" ({project['times']} times in a pass)" if project["times"] > 1 else ""
    return f"{project['name']} {project['version']}{times}"


def _rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    perplexity, chat = figures["perplexity"], figures["chat"]
    rows = [
        (
            f"Perplexity, chunks of {perplexity['n_ctx']}",
            f"{perplexity['perplexity']:.2f} ± {perplexity['standard_error']:.2f}",
        )
    ]
    for hole in figures["fim"]:
        parsed = "" if hole["parses"] is None else f", {hole['parses']:.0%} of the files still parse"
        rows.append((f"Infill, {hole['kind']}: exact match of {hole['n_holes']}", f"{hole['exact_match']:.1%}{parsed}"))
    rows.append(
        (
            f"Chat: answers with a code block, of {chat['n_asked']}",
            f"{chat['code_blocks']:.0%}; {chat['parses']:.0%} have one that parses",
        )
    )
    if "humaneval" in figures:
        found = figures["humaneval"]
        parsed = f"{found['parses']:.0%} of the completed functions parse"
        rows.append((f"HumanEval pass@1, {found['n_problems']} problems", f"{found['pass@1']:.1%}; {parsed}"))
    return rows
