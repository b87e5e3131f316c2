"""Child processes that say when they are ready, wait to be told, and can be killed at any moment."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import contextmanager

from tests.tools.sample import ROOT

TIMEOUT_S = 60
PRELUDE = """
import io, os, sys
from imgdb.content.disk import DiskBlobStore
from imgdb.oci.digest import Digest
store = DiskBlobStore(sys.argv[1], durable=False)
def say(*words): os.write(1, (' '.join(map(str, words)) + chr(10)).encode())  # one write, one line
def wait(): return sys.stdin.readline().strip()
"""


class Child:
    """An interpreter that runs a piece of code with a store in `store`, and `say` and `wait`."""

    def __init__(self, code, root):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code, str(root)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def heard(self):
        """The next line that it says; waits for it, but not for ever."""
        line = b""
        while not line.endswith(b"\n"):
            assert select.select([self.process.stdout], [], [], TIMEOUT_S)[0], f"the child only said {line}"
            byte = self.process.stdout.read(1)
            assert byte, f"the child ended early: {self.process.wait(TIMEOUT_S)}"
            line += byte
        return line.decode().rstrip("\n")

    def tell(self, line=""):
        """What its `wait` returns."""
        self.process.stdin.write(f"{line}\n".encode())

    def kill(self):
        """SIGKILL, and the proof that it was that which ended it."""
        os.kill(self.process.pid, signal.SIGKILL)
        assert self.process.wait(TIMEOUT_S) == -signal.SIGKILL

    def end(self):
        """Let it run to its end, which must be a good one."""
        assert self.process.wait(TIMEOUT_S) == 0


@contextmanager
def child(code, root):
    """A `Child` that is gone, with its pipes, after the block."""
    started = Child(code, root)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.process.communicate(timeout=TIMEOUT_S)
