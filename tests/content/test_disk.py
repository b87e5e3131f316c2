"""The blob store on disk: the suite, and what only files and directories can get wrong."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from imgdb.content import disk
from imgdb.content.disk import DiskBlobStore, write_durably
from imgdb.errors import ImgdbError, NotFoundError, RefusedError
from imgdb.oci.digest import Digest
from tests.content.children import child
from tests.content.faults import FAULTS
from tests.content.suite import BlobStoreSuite, noise, nobody, put, read

SUITE = {name: test for name, test in vars(BlobStoreSuite).items() if name.startswith("test_")}
ONE_STAGED = "ingest = store.ingest(); ingest.stage(io.BytesIO(b'left'), 4); say('staged'); wait()"


class TestDurable(BlobStoreSuite):
    """As it is used."""

    @pytest.fixture
    def store(self, tmp_path):
        """Waits for the disk."""
        return DiskBlobStore.create(str(tmp_path / "store"))


class TestNotDurable(BlobStoreSuite):
    """As other tests use it."""

    large = 2 << 20

    @pytest.fixture
    def store(self, tmp_path):
        """Does not wait for the disk."""
        return DiskBlobStore.create(str(tmp_path / "store"), durable=False)


def failing(kind, path):
    """The names of the suite's tests that fail on a kind of store."""
    suite = BlobStoreSuite()
    suite.large = (1 << 20) + 9
    failed = set()
    for name, test in SUITE.items():
        try:
            test(suite, kind.create(str(path / name), durable=False))
        except (Exception, pytest.fail.Exception):  # noqa: BLE001 - whatever a wrong store brings about
            failed.add(name)
    return failed


def test_the_suite_passes_a_right_store(tmp_path):
    """The counterpart of the next test: nothing fails without a fault."""
    assert failing(DiskBlobStore, tmp_path) == set()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_suite_notices(fault, tmp_path):
    """A store with a fault fails those tests that are about it."""
    assert failing(fault, tmp_path) >= FAULTS[fault]


@pytest.mark.parametrize("mask", [0o000, 0o027, 0o077, 0o177])
def test_content_root_dir(mask, umask, tmp_path):
    """Directories are 0700, blobs 0400, the rest 0600, whatever the umask."""
    with umask(mask):
        store = DiskBlobStore.create(str(tmp_path / "store"))
        with store.hold() as hold, store.ingest() as ingest:
            staged = ingest.stage(io.BytesIO(b"x"), 1)
            hold.add([staged.digest])
            write_durably(os.path.join(store.root, "small"), b"x")
            put(store, b"y")
            modes = {
                path: stat.S_IMODE(os.lstat(path).st_mode)
                for top, directories, files in os.walk(store.root)
                for path in [top, *(os.path.join(top, name) for name in directories + files)]
            }
            expected = {
                path: 0o700 if os.path.isdir(path) else 0o600 if "blob" not in path else 0o400
                for path in modes
            }
            expected[ingest.path(staged)] = 0o400
            assert len(modes) == 13
            assert modes == expected


def test_invalid_permission_root_dir(unprivileged, public_path):
    """A directory that may not be written gives no half a store."""
    with unprivileged(), pytest.raises(PermissionError):
        DiskBlobStore.create(os.path.join(public_path, "store"))

    assert os.listdir(public_path) == []


@pytest.mark.parametrize("where", ["", "blobs", "ingest", "holds", "trash", "quarantine"])
def test_a_file_in_the_way(where, tmp_path):
    """A file where a directory belongs is refused by name, not replaced."""
    path = tmp_path / "store" / where
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")

    with pytest.raises(RefusedError, match=f"{path} is not a directory"):
        DiskBlobStore.create(str(tmp_path / "store"))
    assert path.read_text() == "mine"


