"""Disk accounting: the sizes are those of files, and reclaimable is what is then really freed."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgdb import ImageStore, ImportOptions
from imgdb.gc import Collector, GcOptions
from imgdb.prune import PruneOptions
from tests.builder import Image, Index, Layer, noise
from tests.collecting import freed, image, orphan, tar
from tests.db.rows import Rows, open_shell
from tests.gc_pool import NAMES, POOL, archive_of
from tests.looking import digests, present

BASE = Layer({"base": noise(5000)})
ALL = PruneOptions(every=True)


def lines(usage):
    """The lines by their type."""
    return {line.type: line for line in usage.lines}


def bytes_below(root):
    """Of all files under blobs/, by `stat` alone."""
    return sum(path.lstat().st_size for path in (Path(root) / "blobs").rglob("*") if path.is_file())


def size_of(*wanted):
    """Bytes of some blobs, given as a dict or as nodes."""
    blobs = {blob.digest: blob.size for node in wanted for blob in node.blobs().values()}
    return sum(blobs.values())


def test_an_empty_store(store):
    """Nothing, in all columns."""
    usage = store.df()
    assert [line.type for line in usage.lines] == ["Images", "Blobs", "Snapshots"]
    assert {(line.total, line.active, line.size, line.reclaimable) for line in usage.lines} == {(0, 0, 0, 0)}
    assert usage.images == ()


def test_shared_and_unique(new_store):
    """Of each image: what others need too, and what only it needs; each blob once."""
    store = new_store()
    one, two = Image([BASE, {"one": b"1"}]), Image([BASE, {"two": noise(700)}])
    twice = Index([two, Image([{"arm": b"a"}], platform="linux/arm64")])
    store.load(tar((one, "one:1"), (two, "two:1"), (twice, "index:1", "index:2")))
    usage = {image.record.display_name: image for image in store.df().images}
    assert list(usage) == ["index:1", "index:2", "one:1", "two:1"]
    base = len(BASE.data)
    found = {name: (u.size, u.shared, u.unique) for name, u in usage.items()}
    index = size_of(twice)
    assert found == {
        "one:1": (size_of(one), base, size_of(one) - base),
        "two:1": (size_of(two), size_of(two), 0),
        "index:1": (index, size_of(two), index - size_of(two)),
        "index:2": (index, size_of(two), index - size_of(two)),
    }


def test_active_and_reclaimable(new_store):
    """An image is active when somebody uses it, a blob when something needs it."""
    store = new_store()
    used, unused, gone = Image([BASE, {"u": b"1"}]), Image([BASE, {"n": b"2"}]), image(3)
    store.load(tar((used, "used:1", "used:2"), (unused, "unused:1"), (gone, "gone:1")))
    store.pin("used:1")
    store.remove("gone:1")
    found = lines(store.df())
    assert (found["Images"].total, found["Images"].active) == (2, 1)
    assert found["Images"].size == size_of(used, unused)
    assert found["Images"].reclaimable == size_of(used, unused) - size_of(used)
    everything = digests(used, unused, gone)
    assert (found["Blobs"].total, found["Blobs"].active) == (len(everything), len(digests(used, unused)))
    assert found["Blobs"].size == size_of(used, unused, gone) == bytes_below(store.root)
    assert found["Blobs"].reclaimable == size_of(gone)


def test_files_without_rows_count(new_store):
    """They take space, whoever may know them; those that wait to be swept are reclaimable."""
    store = new_store(garbage_files=True)
    store.load(tar((image(1), "app:1")))
    orphan(store, b"nobody's")
    doomed = orphan(store, b"swept soon")
    rows = Rows(open_shell(f"{store.root}/imgdb.db"))
    rows.insert("doomed", digest=str(doomed), size=10, doomed_at=1)
    rows.connection.close()
    found = lines(store.df())["Blobs"]
    assert found.size == bytes_below(store.root)
    assert found.total == len(digests(image(1))) + 2
    assert (found.active, found.reclaimable) == (found.total - 1, 10)
    assert store.gc().freed_bytes == 10


def test_absent_blobs_take_nothing(new_store):
    """What is only referred to."""
    store = new_store()
    index = Index([image(1), image(2, platform="linux/arm64")])
    missing = digests(image(2, platform="linux/arm64"))
    store.load(tar((index, "app:1"), without=missing))
    (usage,) = store.df().images
    assert usage.size == usage.unique == bytes_below(store.root) < size_of(index)


def test_snapshots(new_store):
    """Committed ones that nothing refers to are reclaimable."""
    store = new_store()
    rows = Rows(open_shell(f"{store.root}/imgdb.db"))
    lower = rows.snapshot("lower", usage_bytes=100)
    upper = rows.snapshot("upper", lower, kind="active", usage_bytes=20)
    rows.snapshot("idle", usage_bytes=3)
    line = lines(store.df())["Snapshots"]
    assert (line.total, line.active, line.size, line.reclaimable) == (3, 2, 123, 3)
    for row in (upper, lower):
        rows.sql("DELETE FROM imgdb_snapshots WHERE id = ?", row)
    rows.sql("DELETE FROM imgdb_snapshots")
    rows.connection.close()


def test_a_store_on_a_medium_that_nobody_can_write(new_store, monkeypatch):
    """Holds can't be asked there, and there are none."""
    store = new_store()
    store.load(tar((image(1), "app:1"), (image(2), "gone:1")))
    store.remove("gone:1")

    def refused(*_):
        raise OSError(30, os.strerror(30))

    with monkeypatch.context() as patch:
        patch.setattr("imgdb.content.disk.locked", refused)
        assert lines(store.df())["Blobs"].reclaimable == size_of(image(2))
        patch.setattr("imgdb.content.disk.locked", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.df()


def test_more_names_than_a_statement_has_variables(store):
    """A list of names goes to SQLite as one value."""
    store.load(tar((image(1), "app:1")))
    many = ["docker.io/library/app:1", *(f"example.org/x:{number}" for number in range(300_000))]
    plan = Collector(store._access()).plan(GcOptions(), gone=many)
    assert freed(plan) == digests(image(1))


nodes = st.sampled_from(sorted(POOL))
entries = st.lists(st.tuples(nodes, st.none() | st.sampled_from(NAMES)), min_size=1, max_size=4)
documents = st.lists(nodes, max_size=2)


@given(
    archives=st.lists(entries, min_size=1, max_size=3),
    gone=st.sets(st.integers(0, 5), max_size=3),
    leased=documents,
    flat=documents,
    pinned=st.booleans(),
)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_store(store_template, archives, gone, leased, flat, pinned):
    """SIZE is what lies under blobs/, RECLAIMABLE what gc and then prune free, whatever the store holds."""
    with tempfile.TemporaryDirectory() as folder:
        root = shutil.copytree(store_template, os.path.join(folder, "store"))
        with ImageStore.open(root, durable=False) as store:
            for chosen in archives:
                store.load(archive_of(chosen), ImportOptions(allow_incomplete=True))
            for lease, keys in {"strong": leased, "flat": flat}.items():
                store.create_lease(lease, flat=lease == "flat")
                store.add_to_lease(lease, [POOL[key].digest for key in keys])
            for number, record in enumerate(sorted(i.record.name for i in store.images())):
                if number in gone:
                    store.remove(record)
                elif pinned and not number % 2 and "dangling" not in record:
                    store.pin(record)
            check_lines(store)


def check_lines(store):
    """Each figure against what happens."""
    found = lines(store.df())
    assert found["Blobs"].size == bytes_below(store.root)
    assert found["Blobs"].active == found["Blobs"].total - len(store.plan_gc().freed)
    before = bytes_below(store.root)
    assert store.gc().freed_bytes == found["Blobs"].reclaimable == before - bytes_below(store.root)
    # Not so their size: below an image may have been what only a flat lease kept.
    images, again = found["Images"], lines(store.df())["Images"]
    assert (again.total, again.active, again.reclaimable) == (images.total, images.active, images.reclaimable)
    done = store.prune(store.plan_prune(ALL))
    assert done.freed_bytes == images.reclaimable
    left = lines(store.df())
    assert left["Images"].total == left["Images"].active == images.active
    assert left["Blobs"].size == sum(blob.size for blob in store.blobs() if blob.present)
    assert {str(digest) for digest, _ in store._blobs.walk()} == present(store)
