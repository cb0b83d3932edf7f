"""Data files from a model hub, as OWNER/NAME:PATH, kept in HOME/datasets/OWNER/NAME/PATH."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localcoder.errors import HubError
from localcoder.store.folder import home
from localcoder.store.names import PART

_NAME = re.compile(rf"(?P<repo>{PART}/{PART}):(?P<path>(?:{PART}/){{0,8}}{PART}\.jsonl)")


@dataclass(frozen=True)
class DatasetFile:
    """A file of JSON lines in a data set's repository."""

    repo: str
    path: str

    def __str__(self) -> str:
        return f"{self.repo}:{self.path}"

    @property
    def place(self) -> Path:
        """Where it is kept on this machine, whether or not it is there."""
        return home() / "datasets" / self.repo / self.path


def parse_dataset_file(text: str) -> DatasetFile | None:
    """What `text` names; None: nothing on a hub."""
    match = _NAME.fullmatch(text)
    return DatasetFile(match["repo"], match["path"]) if match and ".." not in text else None


def fetch_dataset_file(file: DatasetFile, progress: Callable[[int, int], None]) -> Path:
    """The file on this machine, fetched if it is not there yet.

    Raises:
        HubError, OutputError: as `localcoder.store.hub.fetch`; or the repository has no such file.
    """
    from localcoder.store.hub import fetch_as, look_up

    if not file.place.is_file():
        repository = look_up(file.repo, "dataset")
        remote = next((remote for remote in repository.files if remote.name == file.path), None)
        if remote is None:
            listed = [remote.name for remote in repository.files if remote.name.endswith(".jsonl")]
            there = f"it has {', '.join(listed[:8])}" if listed else "it has no files of JSON lines"
            raise HubError(f"{file.repo}: has no {file.path}; {there}")
        fetch_as(repository, remote, file.place, progress)
    return file.place
