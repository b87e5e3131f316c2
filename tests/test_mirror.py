"""Names beside the blobs: index.json and names.log say what the rows say, and other tools can read them."""

from __future__ import annotations

import json
import os
import random
import stat
from pathlib import Path

import pytest

from imgdb import mirror
from imgdb.store import ImageStore
from tests.builder import Archive, Artifact, Image, Index

NAME = "example.org/app:1"
ONE, TWO = Image([{"one": b"1"}]), Image([{"two": b"2"}], platform="linux/arm64")


@pytest.fixture
def archive(tmp_path):
    """Two images and an index of both, with names."""
    both = Index([ONE, TWO])
    return Archive().add(ONE, NAME, "one:1").add(TWO, "two:2").add(both, "both:3").oci_tar(tmp_path / "a.tar")


def rows(store):
    """Name and target of every row, dangling ones too."""
    return {image.record.name: str(image.record.target.digest) for image in store.images()}


def mirrored(store):
    """The same as the mirror has it."""
    found = mirror.read(store.root)
    assert found.store_id == store.info().store_id
    return {name: str(entry.target.digest) for name, entry in found.entries.items()}


def index(store):
    """index.json alone, by another reader than imgdb's."""
    with open(os.path.join(store.root, "index.json"), encoding="utf-8") as file:
        return json.load(file)


def log(store):
    """The lines of names.log."""
    path = os.path.join(store.root, "names.log")
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return file.read().splitlines()


def steps(store, archive, tmp_path):
    """Changes of every kind, one at a time."""
    yield store.load(archive)
    yield store.tag("one:1", "three:3")
    yield store.tag("two:2", "three:3")
    yield store.remove("three:3")
    yield store.load(Archive().add(TWO, NAME).oci_tar(tmp_path / "b.tar"))
    yield store.pin(NAME)
    yield store.unpin(NAME)
    yield store.load(ONE.oci_tar(tmp_path / "unnamed.tar"))
    yield store.restore_tag(NAME, ONE.digest)
    yield store.remove(TWO.digest, force=True)
    yield store.gc()


def test_index_equals_rows(store, archive, tmp_path):
    """After each change index.json has each name once, by its full name, and nothing else."""
    assert index(store)["manifests"] == []
    for _ in steps(store, archive, tmp_path):
        entries = index(store)["manifests"]
        named = {e["annotations"][mirror.spec.REF_NAME]: e["digest"] for e in entries if "annotations" in e}
        dangling = {f"moby-dangling@{e['digest']}": e["digest"] for e in entries if "annotations" not in e}
        assert named | dangling == rows(store)
        assert len(entries) == len(rows(store))
        assert mirrored(store) == rows(store)
    assert log(store) == []


def test_log_equals_rows(store, archive, tmp_path, monkeypatch):
    """Above the limit the same is true of index.json and the log together, and index.json stays."""
    store.load(archive)
    before = index(store)
    monkeypatch.setattr(mirror, "LIMIT", 0)
    for _ in steps(store, archive, tmp_path):
        assert mirrored(store) == rows(store)
    assert index(store) == before
    assert len(log(store)) > 10


def test_log_lines(store, archive, monkeypatch):
    """A line a change: name or null descriptor, pinned, generation; compact JSON, for the owner only."""
    store.load(archive)
    monkeypatch.setattr(mirror, "LIMIT", 1)
    store.tag("one:1", "three:3")
    store.remove("three:3")
    path = os.path.join(store.root, "names.log")

    lines = [json.loads(line) for line in log(store)]
    name = "docker.io/library/three:3"
    generation = store.info().generation
    (tagged,) = (line for line in lines[:-1] if line["name"] == name)
    assert tagged["generation"] == generation - 1
    assert tagged["pinned"] is False
    assert tagged["descriptor"]["digest"] == ONE.digest
    assert tagged["descriptor"]["annotations"][mirror.spec.REF_NAME] == name
    assert lines[-1] == {"name": name, "descriptor": None, "pinned": False, "generation": generation}
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_the_limit(store, archive, monkeypatch):
    """Exactly so many names still fit index.json; with one more the log begins, with one less it ends."""
    store.load(archive)
    monkeypatch.setattr(mirror, "LIMIT", len(rows(store)))
    store.tag(NAME, "one:2")
    assert len(log(store)) > 0
    assert len(index(store)["manifests"]) == mirror.LIMIT
    assert mirrored(store) == rows(store)
    store.remove("one:2")
    assert log(store) == []
    assert mirrored(store) == rows(store)


def test_many_names(store, archive, monkeypatch):
    """A few hundred random changes around the limit keep both the same."""
    store.load(archive)
    monkeypatch.setattr(mirror, "LIMIT", 6)
    chance = random.Random(7)  # noqa: S311 - reproducible, nothing secret
    both = set()
    for _ in range(60):
        name = f"name:{chance.randrange(8)}"
        if chance.random() < 0.6:
            store.tag(chance.choice(["one:1", "two:2", "both:3"]), name)
        elif store.exists(name):
            store.remove(name)
        both.add(bool(log(store)))
        assert mirrored(store) == rows(store)
    assert both == {True, False}


@pytest.mark.parametrize("torn", [b'{"name":"docker.io/library/x:1","descr', b'{"name', b"\xff\xfe", b"{}"])
def test_a_torn_tail(torn, store, archive, monkeypatch):
    """What a killed append left is passed over, and does not spoil the line that comes after it."""
    store.load(archive)
    monkeypatch.setattr(mirror, "LIMIT", 1)
    store.tag(NAME, "one:2")
    with open(os.path.join(store.root, "names.log"), "ab") as file:
        file.write(torn)
    assert mirrored(store) == rows(store)

    store.tag(NAME, "one:3")
    store.remove("one:2")
    assert mirrored(store) == rows(store)
    monkeypatch.undo()
    store.tag(NAME, "one:4")
    assert log(store) == []


