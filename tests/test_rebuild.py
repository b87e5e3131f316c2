"""A store survives its database: whatever happened to that, ``db rebuild`` brings everything back."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
from contextlib import closing

import pytest

from imgdb import mirror, pair
from imgdb import rebuild as module
from imgdb.check.report import CheckOptions, Level
from imgdb.content.holds import locked
from imgdb.db import engine, schema
from imgdb.db.blobs import DOCUMENT_TEXT_LIMIT
from imgdb.errors import BusyError, ImgdbError, NotFoundError, RefusedError, SchemaError
from imgdb.gc import GcOptions
from imgdb.rebuild import rebuild
from imgdb.store import ImageStore
from imgdb.upkeep import backup_database
from tests import damage
from tests.builder import Archive, Artifact, Image, Index
from tests.damage import Sample, sql, tables
from tests.integrity import FILES, check_store
from tests.looking import names

FULL = CheckOptions(Level.FULL)


@pytest.fixture
def sample(tmp_path):
    """What is in the store."""
    return Sample(tmp_path)


@pytest.fixture
def root(store_template, tmp_path, sample):
    """The directory of a store, closed: the sample, a pin, a dangling image, a second name."""
    root = shutil.copytree(store_template, tmp_path / "store")
    with ImageStore.open(root, durable=False) as store:
        store.load(sample.archive)
        store.tag("app:1", "registry.example/team/app:stable")
        store.pin("app:1")
        old = Image(labels={"old": "yes"})
        store.load(old.oci_tar(tmp_path / "old.tar", "moving:1"))
        store.load(Image(labels={"new": "yes"}).oci_tar(tmp_path / "new.tar", "moving:1"))
    return root


def lose(root, *which):
    """Files of the store are gone; the database is all of its files."""
    for name in which or ("imgdb.db",):
        for suffix in ("", "-wal", "-shm"):
            (root / f"{name}{suffix}").unlink(missing_ok=True)


def rebuilt(root, **options):
    """Rebuild, and see that the store is whole; the result."""
    result = rebuild(root, durable=False, **options)
    with ImageStore.open(root, durable=False) as store:
        assert store.check(FULL).findings == ()
        for name in os.listdir(root):
            if name not in FILES:
                (root / name).unlink()
        check_store(store)
        assert store.gc(GcOptions(full=True)).freed == {}
    return result


def files(root):
    """Every blob file."""
    return sorted(path.name for path in (root / "blobs").glob("*/*"))


# -- what may happen to a database -----------------------------------------------------------------


def lost(root):
    """The file is gone."""
    lose(root)


def emptied(root):
    """It has no bytes."""
    lose(root)
    (root / "imgdb.db").touch()


def other_tables(root):
    """It is somebody else's: no table of imgdb is in it."""
    lose(root)
    with closing(sqlite3.connect(root / "imgdb.db")) as connection:
        connection.execute("CREATE TABLE host (x)")


def reset(root):
    """A host made imgdb's tables anew, and they are empty."""
    lose(root)
    own = engine.own_engine(root / "imgdb.db", create=True)
    engine.run_write(own, schema.upgrade)
    own.dispose()


def another(root):
    """It is another store's, with another image."""
    lose(root)
    other = root.parent / "other"
    with ImageStore.open(other, create=True, durable=False) as store:
        store.load(Image(labels={"not": "mine"}).oci_tar(root.parent / "theirs.tar", "theirs:1"))
        store.load(Image(labels={"not": "mine"}).oci_tar(root.parent / "app.tar", "app:1"))
    shutil.copy(other / "imgdb.db", root / "imgdb.db")


def garbage_bytes(root):
    """It is no database."""
    lose(root)
    (root / "imgdb.db").write_bytes(b"\xff" * 8192)


