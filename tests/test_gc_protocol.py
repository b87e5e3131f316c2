"""Collections beside running operations, after killed ones, and on a full disk: real processes."""

from __future__ import annotations

import os
import subprocess

import pytest

from imgdb.content import reserve
from imgdb.content.disk import DiskBlobStore
from imgdb.errors import BusyError, ImgdbError
from imgdb.gc import GcOptions
from imgdb.oci.digest import Digest
from imgdb.store import ImageStore
from tests.builder import Archive, Artifact, Image, Index, noise
from tests.collecting import FULL, collected, image, orphan, tar
from tests.content.children import child
from tests.db.rows import Rows, open_shell
from tests.looking import digests, names, present

# Stops at each call of something, says so, and goes on when it is told to.
STOP = """
import importlib
from imgdb.store import ImageStore
from imgdb.importer import commit
module, _, path = {place!r}.partition(':')
owner, attribute = importlib.import_module(module), path
while '.' in attribute:
    first, _, attribute = attribute.partition('.')
    owner = getattr(owner, first)
real = getattr(owner, attribute)
def stopped(*args, **kwargs):
    say('here')
    wait()
    return real(*args, **kwargs)
setattr(owner, attribute, stopped)
images = ImageStore.open(sys.argv[1], durable=False)
"""
LOAD = "import io\nimages.load(io.BytesIO(open({path!r}, 'rb').read()))\nsay('done')"
GC = "say(len(images.gc().freed))"
HOLD = """
hold = store.hold()
data = wait().encode()
hold.add([Digest.of(data)])
with store.ingest() as ingest:
    store.put(ingest, [ingest.stage(io.BytesIO(data), len(data))])
say('held')
wait()
"""


def stopped(store, place, code):
    """A child that does something with a store and stops at a place."""
    return child(STOP.format(place=place) + code, store.root)


def folders(store):
    """What is left in the folders of passing things."""
    return {name: os.listdir(os.path.join(store.root, name)) for name in ("holds", "ingest", "trash")}


NOTHING = {"holds": [], "ingest": [], "trash": []}


def test_holds_protect_files_without_rows(new_store):
    """As long as the process lives; what a dead one listed is swept, and its hold goes."""
    store = new_store()
    with child(HOLD, store.root) as holder:
        holder.tell("data")
        assert holder.heard() == "held"
        assert collected(store, FULL) == set()
        holder.kill()
    assert len(folders(store)["holds"]) == 1
    assert collected(store) == {str(Digest.of(b"data"))}
    assert folders(store) == NOTHING


def test_a_dead_hold_waits_for_a_living_one(new_store):
    """What both list stays, and is not forgotten when the living one ends without a row."""
    store = new_store()
    with child(HOLD, store.root) as holder, store._blobs.hold() as hold:
        holder.tell("data")
        assert holder.heard() == "held"
        hold.add([Digest.of(b"data")])
        holder.kill()
        assert collected(store) == set()
    assert collected(store) == {str(Digest.of(b"data"))}


def test_a_held_file_that_lost_its_row(new_store):
    """It is garbage as soon as its holder is done."""
    store = new_store()
    node = image(1)
    store.load(tar((node, "app:1")))
    with store._blobs.hold() as hold:
        hold.add([Digest.parse(digest) for digest in digests(node)])
        store.remove("app:1")
        assert collected(store) == set()
        assert present(store) == set()
    assert collected(store) == digests(node)


def test_a_hold_that_dies_meanwhile_is_kept(new_store, monkeypatch):
    """It was not asked what it lists, so it is not removed before the next collection asks it."""
    store = new_store()
    real = DiskBlobStore.dead_holds

    def dead_holds(files):
        found = real(files)
        holder.kill()
        return found

    with child(HOLD, store.root) as holder:
        holder.tell("data")
        assert holder.heard() == "held"
        with monkeypatch.context() as patch:
            patch.setattr(DiskBlobStore, "dead_holds", dead_holds)
            assert store.gc().freed == {}
    assert collected(store) == {str(Digest.of(b"data"))}


