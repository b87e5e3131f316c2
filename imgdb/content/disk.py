"""The blob store on disk; the only module that renames or unlinks blobs.

::

    blobs/<alg>/<hex>   0400, never rewritten
    ingest/<token>/     one import's private files, the directory flocked by its owner
    holds/  gc.lock     see `holds`
    trash/              renamed here under gc.lock, unlinked after it

Directories are 0700 and files 0400 or 0600 whatever the umask is.
Source: design §4.1-4.3, §4.7, §6; reliability §4.1.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import sys
from typing import TYPE_CHECKING, BinaryIO, Self

from blake3 import blake3

from imgdb.content import reserve
from imgdb.content.files import make_private_directory, open_regular, sync_directory
from imgdb.content.holds import FileHold, digests_of, live_digests, living, locked, reap
from imgdb.content.ingest import CHUNK, DiskIngest, remove_dead
from imgdb.content.store import BlobStat, Staged
from imgdb.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from imgdb.oci.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from imgdb.content.store import Ingest

# Enough for blake3 to keep several cores busy.
HASH_CHUNK = 8 << 20
SWEEP_BATCH = 100

_DIRECTORIES = ("blobs", "ingest", "holds", "trash", "quarantine")

if sys.platform != "linux":  # pragma: no cover
    raise ImportError("imgdb runs on Linux")


class DiskBlobStore:
    """Blobs in a directory; see `imgdb.content.store.BlobStore` for the contract.

    Args:
        root: the store's directory; must have been made by `create`.
        durable: False skips syncing, for tests only.
    """

    def __init__(self, root: str, *, durable: bool = True) -> None:
        self.root = root
        self.durable = durable

    @classmethod
    def create(cls, root: str, *, durable: bool = True) -> Self:
        """Make the directories of a store; harmless on a store that exists."""
        make_private_directory(root, parents=True)
        for name in _DIRECTORIES:
            make_private_directory(os.path.join(root, name))
        if durable:
            reserve.fill(root)
            sync_directory(root)
            # Its own name lies in its parent; one that we can't read we haven't written either.
            with contextlib.suppress(PermissionError):
                sync_directory(os.path.dirname(os.path.abspath(root)))
        return cls(root, durable=durable)

    @property
    def gc_lock(self) -> str:
        """Path of the lock that a collector takes exclusively and everybody else shared."""
        return os.path.join(self.root, "gc.lock")

    def path(self, digest: Digest) -> str:
        """Where the blob's file is, or would be."""
        return os.path.join(self.root, "blobs", digest.algorithm, digest.hex)

    def ingest(self) -> DiskIngest:
        """A new private staging area."""
        return DiskIngest(os.path.join(self.root, "ingest"))

    def hold(self) -> FileHold:
        """A new, empty hold."""
        return FileHold(os.path.join(self.root, "holds"), self.gc_lock)

    def stat(self, digest: Digest) -> BlobStat | None:
        """The blob's file, or None."""
        try:
            status = os.lstat(self.path(digest))
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return BlobStat(status.st_size, status.st_ctime_ns)

    def open(self, digest: Digest) -> BinaryIO:
        """Read a blob.

        Raises:
            NotFoundError: it is not here.
        """
        fd = open_regular(self.path(digest))
        if fd is None:
            raise NotFoundError(f"blob {digest} is not in {self.root}")
        return open(fd, "rb", buffering=0)

    def blake3(self, digest: Digest) -> str:
        """Checksum of a blob's bytes as they are now, hex, on all cores.

        Raises:
            NotFoundError: it is not here.
        """
        with self.open(digest) as file:
            if os.fstat(file.fileno()).st_size < CHUNK:
                return blake3(file.read()).hexdigest()
            # Not by mmap: mapped pages count as the process's memory, a buffer's worth is enough.
            hasher = blake3(max_threads=blake3.AUTO)
            buffer = memoryview(bytearray(HASH_CHUNK))
            while count := file.readinto(buffer):  # type: ignore[attr-defined] # BinaryIO lacks it
                hasher.update(buffer[:count])
            return hasher.hexdigest()

    def put(
        self, ingest: Ingest, staged: Collection[Staged], *, replace: Collection[Digest] = ()
    ) -> dict[Digest, BlobStat]:
        """Make staged blobs durable under their digests; see the protocol."""
        assert isinstance(ingest, DiskIngest)  # noqa: S101 - files of another kind can't be renamed
        try:
            if self.durable:
                ingest.sync(staged)
            for algorithm in {blob.digest.algorithm for blob in staged}:
                make_private_directory(os.path.join(self.root, "blobs", algorithm))
            for blob in staged:
                self._place(ingest, blob, replace=blob.digest in replace)
            if self.durable:
                self._sync_names()
        except OSError:
            for blob in staged:
                ingest.discard(blob)
            raise
        return {blob.digest: self._stat_placed(blob.digest) for blob in staged}

    def _sync_names(self) -> None:
        """Of all blobs: those found here may be another import's, renamed and not yet synced."""
        for path in self._algorithm_directories():
            sync_directory(path)
        sync_directory(os.path.join(self.root, "blobs"))

    def _algorithm_directories(self) -> list[str]:
        with os.scandir(os.path.join(self.root, "blobs")) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))

    def _place(self, ingest: DiskIngest, blob: Staged, *, replace: bool) -> None:
        there = self.stat(blob.digest)
        if there is not None and there.size == blob.size and not replace:
            ingest.discard(blob)
            return
        path = self.path(blob.digest)
        try:
            os.rename(ingest.path(blob), path)
        except IsADirectoryError:
            # No blob, whoever put it there; nobody can hold or need it.
            os.rename(path, self._quarantine_path(blob.digest))
            os.rename(ingest.path(blob), path)

    def _stat_placed(self, digest: Digest) -> BlobStat:
        status = self.stat(digest)
        if status is None:
            raise FailedPreconditionError(f"blob {digest} vanished from {self.root} while it was stored")
        return status

    def walk(self) -> Iterator[tuple[Digest, BlobStat]]:
        """Every blob file; names that are no digests are skipped."""
        for directory in self._algorithm_directories():
            for name in sorted(os.listdir(directory)):
                with contextlib.suppress(InvalidArgumentError):
                    digest = Digest.parse(f"{os.path.basename(directory)}:{name}")
                    status = self.stat(digest)
                    if status is not None:
                        yield digest, status

    def sweep(
        self, digests: Iterable[Digest], known: Callable[[Collection[Digest]], Collection[Digest]]
    ) -> dict[Digest, int]:
        """Remove files that neither a live hold nor a row knows; see the protocol."""
        candidates = sorted(set(digests))
        freed: dict[Digest, int] = {}
        for start in range(0, len(candidates), SWEEP_BATCH):
            freed |= self._sweep_batch(candidates[start : start + SWEEP_BATCH], known)
        return freed

    def held(self) -> set[Digest]:
        """Digests that live holds list at this moment."""
        return self._holds()[0]

    def living_holds(self) -> set[str]:
        """Names of the holds whose operation runs."""
        with locked(self.gc_lock, fcntl.LOCK_EX):
            return living(os.path.join(self.root, "holds"))

    def held_by(self) -> dict[str, set[Digest]]:
        """What each living hold lists, by the hold's name."""
        directory = os.path.join(self.root, "holds")
        with locked(self.gc_lock, fcntl.LOCK_EX):
            return {name: digests_of(directory, name) for name in living(directory)}

    def dead_holds(self) -> list[Digest]:
        """Digests that holds of dead processes list: files that may have no row."""
        return sorted(self._holds()[1])

    def reap_holds(self, settled: Collection[Digest]) -> None:
        """Remove those holds of dead processes of which every file is gone or has its row."""
        with locked(self.gc_lock, fcntl.LOCK_EX):
            reap(os.path.join(self.root, "holds"), settled)

    def remove_dead_ingests(self) -> None:
        """Remove what imports that were killed had staged; the next import would do it too."""
        remove_dead(os.path.join(self.root, "ingest"))

    def _holds(self) -> tuple[set[Digest], set[Digest]]:
        with locked(self.gc_lock, fcntl.LOCK_EX):
            return live_digests(os.path.join(self.root, "holds"))

    def quarantine(self, digest: Digest, seen: BlobStat | None) -> str | None:
        """Move what lies under a digest to ``quarantine/``, unless it is held, or was replaced.

        Args:
            digest: of a blob whose bytes are wrong.
            seen: the file, as it was when it was read; None for something that is no file.

        Returns:
            Where it is now; None when it stayed.
        """
        path = self.path(digest)
        with locked(self.gc_lock, fcntl.LOCK_EX):
            held, _ = live_digests(os.path.join(self.root, "holds"))
            if digest in held or self.stat(digest) != seen or not os.path.lexists(path):
                return None
            target = self._quarantine_path(digest)
            os.rename(path, target)
            return target

    def _quarantine_path(self, digest: Digest) -> str:
        name = f"{digest.algorithm}-{digest.hex}.{secrets.token_hex(4)}"
        return os.path.join(self.root, "quarantine", name)

    def foreign(self) -> list[str]:
        """Names below ``blobs/`` that are no blobs; nobody touches them."""
        found = []
        for directory, _, names in os.walk(os.path.join(self.root, "blobs")):
            found += [os.path.join(directory, name) for name in names]
        return sorted(filter(self._is_foreign, found))

    def _is_foreign(self, path: str) -> bool:
        """By its name and kind alone: blobs come and go while the folder is listed."""
        try:
            mode = os.lstat(path).st_mode
            digest = Digest.parse(f"{os.path.basename(os.path.dirname(path))}:{os.path.basename(path)}")
        except FileNotFoundError:
            return False
        except InvalidArgumentError:
            return True
        return path != self.path(digest) or not stat.S_ISREG(mode)

    def empty_trash(self) -> None:
        """Unlink what was swept, also by a collector that was killed; others may do the same."""
        with os.scandir(os.path.join(self.root, "trash")) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(entry.path)

    def _sweep_batch(
        self, candidates: list[Digest], known: Callable[[Collection[Digest]], Collection[Digest]]
    ) -> dict[Digest, int]:
        freed: dict[Digest, int] = {}
        trash = os.path.join(self.root, "trash")
        with locked(self.gc_lock, fcntl.LOCK_EX):
            held, _ = live_digests(os.path.join(self.root, "holds"))
            # Holds first, rows second: a commit followed by the end of its hold can't fall between.
            needed = held | set(known(candidates))
            for digest in candidates:
                status = self.stat(digest)
                if digest in needed or status is None:
                    continue
                os.rename(self.path(digest), os.path.join(trash, secrets.token_hex(8)))
                freed[digest] = status.size
        self.empty_trash()
        return freed
