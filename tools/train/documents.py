"""From source files to documents of token ids, in the forms in which localcoder asks its models.

The prompts come from localcoder's own tokenizer room, so that what is trained on is what will be asked, to the token.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localcoder.tokenizer.chat import chat_prompt
from localcoder.tokenizer.infill import infill_prompt, repository_text
from localcoder.tokenizer.tokenizer import Tokenizer

from .data import Source
from .instructions import Pair, make_pairs
from .settings import DocumentSettings

_NEIGHBOURS = (2, 5)  # files of a repository document
_HOLE_LINES = 8
_LEAST_CONTEXT = 1 / 16  # of the most
_FORMS = ("span", "line", "lines")  # of holes, equally often


@dataclass(frozen=True)
class Document:
    """Token ids, from BOS to the token that ends it. `is_whole`: worth nothing in pieces."""

    ids: Sequence[int] | NDArray[np.uint16]
    is_whole: bool


def make_documents(
    sources: Sequence[Source], tokenizer: Tokenizer, settings: DocumentSettings, row_tokens: int, seed: str
) -> Iterator[Document]:
    """The documents of one project's files, in their order; the same seed gives the same ones.

    Args:
        row_tokens: most tokens of a document that is whole; what does not fit becomes plain text.
    """
    chance = random.Random(seed)
    rest = list(sources)
    while rest:
        n = chance.randint(*_NEIGHBOURS) if chance.random() < settings.repository_share else 1
        group, rest = rest[:n], rest[n:]
        if len(group) > 1:
            yield plain_document(repository_text({source.path: source.text for source in group}), tokenizer)
        elif chance.random() < settings.fim_share:
            for piece in cut(group[0].text, _context(settings, chance)):
                yield from infill_documents(piece, tokenizer, row_tokens, chance)
        else:
            yield plain_document(group[0].text, tokenizer)
        pairs = itertools.chain.from_iterable(make_pairs(source.text, chance) for source in group)
        for pair in pairs:
            if chance.random() < settings.instruct_share:
                document = chat_document(pair, tokenizer)
                if len(document.ids) <= row_tokens:
                    yield document


def _context(settings: DocumentSettings, chance: random.Random) -> int:
    """How much text stands around and in the holes of a file: as much as an editor sends, or as little."""
    return int(settings.fim_characters * _LEAST_CONTEXT ** chance.random())


def plain_document(text: str, tokenizer: Tokenizer) -> Document:
    """BOS, text, EOS."""
    return Document([*tokenizer.tokenize(text, bos=True), _known(tokenizer.eos_id)], False)


def infill_documents(text: str, tokenizer: Tokenizer, row_tokens: int, chance: random.Random) -> Iterator[Document]:
    """`text` as prefix, suffix, middle; where that does not fit into `row_tokens`, its halves as such."""
    begin, end = make_hole(text, chance)
    document = infill_document(text[:begin], text[begin:end], text[end:], tokenizer)
    if len(document.ids) <= row_tokens:
        yield document
        return
    halves = cut(text, len(text) // 2)
    if len(halves) == 1:
        yield plain_document(text, tokenizer)
        return
    for half in halves:
        yield from infill_documents(half, tokenizer, row_tokens, chance)


def infill_document(prefix: str, middle: str, suffix: str, tokenizer: Tokenizer) -> Document:
    """The prompt that localcoder builds for this hole, the middle, EOS."""
    prompt = infill_prompt(tokenizer, prefix, suffix, heal_prefix=False, heal_suffix=False)
    return Document([*prompt.ids, *tokenizer.tokenize(middle, bos=False), _known(tokenizer.eos_id)], True)


def chat_document(pair: Pair, tokenizer: Tokenizer) -> Document:
    """The prompt that localcoder builds for this instruction, and the answer as the family's template ends it."""
    prompt = chat_prompt(tokenizer, [{"role": "user", "content": pair.instruction}])
    answer = tokenizer.tokenize(pair.answer + "\n", bos=False)
    return Document([*prompt, *answer, _known(tokenizer.eot_id)], True)


def cut(text: str, n_characters: int) -> list[str]:
    """`text` in pieces of whole lines, each of at most `n_characters` or one line."""
    pieces, size = [""], 0
    for line in text.splitlines(keepends=True):
        if size + len(line) > n_characters and size:
            pieces.append("")
            size = 0
        pieces[-1] += line
        size += len(line)
    return pieces


def make_hole(text: str, chance: random.Random) -> tuple[int, int]:
    """Where a hole begins and ends: a span from anywhere to anywhere, the rest of a line, or a few whole lines."""
    form = chance.choice(_FORMS)
    if form == "span":
        begin, end = sorted((chance.randint(0, len(text)), chance.randint(0, len(text))))
        return begin, end
    lines = text.splitlines(keepends=True)
    first = chance.randrange(len(lines))
    n = 1 if form == "line" else min(chance.randint(1, _HOLE_LINES), len(lines) - first)
    begin = sum(map(len, lines[:first]))
    end = begin + len("".join(lines[first : first + n]).rstrip("\n"))
    indentation = len(lines[first]) - len(lines[first].lstrip(" "))
    begin = min(begin + indentation, end)
    if form == "line" and end > begin and chance.random() < 0.5:
        begin = chance.randrange(begin, end)
    return begin, end


def _known(token_id: int | None) -> int:
    assert token_id is not None, "checked when the tokenizer was opened"
    return token_id
