"""What every blob store does: subclass `BlobStoreSuite` and give it a `store` fixture.

The cases are those of containerd's content test-suite (specification §4.8), by name:

=====================================  ===============================================================
Writer                                 `test_writer`
UpdateStatus                           `test_progress_is_reported`: an ingest has no status to ask for
CommitExists                           `test_commit_exists`: it succeeds, for success says that the
                                       content is there, not who put it there
SmallBlob                              `test_small_blob`
CommitErrorState                       `test_short_source`, `test_wrong_digest`, `test_put_again`
ContentWriter (sha256, sha512)         `test_algorithms`, blake3 too
WalkBlobs                              `test_walk_blobs`
WriteReadEmptyFileTimestamp            `test_empty_blob`: nothing is kept beside the bytes, so that an
                                       empty file is an empty blob and never a broken ingest
a reader survives deletion (§4.3)      `test_open_reader_survives_sweep`
ContentRootDir, InvalidPermission-     test_disk.py: they are about directories
RootDir, TryLock
=====================================  ===============================================================

Not here, since the thing itself is not: Resume, ResumeTruncate, ResumeDiscard, ResumeCopy*,
WriterTruncateRecoversFromIncompleteWrite (an ingest is private and dies with its import, so there is
nothing to resume and no ref to lock), Labels (rows have them, files don't), CrossNamespace* and
SharedNamespaceIsolate (one namespace), Copy* and UseDescriptorData (no helper of that kind).
"""

from __future__ import annotations

import hashlib
import io
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from blake3 import blake3

from imgdb.content.store import HEAD_SIZE
from imgdb.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from imgdb.oci.digest import Digest

ALGORITHMS = ("sha256", "sha512", "blake3")
# File times come from the kernel's coarse clock, a tick behind.
TICK_NS = 20_000_000


class Trickle:
    """A source that gives its bytes in random pieces of 32 bytes and more."""

    def __init__(self, data, seed=0, *, barrier=None):
        self._file = io.BytesIO(data)
        self._random = random.Random(seed)  # noqa: S311 - reproducible, nothing secret
        self._barrier = barrier

    def readinto(self, buffer):
        """Some of what is left."""
        if self._barrier is not None:
            self._barrier.wait(timeout=60)
            self._barrier = None
        size = self._random.choice((32, 4096, 65_536, 1 << 20))
        return self._file.readinto(buffer[:size])


def noise(size, seed=0):
    """Random bytes, the same for the same seed."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - reproducible, nothing secret


def put(store, data, algorithm="sha256", **options):
    """Stage and put one blob; returns its digest."""
    with store.ingest() as ingest:
        staged = ingest.stage(io.BytesIO(data), len(data), algorithm=algorithm)
        store.put(ingest, [staged], **options)
    return staged.digest


def read(store, digest):
    """A blob's bytes."""
    with store.open(digest) as file:
        return file.read()


def nobody(_digests):
    """No row knows anything."""
    return ()


