"""How many threads are worth starting: physical cores, within this process's affinity mask and cgroup quota."""

from __future__ import annotations

import math
import os
from pathlib import Path

CPU_FOLDER = Path("/sys/devices/system/cpu")
CGROUP_FOLDER = Path("/sys/fs/cgroup")


def default_threads() -> int:
    """Physical cores that this process may use; at least 1."""
    return max(1, min(_physical_cores(), _quota()))


def _physical_cores() -> int:
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        siblings = CPU_FOLDER / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            return len(allowed)
    return len(cores)


def _quota() -> int:
    """Whole cores of CPU time that the cgroup grants; a large number where it sets no limit."""
    unlimited = 1 << 20
    try:
        limit, period = (CGROUP_FOLDER / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (CGROUP_FOLDER / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (CGROUP_FOLDER / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return unlimited
    if limit in ("max", "-1"):
        return unlimited
    return max(1, math.ceil(int(limit) / int(period)))
