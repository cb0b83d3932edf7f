"""Fetching files from a model hub, through `huggingface_hub`: its address (HF_ENDPOINT), login and offline mode count.

A file gets its name when its bytes are those that the hub announced. What came of it before an interruption stays, in a
file `.NAME.HASH.part` beside it, and the next call goes on from there.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from localcoder.errors import HubError, OutputError
from localcoder.files.huge_pages import PieceWriter
from localcoder.store.folder import CHECKPOINT, path_of
from localcoder.store.names import ModelName

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)
Kind = Literal["model", "dataset"]

_CONFIGS = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_WEIGHTS = (
    re.compile(r"[\w.-]+\.safetensors(\.index\.json)?"),
    re.compile(r"pytorch_model[\w.-]*\.bin(\.index\.json)?"),
)
_GGUF = re.compile(r"[^/\\:\0]+\.gguf", re.IGNORECASE)  # in no folder, on no system
_TYPE = re.compile(r"(?<![a-z0-9_])(i?q[0-9]\w*|tq[0-9]\w*|mxfp4\w*|bf16|f16|f32)(?![a-z0-9_])")
_SPLIT = re.compile(r"-[0-9]{5}-of-[0-9]{5}\.gguf")
_N_RETRIES = 4
_PAUSE = 0.5  # seconds before the first; each is twice as long as the one before
_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        digest: of its content, in hex: SHA-256, or of a small file git's SHA-1.
    """

    name: str
    n_bytes: int
    digest: str

    def hash_of(self, path: Path) -> str:
        """What `digest` would be if the file were the one at `path`."""
        if len(self.digest) == 64:
            hasher = hashlib.sha256()
        else:
            hasher = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
        return hasher.hexdigest()


@dataclass(frozen=True)
class Repository:
    """What a repository of the hub holds.

    Attributes:
        revision: the commit that is fetched, whatever happens to the repository meanwhile.
    """

    name: str
    revision: str
    files: Sequence[RemoteFile]
    kind: Kind = "model"

    def checkpoint_files(self) -> list[RemoteFile]:
        """The files that a conversion reads: safetensors, or else torch's.

        Raises:
            HubError: it holds no checkpoint.
        """
        configs = [file for file in self.files if file.name in _CONFIGS]
        for pattern in _WEIGHTS:
            weights = sorted((f for f in self.files if pattern.fullmatch(f.name)), key=lambda file: file.name)
            if weights and any(file.name == "config.json" for file in configs):
                return configs + weights
        raise HubError(f"{self.name}: holds neither a GGUF file nor a checkpoint (config.json and weights)")

    def gguf_files(self) -> dict[str, RemoteFile]:
        """Its GGUF files by type; by name where that says no type."""
        found = {}
        for file in self.files:
            if _GGUF.fullmatch(file.name):
                stem = file.name[: -len(".gguf")].lower()
                types = _TYPE.findall(stem.replace("-", " ").replace(".", " "))
                found[types[-1] if types else re.sub(r"\W", "_", stem)[:40]] = file
        return found

    def gguf_file(self, type_name: str | None) -> tuple[str, RemoteFile]:
        """The GGUF file of a type, or the only one, and its type.

        Raises:
            HubError: there is none, or several and no type is said.
        """
        files = self.gguf_files()
        if type_name is None and len(files) == 1:
            type_name = next(iter(files))
        if type_name is None or type_name not in files:
            asked = "several GGUF files" if type_name is None else f"no GGUF file of the type {type_name}"
            raise HubError(f"{self.name}: has {asked}; name one of these, as in {self.name}:TYPE: {', '.join(files)}")
        if _SPLIT.search(files[type_name].name):
            raise HubError(f"{self.name}: {files[type_name].name} is one part of several; such files cannot be read")
        return type_name, files[type_name]


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise HubError("fetching models needs huggingface_hub; install it, or localcoder's extra `hub`") from None
    return huggingface_hub


def is_offline() -> bool:
    """Whether the user has switched the network off for this (HF_HUB_OFFLINE)."""
    return bool(_library().is_offline_mode())


@contextlib.contextmanager
def _explained(repo: str, kind: Kind) -> Iterator[None]:
    """The library's and the network's errors, in one line."""
    hub = _library()
    errors, endpoint = hub.errors, hub.constants.ENDPOINT
    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise HubError(f"{repo}: not on this machine, and offline mode is on (HF_HUB_OFFLINE)") from None
    except errors.GatedRepoError:
        page = f"{endpoint}/{repo}" if kind == "model" else f"{endpoint}/{kind}s/{repo}"
        where = f"accept its terms at {page}, then log in with `hf auth login`"
        raise HubError(f"{repo}: its owners let in only those who asked; {where}") from None
    except errors.RepositoryNotFoundError:
        found = f"no such repository at {endpoint}, or a private one, for which `hf auth login` logs in"
        raise HubError(f"{repo}: {found}") from None
    except errors.HfHubHTTPError as error:
        raise HubError(f"{repo}: {endpoint} answers {error.response.status_code}; try again later") from None
    except errors.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise HubError(f"{repo}: the connection to {endpoint} fails: {reason}; what came so far is kept") from None


