"""Running a function as a plain user: in a forked child, since our interpreter may lie below /root."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import stat
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import pytest

from imgdb.snapshots import syscalls

NOBODY = 65534
_PR_SET_DUMPABLE = 4

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")


def as_plain_user(function, *, fuse=None):
    """Call a function as uid 65534 in a child process; what it returns, or its failure with a trace.

    Args:
        function: without arguments.
        fuse: a directory for a /dev/fuse that everybody may use, as most systems have it.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        if fuse is not None:
            _open_fuse(fuse)
        _run(function, writing)
    os.close(writing)
    with open(reading, "rb") as file:
        data = file.read()
    _, status = os.waitpid(child, 0)
    assert data, f"the child ended with status {status} and said nothing"
    succeeded, value = pickle.loads(data)  # noqa: S301 - of our own child
    assert succeeded, value
    return value


def _open_fuse(directory):
    """In a mount namespace of this process alone."""
    node = os.path.join(directory, "fuse")
    os.mknod(node, stat.S_IFCHR, os.makedev(10, 229))
    os.chmod(node, 0o666)  # noqa: S103 - as it is elsewhere
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(b"none", b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount(os.fsencode(node), b"/dev/fuse", None, syscalls.MS_BIND)


def _run(function, writing):
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    # Else /proc/self would belong to root, as it does for programs with the set-user-ID bit.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    os.environ.pop("XDG_RUNTIME_DIR", None)
    try:
        result = (True, function())
    except BaseException:  # noqa: BLE001 - told to the parent
        result = (False, traceback.format_exc())
    sys.stdout.flush()
    with open(writing, "wb") as file:
        file.write(pickle.dumps(result))
    os._exit(0)


@contextlib.contextmanager
def home_of_plain_user():
    """A directory of that user; not below pytest's, which nobody else may pass."""
    path = Path(tempfile.mkdtemp(prefix="imgdb-test-"))
    os.chown(path, NOBODY, NOBODY)
    try:
        yield path
    finally:
        subprocess.run(["rm", "-rf", path], check=True)
