"""The work folder: what each stage leaves for the next."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcoder.errors import FileError


@dataclass(frozen=True)
class Work:
    """Paths in the work folder."""

    folder: Path

    @property
    def wheels(self) -> Path:
        """Fetched packages."""
        return self.folder / "wheels"

    @property
    def corpus(self) -> Path:
        """The cleaned sources to train on, one JSON object a line."""
        return self.folder / "corpus.jsonl.xz"

    @property
    def data(self) -> Path:
        """What the data consists of: projects, versions, licences, counts."""
        return self.folder / "data.json"

    @property
    def versions(self) -> Path:
        """The versions of the packages, as constraints for pip."""
        return self.folder / "versions.txt"

    @property
    def heldout(self) -> Path:
        """The folder of the held-out projects' sources."""
        return self.folder / "heldout"

    @property
    def heldout_text(self) -> Path:
        """The part of the held-out sources that perplexity is measured on."""
        return self.folder / "heldout.txt"

    @property
    def tokenizer(self) -> Path:
        """The folder with tokenizer.json and what belongs to it."""
        return self.folder / "tokenizer"

    @property
    def rows(self) -> Path:
        """The folder with rows of token ids, a file for each pass, and rows.json about them."""
        return self.folder / "rows"

    @property
    def state(self) -> Path:
        """Weights and optimizers, to go on training from."""
        return self.folder / "state.pt"

    @property
    def log(self) -> Path:
        """Losses, one JSON object a line."""
        return self.folder / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The trained model in Hugging Face layout."""
        return self.folder / "checkpoint"

    @property
    def figures(self) -> Path:
        """What was measured of the trained model."""
        return self.folder / "figures.json"

    @property
    def card(self) -> Path:
        return self.folder / "MODEL_CARD.md"


def require(path: Path, stage: str) -> Path:
    """`path`; FileError if the stage that makes it has not run."""
    if not path.exists():
        raise FileError(path, f"is missing: run the stage `{stage}` first")
    return path


def read_json(path: Path, stage: str) -> Any:
    return json.loads(require(path, stage).read_text(encoding="utf-8"))


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
