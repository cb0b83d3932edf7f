"""The model folder. Its files are the whole truth: there is no list beside them.

HOME/models/NAME.gguf               the user's own, called NAME
HOME/models/OWNER/NAME/TYPE.gguf    fetched or converted, called OWNER/NAME:TYPE
HOME/models/OWNER/NAME/checkpoint/  the checkpoint that it was converted from, called OWNER/NAME:checkpoint
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from localcoder.errors import FileError, OptionError, OutputError
from localcoder.store.names import ModelName, parse_name

CHECKPOINT = "checkpoint"
_SUFFIX = ".gguf"


def home() -> Path:
    """The folder of everything that localcoder keeps: LOCALCODER_HOME, else the platform's usual place.

    Raises:
        FileError: LOCALCODER_HOME is no folder.
    """
    named = os.environ.get("LOCALCODER_HOME")
    if named is None:
        import platformdirs

        return platformdirs.user_data_path("localcoder", appauthor=False)
    path = Path(named)
    if not named or (path.exists() and not path.is_dir()):
        raise FileError(named or "''", "is what LOCALCODER_HOME names, and no folder")
    return path


def models_folder() -> Path:
    """Where the models are, whether or not it is there."""
    return home() / "models"


@dataclass(frozen=True)
class Stored:
    """A model on this machine.

    Attributes:
        name: as commands take it.
        path: a GGUF file, or the folder of a checkpoint.
    """

    name: str
    path: Path

    @property
    def n_bytes(self) -> int:
        files = self.path.iterdir() if self.path.is_dir() else [self.path]
        return sum(file.stat().st_size for file in files)


def stored_models() -> list[Stored]:
    """Every model of the folder, by name."""
    root = models_folder()
    found = [Stored(path.stem, path) for path in root.glob(f"*{_SUFFIX}") if path.is_file()]
    for folder in root.glob("*/*/"):
        name = parse_name(folder.relative_to(root).as_posix())
        if name is not None:
            found += [Stored(str(ModelName(name.repo, type_name)), path) for type_name, path in _types_in(folder)]
    return sorted(found, key=lambda model: model.name)


def _types_in(folder: Path) -> Iterator[tuple[str, Path]]:
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            is_model = path.suffix == _SUFFIX and path.is_file()
            if is_model or (path.name == CHECKPOINT and path.is_dir()):
                yield path.stem, path


def path_of(name: ModelName) -> Path:
    """Where a model of that name and type is kept, whether or not it is there."""
    assert name.type_name is not None
    last = CHECKPOINT if name.type_name == CHECKPOINT else name.type_name + _SUFFIX
    return models_folder() / name.repo / last


def find_stored(text: str) -> Stored | None:
    """The model of that name, its type left out or not; None: there is none.

    Raises:
        OptionError: several types are there, and none is said.
    """
    own = models_folder() / f"{text}{_SUFFIX}"
    if text and Path(text).name == text and own.is_file():
        return Stored(text, own)
    name = parse_name(text)
    if name is None:
        return None
    here = dict(_types_in(models_folder() / name.repo))
    if name.type_name is None:
        models = {type_name: path for type_name, path in here.items() if type_name != CHECKPOINT} or here
        if len(models) > 1:
            raise OptionError(f"{text}: there is more than one type; name one: {', '.join(models)}")
        here = models
        name = ModelName(name.repo, next(iter(models), None))
    path = here.get(name.type_name or "")
    return Stored(str(name), path) if path else None


def find_model(text: str) -> Path:
    """The file that a command's argument means: a path, or the name of a model on this machine.

    Raises:
        FileError: it is neither.
        OptionError: the name fits several.
    """
    path = Path(text)
    if text.lower().endswith(_SUFFIX) or "\0" in text or path.exists():
        return path
    stored = find_stored(text)
    if stored is not None and stored.path.is_file():
        return stored.path
    if parse_name(text) is not None:
        raise FileError(text, f"no such file, and no model of this name here; `localcoder pull {text}` fetches it")
    raise FileError(text, "no such file, and no model of this name; `localcoder list` shows what there is")


def remove(model: Stored) -> None:
    """Deletes a model, and folders that are empty then.

    Raises:
        OutputError: it cannot be deleted.
    """
    try:
        if model.path.is_dir() and not model.path.is_symlink():
            shutil.rmtree(model.path)
        else:
            model.path.unlink()
    except OSError as error:
        raise OutputError(model.path, f"cannot be deleted: {error.strerror or error}") from None
    remove_empty(model.path.parent)


def remove_empty(folder: Path) -> None:
    """Deletes `folder` and those around it, inside the model folder, as far as they are empty."""
    root = models_folder()
    with contextlib.suppress(OSError):
        while folder != root and root in folder.parents:
            folder.rmdir()
            folder = folder.parent
