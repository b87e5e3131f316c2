"""A store survives its database: whatever happened to that, ``db rebuild`` brings everything back."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from imgdb import pair
from imgdb import rebuild as module
from imgdb.check.report import CheckOptions
from imgdb.content.holds import locked
from imgdb.db import engine, schema
from imgdb.errors import BusyError, ImgdbError, NotFoundError, RefusedError
from imgdb.gc import GcOptions
from imgdb.rebuild import rebuild
from imgdb.store import ImageStore
from imgdb.upkeep import backup_database
from tests import damage
from tests.builder import Artifact, Image
from tests.damage import FULL, Sample, sql, tables
from tests.integrity import check_store
from tests.looking import names, platforms
from tests.rebuilding import files, lose, make_store, rebuilt


@pytest.fixture
def sample(tmp_path):
    """What is in the store."""
    return Sample(tmp_path)


@pytest.fixture
def root(store_template, tmp_path, sample):
    """The directory of a store, closed."""
    return make_store(store_template, tmp_path, sample)


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


def test_an_older_database_without_store_json(root, restored):
    """Making store.json anew does not make them fit: the mirror tells how far the database had come."""
    (root / "store.json").unlink()
    there = files(root)
    with (
        ImageStore.open(root, create=True) as store,
        pytest.raises(RefusedError, match="older than the store"),
    ):
        store.gc(GcOptions(full=True, grace_s=0))
    assert files(root) == there
    rebuild(root, durable=False)
    with ImageStore.open(root, durable=False) as store:
        store.gc()
    assert tables(root) == restored


@pytest.mark.parametrize("mishap", [lambda _: None, another], ids=["right", "another"])
def test_a_damaged_index_without_store_json(root, mishap):
    """Nobody guesses: a store is not made over it."""
    mishap(root)
    (root / "store.json").unlink()
    (root / "index.json").write_bytes(b"{")
    with pytest.raises(ImgdbError, match="imgdb db rebuild"):
        ImageStore.open(root, create=True)
    assert not (root / "store.json").exists()


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


# -- snapshots -------------------------------------------------------------------------------------


def snapshots_of(root):
    """What the rows say, times and counters apart."""
    with ImageStore.open(root, durable=False) as store:
        return [replace(record, created_at=0, updated_at=0) for record in store.snapshots()]


@pytest.fixture
def unpacked(root):
    """The store with an unpacked image, a written snapshot on it, one on top of that, and a view."""
    with ImageStore.open(root, durable=False) as store:
        store.unpack("app:1", platforms("linux/amd64"))
        parent = store.snapshots()[-1].key
        store.prepare("first", parent)
        upper = f"{root}/snapshots/{store.snapshot('first').id}/fs"
        with open(f"{upper}/work-of-years", "w", encoding="utf-8") as file:
            file.write("precious")
        store.commit_snapshot("done", "first", labels={"kept": "yes"})
        store.prepare("second", "done", labels={"a": "b"})
        store.view("look", "done")
    return root


def test_snapshots_come_back(unpacked):
    """With keys, parents, labels and what was written; images are unpacked as before."""
    before = snapshots_of(unpacked)
    lose(unpacked)
    assert rebuilt(unpacked).snapshots == len(before) == 5
    assert snapshots_of(unpacked) == before
    with ImageStore.open(unpacked, durable=False) as store:
        assert store.unpack("app:1", platforms("linux/amd64"))[0].new_layers == 0
        assert len(store.gc().snapshots) == 0
        number = store.snapshot("done").id
    assert os.listdir(f"{unpacked}/snapshots/{number}/fs") == ["work-of-years"]


def test_a_directory_of_which_nothing_is_known(unpacked):
    """Stays where it is, and is told; so do those whose parents it was."""
    with ImageStore.open(unpacked, durable=False) as store:
        number = store.snapshot("done").id
    (unpacked / f"snapshots/{number}/snapshot.json").write_text("{torn", "utf-8")
    lose(unpacked)
    result = rebuild(unpacked, durable=False)
    assert result.snapshots == 2
    assert [warning.split("/")[-1] for warning in result.warnings] == [
        f"{n} is no snapshot that can be brought back" for n in range(number, number + 3)
    ]
    assert os.path.exists(f"{unpacked}/snapshots/{number}/fs/work-of-years")
    assert [record.kind for record in snapshots_of(unpacked)] == ["committed", "committed"]
