"""Limits of a collection, files that nobody knows, and documents that it can't see through."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from types import SimpleNamespace

import pytest

from imgdb import mirror
from imgdb.check.report import CheckOptions
from imgdb.content.disk import SWEEP_BATCH
from imgdb.errors import FailedPreconditionError
from imgdb.gc import GcOptions
from tests.collecting import FULL, collected, freed, image, orphan, tar
from tests.db.rows import Rows, open_shell
from tests.looking import digests, names, present


@pytest.mark.parametrize("limit", [1, 3, 500])
def test_max_delete(new_store, limit):
    """Stops cleanly after so many, goes on next time, and says what remains."""
    store = new_store()
    images = [image(number) for number in range(3)]
    store.load(tar(*((node, f"i{number}:1") for number, node in enumerate(images))))
    for number in range(3):
        store.remove(f"i{number}:1")
    everything = digests(*images)
    gone = set()
    for _ in range(len(everything)):
        result = store.gc(GcOptions(max_delete=limit))
        assert len(result.freed) == min(limit, len(everything - gone))
        gone |= freed(result)
        left = sum(blob.size for node in images for blob in node.blobs().values() if blob.digest not in gone)
        assert result.remaining_bytes == left
        assert result.complete == (not left)
        if result.complete:
            break
    assert gone == everything


def test_max_delete_limits_leftovers(new_store):
    """Files of an earlier collection that was stopped count as well."""
    store = new_store()
    left = [orphan(store, b"%d" % number) for number in range(5)]
    rows = Rows(open_shell(f"{store.root}/imgdb.db"))
    for digest in left:
        rows.insert("doomed", digest=str(digest), size=1, doomed_at=1)
    assert [len(store.gc(GcOptions(max_delete=2)).freed) for _ in range(4)] == [2, 2, 1, 0]


@pytest.mark.parametrize("steps", range(5))
def test_time_limit(new_store, monkeypatch, steps):
    """Stops between two steps, wherever it is; the next run goes on."""
    store = new_store()
    images = [image(number) for number in range(SWEEP_BATCH // 2)]
    store.load(tar(*((node, f"i{number}:1") for number, node in enumerate(images))))
    for number in range(len(images)):
        store.remove(f"i{number}:1")
    ticks = itertools.chain(itertools.repeat(0.0, steps), itertools.repeat(1e9))
    clock = SimpleNamespace(monotonic=lambda: next(ticks), time_ns=time.time_ns)
    with monkeypatch.context() as patch:
        patch.setattr("imgdb.gc.time", clock)
        # It starts by the real clock and goes on by this one.
        first = store.gc(GcOptions(time_limit_s=1e6 - time.monotonic()))
    second = store.gc()
    assert not first.complete
    assert freed(first) | freed(second) == digests(*images)
    assert not first.freed.keys() & second.freed.keys()
    assert first.remaining_bytes == second.freed_bytes
    assert second.complete


def test_grace(new_store):
    """A file that nobody knows is spared for a while; only a full collection looks for one."""
    store = new_store()
    digest = orphan(store, b"nobody's")
    assert collected(store, GcOptions(grace_s=0)) == set()
    assert collected(store, GcOptions(full=True)) == set()
    assert collected(store, FULL) == {str(digest)}


def test_foreign_files_are_reported_and_left(new_store):
    """Names that are no digests, folders and links."""
    store = new_store()
    store.load(tar((image(1), "app:1")))
    blobs = os.path.join(store.root, "blobs")
    hexdigits = hashlib.sha256(b"x").hexdigest()
    for name in ("README", "sha256/notes.txt", f"sha256/{hexdigits}.tmp", f"md5/{hexdigits[:32]}"):
        os.makedirs(os.path.dirname(os.path.join(blobs, name)), exist_ok=True)
        with open(os.path.join(blobs, name), "w", encoding="ascii") as file:
            file.write("mine")
    os.symlink("/etc/passwd", os.path.join(blobs, "sha256", hexdigits))
    expected = sorted(os.path.join(folder, name) for folder, _, files in os.walk(blobs) for name in files)
    known = [os.path.join(blobs, digest.replace(":", "/")) for digest in present(store)]
    strange = [path for path in expected if path not in known]
    assert store.plan_gc(FULL).foreign == tuple(strange)
    assert store.gc(FULL).foreign == tuple(strange)
    assert len(strange) == 5
    assert all(os.path.lexists(path) for path in strange)
    for path in strange:
        os.unlink(path)
    os.rmdir(os.path.join(blobs, "md5"))


@pytest.mark.parametrize("limit", [1, 1000], ids=["many names", "few names"])
def test_the_mirror_is_renewed(new_store, monkeypatch, limit):
    """What plain SQL did to names comes into it; of many names only when asked, or when it is worth it."""
    monkeypatch.setattr(mirror, "LIMIT", limit)
    store = new_store()
    store.load(tar((image(1), *(f"n{number}:1" for number in range(8)))))
    store.gc(FULL)
    index, log = (os.path.join(store.root, name) for name in ("index.json", "names.log"))
    rows = Rows(open_shell(f"{store.root}/imgdb.db"))
    rows.sql("DELETE FROM imgdb_images WHERE name LIKE '%n1:1'")
    before = os.stat(index).st_mtime_ns
    store.gc()
    assert (names(store).keys() == mirror.read(store.root).entries.keys()) == (limit > 1)
    assert (os.stat(index).st_mtime_ns == before) == (limit == 1)
    store.gc(FULL)
    assert names(store).keys() == mirror.read(store.root).entries.keys()
    before = os.stat(index).st_mtime_ns
    store.gc(FULL)
    assert os.stat(index).st_mtime_ns == before
    for number in range(20):
        store.tag("n2:1", f"new{number}:1")
    assert (limit == 1) == os.path.exists(log)
    monkeypatch.setattr(mirror, "_LONG", 0)
    store.gc()
    assert names(store).keys() == mirror.read(store.root).entries.keys()
    assert not os.path.exists(log) or os.stat(log).st_size == 0
    rows.connection.close()


def test_an_unexpanded_document_stops_it(new_store):
    """What it needs can't be told from garbage; nothing is freed, and the way out is named and works."""
    store = new_store()
    kept, lost = image(1), image(2)
    store.load(tar((kept, "kept:1"), (lost, "lost:1")))
    store.remove("lost:1")
    rows = Rows(open_shell(f"{store.root}/imgdb.db"))
    rows.sql("UPDATE imgdb_blobs SET expanded = 0 WHERE digest = ?", kept.digest)
    rows.sql(
        "DELETE FROM imgdb_descriptors WHERE parent_id = (SELECT id FROM imgdb_blobs WHERE digest = ?)",
        kept.digest,
    )
    for attempt in (store.gc, store.plan_gc):
        with pytest.raises(FailedPreconditionError, match=f"{kept.digest} .*imgdb check --repair"):
            attempt()
    assert present(store) == digests(kept, lost)
    assert store.check(CheckOptions(repair=True)).damage == ()
    assert collected(store) == digests(lost)
