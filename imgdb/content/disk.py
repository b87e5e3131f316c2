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
import errno
import fcntl
import itertools
import os
import secrets
import stat
import sys
import weakref
from typing import TYPE_CHECKING, BinaryIO, Self

from blake3 import blake3

from imgdb.content.holds import FileHold, digests_of, live_digests, living, locked, reap
from imgdb.content.store import HEAD_SIZE, BlobStat, ByteSource, Staged
from imgdb.errors import (
    FailedPreconditionError,
    ImgdbError,
    InvalidArgumentError,
    NotFoundError,
    RefusedError,
)
from imgdb.oci.digest import Digest, new_hasher

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from types import TracebackType

    from imgdb.content.store import Ingest

CHUNK = 1 << 20
# Enough for blake3 to keep several cores busy.
HASH_CHUNK = 8 << 20
RESERVE_BYTES = 64 << 20
SWEEP_BATCH = 100
# Below this many files an fsync each costs less than flushing whatever else the disk has.
SYNCFS_FROM = 8

_DIRECTORIES = ("blobs", "ingest", "holds", "trash", "quarantine")

_open_ingests: weakref.WeakSet[DiskIngest] = weakref.WeakSet()


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
        fd = _open_regular(self.path(digest))
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
        os.rename(ingest.path(blob), self.path(blob.digest))

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

    def reap_holds(self, swept: Collection[Digest]) -> None:
        """Remove those holds of dead processes of which everything was swept."""
        with locked(self.gc_lock, fcntl.LOCK_EX):
            reap(os.path.join(self.root, "holds"), swept)

    def remove_dead_ingests(self) -> None:
        """Remove what imports that were killed had staged; the next import would do it too."""
        _remove_dead(os.path.join(self.root, "ingest"))

    def _holds(self) -> tuple[set[Digest], set[Digest]]:
        with locked(self.gc_lock, fcntl.LOCK_EX):
            return live_digests(os.path.join(self.root, "holds"), reap=False)

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
            held, _ = live_digests(os.path.join(self.root, "holds"), reap=False)
            if digest in held or self.stat(digest) != seen or not os.path.lexists(path):
                return None
            name = f"{digest.algorithm}-{digest.hex}.{secrets.token_hex(4)}"
            target = os.path.join(self.root, "quarantine", name)
            os.rename(path, target)
            return target

    def foreign(self) -> list[str]:
        """Names below ``blobs/`` that are no blobs; nobody touches them."""
        blobs = os.path.join(self.root, "blobs")
        known = {self.path(digest) for digest, _ in self.walk()}
        found = []
        for directory, _, names in os.walk(blobs):
            found += [os.path.join(directory, name) for name in names]
        return sorted(path for path in found if path not in known)

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
            held, _ = live_digests(os.path.join(self.root, "holds"), reap=False)
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


