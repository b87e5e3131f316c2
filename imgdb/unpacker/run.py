"""From an image's layers to a chain of snapshots, each shared by every image that has it.

A layer's snapshot is keyed by its chain ID; one that is there is not made again. It is made in
private, verified against its diff ID, made durable, published, and only then gets a row. A lease
keeps what is needed meanwhile. Source: specification §7.4, design §4.9.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from imgdb.db import blobs, events, images, snapshots
from imgdb.db.leases import CONTENT, SNAPSHOTS, Resource
from imgdb.db.snapshots import STANDALONE
from imgdb.db.sql import now_us
from imgdb.errors import (
    BadArchiveError,
    DataLossError,
    ImgdbError,
    NotFoundError,
)
from imgdb.holding import leased
from imgdb.progress import OneAtATime
from imgdb.snapshots.disk import SKIPPED
from imgdb.snapshots.layer import MAX_BYTES, Applied, apply_layer
from imgdb.snapshots.piped import Counted
from imgdb.snapshots.skipped import SkipLog
from imgdb.unpacker.batch import Batch, Finished
from imgdb.unpacker.plan import NO_LAYERS, Job, Unpacked

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from imgdb.access import Access
    from imgdb.db.images import ImageRecord
    from imgdb.db.snapshots import LayerToUnpack
    from imgdb.progress import Reporter
    from imgdb.snapshots.disk import SnapshotDirectory, StagedSnapshot

_USED_COARSE_US = 3600 * 1_000_000
# Snapshots below, and what else a process has open.
_SPARE_DESCRIPTORS = 256
_BATCH = 32  # layers that are published together; each has three descriptors until then
_WARNINGS = 10


@dataclass(slots=True)
class _Ongoing:
    """One manifest being unpacked.

    Attributes:
        batch: layers that are finished and no snapshots yet.
        ends: what is to be let go of at the end.
        skipped: what could not be set, and how often.
        lowers: descriptors of the layers so far, topmost first.
    """

    batch: Batch
    ends: contextlib.ExitStack
    skipped: Counter[str]
    lowers: list[int] = field(default_factory=list)

    def put_on_top(self, fd: int, *, alone: bool) -> None:
        """The next layer's directory; `alone` where it hides all below it."""
        self.ends.callback(os.close, fd)
        if alone:
            self.lowers.clear()
        self.lowers.insert(0, fd)


