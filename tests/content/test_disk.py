"""The blob store on disk: the suite, and what only files and directories can get wrong."""

from __future__ import annotations

import errno
import io
import os
import stat

import pytest

from imgdb.content import disk
from imgdb.content.disk import DiskBlobStore
from imgdb.content.files import write_durably
from imgdb.errors import NotFoundError, RefusedError
from imgdb.oci.digest import Digest
from tests.content.faults import FAULTS, full_disk
from tests.content.suite import BlobStoreSuite, nobody, put, read

SUITE = {name: test for name, test in vars(BlobStoreSuite).items() if name.startswith("test_")}


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
            assert {os.path.relpath(path, store.root).split("/")[0] for path in modes} == {
                *(".", "blobs", "ingest", "holds", "trash", "quarantine", "gc.lock", "reserve", "small")
            }
            assert {store.path(Digest.of(b"y")), ingest.path(staged), hold._path} < modes.keys()
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
    """A symbolic link to a file that is there."""
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
    """Strange names in blobs/ and below are no blobs and no trouble, but they are told."""
    digest = put(store, b"content")
    blobs = os.path.join(store.root, "blobs")
    os.makedirs(os.path.join(blobs, "md5"))
    strange = ["README", "md5/" + "0" * 32, "sha256/README", "sha256/" + "A" * 64, "sha256/" + "0" * 63]
    for name in strange:
        with open(os.path.join(blobs, name), "w"):
            pass

    assert [found for found, _ in store.walk()] == [digest]
    assert store.foreign() == sorted(os.path.join(blobs, name) for name in strange)
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
