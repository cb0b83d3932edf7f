"""For pytest: a test that passed is not run again where more is installed. The file $PASSED has their names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_FILE = Path(os.environ["PASSED"])
_passed: list[str] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    known = set(_FILE.read_text(encoding="utf-8").splitlines()) if _FILE.exists() else set()
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in known])
    items[:] = [item for item in items if item.nodeid not in known]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        _passed.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # of pytest-xdist, which all report to one
        with _FILE.open("a", encoding="utf-8") as f:
            f.writelines(f"{name}\n" for name in _passed)
