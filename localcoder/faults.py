"""What can be wrong with a model file: the words for it that every room shares.

A rule looks at a file's metadata and yields faults; a fault says in plain words what is wrong, what comes of it, and
which metadata would set it right. The rules are where the knowledge is: on vocabularies in `tokenizer/faults.py`, on
models in `model/faults.py`. Loading a file and `localcoder doctor` apply the same ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a file.

    Attributes:
        rule: short name.
        problem: what was found.
        harm: what comes of it, in plain words.
        assumption: what loading takes instead, where the file is silent or known to be unreliable. None: the file says
            something, though probably the wrong thing; loading does what it says, and warns.
        changes: metadata that set it right: key -> value, None removes the key. Empty: nothing in the metadata helps.
        is_harmless: it matters to other, mostly older programs only; no finding, but repaired with the rest.
    """

    rule: str
    problem: str
    harm: str
    assumption: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    is_harmless: bool = False

    @property
    def note(self) -> str:
        """One line for those who load the file."""
        return f"{self.problem}: {self.assumption or 'taken as the file says'}"


class HasMetadata(Protocol):
    metadata: dict[str, Any]


File = TypeVar("File", bound=HasMetadata)
Rule = Callable[[Any], Iterator[Fault]]


def examine(file: File, rules: Iterable[Rule], *, repair: bool = False) -> tuple[File, list[Fault]]:
    """Applies rules one after another, each to what the ones before it have made of the metadata.

    Args:
        repair: makes every change that sets a fault right; else only what loading assumes.

    Returns:
        The file with those changes (the one that was given is not touched), and all faults.
    """
    examined = copy.copy(file)
    examined.metadata = dict(file.metadata)
    faults = []
    for rule in rules:
        for fault in rule(examined):
            faults.append(fault)
            if repair or fault.assumption is not None:
                apply_changes(examined.metadata, fault.changes)
    return examined, faults


def apply_changes(metadata: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Sets keys to their new values; None removes one."""
    for key, value in changes.items():
        if value is None:
            metadata.pop(key, None)
        else:
            metadata[key] = value


def notes_of(faults: Iterable[Fault]) -> list[str]:
    """One line for each fault that those who load the file should know of."""
    return [fault.note for fault in faults if not fault.is_harmless]
