"""Linux namespaces, entered without any privilege: no network, processes of its own, a file system that is read-only.

What the kernel or an administrator forbids is left out; `guards` tell which of the three hold.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
from pathlib import Path

from localcoder.measure.sandbox.limits import Guard

_NEW_USER, _NEW_PID, _NEW_NET, _NEW_MOUNT, _NEW_IPC = 0x10000000, 0x20000000, 0x40000000, 0x00020000, 0x08000000
_SET_DEATH_SIGNAL, _SET_DUMPABLE, _DROP_CAPABILITY, _SUBREAPER, _NO_NEW_PRIVILEGES = 1, 4, 24, 36, 38
_MOUNT_NOSUID, _MOUNT_NODEV, _MOUNT_NOEXEC, _MOUNT_RECURSIVE, _MOUNT_PRIVATE = 2, 4, 8, 1 << 14, 1 << 18
_SYS_MOUNT_SETATTR = 442  # the same number on every architecture; Linux 5.12
_AT_FDCWD, _AT_RECURSIVE, _ATTR_READ_ONLY = -100, 0x8000, 1
_N_CAPABILITIES = 64
INSIDE_ID = 1000  # any but 0: a program that is not root inside loses every capability when it starts

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _prctl(option: int, value: int) -> None:
    unused = ctypes.c_ulong(0)
    _checked(_libc.prctl(option, ctypes.c_ulong(value), unused, unused, unused))


def die_with_parent() -> None:
    """The kernel kills this process when its parent has ended."""
    _prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def adopt_orphans() -> None:
    """Descendants whose parent ends become children of this process, not of the system's first."""
    _prctl(_SUBREAPER, 1)


def give_up_privileges() -> None:
    """No program started from here gains rights: not by capabilities, not by set-user-id files."""
    for capability in range(_N_CAPABILITIES):
        with contextlib.suppress(OSError):
            _prctl(_DROP_CAPABILITY, capability)
    _prctl(_NO_NEW_PRIVILEGES, 1)


def hide_memory() -> None:
    """Other processes of the same user cannot look into this one, nor at its open files."""
    _prctl(_SET_DUMPABLE, 0)


def enter() -> bool:
    """Leaves the network and the file systems of everybody else; the next child is the first process of its own world.

    Returns:
        Whether the user is another one inside; if not, root is still root there.

    Raises:
        OSError: the system allows no namespaces to this user.
    """
    user, group = os.getuid(), os.getgid()
    world = _NEW_PID | _NEW_NET | _NEW_MOUNT | _NEW_IPC
    try:
        _checked(_libc.unshare(world | _NEW_USER))
    except OSError:
        if user != 0:
            raise
        _checked(_libc.unshare(world))
        return False
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{INSIDE_ID} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{INSIDE_ID} {group} 1")
    return True


def seclude_files(folder: str, disk_bytes: int) -> bool:
    """Mounts an empty file system of `disk_bytes` on `folder`; everything else becomes read-only. False if forbidden.

    To be called in the first process of the new world.
    """
    try:
        _mount("none", "/", None, _MOUNT_RECURSIVE | _MOUNT_PRIVATE)
        with contextlib.suppress(OSError):  # forbidden where a container hides parts of /proc; the old one serves
            _mount("proc", "/proc", "proc", _MOUNT_NOSUID | _MOUNT_NODEV | _MOUNT_NOEXEC)
        writable = [folder, "/dev/shm"] if Path("/dev/shm").is_dir() else [folder]
        for target in writable:
            _mount("tmpfs", target, "tmpfs", _MOUNT_NOSUID | _MOUNT_NODEV, f"size={disk_bytes},mode=0777")
        _set_read_only("/", True)
        for target in writable:
            _set_read_only(target, False)
    except OSError:
        return False
    return True


def guards(is_secluded: bool) -> list[Guard]:
    """What holds in the new world."""
    return ["network", "processes", "files"] if is_secluded else ["network", "processes"]


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    arguments = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _checked(_libc.mount(*arguments[:3], ctypes.c_ulong(flags), arguments[3]))


def _set_read_only(target: str, wanted: bool) -> None:
    """The attributes are four 64-bit words: set, clear, propagation, user namespace."""
    words = struct.pack("=4Q", _ATTR_READ_ONLY * wanted, _ATTR_READ_ONLY * (not wanted), 0, 0)
    where = ctypes.c_int(_AT_FDCWD), ctypes.c_char_p(os.fsencode(target))
    how = ctypes.c_uint(_AT_RECURSIVE if wanted else 0), words, ctypes.c_size_t(len(words))
    _checked(_libc.syscall(ctypes.c_long(_SYS_MOUNT_SETATTR), *where, *how))
