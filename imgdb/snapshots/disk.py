"""Snapshots on disk: made in private, published whole, swept when nobody needs them.

::

    snapshots/<id>/        id of the row
        fs/                the layer, in overlay form
        work/              overlayfs's own, of active snapshots
        skipped.jsonl      what a plain user could not set, where there is any
        snapshot.json      its row, for the day when the database is lost
    snapshots/new-<hex>/   being made; flocked by its owner, renamed to an id when it is durable
    snapshots/empty/       a layer without anything, since overlayfs wants two

A directory without a row whose lock can be had belongs to nobody. It stays locked from before it
exists under its id until its row is committed, so a collector, which tries the lock first and
asks for the row second, never takes one that is wanted. Source: design §4.2, §4.9, §6.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import time
from typing import TYPE_CHECKING, Any

from imgdb.content.files import (
    make_private_directory,
    open_regular,
    sync_directory,
    sync_filesystem,
    write_all,
    write_durably,
)
from imgdb.content.holds import locked
from imgdb.errors import BusyError, DataLossError
from imgdb.snapshots.beneath import DIRECTORY
from imgdb.snapshots.trees import Usage, measure, remove_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

_NEW = "new-"
EMPTY = "empty"
SKIPPED = "skipped.jsonl"
_DESCRIPTION = "snapshot.json"
_MAX_DESCRIPTION = 1 << 20


class StagedSnapshot:
    """A snapshot's directory before it has an id; locked as long as this object is open.

    Attributes:
        path: where it is now.
        fd: of the directory.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd

    def open_fs(self) -> int:
        """A descriptor of the layer itself; the caller's."""
        return os.open("fs", DIRECTORY, dir_fd=self.fd)

    def describe(self, description: Mapping[str, Any]) -> None:
        """Write down what its row will say."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(_DESCRIPTION, flags, 0o600, dir_fd=self.fd)
        try:
            write_all(fd, json.dumps(description, sort_keys=True).encode())
            os.fchmod(fd, 0o600)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Let go of the lock; the row protects it from here on."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class SnapshotDirectory:
    """The part of a store's directory where snapshots are.

    Args:
        root: the store's directory.
        durable: False skips syncing, for tests only.
    """

    def __init__(self, root: str, *, durable: bool = True) -> None:
        self.root = root
        self.path = os.path.join(root, "snapshots")
        self.durable = durable
        self._gc_lock = os.path.join(root, "gc.lock")

    def fs(self, snapshot: int) -> str:
        """Path of a snapshot's layer."""
        return os.path.join(self.path, str(snapshot), "fs")

    def work(self, snapshot: int) -> str:
        """Path of overlayfs's own directory beside it."""
        return os.path.join(self.path, str(snapshot), "work")

    @property
    def empty(self) -> str:
        """Path of a layer without anything."""
        return os.path.join(self.path, EMPTY)

    def open_fs(self, snapshot: int) -> int:
        """A descriptor of a snapshot's layer; the caller's.

        Raises:
            DataLossError: the row has no directory.
        """
        try:
            return os.open(self.fs(snapshot), DIRECTORY)
        except FileNotFoundError:
            raise DataLossError(
                f"{self.fs(snapshot)} is lost; remove that snapshot and unpack its image again"
            ) from None

    # -- making ------------------------------------------------------------------------------

    def make(self, *, work: bool = False) -> StagedSnapshot:
        """Make a new directory with ``fs/`` in it; `end` must follow.

        Args:
            work: make ``work/`` as well.
        """
        make_private_directory(self.path)
        make_private_directory(self.empty)
        staged = self._new()
        for name in ("fs", "work") if work else ("fs",):
            os.mkdir(name, 0o700, dir_fd=staged.fd)
        os.chmod("fs", 0o755, dir_fd=staged.fd)  # noqa: S103 - below a directory of 0700
        return staged

    def end(self, staged: StagedSnapshot) -> None:
        """Let go of a directory, and remove it unless it was published; again is fine."""
        if staged.fd >= 0 and os.path.basename(staged.path).startswith(_NEW):
            self._discard(staged.path)
        staged.close()

    @contextlib.contextmanager
    def stage(self, *, work: bool = False) -> Iterator[StagedSnapshot]:
        """`make` and `end` around a block."""
        staged = self.make(work=work)
        try:
            yield staged
        finally:
            self.end(staged)

    def _new(self) -> StagedSnapshot:
        """Made and locked in one, as far as a collector can see."""
        with locked(self._gc_lock, fcntl.LOCK_SH):
            path = os.path.join(self.path, _NEW + secrets.token_hex(8))
            os.mkdir(path, 0o700)
            fd = os.open(path, DIRECTORY)
            fcntl.flock(fd, fcntl.LOCK_EX)
        return StagedSnapshot(path, fd)

    def publish(
        self, wanted: Sequence[tuple[StagedSnapshot, int | None]], floor: int, *, filled: bool = True
    ) -> list[int]:
        """Make snapshots durable, and give each an id that no directory has.

        Args:
            wanted: complete ones; with each the id that it is to take where its directory is lost.
            floor: the largest id that any row has.
            filled: there is something in their layers.

        Raises:
            OSError: syncing failed.
        """
        if self.durable and wanted:
            if filled:
                sync_filesystem(wanted[0][0].fd)
            else:
                for staged, _ in wanted:
                    os.fsync(staged.fd)
        numbers = []
        for staged, lost in wanted:
            number = max([floor, *self._numbers()]) + 1 if lost is None else lost
            while not self._rename(staged, str(number)):
                number = max(floor, number) + 1
            numbers.append(number)
        if self.durable:
            sync_directory(self.path)
        return numbers

    def _rename(self, staged: StagedSnapshot, name: str) -> bool:
        target = os.path.join(self.path, name)
        try:
            os.rename(staged.path, target)
        except OSError as error:
            # Never empty, so never replaced.
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            return False
        staged.path = target
        return True

    def withdraw(self, staged: StagedSnapshot) -> None:
        """Take a published snapshot back: its row was not committed, for certain."""
        path = os.path.join(self.path, _NEW + secrets.token_hex(8))
        os.rename(staged.path, path)
        staged.path = path

    def describe(self, snapshot: int, description: Mapping[str, Any]) -> None:
        """Write down anew what a snapshot's row says; durable."""
        path = os.path.join(self.path, str(snapshot), _DESCRIPTION)
        write_durably(path, json.dumps(description, sort_keys=True).encode(), durable=self.durable)

    def description(self, snapshot: int) -> dict[str, Any] | None:
        """What was written down about a snapshot; None where there is nothing that can be read."""
        fd = open_regular(os.path.join(self.path, str(snapshot), _DESCRIPTION))
        if fd is None:
            return None
        with open(fd, "rb") as file:
            try:
                value = json.loads(file.read(_MAX_DESCRIPTION))
            except ValueError:
                return None
        return value if isinstance(value, dict) else None

    def sync(self, snapshot: int) -> None:
        """Make what was written into a snapshot durable."""
        if self.durable:
            fd = self.open_fs(snapshot)
            try:
                sync_filesystem(fd)
            finally:
                os.close(fd)

    def measure(self, snapshot: int) -> Usage:
        """What a snapshot's own layer takes.

        Raises:
            DataLossError: the row has no directory.
        """
        fd = self.open_fs(snapshot)
        try:
            return measure(fd)
        finally:
            os.close(fd)

    def drop_work(self, snapshot: int) -> None:
        """Remove what overlayfs needed while a snapshot was active."""
        fd = os.open(os.path.join(self.path, str(snapshot)), DIRECTORY)
        try:
            remove_entry(fd, b"work")
        finally:
            os.close(fd)

    # -- using -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def alone(self, snapshot: int, key: str, *, deadline_s: float, keep: bool = False) -> Iterator[int]:
        """Be the only process that changes a snapshot's layer; yields the descriptor of the lock.

        Args:
            snapshot: its id.
            key: its key, for messages.
            deadline_s: how long to wait, in seconds.
            keep: a child process that is given the descriptor shall keep the lock after the block.

        Raises:
            BusyError: another one has been doing so for `deadline_s` seconds.
            DataLossError: the row has no directory.
        """
        directory = os.path.join(self.path, str(snapshot))
        try:
            with locked_directory(directory, f"snapshot {key}", deadline_s=deadline_s, keep=keep) as fd:
                yield fd
        except FileNotFoundError:
            if os.path.isdir(directory):
                raise
            raise DataLossError(f"{directory} is lost; the snapshot can only be removed") from None

    # -- sweeping ----------------------------------------------------------------------------

    def directories(self) -> list[int]:
        """Ids that have a directory."""
        return sorted(self._numbers())

    def older_than(self, moment: float) -> list[int]:
        """Ids of directories that nobody has renamed or changed since, in seconds since the epoch."""
        found = []
        for number in self.directories():
            with contextlib.suppress(FileNotFoundError):
                if os.stat(os.path.join(self.path, str(number))).st_ctime <= moment:
                    found.append(number)
        return found

    def _numbers(self) -> list[int]:
        with contextlib.suppress(FileNotFoundError):
            return [int(name) for name in os.listdir(self.path) if name.isascii() and name.isdigit()]
        return []

    def sweep(self, ids: Collection[int], known: Callable[[Collection[int]], Collection[int]]) -> list[int]:
        """Remove directories that have no row, and that nobody is about to give one.

        Args:
            ids: candidates.
            known: given some ids, returns those that rows have; asked after the locks were tried.

        Returns:
            Those that are gone.
        """
        with locked(self._gc_lock, fcntl.LOCK_EX):
            free = {number for number in ids if self._is_free(str(number))}
            unknown = sorted(free - set(known(free)))
            gone = [number for number in unknown if self._to_trash(str(number))]
        self._empty_trash()
        return gone

    def remove_dead(self) -> None:
        """Remove what was being made when its process was killed."""
        with contextlib.suppress(FileNotFoundError):
            with locked(self._gc_lock, fcntl.LOCK_EX):
                for name in os.listdir(self.path):
                    if name.startswith(_NEW) and self._is_free(name):
                        self._to_trash(name)
            self._empty_trash()

    def _is_free(self, name: str) -> bool:
        try:
            fd = os.open(os.path.join(self.path, name), DIRECTORY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True

    def _to_trash(self, name: str) -> bool:
        trash = os.path.join(self.root, "trash", f"snapshot-{secrets.token_hex(8)}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(os.path.join(self.path, name), trash)
            return True
        return False

    def _discard(self, path: str) -> None:
        """Of our own, so without a lock; through the trash, where a killed removal is ended by others."""
        name = os.path.basename(path)
        with contextlib.suppress(OSError):
            try:
                self._to_trash(name)
                self._empty_trash()
            except OSError:  # somebody mounted something between here and there
                fd = os.open(self.path, DIRECTORY)
                try:
                    remove_entry(fd, os.fsencode(name))
                finally:
                    os.close(fd)

    def _empty_trash(self) -> None:
        trash = os.path.join(self.root, "trash")
        fd = os.open(trash, DIRECTORY)
        try:
            for name in os.listdir(fd):
                if name.startswith(("snapshot-", ".imgdb-")):
                    # Another collector may be at the same.
                    with contextlib.suppress(FileNotFoundError):
                        remove_entry(fd, os.fsencode(name))
        finally:
            os.close(fd)


@contextlib.contextmanager
def locked_directory(path: str, what: str, *, deadline_s: float, keep: bool) -> Iterator[int]:
    """Hold a lock on a directory itself; arguments and errors as `SnapshotDirectory.alone`."""
    fd = os.open(path, DIRECTORY)
    end = time.monotonic() + deadline_s
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise BusyError(
                        f"{what} is in use by another process; try again when that is done"
                    ) from None
                time.sleep(0.01)
        yield fd
    finally:
        if not keep:
            # Closing is not enough: a child forked meanwhile has the descriptor, and with it the lock.
            fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)
