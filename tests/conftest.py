"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _surroundings_of_a_user() -> Iterator[None]:
    """Processes that tests start find what a user's terminal gives them, whatever runs the tests.

    They import the installed package: the project's own folder, which has no C core, is not the current one. And
    Ctrl-C works: a shell starts background jobs with the signal ignored, which children inherit.
    """
    if "LOCALCODER_SHARED" in os.environ:
        os.environ["LOCALCODER_SHARED"] = os.path.abspath(os.environ["LOCALCODER_SHARED"])
    before, handler = os.getcwd(), signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(Path(__file__).parent)
    yield
    os.chdir(before)
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real tokenizer, configs and a trained checkpoint; tests that need it skip without it."""
    folder = Path(os.environ.get("LOCALCODER_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip("the shared material (trained checkpoint, real tokenizer) is not beside the project")
    return folder
