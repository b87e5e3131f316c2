"""Unpacking images: from layers to chains of snapshots, verified, shared, and never half there.

Source: specification §7.4, design §4.9.
"""

from __future__ import annotations

import fcntl
import gzip
import io
import os
import tarfile
import threading

import pytest

from imgdb.db.leases import SNAPSHOTS, Resource
from imgdb.errors import BadArchiveError, DataLossError, ImgdbError, NotFoundError, NotSupportedError
from imgdb.gc import GcOptions
from imgdb.oci.platform import host_platform
from imgdb.progress import Reporter
from imgdb.snapshots import syscalls
from imgdb.unpacker.plan import NO_LAYERS
from tests.builder import Archive, Artifact, Attestation, Blob, Image, Index, Layer, noise, tar_bytes
from tests.looking import platforms
from tests.rows_of_store import shell

HOST = str(host_platform())
BASE = Layer({"etc/os-release": b"ID=test\n", "bin/sh": b"#!", "doc/": None, "doc/a": b"a"})
TOP = Layer({"etc/.wh.os-release": b"", "doc/.wh..wh..opq": b"", "doc/b": b"b"}, compression="zstd")
NAME = "app:1"


class Told(Reporter):
    """Remembers warnings and bytes."""

    def __init__(self):
        self.warnings = []
        self.total = self.done = 0

    def start(self, phase, total=None):  # noqa: ARG002 - the base class has it
        """Add to the total."""
        self.total += total or 0

    def advance(self, count):
        """Count."""
        self.done += count

    def warn(self, message):
        """Remember."""
        self.warnings.append(message)


@pytest.fixture
def load(store, tmp_path):
    """`load(node, "name")` imports a node of `tests.builder`."""

    def call(node, *names, **options):
        store.load(Archive().add(node, *(names or (NAME,))).oci_tar(tmp_path / "x.tar", **options))
        return store

    return call


def tree(store, name=NAME):
    """Paths and contents of what an image's mount shows."""
    key = f"look-{os.urandom(4).hex()}"
    store.view(key, name)
    with store.base_fs(key) as root:
        found = {}
        for folder, folders, files in os.walk(root):
            below = os.path.relpath(folder, root)
            found |= {os.path.normpath(f"{below}/{entry}/") + "/": None for entry in folders}
            for file in files:
                with open(f"{folder}/{file}", "rb") as opened:
                    found[os.path.normpath(f"{below}/{file}")] = opened.read()
    store.remove_snapshot(key)
    return found


def directories(store):
    """Ids of snapshots on disk."""
    folder = f"{store.root}/snapshots"
    return sorted(int(n) for n in os.listdir(folder) if n.isdigit()) if os.path.isdir(folder) else []


def keys(store):
    """Keys of all snapshots."""
    return [record.key for record in store.snapshots()]


def test_layers_become_a_chain(load):
    """Chain IDs are the keys, each the parent of the next; whiteouts hide what is below."""
    store = load(Image([BASE, TOP], HOST))
    (done,) = store.unpack(NAME)
    assert (done.layers, done.new_layers, str(done.platform)) == (2, 2, HOST)
    lower, upper = store.snapshots()
    assert (lower.key, lower.parent) == (BASE.diff_id, None)
    assert (upper.key, upper.parent, upper.kind) == (done.snapshot, lower.key, "committed")
    assert tree(store) == {"etc/": None, "bin/": None, "bin/sh": b"#!", "doc/": None, "doc/b": b"b"}


def test_what_is_unpacked_is_not_unpacked_again(load):
    """Neither for the same image nor for another one on the same layers."""
    store = load(Image([BASE, TOP], HOST))
    store.unpack(NAME)
    load(Image([BASE, TOP, {"new": b"1"}], HOST), "app:2")
    before = directories(store)
    told = Told()
    (done,) = store.unpack("app:2", reporter=told)
    assert (done.layers, done.new_layers) == (3, 1)
    assert store.unpack("app:2")[0].new_layers == 0
    assert directories(store) == [*before, 3]
    assert told.done == told.total > 0


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("claimed", ["none", "gzip", "zstd"])
def test_the_bytes_tell_the_compression(load, compression, claimed):
    """Whatever the media type says."""
    layer = Layer({"a": b"1" * 5000}, compression=compression)
    layer.compression = claimed
    store = load(Image([layer], HOST))
    store.unpack(NAME)
    assert tree(store) == {"a": b"1" * 5000}