def test_creating_again_is_harmless(store):
    """A second `create` finds everything as it is."""
    digest = put(store, b"content")
    with store.hold() as hold:
        hold.add([digest])
        again = DiskBlobStore.create(store.root)
        assert again.sweep([digest], nobody) == {}
    assert read(again, digest) == b"content"


def test_creating_makes_its_own_name_durable(tmp_path, monkeypatch):
    """The store's directory is an entry of its parent, which is synced as well."""
    synced = []
    monkeypatch.setattr(disk, "sync_directory", synced.append)
    DiskBlobStore.create(str(tmp_path / "store"))

    assert synced == [str(tmp_path / "store"), str(tmp_path)]


def test_no_space_is_refused_before_writing(store, monkeypatch):
    """Less than the need and a reserve: a sentence with both numbers, and not a byte written."""
    with store.ingest() as ingest:
        # A small disk, 1000 blocks of 4 KiB: the reserve is a twentieth of it.
        status = SimpleNamespace(f_bavail=100, f_frsize=4096, f_blocks=1000)
        monkeypatch.setattr(os, "fstatvfs", lambda _: status)
        enough = (100 - 50) * 4096
        with pytest.raises(ImgdbError, match=rf"{enough + 1} bytes are needed and {100 * 4096} are free"):
            ingest.stage(io.BytesIO(b""), enough + 1)
        assert os.listdir(ingest._directory) == []
        assert ingest.stage(io.BytesIO(bytes(enough)), enough).size == enough
        # A large one: the reserve is 64 MiB.
        status.f_blocks = status.f_bavail = (1 << 40) // 4096
        status.f_bavail = (disk.RESERVE_BYTES + 4096) // 4096
        with pytest.raises(ImgdbError, match="no space"):
            ingest.stage(io.BytesIO(b""), 4097)
        assert ingest.stage(io.BytesIO(bytes(4096)), 4096).size == 4096
        # Nothing needs no space, and hashing needs none.
        status.f_bavail = 0
        assert ingest.stage(io.BytesIO(b""), 0).size == 0
        assert ingest.stage(io.BytesIO(b"x"), 1, keep=False).size == 1


def test_a_disk_that_fills_up_meanwhile(store, monkeypatch):
    """ENOSPC in the middle of a file: the error comes out, the torn file goes."""
    with store.ingest() as ingest:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full_disk)
            with pytest.raises(OSError, match="No space left"):
                ingest.stage(io.BytesIO(b"foobar"), 6)
        assert os.listdir(ingest._directory) == []
        assert ingest.stage(io.BytesIO(b"foobar"), 6).size == 6


def full_disk(_fd, _data):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_leftovers_of_a_killed_ingest(store):
    """The next ingest removes them; those of a living one stay until it is done."""
    parent = os.path.join(store.root, "ingest")
    with child(ONE_STAGED, store.root) as dead, child(ONE_STAGED, store.root) as alive:
        assert (dead.heard(), alive.heard()) == ("staged", "staged")
        before = {name: os.listdir(os.path.join(parent, name)) for name in os.listdir(parent)}
        assert list(before.values()) == [["00000001"]] * 2
        dead.kill()
        with store.ingest() as ingest:
            mine = os.path.basename(ingest._directory)
            left = set(os.listdir(parent)) - {mine}
            assert len(left) == 1
            assert left < set(before)
            assert os.listdir(os.path.join(parent, left.pop())) == ["00000001"]
        alive.kill()
    with store.ingest() as ingest:
        assert os.listdir(parent) == [os.path.basename(ingest._directory)]
    assert os.listdir(parent) == []


def test_an_ingest_that_ends_while_another_begins(store, monkeypatch):
    """A directory may vanish between being looked at and being locked: its owner was done."""
    ending = store.ingest()
    flock = disk.fcntl.flock

    def lock(fd, mode):
        if mode & disk.fcntl.LOCK_NB:
            ending.close()
        return flock(fd, mode)

    monkeypatch.setattr(disk.fcntl, "flock", lock)
    with store.ingest() as ingest:
        assert os.listdir(os.path.join(store.root, "ingest")) == [os.path.basename(ingest._directory)]


