"""What the fault tests run under strace: a process that forks a child for each import.

For each line ``{"root": …, "archive": …}`` on stdin it forks a child, says its process id when the
child has stopped itself (now strace can attach), and says how it ended after somebody let it go on.
Everything is imported before the fork, and one import was done, so that a child's system calls are
those of its import alone, the same in each run.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import tempfile
import traceback

from imgdb.errors import ImgdbError
from imgdb.store import ImageStore

REFUSED = 10  # with an error that callers are told to expect; any other exception is exit 1
_PR_SET_PTRACER = 0x59616D61


def load(root, archive):
    """Import an archive; returns the exit code."""
    try:
        with ImageStore.open(root, create=True) as store:
            store.load(archive)
    except (ImgdbError, OSError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        return REFUSED
    return 0


def child(root, archive):
    """Wait to be attached to, import, end."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        code = load(root, archive)
    except BaseException:  # noqa: BLE001 - whatever it is, it must not go up into the parent's code
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def serve():
    """One child for each line."""
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(request["root"], request["archive"])
        os.waitpid(pid, os.WUNTRACED)
        os.write(1, b"%d\n" % pid)
        _, status = os.waitpid(pid, 0)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as warm:
        assert load(os.path.join(warm, "store"), sys.argv[1]) == 0
    serve()