def test_bytes_after_the_end_of_the_tar_count(load):
    """The diff ID is that of the whole stream."""
    plain = tar_bytes({"a": b"1"}) + bytes(70_000)
    store = load(Image([Layer(plain)], HOST))
    store.unpack(NAME)
    assert tree(store) == {"a": b"1"}


@pytest.mark.parametrize("plain", [b"", bytes(1024)])
def test_an_empty_layer(load, plain):
    """Nothing at all, or the two blocks that end a tar."""
    store = load(Image([Layer(plain), {"a": b"1"}], HOST))
    store.unpack(NAME)
    assert tree(store) == {"a": b"1"}


def test_an_image_without_layers(load):
    """Is an empty file system."""
    store = load(Image([], HOST))
    (done,) = store.unpack(NAME)
    assert (done.snapshot, done.layers) == (NO_LAYERS, 0)
    assert tree(store) == {}
    assert store.unpack(NAME)[0].snapshot == NO_LAYERS


def test_the_platform_of_the_host_is_chosen(load):
    """Of an index; others when asked for, attestations never."""
    host, other = Image([{"a": b"host"}], HOST), Image([{"a": b"other"}], "linux/s390x")
    store = load(Index([other, host, Attestation(host)]))
    assert [str(done.platform) for done in store.unpack(NAME)] == [HOST]
    assert tree(store) == {"a": b"host"}
    done = store.unpack(NAME, platforms("linux/s390x", HOST))
    assert [str(item.platform) for item in done] == ["linux/s390x", HOST]
    with pytest.raises(NotFoundError, match=r"no platform linux/riscv64; there is linux/.*, linux/s390x"):
        store.unpack(NAME, platforms("linux/riscv64"))


def test_an_image_of_another_platform_alone(load):
    """Is unpacked: somebody wants to look into it; of several none is guessed."""
    store = load(Image([{"a": b"1"}], "linux/s390x"))
    assert str(store.unpack(NAME)[0].platform) == "linux/s390x"
    load(Index([Image([{"a": b"1"}], "linux/s390x"), Image([{"a": b"2"}], "linux/riscv64")]), "two:1")
    with pytest.raises(NotFoundError, match=r"choose a --platform of linux/riscv64, linux/s390x"):
        store.unpack("two:1")


def test_what_is_no_image(load):
    """Artifacts have no file system."""
    store = load(Artifact())
    with pytest.raises(NotSupportedError, match="nothing in it is an image"):
        store.unpack(NAME)


def test_a_wrong_diff_id_leaves_nothing(load, store):
    """The layer before it stays, for it is right."""
    lying = Layer({"a": b"1"})
    lying.diff_id = Blob(b"something else", "").digest
    load(Image([BASE, lying], HOST))
    with pytest.raises(BadArchiveError, match="wrong diff ID"):
        store.unpack(NAME)
    assert keys(store) == [BASE.diff_id]
    assert len(store.gc().snapshots) == 1
    assert directories(store) == []


def test_mismatched_layers(load, store):
    """As many diff IDs as layers, else nothing is tried."""
    image = Image([BASE, TOP], HOST, rootfs={"type": "layers", "diff_ids": [BASE.diff_id]})
    load(image)
    with pytest.raises(BadArchiveError, match="mismatched image rootfs and manifest layers"):
        store.unpack(NAME)
    assert keys(store) == []


@pytest.mark.parametrize("body", [b"no tar at all" * 100, noise(5000)])
def test_a_layer_that_is_no_tar(load, store, body):
    """Was stored byte for byte, and is refused here."""
    load(Image([Layer(body)], HOST))
    with pytest.raises(BadArchiveError, match="the layer is no tar archive"):
        store.unpack(NAME)
    assert keys(store) == directories(store) == []


def test_a_truncated_layer(load, store):
    """Of which the compressed bytes are what their digest says."""
    layer = Layer({"a": noise(100_000)})
    layer.data = layer.data[:50_000]
    load(Image([layer], HOST))
    with pytest.raises(BadArchiveError, match="truncated"):
        store.unpack(NAME)
    assert directories(store) == []


def test_a_blob_that_went_bad(new_store, tmp_path):
    """Is told from a layer that came wrong, and marked damaged, so that an import heals it."""
    store = new_store()
    image = Image([Layer({"a": noise(100_000)})], HOST)
    archive = image.oci_tar(tmp_path / "x.tar", NAME)
    store.load(archive)
    path = next(p for p in (tmp_path / "store/blobs/sha256").iterdir() if p.stat().st_size > 90_000)
    path.chmod(0o600)
    with open(path, "r+b") as file:
        file.seek(50_000)
        file.write(bytes(100))
    with pytest.raises(DataLossError, match="is damaged; import an archive that has it"):
        store.unpack(NAME)
    store.load(archive)
    store.unpack(NAME)
    assert list(tree(store)) == ["a"]


