"""Number literals, character by character."""

from __future__ import annotations

import string

# From each state with characters of each kind to the next. "19" stands for these digits and those between, "+" for
# signs, and a letter for both cases.
_NUMBERS: dict[str, dict[str, str]] = {
    "0": {"0": "00", "_": "0_", "19": "lead", ".": "point", "e": "exp", "j": "j", "x": "x", "o": "o", "b": "b"},
    "00": {"0": "00", "_": "0_", "19": "lead", ".": "point", "e": "exp", "j": "j"},
    "0_": {"0": "00", "19": "lead"},
    "lead": {"0": "lead", "19": "lead", "_": "lead_", ".": "point", "e": "exp", "j": "j"},
    "lead_": {"0": "lead", "19": "lead"},
    "int": {"0": "int", "19": "int", "_": "int_", ".": "point", "e": "exp", "j": "j"},
    "int_": {"0": "int", "19": "int"},
    "point": {"0": "frac", "19": "frac", "e": "exp", "j": "j"},
    "frac": {"0": "frac", "19": "frac", "_": "frac_", "e": "exp", "j": "j"},
    "frac_": {"0": "frac", "19": "frac"},
    "exp": {"0": "digits", "19": "digits", "+": "sign"},
    "sign": {"0": "digits", "19": "digits"},
    "digits": {"0": "digits", "19": "digits", "_": "digits_", "j": "j"},
    "digits_": {"0": "digits", "19": "digits"},
    "j": {},
}
# Where a number may end.
WHOLE = {"0", "00", "int", "point", "frac", "digits", "j", "hex", "oct", "bin"}
_BASES = {"x": ("hex", frozenset(string.hexdigits)), "o": ("oct", frozenset("01234567")), "b": ("bin", frozenset("01"))}


def next_in_number(at: str, c: str) -> str | None:
    """The state after one more character; None where it is no part of the number."""
    for base, (whole, digits) in _BASES.items():
        if at in (base, whole, base + "_"):
            return whole if c in digits else base + "_" if c == "_" and at != base + "_" else None
    kind = "19" if c in "123456789" else "+" if c in "+-" else c.lower()
    return _NUMBERS[at].get(kind)
