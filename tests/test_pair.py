"""Store and database are a pair: what doesn't fit is noticed before anything is written."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sqlite3
import stat

import pytest

from imgdb import pair
from imgdb.errors import DataLossError, NotFoundError, RefusedError
from imgdb.store import ImageStore
from tests.builder import Image, noise

NAME = "example.org/app:1"
OLD = Image([{"base": noise(3000)}, {"old": b"1"}])
NEW = Image([{"base": noise(3000)}, {"new": b"2"}])


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Two images of one name."""
    path = tmp_path_factory.mktemp("archives")
    return {name: image.oci_tar(path / f"{name}.tar", NAME) for name, image in (("old", OLD), ("new", NEW))}


@pytest.fixture
def root(store_template, archives, tmp_path):
    """A closed store that has the old image."""
    root = shutil.copytree(store_template, tmp_path / "store")
    with opened(root) as store:
        store.load(archives["old"])
    return root


def opened(root, **options):
    """The store, without waiting for the disk."""
    return ImageStore.open(root, durable=False, **options)


def half(root):
    """What store.json says."""
    return json.loads((root / "store.json").read_text())


def connect(path):
    """The database by sqlite3 alone; closed after the block."""
    return contextlib.closing(sqlite3.connect(path))


def generation(root):
    """What the database says."""
    with connect(root / "imgdb.db") as db:
        return db.execute("SELECT generation FROM imgdb_meta").fetchone()[0]


def copy_database(source, target):
    """As `sqlite3 .backup` and `.restore` do."""
    with connect(source) as db, connect(target) as other:
        db.backup(other)