def test_a_missing_layer(store, tmp_path):
    """Is named before anything is done."""
    image = Image([BASE, TOP], HOST)
    other = Image([BASE], "linux/s390x")
    absent = TOP.blob().digest
    store.load(Archive().add(Index([image, other]), NAME).oci_tar(tmp_path / "x.tar", without={absent}))
    with pytest.raises(NotFoundError, match=absent):
        store.unpack(NAME, platforms(HOST))
    assert keys(store) == []


def test_an_opaque_root_ends_the_stack(load):
    """Nothing of lower layers is seen; overlayfs can't say that, so the snapshot does."""
    store = load(Image([BASE, {".wh..wh..opq": b"", "a": b"1"}, {"b": b"2"}], HOST))
    store.unpack(NAME)
    assert tree(store) == {"a": b"1", "b": b"2"}


def test_directories_on_the_way_are_those_of_lower_layers(load, store):
    """With their owner and mode, as on a mounted overlay; links in them lead where they lead there."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, mode in (("srv", tarfile.DIRTYPE, 0o2750), ("lib", tarfile.SYMTYPE, 0o777)):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.gid, info.linkname = kind, mode, 12, 34, "usr/lib"
            tar.addfile(info)
    store = load(Image([Layer(out.getvalue()), {"srv/x": b"1", "lib/y": b"2"}], HOST))
    store.unpack(NAME)
    store.view("v", NAME)
    with store.base_fs("v") as root:
        status = os.stat(f"{root}/srv")
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o2750, 12, 34)
        assert os.readlink(f"{root}/lib") == "usr/lib"
        assert os.listdir(f"{root}/usr/lib") == ["y"]


def test_two_threads_unpack_the_same(load):
    """One does the work, the other waits; both report success."""
    store = load(Image([Layer({f"f{n}": noise(2000, n) for n in range(300)}), TOP], HOST))
    done, barrier = [], threading.Barrier(4)

    def work():
        barrier.wait()
        done.extend(store.unpack(NAME))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({item.snapshot for item in done}) == 1
    assert len(done) == 4
    assert len(directories(store)) == 2


def test_gc_takes_children_before_parents(load):
    """Once the image is gone; before, nothing."""
    store = load(Image([BASE, TOP, {"c": b"3"}], HOST))
    store.unpack(NAME)
    assert len(store.gc().snapshots) == 0
    store.remove(NAME)
    plan = store.plan_gc()
    sizes = [record.usage_bytes for record in plan.snapshots]
    assert [record.id for record in plan.snapshots] == [3, 2, 1]
    result = store.gc()
    assert list(result.snapshots.values()) == sizes
    assert result.freed_bytes == plan.freed_bytes
    assert keys(store) == directories(store) == []


def test_gc_spares_what_another_image_shares(load):
    """The base that two have stays with one."""
    store = load(Image([BASE, TOP], HOST))
    load(Image([BASE], HOST), "base:1")
    for name in (NAME, "base:1"):
        store.unpack(name)
    store.remove(NAME)
    assert len(store.gc().snapshots) == 1
    assert keys(store) == [BASE.diff_id]
    assert "bin/sh" in tree(store, "base:1")


def test_a_lease_keeps_a_snapshot(load):
    """And with it those below, until it ends."""
    store = load(Image([BASE, TOP], HOST))
    key = store.unpack(NAME)[0].snapshot
    with store.lease() as lease:
        lease.add(Resource(SNAPSHOTS, key))
        store.remove(NAME)
        assert len(store.gc().snapshots) == 0
    assert len(store.gc().snapshots) == 2


def test_a_flat_lease_lets_the_snapshot_go(load):
    """It keeps the manifest's bytes and nothing that follows from them."""
    image = Image([BASE], HOST)
    store = load(image)
    store.unpack(NAME)
    store.create_lease("flat", flat=True)
    store.add_to_lease("flat", [image.digest])
    store.remove(NAME)
    assert len(store.plan_gc().snapshots) == 1
    assert len(store.gc().snapshots) == 1
    store.remove_lease("flat")
    store.gc()


