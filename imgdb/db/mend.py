"""Setting rows right: what a check found wrong, and what was put back.

Functions take a connection inside a write transaction and never commit. A row is changed only
while it is still what the check saw, so that nothing that was healed meanwhile is spoiled.
Source: design §4, §7 (check --repair).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, delete, exists, or_, select, text, update

from imgdb.db import audit, blobs, garbage, graph, triggers
from imgdb.db.blobs import BlobRow
from imgdb.db.graph import Expansion
from imgdb.db.models import Blob, DescriptorRow, DocumentText, Image, Layer, Meta
from imgdb.db.sql import chunks, table_of
from imgdb.oci import spec
from imgdb.oci.spec import Kind, Role

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Connection

    from imgdb.oci.digest import Digest
    from imgdb.oci.spec import Document, Edge, ImageConfig

_blobs = table_of(Blob)
_edges = table_of(DescriptorRow)
_images = table_of(Image)
_layers = table_of(Layer)
_texts = table_of(DocumentText)

_KIND_OF_ROLE = {Role.CONFIG: Kind.CONFIG, Role.LAYER: Kind.LAYER, Role.SUBJECT: Kind.BLOB}
# Rows that are derived from documents, or that say nothing without what they refer to.
_DERIVED = ("imgdb_descriptors", "imgdb_layers", "imgdb_documents", "imgdb_unpacks", "imgdb_lease_resources")


@dataclass(frozen=True, slots=True)
class Verified:
    """A blob that was read and found right.

    Attributes:
        row: as it was before the reading.
        ctime_ns: of the file that was read.
        blake3: hex, of its bytes.
    """

    row: BlobRow
    ctime_ns: int
    blake3: str


def _unchanged(seen_verified: Any, seen_ctime: Any) -> Any:
    """Every arrival of a file brings its own times: the row is still about the file that was seen."""
    return and_(
        _blobs.c.present,
        _blobs.c.verified_at.is_not_distinct_from(seen_verified),
        _blobs.c.ctime_ns.is_not_distinct_from(seen_ctime),
    )


def mark_verified(connection: Connection, verified: Collection[Verified], at: int) -> None:
    """Remember when blobs were read and found right, and with which blake3 and ctime."""
    if not verified:
        return
    statement = (
        update(_blobs)
        .where(
            _blobs.c.id == bindparam("row"),
            _blobs.c.damaged_at.is_(None),
            _unchanged(bindparam("seen_verified"), bindparam("seen_ctime")),
        )
        .values(verified_at=at, ctime_ns=bindparam("ctime"), blake3=bindparam("fast"))
    )
    values = [
        {
            "row": item.row.id,
            "seen_verified": item.row.verified_at,
            "seen_ctime": item.row.ctime_ns,
            "ctime": item.ctime_ns,
            # A wrong one is a finding, and not silently put right.
            "fast": item.row.blake3 or item.blake3,
        }
        for item in verified
    ]
    connection.execute(statement, values)


def mark_damaged(connection: Connection, row: BlobRow, at: int) -> bool:
    """Remember that a blob's file is wrong or missing; False when the row is about another file by now."""
    same = and_(_blobs.c.id == row.id, _unchanged(row.verified_at, row.ctime_ns))
    changed = update(_blobs).where(same, _blobs.c.damaged_at.is_(None)).values(damaged_at=at)
    connection.execute(changed)
    marked = select(_blobs.c.id).where(same, _blobs.c.damaged_at.is_not(None))
    return connection.execute(marked).first() is not None


def clear_mark(connection: Connection, row: BlobRow) -> bool:
    """The bytes are right after all; False when somebody marked them again."""
    mine = and_(_blobs.c.id == row.id, _blobs.c.present, _blobs.c.damaged_at == row.damaged_at)
    return connection.execute(update(_blobs).where(mine).values(damaged_at=None)).rowcount > 0


def mark_absent(connection: Connection, digest: Digest) -> bool:
    """A blob whose file is gone is not here; it stays marked, so that it is missed.

    Only while it is marked as damaged: an import that brought it back has ended that.
    """
    mine = and_(_blobs.c.digest == str(digest), _blobs.c.present, _blobs.c.damaged_at.is_not(None))
    found = connection.execute(update(_blobs).where(mine).values(present=False)).rowcount > 0
    if found:
        # The trigger doomed a file that is not there any more.
        garbage.undoom(connection, [digest])
    return found


