"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import localcoder
from localcoder.backends.c import availability, instruction_sets


def pytest_configure() -> None:
    """Processes that tests start find what a user's terminal gives them, whatever runs the tests.

    They import the same localcoder as the tests. And signals end them: shells start jobs in the background with Ctrl-C
    ignored, `nohup` with a hang-up ignored, and children inherit that.
    """
    os.environ["PYTHONPATH"] = str(Path(localcoder.__file__).parents[1])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if "LOCALCODER_SHARED" in os.environ:
        os.environ["LOCALCODER_SHARED"] = os.path.abspath(os.environ["LOCALCODER_SHARED"])
    _compute_exactly()


def _compute_exactly() -> None:
    """Where prompts would be read in bf16, the best instruction set that has the bits of all others, whatever pieces a
    prompt comes in. test_bf16.py tests what is the default there."""
    if availability() is None and "LOCALCODER_CPU" not in os.environ:
        usable = [isa.name for isa in instruction_sets() if isa.usable]
        if usable[0] == "amx_bf16":
            os.environ["LOCALCODER_CPU"] = usable[1]


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


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real tokenizer, configs and a trained checkpoint; tests that need it skip without it."""
    folder = Path(os.environ.get("LOCALCODER_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip("the shared material (trained checkpoint, real tokenizer) is not beside the project")
    return folder
