"""Files from the Hugging Face Hub."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from typing import Any

from localcoder.errors import OptionError

Folder = str | os.PathLike[str] | None


def fetch(repo_id: str, patterns: Sequence[str], local_dir: Folder, cache_dir: Folder) -> list[str]:
    """Downloads the one file of a repository that matches each pattern; returns where they are.

    Raises:
        OptionError: not exactly one file matches.
    """
    from huggingface_hub import HfApi, hf_hub_download

    folders: dict[str, Any] = {
        name: os.fspath(f) for name, f in (("local_dir", local_dir), ("cache_dir", cache_dir)) if f is not None
    }
    names = HfApi().list_repo_files(repo_id)
    paths = []
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if len(found) != 1:
            seen = ", ".join(found or names)
            raise OptionError(f"{len(found)} files of {repo_id} match {pattern!r}, of {seen:.300}")
        paths.append(str(hf_hub_download(repo_id, found[0], **folders)))
    return paths
