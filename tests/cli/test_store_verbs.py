"""``blob``, ``events``, ``info``, ``db``."""

from __future__ import annotations

import json
import re
import sqlite3

import pytest

from imgdb import __version__
from tests.builder import Image
from tests.cli.conftest import AMD, APP, BUSYBOX, read_line


@pytest.mark.parametrize("group", ["blob", "content"])
def test_blob_ls(imgdb, root, group):
    """A line for each blob that is here, by digest."""
    header, *rows = imgdb(group, "ls").out.splitlines()
    assert header.split() == ["DIGEST", "SIZE", "KIND", "REFS", "MEDIA", "TYPE"]
    here = sorted(f"sha256:{path.name}" for path in (root / "blobs/sha256").iterdir())
    assert [row.split()[0] for row in rows] == here
    assert imgdb(group, "ls", "-q").out.split() == here
    assert [item["digest"] for item in json.loads(imgdb(group, "ls", "--format", "json").out)] == here
    assert imgdb(group, "ls", "--format", "{{.digest}}").out.split() == here
    assert [json.loads(line)["kind"] for line in imgdb(group, "ls", "--format", "jsonl").out.splitlines()]


def test_blob_ls_absent(imgdb):
    """In a whole store nothing is absent."""
    assert imgdb("blob", "ls", "--absent", "-q").out == ""


def test_blob_stat(imgdb):
    """By a whole digest or its beginning; what is recorded, as JSON."""
    (found,) = json.loads(imgdb("blob", "stat", APP.digest).out)
    assert (found["digest"], found["kind"], found["size"]) == (APP.digest, "index", APP.blob.size)
    assert (found["present"], found["damaged"], found["refcount"]) == (True, False, 2)
    assert imgdb("blob", "stat", APP.digest[:20], "--format", "{{.kind}}").out == "index\n"
    assert "no table" in imgdb("blob", "stat", "--format", "table", APP.digest, code=2).err


def test_blob_cat(imgdb):
    """The bytes as they are."""
    imgdb("blob", "cat", AMD.digest)
    assert imgdb.stdout == AMD.blob.data
    layer = AMD.layers[0].blob()
    imgdb("blob", "cat", layer.digest)
    assert imgdb.stdout == layer.data


@pytest.mark.parametrize("verb", ["stat", "cat"])
def test_no_such_blob(imgdb, verb):
    """Exit 1, one line."""
    done = imgdb("blob", verb, "sha256:" + "0" * 64, code=1)
    assert (done.out, done.err.count("\n")) == ("", 1)


def test_events(imgdb):
    """Oldest first; who did what to which image."""
    imgdb("tag", "busybox", "mine")
    header, *rows = imgdb("events").out.splitlines()
    assert header.split() == ["TIME", "ACTION", "NAME", "ID", "USER"]
    assert rows[-1].split()[1:4] == ["tag", "docker.io/library/mine:latest", BUSYBOX.digest]
    listed = json.loads(imgdb("events", "--format", "json").out)
    assert [event["id"] for event in listed] == sorted(event["id"] for event in listed)
    assert (listed[-1]["action"], listed[-1]["version"]) == ("tag", __version__)
    assert json.loads(imgdb("events", "--format", "jsonl").out.splitlines()[-1]) == listed[-1]
    assert imgdb("events", "--format", "{{.action}}").out.split()[-1] == "tag"


def test_events_since(imgdb):
    """From a moment, or a while ago, on."""
    assert len(imgdb("events", "--since", "1h", "--format", "jsonl").out.splitlines()) == 4
    assert imgdb("events", "--since", "2100-01-01", "--format", "jsonl").out == ""
    assert "is no time" in imgdb("events", "--since", "yesterday", code=2).err


def test_events_are_forgotten(imgdb):
    """How many is said on standard error."""
    done = imgdb("events", "--prune-before", "0s")
    assert (done.out, done.err) == ("", "imgdb: 4 events forgotten\n")
    assert imgdb("events", "--format", "jsonl").out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--prune-before", "1h", "--since", "1h"],
        ["--prune-before", "1h", "--follow"],
        ["--prune-before", "x"],
        ["--follow", "--format", "json"],
        ["--follow", "--format", "table {{.at}}"],
    ],
)
def test_events_that_make_no_sense(imgdb, arguments):
    """Usage errors, not a wait without end."""
    done = imgdb("events", *arguments, code=2)
    assert (done.out, done.err.count("\n")) == ("", 1)


def test_events_follow(imgdb, started):
    """What happens later is printed when it happens; a table has no end, so lines stand for it."""
    later = started("events", "--follow", "--since", "2100-01-01")
    process = started("events", "--follow", "--format", "{{.action}} {{.name}}")
    assert [read_line(process)[:5] for _ in range(4)] == ["load "] * 4
    imgdb("tag", "busybox", "mine")
    assert read_line(process) == "tag docker.io/library/mine:latest\n"
    line = read_line(started("events", "--follow"))
    assert re.fullmatch(r"\S+Z load sha256:[0-9a-f]{64} \S+\n", line)
    assert later.poll() is None


def test_info(imgdb, root):
    """Where, what, and which versions."""
    lines = dict(line.split(":", 1) for line in imgdb("info").out.splitlines())
    assert (lines["root"].strip(), lines["imgdb"].strip()) == (str(root), __version__)
    (found,) = json.loads(imgdb("info", "--format", "json").out)
    assert (found["root"], found["database"]) == (str(root), str(root / "imgdb.db"))
    assert found["images"] == 4
    assert json.loads(imgdb("info", "--format", "jsonl").out) == found
    assert imgdb("info", "--format", "{{.schema}}").out == f"{found['schema']}\n"


def test_db_init(imgdb, tmp_path):
    """An empty store, once; again it changes nothing."""
    there = tmp_path / "new"
    for _ in range(2):
        done = imgdb("--store", there, "db", "init")
        assert (done.out, done.err) == ("", f"imgdb: store in {there}\n")
    assert imgdb("--store", there, "images", "-q").out == ""
    assert imgdb("--store", there, "-q", "db", "init").err == ""


def test_db_current_and_upgrade(imgdb):
    """The revision is a result; that nothing had to be done is a note."""
    revision = imgdb("db", "current").out.strip()
    done = imgdb("db", "upgrade")
    assert (done.out, done.err) == ("", f"imgdb: schema {revision}\n")


def test_db_elsewhere(imgdb, tmp_path):
    """--db is said once, the store remembers it."""
    database = tmp_path / "host.db"
    sqlite3.connect(database).close()
    database.touch()
    there = tmp_path / "new"
    path = Image([{"x": b"1"}]).oci_tar(tmp_path / "x.tar", "x:1")
    imgdb("--store", there, "--db", database, "import", path)
    assert imgdb("--store", there, "info", "--format", "{{.database}}").out == f"{database}\n"
    assert imgdb("--store", there, "images", "--format", "{{.Repository}}").out == "x\n"


def test_verbose(imgdb, root):
    """-v says which store it is."""
    assert imgdb("-v", "images").err == f"imgdb: store {root}\n"


def test_a_store_from_the_environment(imgdb, monkeypatch, tmp_path):
    """IMGDB_STORE and IMGDB_DB stand for the options, which win."""
    monkeypatch.setenv("IMGDB_STORE", str(tmp_path / "absent"))
    assert imgdb("images", "-q").out
    monkeypatch.setenv("IMGDB_DB", str(tmp_path / "absent.db"))
    assert f"{tmp_path}/absent.db, the database of" in imgdb("images", code=4).err
