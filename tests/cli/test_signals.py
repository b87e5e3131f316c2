"""Interrupted at the worst moment: the right exit code, no word, and nothing left behind."""

from __future__ import annotations

import os
import select
import signal
import sys
import time

import pytest

from tests.builder import Image, noise
from tests.cli.conftest import read_line, temporary_files

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

# The program, with one function replaced by one that says where we are and waits to be killed.
STOPPING = """
import sys, time
import {module} as module
def stop(*_args, **_kwargs):
    print("here", flush=True)
    time.sleep(100)
setattr({owner}, {name!r}, stop)
from imgdb.cli.main import main
sys.argv = ["imgdb", *sys.argv[1:]]
main()
"""


def stopping(module, owner, name):
    """Code for `python -c`."""
    return STOPPING.format(module=module, owner=f"module.{owner}" if owner else "module", name=name)


@pytest.fixture
def stopped(started, root):
    """Start a command that stops inside of a function; returns the process when it is there."""

    def start(place, *arguments, **options):
        argv = [sys.executable, "-c", stopping(*place), "--store", str(root), *map(str, arguments)]
        process = started(argv=argv, **options)
        assert read_line(process) == "here\n"
        return process

    return start


def leases(imgdb):
    """How many there are."""
    return imgdb("lease", "ls", "-q").out.split()


def new_archive(tmp_path):
    """An archive of which the store has nothing."""
    return Image([{"new": noise(100_000)}]).oci_tar(tmp_path / "new.tar", "new:1")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("times", [1, 2])
def test_export(stopped, imgdb, tmp_path, number, times):
    """In the middle of a file: no half file beside it, no lease; a second signal does not cut that short."""
    (tmp_path / "out").mkdir()
    place = ("imgdb.archive.sink", "FileSink", "copy")
    process = stopped(place, "export", "busybox", "-o", tmp_path / "out" / "x.tar")
    assert len(temporary_files(tmp_path / "out")) == 1
    for _ in range(times):
        process.send_signal(number)
    assert (process.wait(60), process.stderr.read()) == (128 + number, b"")
    assert os.listdir(tmp_path / "out") == []
    assert leases(imgdb) == []


def test_export_to_a_directory(stopped, tmp_path):
    """The same for a layout."""
    place = ("imgdb.archive.sink", "FileSink", "copy")
    process = stopped(place, "export", "busybox", "--format", "oci-dir", "-o", tmp_path / "layout")
    process.terminate()
    assert process.wait(60) == 143
    assert temporary_files(tmp_path) == []
    assert not (tmp_path / "layout").exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_import_of_a_pipe(started, imgdb, root, tmp_path, number):
    """While half of an archive has come: nothing staged stays, and no hold."""
    process = started("import")
    with open(new_archive(tmp_path), "rb") as file:
        process.stdin.write(file.read()[:50_000])
        process.stdin.flush()
    end = time.monotonic() + 60
    while not list((root / "ingest").glob("*/*")):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert os.listdir(root / "holds")
    process.send_signal(number)
    assert (process.wait(60), process.stderr.read()) == (128 + number, b"")
    assert os.listdir(root / "ingest") + os.listdir(root / "holds") == []
    assert imgdb("exists", "new:1", code=1)


@pytest.mark.parametrize("name", ["_place", "_sync_names"])
def test_import_of_files(stopped, imgdb, root, tmp_path, name):
    """While blobs are put in their places: the store is as before, to the last file."""
    before = sorted(os.listdir(root / "blobs/sha256"))
    process = stopped(("imgdb.content.disk", "DiskBlobStore", name), "import", new_archive(tmp_path))
    process.terminate()
    assert (process.wait(60), process.stderr.read()) == (143, b"")
    assert sorted(os.listdir(root / "blobs/sha256")) == before
    assert os.listdir(root / "ingest") + os.listdir(root / "holds") == []
    imgdb("exists", "new:1", code=1)


@pytest.mark.parametrize("name", ["write_content", "write_names"])
def test_import_of_rows(stopped, imgdb, root, tmp_path, name):
    """Inside of the transaction: nothing is visible, and the files are garbage that gc knows."""
    before = sorted(os.listdir(root / "blobs/sha256"))
    process = stopped(("imgdb.importer.rows", "", name), "import", new_archive(tmp_path))
    process.terminate()
    assert (process.wait(60), process.stderr.read()) == (143, b"")
    imgdb("exists", "new:1", code=1)
    assert imgdb("gc").out.startswith("freed 3 blobs, ")
    assert sorted(os.listdir(root / "blobs/sha256")) == before
    assert os.listdir(root / "ingest") + os.listdir(root / "holds") == []


def test_json_report_of_what_came_before(stopped, imgdb, stock, tmp_path):
    """The report is whole, and does not have what was interrupted."""
    place = ("imgdb.importer.rows", "", "write_names")
    process = stopped(place, "import", "--json", new_archive(tmp_path), stock)
    process.terminate()
    assert process.wait(60) == 143
    assert process.stdout.read() == b"[]\n"
    imgdb("gc")


def test_following(started):
    """Control-C is how a tail ends."""
    process = started("events", "--follow", "--format", "{{.id}}")
    assert read_line(process) == "1\n"
    process.send_signal(signal.SIGINT)
    assert (process.wait(60), process.stderr.read()) == (130, b"")


@pytest.mark.parametrize(("number", "name"), [(signal.SIGHUP, "HUP"), (signal.SIGINT, "INT")])
def test_what_was_ignored_stays_ignored(started, root, number, name):
    """Nohup, and what a shell does to jobs behind an &."""
    line = f'trap "" {name}; exec "$@"'
    argv = ["sh", "-c", line, "sh", sys.executable, "-m", "imgdb", "--store", str(root)]
    process = started(argv=[*argv, "events", "--follow", "--format", "{{.id}}"])
    assert [read_line(process) for _ in range(4)] == ["1\n", "2\n", "3\n", "4\n"]
    process.send_signal(number)
    assert select.select([process.stderr], [], [], 0.5)[0] == []
    assert process.poll() is None
    process.terminate()
    assert process.wait(60) == 143