def snapshot(root):
    """Files with their bytes, without those that SQLite makes for readers."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in {"imgdb.db-wal", "imgdb.db-shm"}
    }


# -- a pair that fits ----------------------------------------------------------------------------


def test_generation_rises_by_one(root, archives):
    """Each transaction that may add blobs or names; in both halves, before the call returns."""
    with opened(root) as store:
        before = generation(root)
        changes = [
            lambda: store.load(archives["new"]),
            lambda: store.load(archives["new"]),
            lambda: store.tag(NAME, "other:1"),
            lambda: store.remove("other:1"),
            lambda: store.restore_tag("other:1"),
        ]
        for number, change in enumerate(changes, 1):
            change()
            assert (generation(root), half(root)["generation"]) == (before + number, before + number)


def test_generation_stays(root, archives, tmp_path):
    """Reading, exporting, collecting and failing raise nothing."""
    before = generation(root)
    with opened(root) as store:
        store.images()
        store.inspect(NAME)
        store.export([NAME], io.BytesIO())
        store.load(archives["new"], dry_run=True)
        store.gc()
        for failing in (
            lambda: store.tag("absent", "other:1"),
            lambda: store.remove("absent"),
            lambda: store.load(str(tmp_path / "absent")),
        ):
            with pytest.raises(NotFoundError):
                failing()
    assert (generation(root), half(root)["generation"]) == (before, before)


def test_a_database_elsewhere_is_remembered(archives, tmp_path):
    """`db` is said once; afterwards the store knows where its database is."""
    database = tmp_path / "host.db"
    with connect(database) as db:
        db.execute("CREATE TABLE host (x)")
    root = tmp_path / "store"
    with opened(root, db=str(database), create=True) as store:
        store.load(archives["old"])

    with opened(root) as store:
        assert store.info().database == str(database)
        assert store.exists(NAME)
    assert half(root)["database"] == str(database)
    assert not (root / "imgdb.db").exists()


def test_advance_never_goes_back(root):
    """Of two commits the later one counts, whichever is told first."""
    before = half(root)
    pair.advance(str(root), before["generation"] + 5)
    pair.advance(str(root), before["generation"] + 4)
    assert half(root) == before | {"generation": before["generation"] + 5}
    assert stat.S_IMODE((root / "store.json").stat().st_mode) == 0o600


def test_a_file_that_lags_behind(root, archives):
    """A crash between a commit and store.json is no mismatch; the next write catches up."""
    stored = (root / "store.json").read_bytes()
    with opened(root) as store:
        store.load(archives["new"])
        (root / "store.json").write_bytes(stored)
        store.tag(NAME, "other:1")
    assert half(root)["generation"] == generation(root)


# -- pairs that don't ----------------------------------------------------------------------------


def another(root, archives, tmp_path):
    """The database of another store, as after a wrong --db or a wrong restore."""
    with opened(tmp_path / "another", create=True) as store:
        store.load(archives["old"])
    copy_database(tmp_path / "another" / "imgdb.db", root / "imgdb.db")
    return "belongs to another store"


def older(root, archives, tmp_path):
    """The database from before the last import, out of a backup."""
    copy_database(root / "imgdb.db", tmp_path / "backup.db")
    with opened(root) as store:
        store.load(archives["new"])
    copy_database(tmp_path / "backup.db", root / "imgdb.db")
    return "older than the store"


def empty(root, _archives, tmp_path):
    """A new database in the place of the one that was lost."""
    with opened(tmp_path / "empty", create=True):
        pass
    copy_database(tmp_path / "empty" / "imgdb.db", root / "imgdb.db")
    return "belongs to another store"


def emptied(root, _archives, _tmp_path):
    """A database whose rows are gone, as after a reset of its host; the tables are there."""
    with connect(root / "imgdb.db") as db, db:
        db.execute("DELETE FROM imgdb_images")
        db.execute("DELETE FROM imgdb_meta")
    return "database .* was emptied"


MISMATCHES = [another, older, empty, emptied]
WRITES = {
    "load": lambda store, archives: store.load(archives["new"]),
    "load again": lambda store, archives: store.load(archives["old"]),
    "tag": lambda store, _: store.tag(NAME, "other:1"),
    "remove": lambda store, _: store.remove(NAME),
    "restore": lambda store, _: store.restore_tag(NAME),
    "gc": lambda store, _: store.gc(),
    "pin": lambda store, _: store.pin(NAME),
    "lease": lambda store, _: store.create_lease(),
    "prune events": lambda store, _: store.prune_events(0),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("mismatch", MISMATCHES, ids=lambda function: function.__name__)
def test_writing_is_refused(mismatch, write, root, archives, tmp_path):
    """Exit code 4 and the way out; not a byte of the store changes."""
    words = mismatch(root, archives, tmp_path)
    with opened(root) as store:
        before = snapshot(root)
        with pytest.raises(RefusedError, match=f"{words}.*imgdb db rebuild") as refused:
            WRITES[write](store, archives)
        assert refused.value.exit_code == 4
        assert snapshot(root) == before


@pytest.mark.parametrize("mismatch", [another, older], ids=lambda function: function.__name__)
def test_reading_works(mismatch, root, archives, tmp_path):
    """What the database knows can still be looked at."""
    mismatch(root, archives, tmp_path)
    with opened(root) as store:
        assert [image.record.name for image in store.images()] == [NAME]
        assert str(store.resolve(NAME).target.digest) == OLD.digest
        assert store.inspect(NAME)["Id"] == OLD.digest
        assert [entry.created_by for entry in store.history(NAME)] == ["layer 1", "layer 0"]
        assert store.info().images == 1
        with store.open_blob(OLD.digest) as file:
            assert file.read() == OLD.blob.data


@pytest.mark.parametrize("mismatch", [another, older], ids=lambda function: function.__name__)
def test_exporting_works(mismatch, root, archives, tmp_path):
    """Getting images out is reading, and the more wanted the less the rest works."""
    mismatch(root, archives, tmp_path)
    out = io.BytesIO()
    with opened(root) as store:
        store.export([NAME], out)
    assert OLD.config.data in out.getvalue()


def test_a_lost_store_file(root, archives):
    """Without store.json nothing is guessed by readers; an import finds the database that is there."""
    before = half(root)
    (root / "store.json").unlink()
    with pytest.raises(NotFoundError, match=r"has blobs but no store\.json; run imgdb db rebuild"):
        opened(root)

    with opened(root, create=True) as store:
        assert store.exists(NAME)
        store.load(archives["new"])
    assert half(root)["store_id"] == before["store_id"]
    assert half(root)["generation"] == generation(root) == before["generation"] + 1


def test_a_lost_store_file_costs_no_names(root):
    """Making store.json anew takes nothing from the mirror, and the database's generation."""
    mirror = (root / "index.json").read_bytes()
    before = half(root)
    (root / "store.json").unlink()
    with opened(root, create=True):
        pass
    assert (root / "index.json").read_bytes() == mirror
    assert half(root) == before