def test_an_old_log_beside_a_new_index(store, archive, monkeypatch):
    """A crash before the log was emptied: what is older than index.json no longer counts."""
    store.load(archive)
    monkeypatch.setattr(mirror, "LIMIT", 1)
    store.tag(NAME, "one:2")
    with open(os.path.join(store.root, "names.log"), "rb") as file:
        old = file.read()
    monkeypatch.undo()
    store.remove("one:2")
    assert log(store) == []
    with open(os.path.join(store.root, "names.log"), "wb") as file:
        file.write(old)

    assert mirrored(store) == rows(store)
    store.tag(NAME, "one:3")
    assert log(store) == []


def no_disk(*_args, **_options):
    """A file system that stopped working."""
    raise OSError(5, "gone")


@pytest.mark.parametrize("change", ["load", "tag", "remove"])
def test_a_failing_mirror_is_no_failing_commit(change, store, archive, tmp_path, monkeypatch, caplog):
    """The commit stands, a warning says so, and the next change of a name repairs the mirror."""
    store.load(archive)
    other = Archive().add(Artifact(), "thing:1").oci_tar(tmp_path / "other.tar")
    calls = {
        "load": lambda: store.load(other),
        "tag": lambda: store.tag(NAME, "one:2"),
        "remove": lambda: store.remove("one:1"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(mirror, "write_index", no_disk)
        calls[change]()
    assert "the mirror of names" in caplog.text
    assert mirrored(store) != rows(store)
    store.tag(NAME, "last:1")
    assert mirrored(store) == rows(store)


@pytest.mark.parametrize("after", ["name", "pin", "nothing new"])
def test_a_failing_log_is_repaired(store, archive, monkeypatch, after):
    """The same above the limit: the next change brings what was missed, whatever it is."""
    store.load(archive)
    monkeypatch.setattr(mirror, "LIMIT", 1)
    with monkeypatch.context() as patch:
        patch.setattr(mirror, "append", no_disk)
        store.tag(NAME, "one:2")
    assert mirrored(store) != rows(store)
    if after == "name":
        store.tag(NAME, "last:1")
    elif after == "pin":
        store.pin("one:1")
    else:
        store.load(archive)
    assert mirrored(store) == rows(store)


def test_a_commit_that_another_process_mirrored(store, archive, monkeypatch):
    """It came to the lock first and wrote everything; the log must not be older than index.json."""
    store.load(archive)
    monkeypatch.setattr(mirror, "LIMIT", 1)
    with monkeypatch.context() as patch, ImageStore.open(store.root, durable=False) as other:
        ours = store._after_commit

        def late(generation, changed):
            other.tag(NAME, "theirs:1")
            ours(generation, changed)

        patch.setattr(store, "_after_commit", late)
        store.tag(NAME, "mine:1")
    assert mirrored(store) == rows(store)
    assert not Path(store.root, "names.log").exists()


def test_two_writers(store, archive):
    """Whoever mirrors last writes what both did, since rows are read after locking."""
    store.load(archive)
    with ImageStore.open(store.root, durable=False) as other:
        for number in range(5):
            store.tag(NAME, f"mine:{number}")
            other.tag(NAME, f"theirs:{number}")
    assert mirrored(store) == rows(store)
    assert len(rows(store)) == 4 + 10


def test_pins(store, archive, monkeypatch):
    """A pin is an annotation in index.json, and a key in the log."""
    store.load(archive)
    store.pin("one:1")
    (entry,) = [e for e in index(store)["manifests"] if mirror.PIN in e["annotations"]]
    assert entry["annotations"][mirror.spec.REF_NAME] == "docker.io/library/one:1"
    monkeypatch.setattr(mirror, "LIMIT", 1)
    store.unpin("one:1")
    store.pin("two:2")
    pinned = [name for name, entry in mirror.read(store.root).entries.items() if entry.pinned]
    assert pinned == ["docker.io/library/two:2"] == store.pinned()


def test_an_oci_layout(store, archive):
    """The directory says what it is, for everybody who knows the OCI layout."""
    store.load(archive)
    with open(os.path.join(store.root, "oci-layout"), encoding="utf-8") as file:
        assert json.load(file) == {"imageLayoutVersion": "1.0.0"}
    assert index(store)["schemaVersion"] == 2
    for entry in index(store)["manifests"]:
        path = os.path.join(store.root, "blobs", *entry["digest"].split(":"))
        assert os.path.getsize(path) == entry["size"]


def test_skopeo_reads_the_store(store, archive, skopeo):
    """By the full name, as in any layout."""
    store.load(archive)
    shown = json.loads(skopeo("inspect", f"oci:{store.root}:{NAME}"))
    assert shown["Digest"] == ONE.digest
    assert shown["Architecture"] == "amd64"
    raw = skopeo("inspect", "--raw", f"oci:{store.root}:docker.io/library/both:3")
    assert [m["digest"] for m in json.loads(raw)["manifests"]] == [ONE.digest, TWO.digest]


def test_umoci_reads_the_store(store, archive, umoci):
    """Listing gives all names; stat gives an image's history."""
    store.load(archive)
    listed = umoci("ls", "--layout", store.root).split()
    assert sorted(listed) == sorted(rows(store))
    shown = json.loads(umoci("stat", "--json", "--image", f"{store.root}:{NAME}"))
    assert [entry["created_by"] for entry in shown["history"]] == ["layer 0"]
