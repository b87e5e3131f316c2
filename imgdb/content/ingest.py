"""Staging: one import's private files, hashed while they are written.

The directory is flocked by its owner, so that what a killed import left can be told from
what a running one has. Source: design §4.1; umoci's layout directories.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import secrets
import weakref
from typing import TYPE_CHECKING, BinaryIO, Self

from blake3 import blake3

from imgdb.content.files import sync_filesystem, write_all
from imgdb.content.store import HEAD_SIZE, ByteSource, Staged
from imgdb.errors import FailedPreconditionError, ImgdbError
from imgdb.oci.digest import Digest, new_hasher

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import TracebackType

CHUNK = 1 << 20
RESERVE_BYTES = 64 << 20
# Below this many files an fsync each costs less than flushing whatever else the disk has.
SYNCFS_FROM = 8

_open_ingests: weakref.WeakSet[DiskIngest] = weakref.WeakSet()


class DiskIngest:
    """One import's private directory; removed, with what is left in it, at the end."""

    def __init__(self, parent: str) -> None:
        remove_dead(parent)
        self._directory, self._fd = _locked_directory(parent)
        self._tokens = itertools.count(1)  # threads may share an ingest
        _open_ingests.add(self)

    def path(self, staged: Staged) -> str:
        """Where staged bytes lie."""
        return os.path.join(self._directory, staged.token)

    def stage(
        self,
        source: ByteSource,
        size: int | None,
        *,
        algorithm: str = "sha256",
        keep: bool = True,
        advance: Callable[[int], None] | None = None,
    ) -> Staged:
        """Read exactly `size` bytes, or all of them, hash them, and keep them unless told not to."""
        if not keep:
            return _pump(source, size, algorithm, "", None, advance)
        self._check_space(CHUNK if size is None else size)
        token = f"{next(self._tokens):08x}"
        path = os.path.join(self._directory, token)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            staged = _pump(source, size, algorithm, token, fd, advance, self._check_space)
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
    size: int | None,
    algorithm: str,
    token: str,
    fd: int | None,
    advance: Callable[[int], None] | None,
    check_space: Callable[[int], None] = lambda _size: None,
) -> Staged:
    """One pass: read, hash twice, write."""
    identity, fast = new_hasher(algorithm), blake3()
    buffer = memoryview(bytearray(CHUNK if size is None else min(CHUNK, max(size, 1))))
    head = b""
    done = 0
    while size is None or done < size:
        count = source.readinto(buffer if size is None else buffer[: min(size - done, len(buffer))])
        if not count and size is not None:
            raise FailedPreconditionError(f"the input ended {size - done} bytes early")
        if not count:
            break
        chunk = buffer[:count]
        if len(head) < HEAD_SIZE:
            head += bytes(chunk[: HEAD_SIZE - len(head)])
        identity.update(chunk)
        fast.update(chunk)
        if fd is not None:
            write_all(fd, chunk)
        # Of a stream nobody knew how much it would be.
        if size is None and (done + count) // RESERVE_BYTES > done // RESERVE_BYTES:
            check_space(CHUNK)
        done += count
        if advance is not None:
            advance(count)
    return Staged(token, Digest(algorithm, identity.hexdigest()), done, fast.hexdigest(), head)


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


def remove_dead(parent: str) -> None:
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


def _close_in_child() -> None:
    """An ingest lives as long as its lock, which a forked child would share."""
    for ingest in list(_open_ingests):
        ingest.abandon()


os.register_at_fork(after_in_child=_close_in_child)