def mark_lost(connection: Connection, digests: Collection[Digest], at: int) -> None:
    """Remember of blobs that are not here that they should be: their files had other bytes."""
    for chunk in chunks(digests):
        mine = and_(_blobs.c.digest.in_([str(digest) for digest in chunk]), _blobs.c.present.is_(False))
        connection.execute(update(_blobs).where(mine, _blobs.c.damaged_at.is_(None)).values(damaged_at=at))


def set_columns(connection: Connection, row: BlobRow, values: Mapping[str, Any]) -> bool:
    """Change columns of a blob's row to what its bytes say."""
    mine = and_(_blobs.c.id == row.id, _unchanged(row.verified_at, row.ctime_ns))
    return connection.execute(update(_blobs).where(mine).values(dict(values))).rowcount > 0


def set_image(connection: Connection, name: str, target: BlobRow) -> None:
    """Let a name's descriptor say of its target what the target is."""
    mine = and_(_images.c.name == name, _images.c.target_id == target.id)
    values = {"size": target.size, "media_type": target.media_type}
    connection.execute(update(_images).where(mine).values(values))


def recount(connection: Connection, table: str, ids: Collection[int]) -> None:
    """Set the counters of some rows to what their references say."""
    setters = ", ".join(f"{column} = {expression}" for column, expression in triggers.COUNTERS[table].items())
    statement = text(f"UPDATE {table} SET {setters} WHERE id = :id")  # noqa: S608 - constants of ours
    connection.execute(statement, [{"id": rowid} for rowid in ids])


def resettle(connection: Connection, subject: int) -> None:
    """Derive the referrer rows of a subject anew."""
    mine = and_(_edges.c.parent_id == subject, _edges.c.role == Role.REFERRER)
    touched = list(connection.execute(select(_edges.c.child_id).where(mine)).scalars())
    connection.execute(delete(_edges).where(mine))
    graph.settle_referrers(connection, [subject, *touched])


def drop_broken(connection: Connection, table: str, rows: Collection[int]) -> set[int]:
    """Delete derived rows that refer to nothing; returns the documents to be derived again."""
    if table not in _DERIVED:
        return set()
    parents: set[int] = set()
    column = {"imgdb_descriptors": "parent_id", "imgdb_layers": "manifest_id"}.get(table)
    for chunk in chunks(rows, 500):
        listed = ", ".join(str(int(row)) for row in chunk)
        if column is not None:
            found = connection.execute(text(f"SELECT {column} FROM {table} WHERE rowid IN ({listed})"))  # noqa: S608
            parents.update(found.scalars())
        connection.execute(text(f"DELETE FROM {table} WHERE rowid IN ({listed})"))  # noqa: S608
    return parents


def rewrite(
    connection: Connection,
    digest: Digest,
    document: Document,
    config: ImageConfig | None,
    *,
    at: int,
    always: bool = False,
) -> None:
    """Derive everything that rows say about a document from its bytes.

    Edges, layers and text; the references of a document that nothing needs stay unrecorded.

    Args:
        connection: inside a write transaction.
        digest: of the document, which is here.
        document: parsed from its bytes.
        config: parsed, when it is here and an image's.
        at: microseconds since the epoch, for new stubs.
        always: record the references even if nothing needs it yet: it may be a referrer.
    """
    rewrite_all(connection, [Expansion(digest, document, config)], at=at, always=always)


def rewrite_all(
    connection: Connection, items: Collection[Expansion], *, at: int, always: bool = False
) -> None:
    """`rewrite` for many documents, in a number of statements that does not grow with theirs."""
    rows = blobs.find(connection, [item.digest for item in items])
    here = [item for item in items if item.digest in rows and rows[item.digest].present]
    if not here:
        return
    documents = [rows[item.digest].id for item in here]
    for chunk in chunks(documents):
        connection.execute(delete(_texts).where(_texts.c.blob_id.in_(chunk)))
    blobs.put_texts(connection, {rows[item.digest].id: item.document.raw for item in here})
    former, touched = _forget(connection, documents)
    needed = _needed(connection, documents)
    wanted = [item for item in here if always or rows[item.digest].expanded or rows[item.digest].id in needed]
    children = {edge.child.digest: edge for item in wanted for edge in item.document.edges}
    blobs.put_stubs(connection, [_stub(edge, at) for edge in children.values()])
    graph.expand(connection, wanted, blobs.ids(connection, {*rows, *children}))
    graph.settle_referrers(connection, touched)
    _drop_stubs(connection, former)


