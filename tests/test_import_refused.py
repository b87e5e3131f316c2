"""What is refused leaves nothing; what is only tried says exactly what would happen."""

from __future__ import annotations

import contextlib
import gzip
import json
import sqlite3
from pathlib import Path

import pytest

from imgdb import ImportOptions
from imgdb.errors import (
    BadArchiveError,
    BusyError,
    ImgdbError,
    NoImageError,
    NotFoundError,
    RefusedError,
)
from imgdb.importer import commit, rows
from tests.builder import (
    Archive,
    Artifact,
    Attestation,
    Image,
    Index,
    Layer,
    Link,
    noise,
    tar_bytes,
    write_tar,
)
from tests.looking import asking_for, digests, names, present

BASE = Layer({"base": noise(5000)})
OLD = Image([BASE], labels={"v": "1"})
NEW = Image([BASE, {"more": b"m" * 700}], labels={"v": "2"})
INDEX = Index([NEW, Image([{"arm": b"a"}], "linux/arm64"), Attestation(NEW)])
ARCHIVE = Archive().add(INDEX, "app:v").add(Artifact(subject=INDEX)).add(Image(labels={"v": "3"}), "app:3")
DOCKER = Archive().add(Image([{"a": b"1"}, {"b": b"2"}], docker=True), "app:v")


def state(store):
    """All rows, and all files but locks."""
    with contextlib.closing(sqlite3.connect(f"file:{store.root}/imgdb.db?mode=ro", uri=True)) as db:
        dump = list(db.iterdump())
    root = Path(store.root)
    files = {
        path: path.read_bytes() for path in root.rglob("*") if path.is_file() and "imgdb.db" not in path.name
    }
    return dump, {path: body for path, body in files.items() if path.suffix != ".lock"}


@pytest.fixture
def used(store, tmp_path):
    """A store with an older image that shares a layer with the archives here."""
    store.load(OLD.oci_tar(tmp_path / "old.tar", "app:v"))
    return store


def flipped(body):
    """The same length, another byte in the middle."""
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def edited(members, path, change):
    """Members of which one JSON document is changed."""
    value = json.loads(members[path])
    change(value)
    return members | {path: json.dumps(value).encode()}


SPOILED = {
    "manifest flipped": lambda m: m | {NEW.blob.path: flipped(NEW.blob.data)},
    "config flipped": lambda m: m | {NEW.config.path: flipped(NEW.config.data)},
    "layer flipped": lambda m: m | {NEW.below[2].path: flipped(NEW.below[2].data)},
    "layer that the store has, flipped": lambda m: m | {NEW.below[1].path: flipped(NEW.below[1].data)},
    "index flipped": lambda m: m | {INDEX.blob.path: flipped(INDEX.blob.data)},
    "layer cut": lambda m: m | {NEW.below[2].path: NEW.below[2].data[:-1]},
    "layer longer": lambda m: m | {NEW.below[2].path: NEW.below[2].data + b"\0"},
    "config empty": lambda m: m | {NEW.config.path: b""},
    "size off by one": lambda m: edited(
        m, "index.json", lambda v: v["manifests"][0].update(size=INDEX.blob.size + 1)
    ),
    "size a string": lambda m: edited(m, "index.json", lambda v: v["manifests"][0].update(size="1")),
    "digest of no algorithm": lambda m: edited(
        m, "index.json", lambda v: v["manifests"][0].update(digest="md5:00")
    ),
    "index as manifest": lambda m: edited(
        m, "index.json", lambda v: v["manifests"][0].update(mediaType=NEW.blob.media_type)
    ),
    "index.json cut": lambda m: m | {"index.json": m["index.json"][:-1]},
    "index.json a list": lambda m: m | {"index.json": b"[]"},
    "index.json lists nothing": lambda m: m | {"index.json": b'{"schemaVersion":2,"manifests":[]}'},
    "index.json a link": lambda m: m | {"other": m["index.json"], "index.json": Link("other")},
    "no index.json": lambda m: {name: body for name, body in m.items() if name != "index.json"},
    "layout version": lambda m: m | {"oci-layout": b'{"imageLayoutVersion":"2.0.0"}'},
    "member above": lambda m: m | {"../outside": b"x"},
    "member from the root": lambda m: m | {"/etc/outside": b"x"},
    "layer a link outside": lambda m: m | {NEW.below[2].path: Link("../../../etc/passwd")},
    "layer a link to itself": lambda m: m | {NEW.below[2].path: Link(NEW.below[2].path.rpartition("/")[2])},
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_damaged_layout_leaves_nothing(used, tmp_path, spoil):
    """Exit code 3, rows and files as they were: also nothing of the archive's undamaged images."""
    before = state(used)
    with pytest.raises(BadArchiveError):
        used.load(str(write_tar(tmp_path / "bad.tar", spoil(ARCHIVE.members()))))
    assert state(used) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value[0]["Layers"].reverse(),
        lambda value: value[0]["Layers"].pop(),
        lambda value: value[0].update(Config="nothere.json"),
        lambda value: value[0].update(Config="../x.json"),
        lambda value: value[0].update(RepoTags=["lib/UPPER:1"]),
        lambda value: value[0].update(RepoTags="app:1"),
        lambda value: value[0].update(layers=[]),
        lambda value: value.append(None),
        lambda value: value.clear(),
    ],
    ids=[
        "layers swapped",
        "layer left out",
        "no config",
        "config above",
        "upper case",
        "no list",
        "twice",
        "null",
        "none",
    ],
)
def test_a_damaged_docker_archive_leaves_nothing(used, tmp_path, change):
    """The same for what manifest.json may say wrongly."""
    before = state(used)
    members = edited(DOCKER.docker_members(), "manifest.json", change)
    with pytest.raises(BadArchiveError):
        used.load(str(write_tar(tmp_path / "bad.tar", members)))
    assert state(used) == before


