"""Which version this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """The installed distribution's version; "0+uninstalled" when run from sources that are not installed."""
    try:
        return version("localcoder-runtime")
    except PackageNotFoundError:
        return "0+uninstalled"
