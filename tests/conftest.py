"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import localcoder


def pytest_configure() -> None:
    """Processes that tests start import the same localcoder as the tests, and Ctrl-C works in them even where whoever
    started pytest ignores it, as shells do in the background."""
    os.environ["PYTHONPATH"] = str(Path(localcoder.__file__).parents[1])
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _nowhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests stand in an empty folder: in the project's, `python -c` would import its sources, which lack the C core."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("nowhere"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session", autouse=True)
def _home_of_nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither the models nor the configuration of whoever runs the tests are seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALCODER_HOME", str(tmp_path_factory.mktemp("home")))
        yield


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
