"""What is trained: settings.json read strictly, one profile of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from localcoder.errors import FileError, OptionError

FILE = Path(__file__).with_name("settings.json")
T = TypeVar("T")


@dataclass(frozen=True)
class ModelSettings:
    """Dimensions; names as in GGUF. `tied`: the output matrix is the embedding."""

    n_vocab: int
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_ctx_train: int
    tied: bool
    rope_freq_base: float
    rope_factor: float
    rms_norm_eps: float

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head


@dataclass(frozen=True)
class DocumentSettings:
    """How sources become documents.

    Attributes:
        project_mb: most text of one project, in 10^6 bytes.
        fim_share: of the files that are cut into fill-in-the-middle documents.
        fim_characters: most text of such a document.
        repository_share: of the files that a document of several neighbouring files begins with.
        instruct_share: of the functions with a docstring that become an instruction and its answer.
        passes: how often the data is gone through; each pass has holes of its own.
        row_tokens: how many tokens the model sees at a time in training, at most the model's n_ctx_train.
    """

    project_mb: float
    fim_share: float
    fim_characters: int
    repository_share: float
    instruct_share: float
    passes: int
    row_tokens: int


@dataclass(frozen=True)
class TrainingSettings:
    """How the model is trained.

    Attributes:
        batch_rows: rows of tokens in a step.
        muon_lr, adamw_lr: highest learning rates, of the hidden matrices and of everything else.
        warmup_tokens: in which the learning rates grow.
        decay_share: of the whole training, at its end, in which they fall to zero.
        clip: largest norm of the gradient.
    """

    batch_rows: int
    muon_lr: float
    adamw_lr: float
    weight_decay: float
    warmup_tokens: int
    decay_share: float
    clip: float


@dataclass(frozen=True)
class Settings:
    """A profile. `type`: the quant type that the model is shipped in."""

    type: str
    model: ModelSettings
    documents: DocumentSettings
    training: TrainingSettings


def read_settings(profile: str, path: Path = FILE) -> Settings:
    """A profile of a settings file.

    Raises:
        FileError: no such file, or a key is missing, unknown or of another type.
        OptionError: no such profile.
    """
    try:
        profiles = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(path, (error.strerror or str(error)).lower()) from None
    except ValueError as error:
        raise FileError(path, f"is not JSON: {error}") from None
    if not isinstance(profiles, dict) or profile not in profiles:
        known = ", ".join(profiles) if isinstance(profiles, dict) else "none"
        raise OptionError(f"{path} has no profile {profile!r}; there are: {known}")
    settings = _read(Settings, profiles[profile], path, profile)
    if settings.documents.row_tokens > settings.model.n_ctx_train:
        raise FileError(path, f"{profile} trains on more tokens at a time than the context holds")
    return settings


def _read(kind: type[T], found: Any, path: Path, where: str) -> T:
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if not isinstance(found, dict) or set(found) != set(names):
        listed = sorted(found) if isinstance(found, dict) else found
        raise FileError(path, f"{where} has {listed}; expected {sorted(names)}")
    values: dict[str, Any] = {}
    for name in names:
        value, expected = found[name], hints[name]
        if is_dataclass(expected):
            value = _read(expected, value, path, f"{where}.{name}")  # type: ignore[arg-type]
        elif expected is float and type(value) is int:
            value = float(value)
        elif type(value) is not expected:
            raise FileError(path, f"{where}.{name} is {value!r}; expected {expected.__name__}")
        values[name] = value
    return kind(**values)
