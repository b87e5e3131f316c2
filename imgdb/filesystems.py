"""The part of `imgdb.store.ImageStore` about file systems: unpack, snapshots, mounts, root file systems."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from imgdb.db import images, mounts, snapshots
from imgdb.db.snapshots import ACTIVE, VIEW, NewSnapshot
from imgdb.db.sql import now_us
from imgdb.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    ImgdbError,
    InvalidArgumentError,
    NotFoundError,
)
from imgdb.mounting import WAIT_S, Mounter
from imgdb.progress import SILENT
from imgdb.rootfs import RootfsWriter
from imgdb.snapshots.attributes import give, of_file
from imgdb.snapshots.disk import SnapshotDirectory
from imgdb.snapshots.trees import Usage
from imgdb.unpacker import plan
from imgdb.unpacker.run import Unpacker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection

    from imgdb.access import Access
    from imgdb.db.mounts import MountRecord
    from imgdb.db.snapshots import SnapshotRecord
    from imgdb.oci.platform import Platform
    from imgdb.progress import Reporter
    from imgdb.snapshots.disk import StagedSnapshot
    from imgdb.unpacker.plan import Unpacked

_T = TypeVar("_T")


class FileSystems:
    """What images hold, as directories."""

    def _access(self) -> Access:
        raise NotImplementedError

    def _check_writable(self) -> None:
        raise NotImplementedError

    def _may_write(self) -> bool:
        raise NotImplementedError

    def _directory(self) -> SnapshotDirectory:
        access = self._access()
        return SnapshotDirectory(access.root, durable=access.files.durable)

    # -- unpack ------------------------------------------------------------------------------

    def unpack(
        self,
        name: str,
        platforms: Sequence[Platform] = (),
        *,
        max_bytes: int | None = None,
        reporter: Reporter = SILENT,
    ) -> tuple[Unpacked, ...]:
        """Unpack an image's layers into snapshots; what is unpacked already is not done again.

        Args:
            name: name or ID of an image.
            platforms: of which manifests; empty for what this host runs.
            max_bytes: that one layer's files may take together; None for 64 GiB.
            reporter: told about progress and warnings.

        Raises:
            NotFoundError: no such image or platform, or it is not completely here.
            NotSupportedError: it is no image of layers.
            BadArchiveError: a layer is hostile, no tar, or not what its config says.
            DataLossError: a layer's blob is damaged or lost.
            BusyError: the database was locked too long.
        """
        self._check_writable()
        access = self._access()
        record, jobs = access.read(lambda c: plan.plan(c, name, platforms))
        unpacker = Unpacker(access, self._directory(), reporter, max_bytes)
        return tuple(unpacker.run(job, record) for job in jobs)

    # -- snapshots ---------------------------------------------------------------------------

    def prepare(
        self, key: str, parent: str | None = None, *, labels: Mapping[str, str] | None = None
    ) -> SnapshotRecord:
        """Make a snapshot that can be written, on top of a committed one.

        Args:
            key: for it, by which `base_fs` and `commit_snapshot` find it; a container's id, mostly.
            parent: key of a committed snapshot, or an image that is unpacked; None for none.
            labels: for it.

        Raises:
            AlreadyExistsError: the key is taken.
            NotFoundError: there is no such parent.
            InvalidArgumentError: the parent is not committed, or the key is empty.
            FailedPreconditionError: the parent is an image that is not unpacked.
        """
        return self._make(key, parent, ACTIVE, labels or {})

    def view(
        self, key: str, parent: str | None = None, *, labels: Mapping[str, str] | None = None
    ) -> SnapshotRecord:
        """Make a read-only snapshot of a committed one; arguments and errors as `prepare`."""
        return self._make(key, parent, VIEW, labels or {})

    def _make(self, key: str, parent: str | None, kind: str, labels: Mapping[str, str]) -> SnapshotRecord:
        self._check_writable()
        access, directory = self._access(), self._directory()

        def look(connection: Connection) -> tuple[SnapshotRecord | None, int]:
            below = None if parent is None else _parent_key(connection, parent, key)
            _check_key(connection, key)
            snapshots.check_new(connection, key, below)
            record = None if below is None else snapshots.get(connection, below)
            return record, snapshots.largest_id(connection)

        below, floor = access.read(look)
        with directory.stage(work=kind == ACTIVE) as staged:
            if below is not None:
                _same_root(directory, below, staged)
            staged.describe(snapshots.description(key, kind, below and below.key, None, labels))
            (number,) = directory.publish([(staged, None)], floor, filled=False)
            new = NewSnapshot(number, key, kind, below and below.key, labels=labels)
            try:
                made: SnapshotRecord = access.write(
                    lambda c: snapshots.add(c, new, now_us()), raises_generation=False
                )
            except (AlreadyExistsError, NotFoundError):
                directory.withdraw(staged)
                raise
        return made

    def commit_snapshot(
        self, name: str, key: str, *, labels: Mapping[str, str] | None = None
    ) -> SnapshotRecord:
        """Turn an active snapshot into a committed one; its key disappears, and its labels.

        Args:
            name: the new key.
            key: of the active one.
            labels: for the new one.

        Raises:
            NotFoundError: there is no snapshot `key`.
            FailedPreconditionError: it is no active one, or it is mounted.
            AlreadyExistsError: `name` is taken; the active one stays.
            BusyError: another process writes it.
        """
        self._check_writable()
        access, directory = self._access(), self._directory()
        record: SnapshotRecord = access.read(lambda c: snapshots.check_commit(c, name, key))
        with directory.alone(record.id, record.key, deadline_s=0):
            directory.sync(record.id)
            usage = directory.measure(record.id)
            committed: SnapshotRecord = access.write(
                lambda c: snapshots.promote(
                    c, name, key, labels or {}, (usage.bytes, usage.inodes), now_us()
                ),
                raises_generation=False,
            )
            description = snapshots.description(
                name, committed.kind, committed.parent, None, committed.labels
            )
            directory.describe(record.id, description)
            directory.drop_work(record.id)
        return committed

    def remove_snapshot(self, key: str) -> None:
        """Remove a snapshot and what was written into it.

        Raises:
            NotFoundError: there is none.
            FailedPreconditionError: it has children or is mounted.
            BusyError: another process writes it.
        """
        self._check_writable()
        access, directory = self._access(), self._directory()
        record: SnapshotRecord = access.read(lambda c: snapshots.get(c, key))
        with contextlib.ExitStack() as stack:
            if os.path.isdir(directory.fs(record.id)):
                stack.enter_context(directory.alone(record.id, record.key, deadline_s=0))
            access.write(lambda c: snapshots.remove(c, key), raises_generation=False)
        directory.sweep([record.id], lambda ids: access.read(lambda c: snapshots.known(c, ids)))

    def snapshots(self) -> list[SnapshotRecord]:
        """All snapshots, parents before their children."""
        found: list[SnapshotRecord] = self._access().read(snapshots.listing)
        return found

    def snapshot(self, key: str) -> SnapshotRecord:
        """One snapshot; NotFoundError where there is none."""
        found: SnapshotRecord = self._access().read(lambda c: snapshots.get(c, key))
        return found

    def snapshot_usage(self, key: str) -> Usage:
        """What a snapshot takes on disk without its parents; of an active one as it is now.

        Raises:
            NotFoundError: there is none.
            DataLossError: its directory is lost.
        """
        record = self.snapshot(key)
        if record.usage_bytes is None or record.usage_inodes is None:
            return self._directory().measure(record.id)
        return Usage(record.usage_bytes, record.usage_inodes)

    def rootfs(
        self,
        what: str,
        out: str | os.PathLike[str] | BinaryIO,
        platforms: Sequence[Platform] = (),
        *,
        reporter: Reporter = SILENT,
    ) -> None:
        """Write a root file system as one flat tar.

        Of an image it is read from the layers, nothing is unpacked, and the same image gives the
        same bytes anywhere. Of a snapshot it is what its directories hold, an active one's as
        they are now.

        Args:
            what: key of a snapshot; name or ID of an image.
            out: a path (appears when it is whole), or a binary stream.
            platforms: of an image: which of its manifests; empty for what this host runs.
            reporter: told about progress and warnings.

        Raises:
            NotFoundError: no such image, platform or snapshot, or it is not completely here.
            BadArchiveError: a layer is hostile, no tar, or not what its config says.
            DataLossError: a blob or a directory is lost.
        """
        writer = RootfsWriter(self._access(), self._directory(), reporter, protects=self._may_write())
        writer.write(what, os.fspath(out) if isinstance(out, os.PathLike) else out, platforms)

    # -- mounts ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def base_fs(self, key: str, *, wait_s: float = WAIT_S) -> Iterator[str]:
        """A snapshot's root file system, mounted for the time of a ``with`` block.

        Nested uses in one process share the mount. It is nosuid and nodev, and reached by child
        processes under the same path as long as the block lasts; after a kill nothing is left of
        it. A path inside it may be a link that leads out of it: open what is in it by `os.open`
        with ``dir_fd`` and O_NOFOLLOW, or in a chroot, not by joining strings.

        Args:
            key: of an active snapshot, which is changed, or of a view.
            wait_s: how long to wait for another process that has it.

        Yields:
            The path of its root.

        Raises:
            NotFoundError: there is no such snapshot.
            FailedPreconditionError: it is a committed one.
            BusyError: another process still has it.
        """
        self._check_writable()
        with Mounter(self._access(), self._directory()).base_fs(key, wait_s=wait_s) as path:
            yield path

    def perform_with_base_fs(self, key: str, function: Callable[[str], _T]) -> _T:
        """Call a function on a container's mounted root file system; see `base_fs`.

        What the function returns is returned, and what it raises is raised.
        """
        with self.base_fs(key) as path:
            return function(path)

    def execute(self, key: str, command: Sequence[str], *, inside: bool = False) -> int:
        """Run a command on a snapshot's mounted root, and return its exit code.

        Only for programs with one thread: the command is prepared between fork and exec.

        Args:
            key: as for `base_fs`.
            command: of the host; it starts in the root's directory, which $IMGDB_ROOTFS names.
            inside: by chroot; then it is the image's own.

        Raises:
            CommandNotFoundError, CommandRefusedError: it is not there, or can't be executed.
            NotFoundError, FailedPreconditionError, BusyError: as `base_fs`.
            RefusedError: chroot needs root.
        """
        self._check_writable()
        return Mounter(self._access(), self._directory()).execute(key, command, inside=inside)

    def mount(self, what: str, directory: str | os.PathLike[str]) -> MountRecord:
        """Mount a snapshot, or an image read-only, until `unmount`; an image is unpacked where need be.

        Args:
            what: key of a snapshot; name or ID of an image.
            directory: must be there.

        Raises:
            NotFoundError: no such snapshot, image or directory.
            AlreadyExistsError: imgdb has mounted something there.
            BusyError, FailedPreconditionError: it is being written elsewhere.
            CannotMountError: this process can't mount.
        """
        self._check_writable()
        record: SnapshotRecord | None = self._access().read(lambda c: snapshots.look_up(c, what))
        key = self.unpack(what)[0].snapshot if record is None else record.key
        return Mounter(self._access(), self._directory()).mount(key, os.fspath(directory))

    def unmount(self, what: str | os.PathLike[str]) -> MountRecord:
        """End a mount, by its directory, its snapshot's key, or its image's name.

        Raises:
            NotFoundError: imgdb has mounted no such thing.
            InvalidArgumentError: a snapshot that is mounted at several places.
            BusyError: something in it is in use.
        """
        self._check_writable()
        named = os.fspath(what)
        mounter = Mounter(self._access(), self._directory())
        return mounter.unmount(named, self._access().read(lambda c: _image_keys(c, named)))

    def mounts(self) -> list[MountRecord]:
        """What imgdb has mounted since the machine was started, by target."""
        found: list[MountRecord] = self._access().read(mounts.listing)
        return found


def _check_key(connection: Connection, key: str) -> None:
    """Refuse keys that would hide an image from those who name it, or that nobody can read."""
    if not key.isprintable():
        raise InvalidArgumentError(f"a snapshot's key must be printable: {key!r}")
    with contextlib.suppress(NotFoundError, InvalidArgumentError):
        name = images.resolve(connection, key)[0].display_name
        raise AlreadyExistsError(f"{key} is the image {name}; a snapshot needs a key of its own before that")


def _parent_key(connection: Connection, parent: str, key: str) -> str:
    """A snapshot's key as it is; of an image the snapshot of what this host runs."""
    below = snapshots.look_up(connection, parent)
    if below is not None:
        return below.key
    try:
        record, jobs = plan.plan(connection, parent)
    except NotFoundError:
        raise NotFoundError(f"no snapshot and no image {parent} to be the parent of {key}") from None
    known = snapshots.unpacked(connection, [job.manifest for job in jobs])
    for job in jobs:
        if job.manifest in known:
            return known[job.manifest]
    raise FailedPreconditionError(
        f"{record.display_name} is not unpacked: imgdb unpack {record.display_name}"
    )


def _image_keys(connection: Connection, name: str) -> list[str]:
    """Keys of the snapshots that an image is unpacked into; empty where there is no such image."""
    with contextlib.suppress(ImgdbError):
        _, jobs = plan.plan(connection, name)
        return list(snapshots.unpacked(connection, [job.manifest for job in jobs]).values())
    return []


def _same_root(directory: SnapshotDirectory, below: SnapshotRecord, staged: StagedSnapshot) -> None:
    """The topmost layer tells owner and mode of the root."""
    source, target = directory.open_fs(below.id), staged.open_fs()
    try:
        give(target, of_file(source, os.fstat(source)), exact=True)
    finally:
        os.close(source)
        os.close(target)
