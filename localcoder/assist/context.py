"""What of a file, and of other files, a model gets to see when not all of it fits into the context.

Near the hole comes first, in whole lines; the headers of what encloses the hole and the imports are kept however far
away they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from localcoder.assist.lines import enclosing, is_blank, is_import, split_lines

Count = Callable[[str], int]  # tokens of a text that is whole lines or part of one
_SUFFIX_SHARE = 0.25
_EXTRA_SHARE = 0.5  # of the budget, for other files, where there are any
_HEADER_SHARE = 0.25  # of the prefix's part, for imports and enclosing definitions
_CHARS_PER_TOKEN = 24  # a text of more characters than this times the budget is not counted to its end
_HEAD_LINES = 400  # imports further down are not looked for


@dataclass(frozen=True)
class Context:
    """What goes into a prompt.

    Attributes:
        files: other files, text by path, in the order of the prompt.
        n_left_out: characters of prefix and suffix that did not fit.
    """

    prefix: str
    suffix: str
    files: Mapping[str, str] = field(default_factory=dict)
    n_left_out: int = 0


def fit(prefix: str, suffix: str, files: Mapping[str, str], budget: int, count: Count) -> Context:
    """Cuts everything to `budget` tokens by importance.

    Args:
        files: other files by path, the most important last; whole files are left out, from the front.
        count: the tokens of a text; those of a text of several lines are the sum over its lines.
    """
    n_around = budget - int(budget * _EXTRA_SHARE) if files else budget
    kept_prefix, kept_suffix, n_used = _fit_around(prefix, suffix, n_around, count)
    left = budget - n_used
    kept: dict[str, str] = {}
    for path, text in reversed(list(files.items())):
        cost = _cost(f"#{path}\n{text}\n", left, count)
        if cost <= left:
            kept[path] = text
            left -= cost
    if files and left > 0 and n_around < budget:  # what the files did not need
        again = _fit_around(prefix, suffix, n_used + left, count)
        kept_prefix, kept_suffix = again[:2]
    n_left_out = len(prefix) + len(suffix) - len(kept_prefix) - len(kept_suffix)
    return Context(kept_prefix, kept_suffix, dict(reversed(list(kept.items()))), n_left_out)


def _fit_around(prefix: str, suffix: str, budget: int, count: Count) -> tuple[str, str, int]:
    n_prefix, n_suffix = _cost(prefix, budget, count), _cost(suffix, budget, count)
    if n_prefix + n_suffix <= budget:
        return prefix, suffix, n_prefix + n_suffix
    for_suffix = min(n_suffix, max(int(budget * _SUFFIX_SHARE), budget - n_prefix))
    kept_suffix = _near(split_lines(suffix), for_suffix, count)
    n_suffix = count(kept_suffix)
    kept_prefix = _cut_prefix(prefix, budget - n_suffix, count)
    return kept_prefix, kept_suffix, count(kept_prefix) + n_suffix


def _cost(text: str, budget: int, count: Count) -> int:
    """Tokens of a text, or any number above the budget if there are more."""
    return budget + 1 if len(text) > budget * _CHARS_PER_TOKEN else count(text)


def _near(lines: list[str], budget: int, count: Count) -> str:
    """As many whole lines from the front as fit; of a first one that is too long, the characters that do."""
    kept, left = [], budget
    for line in lines:
        cost = _cost(line, left, count)
        if cost > left:
            break
        kept.append(line)
        left -= cost
    if not kept and lines:
        return _longest(lines[0], budget, count, from_end=False)
    return "".join(kept)


def _longest(line: str, budget: int, count: Count, *, from_end: bool) -> str:
    """The longest part of a line, at one of its ends, that fits."""
    low, high = 0, min(len(line), budget * _CHARS_PER_TOKEN)
    while low < high:
        middle = (low + high + 1) // 2
        if count(line[len(line) - middle :] if from_end else line[:middle]) <= budget:
            low = middle
        else:
            high = middle - 1
    return line[len(line) - low :] if from_end else line[:low]


def _cut_prefix(prefix: str, budget: int, count: Count) -> str:
    lines = split_lines(prefix)
    if not lines:
        return ""
    if _cost(prefix, budget, count) <= budget:
        return prefix
    kept: set[int] = set()
    left = budget - int(budget * _HEADER_SHARE)
    at = len(lines)
    at, left = _take_back(lines, at, left, kept, count)
    if not kept:
        return _longest(lines[-1], budget, count, from_end=True)
    left += int(budget * _HEADER_SHARE)
    imports = [i for i, line in enumerate(lines[:_HEAD_LINES]) if is_import(line)]
    # A line without indentation after the prefix's last line break stands for the hole.
    around = enclosing(lines if not prefix.endswith("\n") else [*lines, ""])
    for i in [*reversed(around), *imports]:
        if i not in kept and not is_blank(lines[i]):
            cost = _cost(lines[i], left, count)
            if cost <= left:
                kept.add(i)
                left -= cost
    _take_back(lines, at, left, kept, count)
    return "".join(lines[i] for i in sorted(kept))


def _take_back(lines: list[str], at: int, left: int, kept: set[int], count: Count) -> tuple[int, int]:
    """Keeps lines before `at`, nearest first, until one does not fit; returns where it stopped and what is left."""
    while at > 0:
        if at - 1 not in kept:
            cost = _cost(lines[at - 1], left, count)
            if cost > left:
                break
            kept.add(at - 1)
            left -= cost
        at -= 1
    return at, left
