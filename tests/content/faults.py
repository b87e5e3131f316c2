# ruff: noqa: D102  what a method does wrong is its class's docstring
"""Blob stores that are wrong in one way each, to show that the suite notices."""

from __future__ import annotations

import errno
import io
import os

from imgdb.content.disk import DiskBlobStore
from imgdb.errors import FailedPreconditionError


def full_disk(_fd, _data):
    """What `os.write` does on a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def broken(*_args):
    """What any call does on a disk that is dying."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


class WrongBytes(DiskBlobStore):
    """The last byte is another one when it is read."""

    def open(self, digest):
        with super().open(digest) as file:
            data = file.read()
        return io.BytesIO(data[:-1] + bytes([data[-1] ^ 1]) if data else data)


class DropsBlob(DiskBlobStore):
    """Of several blobs put at once one is forgotten."""

    def put(self, ingest, staged, *, replace=()):
        placed = super().put(ingest, staged, replace=replace)
        if len(placed) > 1:
            os.unlink(self.path(max(placed)))
        return placed


class Truncates(DiskBlobStore):
    """Writes one byte too few."""

    def put(self, ingest, staged, *, replace=()):
        placed = super().put(ingest, staged, replace=replace)
        for digest, status in placed.items():
            os.truncate(self.path(digest), max(status.size - 1, 0))
        return placed


class WrongSize(DiskBlobStore):
    """Says that blobs are larger than they are."""

    def stat(self, digest):
        status = super().stat(digest)
        return status and type(status)(status.size + 1, status.ctime_ns)


class WrongChecksum(DiskBlobStore):
    """Leaves out the end of large blobs when it computes their checksum."""

    def blake3(self, digest):
        with self.open(digest) as file:
            data = file.read(1 << 20)
        with self.ingest() as ingest:
            return ingest.stage(io.BytesIO(data), len(data), keep=False).blake3


class LosesOnSecondPut(DiskBlobStore):
    """Takes a blob away when it is put again."""

    def put(self, ingest, staged, *, replace=()):
        there = [blob.digest for blob in staged if self.stat(blob.digest)]
        placed = super().put(ingest, staged, replace=replace)
        for digest in there:
            os.unlink(self.path(digest))
        return placed


class IgnoresReplace(DiskBlobStore):
    """Keeps what is there although it was told to replace it."""

    def put(self, ingest, staged, *, replace=()):  # noqa: ARG002 - that is the fault
        return super().put(ingest, staged)


class PublishesEarly(DiskBlobStore):
    """Shows staged bytes before they are put."""

    def ingest(self):
        store, ingest = self, super().ingest()
        stage = ingest.stage

        def early(source, size, **options):
            staged = stage(source, size, **options)
            if staged.token:
                store.put(ingest, [staged])
                with open(ingest.path(staged), "wb") as again, store.open(staged.digest) as file:
                    again.write(file.read())
            return staged

        ingest.stage = early
        return ingest


class AcceptsShortSource(DiskBlobStore):
    """Takes the end of the source for the end of the blob."""

    def ingest(self):
        ingest = super().ingest()
        stage = ingest.stage

        def lenient(source, size, **options):
            data = io.BytesIO()
            buffer = memoryview(bytearray(max(size, 1)))
            while data.tell() < size and (count := source.readinto(buffer[: size - data.tell()])):
                data.write(buffer[:count])
            return stage(io.BytesIO(data.getvalue()), data.tell(), **options)

        ingest.stage = lenient
        return ingest


class IgnoresHolds(DiskBlobStore):
    """Sweeps what somebody holds."""

    def sweep(self, digests, known):
        holds = os.path.join(self.root, "holds")
        os.rename(holds, f"{holds}.aside")
        os.mkdir(holds)
        try:
            return super().sweep(digests, known)
        finally:
            os.rmdir(holds)
            os.rename(f"{holds}.aside", holds)


class IgnoresRows(DiskBlobStore):
    """Sweeps what rows need."""

    def sweep(self, digests, known):
        def nothing(asked):
            known(asked)
            return ()

        return super().sweep(digests, nothing)


class SweepsEverything(DiskBlobStore):
    """Sweeps also what it was not asked for."""

    def sweep(self, digests, known):
        wanted = set(digests)
        freed = super().sweep([*wanted, *(found for found, _ in self.walk())], known)
        return {digest: size for digest, size in freed.items() if digest in wanted}


class KeepsSwept(DiskBlobStore):
    """Says that it swept and did not."""

    def sweep(self, digests, known):
        before = {digest: self.stat(digest) for digest in digests}
        asked = set(known(list(before)))
        return {digest: stat.size for digest, stat in before.items() if stat and digest not in asked}


class WalkMisses(DiskBlobStore):
    """Leaves one blob out when there are many."""

    def walk(self):
        return iter(list(super().walk())[:78])


class RawErrors(DiskBlobStore):
    """Lets the file system's errors through."""

    def open(self, digest):
        return open(self.path(digest), "rb", buffering=0)


class CountsNothing(DiskBlobStore):
    """Tells `advance` only of the first piece."""

    def ingest(self):
        ingest = super().ingest()
        stage = ingest.stage

        def quiet(source, size, *, advance=None, **options):
            once = [advance] if advance else []
            return stage(source, size, advance=lambda n: once.pop()(n) if once else None, **options)

        ingest.stage = quiet
        return ingest


class MixesUpNames(DiskBlobStore):
    """Takes every digest for one of sha256."""

    def ingest(self):
        ingest = super().ingest()
        stage = ingest.stage

        def always(source, size, *, algorithm="sha256", **options):
            if algorithm == "md5":
                raise FailedPreconditionError("md5")
            return stage(source, size, **options)

        ingest.stage = always
        return ingest


class StaleCache(DiskBlobStore):
    """Remembers what it saw for longer than it is there."""

    def stat(self, digest):
        status = super().stat(digest)
        self.seen = getattr(self, "seen", {}) | ({digest: status} if status else {})
        return self.seen.get(digest)


# Each fault, and tests that must notice it; others may.
FAULTS = {
    WrongBytes: {"test_writer", "test_small_blob", "test_algorithms", "test_walk_blobs"},
    DropsBlob: {"test_walk_blobs"},
    Truncates: {"test_writer", "test_small_blob", "test_walk_blobs"},
    WrongSize: {"test_writer", "test_empty_blob", "test_walk_blobs"},
    WrongChecksum: {"test_blake3"},
    LosesOnSecondPut: {"test_commit_exists", "test_put_again"},
    IgnoresReplace: {"test_put_again"},
    PublishesEarly: {"test_writer", "test_staged_bytes"},
    AcceptsShortSource: {"test_short_source"},
    IgnoresHolds: {"test_sweep", "test_release"},
    IgnoresRows: {"test_sweep"},
    SweepsEverything: {"test_sweep"},
    KeepsSwept: {"test_sweep", "test_release", "test_open_reader_survives_sweep"},
    WalkMisses: {"test_walk_blobs"},
    RawErrors: {"test_wrong_digest", "test_absent"},
    CountsNothing: {"test_progress_is_reported"},
    MixesUpNames: {"test_writer", "test_algorithms", "test_unknown_algorithm"},
    StaleCache: {"test_open_reader_survives_sweep"},
}
