"""What a rebuild learns names and blobs from, and into whose database."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing

import pytest

from imgdb import mirror, pair
from imgdb.db.blobs import DOCUMENT_TEXT_LIMIT
from imgdb.errors import NotFoundError, RefusedError, SchemaError
from imgdb.gc import GcOptions
from imgdb.rebuild import rebuild
from imgdb.store import ImageStore
from tests import damage
from tests.builder import Archive, Image, Index
from tests.damage import FULL, Sample, tables
from tests.integrity import check_store
from tests.rebuilding import files, lose, make_store, rebuilt


@pytest.fixture
def sample(tmp_path):
    """What is in the store."""
    return Sample(tmp_path)


@pytest.fixture
def root(store_template, tmp_path, sample):
    """The directory of a store, closed."""
    return make_store(store_template, tmp_path, sample)


# -- the mirror ------------------------------------------------------------------------------------


@pytest.fixture
def logged(root, tmp_path, monkeypatch):
    """Names beyond the limit, so that changes are in the log: added, moved, removed, pinned."""
    monkeypatch.setattr(mirror, "LIMIT", 1)
    with ImageStore.open(root, durable=False) as store:
        for n in range(4):
            store.load(Image(labels={"n": str(n)}).oci_tar(tmp_path / f"n{n}.tar", f"n:{n}", "top:1"))
        store.remove("n:2")
        store.pin("n:3")
        store.pin("n:1")
        store.unpin("n:1")
        store.gc()
    return tables(root)


def test_the_log(root, logged):
    """The last line about a name wins, and a torn one at the end is passed over."""
    log = root / "names.log"
    lines = log.read_bytes().splitlines()
    assert len(lines) > 10
    log.write_bytes(log.read_bytes() + lines[0][:40])
    lose(root)
    result = rebuild(root, durable=False)
    with ImageStore.open(root, durable=False) as store:
        store.gc()
        check_store(store)
    assert (tables(root), result.pins) == (logged, 2)
    assert log.read_bytes() == b""


@pytest.mark.parametrize("line", [b"{}", b"[]", b"null", b"\xff\xfe", b'{"name":"x","descriptor":{}}', b""])
def test_spoiled_lines(root, logged, line):
    """One bad line spoils no other."""
    log = root / "names.log"
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([*lines[:3], line, *lines[3:]]))
    lose(root)
    rebuild(root, durable=False)
    assert tables(root)["images"] == logged["images"]


def test_an_old_log_under_a_newer_index(root, logged):
    """A writer that was killed before it emptied the log leaves lines that say nothing any more."""
    old = (root / "names.log").read_bytes()
    with ImageStore.open(root, durable=False) as store:
        store.remove("n:0")
        store.tag("n:1", "n:3b")
    rebuild(root, durable=False)  # writes the index anew
    now = tables(root)["images"]
    (root / "names.log").write_bytes(old)
    lose(root)
    rebuild(root, durable=False)
    assert tables(root)["images"] == now
    assert logged["images"] != now


def test_a_lost_mirror(root):
    """The database knows the names, and the mirror is written from it."""
    before = tables(root)
    (root / "index.json").unlink()
    rebuilt(root)
    assert tables(root) == before


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_mirror_and_database_lost(root, sample, how):
    """Every image is kept as dangling, under its ID, with its signatures."""
    before = tables(root)
    lose(root)
    (root / "index.json").unlink()
    if how == "damaged":
        (root / "index.json").write_bytes(b'{"schemaVersion":2,"manifests":[{')
    result = rebuilt(root)
    now = tables(root)
    assert {digest for _, digest, *_ in now["images"]} == {d for _, d, *_ in before["images"]} - {
        sample.image.digest  # which the index leads to
    }
    assert all(name == f"moby-dangling@{digest}" for name, digest, *_ in now["images"])
    assert result.unnamed == len(now["images"])
    assert (now["edges"], now["layers"], now["texts"]) == (before["edges"], before["layers"], before["texts"])


def test_everything_but_the_blobs_is_lost(root):
    """Also store.json: a new id, and the same images."""
    before = tables(root)
    store_id = pair.read(root).store_id
    for name in os.listdir(root):
        if name != "blobs":
            shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()
    rebuilt(root)
    assert tables(root)["edges"] == before["edges"]
    assert pair.read(root).store_id != store_id


# -- blobs -----------------------------------------------------------------------------------------


def test_damaged_blobs(root, sample):
    """They are known to be lost, everything else is there, and an import heals them."""
    lose(root)
    damage.flip(root / sample.image.config.path)
    damage.truncate(root / sample.layer.path)
    damage.flip(root / sample.signature.blob.path)
    result = rebuild(root, durable=False)
    assert {str(digest) for digest in result.lost} == {sample.image.config.digest, sample.layer.digest}
    with ImageStore.open(root, durable=False) as store:
        assert {f.id for f in store.check(FULL).damage} == {"blob-lost"}
        store.load(sample.archive)
        assert store.check(FULL).damage == ()
        check_store(store)


def test_garbage_stays_garbage(root, tmp_path):
    """What was removed and not yet collected is not named again."""
    with ImageStore.open(root, durable=False) as store:
        store.load(Image(labels={"x": "y"}).oci_tar(tmp_path / "x.tar", "x:1"))
        count = len(files(root))
        store.remove("x:1")
    lose(root)
    result = rebuild(root, durable=False)
    assert (result.names, result.left) == (5, 2)
    with ImageStore.open(root, durable=False) as store:
        assert len(store.gc(GcOptions(full=True, grace_s=0)).freed) == 2
        assert len(files(root)) == count - 2
        check_store(store)


def test_absent_platforms(store_template, tmp_path):
    """What was never here is known by its descriptor again."""
    root = shutil.copytree(store_template, tmp_path / "store")
    index = Index([Image(), Image([{"x": b"y"}], platform="linux/arm64")])
    gone = {blob.digest for blob in index.below[1].blobs().values()}
    with ImageStore.open(root, durable=False) as store:
        store.load(Archive().add(index, "half:1").oci_tar(tmp_path / "half.tar", without=gone))
    before = tables(root)
    lose(root)
    rebuilt(root)
    assert tables(root) == before


def test_large_texts_are_not_kept(store_template, tmp_path):
    """As on import."""
    root = shutil.copytree(store_template, tmp_path / "store")
    with ImageStore.open(root, durable=False) as store:
        image = Image(labels={"x": "y" * DOCUMENT_TEXT_LIMIT})
        store.load(image.oci_tar(tmp_path / "big.tar", "big:1"))
    before = tables(root)
    lose(root)
    rebuilt(root)
    assert tables(root) == before
    assert len(before["texts"]) == 1


# -- a host's database -----------------------------------------------------------------------------


@pytest.fixture
def hosted(tmp_path, sample):
    """A store whose rows are in a host's file: (root, host's file)."""
    host = tmp_path / "host.db"
    with closing(sqlite3.connect(host)) as connection:
        connection.execute("CREATE TABLE runs (id INTEGER PRIMARY KEY)")
        connection.execute("INSERT INTO runs VALUES (7)")
        connection.commit()
    root = tmp_path / "hosted"
    with ImageStore.open(root, str(host), create=True, durable=False) as store:
        store.load(sample.archive)
        store.pin("app:1")
    return root, host


def hosts_rows(host):
    """What the host has in its table."""
    with closing(sqlite3.connect(host)) as connection:
        return connection.execute("SELECT * FROM runs").fetchall()


def dump(host):
    """The tables of imgdb in a host's file."""
    with closing(sqlite3.connect(host)) as connection:
        return {name: sorted(connection.execute(query), key=repr) for name, query in damage.TABLES.items()}


