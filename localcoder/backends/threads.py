"""How many threads to compute with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from localcoder.errors import OptionError

MAX_THREADS = 1024
_CGROUP = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")


def thread_count(requested: int | None = None) -> int:
    """`requested`, else LOCALCODER_THREADS, else the physical cores this process may use.

    Raises:
        OptionError: a number below 1 or above 1024, or a LOCALCODER_THREADS that is not a number.
    """
    source = "threads"
    if requested is None:
        text = os.environ.get("LOCALCODER_THREADS")
        if not text:
            return usable_cores()
        source = "LOCALCODER_THREADS"
        try:
            requested = int(text)
        except ValueError:
            raise OptionError(f"LOCALCODER_THREADS is {text!r}; expected a number from 1 to {MAX_THREADS}") from None
    if not 1 <= requested <= MAX_THREADS:
        raise OptionError(f"{source} is {requested}; expected 1 to {MAX_THREADS}")
    return requested


def usable_cores() -> int:
    """Physical cores within this process's CPU affinity and cgroup quota, at least 1."""
    cores = _cores_of(_allowed_cpus())
    quota = _cgroup_quota()
    return max(1, cores if quota is None else min(cores, quota))


def _allowed_cpus() -> set[int]:
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _cores_of(cpus: set[int], root: Path = _CPUS) -> int:
    """How many cores the given CPUs are; CPUs that share a core count once where the system tells (Linux)."""
    cores = set()
    for cpu in cpus:
        try:
            cores.add((root / f"cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii").strip())
        except OSError:
            cores.add(f"cpu{cpu}")
    return len(cores)


def _cgroup_quota(root: Path = _CGROUP, membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Whole CPUs that the tightest enclosing cgroup allows, rounded up; None where there is no limit."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folders, read = _enclosing(root, path), _read_cpu_max
        elif "cpu" in controllers.split(","):
            folders, read = _enclosing(root / "cpu", path), _read_cfs_quota
        else:
            continue
        limits += [limit for limit in map(read, folders) if limit is not None]
    return min(limits, default=None)


def _enclosing(root: Path, path: str) -> list[Path]:
    folder = root / path.strip("/")
    return [root, folder, *(p for p in folder.parents if root in p.parents)]


def _read_cpu_max(folder: Path) -> int | None:
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else -(-int(quota) // int(period))


def _read_cfs_quota(folder: Path) -> int | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return None if quota < 0 else -(-quota // period)