@pytest.mark.parametrize("there", [False, True], ids=["new", "garbage"])
def test_an_import_between_files_and_rows(new_store, tmp_path, there):
    """Nothing that it brings is taken, nor what it relies on and finds as garbage."""
    store = new_store()
    node = image(1)
    path = node.oci_tar(tmp_path / "app.tar", "app:1")
    if there:
        store.load(path)
        store.remove("app:1")
    with stopped(store, "imgdb.importer.rows:write_content", LOAD.format(path=path)) as importer:
        assert importer.heard() == "here"
        store.close()  # its connections wait for the lock that the importer has
        importer.tell()
        assert importer.heard() == "done"
        importer.end()
    assert collected(store, FULL) == set()
    assert present(store) == digests(node)


@pytest.mark.parametrize("there", [False, True], ids=["new", "garbage"])
def test_an_import_before_its_transaction(new_store, tmp_path, there):
    """The files are there and no rows, or rows that the collection takes: the import is whole in the end."""
    store = new_store()
    node = image(1)
    path = node.oci_tar(tmp_path / "app.tar", "app:1")
    if there:
        store.load(path)
        store.remove("app:1")
    with stopped(store, "imgdb.store:commit", LOAD.format(path=path)) as importer:
        assert importer.heard() == "here"
        assert collected(store, FULL) == set()
        assert present(store) == set()
        assert {str(digest) for digest, _ in store._blobs.walk()} == digests(node)
        importer.tell()
        assert importer.heard() == "done"
        importer.end()
    assert collected(store, FULL) == set()
    assert present(store) == digests(node)


def test_a_large_import_between_its_transactions(new_store, tmp_path):
    """Documents whose rows are there have their edges, so a collection neither stops nor takes anything."""
    store = new_store()
    index = Index([image(number) for number in range(3)])
    signature = Artifact({"s": b"1"}, subject=index)
    path = Archive().add(index, "app:1").add(signature).oci_tar(tmp_path / "app.tar")
    code = "commit.BATCH = 2\n" + LOAD.format(path=path)
    with stopped(store, "imgdb.importer.commit:partial", code) as importer:
        steps = 0
        while importer.heard() == "here":
            assert collected(store, FULL) == set()
            steps += 1
            importer.tell()
        importer.end()
    assert steps > len(digests(index)) // 2
    assert collected(store, FULL) == set()
    assert present(store) == digests(index, signature)


def test_a_dead_import_in_many_transactions(new_store, tmp_path):
    """What it wrote is protected by its lease for a day, and garbage after that."""
    store = new_store()
    node = Image([{"f": b"%d" % number} for number in range(6)])
    path = node.oci_tar(tmp_path / "app.tar", "app:1")
    code = "commit.BATCH = 2\n" + LOAD.format(path=path)
    with stopped(store, "imgdb.importer.rows:write_names", code) as importer:
        assert importer.heard() == "here"
        importer.kill()
    assert collected(store) == set()
    assert present(store) == digests(node)
    rows = Rows(open_shell(f"{store.root}/imgdb.db"))
    rows.sql("UPDATE imgdb_leases SET expires_at = 1")
    rows.connection.close()
    assert collected(store) == digests(node)
    assert folders(store) == NOTHING


def test_what_a_killed_import_had_staged_goes(new_store, tmp_path):
    """Without waiting for the next import."""
    store = new_store()
    path = image(1).oci_tar(tmp_path / "app.tar", "app:1")
    place = "imgdb.content.disk:DiskBlobStore.put"
    with stopped(store, place, LOAD.format(path=path)) as importer:
        assert importer.heard() == "here"
        assert store.gc().freed == {}
        assert len(folders(store)["ingest"]) == 1
        importer.kill()
    assert store.gc().freed == {}
    assert folders(store) == NOTHING


