"""The text that importance matrices and calibrated rounding are learned from where the user gives none."""

from __future__ import annotations

import importlib.resources


def calibration_text() -> str:
    """Code in some fifteen languages, instructions with their answers, and infilling, with the family's special tokens.

    Written for this project; read it with special tokens parsed.
    """
    resource = importlib.resources.files("localcoder") / "data" / "calibration.txt"
    return resource.read_text(encoding="utf-8")
