"""Whether a package's metadata state a licence that permits to learn from it and to ship the result."""

from __future__ import annotations

import re
from email.message import Message

from localcoder.errors import OptionError

# Family -> SPDX identifiers; https://spdx.org/licenses/
_IDENTIFIERS = {
    "MIT": {"MIT", "MIT-0", "MIT-CMU", "HPND", "ISC", "Zlib"},
    "BSD": {"BSD-2-Clause", "BSD-3-Clause", "0BSD", "BSD"},
    "Apache-2.0": {"Apache-2.0"},
    "PSF": {"PSF-2.0", "Python-2.0", "Python-2.0.1"},
    "public domain": {"CC0-1.0", "Unlicense"},
}
# Family -> how classifiers and older metadata call it.
_NAMES = {
    "MIT": r"(the )?mit( licen[cs]e)?|expat( licen[cs]e)?|isc( licen[cs]e.*)?"
    r"|historical permission notice and disclaimer.*",
    "BSD": r"(new |modified |simplified )?bsd.{0,40}|[23][- ]clause bsd.{0,20}",
    "Apache-2.0": r"(the )?apache.{0,40}2(\.0)?.{0,20}|apache software license",
    "PSF": r"psf.{0,20}|python software foundation license",
    "public domain": r"(the )?public domain|(the )?unlicense.{0,20}|cc0.{0,60}",
}
_FAMILY = {identifier.lower(): family for family, known in _IDENTIFIERS.items() for identifier in known}
_TOP = {"OSI Approved"}  # classifiers that only say that others follow


def permitted_licence(metadata: Message) -> str:
    """The families of the licence that a distribution's metadata state, such as "MIT" or "Apache-2.0 or BSD".

    The licence expression counts; where there is none the classifiers do, and only then the old free text.

    Raises:
        OptionError: it states none, or one that is not permissive.
    """
    name = metadata.get("Name")
    expression = metadata.get("License-Expression")
    if expression:
        found = _of_expression(expression)
        stated = expression
    else:
        classifiers = [c.split(" :: ")[-1] for c in metadata.get_all("Classifier") or () if c.startswith("License ::")]
        names = [c for c in classifiers if c not in _TOP] or (metadata.get("License") or "").strip().split("\n")[:1]
        families = [_of_name(each) for each in names]
        found = " and ".join(sorted({f for f in families if f})) if names and all(families) else None
        stated = ", ".join(names)
    if not found:
        raise OptionError(f"{name}: its licence is {stated[:80]!r}, which is not among the permissive ones")
    return found


def _of_expression(expression: str) -> str | None:
    """An SPDX expression: OR binds less than AND; parentheses only around the whole or around alternatives."""
    alternatives = []
    for alternative in re.split(r"\s+OR\s+", expression.replace("(", " ").replace(")", " ").strip()):
        parts = [_FAMILY.get(part.strip().lower()) for part in re.split(r"\s+AND\s+", alternative)]
        alternatives.append(" and ".join(sorted({p for p in parts if p})) if all(parts) else None)
    if "(" in expression and " AND " in expression and not all(alternatives):
        return None  # what the parentheses join is not looked at, so every part must be permissive
    return " or ".join(sorted({a for a in alternatives if a})) or None


def _of_name(name: str) -> str | None:
    known = _FAMILY.get(name.strip().lower())
    if known:
        return known
    for family, pattern in _NAMES.items():
        if re.fullmatch(pattern, name.strip().lower()):
            return family
    return None