def test_an_ingest_whose_directory_was_taken_for_dead(store, monkeypatch):
    """Between making and locking its directory an ingest looks dead; it makes another one."""
    flock, removed = disk.fcntl.flock, []

    def lock(fd, mode):
        if mode == disk.fcntl.LOCK_EX and not removed:
            removed.append(os.readlink(f"/proc/self/fd/{fd}"))
            os.rmdir(removed[0])
        return flock(fd, mode)

    monkeypatch.setattr(disk.fcntl, "flock", lock)
    with store.ingest() as ingest:
        assert ingest._directory != removed[0]
        assert ingest.stage(io.BytesIO(b"x"), 1).digest == Digest.of(b"x")


def test_many_ingests_begin_and_end_at_once(store):
    """Each cleans up while others come and go; none is disturbed."""

    def work(number):
        return put(store, b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(work, range(400)))

    assert digests == [Digest.of(b"%d" % number) for number in range(400)]
    assert os.listdir(os.path.join(store.root, "ingest")) == []


def test_threads_may_share_an_ingest(store):
    """Each staged blob has a file of its own."""
    with store.ingest() as ingest:

        def work(number):
            data = b"%d" % number
            return ingest.stage(io.BytesIO(data), len(data))

        with ThreadPoolExecutor(8) as pool:
            staged = list(pool.map(work, range(400)))
        assert len({blob.token for blob in staged}) == 400
        store.put(ingest, staged)

    assert [read(store, blob.digest) for blob in staged] == [b"%d" % number for number in range(400)]


FORKS = """
ingest = store.ingest()
ingest.stage(io.BytesIO(b'left'), 4)
if os.fork() == 0:
    ingest.close()
    say('forked')
    wait()
    os._exit(0)
os.wait()
"""


def test_a_forked_child_has_no_part_in_an_ingest(store):
    """It neither removes the ingest nor keeps it when its parent was killed."""
    parent = os.path.join(store.root, "ingest")
    with child(FORKS, store.root) as forking:
        assert forking.heard() == "forked"
        (left,) = os.listdir(parent)
        assert os.listdir(os.path.join(parent, left)) == ["00000001"]
        forking.kill()
        with store.ingest() as ingest:
            assert os.listdir(parent) == [os.path.basename(ingest._directory)]


def spoil(store, digest, data):
    """Put other bytes under a digest, as a failing disk or a careless admin would."""
    os.chmod(store.path(digest), 0o600)
    with open(store.path(digest), "wb") as file:
        file.write(data)


def test_a_blob_of_another_size_is_replaced(store):
    """A file that can't be right is replaced without being told so."""
    digest = put(store, b"content")
    for wrong in (b"", b"conten", b"content!"):
        spoil(store, digest, wrong)
        assert put(store, b"content") == digest
        assert read(store, digest) == b"content"
        assert stat.S_IMODE(os.stat(store.path(digest)).st_mode) == 0o400


def test_a_damaged_blob_is_replaced_when_asked(store):
    """Wrong bytes of the right size stay, unless listed; open readers keep what they opened."""
    digest = put(store, b"content")
    spoil(store, digest, b"rotten!")
    put(store, b"content")
    assert read(store, digest) == b"rotten!"

    with store.open(digest) as file:
        put(store, b"content", replace=[digest])
        assert file.read() == b"rotten!"
    assert read(store, digest) == b"content"


def test_a_present_blob_is_kept(store):
    """Putting it again is no new file."""
    digest = put(store, b"content")
    before = os.stat(store.path(digest)).st_ino
    put(store, b"content")
    assert os.stat(store.path(digest)).st_ino == before


def link(path):
    os.symlink("/etc/hostname", path)


