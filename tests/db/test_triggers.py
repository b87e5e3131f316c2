"""imgdb.db.triggers: whoever writes, by whatever SQL, counters, cascades and history are right."""

# ruff: noqa: S608 - the table names are those of the tests

from __future__ import annotations

import sqlite3
import time

import pytest

from tests.db.rows import T0

UPSERT_IMAGE = (
    "INSERT INTO imgdb_images (name, target_id, labels, created_at, updated_at, media_type, size)"
    " VALUES (?, ?, '{}', 1, ?, 'm', 10) ON CONFLICT (name)"
    " DO UPDATE SET target_id = excluded.target_id, updated_at = excluded.updated_at"
)


def test_counted_edges_count(rows):
    """A descriptor row counts for its child, unless it says that it does not."""
    a, b = rows.blob("a"), rows.blob("b")
    rows.edge(a, b)
    rows.edge(a, b, role="subject", counted=0)
    assert rows.counts(b) == (1, 0)
    rows.sql("UPDATE imgdb_descriptors SET counted = NOT counted WHERE role = 'subject'")
    assert rows.counts(b) == (2, 0)
    rows.sql("DELETE FROM imgdb_descriptors")
    assert (rows.counts(a), rows.counts(b)) == ((0, 0), (0, 0))


def test_bent_edges_move_their_count(rows):
    """Changing an edge's child takes the count along."""
    a, b, c = rows.blob("a"), rows.blob("b"), rows.blob("c")
    rows.edge(a, b)
    rows.sql("UPDATE imgdb_descriptors SET child_id = ?", c)
    assert (rows.counts(b), rows.counts(c)) == ((0, 0), (1, 0))
    rows.sql("UPDATE imgdb_descriptors SET child_id = ?, counted = 0", b)
    assert (rows.counts(b), rows.counts(c)) == ((0, 0), (0, 0))


def test_upserted_edges_count_once(rows):
    """ON CONFLICT DO UPDATE and DO NOTHING count what they leave, not what they tried."""
    a, b, c = rows.blob("a"), rows.blob("b"), rows.blob("c")
    upsert = (
        "INSERT INTO imgdb_descriptors (parent_id, role, position, counted, child_id, media_type, size)"
        " VALUES (?, 'layer', 0, 1, ?, 'm', 10) ON CONFLICT (parent_id, role, position) "
    )
    for child in (b, b, c, c):
        rows.sql(upsert + "DO UPDATE SET child_id = excluded.child_id, counted = excluded.counted", a, child)
    rows.sql(upsert + "DO NOTHING", a, b)
    assert (rows.counts(b), rows.counts(c)) == ((0, 0), (1, 0))


def test_images_count(rows):
    """Names count; moving, renaming and an admin's DELETE keep the counters right."""
    a, b = rows.blob("a"), rows.blob("b")
    rows.sql(UPSERT_IMAGE, "n", a, T0)
    rows.sql(UPSERT_IMAGE, "n", a, T0)
    rows.sql(UPSERT_IMAGE, "m", a, T0)
    assert rows.counts(a) == (2, 0)
    rows.sql(UPSERT_IMAGE, "n", b, T0)
    rows.sql("UPDATE imgdb_images SET name = 'k' WHERE name = 'm'")
    assert (rows.counts(a), rows.counts(b)) == ((1, 0), (1, 0))
    rows.sql("DELETE FROM imgdb_images")
    assert (rows.counts(a), rows.counts(b)) == ((0, 0), (0, 0))


def test_leases_count_by_their_kind(rows):
    """Strong leases count in refcount, flat ones in flat_refcount, and both follow a change."""
    a = rows.blob("a")
    rows.lease("strong")
    rows.lease("flat", flat=1)
    rows.resource("strong", "a")
    rows.resource("flat", "a")
    assert rows.counts(a) == (1, 1)
    rows.sql("UPDATE imgdb_leases SET flat = 1")
    assert rows.counts(a) == (0, 2)
    rows.sql("UPDATE imgdb_leases SET flat = 0")
    assert rows.counts(a) == (2, 0)
    rows.sql("DELETE FROM imgdb_lease_resources WHERE lease_id = 'strong'")
    assert rows.counts(a) == (1, 0)