def torn(root):
    """Its second half is gone."""
    with closing(sqlite3.connect(root / "imgdb.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = (root / "imgdb.db").read_bytes()
    lose(root)
    (root / "imgdb.db").write_bytes(data[: len(data) // 2 // 4096 * 4096])


MISHAPS = (lost, emptied, other_tables, reset, another, garbage_bytes, torn)


@pytest.mark.parametrize("mishap", MISHAPS, ids=lambda mishap: mishap.__name__)
def test_everything_comes_back(root, mishap):
    """A gc deletes nothing and names the way out, which brings back all tables as they were."""
    before, there = tables(root), files(root)
    mishap(root)
    with pytest.raises(ImgdbError, match="imgdb db rebuild"), ImageStore.open(root) as store:
        store.gc(GcOptions(full=True, grace_s=0))
    with pytest.raises(ImgdbError, match="imgdb db rebuild"), ImageStore.open(root, create=True) as store:
        store.tag("app:1", "x:1")
    assert files(root) == there
    result = rebuilt(root)
    assert tables(root) == before
    assert (result.names, result.pins, result.lost, result.left) == (5, 1, (), 0)
    assert (result.aside is not None) == (mishap in {another, garbage_bytes, torn})
    assert files(root) == there


@pytest.mark.parametrize("mishap", MISHAPS, ids=lambda mishap: mishap.__name__)
@pytest.mark.parametrize("half", ["lost", "damaged"])
def test_without_store_json_as_well(root, mishap, half):
    """The mirror tells which store it is."""
    before = tables(root)
    store_id = pair.read(root).store_id
    mishap(root)
    (root / "store.json").unlink()
    if half == "damaged":
        (root / "store.json").write_bytes(b'{"store_id": "')
    with pytest.raises(ImgdbError, match="db rebuild"):
        ImageStore.open(root)
    rebuilt(root)
    assert tables(root) == before
    assert pair.read(root).store_id == store_id


def test_only_store_json_is_lost(root):
    """The database is right, and stays."""
    before = tables(root)
    store_id = pair.read(root).store_id
    (root / "store.json").unlink()
    result = rebuilt(root)
    assert (tables(root), pair.read(root).store_id, result.aside) == (before, store_id, None)


def test_a_whole_store_stays_as_it_is(root):
    """Rows, ids, leases, events, history: a rebuild changes only what is wrong; twice as well."""
    with ImageStore.open(root, durable=False) as store:
        sql(store, 'UPDATE imgdb_images SET labels = \'{"mine": "yes"}\'')
        rows = "SELECT * FROM imgdb_image_history", "SELECT * FROM imgdb_images", "SELECT * FROM imgdb_leases"
        with damage.shell(store) as connection:
            before = [connection.execute(query).fetchall() for query in rows]
    for _ in range(2):
        rebuilt(root)
        with closing(sqlite3.connect(root / "imgdb.db")) as connection:
            assert [connection.execute(query).fetchall() for query in rows] == before


# -- an older database -----------------------------------------------------------------------------


@pytest.fixture
def restored(root, tmp_path):
    """Tables as they are, after a backup of before was put in the place of the database."""
    with ImageStore.open(root, durable=False) as store:
        store.load(Image(labels={"going": "x"}).oci_tar(tmp_path / "going.tar", "going:1"))
        store.pin("going:1")
        saved = tmp_path / "backup.db"
        backup_database(saved, root)
        store.unpin("going:1", "app:1")
        store.pin("one:1")
        store.remove("going:1")
        store.gc()
        store.remove("registry.example/team/app:stable")
        fresh = Image([{"fresh": b"x"}], labels={"fresh": "x"})
        store.load(fresh.oci_tar(tmp_path / "fresh.tar", "fresh:1"))
        store.load(fresh.oci_tar(tmp_path / "again.tar", "moving:1"))
        store.load(Artifact({"sig": b"new"}, subject=fresh).oci_tar(tmp_path / "sig.tar"))
    now = tables(root)
    lose(root)
    shutil.copy(saved, root / "imgdb.db")
    return now


def test_an_older_database(root, restored):
    """The mirror wins: what was added is back, what was removed stays removed, pins are as they were last."""
    there = files(root)
    with ImageStore.open(root) as store:
        assert "going:1" in {image.record.display_name for image in store.images()}  # reading works
        with pytest.raises(RefusedError, match=r"older than the store.*imgdb db rebuild"):
            store.gc(GcOptions(full=True, grace_s=0))
    assert files(root) == there
    result = rebuild(root, durable=False)
    assert result.removed == ("docker.io/library/going:1", "registry.example/team/app:stable")
    assert (result.lost, result.left) == ((), 0)
    with ImageStore.open(root, durable=False) as store:
        store.gc()
        assert store.check(FULL).findings == ()
        check_store(store)
    assert tables(root) == restored
    assert files(root) == there


def test_an_older_database_keeps_what_only_it_knows(root, tmp_path):
    """Leases, labels, history and events of before are still there."""
    saved = tmp_path / "backup.db"
    with ImageStore.open(root, durable=False) as store:
        store.create_lease("mine")
        store.add_to_lease("mine", ["one:1"])
        sql(store, 'UPDATE imgdb_images SET labels = \'{"a": "b"}\'')
        backup_database(saved, root)
        store.tag("one:1", "two:1")
        history = [period.target.digest for period in store.tag_history("moving:1")]
        events = [event.id for event in store.events()]
    lose(root)
    shutil.copy(saved, root / "imgdb.db")
    rebuild(root, durable=False)
    with ImageStore.open(root, durable=False) as store:
        assert "mine" in {lease.id for lease in store.leases()}
        assert {image.record.name: dict(image.record.labels) for image in store.images()}[
            "docker.io/library/one:1"
        ] == {"a": "b"}
        assert "docker.io/library/two:1" in names(store)
        assert [period.target.digest for period in store.tag_history("moving:1")] == history
        assert {event.id for event in store.events()} >= set(events) - {max(events)}
        check_store(store, leases={"mine"})


def test_a_newer_database(root, tmp_path):
    """A mirror that missed the last changes is written anew, and no name is lost or comes back."""
    index = (root / "index.json").read_bytes()
    with ImageStore.open(root, durable=False) as store:
        store.load(Image(labels={"late": "x"}).oci_tar(tmp_path / "late.tar", "late:1"))
        store.remove("one:1")
        store.gc()
    now = tables(root)
    (root / "index.json").write_bytes(index)
    assert rebuilt(root).removed == ()
    assert tables(root) == now


def test_a_name_whose_row_is_broken(root, sample):
    """It comes back from the mirror, also where the database is otherwise the one to believe."""
    before = tables(root)
    with ImageStore.open(root, durable=False) as store:
        damage.without_triggers(store, "UPDATE imgdb_images SET target_id = 4711 WHERE name LIKE '%/app:1'")
        report = store.check(CheckOptions(repair=True))
        assert "reference-broken" in {finding.id for finding in report.damage}
    rebuilt(root)
    assert tables(root) == before
    assert {row[0]: row[1] for row in before["images"]}["docker.io/library/app:1"] == sample.index.digest


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


# -- beside others ---------------------------------------------------------------------------------


def test_not_beside_a_collector(root):
    """A collector that runs would take for garbage what is not taught yet."""
    with locked(str(root / "gc-run.lock"), fcntl.LOCK_EX), pytest.raises(BusyError, match="a gc is running"):
        rebuild(root, durable=False)


@pytest.mark.parametrize("step", ["_names", "_blobs", "_finish"])
def test_killed_on_the_way(root, monkeypatch, step):
    """Every other writer refuses until it was run again."""
    before = tables(root)
    lose(root)

    def die(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module._Rebuild, step, die)
    with pytest.raises(KeyboardInterrupt):
        rebuild(root, durable=False)
    monkeypatch.undo()
    with ImageStore.open(root) as store, pytest.raises(RefusedError, match="imgdb db rebuild"):
        store.gc(GcOptions(full=True, grace_s=0))
    rebuilt(root)
    assert tables(root) == before


def test_no_store(tmp_path):
    """There is nothing to rebuild from."""
    with pytest.raises(NotFoundError, match="no store"):
        rebuild(tmp_path / "nothing")


def test_another_users_store(root, monkeypatch):
    """Refused, naming the way."""
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(RefusedError, match="sudo -u"):
        rebuild(root)


def test_the_pair_fits_afterwards(root):
    """The same id and generation, above all that there were."""
    before = pair.read(root).generation
    lose(root)
    rebuild(root, durable=False)
    half = pair.read(root)
    with ImageStore.open(root) as store:
        assert (store.info().store_id, store.info().generation) == (half.store_id, half.generation)
    notes = json.loads((root / "index.json").read_bytes())["annotations"]
    assert notes == {"io.imgdb.generation": str(half.generation), "io.imgdb.store": half.store_id}
    assert half.generation > before
