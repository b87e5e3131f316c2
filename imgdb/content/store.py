"""What a blob store is. `disk.py` is the default; the conformance suite runs on any.

The life of a blob:

1. **stage** - an `Ingest` takes bytes, hashing them once (identity digest and blake3). Staged
   bytes are private: no reader sees them, no other import resumes them, and they vanish with
   the ingest. Whether they are what somebody promised is checked here, before anything else.
2. **hold** - a `Hold` lists the digests an operation relies on. First hold, then look: after
   `Hold.add` returned, no garbage collector removes those files as long as the hold lives.
   Whether a hold lives is known from the kernel, not from a clock.
3. **commit** - `BlobStore.put` makes staged blobs durable under their digests. Success says
   that the content *is* there and will be after a power cut, not that this call put it there.
   Only then may a database row say so: files may lead rows, rows never lead files.
4. **read** - `BlobStore.open` gives the bytes; an open reader survives deletion.
5. **sweep** - `BlobStore.sweep` removes files that neither a live hold nor a row knows; it
   reads the holds first and the rows second (the other order was seen to lose blobs).

Source: design §4, containerd's content store, reliability §4.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from types import TracebackType

    from imgdb.oci.digest import Digest

HEAD_SIZE = 512


class ByteSource(Protocol):
    """Where staged bytes come from."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer`; 0 at the end."""


@dataclass(frozen=True, slots=True)
class Staged:
    """Bytes in an ingest.

    Attributes:
        token: the name inside the ingest; empty when the bytes were only hashed.
        digest: identity, in the algorithm that was asked for.
        blake3: hex, from the same pass.
        head: the first `HEAD_SIZE` bytes, for telling formats apart.
    """

    token: str
    digest: Digest
    size: int
    blake3: str
    head: bytes


@dataclass(frozen=True, slots=True)
class BlobStat:
    """A blob's file.

    Attributes:
        size: bytes.
        ctime_ns: changes when anything about the file changes; rows remember it.
    """

    size: int
    ctime_ns: int


class Ingest(Protocol):
    """A private staging area; use as a context manager."""

    def stage(
        self,
        source: ByteSource,
        size: int | None,
        *,
        algorithm: str = "sha256",
        keep: bool = True,
        advance: Callable[[int], None] | None = None,
    ) -> Staged:
        """Read exactly `size` bytes, or all for None, hash them, and keep them unless told not to.

        Raises:
            FailedPreconditionError: the source ended early.
            ImgdbError: the disk would be full.
        """

    def open(self, staged: Staged) -> BinaryIO:
        """Read staged bytes that were kept."""

    def discard(self, staged: Staged) -> None:
        """Forget staged bytes; they may be forgotten already."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Hold(Protocol):
    """Keeps digests from being swept while the operation runs; use as a context manager."""

    def add(self, digests: Iterable[Digest]) -> None:
        """List digests; on return they are safe. Look for the files only afterwards."""

    @property
    def name(self) -> str:
        """By which a lease can name its owner."""

    @property
    def digests(self) -> frozenset[Digest]:
        """Everything listed so far."""

    def release(self) -> None:
        """Give the hold up; harmless when it was given up before."""

    def abandon(self) -> None:
        """Let the hold die as in a crash, so that a collector finds what it lists."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class BlobStore(Protocol):
    """Bytes keyed by digest."""

    def ingest(self) -> Ingest:
        """A new private staging area."""

    def hold(self) -> Hold:
        """A new, empty hold."""

    def stat(self, digest: Digest) -> BlobStat | None:
        """The blob's file, or None."""

    def open(self, digest: Digest) -> BinaryIO:
        """Read a blob.

        Raises:
            NotFoundError: it is not here.
        """

    def blake3(self, digest: Digest) -> str:
        """Checksum of a blob's bytes as they are now, hex.

        Raises:
            NotFoundError: it is not here.
        """

    def put(
        self, ingest: Ingest, staged: Collection[Staged], *, replace: Collection[Digest] = ()
    ) -> dict[Digest, BlobStat]:
        """Make staged blobs durable under their digests.

        A blob that is here with the right size is kept, unless listed in `replace`.

        Raises:
            OSError: syncing failed; those bytes are given up, never synced again.
        """

    def walk(self) -> Iterator[tuple[Digest, BlobStat]]:
        """Every blob file; names that are no digests are skipped."""

    def sweep(
        self, digests: Iterable[Digest], known: Callable[[Collection[Digest]], Collection[Digest]]
    ) -> dict[Digest, int]:
        """Remove those of `digests` that no live hold lists and that `known` does not return.

        Args:
            digests: candidates.
            known: given some digests, returns those that rows need; asked after the holds were read.

        Returns:
            The size of each blob that was removed.
        """