class BlobStoreSuite:
    """Each test gets a new, empty store."""

    large = 32 << 20  # bytes of each of the five big blobs

    @pytest.fixture
    def store(self):
        """The store under test."""
        raise NotImplementedError

    def test_writer(self, store):
        """Five writers at once, in threads: right digests, private until put, then all there."""
        datas = [noise(self.large, seed) for seed in range(5)]
        barrier = threading.Barrier(5)
        before = time.time_ns() - TICK_NS

        def write(number):
            algorithm = ALGORITHMS[number % 3]
            with store.ingest() as ingest:
                source = Trickle(datas[number], number, barrier=barrier)
                staged = ingest.stage(source, len(datas[number]), algorithm=algorithm)
                unseen = store.stat(staged.digest) is None
                barrier.wait(timeout=60)
                return staged, unseen, store.put(ingest, [staged])

        with ThreadPoolExecutor(5) as pool:
            results = list(pool.map(write, range(5)))

        for number, (staged, unseen, placed) in enumerate(results):
            assert unseen
            assert staged.digest == Digest.of(datas[number], ALGORITHMS[number % 3])
            assert staged.size == len(datas[number])
            assert staged.blake3 == blake3(datas[number]).hexdigest()
            assert read(store, staged.digest) == datas[number]
            assert placed == {staged.digest: store.stat(staged.digest)}
            assert placed[staged.digest].size == len(datas[number])
            assert before <= placed[staged.digest].ctime_ns <= time.time_ns()
        assert {digest for digest, _ in store.walk()} == {staged.digest for staged, _, _ in results}

    def test_progress_is_reported(self, store):
        """`advance` hears of every byte once, while the bytes come."""
        heard = []
        with store.ingest() as ingest:
            ingest.stage(Trickle(noise(3 << 20)), 3 << 20, advance=heard.append)

        assert len(heard) > 1
        assert sum(heard) == 3 << 20

    def test_commit_exists(self, store):
        """Putting what is there succeeds and changes nothing."""
        digest = put(store, b"content")
        before = store.stat(digest)

        assert put(store, b"content") == digest
        assert store.stat(digest) == before
        assert read(store, digest) == b"content"
        assert [found for found, _ in store.walk()] == [digest]

    def test_small_blob(self, store):
        """A reader asked for more than there is gives what there is, then the end."""
        digest = put(store, b"foobar")

        with store.open(digest) as file:
            assert file.read(7) == b"foobar"
            assert file.read(7) == b""

    def test_empty_blob(self, store):
        """No bytes are content too."""
        digest = put(store, b"")

        assert digest.hex == hashlib.sha256().hexdigest()
        assert store.stat(digest).size == 0
        assert read(store, digest) == b""
        assert store.blake3(digest) == blake3(b"").hexdigest()

    def test_algorithms(self, store):
        """Each algorithm's digest is the blob's name, and the same bytes have one name in each."""
        data = noise(100_000)
        digests = [put(store, data, algorithm) for algorithm in ALGORITHMS]

        assert digests == [Digest.of(data, algorithm) for algorithm in ALGORITHMS]
        assert [read(store, digest) for digest in digests] == [data] * 3

    def test_unknown_algorithm(self, store):
        """An algorithm that can't be verified is refused, and the ingest is as good as before."""
        with store.ingest() as ingest:
            with pytest.raises(InvalidArgumentError):
                ingest.stage(io.BytesIO(b"x"), 1, algorithm="md5")
            staged = ingest.stage(io.BytesIO(b"x"), 1)
            store.put(ingest, [staged])

        assert read(store, staged.digest) == b"x"

    def test_short_source(self, store):
        """A source that ends early is an error; nothing of it appears, and the ingest goes on."""
        with store.ingest() as ingest:
            with pytest.raises(FailedPreconditionError, match="1 bytes early"):
                ingest.stage(Trickle(b"foobar"), 7)
            assert list(store.walk()) == []
            staged = ingest.stage(Trickle(b"foobar"), 6)
            store.put(ingest, [staged])

        assert [digest for digest, _ in store.walk()] == [staged.digest]

    def test_long_source(self, store):
        """Exactly `size` bytes are taken; what follows stays in the source."""
        source = io.BytesIO(b"foobarbaz")
        with store.ingest() as ingest:
            staged = ingest.stage(source, 6)

        assert staged.digest == Digest.of(b"foobar")
        assert source.read() == b"baz"

    def test_wrong_digest(self, store):
        """Other bytes than promised have another digest, and never appear under the promised one."""
        promised = Digest.of(b"promised")
        digest = put(store, b"delivered")

        assert digest == Digest.of(b"delivered")
        assert store.stat(promised) is None
        with pytest.raises(NotFoundError):
            store.open(promised)

    def test_put_again(self, store):
        """`replace` puts the staged bytes in the place of those that are there."""
        digest = put(store, b"content")
        before = store.stat(digest)
        time.sleep(2 * TICK_NS / 1e9)

        assert put(store, b"content", replace=[digest]) == digest
        assert store.stat(digest).ctime_ns > before.ctime_ns
        assert read(store, digest) == b"content"

    def test_only_hashed(self, store):
        """Bytes that are not kept have a digest and leave nothing."""
        with store.ingest() as ingest:
            staged = ingest.stage(io.BytesIO(b"foobar"), 6, keep=False)

        assert (staged.token, staged.digest, staged.size) == ("", Digest.of(b"foobar"), 6)
        assert staged.blake3 == blake3(b"foobar").hexdigest()
        assert list(store.walk()) == []

    def test_head(self, store):
        """The first bytes are handed out, all of them for a small blob."""
        data = noise(100_000)
        with store.ingest() as ingest:
            assert ingest.stage(Trickle(data), len(data)).head == data[:HEAD_SIZE]
            assert ingest.stage(Trickle(b"foobar"), 6).head == b"foobar"

    def test_staged_bytes(self, store):
        """What is staged can be read and forgotten, and is gone when the ingest is."""
        with store.ingest() as ingest:
            kept = ingest.stage(io.BytesIO(b"foobar"), 6)
            forgotten = ingest.stage(io.BytesIO(b"baz"), 3)
            with ingest.open(kept) as file:
                assert file.read() == b"foobar"
            ingest.discard(forgotten)
            ingest.discard(forgotten)
            with pytest.raises(OSError, match="No such file"):
                ingest.open(forgotten)

        assert list(store.walk()) == []
        assert store.stat(kept.digest) is None

    def test_walk_blobs(self, store):
        """79 blobs put at once are all found, with their sizes."""
        datas = [noise(size, size) for size in range(79)]
        with store.ingest() as ingest:
            staged = [ingest.stage(io.BytesIO(data), len(data)) for data in datas]
            placed = store.put(ingest, staged)

        assert dict(store.walk()) == placed
        assert {digest: stat.size for digest, stat in placed.items()} == {
            Digest.of(data): len(data) for data in datas
        }
        assert [read(store, Digest.of(data)) for data in datas] == datas

    def test_blake3(self, store):
        """The checksum is that of the bytes, be they few or many."""
        for size in (1, 65_537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, self.large):
            data = noise(size)
            assert store.blake3(put(store, data)) == blake3(data).hexdigest()

    def test_absent(self, store):
        """What is not there is said to be not there, in every way of asking."""
        absent = Digest.of(b"absent")

        assert store.stat(absent) is None
        with pytest.raises(NotFoundError, match=absent.hex):
            store.open(absent)
        with pytest.raises(NotFoundError, match=absent.hex):
            store.blake3(absent)
        assert store.sweep([absent], nobody) == {}

    def test_sweep(self, store):
        """What neither a hold nor a row knows goes, and only of what was asked for."""
        held, known, other, free = (put(store, data) for data in (b"held", b"known", b"other", b"free!"))
        asked = []

        def rows(digests):
            asked.extend(digests)
            return [known]

        with store.hold() as hold:
            hold.add([held])
            assert store.sweep([held, known, free], rows) == {free: 5}

        assert sorted(asked) == sorted([held, known, free])
        assert {digest for digest, _ in store.walk()} == {held, known, other}
        with pytest.raises(NotFoundError):
            store.open(free)

    def test_release(self, store):
        """A hold that was given up protects nothing, and can be given up twice."""
        digest = put(store, b"content")
        hold = store.hold()
        hold.add([digest])
        assert hold.digests == {digest}
        assert store.sweep([digest], nobody) == {}

        hold.release()
        hold.release()

        assert store.sweep([digest], nobody) == {digest: 7}
        with pytest.raises(FailedPreconditionError):
            hold.add([Digest.of(b"more")])

    def test_open_reader_survives_sweep(self, store):
        """A reader keeps what it opened, and the blob can come back beside it."""
        data = noise(300_000)
        digest = put(store, data)
        with store.open(digest) as file:
            assert file.read(1000) == data[:1000]
            assert store.sweep([digest], nobody) == {digest: len(data)}
            assert store.stat(digest) is None
            put(store, data)
            assert file.read() == data[1000:]

        assert read(store, digest) == data
