"""Hold, then look: which files are needed by operations that have no rows yet.

Each operation has one file in ``holds/``, locked with flock as long as it runs, listing
digests one a line. Creating, locking and appending happen under ``gc.lock`` shared; a
collector takes it exclusively, so an append is either seen by it or waits until it is done.
A hold whose lock can be had belongs to a process that is dead.
Source: design §4.2, Nix's temporary roots, reliability §4.3.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
import weakref
from typing import TYPE_CHECKING, Self

from imgdb.content.files import write_all
from imgdb.errors import BusyError, FailedPreconditionError, InvalidArgumentError
from imgdb.oci.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from types import TracebackType

LOCK_DEADLINE_S = 60.0
_POLL_S = 0.005

_open_holds: weakref.WeakSet[FileHold] = weakref.WeakSet()


@contextlib.contextmanager
def locked(path: str, mode: int, *, deadline_s: float = LOCK_DEADLINE_S) -> Iterator[None]:
    """Hold flock `mode` on the file at `path`, which is made when missing.

    Each use opens the file anew: flock belongs to the open file, so threads sharing one
    descriptor would share, and lose, one lock.

    Raises:
        BusyError: somebody else held it for `deadline_s` seconds.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _flock(fd, mode, path, deadline_s)
        try:
            yield
        finally:
            # Closing is not enough: a child forked meanwhile has the descriptor, and with it the lock.
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def _flock(fd: int, mode: int, path: str, deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while True:
        try:
            fcntl.flock(fd, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise BusyError(f"{path} has been locked for {deadline_s:.0f} s; try again later") from None
            time.sleep(_POLL_S)
        else:
            return


class FileHold:
    """A hold in a directory of holds; see `imgdb.content.store.Hold`."""

    def __init__(self, directory: str, gc_lock: str) -> None:
        self._gc_lock = gc_lock
        self._digests: set[Digest] = set()
        with locked(gc_lock, fcntl.LOCK_SH):
            self._path = os.path.join(directory, f"{os.getpid()}-{secrets.token_hex(8)}")
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._path, flags, 0o600)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX)
            except BaseException:
                self.release()
                raise
        _open_holds.add(self)

    @property
    def name(self) -> str:
        """The hold's file name, by which a lease can name its owner."""
        return os.path.basename(self._path)

    @property
    def digests(self) -> frozenset[Digest]:
        """Everything listed so far."""
        return frozenset(self._digests)

    def add(self, digests: Iterable[Digest]) -> None:
        """List digests; on return they are safe from being swept.

        Raises:
            FailedPreconditionError: the hold was released, or belongs to the parent process.
            BusyError: a collector held the lock too long.
        """
        new = [digest for digest in digests if digest not in self._digests]
        if not new:
            return
        if self._fd < 0:
            raise FailedPreconditionError("this hold was released")
        # Begins a new line: an append that failed half-way would swallow the first digest.
        lines = "".join(f"\n{digest}" for digest in new).encode() + b"\n"
        with locked(self._gc_lock, fcntl.LOCK_SH):
            write_all(self._fd, lines)
        self._digests.update(new)

    def release(self) -> None:
        """Give the hold up; unlinked before closing, so that nobody sees it unlocked.

        Never fails, for it is called after a commit: a file that can't be unlinked is a dead hold.
        """
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            self.abandon()

    def abandon(self) -> None:
        """Close without unlinking: what a crash does, and what a forked child must do."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def live_digests(directory: str) -> tuple[set[Digest], set[Digest]]:
    """What the holds list: (digests of live holds, digests of dead ones).

    Call under ``gc.lock`` exclusive. Those of dead holds are candidates for sweeping.
    """
    live: set[Digest] = set()
    dead: set[Digest] = set()
    for name in os.listdir(directory):
        try:
            fd = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            (dead if _can_lock(fd) else live).update(_read_digests(fd))
        finally:
            os.close(fd)
    return live, dead


def reap(directory: str, settled: Collection[Digest]) -> None:
    """Remove dead holds that list only what is settled; call under ``gc.lock`` exclusive.

    One whose process died meanwhile, or that lists what a live hold keeps, is asked next time.
    """
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if _can_lock(fd) and set(settled).issuperset(_read_digests(fd)):
                    os.unlink(path)
            finally:
                os.close(fd)


def living(directory: str) -> set[str]:
    """Names of the holds whose operation runs; call under ``gc.lock`` exclusive."""
    names = set()
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if not _can_lock(fd):
                    names.add(name)
            finally:
                os.close(fd)
    return names


def digests_of(directory: str, name: str) -> set[Digest]:
    """What one hold lists; empty when it is gone."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return set(_read_digests(fd))
        finally:
            os.close(fd)
    return set()


def _can_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_digests(fd: int) -> Iterator[Digest]:
    with open(fd, encoding="ascii", errors="replace", closefd=False) as file:
        for line in file:
            # A torn last line is a digest that add() never returned for.
            with contextlib.suppress(InvalidArgumentError):
                yield Digest.parse(line.rstrip("\n"))


def _close_in_child() -> None:
    """The lock lives in the open file, which a forked child shares: let go of it there."""
    for hold in list(_open_holds):
        hold.abandon()


os.register_at_fork(after_in_child=_close_in_child)