def test_a_second_gc_is_busy(new_store):
    """And what removes images leaves the sweeping to the first."""
    store = new_store()
    store.load(tar((image(1), "one:1"), (image(2), "two:1")))
    store.remove("one:1")
    with stopped(store, "imgdb.gc:Collector._files", GC) as collector:
        assert collector.heard() == "here"
        with pytest.raises(BusyError, match="another gc is running"):
            store.gc()
        store.remove("two:1")
        assert store.reclaim() == 0
        collector.tell()
        collector.heard()
        collector.end()
    assert collected(store) == digests(image(2))


@pytest.mark.parametrize(
    "place",
    [
        "imgdb.db.garbage:collect",
        "imgdb.gc:Collector._files",
        "imgdb.content.disk:DiskBlobStore.sweep",
        "imgdb.content.disk:DiskBlobStore.empty_trash",
        "imgdb.db.garbage:undoom",
        "imgdb.content.disk:DiskBlobStore.reap_holds",
    ],
)
def test_a_killed_gc(new_store, place):
    """The next one finishes: trash and dooms are gone, and the whole directory was listed."""
    store = new_store()
    node, gone = image(1), image(2)
    store.load(tar((node, "one:1"), (gone, "two:1")))
    store.remove("two:1")
    with stopped(store, place, GC) as collector:
        assert collector.heard() == "here"
        collector.kill()
    assert present(store) >= digests(node)
    unknown = orphan(store, b"nobody's")
    plan = store.plan_gc(GcOptions(grace_s=0))
    result = store.gc(GcOptions(grace_s=0))
    assert result.freed == plan.freed
    assert unknown in result.freed
    assert {str(digest) for digest, _ in store._blobs.walk()} == present(store) == digests(node)
    assert folders(store) == NOTHING
    orphan(store, b"nobody's")
    assert store.gc(GcOptions(grace_s=0)).freed == {}
    assert len(store.gc(FULL).freed) == 1


# -- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 32 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32M,mode=700", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def fill(disk):
    """Not a byte is left."""
    with open(disk / "filler", "wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    assert os.statvfs(disk).f_bavail == 0


def full_store(disk, count, size):
    """A closed store on a full disk, with a kept image and some garbage."""
    root = disk / "store"
    with ImageStore.open(root, create=True) as store:
        large = [Image([{"n": noise(size, number)}], author=str(number)) for number in range(count)]
        store.load(tar((image(1), "kept:1"), *((node, f"gone{n}:1") for n, node in enumerate(large))))
        for number in range(count):
            store.remove(f"gone{number}:1")
    fill(disk)
    return root


@pytest.mark.parametrize(("count", "size"), [(3, 1_000_000), (150, 10)], ids=["few large", "many small"])
def test_a_full_disk(small_disk, count, size):
    """Collecting works and takes the reserve back when there is room; so does removing."""
    root = full_store(small_disk, count, size)
    with ImageStore.open(root) as store:
        assert len(store.gc().freed) == 3 * count
        assert names(store) == {"docker.io/library/kept:1": image(1).digest}
        (small_disk / "filler").unlink()
        store.gc()
        assert os.stat(root / "reserve").st_size == reserve.SIZE
    fill(small_disk)
    with ImageStore.open(root) as store:
        store.remove("kept:1")
        assert store.reclaim() > 0
        assert present(store) == set()


def test_a_full_disk_needs_the_reserve(small_disk):
    """Without it SQLite can't even read, so the test above can fail."""
    root = full_store(small_disk, 3, 1_000_000)
    os.truncate(root / "reserve", 0)
    fill(small_disk)
    with pytest.raises(ImgdbError):
        ImageStore.open(root)


def test_the_reserve_stays_where_there_is_room(tmp_path):
    """Its space is really taken, and opening and collecting leave it alone."""
    with ImageStore.open(tmp_path / "store", create=True) as store:
        store.gc()
    assert os.stat(tmp_path / "store" / "reserve").st_blocks * 512 >= reserve.SIZE
    assert not reserve.give_up(str(tmp_path / "store"))
