"""`localcoder tokenize`: what a model sees of a text."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from localcoder.cli.common import decode_utf8, echo_json, json_option, model_option, read_text
from localcoder.cli.messages import show_note
from localcoder.errors import OptionError

if TYPE_CHECKING:
    from localcoder.tokenizer import Tokenizer


@click.command()
@click.argument("text", required=False)
@model_option
@click.option("--file", "text_file", type=click.Path(path_type=Path), metavar="FILE", help="Take the text from a file.")
@click.option("--ids", "only_ids", is_flag=True, help="Print the ids alone, on one line.")
@json_option
@click.option(
    "--special", is_flag=True, help="Read special tokens where the text spells them; with --decode, show them."
)
@click.option("--no-bos", is_flag=True, help="Do not start with BOS.")
@click.option("--decode", is_flag=True, help="The other way: TEXT is ids, the text they stand for is printed.")
def tokenize(
    text: str | None,
    model: Path | None,
    text_file: Path | None,
    only_ids: bool,
    as_json: bool,
    special: bool,
    no_bos: bool,
    decode: bool,
) -> None:
    """Turn text into token ids.

    Without TEXT, or with `-`, it is read from stdin. Prints a line for each token: its id and what it adds to the text.
    """
    if only_ids and (as_json or decode):
        raise click.UsageError("--ids excludes --json and --decode")
    given = _read_input(text, text_file)
    tokenizer = _open_tokenizer(model)
    if decode:
        ids = _parse_ids(given)
        shown = tokenizer.detokenize(ids, special=special)
        if as_json:
            echo_json({"ids": ids, "text": shown, "n_tokens": len(ids)})
        else:
            click.echo(shown, nl=sys.stdout.isatty())
        return
    ids = tokenizer.tokenize(given, bos=False if no_bos else None, parse_special=special)
    if only_ids:
        click.echo(" ".join(map(str, ids)))
    elif as_json:
        echo_json({"ids": ids, "pieces": [tokenizer.detokenize([i], special=True) for i in ids], "n_tokens": len(ids)})
    else:
        for i in ids:
            click.echo(f"{i:>6}  {_shown(tokenizer, i)}")


def _read_input(text: str | None, text_file: Path | None) -> str:
    if text_file is not None:
        if text is not None:
            raise click.UsageError("TEXT and --file exclude each other")
        return read_text(text_file)
    if text not in (None, "-"):
        return text
    if text is None and sys.stdin.isatty():
        raise click.UsageError("no text: give it as an argument, with --file, or on stdin")
    return decode_utf8(sys.stdin.buffer.read(), "stdin")


def _open_tokenizer(model: Path | None) -> Tokenizer:
    from localcoder.coder import embedded_model
    from localcoder.files.gguf_reader import GGUFFile
    from localcoder.tokenizer import Tokenizer

    with nullcontext(model) if model else embedded_model() as path, GGUFFile.open(path) as file:
        tokenizer = Tokenizer.from_gguf(file)
    if tokenizer.notes:
        show_note(f"{path}: {'; '.join(tokenizer.notes)}")
    return tokenizer


def _parse_ids(text: str) -> list[int]:
    """Ids between blanks or commas, with or without the brackets of JSON."""
    words = text.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
    for word in words:
        if not re.fullmatch("[0-9]{1,9}", word):
            raise OptionError(f"{word[:20]!r} is not a token id")
    return [int(word) for word in words]


def _shown(tokenizer: Tokenizer, token_id: int) -> str:
    """A token on one line, quoted; as bytes if it is not whole characters."""
    data = tokenizer.token_bytes(token_id)
    if not data:
        return tokenizer.detokenize([token_id], special=True)
    try:
        return repr(data.decode())
    except UnicodeDecodeError:
        return repr(data)
