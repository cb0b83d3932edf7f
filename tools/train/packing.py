"""Stage `pack`: documents in rows of a fixed number of tokens, as uint16 in files that training maps.

A row begins with whole documents (infill, chat), of which none is cut; plain text, all of it one stream, fills what
they leave. So nothing is lost and nothing comes twice; only the last rows of a pass are padded.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.errors import OptionError
from localcoder.files.atomic import OutputFile, write_file

from .data import Source, read_corpus
from .documents import Document, make_documents
from .settings import DocumentSettings, Settings
from .vocabulary import PAD, open_tokenizer
from .work import Work, json_bytes, read_json, require

Rows = NDArray[np.uint16]
_GROUP = 200  # files that a process makes into documents at a time
_HELDOUT_ROWS = 64


def pack(documents: Sequence[Document], row_tokens: int, pad_id: int) -> tuple[Rows, NDArray[np.int32]]:
    """Documents as rows.

    Args:
        documents: whole ones of at most row_tokens tokens, others of any length.

    Returns:
        uint16 [n_rows, row_tokens], and for each row at which token plain text takes over, int32 [n_rows].
    """
    whole = [document.ids for document in documents if document.is_whole]
    streamed = [np.asarray(document.ids, np.uint16) for document in documents if not document.is_whole]
    plain = np.concatenate([np.empty(0, np.uint16), *streamed])
    assert max(map(len, whole), default=0) <= row_tokens
    n_whole = sum(map(len, whole))
    share = n_whole / max(n_whole + len(plain), 1)
    rows: list[Rows] = []
    fills: list[int] = []
    next_whole = at = placed = 0
    while next_whole < len(whole) or at < len(plain):
        row = np.full(row_tokens, pad_id, np.uint16)
        filled = 0
        due = share * row_tokens * (len(rows) + 1)  # so that both kinds last until the end
        while next_whole < len(whole) and (placed < due or at >= len(plain)):
            ids = whole[next_whole]
            if filled + len(ids) > row_tokens:
                break
            row[filled : filled + len(ids)] = ids
            filled, placed, next_whole = filled + len(ids), placed + len(ids), next_whole + 1
        rest = plain[at : at + row_tokens - filled]
        row[filled : filled + len(rest)] = rest
        at += len(rest)
        rows.append(row)
        fills.append(filled)
    return np.array(rows, np.uint16).reshape(-1, row_tokens), np.array(fills, np.int32)


def make_rows(
    work: Work, settings: Settings, *, workers: int, seed: int = 0, textbooks: float | None = None
) -> dict[str, Any]:
    """Writes the rows of every pass, and of the held-out text; returns what rows.json says of them.

    Args:
        textbooks: which share of the text has to be from projects that the list has several times; None: as it comes.

    Raises:
        FileError: an earlier stage has not run.
        OptionError: a vocabulary too large for uint16, or no project that the list has several times.
        OutputError: the work folder cannot be written.
    """
    tokenizer = open_tokenizer(work.tokenizer)
    pad_id, row_tokens = tokenizer.id_of(PAD), settings.documents.row_tokens
    assert pad_id is not None
    if tokenizer.n_vocab > 1 << 16:
        raise OptionError(f"the vocabulary has {tokenizer.n_vocab} tokens; rows hold at most {1 << 16} different ones")
    work.rows.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {"row_tokens": row_tokens, "n_vocab": tokenizer.n_vocab, "pad_id": pad_id, "passes": []}
    sources = list(read_corpus(work))
    if textbooks is not None:
        about["textbooks"] = textbooks
        sources = mixed(sources, work, textbooks, random.Random(f"{seed}"))
    groups = list(_groups(iter(sources)))
    for number in range(settings.documents.passes):
        seeds = [f"{seed} {number} {i}" for i in range(len(groups))]
        documents = _documents(groups, seeds, work.tokenizer, settings.documents, row_tokens, workers)
        random.Random(f"{seed} {number}").shuffle(documents)
        rows, _ = pack(documents, row_tokens, pad_id)
        with OutputFile(rows_file(work, number)) as out:
            out.write(rows.tobytes())
        n_padding = int((rows == pad_id).sum())
        whole = [len(document.ids) for document in documents if document.is_whole]
        counts = {"documents": len(documents), "whole": len(whole), "whole_tokens": sum(whole)}
        about["passes"].append({"rows": len(rows), "tokens": rows.size - n_padding, **counts})
    text = require(work.heldout_text, "data").read_text(encoding="utf-8")
    ids = np.array(tokenizer.tokenize(text), np.uint16)[: _HELDOUT_ROWS * row_tokens]
    write_file(heldout_file(work), ids[: len(ids) // row_tokens * row_tokens].tobytes())
    write_file(work.rows / "rows.json", json_bytes(about))
    return about


def mixed(sources: Sequence[Source], work: Work, share: float, chance: random.Random) -> list[Source]:
    """All files of what the list has several times, and so many others, by chance, that the former have that share.

    Raises:
        OptionError: the list has nothing several times.
    """
    several = {project["name"] for project in read_json(work.data, "data") if project["times"] > 1}
    n_textbooks = sum(len(source.text) for source in sources if source.project in several)
    if not n_textbooks:
        raise OptionError(f"{work.data} names no project that the list has several times")
    left = n_textbooks * (1 - share) / share
    chosen = set()
    for i in chance.sample(range(len(sources)), len(sources)):
        if sources[i].project in several:
            chosen.add(i)
        elif left > 0:
            chosen.add(i)
            left -= len(sources[i].text)
    return [source for i, source in enumerate(sources) if i in chosen]


def rows_file(work: Work, number: int) -> Path:
    return work.rows / f"pass-{number}.bin"


def heldout_file(work: Work) -> Path:
    return work.rows / "heldout.bin"


def map_rows(path: Path, row_tokens: int) -> Rows:
    """The rows of a file, uint16 [n_rows, row_tokens], mapped."""
    return np.memmap(require(path, "pack"), np.uint16, "r").reshape(-1, row_tokens)


def read_about(work: Work) -> dict[str, Any]:
    """What `make_rows` wrote of its rows."""
    return read_json(work.rows / "rows.json", "pack")


def _groups(sources: Iterator[Source]) -> Iterator[list[Source]]:
    for _, files in itertools.groupby(sources, lambda source: source.project):
        while group := list(itertools.islice(files, _GROUP)):
            yield group


def _documents(
    groups: Sequence[list[Source]],
    seeds: Sequence[str],
    tokenizer: Path,
    settings: DocumentSettings,
    row_tokens: int,
    workers: int,
) -> list[Document]:
    make = partial(_documents_of, tokenizer=tokenizer, settings=settings, row_tokens=row_tokens)
    if workers == 1:
        return list(itertools.chain.from_iterable(map(make, zip(groups, seeds))))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return list(itertools.chain.from_iterable(pool.imap(make, zip(groups, seeds))))


def _documents_of(
    item: tuple[list[Source], str], tokenizer: Path, settings: DocumentSettings, row_tokens: int
) -> list[Document]:
    sources, seed = item
    made = make_documents(sources, open_tokenizer(tokenizer), settings, row_tokens, seed)
    return [Document(np.array(document.ids, np.uint16), document.is_whole) for document in made]  # a tenth of a list