def test_store_file_and_database_lost(root):
    """A new, empty database over filled blobs would take all of them for garbage."""
    (root / "store.json").unlink()
    (root / "imgdb.db").unlink()
    before = {name: data for name, data in snapshot(root).items() if name.startswith("blobs/")}

    with pytest.raises(RefusedError, match=r"blobs is filled.*run imgdb db rebuild") as refused:
        opened(root, create=True)
    assert refused.value.exit_code == 4
    assert {n: d for n, d in snapshot(root).items() if n.startswith("blobs/")} == before
    assert not (root / "store.json").exists()


def test_a_database_that_is_lost(root):
    """Nothing can be read without it, and the way out is said; it is not made anew in passing."""
    (root / "imgdb.db").unlink()
    for create in (False, True):
        with pytest.raises(RefusedError, match="run imgdb db rebuild") as refused:
            opened(root, create=create)
        assert refused.value.exit_code == 4
    assert not (root / "imgdb.db").exists()


def test_no_store(tmp_path):
    """An empty place is no damage; the message says what makes a store."""
    with pytest.raises(NotFoundError, match=r"no store in .* yet; imgdb import makes one"):
        opened(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_newer_format(root):
    """What a newer imgdb wrote is neither read nor written."""
    (root / "store.json").write_text(json.dumps(half(root) | {"format": pair.FORMAT + 1}))
    before = snapshot(root)
    with pytest.raises(RefusedError, match=f"has format {pair.FORMAT + 1}; upgrade imgdb") as refused:
        opened(root)
    assert refused.value.exit_code == 4
    assert snapshot(root) == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"x"',
        "{}",
        '{"store_id": "x", "format": 1}',
        '{"format": "one"}',
        "\xff",
        "[" * 99,
    ],
)
def test_a_damaged_store_file(text, root):
    """Exit code 3 and the way out."""
    (root / "store.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataLossError, match="imgdb db rebuild") as damaged:
        opened(root)
    assert damaged.value.exit_code == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory away needs root")
def test_another_users_store(root):
    """Writing to it is refused with the command that would work; reading is not."""
    os.chown(root, 65534, 65534)
    with opened(root) as store:
        assert store.exists(NAME)
        with pytest.raises(RefusedError, match=r"belongs to nobody; use sudo -u nobody$") as refused:
            store.tag(NAME, "other:1")
    assert refused.value.exit_code == 4
    os.chown(root, 0, 0)


def test_a_failing_store_file_is_no_failing_commit(root, monkeypatch, caplog):
    """The commit stands; the file is behind, which is allowed, and follows with the next write."""
    with opened(root) as store:
        with monkeypatch.context() as patch:
            patch.setattr(pair, "advance", no_disk)
            store.tag(NAME, "other:1")
        assert "was not written: [Errno 5] gone" in caplog.text
        assert store.exists("other:1")
        assert half(root)["generation"] == generation(root) - 1
        store.tag(NAME, "other:2")
        assert half(root)["generation"] == generation(root)


def no_disk(*_args, **_options):
    """A file system that stopped working."""
    raise OSError(5, "gone")
