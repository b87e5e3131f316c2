"""What runs on a root file system: the mount for a callback, and mounts that stay.

A snapshot that can be written has one user at a time among processes: overlayfs does not say
what happens to a layer that two mounts change. Within a process its mount is shared and counted;
one that ``imgdb mount`` made is shared as well. Source: specification §7.5, moby's counted
mounts of 2023; reliability §4.8.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgdb.db import mounts, snapshots
from imgdb.db.leases import SNAPSHOTS, Resource
from imgdb.db.snapshots import ACTIVE, COMMITTED, STANDALONE, VIEW
from imgdb.db.sql import now_us
from imgdb.errors import CannotMountError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from imgdb.holding import leased
from imgdb.snapshots import mount
from imgdb.snapshots.copied import copy_up_all
from imgdb.snapshots.disk import EMPTY
from imgdb.snapshots.mount import Stacked
from imgdb.snapshots.running import run
from imgdb.snapshots.trees import remove_whiteouts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from sqlalchemy import Connection

    from imgdb.access import Access
    from imgdb.db.mounts import MountRecord
    from imgdb.db.snapshots import SnapshotRecord
    from imgdb.snapshots.disk import SnapshotDirectory

WAIT_S = 10.0
"""How long a snapshot that another process writes is waited for, in seconds."""


@dataclass(slots=True)
class _Shared:
    """A mount of this process."""

    process: int
    path: str
    users: int = 1
    ends: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


_Name = tuple[str, int]

_shared: dict[_Name, _Shared] = {}
_locks: dict[_Name, threading.Lock] = {}


def _lock(name: _Name) -> threading.Lock:
    """One for each snapshot: who waits for another process must not keep others from theirs."""
    return _locks.setdefault(name, threading.Lock())


def _forget_in_child() -> None:
    """A thread that holds a lock is not in a forked child; its parent's mounts are not the child's."""
    _locks.clear()
    _shared.clear()


os.register_at_fork(after_in_child=_forget_in_child)


class Mounter:
    """Mounts snapshots of one store."""

    def __init__(self, access: Access, directory: SnapshotDirectory) -> None:
        self._access = access
        self._directory = directory
        self._lock_fd: int | None = None
        self._hands_on = False

    # -- for a callback ----------------------------------------------------------------------

    @contextlib.contextmanager
    def base_fs(self, key: str, *, wait_s: float = WAIT_S) -> Iterator[str]:
        """Mount an active snapshot or a view for the time of a block; yields its root's path.

        Raises:
            NotFoundError: there is no such snapshot.
            FailedPreconditionError: it is a committed one.
            BusyError: another process has had it for `wait_s` seconds.
        """
        record: SnapshotRecord | None = self._access.read(lambda c: snapshots.look_up(c, key))
        if record is None:
            raise NotFoundError(
                f"no snapshot {key}; imgdb snapshot ls lists them, imgdb snapshot prepare KEY IMAGE makes one"
            )
        if record.kind == COMMITTED:
            raise FailedPreconditionError(
                f"snapshot {key} is committed, and so never changed; prepare an active one or a view of it"
            )
        shared = self._enter(record, wait_s)
        try:
            yield shared.path
        finally:
            self._leave(record, shared)

    def execute(self, key: str, command: Sequence[str], *, inside: bool) -> int:
        """Run a command on a snapshot; errors as `base_fs` and `running.run`, the exit code as there."""
        self._hands_on = True
        with self.base_fs(key) as path:
            # The lock is the command's as well: who writes on when this process was killed still has it.
            return run(path, command, inside=inside, lock=self._lock_fd)

    def _enter(self, record: SnapshotRecord, wait_s: float) -> _Shared:
        name = (self._directory.root, record.id)
        with _lock(name):
            shared = _shared.get(name)
            if shared is not None:
                shared.users += 1
                return shared
            with contextlib.ExitStack() as ends:
                path = ends.enter_context(self._mounted(record, wait_s))
                _shared[name] = _Shared(os.getpid(), path, ends=ends.pop_all())
            return _shared[name]

    def _leave(self, record: SnapshotRecord, shared: _Shared) -> None:
        if shared.process != os.getpid():
            return  # a forked child leaves its parent's mount alone
        with _lock((self._directory.root, record.id)):
            shared.users -= 1
            if shared.users:
                return
            del _shared[self._directory.root, record.id]
            shared.ends.close()

    @contextlib.contextmanager
    def _mounted(self, record: SnapshotRecord, wait_s: float) -> Iterator[str]:
        keep = [Resource(SNAPSHOTS, record.key)]
        with contextlib.ExitStack() as ends:
            ends.enter_context(leased(self._access, keep, ("io.imgdb.base-fs", record.key)))
            if record.kind == ACTIVE:
                self._alone(record, ends, wait_s)
            target = self._target_of(record)
            if target is not None:
                yield ends.enter_context(mount.shared(target))
                return
            stacked = self._stacked(record)
            try:
                path = ends.enter_context(mount.temporary(stacked))
            except CannotMountError:
                path = ends.enter_context(self._copied(record, stacked))
            yield path

    def _alone(self, record: SnapshotRecord, ends: contextlib.ExitStack, wait_s: float) -> None:
        """Be the only process that writes a snapshot, which must still be what it was."""
        alone = self._directory.alone(record.id, record.key, deadline_s=wait_s, keep=self._hands_on)
        self._lock_fd = ends.enter_context(alone)
        now: SnapshotRecord | None = self._access.read(lambda c: snapshots.find(c, record.key))
        if now is None or (now.id, now.kind) != (record.id, ACTIVE):
            raise NotFoundError(f"snapshot {record.key} was removed or committed meanwhile")

    def _target_of(self, record: SnapshotRecord) -> str | None:
        """Where ``imgdb mount`` has mounted a snapshot, seen from here."""
        there = mount.mounted()
        listed: list[MountRecord] = self._access.read(mounts.listing)
        return next((m.target for m in listed if m.key == record.key and m.target in there), None)

    def _stacked(self, record: SnapshotRecord) -> Stacked:
        ids: list[int] = self._access.read(lambda c: snapshots.stack(c, record.id))
        for number in ids:
            os.close(self._directory.open_fs(number))
        layers = [f"{number}/fs" for number in ids]
        upper = work = None
        if record.kind == ACTIVE:
            upper, work = layers.pop(0), f"{record.id}/work"
        elif record.kind == VIEW and len(layers) > 1:
            layers.pop(0)  # its own directory is empty
        return Stacked(self._directory.path, tuple(layers), upper, work, EMPTY)

    @contextlib.contextmanager
    def _copied(self, record: SnapshotRecord, stacked: Stacked) -> Iterator[str]:
        """The tree itself where nothing can be mounted; an active snapshot stands alone from then on."""
        with contextlib.ExitStack() as ends:
            lowers = [self._opened(ends, layer) for layer in stacked.lowers]
            if stacked.upper is None:
                staged = ends.enter_context(self._directory.stage())
                copy_up_all(self._opened(ends, "fs", staged.fd), lowers)
                yield os.path.join(staged.path, "fs")
                return
            upper = self._opened(ends, stacked.upper)
            copy_up_all(upper, lowers)
            if not record.is_standalone:
                self._directory.sync(record.id)
                labels = {**record.labels, STANDALONE: "true"}
                self._access.write(
                    lambda c: snapshots.set_labels(c, record.key, labels, now_us()), raises_generation=False
                )
                self._directory.describe(
                    record.id, snapshots.description(record.key, record.kind, record.parent, None, labels)
                )
            remove_whiteouts(upper)
            yield self._directory.fs(record.id)

    def _opened(self, ends: contextlib.ExitStack, path: str, directory: int | None = None) -> int:
        where = path if directory is not None else os.path.join(self._directory.path, path)
        fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
        ends.callback(os.close, fd)
        return fd

    # -- that stay ---------------------------------------------------------------------------

    def mount(self, key: str, directory: str) -> MountRecord:
        """Mount a snapshot at a directory until `unmount`: an active one to be written, else read-only.

        Raises:
            NotFoundError: no such snapshot or directory.
            AlreadyExistsError: imgdb has mounted something there.
            BusyError: a process writes that snapshot.
            CannotMountError: this process can't mount.
        """
        target = os.path.realpath(directory)
        if not os.path.isdir(target):
            raise NotFoundError(f"{directory} is no directory; make it first")
        record: SnapshotRecord = self._access.read(lambda c: snapshots.get(c, key))
        there = mount.mounted()
        with contextlib.ExitStack() as ends:
            if record.kind == ACTIVE:
                self._alone(record, ends, 0)
                self._refuse_second(record)
            stacked = self._stacked(record)
            self._access.write(lambda c: _begin(c, record.id, target, there), raises_generation=False)
            try:
                mount.mount_at(stacked, target)
            except BaseException:
                self._access.write(lambda c: mounts.remove(c, target), raises_generation=False)
                raise
        return next(m for m in self.mounts() if m.target == target)

    def _refuse_second(self, record: SnapshotRecord) -> None:
        target = self._target_of(record)
        if target is not None:
            raise FailedPreconditionError(
                f"snapshot {record.key} is mounted at {target}, and can be written at one place only"
            )

    def unmount(self, what: str, keys: Collection[str] = ()) -> MountRecord:
        """End a mount; given where it is, or the key of a snapshot that is mounted once.

        Args:
            what: the directory, or the key.
            keys: of snapshots that `what` may mean as well.

        Raises:
            NotFoundError: imgdb has mounted no such thing.
            InvalidArgumentError: it is mounted at several places.
            BusyError: something in it is in use.
        """
        listed: list[MountRecord] = self._access.read(mounts.listing)
        target = os.path.realpath(what)
        found = [m for m in listed if m.target == target] or [
            m for m in listed if m.key in {self._key(what), *keys}
        ]
        if not found:
            raise NotFoundError(f"imgdb has mounted nothing at {what}; imgdb mount lists its mounts")
        if len(found) > 1:
            places = ", ".join(m.target for m in found)
            raise InvalidArgumentError(f"{what} is mounted at {places}; say which")
        mount.unmount(found[0].target)
        self._access.write(lambda c: mounts.remove(c, found[0].target), raises_generation=False)
        return found[0]

    def _key(self, what: str) -> str:
        record: SnapshotRecord | None = self._access.read(lambda c: snapshots.look_up(c, what))
        return what if record is None else record.key

    def mounts(self) -> list[MountRecord]:
        """Mounts that this run of the machine can still have."""
        boot = mount.boot_id()
        return [m for m in self._access.read(mounts.listing) if m.boot_id == boot]


def _begin(connection: Connection, snapshot: int, target: str, there: dict[str, str]) -> None:
    """Note the mount to be; forget one at the same place that is over."""
    mounts.remove_of_other_boots(connection, mount.boot_id())
    if target not in there:
        mounts.remove(connection, target)
    mounts.add(connection, snapshot, target, mount.boot_id(), os.getpid(), now_us())
