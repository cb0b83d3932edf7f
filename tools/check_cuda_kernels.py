"""Compiles every CUDA kernel with NVRTC; fails where a hot one spills registers. Needs no card.

    python tools/check_cuda_kernels.py [--all] [--formats q4_k,q6_k] [--processes N] [sm_75 ...]

By default for the oldest and the newest architecture, which takes a minute and a half of one core; --all: for each that
there is. A subset of formats leaves out the matrix kernels of the others.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from localcoder.backends.cuda.compile import ALL_MODULES, ARCHITECTURES, Module, nvrtc_compile
from localcoder.quants import ALL, by_name

HOT = ("lc_few_", "lc_many_", "lc_attend_", "lc_combine", "lc_highest")  # where the time of a step goes

_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True)
class Usage:
    """What the assembler says of one kernel: bytes of local memory, bytes spilled, registers."""

    kernel: str
    stack: int
    spilled: int
    registers: int

    @property
    def is_bad(self) -> bool:
        return self.kernel.startswith(HOT) and (self.stack > 0 or self.spilled > 0)


def usages(log: str) -> list[Usage]:
    """The kernels of the assembler's log."""
    return [
        Usage(m["name"], int(m["stack"]), int(m["stores"]) + int(m["loads"]), int(m["registers"]))
        for m in _KERNEL.finditer(log)
    ]


def compile_one(job: tuple[Module, str]) -> tuple[Module, str, list[Usage], str]:
    module, architecture = job
    log = io.StringIO()
    nvrtc_compile(module, architecture, log)
    return module, architecture, usages(log.getvalue()), log.getvalue()


def problems(module: Module, architecture: str, found: list[Usage], log: str) -> Iterator[str]:
    where = f"{module.name} for {architecture}"
    if not found:
        yield f"{where}: the assembler names no kernel"
    if "warning" in log:
        yield f"{where}: {log[log.index('warning') :].splitlines()[0]}"
    for usage in found:
        if usage.is_bad:
            yield f"{where}: {usage.kernel} spills {usage.spilled} bytes and has {usage.stack} bytes of local memory"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("architectures", nargs="*")
    parser.add_argument("--all", action="store_true", help="every architecture")
    parser.add_argument("--formats", help="of weights; default: all")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    ends = (ARCHITECTURES[0], ARCHITECTURES[-1])
    architectures = options.architectures or (ARCHITECTURES if options.all else ends)
    wanted = {by_name(name) for name in options.formats.split(",")} if options.formats else set(ALL)
    modules = [module for module in ALL_MODULES if module.weight is None or module.weight in wanted]
    jobs = [(module, architecture) for module in modules for architecture in architectures]
    n_kernels, bad, most = 0, [], Usage("", 0, 0, 0)
    with ProcessPoolExecutor(options.processes) as pool:
        for module, architecture, found, log in pool.map(compile_one, jobs):
            n_kernels += len(found)
            bad += problems(module, architecture, found, log)
            most = max([most, *found], key=lambda usage: usage.registers)
    print("\n".join(bad))
    print(f"{n_kernels} kernels for {', '.join(architectures)}; {len(bad)} problems")
    print(f"most registers: {most.registers}, {most.kernel}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