class DiskIngest:
    """One import's private directory; removed, with what is left in it, at the end."""

    def __init__(self, parent: str) -> None:
        _remove_dead(parent)
        self._directory, self._fd = _locked_directory(parent)
        self._tokens = itertools.count(1)  # threads may share an ingest
        _open_ingests.add(self)

    def path(self, staged: Staged) -> str:
        """Where staged bytes lie."""
        return os.path.join(self._directory, staged.token)

    def stage(
        self,
        source: ByteSource,
        size: int,
        *,
        algorithm: str = "sha256",
        keep: bool = True,
        advance: Callable[[int], None] | None = None,
    ) -> Staged:
        """Read exactly `size` bytes, hash them, and keep them unless told not to."""
        if not keep:
            return _pump(source, size, algorithm, "", None, advance)
        self._check_space(size)
        token = f"{next(self._tokens):08x}"
        path = os.path.join(self._directory, token)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            staged = _pump(source, size, algorithm, token, fd, advance)
            os.fchmod(fd, 0o400)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        return staged

    def _check_space(self, size: int) -> None:
        space = os.fstatvfs(self._fd)
        free = space.f_bavail * space.f_frsize
        if size and free < size + min(RESERVE_BYTES, space.f_blocks * space.f_frsize // 20):
            raise ImgdbError(
                f"no space in {self._directory}: {size} bytes are needed and {free} are free; "
                "free some space or use another --store"
            )

    def open(self, staged: Staged) -> BinaryIO:
        """Read staged bytes that were kept."""
        return open(self.path(staged), "rb", buffering=0)

    def discard(self, staged: Staged) -> None:
        """Forget staged bytes; they may be forgotten already."""
        if staged.token:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(staged))

    def sync(self, staged: Collection[Staged]) -> None:
        """Make bytes durable: an fsync each, or one for the whole file system when they are many."""
        if len(staged) >= SYNCFS_FROM:
            sync_filesystem(self._fd)
            return
        for blob in staged:
            fd = os.open(self.path(blob), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def close(self) -> None:
        """Remove the directory and everything left in it."""
        if self._fd >= 0:
            # What can't be removed is no reason to fail an import; the next one tries again.
            with contextlib.suppress(OSError):
                _remove_flat(self._directory)
            self.abandon()

    def abandon(self) -> None:
        """Close without removing anything: what a crash does, and what a forked child must do."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _pump(
    source: ByteSource,
    size: int,
    algorithm: str,
    token: str,
    fd: int | None,
    advance: Callable[[int], None] | None,
) -> Staged:
    """One pass: read, hash twice, write."""
    identity, fast = new_hasher(algorithm), blake3()
    buffer = memoryview(bytearray(min(CHUNK, max(size, 1))))
    head = b""
    left = size
    while left:
        count = source.readinto(buffer[: min(left, len(buffer))])
        if not count:
            raise FailedPreconditionError(f"the input ended {left} bytes early")
        chunk = buffer[:count]
        if len(head) < HEAD_SIZE:
            head += bytes(chunk[: HEAD_SIZE - len(head)])
        identity.update(chunk)
        fast.update(chunk)
        if fd is not None:
            write_all(fd, chunk)
        left -= count
        if advance is not None:
            advance(count)
    return Staged(token, Digest(algorithm, identity.hexdigest()), size, fast.hexdigest(), head)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write everything; os.write may take less than it is given."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def make_private_directory(path: str, *, parents: bool = False) -> bool:
    """Make a directory of mode 0700 whatever the umask; True when it was made.

    Raises:
        RefusedError: something that is no directory of ours is in the way.
    """
    if parents:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise RefusedError(f"{path} is not a directory; choose another --store") from None
        return False
    os.chmod(path, 0o700)
    return True


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_filesystem(fd: int) -> None:
    """syncfs(2), which the standard library lacks; reports write errors since Linux 5.8."""
    import ctypes  # noqa: PLC0415 - costs milliseconds, needed for large imports only

    if ctypes.CDLL(None, use_errno=True).syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, f"syncfs: {os.strerror(number)}")


def write_durably(path: str, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace a small file in one step: temporary file beside it, fsync, rename, fsync directory.

    Two writers of one path need a lock: the temporary file has a fixed name, so that what a
    killed one leaves is overwritten by the next.
    """
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            write_all(fd, data)
            os.fchmod(fd, mode)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if durable:
        sync_directory(os.path.dirname(path))


def publish(temporary: str, path: str, *, durable: bool = True) -> None:
    """Let a finished file appear under its name: fsync, rename, fsync the directory.

    Raises:
        OSError: it could not be done; the temporary file is gone.
    """
    try:
        if durable:
            fd = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        discard(temporary)
        raise
    if durable:
        sync_directory(os.path.dirname(path))


def create_private_file(path: str) -> None:
    """Make a new, empty file of mode 0600 whatever the umask, to be opened by somebody else."""
    os.mknod(path, stat.S_IFREG | 0o600)
    os.chmod(path, 0o600)


def set_aside(path: str, suffix: str) -> str:
    """Rename a database that nobody uses, with the files that belong to it; returns its new path."""
    for companion in ("-wal", "-shm", "-journal", ""):
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + companion, f"{path}.{suffix}{companion}")
    return f"{path}.{suffix}"


def discard(path: str) -> None:
    """Unlink a file that may not be there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _locked_directory(parent: str) -> tuple[str, int]:
    """A new directory under `parent`, flocked; again if a cleaner was faster than the lock."""
    while True:
        path = os.path.join(parent, secrets.token_hex(8))
        os.mkdir(path, 0o700)
        try:
            fd = _open_locked(path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.rmdir(path)
            raise
        if fd is not None:
            return path, fd


def _open_locked(path: str) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if _is_at(fd, path):
            os.fchmod(fd, 0o700)
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _remove_dead(parent: str) -> None:
    """Remove the directories of imports that were killed: those whose lock can be had."""
    for name in os.listdir(parent):
        path = os.path.join(parent, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                continue
            raise
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_flat(path)
        except (BlockingIOError, FileNotFoundError):
            pass  # it is alive; or its owner, or another cleaner, removed it meanwhile
        finally:
            os.close(fd)


def _remove_flat(path: str) -> None:
    """Remove a directory that holds files only."""
    for name in os.listdir(path):
        os.unlink(os.path.join(path, name))
    os.rmdir(path)


def _open_regular(path: str) -> int | None:
    """A descriptor for reading; None where there is no regular file."""
    # Not blocking, for a FIFO would wait for a writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ELOOP, errno.ENXIO}:
            return None
        raise
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _close_in_child() -> None:
    """An ingest lives as long as its lock, which a forked child would share."""
    for ingest in list(_open_ingests):
        ingest.abandon()


os.register_at_fork(after_in_child=_close_in_child)


if sys.platform != "linux":  # pragma: no cover
    raise ImportError("imgdb runs on Linux")