def test_a_lease_takes_its_resources_along(rows):
    """Deleting leases deletes their resources and takes back what these counted."""
    a, snapshot = rows.blob("a"), rows.snapshot("s")
    for lease, flat in (("x", 0), ("y", 1)):
        rows.lease(lease, flat=flat)
        rows.resource(lease, "a")
        rows.resource(lease, "s", "snapshots")
        rows.resource(lease, "n", "images")
    assert (rows.counts(a), rows.held(snapshot)) == ((1, 1), 2)
    rows.sql("DELETE FROM imgdb_leases")
    assert rows.sql("SELECT * FROM imgdb_lease_resources") == []
    assert (rows.counts(a), rows.held(snapshot)) == ((0, 0), 0)


def test_resources_may_come_first(rows):
    """A blob or snapshot starts from the resources that were there before it."""
    rows.lease("x")
    rows.lease("y", flat=1)
    for lease in ("x", "y"):
        rows.resource(lease, "a")
        rows.resource(lease, "s", "snapshots")
    assert rows.counts(rows.blob("a", refcount=7, flat_refcount=7)) == (1, 1)
    assert rows.held(rows.snapshot("s", refcount=7)) == 2


def test_resources_need_a_lease(rows):
    """Without its lease nobody could say how a resource counts."""
    with pytest.raises(sqlite3.IntegrityError, match="imgdb: a resource needs a lease"):
        rows.resource("nobody", "a")


def test_snapshots_count_children_unpacks_mounts(rows):
    """Each of the three counts, moves and goes."""
    a, s, t = rows.blob("a"), rows.snapshot("s"), rows.snapshot("t")
    child = rows.snapshot("child", s)
    rows.unpack(a, s)
    rows.mount(s, "/mnt")
    assert rows.held(s) == 3
    rows.sql("UPDATE imgdb_snapshots SET parent_id = ? WHERE id = ?", t, child)
    rows.sql("UPDATE imgdb_unpacks SET snapshot_id = ?", t)
    rows.sql("UPDATE imgdb_mounts SET snapshot_id = ?", t)
    assert (rows.held(s), rows.held(t)) == (0, 3)
    rows.sql("UPDATE imgdb_snapshots SET parent_id = NULL WHERE id = ?", child)
    rows.sql("DELETE FROM imgdb_unpacks")
    rows.sql("DELETE FROM imgdb_mounts")
    assert rows.held(t) == 0


@pytest.mark.parametrize("user", ["child", "unpack", "mount"])
def test_snapshots_in_use_stay(rows, user):
    """A snapshot with a child, an unpacked image or a mount can't be deleted."""
    s = rows.snapshot("s")
    {
        "child": lambda: rows.snapshot("child", s),
        "unpack": lambda: rows.unpack(rows.blob("a"), s),
        "mount": lambda: rows.mount(s, "/mnt"),
    }[user]()
    with pytest.raises(sqlite3.IntegrityError, match="imgdb: the snapshot has children"):
        rows.sql("DELETE FROM imgdb_snapshots WHERE key = 's'")


def test_a_deleted_child_frees_its_parent(rows):
    """Snapshots go from the top down."""
    s = rows.snapshot("s")
    rows.snapshot("child", s)
    rows.sql("DELETE FROM imgdb_snapshots WHERE key = 'child'")
    assert rows.held(s) == 0
    rows.sql("DELETE FROM imgdb_snapshots")


def test_a_blob_takes_along_what_it_says(rows):
    """Text, edges, layers and unpacks go with the document that they came from."""
    m, layer, s = rows.blob("m", kind="manifest"), rows.blob("l"), rows.snapshot("s")
    rows.insert("documents", blob_id=m, json="{}")
    rows.edge(m, layer, role="layer")
    rows.layer(m, layer)
    rows.unpack(m, s)
    rows.sql("DELETE FROM imgdb_blobs WHERE id = ?", m)
    for table in ("documents", "descriptors", "layers", "unpacks"):
        assert rows.sql(f"SELECT * FROM imgdb_{table}") == []
    assert (rows.counts(layer), rows.held(s)) == ((0, 0), 0)


