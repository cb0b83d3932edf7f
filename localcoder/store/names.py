"""Names of models: REPO[:TYPE], where REPO is that of a model hub, or one of the family's short names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from localcoder.errors import OptionError

_SHORT = "deepseek-coder:"
_FAMILY = "deepseek-ai/deepseek-coder-"
# The family's published repositories, by what people call them.
SHORT_NAMES: dict[str, str] = {
    _SHORT + member: _FAMILY + member
    for member in (
        "1.3b-base",
        "1.3b-instruct",
        "5.7bmqa-base",
        "6.7b-base",
        "6.7b-instruct",
        "33b-base",
        "33b-instruct",
        "7b-base-v1.5",
        "7b-instruct-v1.5",
    )
}
_SHORT_OF = {repo: short for short, repo in SHORT_NAMES.items()}
PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_NAME = re.compile(rf"(?P<repo>{PART}/{PART})(?::(?P<type>[A-Za-z0-9_]{{1,40}}))?")


@dataclass(frozen=True)
class ModelName:
    """A repository, and which of its files.

    Attributes:
        repo: OWNER/NAME on the hub.
        type_name: a quant type in lower case, or `CHECKPOINT`; None: not said.
    """

    repo: str
    type_name: str | None = None

    def __str__(self) -> str:
        """As people write it, the short name where there is one."""
        name = _SHORT_OF.get(self.repo, self.repo)
        return f"{name}:{self.type_name}" if self.type_name else name


def parse_name(text: str) -> ModelName | None:
    """The name that `text` spells; None: it spells none."""
    for short, repo in SHORT_NAMES.items():
        if text.lower() == short or text.lower().startswith(short + ":"):
            text = repo + text[len(short) :]
    match = _NAME.fullmatch(text)
    if not match or ".." in text:
        return None
    return ModelName(match["repo"], match["type"].lower() if match["type"] else None)


def require_name(text: str) -> ModelName:
    """As `parse_name`; OptionError where it spells none."""
    name = parse_name(text)
    if name is None:
        short = ", ".join(SHORT_NAMES)
        raise OptionError(f"{text[:100]!r} names no model; expected OWNER/NAME or OWNER/NAME:TYPE, or one of {short}")
    return name