def look_up(repo: str, kind: Kind = "model") -> Repository:
    """What the hub has under that name.

    Raises:
        HubError: it cannot be reached, has no such repository, or does not show it.
    """
    hub = _library()
    with _explained(repo, kind):
        info = hub.HfApi().repo_info(repo, repo_type=kind, files_metadata=True, timeout=_TIMEOUT)
    files = []
    for file in info.siblings or ():
        digest = file.lfs.sha256 if file.lfs else file.blob_id
        if isinstance(file.size, int) and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", digest or ""):
            files.append(RemoteFile(file.rfilename, file.size, digest))
    return Repository(repo, info.sha, files, kind)


def fetch(repository: Repository, files: Sequence[RemoteFile], folder: Path, progress: Progress) -> None:
    """Makes each of the files a file of `folder`; those that are there already are not fetched again.

    Raises:
        HubError: the hub cannot be reached, does not give a file, or gives another one than it announced.
        OutputError: a file cannot be written.
    """
    missing = [file for file in files if not (folder / file.name).is_file()]
    n_all = sum(file.n_bytes for file in missing)
    n_done = 0
    _make_folder(folder, sum(file.n_bytes - _size(_part_of(folder, file)) for file in missing))
    for file in missing:
        fetch_file(repository, file, folder / file.name, functools.partial(_add, progress, n_done, n_all))
        n_done += file.n_bytes


def _add(progress: Progress, n_before: int, n_all: int, n: int) -> None:
    progress(n_before + n, n_all)


def fetch_checkpoint(repository: Repository, progress: Progress) -> Path:
    """The checkpoint of a repository, in the model folder; raises as `fetch`."""
    folder = path_of(ModelName(repository.name, CHECKPOINT))
    fetch(repository, repository.checkpoint_files(), folder, progress)
    return folder


def fetch_as(repository: Repository, file: RemoteFile, target: Path, progress: Progress) -> None:
    """One file of a repository, as `target`; raises as `fetch`."""
    _make_folder(target.parent, file.n_bytes - _size(_part_of(target.parent, file)))
    fetch_file(repository, file, target, lambda n: progress(n, file.n_bytes))


def fetch_file(repository: Repository, file: RemoteFile, target: Path, progress: Callable[[int], None]) -> None:
    """One file, under the name `target`; raises as `fetch`."""
    part = _part_of(target.parent, file)
    n_failures = 0
    while (n_before := _size(part)) < file.n_bytes or not part.exists():
        try:
            _stream(repository, file, part, progress)
        except _Broken as broken:
            n_failures = 1 if _size(part) > n_before else n_failures + 1
            if n_failures > _N_RETRIES:
                raise HubError(str(broken)) from None
            time.sleep(_PAUSE * 2 ** (n_failures - 1))
    found = file.hash_of(part)
    try:
        if found != file.digest:
            part.unlink()
            wrong = f"what came has the hash {found} instead of {file.digest}"
            raise HubError(f"{repository.name}: {file.name}: {wrong}; it was deleted, try again")
        os.replace(part, target)
    except OSError as error:
        raise OutputError(target, f"cannot be written: {error.strerror or error}") from None


class _Broken(Exception):
    """The connection broke: to be tried again."""


def _stream(repository: Repository, file: RemoteFile, part: Path, progress: Callable[[int], None]) -> None:
    """Appends to `part` what is missing of the file."""
    hub = _library()
    url = hub.hf_hub_url(repository.name, file.name, repo_type=repository.kind, revision=repository.revision)
    n = _size(part)
    headers = {**hub.utils.build_hf_headers(), "Accept-Encoding": "identity"}
    if n:
        headers["Range"] = f"bytes={n}-"
    with _explained(repository.name, repository.kind):
        try:
            with hub.get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT) as answer:
                if answer.status_code >= 500:
                    raise _Broken(f"{repository.name}: {file.name}: the hub answers {answer.status_code}")
                hub.utils.hf_raise_for_status(answer)
                n = n if answer.status_code == 206 else 0
                with _written(part, n) as out:
                    for chunk in answer.iter_bytes():
                        wanted = chunk[: file.n_bytes - n]  # more than was announced is not written
                        n += len(wanted)
                        out(wanted)
                        progress(n)
                        if len(wanted) < len(chunk):
                            break
        except hub.errors.HfHubHTTPError:
            raise
        except hub.errors.HTTPError as error:
            reason = str(error) or type(error).__name__
            kept = "what came so far is kept, and the next time it goes on from there"
            raise _Broken(f"{repository.name}: {file.name}: the connection fails: {reason}; {kept}") from None
    if n < file.n_bytes:
        raise _Broken(f"{repository.name}: {file.name}: {n} of {file.n_bytes} bytes came")


@contextlib.contextmanager
def _written(part: Path, n: int) -> Iterator[Callable[[bytes], object]]:
    """Writes to `part` from byte `n` on."""
    try:
        with io.FileIO(part, "r+b" if part.exists() else "wb") as file:
            file.seek(n)
            file.truncate()
            writer = PieceWriter(file, n)
            try:
                yield writer.write
            finally:
                writer.flush()
    except OSError as error:
        raise OutputError(part, f"cannot be written: {error.strerror or error}") from None


def _part_of(folder: Path, file: RemoteFile) -> Path:
    return folder / f".{file.name.rpartition('/')[2]}.{file.digest[:16]}.part"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _make_folder(folder: Path, n_bytes: int) -> None:
    """Makes sure that `folder` is there and has room for `n_bytes`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        n_free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OutputError(folder, f"cannot be made: {error.strerror or error}") from None
    if n_bytes > n_free:
        raise OutputError(
            folder, f"{n_bytes / 2**30:.1f} GiB are to be fetched and {n_free / 2**30:.1f} GiB are free on the disk"
        )
