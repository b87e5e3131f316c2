"""Running the command line: inside this process where that is enough, as a program where it is not."""

from __future__ import annotations

import functools
import io
import os
import re
import select
import shutil
import subprocess
import sys
import time
from typing import NamedTuple

import pytest

from imgdb.cli import main
from imgdb.store import ImageStore
from tests.builder import Archive, Artifact, Image, Index
from tests.integrity import check_store
from tests.tools.sample import ROOT

AMD = Image([{"etc/a": b"amd64"}], labels={"stage": "prod", "team": "a"}, author="Ann")
ARM = Image([{"etc/a": b"arm64"}], platform="linux/arm64/v8", labels={"stage": "prod"})
APP = Index([AMD, ARM])
BUSYBOX = Image([{"bin/sh": b"#!"}, {"etc/b": b"2"}], labels={"stage": "test"}, docker=True)
NAMELESS = Image([{"etc/n": b"nameless"}])
SIGNATURE = Artifact({"sig": b"signed"}, subject=APP)


PLAIN_TEXT = re.compile(r"[^\x00-\x09\x0b-\x1f\x7f-\xa0\u200b-\u200f\u2028-\u202e\u2066-\u2069]*")


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """Nothing of the developer's environment decides; help is 80 columns wide."""
    for name in ("IMGDB_STORE", "IMGDB_DB", "XDG_DATA_HOME", "SUDO_USER", "_IMGDB_COMPLETE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture(scope="session")
def stock(tmp_path_factory):
    """An archive: an index of two platforms under two names, signed, an image, and one without a name."""
    archive = Archive().add(APP, "example.org/app:1", "example.org/app:2").add(BUSYBOX, "busybox:latest")
    archive.add(NAMELESS).add(SIGNATURE)
    return archive.oci_tar(tmp_path_factory.mktemp("stock") / "stock.tar")


@pytest.fixture
def root(store_template, stock, tmp_path):
    """The directory of a store that holds the stock; whole again, or gone, when the test is over."""
    path = shutil.copytree(store_template, tmp_path / "store")
    with ImageStore.open(path, durable=False) as store:
        store.load(stock)
    yield path
    if path.exists():
        with ImageStore.open(path, durable=False) as store:
            check_store(store)


@pytest.fixture
def imgdb(root, monkeypatch):
    """`imgdb("rm", "x", code=1)` runs a command in this process, checks the code, returns an `Outcome`.

    The bytes of standard output are `imgdb.stdout` afterwards, and the store is `imgdb.root`.
    """

    def call(*arguments, code=0, stdin=b"", store=root):
        streams = {"stdin": stdin, "stdout": b"", "stderr": b""}
        wrapped = {name: io.TextIOWrapper(io.BytesIO(data), "utf-8") for name, data in streams.items()}
        with monkeypatch.context() as patch:
            for name, stream in wrapped.items():
                patch.setattr(sys, name, stream)
            before = [] if store is None else ["--store", str(store)]
            got = main.run([*before, *map(str, arguments)])
            wrapped["stderr"].flush()
        texts = [wrapped[name].buffer.getvalue() for name in ("stdout", "stderr")]
        outcome = Outcome(got, *(text.decode("utf-8", "backslashreplace") for text in texts))
        call.stdout = texts[0]
        assert got == code, outcome
        return outcome

    call.root = root
    return call


@pytest.fixture
def python(surroundings):  # noqa: ARG001 - the environment of the process
    """`python("-c", …)` runs an interpreter; what is not redirected is captured, as text."""

    def run(*arguments, text=True, **options):
        argv = [sys.executable, *map(str, arguments)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.run(argv, **{**pipes, **options}, text=text, timeout=120, check=False)

    return run


@pytest.fixture
def program(root, python):
    """`program("images", stdout=…)` is a command as a process of its own."""
    return functools.partial(python, "-m", "imgdb", "--store", root)


@pytest.fixture
def started(root):
    """`started("import", "-")` starts a process with pipes; killed at the latest after the test."""
    processes = []

    def start(*arguments, argv=None, **options):
        argv = argv or [sys.executable, "-m", "imgdb", "--store", str(root), *map(str, arguments)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        # nohup, or a shell's `&`, may have made the tests ignore them.
        argv = ["env", "--default-signal=HUP,INT,TERM", *argv]
        processes.append(subprocess.Popen(argv, **{**pipes, **options}))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def read_line(process, seconds=60):
    """The next line of a process's output, as text; fails rather than waits for ever."""
    line = b""
    end = time.monotonic() + seconds
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], end - time.monotonic())
        assert ready, f"no whole line in {seconds} s, only {line}"
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, f"the process ended after {line}"
        line += byte
    return line.decode()


def temporary_files(folder):
    """Hidden files in a directory: where half-made files would be."""
    return [name for name in os.listdir(folder) if name.startswith(".")]
