"""System calls that the standard library lacks, each under its own name, errors as OSError.

Numbers are those of the unified table, the same on every architecture since Linux 5.2.
Source: openat2(2), fsopen(2), fsmount(2), move_mount(2), mount(2).
"""

from __future__ import annotations

import ctypes
import os
import signal
from functools import cache
from typing import Any

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _OPENAT2 = 428, 429, 430, 431, 432, 437

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

CLONE_FS = 0x200
CLONE_NEWNS = 0x20000
CLONE_NEWUSER = 0x10000000

_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 0x1
_OPEN_TREE_CLONE = 0x1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_PR_SET_PDEATHSIG = 1
_SET_FLAG, _SET_STRING, _CMD_CREATE = 0, 1, 6


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _call(what: str, number: int, *arguments: Any) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(_libc().syscall(ctypes.c_long(number), *wide), what)


def openat2(directory_fd: int, path: bytes, flags: int, resolve: int) -> int:
    """Open a path below a directory under rules of resolution; returns a descriptor."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    return _call(
        "openat2", _OPENAT2, directory_fd, ctypes.c_char_p(path), ctypes.byref(how), ctypes.sizeof(how)
    )


def fsopen(kind: str) -> int:
    """A context for a new file system."""
    return _call("fsopen", _FSOPEN, ctypes.c_char_p(kind.encode()), _FSOPEN_CLOEXEC)


def fsconfig(fs_fd: int, key: str, value: bytes | None = None) -> None:
    """Set an option of a file system context: a string, or a flag where there is no value."""
    kind = _SET_FLAG if value is None else _SET_STRING
    pointer = None if value is None else ctypes.c_char_p(value)
    _call(f"fsconfig {key}", _FSCONFIG, fs_fd, kind, ctypes.c_char_p(key.encode()), pointer, 0)


def fsmount(fs_fd: int, attributes: int) -> int:
    """Make the file system and mount it nowhere; the mount ends when the descriptor is closed."""
    _call("fsconfig create", _FSCONFIG, fs_fd, _CMD_CREATE, None, None, 0)
    return _call("fsmount", _FSMOUNT, fs_fd, _FSMOUNT_CLOEXEC, attributes)


def open_tree(path: bytes) -> int:
    """A detached copy of the mount at a path, sharing its file system."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    return _call("open_tree", _OPEN_TREE, -100, ctypes.c_char_p(path), flags)


def move_mount(mount_fd: int, directory_fd: int, path: bytes) -> None:
    """Attach a detached mount at a path below a directory."""
    empty = ctypes.c_char_p(b"")
    _call(
        "move_mount",
        _MOVE_MOUNT,
        mount_fd,
        empty,
        directory_fd,
        ctypes.c_char_p(path),
        _MOVE_MOUNT_F_EMPTY_PATH,
    )


def mount(source: bytes, target: bytes, kind: bytes | None, flags: int, data: bytes | None = None) -> None:
    """Attach a file system, the old way; the manual of mount tells flags and data."""
    _check(_libc().mount(source, target, kind, ctypes.c_ulong(flags), data), "mount")


def umount(target: bytes, flags: int = 0) -> None:
    """End the mount at a path."""
    _check(_libc().umount2(target, ctypes.c_int(flags)), "umount")


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the one that forked it ends, or has ended already."""
    _check(_libc().prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0), "prctl")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def unshare(flags: int) -> None:
    """Leave namespaces or attributes that are shared."""
    _check(_libc().unshare(ctypes.c_int(flags)), "unshare")