def test_gc_removes_what_a_killed_unpack_left(load):
    """Half-made directories whose lock is free; one whose owner lives stays."""
    store = load(Image([BASE], HOST))
    store.unpack(NAME)
    for name in ("new-dead", "new-alive"):
        os.makedirs(f"{store.root}/snapshots/{name}/fs/deep")
    fd = os.open(f"{store.root}/snapshots/new-alive", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    store.gc()
    assert sorted(os.listdir(f"{store.root}/snapshots")) == ["1", "empty", "new-alive"]
    os.close(fd)
    store.gc()
    assert sorted(os.listdir(f"{store.root}/snapshots")) == ["1", "empty"]


def test_a_directory_without_a_row_waits_for_the_grace(load):
    """As files do that nobody knows: a database that was lost must not take containers with it."""
    store = load(Image([BASE], HOST))
    store.unpack(NAME)
    os.makedirs(f"{store.root}/snapshots/77/fs")
    store.gc(GcOptions(full=True))
    assert directories(store) == [1, 77]
    store.gc(GcOptions(full=True, grace_s=-1))
    assert directories(store) == [1]


def test_a_lost_directory_is_made_again(load):
    """Under its row, with everything that refers to it."""
    store = load(Image([BASE, TOP], HOST))
    store.unpack(NAME)
    store.prepare("c", NAME)
    os.rename(f"{store.root}/snapshots/1", f"{store.root}/elsewhere")
    assert [finding.id for finding in store.check().findings] == ["snapshot-missing"]
    with pytest.raises(DataLossError, match="unpack its image again"), store.base_fs("c"):
        pass
    assert store.unpack(NAME)[0].new_layers == 1
    with store.base_fs("c") as root:
        assert os.listdir(f"{root}/bin") == ["sh"]
    os.system(f"rm -r {store.root}/elsewhere")  # noqa: S605 - a path of the test's own


def test_a_limit_on_what_a_layer_takes(load, store):
    """Is kept before the disk is full."""
    load(Image([{"a": bytes(1_000_000)}], HOST))
    with pytest.raises(BadArchiveError, match="more than 1000 bytes"):
        store.unpack(NAME, max_bytes=1000)
    assert directories(store) == []


def test_a_small_gzip_layer_that_grows(load, store):
    """A bomb is stopped by its ratio."""
    plain = tar_bytes({"a": bytes(100_000_000)})
    layer = Layer(b"")
    layer.plain, layer.data = plain, gzip.compress(plain)
    layer.diff_id = Blob(plain, "").digest
    load(Image([layer], HOST))
    with pytest.raises(BadArchiveError, match="decompression bomb"):
        store.unpack(NAME)
    assert directories(store) == []


def test_fifty_warnings_are_ten(load):
    """And a count of the others."""
    store = load(Image([{f".wh..wh.{n:02}": b"" for n in range(50)}], HOST))
    told = Told()
    store.unpack(NAME, reporter=told)
    assert len(told.warnings) == 11
    assert told.warnings[-1].endswith("40 more such warnings")


def test_unpacking_is_an_event_and_a_use(load):
    """For the history, and for prune by last use."""
    store = load(Image([BASE], HOST))
    store.unpack(NAME)
    event = next(event for event in store.events() if event.action == "unpack")
    assert (event.name, event.attributes) == ("docker.io/library/app:1", {"snapshot": BASE.diff_id})
    assert store.images()[0].record.last_used_at is not None


def test_a_full_disk(new_store, tmp_path):
    """One line, nothing half there, and the image stays."""
    if os.geteuid():
        pytest.skip("mounts a small tmpfs, which needs root")
    store = new_store()
    image = Image([Layer({f"f{n}": noise(100_000, n) for n in range(40)})], HOST)
    store.load(image.oci_tar(tmp_path / "x.tar", NAME))
    folder = tmp_path / "store/snapshots"
    folder.mkdir()
    syscalls.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=2m")
    try:
        with pytest.raises(ImgdbError, match=r"no space in .* to unpack"):
            store.unpack(NAME)
        assert [n for n in os.listdir(folder) if n != "empty"] == []
    finally:
        syscalls.umount(os.fsencode(folder))
    assert store.unpack(NAME)[0].new_layers == 1


def test_rows_in_sql(load):
    """Usage per snapshot, and what is unpacked from what, for admins."""
    store = load(Image([BASE], HOST))
    store.unpack(NAME)
    store.prepare("c", NAME)
    with shell(store) as connection:
        rows = connection.execute(
            "SELECT key, kind, parent, size, inodes FROM imgdb_v1_snapshots ORDER BY kind"
        ).fetchall()
    usage = store.snapshot_usage(BASE.diff_id)
    assert rows == [
        ("c", "active", BASE.diff_id, None, None),
        (BASE.diff_id, "committed", None, usage.bytes, usage.inodes),
    ]
    assert usage.inodes == 7
