"""Collecting garbage beside running imports and exports: rows first, files after them.

Rows go in short transactions, level after level. A file goes only when neither a live hold nor
a row knows it, looked up in this order under ``gc.lock``. Candidates are what lost its row and
what dead holds list; the whole directory is listed only when asked to (`GcOptions.full`), or
after a collector that was killed. Source: design §4.6-4.8.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from imgdb.content import reserve
from imgdb.content.disk import SWEEP_BATCH
from imgdb.db import blobs, garbage, leases, mounts, snapshots
from imgdb.db.sql import now_us
from imgdb.errors import BusyError, FailedPreconditionError
from imgdb.snapshots.disk import SnapshotDirectory
from imgdb.snapshots.mount import boot_id

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from imgdb.access import Access
    from imgdb.db.garbage import Garbage
    from imgdb.db.snapshots import SnapshotRecord
    from imgdb.oci.digest import Digest

GRACE_S = 24 * 3600.0
# Rows of one transaction; others wait for no longer than it takes.
_BATCH = 500
_FEW = 10
_RUNNING = b"running\n"


@dataclass(frozen=True, slots=True)
class GcOptions:
    """What the caller of a collection may choose.

    Attributes:
        full: also list the whole directory, recount, and mark from the roots.
        grace_s: seconds that a file nobody knows is left alone.
        time_limit_s: stop cleanly after this long; the next run goes on.
        max_delete: stop cleanly after this many blobs.
        totals: also sum up what is kept, the one thing whose time grows with the store.
    """

    full: bool = False
    grace_s: float = GRACE_S
    time_limit_s: float | None = None
    max_delete: int | None = None
    totals: bool = True


@dataclass(frozen=True, slots=True)
class GcPlan:
    """What a collection would do at this moment.

    Attributes:
        garbage: blobs that nothing needs, flat ones (whose bytes stay) included.
        expired: ids of leases that expired.
        waiting: files of earlier collections that are still to be swept, with their sizes.
        orphans: files that nobody knows, older than the grace; known when `full`.
        foreign: names in ``blobs/`` that are no blobs; reported and left alone.
        kept_bytes: of the blobs that stay.
        snapshots: unpacked layers that nothing needs, children first.
    """

    garbage: tuple[Garbage, ...]
    expired: tuple[str, ...]
    waiting: tuple[tuple[Digest, int], ...]
    orphans: tuple[tuple[Digest, int], ...]
    foreign: tuple[str, ...]
    kept_bytes: int
    snapshots: tuple[SnapshotRecord, ...] = ()

    @property
    def freed_bytes(self) -> int:
        """Bytes of files and of snapshots that would go."""
        return sum(self.freed.values()) + sum(record.usage_bytes or 0 for record in self.snapshots)

    @property
    def freed(self) -> dict[Digest, int]:
        """Every file that would go, with its size."""
        files = {item.digest: item.size for item in self.garbage if item.frees}
        return files | dict(self.waiting) | dict(self.orphans)


@dataclass(slots=True)
class GcResult:
    """What a collection did; bytes and blobs are those of files that are gone.

    Attributes:
        freed: files that are gone, with their sizes.
        snapshots: keys of unpacked layers that are gone, with what they took.
        kept_bytes: of the blobs that stay; None where it was not asked for.
        remaining_bytes: garbage that a limit left for the next run.
        foreign: names in ``blobs/`` that are no blobs; known after a full one.
        complete: nothing was left.
    """

    freed: dict[Digest, int] = field(default_factory=dict)
    snapshots: dict[str, int] = field(default_factory=dict)
    expired_leases: int = 0
    kept_bytes: int | None = None
    remaining_bytes: int = 0
    foreign: tuple[str, ...] = ()
    complete: bool = True
    duration_s: float = 0.0

    @property
    def freed_bytes(self) -> int:
        """Bytes of files and of snapshots that are gone."""
        return sum(self.freed.values()) + sum(self.snapshots.values())


class Collector:
    """A collection over one store."""

    def __init__(self, access: Access) -> None:
        self.files = access.files
        self.read = access.read
        self._write = access.write
        self._directory = SnapshotDirectory(access.root, durable=access.files.durable)

    def write(self, work: Callable[[Any], Any]) -> Any:
        """Change rows; a collection adds neither blobs nor names."""
        return self._write(work, raises_generation=False)

    def plan(self, options: GcOptions, *, gone: Collection[str] = ()) -> GcPlan:
        """What `run` would do; changes nothing.

        Args:
            options: `full` adds the files that nobody knows.
            gone: names of images that count as removed.
        """
        now, (living, held, dead) = now_us(), self._holds()
        found, expired, kept, doomed, unpacked = self.read(
            lambda c: _questions(c, leases.dead(c, now, living), gone, full=options.full)
        )
        sizes = [(digest, s.size) for digest in (*doomed, *dead) if (s := self.files.stat(digest))]
        known = self._known([digest for digest, _ in sizes])
        files = dict(sorted(sizes))
        orphans = self._orphans(options) if options.full or self._was_killed() else []
        taken = {item.digest for item in found if item.frees}
        return GcPlan(
            garbage=tuple(item for item in found if item.digest not in held),
            expired=tuple(expired),
            waiting=tuple((d, s) for d, s in files.items() if d not in known | held | taken),
            orphans=tuple((d, s) for d, s in orphans if d not in held | files.keys()),
            foreign=tuple(self.files.foreign()) if options.full else (),
            kept_bytes=kept - sum(item.size for item in found if item.frees),
            snapshots=tuple(unpacked),
        )

    def run(self, options: GcOptions) -> GcResult:
        """Collect.

        Raises:
            BusyError: another collection is running.
            FailedPreconditionError: a document's edges are not recorded.
        """
        budget = _Budget(options)
        result = budget.result
        reserve.give_up(self.files.root)
        with self._alone() as was_killed:
            self.read(_check_expanded)
            self._make_room(budget)
            self._rows(budget)
            self._files(budget)
            self._snapshots(budget)
            listed = not was_killed
            if options.full or was_killed:
                self.files.empty_trash()
                listed = self._sweep([digest for digest, _ in self._orphans(options)], budget)
                self._sweep_snapshots(self._orphaned_snapshots(options))
            result.foreign = tuple(self.files.foreign()) if options.full else ()
            if listed:
                os.truncate(self._run_lock(), 0)
            if self.files.durable:
                reserve.fill(self.files.root)
        if budget.stopped:
            result.remaining_bytes = self.plan(options).freed_bytes
            result.complete = not result.remaining_bytes
        if options.totals:
            result.kept_bytes = self.read(blobs.totals)[1]
        result.duration_s = time.monotonic() - budget.started
        return result

    def _make_room(self, budget: _Budget) -> None:
        """On a full disk by small steps: the rows of few blobs take little, their files give more."""
        self.files.remove_dead_ingests()
        while reserve.is_tight(self.files.root) and self._take_some(budget, _FEW):
            self._files(budget)

    def _holds(self) -> tuple[Collection[str], set[Digest], list[Digest]]:
        """Names of living holds, what they list, and what dead ones list.

        Where the lock can't be had for want of rights nobody can be told that; a medium that
        nobody can write has no operations.
        """
        try:
            return self.files.living_holds(), self.files.held(), self.files.dead_holds()
        except OSError as error:
            if error.errno not in {errno.EROFS, errno.EACCES, errno.EPERM}:
                raise
            return (), set(), []

    def _rows(self, budget: _Budget) -> None:
        now, living = now_us(), self.files.living_holds()
        budget.result.expired_leases = self.write(partial(_expire, now=now, living=living))
        full = budget.options.full
        # Asked before it is done, for asking locks nobody out.
        if full and self.read(garbage.miscounted):
            self.write(garbage.recount)
        self._take_down(budget)
        if full and not budget.stopped and self.read(garbage.unreachable):
            self.write(garbage.unlink_unreachable)
            self._take_down(budget)

    def _take_down(self, budget: _Budget) -> None:
        """Level after level, until nothing is left or a limit is met."""
        while self._take_some(budget, _BATCH):
            pass

    def _take_some(self, budget: _Budget, most: int) -> bool:
        """Rows of one transaction; whether there may be more."""
        limit = budget.allows(budget.rows, most)
        taken = self.write(partial(_collect, limit=limit)) if limit else []
        budget.rows += len(taken)
        return bool(taken)

    def _files(self, budget: _Budget) -> None:
        self._sweep(self.read(garbage.doomed), budget)
        dead = self.files.dead_holds()
        if self._sweep(dead, budget):
            gone = {digest for digest in dead if self.files.stat(digest) is None}
            self.files.reap_holds(gone | self._known(dead))

    def _snapshots(self, budget: _Budget) -> None:
        """Unpacked layers that nothing needs, children before parents; then their directories."""
        self._directory.remove_dead()
        if self.read(partial(mounts.of_other_boots, boot_id=boot_id())):
            self.write(partial(mounts.remove_of_other_boots, boot_id=boot_id()))
        while budget.allows(0, SWEEP_BATCH) and self.read(snapshots.has_garbage):
            taken = self.write(partial(snapshots.collect, limit=SWEEP_BATCH))
            self._sweep_snapshots([record.id for record in taken])
            budget.result.snapshots |= {record.key: record.usage_bytes or 0 for record in taken}

    def _sweep_snapshots(self, ids: Collection[int]) -> None:
        self._directory.sweep(ids, lambda some: self.read(lambda c: snapshots.known(c, some)))

    def _orphaned_snapshots(self, options: GcOptions) -> list[int]:
        """Directories without a row, old enough that nobody is about to give them one."""
        old = self._directory.older_than(time.time() - options.grace_s)
        known = self.read(lambda c: snapshots.known(c, old))
        return [number for number in old if number not in known]

    def _sweep(self, digests: Sequence[Digest], budget: _Budget) -> bool:
        """Whether all of them were looked at."""
        pending = list(digests)
        while pending:
            step = budget.allows(len(budget.result.freed), SWEEP_BATCH)
            if not step:
                return False
            batch, pending = pending[:step], pending[step:]
            budget.result.freed |= self.files.sweep(batch, self._known)
            gone = [digest for digest in batch if self.files.stat(digest) is None]
            self.write(partial(garbage.undoom, digests=batch, gone=gone))
        return True

    def _known(self, digests: Collection[Digest]) -> set[Digest]:
        found: set[Digest] = self.read(lambda c: blobs.known(c, digests))
        return found

    def _orphans(self, options: GcOptions) -> list[tuple[Digest, int]]:
        """Files that no row, no hold and no doom knows, old enough that nobody is about to."""
        newest = time.time_ns() - int(options.grace_s * 1e9)
        old = [(digest, status.size) for digest, status in self.files.walk() if status.ctime_ns <= newest]
        known = self._known([digest for digest, _ in old])
        return [(digest, size) for digest, size in old if digest not in known]

    def _was_killed(self) -> bool:
        try:
            with open(self._run_lock(), "rb") as file:
                return file.read() == _RUNNING
        except FileNotFoundError:
            return False

    def _run_lock(self) -> str:
        return os.path.join(self.files.root, "gc-run.lock")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """One collector at a time; says whether the one before was killed."""
        fd = os.open(self._run_lock(), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError("another gc is running on this store; try again later") from None
            was_killed = os.pread(fd, len(_RUNNING), 0) == _RUNNING
            with contextlib.suppress(OSError):  # a full disk: the mark is a help, not a need
                os.pwrite(fd, _RUNNING, 0)
            yield was_killed
        finally:
            os.close(fd)


@dataclass(slots=True)
class _Budget:
    """How much a run may still do.

    Attributes:
        rows: how many blobs were taken down so far.
        stopped: a limit was met.
    """

    options: GcOptions
    result: GcResult = field(default_factory=GcResult)
    started: float = field(default_factory=time.monotonic)
    rows: int = 0
    stopped: bool = False

    def allows(self, done: int, most: int) -> int:
        """How many more of something, at most `most`, when so many were done; 0 to stop."""
        limit = self.options.time_limit_s
        if limit is not None and time.monotonic() - self.started >= limit:
            most = 0
        if self.options.max_delete is not None:
            most = max(0, min(most, self.options.max_delete - done))
        self.stopped = self.stopped or not most
        return most


def _expire(connection: Any, now: int, living: Collection[str]) -> int:
    """Delete the leases that are dead; few, so that one transaction does."""
    dead = leases.dead(connection, now, living)
    for lease in dead:
        leases.remove(connection, lease)
    return len(dead)


def _collect(connection: Any, limit: int) -> list[Garbage]:
    _check_expanded(connection)
    return garbage.collect(connection, limit)


def _check_expanded(connection: Any) -> None:
    blind = garbage.unexpanded(connection)
    if blind is not None:
        raise FailedPreconditionError(
            f"the edges of {blind} are not recorded, so what it needs can't be told from garbage; "
            "run imgdb check --repair"
        )


def _questions(
    connection: Any, dead: Sequence[str], gone: Collection[str], *, full: bool
) -> tuple[list[Garbage], Sequence[str], int, list[Digest], list[SnapshotRecord]]:
    _check_expanded(connection)
    plan = garbage.plan_full if full else garbage.plan
    found = plan(connection, dead=dead, gone=gone)
    return (
        found,
        dead,
        blobs.totals(connection)[1],
        garbage.doomed(connection),
        snapshots.plan(connection, manifests=[item.digest for item in found], dead=dead),
    )
