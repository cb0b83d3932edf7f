"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real tokenizer, configs and a trained checkpoint; tests that need it skip without it."""
    folder = Path(os.environ.get("LOCALCODER_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip("the shared material (trained checkpoint, real tokenizer) is not beside the project")
    return folder