def test_a_host_that_was_reset(hosted):
    """Its file is new and has none of imgdb's tables; they are made, and the host's own stay."""
    root, host = hosted
    before = dump(host)
    host.unlink()
    with closing(sqlite3.connect(host)) as connection:
        connection.execute("CREATE TABLE runs (id INTEGER PRIMARY KEY)")
    with pytest.raises(SchemaError, match="imgdb db rebuild"):
        ImageStore.open(root)
    result = rebuild(root, durable=False)
    assert (dump(host), hosts_rows(host), result.aside) == (before, [], None)
    with ImageStore.open(root, durable=False) as store:
        assert store.check(FULL).findings == ()


def test_a_hosts_file_with_another_store(hosted, tmp_path):
    """Its tables are copied out before they make room."""
    root, host = hosted
    before = dump(host)
    other = tmp_path / "theirs.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE runs (id INTEGER PRIMARY KEY)")
    with ImageStore.open(tmp_path / "their-store", str(other), create=True, durable=False) as store:
        store.load(Image(labels={"not": "mine"}).oci_tar(tmp_path / "theirs.tar", "theirs:1"))
    theirs = dump(other)
    with pytest.raises(RefusedError, match="another store"), ImageStore.open(root, str(other)) as store:
        store.gc()
    result = rebuild(root, str(other), durable=False)
    assert dump(other) == before
    assert dump(result.aside) == theirs
    assert pair.read(root).database == str(other)
    assert hosts_rows(host) == [(7,)]


def test_a_lost_hosts_file(hosted):
    """It is not made anew in the host's place; another one, or the store's own, can be named."""
    root, host = hosted
    before = dump(host)
    host.unlink()
    with pytest.raises(NotFoundError, match="no such database"):
        rebuild(root, durable=False)
    assert not host.exists()
    rebuild(root, str(root / "imgdb.db"), durable=False)
    assert tables(root) == before
    assert pair.read(root).database is None
