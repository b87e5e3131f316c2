"""Imports under strace: to see their system calls, to kill them at one, to make one fail.

strace counts `when=N` for each system call by its name. So a point is (name, N), found by tracing a
whole run first. A signal acts at entry: the call that it hits is not carried out. Every run says
which call was hit, and that it concerned the store; `--seccomp-bpf` must not be used, since it
silently turns injection off (reliability §0.10, §3.1).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.content import importing
from tests.tools import daemons
from tests.tools.sample import ROOT

# What changes files, makes them durable or guards them; `?` passes over what a machine has not.
CALLS = (
    *("open", "openat", "creat", "mkdir", "mkdirat", "mknod", "mknodat", "write", "pwrite64", "pwritev"),
    *("fsync", "fdatasync", "syncfs", "sync_file_range", "rename", "renameat", "renameat2", "link"),
    *("linkat", "unlink", "unlinkat", "rmdir", "ftruncate", "fallocate", "chmod", "fchmod", "fchmodat"),
    *("flock",),
)
SET = ",".join(f"?{name}" for name in CALLS)
_CALL = re.compile(r"(\w+)\((.*)")
_PATH = re.compile(r'"([^"]*)"|<(/[^>]*)>')


@dataclass(frozen=True)
class Call:
    """One system call: its name, how many of that name there were with it, and its line."""

    name: str
    number: int
    line: str

    @property
    def paths(self):
        """Paths among its arguments, also those of descriptors."""
        arguments = self.line.partition(") = ")[0]
        return [quoted or path for quoted, path in _PATH.findall(arguments)]

    def is_inside(self, root):
        """Whether it concerns a directory or something in it."""
        return any(path == root or path.startswith(f"{root}/") for path in self.paths)

    def __str__(self):
        return f"{self.name}:{self.number}"


class Importer:
    """Runs imports under strace; use as a context manager.

    Args:
        out: where traces go.
        warm: an archive for the first import, which nobody looks at.
    """

    def __init__(self, out, warm):
        self.strace = daemons.find("strace")
        self.out = Path(out)
        self.errors = open(self.out.with_suffix(".errors"), "w+", encoding="utf-8")  # noqa: SIM115 - closed below
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("IMGDB", "PYTHON"))}
        self.server = subprocess.Popen(
            [sys.executable, "-m", importing.__name__, str(warm)],
            cwd=ROOT,
            env=kept | {"PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.communicate(timeout=60)
        self.errors.close()

    def trace(self, root, archive):
        """A whole run; its calls that concern the store, in order."""
        code, words, calls = self.run(root, archive)
        assert code == 0, words
        return calls

    def kill(self, root, archive, point):
        """SIGKILL at a point; the call that was hit must be one of the store."""
        code, words, calls = self.run(root, archive, (point, "signal=SIGKILL"))
        assert code == -signal.SIGKILL, f"{point}: not killed: {code} {words}"
        self._check_hit(point, calls[-1])

    def fail(self, root, archive, point, error):
        """Make a call fail; returns the exit code, which is 0 or `importing.REFUSED`, and the words."""
        code, words, calls = self.run(root, archive, (point, f"error={error}"))
        hits = [call for call in calls if call.line.endswith("(INJECTED)")]
        assert hits, f"{point} was not made to fail"
        self._check_hit(point, hits[0])
        assert code in {0, importing.REFUSED}, f"{point} {error}: {code} {words}"
        return code, words

    def run(self, root, archive, *injections):
        """An import with (point, what strace shall do to it); returns (exit code, words, calls)."""
        options = ["-e", f"trace={SET}"]
        for point, what in injections:
            options += ["-e", f"inject={point.name}:{what}:when={point.number}"]
        code, words = self._run(root, archive, options)
        counts, found = Counter(), []
        for line in self.out.read_text(errors="replace").splitlines():
            if match := _CALL.match(line):
                counts[match[1]] += 1
                found.append(Call(match[1], counts[match[1]], line))
        return code, words, [call for call in found if call.is_inside(str(root))]

    def _run(self, root, archive, options):
        self.errors.seek(0)
        self.errors.truncate()
        self.server.stdin.write(json.dumps({"root": str(root), "archive": str(archive)}) + "\n")
        self.server.stdin.flush()
        pid = int(self.server.stdout.readline())
        tracer = subprocess.Popen(
            [self.strace, "-y", "-o", self.out, *options, "-p", str(pid)], stderr=subprocess.PIPE, text=True
        )
        said = tracer.stderr.readline()
        os.kill(pid, signal.SIGCONT)
        code = int(self.server.stdout.readline())
        said += tracer.communicate(timeout=60)[1]
        if f"Process {pid} attached" not in said:
            raise daemons.ToolMissingError(f"strace may not attach to a process here: {said}")
        self.errors.seek(0)
        return code, self.errors.read()

    @staticmethod
    def _check_hit(point, call):
        assert (call.name, call.number) == (point.name, point.number), f"{point} hit {call.line}"
