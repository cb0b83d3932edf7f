"""A filter of system calls that keeps a program off the network where the system allows it no namespace of its own.

https://www.kernel.org/doc/html/latest/userspace-api/seccomp_filter.html; any user may set one. Sockets of every family
but the local one fail as in a namespace without a network; so does io_uring, which opens sockets by itself.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable

# Machine -> how the kernel calls it (AUDIT_ARCH_...), and the number of its call `socket`.
_MACHINES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
_IO_URING_SETUP = 425  # on every machine
_X32 = 0x40000000  # from here on the numbers of x86-64's second set of calls
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _MACHINE_AT, _ARGUMENT_AT = 0, 4, 16  # in what a filter sees of a call
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000 | errno.ENETUNREACH
_AF_UNIX = 1
_SET_SECCOMP, _FILTER = 22, 2

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def network_filter() -> Callable[[], None] | None:
    """What a process that has given up its privileges calls to lose the network, with all that it starts; None if
    this system has no such filters."""
    if platform.machine() not in _MACHINES or not _is_supported():
        return None
    code = _code(*_MACHINES[platform.machine()])
    program = _Program(len(code) // 8, code)

    def close_network() -> None:
        if _libc.prctl(
            _SET_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.byref(program), ctypes.c_ulong(0), ctypes.c_ulong(0)
        ):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return close_network


def _is_supported() -> bool:
    """A kernel that knows filters looks for one at the address; there is none at 0."""
    unused = ctypes.c_ulong(0)
    return _libc.prctl(_SET_SECCOMP, ctypes.c_ulong(_FILTER), None, unused, unused) != 0 and (
        ctypes.get_errno() == errno.EFAULT
    )


def _code(machine: int, socket: int) -> bytes:
    """The filter: instructions of code, lines to jump over if true and if false, operand."""
    lines = [
        (_LOAD, 0, 0, _MACHINE_AT),
        (_IF_EQUAL, 0, 7, machine),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_IF_AT_LEAST, 5, 0, _X32),
        (_IF_EQUAL, 4, 0, _IO_URING_SETUP),
        (_IF_EQUAL, 0, 2, socket),
        (_LOAD, 0, 0, _ARGUMENT_AT),
        (_IF_EQUAL, 0, 1, _AF_UNIX),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _FAIL),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