@pytest.mark.parametrize("counted", [0, 1])
def test_blobs_in_use_stay(rows, counted):
    """What an image, any edge or a layer row names can't be deleted."""
    a, b, c = rows.blob("a"), rows.blob("b"), rows.blob("c")
    rows.image("n", a)
    rows.edge(a, b, role="subject", counted=counted)
    rows.layer(a, c)
    with pytest.raises(sqlite3.IntegrityError, match="imgdb: an image points"):
        rows.sql("DELETE FROM imgdb_blobs WHERE id = ?", a)
    for blob in (b, c):
        with pytest.raises(sqlite3.IntegrityError, match="imgdb: a document refers"):
            rows.sql("DELETE FROM imgdb_blobs WHERE id = ?", blob)
    assert len(rows.sql("SELECT * FROM imgdb_descriptors")) == 1


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("blobs", "digest"),
        ("blobs", "id"),
        ("snapshots", "key"),
        ("snapshots", "id"),
        ("leases", "id"),
        ("lease_resources", "lease_id"),
        ("lease_resources", "type"),
        ("lease_resources", "key"),
    ],
)
def test_identities_never_change(rows, table, column):
    """Counters could not follow; writing the same value again is fine."""
    rows.blob("a")
    rows.snapshot("s")
    rows.lease("x")
    rows.resource("x", "a")
    rows.sql(f"UPDATE imgdb_{table} SET {column} = {column}")
    with pytest.raises(sqlite3.IntegrityError, match=f"imgdb: .*{column}.* can not be changed"):
        rows.sql(f"UPDATE imgdb_{table} SET {column} = 77")


def test_lost_files_are_doomed(rows):
    """A present blob that loses its row or its presence leaves its digest to be swept."""
    before = time.time_ns() // 1000
    rows.blob("gone", size=5)
    rows.blob("absent", size=6)
    rows.blob("stub", present=0)
    rows.sql("UPDATE imgdb_blobs SET present = 0 WHERE digest = 'absent'")
    rows.sql("DELETE FROM imgdb_blobs WHERE digest IN ('gone', 'stub')")
    doomed = rows.sql("SELECT digest, size, doomed_at FROM imgdb_doomed ORDER BY digest")
    assert [row[:2] for row in doomed] == [("absent", 6), ("gone", 5)]
    after = time.time_ns() // 1000
    assert all(before - 1000 <= at <= after for _digest, _size, at in doomed)


def test_doomed_twice_is_doomed_once(rows):
    """A digest that was doomed, came back and went again has one row, with the newer time."""
    rows.sql("INSERT INTO imgdb_doomed VALUES ('a', 1, 1)")
    rows.blob("a", size=5)
    rows.sql("UPDATE OR IGNORE imgdb_blobs SET present = 0")
    rows.sql("DELETE FROM imgdb_blobs")
    ((digest, size, at),) = rows.sql("SELECT * FROM imgdb_doomed")
    assert (digest, size) == ("a", 5)
    assert at > T0


def test_history_of_a_name(rows):
    """Where a name pointed, from when to when; the same target again is no event."""
    a, b = rows.blob("a"), rows.blob("b")
    for target, at in ((a, T0), (a, T0 + 1), (b, T0 + 2)):
        rows.sql(UPSERT_IMAGE, "n", target, at)
    rows.sql("UPDATE imgdb_images SET name = 'm', updated_at = ?", T0 + 3)
    assert rows.sql("SELECT name, digest, from_at, until_at FROM imgdb_image_history") == [
        ("n", "a", T0, T0 + 2),
        ("n", "b", T0 + 2, T0 + 3),
        ("m", "b", T0 + 3, None),
    ]


def test_history_of_a_removed_name(rows):
    """Deleting uses SQLite's clock, but a name never ends before it began."""
    before = time.time_ns() // 1000
    future = before + 10**12
    a = rows.blob("a")
    rows.image("n", a)
    rows.image("later", a, updated_at=future)
    rows.sql("DELETE FROM imgdb_images")
    ended = dict(rows.sql("SELECT name, until_at FROM imgdb_image_history"))
    assert ended["later"] == future
    assert before - 1000 <= ended["n"] <= time.time_ns() // 1000


def test_history_keeps_what_the_name_said(rows):
    """Media type and size of the target stay readable when its blob is gone."""
    a = rows.blob("a")
    rows.image("n", a, media_type="index", size=99)
    rows.sql("DELETE FROM imgdb_images")
    rows.sql("DELETE FROM imgdb_blobs")
    assert rows.sql("SELECT digest, media_type, size FROM imgdb_image_history") == [("a", "index", 99)]


def test_rollback_takes_counts_back(rows):
    """Counters are rows like others."""
    a = rows.blob("a")
    rows.sql("BEGIN")
    rows.image("n", a)
    rows.sql("SAVEPOINT inner")
    rows.image("m", a)
    rows.sql("ROLLBACK TO inner")
    assert rows.counts(a) == (1, 0)
    rows.sql("ROLLBACK")
    assert rows.counts(a) == (0, 0)
