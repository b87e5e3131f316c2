"""Ingests: space, threads, and what becomes of one whose process was killed."""

from __future__ import annotations

import io
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from imgdb.content import ingest as staging
from imgdb.content.disk import DiskBlobStore
from imgdb.errors import ImgdbError
from imgdb.oci.digest import Digest
from tests.content.children import child
from tests.content.faults import broken, full_disk
from tests.content.suite import noise, put, read

ONE_STAGED = "ingest = store.ingest(); ingest.stage(io.BytesIO(b'left'), 4); say('staged'); wait()"


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
        status.f_bavail = (staging.RESERVE_BYTES + 4096) // 4096
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
    flock = staging.fcntl.flock

    def lock(fd, mode):
        if mode & staging.fcntl.LOCK_NB:
            ending.close()
        return flock(fd, mode)

    monkeypatch.setattr(staging.fcntl, "flock", lock)
    with store.ingest() as ingest:
        assert os.listdir(os.path.join(store.root, "ingest")) == [os.path.basename(ingest._directory)]


def test_an_ingest_whose_directory_was_taken_for_dead(store, monkeypatch):
    """Between making and locking its directory an ingest looks dead; it makes another one."""
    flock, removed = staging.fcntl.flock, []

    def lock(fd, mode):
        if mode == staging.fcntl.LOCK_EX and not removed:
            removed.append(os.readlink(f"/proc/self/fd/{fd}"))
            os.rmdir(removed[0])
        return flock(fd, mode)

    monkeypatch.setattr(staging.fcntl, "flock", lock)
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


def test_an_ingest_that_can_not_be_had_leaves_nothing(store, monkeypatch):
    """No lock, no ingest: its directory goes, and its descriptor."""
    descriptors = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(staging.fcntl, "flock", broken)
        with pytest.raises(OSError, match="Input/output error"):
            store.ingest()

    assert os.listdir(os.path.join(store.root, "ingest")) == []
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_an_end_that_fails_is_left_to_the_next(store, monkeypatch):
    """What can't be removed is no reason to fail an import whose blobs are put."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", broken)
        digest = put(store, b"content")
    assert read(store, digest) == b"content"
    assert len(os.listdir(os.path.join(store.root, "ingest"))) == 1

    put(store, b"more")
    assert os.listdir(os.path.join(store.root, "ingest")) == []


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
