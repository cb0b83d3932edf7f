"""Stage `data`: fetches, cleans, leaves copies out, and parts what is trained on from what is held out."""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from localcoder.errors import OptionError
from localcoder.files.atomic import OutputFile, write_file

from .cleaning import Copies, clean, is_left_out, without_copies
from .sources import PYTHON, Project
from .work import Work, json_bytes, require

_HELDOUT_TEXT = 400_000  # characters of the held-out text; an equal part from each project


@dataclass(frozen=True)
class Source:
    """A file to train on."""

    project: str
    path: str
    text: str


def make_data(projects: Iterable[Project], work: Work, *, project_mb: float, leave_out: str = "") -> dict[str, Any]:
    """Writes the corpus, the held-out sources and a description of both, which is returned.

    Held-out projects come first, so that whatever else has copies of theirs loses them.

    Args:
        project_mb: most text of one project, in 10^6 bytes.
        leave_out: a text of which nothing may be trained on.

    Raises:
        OptionError: there is nothing to train on, or nothing held out.
        OutputError: the work folder cannot be written.
    """
    work.folder.mkdir(parents=True, exist_ok=True)
    copies = Copies([leave_out] if leave_out else ())
    described, heldout = [], []
    with OutputFile(work.corpus) as out:
        compressor = lzma.LZMACompressor(preset=6)
        for project in sorted(projects, key=lambda p: (not p.is_heldout, p.name)):
            sources = _sources(project, copies, project_mb)
            described.append(_describe(project, sources))
            if project.is_heldout:
                heldout.append(sources)
                continue
            for source in sources * project.times:
                line = json.dumps([source.project, source.path, source.text], ensure_ascii=False) + "\n"
                out.write(compressor.compress(line.encode()))
        out.write(compressor.flush())
    n_files = {flag: sum(d["files"] for d in described if d["heldout"] is flag) for flag in (False, True)}
    if not all(n_files.values()):
        raise OptionError(f"{n_files[False]} files to train on and {n_files[True]} held out; expected some of both")
    _write_heldout(heldout, work)
    pins = (f"{d['name']}=={d['version']}\n" for d in described if d["name"] != PYTHON)
    write_file(work.versions, "".join(pins).encode())
    write_file(work.data, json_bytes(described))
    return {"projects": described, "corpus_bytes": work.corpus.stat().st_size}


def make_heldout(projects: Iterable[Project], work: Work, *, project_mb: float) -> None:
    """Writes no more than what is held out, as `make_data` does."""
    copies = Copies()
    _write_heldout([_sources(p, copies, project_mb) for p in sorted(projects, key=lambda p: p.name)], work)


def _sources(project: Project, copies: Copies, project_mb: float) -> list[Source]:
    """What is worth learning from."""
    cleaned = [(path, clean(data)) for path, data in sorted(project.files.items()) if not is_left_out(path)]
    kept = without_copies([(path, text) for path, text in cleaned if text], copies)
    return [Source(project.name, path, text) for path, text in _at_most(kept, project_mb)]


def _at_most(kept: list[tuple[str, str]], project_mb: float) -> list[tuple[str, str]]:
    """Files of a project up to that much text, chosen by chance that is the same every time, in their order."""
    chosen, n_bytes = set(), 0
    for path, text in sorted(kept, key=lambda item: hashlib.blake2b(item[0].encode()).digest()):
        n_bytes += len(text.encode())
        if n_bytes > project_mb * 1e6:
            break
        chosen.add(path)
    return [item for item in kept if item[0] in chosen]


def _describe(project: Project, sources: list[Source]) -> dict[str, Any]:
    texts = [source.text.encode() for source in sources]
    return {
        "name": project.name,
        "version": project.version,
        "licence": project.licence,
        "heldout": project.is_heldout,
        "times": project.times,
        "files": len(texts),
        "bytes": sum(map(len, texts)),
        "sha256": hashlib.sha256(b"\0".join(texts)).hexdigest(),
    }


def _write_heldout(projects: list[list[Source]], work: Work) -> None:
    if work.heldout.exists():
        shutil.rmtree(work.heldout)
    texts = []
    for sources in projects:
        for source in sources:
            path = work.heldout / source.project / source.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source.text, encoding="utf-8", newline="\n")
        texts.append("".join(source.text for source in sources)[: _HELDOUT_TEXT // len(projects)])
    write_file(work.heldout_text, "".join(texts).encode())


def read_corpus(work: Work) -> Iterator[Source]:
    """The files to train on, by project and path."""
    with lzma.open(require(work.corpus, "data"), "rt", encoding="utf-8") as f:
        for line in f:
            yield Source(*json.loads(line))