class Unpacker:
    """Unpacks manifests of one store.

    Args:
        access: the store.
        directory: where its snapshots are.
        reporter: told about progress and warnings.
        max_bytes: of all files of one layer.
    """

    def __init__(
        self, access: Access, directory: SnapshotDirectory, reporter: Reporter, max_bytes: int | None = None
    ) -> None:
        self._access = access
        self._directory = directory
        self._reporter = OneAtATime(reporter)
        self._max_bytes = max_bytes or MAX_BYTES

    def run(self, job: Job, record: ImageRecord) -> Unpacked:
        """Unpack one manifest; what is unpacked already stays as it is.

        Raises:
            BadArchiveError: a layer is hostile, no tar, or not what its diff ID says.
            DataLossError: a layer's blob is damaged or lost.
            ImgdbError: the disk is full.
            BusyError: the database was locked too long.
        """
        keep = [Resource(CONTENT, str(job.manifest)), *(Resource(SNAPSHOTS, key) for key in job.chain)]
        with leased(self._access, keep, ("io.imgdb.unpack", str(job.manifest))):
            there = self._known(job.chain)
            skipped: Counter[str] = Counter()
            missing = [key for key in job.chain if key not in there]
            if missing:
                self._unpack(job, there, skipped)
            self._access.write(lambda connection: _note(connection, job, record), raises_generation=False)
        self._say(record, skipped)
        return Unpacked(
            job.manifest, job.platform, job.chain[-1], len(job.layers), len(missing), dict(skipped)
        )

    def _known(self, chain: list[str]) -> set[str]:
        """Those of a chain that have a row and a directory."""
        ids: dict[str, int] = self._access.read(lambda c: snapshots.ids(c, chain))
        return {key for key, number in ids.items() if os.path.isdir(self._directory.fs(number))}

    def _unpack(self, job: Job, there: set[str], skipped: Counter[str]) -> None:
        _allow_descriptors(len(job.layers) + _SPARE_DESCRIPTORS)
        facts = self._access.read(lambda c: blobs.find(c, {layer.digest for layer in job.layers}))
        total = sum(facts[x.digest].size for x in job.layers if x.chain_id not in there)
        with contextlib.ExitStack() as ends, self._reporter.phase("unpack", total):
            ongoing = _Ongoing(Batch(self._access, self._directory), ends, skipped)
            ends.callback(ongoing.batch.discard)
            try:
                self._layers(job, there, ongoing)
            except (ImgdbError, OSError):
                # What was finished before is right, and saves work the next time.
                with contextlib.suppress(ImgdbError, OSError):
                    ongoing.batch.publish()
                raise
            self._publish(ongoing.batch)

    def _publish(self, batch: Batch) -> None:
        try:
            batch.publish()
        except OSError as error:
            raise _told(error, self._directory.path) from error

    def _layers(self, job: Job, there: set[str], ongoing: _Ongoing) -> None:
        parent = None
        for layer in job.layers:
            key = str(layer.chain_id)
            lock = None if key in there else self._lock(layer, ongoing.batch)
            if lock is None:
                record = self._access.read(partial(snapshots.get, key=key))
                ongoing.put_on_top(self._directory.open_fs(record.id), alone=record.is_standalone)
            else:
                self._reporter.blob(str(layer.digest), os.fstat(lock.fileno()).st_size)
                self._layer(layer, parent, lock, ongoing)
            parent = key
        if not job.layers:
            staged = self._directory.make()
            ongoing.batch.add(Finished(staged, NO_LAYERS, None, {}, None))

    def _lock(self, layer: LayerToUnpack, batch: Batch) -> BinaryIO | None:
        """The layer's blob, locked: whoever else unpacks it waits; None when it is unpacked by then.

        Nobody waits for one lock while he has others, or two images with the same layers in another
        order would wait for each other.
        """
        blob = self._open(layer)
        try:
            try:
                fcntl.flock(blob, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._publish(batch)
                fcntl.flock(blob, fcntl.LOCK_EX)
            if not self._known([str(layer.chain_id)]):
                return blob
        except BaseException:
            blob.close()
            raise
        blob.close()
        return None

    def _layer(self, layer: LayerToUnpack, parent: str | None, blob: BinaryIO, ongoing: _Ongoing) -> None:
        with contextlib.ExitStack() as failing:
            failing.callback(blob.close)
            staged = self._directory.make()
            failing.callback(self._directory.end, staged)
            applied = self._apply(layer, blob, staged, ongoing)
            fd = staged.open_fs()
            failing.pop_all()
        ongoing.put_on_top(fd, alone=applied.hides_all)
        labels = {STANDALONE: "true"} if applied.hides_all else {}
        ongoing.batch.add(Finished(staged, str(layer.chain_id), parent, labels, blob))
        if len(ongoing.batch) >= _BATCH:
            self._publish(ongoing.batch)

    def _open(self, layer: LayerToUnpack) -> BinaryIO:
        try:
            return self._access.files.open(layer.digest)
        except NotFoundError as error:
            raise DataLossError(f"{error}; import an archive that has it") from None

    def _apply(
        self, layer: LayerToUnpack, blob: BinaryIO, staged: StagedSnapshot, ongoing: _Ongoing
    ) -> Applied:
        assert layer.diff_id is not None  # noqa: S101 - `_job` looked
        warnings = _Few(self._reporter, str(layer.digest))
        fs = staged.open_fs()
        try:
            with SkipLog(staged, ongoing.skipped) as log:
                applied = apply_layer(
                    Counted(blob, self._reporter.advance),
                    fs,
                    ongoing.lowers,
                    algorithm=layer.diff_id.algorithm,
                    max_bytes=self._max_bytes,
                    on_warning=warnings.warn,
                    on_skip=log.write,
                )
        except BadArchiveError as error:
            self._blame(layer, str(error))
        except OSError as error:
            raise _told(error, self._directory.path) from error
        finally:
            os.close(fs)
            warnings.finish()
        if applied.diff_id != layer.diff_id:
            self._blame(
                layer, f"wrong diff ID: its content is {applied.diff_id}, its config says {layer.diff_id}"
            )
        return applied

    def _blame(self, layer: LayerToUnpack, why: str) -> NoReturn:
        """Tell a layer that came wrong from one that went bad on this disk."""
        row = self._access.read(lambda c: blobs.find(c, [layer.digest])).get(layer.digest)
        if row is not None and row.blake3 and self._access.files.blake3(layer.digest) != row.blake3:
            self._access.write(
                lambda c: blobs.mark_damaged(c, layer.digest, now_us()), raises_generation=False
            )
            raise DataLossError(f"blob {layer.digest} is damaged; import an archive that has it")
        raise BadArchiveError(f"layer {layer.digest} can't be unpacked: {why}")

    def _say(self, record: ImageRecord, skipped: Counter[str]) -> None:
        if skipped:
            counts = ", ".join(f"{count} of {what}" for what, count in sorted(skipped.items()))
            self._reporter.warn(
                f"{record.display_name}: not set, for want of rights: {counts}; recorded in {SKIPPED} "
                "beside each layer"
            )


def _note(connection: Connection, job: Job, record: ImageRecord) -> None:
    at = now_us()
    snapshots.put_unpack(connection, job.manifest, job.chain[-1], at)
    images.touch(connection, [record.name], at, coarse_us=_USED_COARSE_US)
    event = events.NewEvent("unpack", str(job.manifest), record.name, attributes={"snapshot": job.chain[-1]})
    events.record(connection, [event], at)


def _allow_descriptors(wanted: int) -> None:
    """A stack of hundreds of layers is read with a descriptor each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard) if hard > 0 else wanted, hard))


def _told(error: OSError, where: str) -> ImgdbError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return ImgdbError(f"no space in {where} to unpack; free some space or use another --store")
    return ImgdbError(f"{where}: {error.strerror or error}")


class _Few:
    """Passes on the first warnings of a layer, and counts the others."""

    def __init__(self, reporter: Reporter, what: str) -> None:
        self._reporter = reporter
        self._what = what
        self._count = 0

    def warn(self, message: str) -> None:
        """One line."""
        self._count += 1
        if self._count <= _WARNINGS:
            self._reporter.warn(f"layer {self._what}: {message}")

    def finish(self) -> None:
        """Say how many there were."""
        if self._count > _WARNINGS:
            self._reporter.warn(f"layer {self._what}: {self._count - _WARNINGS} more such warnings")