def learn(connection: Connection, items: Collection[Expansion]) -> None:
    """Layers of manifests whose configs have come later learn their diff IDs."""
    digests = {layer.digest for item in items for layer in item.document.layers}
    ids = blobs.ids(connection, {*digests, *(item.digest for item in items)})
    graph.expand(connection, items, ids)


def _forget(connection: Connection, documents: Collection[int]) -> tuple[set[int], set[int]]:
    """Delete what documents say; returns their children, and the subjects that they named."""
    children: set[int] = set()
    subjects: set[int] = set()
    for chunk in chunks(documents):
        mine = and_(_edges.c.parent_id.in_(chunk), _edges.c.role != Role.REFERRER)
        children.update(connection.execute(select(_edges.c.child_id).where(mine)).scalars())
        # A referrer row is derived from the subject row that goes here.
        derived = and_(_edges.c.role == Role.REFERRER, _edges.c.child_id.in_(chunk))
        subjects.update(connection.execute(select(_edges.c.parent_id).where(derived)).scalars())
        connection.execute(delete(_edges).where(or_(mine, derived)))
        connection.execute(delete(_layers).where(_layers.c.manifest_id.in_(chunk)))
        connection.execute(update(_blobs).where(_blobs.c.id.in_(chunk)).values(expanded=False))
    return children, subjects


def forget(connection: Connection, row: BlobRow) -> None:
    """Delete references of a blob that is no document."""
    former, touched = _forget(connection, [row.id])
    graph.settle_referrers(connection, touched)
    _drop_stubs(connection, former)


def _needed(connection: Connection, documents: Collection[int]) -> set[int]:
    found: set[int] = set()
    for chunk in chunks(documents):
        mine = and_(_blobs.c.id.in_(chunk), _blobs.c.refcount > 0)
        found.update(connection.execute(select(_blobs.c.id).where(mine)).scalars())
    return found


def _stub(edge: Edge, at: int) -> BlobRow:
    child = edge.child
    kind = _KIND_OF_ROLE.get(edge.role) or spec.kind_of(child.media_type) or Kind.BLOB
    return BlobRow(child.digest, child.size, kind.value, child.media_type, present=False, created_at=at)


def _drop_stubs(connection: Connection, candidates: Collection[int]) -> None:
    """Delete rows of blobs that are not here and that nothing refers to any more."""
    named = exists(select(_edges.c.id).where(_edges.c.child_id == _blobs.c.id).correlate(_blobs))
    for chunk in chunks(candidates):
        idle = and_(_blobs.c.present.is_(False), _blobs.c.refcount == 0, _blobs.c.flat_refcount == 0, ~named)
        connection.execute(delete(_blobs).where(_blobs.c.id.in_(chunk), idle))


def drop_broken_images(connection: Connection) -> set[str]:
    """Delete names whose target has no row; returns them."""
    lost = _images.c.target_id.not_in(select(_blobs.c.id))
    names = set(connection.execute(select(_images.c.name).where(lost)).scalars())
    connection.execute(delete(_images).where(lost))
    return names


def set_meta(connection: Connection, store_id: str, generation: int) -> None:
    """Make the database the half of a store."""
    connection.execute(update(table_of(Meta)).values(store_id=store_id, generation=generation))


def put_text(connection: Connection, blob: int, raw: bytes) -> None:
    """Keep a document's text in the place of what was kept before."""
    connection.execute(delete(_texts).where(_texts.c.blob_id == blob))
    blobs.put_texts(connection, {blob: raw})


def arrive(connection: Connection, arrivals: Collection[BlobRow]) -> set[Digest]:
    """Say that blobs are here whose files are durable and held; only where a row misses them.

    Returns:
        Those that a row took; the others are nobody's.
    """
    known = blobs.find(connection, [row.digest for row in arrivals])
    taken = [row for row in arrivals if row.digest in known]
    blobs.put_present(connection, taken)
    return {row.digest for row in taken}


def parents_by_config(connection: Connection, configs: Collection[Digest]) -> list[BlobRow]:
    """Expanded manifests that are here with one of these as config: they learn their diff IDs from it."""
    child = _blobs.alias("child")
    found: set[int] = set()
    for chunk in chunks(configs):
        statement = (
            select(_edges.c.parent_id)
            .join(child, child.c.id == _edges.c.child_id)
            .where(_edges.c.role == Role.CONFIG, child.c.digest.in_([str(digest) for digest in chunk]))
        )
        found.update(connection.execute(statement).scalars())
    return [row for row in audit.by_ids(connection, found) if row.present and row.expanded]
