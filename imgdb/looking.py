"""The part of `imgdb.store.ImageStore` that looks: every method is one read transaction."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from imgdb import describe, df
from imgdb.db import blobs, engine, events, history, images, leases, schema
from imgdb.db import why as reasons
from imgdb.db.sql import now_us
from imgdb.errors import NotFoundError
from imgdb.oci.reference import parse_normalized
from imgdb.results import BlobInfo, StoreInfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from imgdb.access import Access
    from imgdb.db.events import EventRecord
    from imgdb.db.history import Period
    from imgdb.db.images import ImageRecord
    from imgdb.db.why import Root, Why
    from imgdb.describe import HistoryEntry, ImageSummary
    from imgdb.df import Usage
    from imgdb.oci.digest import Digest
    from imgdb.oci.platform import Platform

_T = TypeVar("_T")


class Looking:
    """What a store can tell."""

    def _access(self) -> Access:
        raise NotImplementedError

    def _read(self, question: Callable[[Connection], _T]) -> _T:
        raise NotImplementedError

    def resolve(self, argument: str) -> ImageRecord:
        """The image that a name, an ID, a short ID or a config digest means.

        Raises:
            InvalidArgumentError, NotFoundError: see `imgdb.db.images.resolve`.
        """
        return self._read(lambda connection: images.resolve(connection, argument)[0])

    def images(self) -> list[ImageSummary]:
        """All names with what they hold, by name."""
        return self._read(lambda connection: describe.summaries(connection, images.listing(connection)))

    def inspect(self, argument: str, platform: Platform | None = None) -> dict[str, Any]:
        """One image as docker inspect shows it; keys in docs/formats.md."""

        def question(connection: Connection) -> dict[str, Any]:
            first = images.resolve(connection, argument)[0]
            others = images.by_targets(connection, [first.target.digest])
            records = [first, *(record for record in others if record.name != first.name)]
            return describe.inspect(connection, records, platform)

        return self._read(question)

    def history(self, argument: str, platform: Platform | None = None) -> list[HistoryEntry]:
        """How an image was made, newest step first."""

        def question(connection: Connection) -> list[HistoryEntry]:
            return describe.history(connection, images.resolve(connection, argument)[0], platform)

        return self._read(question)

    def tag_history(self, name: str) -> list[Period]:
        """Everything a name pointed to, newest first.

        Raises:
            InvalidArgumentError: `name` is no name.
        """
        canonical = str(parse_normalized(name).tag_or_latest())
        return self._read(lambda connection: history.of_name(connection, canonical))

    def exists(self, argument: str) -> bool:
        """Whether an argument means an image of this store."""
        try:
            self.resolve(argument)
        except NotFoundError:
            return False
        return True

    def blobs(self) -> list[BlobInfo]:
        """All blobs that are here or referred to, by digest."""
        return [_blob_info(*row) for row in self._read(blobs.listing)]

    def blob(self, digest: str) -> BlobInfo:
        """One blob, by digest or by the unambiguous beginning of one.

        Raises:
            NotFoundError: none, or several.
        """
        return _blob_info(*self._read(lambda connection: blobs.by_prefix(connection, digest)))

    def open_blob(self, digest: str) -> BinaryIO:
        """A blob's bytes.

        Raises:
            NotFoundError: it is not here.
        """
        return self._access().files.open(self.blob(digest).digest)

    def why(self, argument: str) -> Why:
        """What keeps a blob, or the target of an image, or since when it is garbage.

        Raises:
            NotFoundError: neither a blob nor an image.
        """
        living = self._access().files.living_holds()
        held = self._access().files.held_by()

        def question(connection: Connection) -> Why:
            row = _blob_or_target(connection, argument)
            dead = leases.dead(connection, now_us(), living)
            return reasons.why(connection, row, dead=dead, held=held)

        return self._read(question)

    def kept_by(self) -> dict[Digest, Root]:
        """One root for each blob that something keeps."""
        living = self._access().files.living_holds()
        return self._read(lambda c: reasons.kept_by(c, leases.dead(c, now_us(), living)))

    def df(self) -> Usage:
        """Disk accounting; every figure is exact at one moment."""
        return df.account(self._access())

    def events(self, *, since: int | None = None, after_id: int = 0) -> list[EventRecord]:
        """What happened, oldest first; `since` in microseconds since the epoch."""
        return self._read(lambda c: list(events.listing(c, since=since, after_id=after_id)))

    def info(self) -> StoreInfo:
        """Facts about the store."""
        root = self._access().root

        def question(connection: Connection) -> StoreInfo:
            meta = schema.read_meta(connection)
            count, size = blobs.totals(connection)
            return StoreInfo(
                root=root,
                database=engine.describe(connection.engine),
                store_id=meta.store_id,
                generation=meta.generation,
                schema=schema.current(connection) or "",
                images=images.count(connection),
                blobs=count,
                blob_bytes=size,
            )

        return self._read(question)


def _blob_or_target(connection: Connection, argument: str) -> blobs.BlobRow:
    """A digest or the beginning of one first; a name, or an ID by its config, second."""
    with suppress(NotFoundError):
        return blobs.by_prefix(connection, argument)[0]
    digest = images.resolve(connection, argument)[0].target.digest
    return blobs.find(connection, [digest])[digest]


def _blob_info(row: blobs.BlobRow, refcount: int, flat_refcount: int) -> BlobInfo:
    return BlobInfo(
        digest=row.digest,
        size=row.size,
        kind=row.kind,
        media_type=row.media_type,
        present=row.present,
        damaged=row.damaged_at is not None,
        refcount=refcount,
        flat_refcount=flat_refcount,
        created_at=row.created_at,
        verified_at=row.verified_at,
    )