@pytest.mark.parametrize("share", [0.1, 0.35, 0.5, 0.75, 0.95])
@pytest.mark.parametrize(
    "compress", [bytes, lambda data: gzip.compress(data, mtime=0)], ids=["plain", "gzip"]
)
def test_an_archive_cut_short_leaves_nothing(used, tmp_path, share, compress):
    """Wherever it ends: a copy that was interrupted is never half an image."""
    data = compress(tar_bytes(ARCHIVE.members()).rstrip(b"\0") + bytes(512))
    (tmp_path / "cut.tar").write_bytes(data[: int(len(data) * share)])
    before = state(used)
    with pytest.raises(BadArchiveError):
        used.load(str(tmp_path / "cut.tar"))
    assert state(used) == before


def test_what_is_no_archive(store, tmp_path):
    """Exit code 1, and the sentence says what it is instead."""
    (tmp_path / "page.tar").write_bytes(b"<html>404 not found</html>" * 100)
    (tmp_path / "empty.tar").write_bytes(b"")
    rootfs = write_tar(tmp_path / "rootfs.tar", {"etc/": None, "etc/passwd": b"root"})
    for path in (tmp_path / "page.tar", tmp_path / "empty.tar", rootfs, tmp_path):
        with pytest.raises(NoImageError) as error:
            store.load(str(path))
        assert error.value.exit_code == 1
    with pytest.raises(NotFoundError, match="no such file"):
        store.load(str(tmp_path / "absent.tar"))


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_disk_that_fails_leaves_nothing(used, tmp_path, monkeypatch, where):
    """An error while blobs are put, before any is there or when all are."""
    before = state(used)
    put = used._blobs.put

    def failing(*args, **options):
        if where == "after":
            put(*args, **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(used._blobs, "put", failing)
    with pytest.raises(OSError, match="No space left"):
        used.load(ARCHIVE.oci_tar(tmp_path / "a.tar"))
    assert state(used) == before


def test_a_database_that_fails_leaves_nothing(used, tmp_path, monkeypatch):
    """The files are durable by then; they are swept."""
    before = state(used)

    def failing(*_, **__):
        raise BusyError("locked")

    monkeypatch.setattr(rows, "write_names", failing)
    with pytest.raises(BusyError):
        used.load(ARCHIVE.oci_tar(tmp_path / "a.tar"))
    assert state(used) == before


def test_a_large_import_in_batches(used, tmp_path, monkeypatch):
    """Several transactions give the rows that one would; the lease between them goes."""
    monkeypatch.setattr(commit, "BATCH", 2)
    used.load(ARCHIVE.oci_tar(tmp_path / "a.tar"))
    assert digests(INDEX) < present(used)
    assert names(used)["docker.io/library/app:v"] == INDEX.digest


def test_a_large_import_that_is_refused(used, tmp_path, monkeypatch):
    """Before its first transaction, so that nothing stays of it either."""
    monkeypatch.setattr(commit, "BATCH", 2)
    before = state(used)
    with pytest.raises(RefusedError):
        used.load(ARCHIVE.oci_tar(tmp_path / "a.tar"), ImportOptions(replace="refuse"))
    assert state(used) == before


def test_a_large_import_that_fails(used, tmp_path, monkeypatch):
    """What was committed before is garbage that no name shows, and no damage; the lease is gone."""
    before = names(used)
    monkeypatch.setattr(commit, "BATCH", 2)

    def failing(*_, **__):
        raise BusyError("locked")

    monkeypatch.setattr(rows, "write_names", failing)
    with pytest.raises(BusyError):
        used.load(ARCHIVE.oci_tar(tmp_path / "a.tar"))
    assert names(used) == before


# -- dry run ---------------------------------------------------------------------------------------

BIG = Image([Layer({"big": noise(22 << 20)}, compression="none")])
TRIALS = {
    "new": (Archive().add(INDEX, "fresh:1"), ImportOptions()),
    "replaces": (ARCHIVE, ImportOptions()),
    "same": (Archive().add(OLD, "app:v"), ImportOptions()),
    "unnamed": (Archive().add(NEW), ImportOptions()),
    "another name": (Archive().add(OLD, "app:v", "app:w"), ImportOptions()),
    "one platform": (Archive().add(INDEX, "app:v"), asking_for("linux/amd64")),
    "a name": (Archive().add(INDEX, "1.0"), ImportOptions(name="app")),
    "bare tag": (Archive().add(INDEX, "1.0"), ImportOptions()),
    "one name twice": (Archive().add(NEW, "app:v").add(INDEX, "app:v"), ImportOptions()),
    "larger than documents are": (Archive().add(BIG, "big:1"), ImportOptions()),
}


@pytest.mark.parametrize(("archive", "options"), TRIALS.values(), ids=TRIALS)
def test_a_dry_run_is_exact(used, tmp_path, archive, options):
    """It changes nothing, and says word for word what the import then does."""
    path = archive.oci_tar(tmp_path / "a.tar")
    before = state(used)
    tried = used.load(path, options, dry_run=True)
    assert state(used) == before

    here = present(used)
    assert used.load(path, options) == tried
    assert tried.new_blobs == len(present(used) - here)


def test_a_dry_run_of_a_delta(used, tmp_path):
    """Completeness is judged with the store; the incomplete is taken only when that is asked for."""
    path = NEW.oci_tar(tmp_path / "a.tar", "app:2", without={BASE.blob().digest})
    assert used.load(path, dry_run=True) == used.load(path)
    lacking = INDEX.oci_tar(tmp_path / "b.tar", "app:3", without=digests(INDEX) - {INDEX.digest})
    options = ImportOptions(allow_incomplete=True)
    assert used.load(lacking, options, dry_run=True) == used.load(lacking, options)


@pytest.mark.parametrize("spoil", ["layer flipped", "no index.json", "member above"])
def test_a_dry_run_refuses_alike(used, tmp_path, spoil):
    """The same error with the same words."""
    path = str(write_tar(tmp_path / "bad.tar", SPOILED[spoil](ARCHIVE.members())))
    with pytest.raises(ImgdbError) as tried:
        used.load(path, dry_run=True)
    with pytest.raises(ImgdbError) as done:
        used.load(path)
    assert (type(tried.value), str(tried.value)) == (type(done.value), str(done.value))
