"""Blob rows: what is here, what is only referred to, and what its bytes hash to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, case, func, not_, or_, select, update

from imgdb.db.models import Blob, DocumentText
from imgdb.db.sql import chunks, insert_into, table_of
from imgdb.errors import NotFoundError
from imgdb.oci.digest import Digest
from imgdb.oci.spec import Kind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sqlalchemy import Connection

DOCUMENT_TEXT_LIMIT = 4 << 20

_blobs = table_of(Blob)


@dataclass(frozen=True, slots=True)
class BlobRow:
    """One row of ``imgdb_blobs``, without its counters.

    Attributes:
        size: bytes; of a stub, what the first descriptor said.
        kind: manifest, index, config, layer or blob.
        media_type: as first seen.
        blake3: hex, from the pass that verified the identity; None when unknown.
        ctime_ns: of the file after its last rename.
    """

    digest: Digest
    size: int
    kind: str
    media_type: str
    present: bool = True
    blake3: str | None = None
    ctime_ns: int | None = None
    verified_at: int | None = None
    created_at: int = 0
    damaged_at: int | None = None
    expanded: bool = False
    id: int = 0


def _read(row: Any) -> BlobRow:
    return BlobRow(
        digest=Digest.parse(row.digest),
        size=row.size,
        kind=row.kind,
        media_type=row.media_type,
        present=row.present,
        blake3=row.blake3,
        ctime_ns=row.ctime_ns,
        verified_at=row.verified_at,
        created_at=row.created_at,
        damaged_at=row.damaged_at,
        expanded=row.expanded,
        id=row.id,
    )


def find(connection: Connection, digests: Iterable[Digest]) -> dict[Digest, BlobRow]:
    """The rows of those digests that have one."""
    found: dict[Digest, BlobRow] = {}
    for chunk in chunks(digests):
        rows = connection.execute(select(_blobs).where(_blobs.c.digest.in_([str(d) for d in chunk])))
        found |= {row.digest: row for row in map(_read, rows)}
    return found


def ids(connection: Connection, digests: Iterable[Digest]) -> dict[Digest, int]:
    """The row ids of those digests that have a row."""
    result: dict[Digest, int] = {}
    for chunk in chunks(digests):
        rows = connection.execute(
            select(_blobs.c.digest, _blobs.c.id).where(_blobs.c.digest.in_([str(d) for d in chunk]))
        )
        result |= {Digest.parse(digest): rowid for digest, rowid in rows}
    return result


def known(connection: Connection, digests: Collection[Digest]) -> set[Digest]:
    """Those digests whose file a row needs."""
    needed: set[Digest] = set()
    for chunk in chunks(digests):
        statement = select(_blobs.c.digest).where(
            _blobs.c.digest.in_([str(d) for d in chunk]), _blobs.c.present
        )
        needed.update(Digest.parse(digest) for (digest,) in connection.execute(statement))
    return needed


def put_present(connection: Connection, rows: Collection[BlobRow]) -> None:
    """Say that blobs are here; call only after their files are durable.

    What a row already knows stays: a blob's kind and media type are those first seen, but a
    fresh file (`verified_at` set) brings its own blake3 and ctime and ends damage, and what was
    a mere leaf so far becomes a document when it is referred to as one.
    """
    insert = insert_into(connection, Blob)
    new = insert.excluded
    fresh = new.verified_at.is_not(None)
    # A stub's kind and type are hearsay; those of bytes that are here stay.
    settled = and_(_blobs.c.present, or_(_is_document(_blobs.c.kind), not_(_is_document(new.kind))))
    statement = insert.on_conflict_do_update(
        index_elements=["digest"],
        set_={
            "present": True,
            "size": new.size,
            "kind": case((settled, _blobs.c.kind), else_=new.kind),
            "media_type": case((settled, _blobs.c.media_type), else_=new.media_type),
            "created_at": case((_blobs.c.present, _blobs.c.created_at), else_=new.created_at),
            "blake3": func.coalesce(new.blake3, _blobs.c.blake3),
            "ctime_ns": func.coalesce(new.ctime_ns, _blobs.c.ctime_ns),
            "verified_at": func.coalesce(new.verified_at, _blobs.c.verified_at),
            "damaged_at": case((fresh, None), else_=_blobs.c.damaged_at),
        },
    )
    _execute(connection, statement, rows)


def _is_document(kind: Any) -> Any:
    # No IN: its parameters can't be bound for many rows at once.
    return or_(kind == Kind.MANIFEST.value, kind == Kind.INDEX.value)


def put_stubs(connection: Connection, rows: Collection[BlobRow]) -> None:
    """Remember blobs that are referred to and not here; existing rows stay as they are."""
    statement = insert_into(connection, Blob).on_conflict_do_nothing(index_elements=["digest"])
    _execute(connection, statement, rows)


def _execute(connection: Connection, statement: Any, rows: Collection[BlobRow]) -> None:
    if not rows:
        return
    values = [
        {
            "digest": str(row.digest),
            "size": row.size,
            "kind": row.kind,
            "media_type": row.media_type,
            "present": row.present,
            "expanded": False,
            "blake3": row.blake3,
            "ctime_ns": row.ctime_ns,
            "verified_at": row.verified_at,
            "created_at": row.created_at,
        }
        for row in sorted(rows, key=lambda row: row.digest)
    ]
    connection.execute(statement, values)


def put_texts(connection: Connection, texts: dict[int, bytes]) -> None:
    """Keep the JSON text of documents, by blob id; larger ones than 4 MiB are left out."""
    values = [
        {"blob_id": blob_id, "json": raw.decode("utf-8")}
        for blob_id, raw in sorted(texts.items())
        if len(raw) <= DOCUMENT_TEXT_LIMIT
    ]
    if values:
        statement = insert_into(connection, DocumentText).on_conflict_do_nothing(index_elements=["blob_id"])
        connection.execute(statement, values)


def texts(connection: Connection, digests: Iterable[Digest]) -> dict[Digest, bytes]:
    """The kept JSON texts of those digests that have one."""
    found: dict[Digest, bytes] = {}
    statement = select(Blob.digest, DocumentText.json).join(DocumentText, Blob.id == DocumentText.blob_id)
    for chunk in chunks(digests):
        rows = connection.execute(statement.where(Blob.digest.in_([str(d) for d in chunk])))
        found |= {Digest.parse(digest): json.encode("utf-8") for digest, json in rows}
    return found


def mark_damaged(connection: Connection, digest: Digest, at: int) -> None:
    """Remember that a blob's bytes are wrong; it stays referenced and is not exported."""
    connection.execute(update(_blobs).where(_blobs.c.digest == str(digest)).values(damaged_at=at))


def listing(connection: Connection) -> list[tuple[BlobRow, int, int]]:
    """All rows by digest, each with its two counters."""
    rows = connection.execute(select(_blobs).order_by(_blobs.c.digest))
    return [(_read(row), row.refcount, row.flat_refcount) for row in rows]


def totals(connection: Connection) -> tuple[int, int]:
    """How many blobs are here, and their bytes."""
    statement = select(func.count(), func.coalesce(func.sum(_blobs.c.size), 0)).where(_blobs.c.present)
    count, size = connection.execute(statement).one()
    return count, size


def by_prefix(connection: Connection, text: str) -> tuple[BlobRow, int, int]:
    """The one row whose digest begins with a text, ``sha256:`` understood.

    Raises:
        NotFoundError: none, or several.
    """
    prefix = text if ":" in text else f"sha256:{text}"
    statement = select(_blobs).where(_blobs.c.digest >= prefix, _blobs.c.digest < f"{prefix}g").limit(2)
    found = connection.execute(statement).all()
    if len(found) != 1:
        raise NotFoundError(
            f"no blob {text}" if not found else f"{text} begins several digests; give more digits"
        )
    return _read(found[0]), found[0].refcount, found[0].flat_refcount
