"""Reading blobs and judging them: how fast, how long, and what the bytes say.

Blobs are read, not mapped: a bad sector under a mapping would kill the process with SIGBUS,
and that is what a check is there to report. Source: design §7; reliability §4.5.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from blake3 import blake3

from imgdb.content.disk import HASH_CHUNK
from imgdb.content.store import BlobStat
from imgdb.errors import NotFoundError
from imgdb.oci.digest import new_hasher

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgdb.content.disk import DiskBlobStore
    from imgdb.db.blobs import BlobRow
    from imgdb.oci.digest import Digest, Hasher
    from imgdb.progress import Reporter

_MIN_CHUNK = 64 << 10
# blake3 starts threads for more than this only.
_LARGE = 1 << 20
_POLL_S = 0.2


class OutOfTimeError(Exception):
    """Reading was stopped in the middle of a blob; not an error of anything."""


class Meter:
    """Counts what all threads read, slows them down to a rate, and stops them in time.

    Args:
        reporter: told about every chunk, one thread at a time.
        rate: bytes a second; None for no limit.
        time_limit_s: counted from now; None for no limit.
    """

    def __init__(self, reporter: Reporter, rate: int | None, time_limit_s: float | None) -> None:
        self.read_bytes = 0
        self.may_stop = False
        self._reporter = reporter
        self._rate = rate
        self._started = time.monotonic()
        self._end = None if time_limit_s is None else self._started + time_limit_s
        self._lock = threading.Lock()
        self._stopped = False

    @property
    def chunk(self) -> int:
        """Bytes to be read at once: few when the rate is low, so that it is even."""
        return HASH_CHUNK if self._rate is None else min(HASH_CHUNK, max(_MIN_CHUNK, self._rate // 4))

    def is_late(self) -> bool:
        """Whether the time is over."""
        return self._end is not None and time.monotonic() >= self._end

    def stop(self) -> None:
        """Let no thread read on."""
        self._stopped = True

    def blob(self, digest: Digest, size: int) -> None:
        """Announce a blob."""
        with self._lock:
            self._reporter.blob(str(digest), size)

    def add(self, count: int, *, patient: bool = False) -> None:
        """Count some bytes, and wait as long as the rate demands.

        Args:
            count: bytes.
            patient: never stop.

        Raises:
            OutOfTimeError: the time is over, and something was verified already; so each check
                makes progress, also where one blob takes longer than the time that it has.
        """
        with self._lock:
            self.read_bytes += count
            self._reporter.advance(count)
            due = self._started if self._rate is None else self._started + self.read_bytes / self._rate
        self._check(patient)
        while (wait := due - time.monotonic()) > 0:
            time.sleep(min(wait, _POLL_S))
            self._check(patient)

    def _check(self, patient: bool) -> None:
        if patient:
            return
        if self._stopped or (self.may_stop and self.is_late()):
            raise OutOfTimeError


class Judgement(Enum):
    """What a blob's file is."""

    SOUND = auto()
    MISSING = auto()
    DAMAGED = auto()
    UNREADABLE = auto()


@dataclass(frozen=True, slots=True)
class Verdict:
    """A blob's file, as it was read.

    Attributes:
        status: of the file that was read; None when there is none, or when it did not stand still.
        blake3: hex, of its bytes; empty when they could not be read.
        detail: for people.
    """

    judgement: Judgement
    status: BlobStat | None = None
    blake3: str = ""
    detail: str = ""

    @property
    def is_sound(self) -> bool:
        """The bytes are those that the digest names."""
        return self.judgement is Judgement.SOUND


def examine(
    files: DiskBlobStore, row: BlobRow, meter: Meter, *, full: bool = False, patient: bool = False
) -> Verdict:
    """Read a blob and judge its bytes; the row is only believed where its blake3 fits.

    Args:
        files: where it lies.
        row: what is known of it.
        meter: counts.
        full: compare the identity digest even where blake3 would do.
        patient: read it to its end whatever the time.

    Raises:
        OutOfTimeError: see `Meter.add`.
    """
    meter.blob(row.digest, row.size)
    try:
        with files.open(row.digest) as file:
            return _judge(file, row, partial(meter.add, patient=patient), meter.chunk, full=full)
    except NotFoundError:
        there = os.path.lexists(files.path(row.digest))
        detail = "something that is no file is in its place" if there else "there is no file"
        return Verdict(Judgement.MISSING, detail=detail)
    except OSError as error:
        return Verdict(Judgement.UNREADABLE, files.stat(row.digest), detail=error.strerror or str(error))


def _judge(file: BinaryIO, row: BlobRow, count: Callable[[int], None], chunk: int, *, full: bool) -> Verdict:
    status = _status(file)
    by_identity = full or row.blake3 is None or status.size != row.size
    fast = blake3(max_threads=blake3.AUTO) if status.size > _LARGE else blake3()
    slow = new_hasher(row.digest.algorithm)
    _feed(file, [fast, slow] if by_identity else [fast], count, chunk)
    if not by_identity and fast.hexdigest() != row.blake3:
        # Row or bytes: the digest decides.
        file.seek(0)
        _feed(file, [slow], count, chunk)
        by_identity = True
    if by_identity and slow.hexdigest() != row.digest.hex:
        detail = f"{status.size} bytes instead of {row.size}" if status.size != row.size else "other bytes"
        return Verdict(Judgement.DAMAGED, status, detail=detail)
    # Touched while it was read: right, but nobody knows which ctime goes with these bytes.
    same = _status(file) == status
    return Verdict(Judgement.SOUND, status if same else None, fast.hexdigest())


def _status(file: BinaryIO) -> BlobStat:
    status = os.fstat(file.fileno())
    return BlobStat(status.st_size, status.st_ctime_ns)


def _feed(file: BinaryIO, hashers: Sequence[Hasher], count: Callable[[int], None], chunk: int) -> None:
    size = os.fstat(file.fileno()).st_size
    buffer = memoryview(bytearray(min(chunk, max(size, _MIN_CHUNK))))
    while taken := file.readinto(buffer):  # type: ignore[attr-defined] # BinaryIO lacks it
        for hasher in hashers:
            hasher.update(buffer[:taken])
        count(taken)


def read_verified(files: DiskBlobStore, row: BlobRow) -> bytes | None:
    """The bytes of a small blob, when they are what the digest names."""
    try:
        with files.open(row.digest) as file:
            raw = file.read()
    except (NotFoundError, OSError):
        return None
    hasher = new_hasher(row.digest.algorithm)
    hasher.update(raw)
    return raw if hasher.hexdigest() == row.digest.hex else None