@pytest.mark.parametrize("make", [link, os.mkdir, os.mkfifo], ids=["symlink", "directory", "fifo"])
def test_only_regular_files_are_blobs(make, store):
    """Anything else under a digest's name is no blob, and nobody waits for it or follows it."""
    digest = put(store, b"content")
    os.unlink(store.path(digest))
    make(store.path(digest))

    assert store.stat(digest) is None
    assert list(store.walk()) == []
    with pytest.raises(NotFoundError):
        store.open(digest)
    assert store.sweep([digest], nobody) == {}


def test_walk_passes_over_what_it_does_not_know(store):
    """Strange names in blobs/ and below are no blobs and no trouble."""
    digest = put(store, b"content")
    blobs = os.path.join(store.root, "blobs")
    for name in ("README", "sha256/README", "sha256/" + "A" * 64, "sha256/" + "0" * 63):
        with open(os.path.join(blobs, name), "w"):
            pass
    os.makedirs(os.path.join(blobs, "md5"))
    with open(os.path.join(blobs, "md5", "0" * 32), "w"):
        pass

    assert [found for found, _ in store.walk()] == [digest]
    assert put(DiskBlobStore(store.root), b"durable") in dict(store.walk())


def test_a_failed_sync_gives_the_bytes_up(store, monkeypatch):
    """They go, are not synced a second time, and nothing appears under their digest."""
    store.durable = True
    calls = []

    def broken(fd):
        calls.append(os.readlink(f"/proc/self/fd/{fd}"))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with store.ingest() as ingest:
        staged = [ingest.stage(io.BytesIO(data), 1) for data in (b"a", b"b")]
        with pytest.raises(OSError, match="Input/output error"):
            store.put(ingest, staged)
        assert calls == [ingest.path(staged[0])]
        assert os.listdir(ingest._directory) == []
    assert list(store.walk()) == []


def test_a_put_syncs_the_names_it_relies_on(store, monkeypatch):
    """What was found here may be renamed by another import and not synced yet."""
    store.durable = True
    put(store, b"1")
    put(store, b"2", "sha512")
    synced = []
    monkeypatch.setattr(disk, "sync_directory", synced.append)
    with store.ingest() as ingest:
        store.put(ingest, [])

    blobs = os.path.join(store.root, "blobs")
    assert synced == [os.path.join(blobs, "sha256"), os.path.join(blobs, "sha512"), blobs]


def test_the_next_sweep_empties_the_trash(store, monkeypatch):
    """A sweep that was killed before unlinking leaves files that the next one unlinks."""
    first, second = put(store, b"first"), put(store, b"second")
    trash = os.path.join(store.root, "trash")
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.sweep([first], nobody)
    assert len(os.listdir(trash)) == 1
    assert store.stat(first) is None

    assert store.sweep([second], nobody) == {second: 6}
    assert os.listdir(trash) == []


def test_write_durably_leaves_one_leftover_at_most(tmp_path):
    """The temporary file has one name, so that a killed writer's is overwritten by the next."""
    path = tmp_path / "file"
    (tmp_path / "file.new").write_text("torn, and longer than what comes")
    write_durably(str(path), b"whole")

    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["file"]


def test_write_durably_changes_nothing_when_it_fails(tmp_path, monkeypatch):
    """The old file stays whole until the new one is."""
    path = tmp_path / "file"
    write_durably(str(path), b"old")
    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_durably(str(path), b"new")

    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_file_system(tmp_path):
    """On a small tmpfs that is nearly full the import's file is refused with a sentence."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "imgdb-test", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    try:
        store = DiskBlobStore.create(str(small / "store"))
        with store.ingest() as ingest:
            with pytest.raises(ImgdbError, match="no space"):
                ingest.stage(io.BytesIO(noise(1 << 20)), 1 << 20)
            staged = ingest.stage(io.BytesIO(noise(1 << 19)), 1 << 19)
            store.put(ingest, [staged])
        assert store.blake3(staged.digest) == staged.blake3
    finally:
        subprocess.run(["umount", str(small)], check=True)
