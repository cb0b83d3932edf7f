"""What a program may use, what is run, and what became of it. Both sides of the sandbox speak in these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from localcoder.errors import SandboxError

Ending = Literal["exit", "time", "memory", "processes", "output", "lost"]
Guard = Literal["network", "processes", "files"]

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one command may use.

    Attributes:
        cpu_s: seconds of processor time of each process, and of all together once they have ended.
        wall_s: seconds by the clock, for what sleeps or waits.
        memory_bytes: memory of all processes together, and what each may ask for.
        file_bytes: length of a file.
        disk_bytes: all files together, where the work folder can be a file system of its own.
        output_bytes: what it may print; the end of it is kept.
        n_processes: processes at the same time.
    """

    cpu_s: float = 10.0
    wall_s: float = 30.0
    memory_bytes: int = 2048 * MIB
    file_bytes: int = 64 * MIB
    disk_bytes: int = 256 * MIB
    output_bytes: int = 64 * MIB
    n_processes: int = 64


@dataclass(frozen=True)
class Command:
    """A program and its arguments, run in the work folder.

    Attributes:
        env: added to the few variables that every command gets.
    """

    argv: Sequence[str]
    limits: Limits = field(default_factory=Limits)
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What became of one command.

    Attributes:
        ending: "exit": it ended by itself, or by a signal of its own; else the limit that ended it. "lost": it ended
            whoever watched over it.
        exit_code: as a shell has it, but negative for a signal; None if it was ended.
        output: the last of stdout and stderr together.
        guards: what was kept from it besides the limits.
    """

    ending: Ending
    exit_code: int | None
    cpu_s: float
    wall_s: float
    output: str
    guards: Sequence[Guard] = ()


def reports_of(answer: Mapping[str, Any]) -> list[Report]:
    """The reports in a warden's or supervisor's answer.

    Raises:
        SandboxError: it refused to run the commands.
    """
    if "refusal" in answer:
        raise SandboxError(answer["refusal"])
    return [Report(**fields) for fields in answer["reports"]]
