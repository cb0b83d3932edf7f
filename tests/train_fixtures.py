"""Standard-library files as projects, for the tests of tools/train."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from train.sources import Project

STDLIB = Path(sysconfig.get_path("stdlib"))
PROJECTS = {
    "alpha": ("argparse.py", "textwrap.py", "heapq.py"),
    "beta": ("statistics.py", "bisect.py", "dataclasses.py"),
    "gamma": ("shlex.py", "fractions.py"),
}
HELDOUT = "gamma"


def project(name: str, files: dict[str, bytes], *, is_heldout: bool = False) -> Project:
    return Project(name, "1.0", "MIT", is_heldout, files)
