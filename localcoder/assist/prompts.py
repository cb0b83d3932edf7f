"""The questions that the assistant's commands put to a model, as data. A user's configuration may replace each."""

from __future__ import annotations

import re
from collections.abc import Mapping

from localcoder.errors import OptionError

_CODE = "```{language}\n{code}```\n"
# By command. Every name in braces is filled in, each once, and must stand there.
PROMPTS: dict[str, str] = {
    "edit": (
        "{instruction}\n\nMake this change to the following code from {path}. Answer with the complete new code in one "
        "code block. Change nothing else and leave nothing out.\n\n" + _CODE
    ),
    "explain": "Explain what the following code from {path} does, and how.\n\n" + _CODE,
    "test": (
        "Write unit tests for the following code from {path}. Cover ordinary cases, edge cases and errors. Answer with "
        "one complete test file in one code block.\n\n" + _CODE
    ),
    "review": (
        "Review the following change. Name defects first: bugs, missing error handling, security problems; for each "
        "the file, the line, and what to do. Say so if there is nothing to object to.\n\n```diff\n{diff}```\n"
    ),
}
_FIELD = re.compile(r"\{([a-z]+)\}")
_FENCE = re.compile(r"(`{3,}|~{3,})[^`]*")
_LANGUAGES = {
    "c": "c", "cc": "cpp", "cpp": "cpp", "cs": "csharp", "go": "go", "h": "c", "hpp": "cpp", "java": "java",
    "js": "javascript", "json": "json", "kt": "kotlin", "lua": "lua", "md": "markdown", "php": "php", "py": "python",
    "rb": "ruby", "rs": "rust", "sh": "bash", "sql": "sql", "swift": "swift", "toml": "toml", "ts": "typescript",
    "tsx": "tsx", "yaml": "yaml", "yml": "yaml",
}  # fmt: skip


def fields_of(name: str) -> list[str]:
    """What the prompt of that name takes."""
    return _FIELD.findall(PROMPTS[name])


def check_prompt(name: str, text: object) -> None:
    """OptionError unless `text` can stand for the prompt of that name: it has the field of the matter itself."""
    if not isinstance(text, str):
        raise OptionError(f"is {text!r}; expected a text")
    known = fields_of(name)
    unknown = [field for field in _FIELD.findall(text) if field not in known]
    if unknown:
        raise OptionError(f"has the field {{{unknown[0]}}}; known: {', '.join(f'{{{field}}}' for field in known)}")
    if f"{{{known[-1]}}}" not in text:
        raise OptionError(f"lacks the field {{{known[-1]}}}, in whose place the text goes")


def fill_prompt(name: str, values: Mapping[str, str], overrides: Mapping[str, str]) -> str:
    """The prompt of that name, or what replaces it, with its fields filled in. A field's value is never looked into."""
    text = overrides.get(name, PROMPTS[name])
    return _FIELD.sub(lambda match: values[match[1]], text)


def language_of(path: str | None) -> str:
    """The name of a code block's language for a file of that name; "" where it is not known."""
    return _LANGUAGES.get((path or "").rpartition(".")[2].lower(), "")


def code_block(answer: str, *, to_last: bool = False) -> str | None:
    """The code of an answer's first code block, its last line ended; None: it has none, or one that is not closed.

    Args:
        to_last: the code may itself hold lines that look like the block's end: it ends at the last of them.
    """
    lines = answer.split("\n")
    starts = [(i, match[1]) for i, line in enumerate(lines) if (match := _FENCE.fullmatch(line.strip()))]
    if not starts:
        return None
    start, fence = starts[0]
    ends = [i for i in range(start + 1, len(lines)) if lines[i].strip() == fence]
    if not ends:
        return None
    return "".join(line + "\n" for line in lines[start + 1 : ends[-1 if to_last else 0]])
