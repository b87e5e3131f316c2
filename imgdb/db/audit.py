"""What a check asks the database: what rows say, and where they contradict each other.

Each function is one question about one consistent view, so that what a running import or
collector is about to change is never seen half. Functions change nothing.
Source: design §3, §7 (check).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, create_engine, func, or_, select, text

from imgdb.db import blobs, catalog, graph, leases, schema, triggers, views
from imgdb.db.blobs import BlobRow
from imgdb.db.models import (
    Blob,
    DescriptorColumns,
    DescriptorRow,
    DocumentText,
    Image,
    Layer,
    LeaseResource,
    Snapshot,
)
from imgdb.db.sql import chunks, table_of
from imgdb.oci import spec
from imgdb.oci.digest import Digest
from imgdb.oci.reference import dangling_name, familiar
from imgdb.oci.spec import Kind, Role

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sqlalchemy import Connection

DOCUMENT_KINDS = (Kind.MANIFEST.value, Kind.INDEX.value)

_blobs = table_of(Blob)
_edges = table_of(DescriptorRow)
_images = table_of(Image)
_layers = table_of(Layer)
_texts = table_of(DocumentText)
_snapshots = table_of(Snapshot)
_resources = table_of(LeaseResource)
_parents = _blobs.alias("parents")
_FIELDS = [field.name for field in fields(BlobRow) if field.name != "digest"]

Reference = tuple[str, str]
"""Role and media type with which something refers to a blob; image names refer as manifests."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What rows say about a document.

    Attributes:
        edges: (role, position) -> (child's digest, descriptor columns, counted); without
            referrers, which other documents make.
        layers: (position, layer's digest, diff ID, chain ID), by position.
        text: the kept JSON, or None.
    """

    edges: dict[tuple[str, int], tuple[str | None, dict[str, Any], bool]]
    layers: list[tuple[int, str | None, str | None, str | None]]
    text: bytes | None


def _row(row: Any) -> BlobRow:
    return BlobRow(Digest.parse(row.digest), **{name: getattr(row, name) for name in _FIELDS})


def oldest_first(connection: Connection) -> array[int]:
    """Row ids of the blobs that are here and not marked as damaged, verified longest ago first."""
    verified = _blobs.c.verified_at
    statement = (
        select(_blobs.c.id)
        .where(_blobs.c.present, _blobs.c.damaged_at.is_(None))
        .order_by(verified.is_not(None), verified, _blobs.c.id)
    )
    return array("q", connection.execute(statement).scalars())


def present_page(connection: Connection, after: int, limit: int) -> list[BlobRow]:
    """Rows of blobs that are here, by id."""
    statement = select(_blobs).where(_blobs.c.present, _blobs.c.id > after).order_by(_blobs.c.id).limit(limit)
    return [_row(row) for row in connection.execute(statement)]


def by_ids(connection: Connection, ids: Iterable[int]) -> list[BlobRow]:
    """Rows by id, in no order; those that are gone are left out."""
    found: list[BlobRow] = []
    for chunk in chunks(ids):
        rows = connection.execute(select(_blobs).where(_blobs.c.id.in_(chunk)))
        found += [_row(row) for row in rows]
    return found


def marked(connection: Connection) -> list[BlobRow]:
    """Blobs that are marked as damaged: those that are here, and those that somebody misses."""
    statement = select(_blobs).where(_blobs.c.damaged_at.is_not(None)).order_by(_blobs.c.digest)
    rows = [_row(row) for row in connection.execute(statement)]
    missed = rooted(connection, [row.id for row in rows if not row.present])
    return [row for row in rows if row.present or row.id in missed]


def rooted(connection: Connection, ids: Iterable[int]) -> set[int]:
    """Those of some blobs that an image or a lease keeps: what only garbage leads to, nobody misses."""
    found: set[int] = set()
    for start in ids:
        up = select(_blobs.c.id, _blobs.c.digest).where(_blobs.c.id == start).cte("up", recursive=True)
        step = select(_edges.c.parent_id, _parents.c.digest).join(up, _edges.c.child_id == up.c.id)
        up = up.union(step.join(_parents, _parents.c.id == _edges.c.parent_id).where(_edges.c.counted))
        named = select(_images.c.id).join(up, up.c.id == _images.c.target_id)
        leased = select(_resources.c.key).join(up, up.c.digest == _resources.c.key)
        either = (named.limit(1), leased.where(_resources.c.type == leases.CONTENT).limit(1))
        if any(connection.execute(statement).first() is not None for statement in either):
            found.add(start)
    return found


def wanted_stubs(connection: Connection, digests: Iterable[Digest] | None = None) -> list[BlobRow]:
    """Rows of blobs that are not here and that something needs; of these digests, or all."""
    needed = _blobs.c.refcount + _blobs.c.flat_refcount > 0
    statement = select(_blobs).where(_blobs.c.present.is_(False), needed).order_by(_blobs.c.digest)
    if digests is None:
        return [_row(row) for row in connection.execute(statement)]
    found: list[BlobRow] = []
    for chunk in chunks(digests):
        rows = connection.execute(statement.where(_blobs.c.digest.in_([str(digest) for digest in chunk])))
        found += [_row(row) for row in rows]
    return found


def unexpanded(connection: Connection) -> list[BlobRow]:
    """Documents that something needs, that are here, and whose references are not recorded."""
    statement = select(_blobs).where(
        _blobs.c.present,
        _blobs.c.damaged_at.is_(None),
        _blobs.c.expanded.is_(False),
        _blobs.c.refcount > 0,
        _blobs.c.kind.in_(DOCUMENT_KINDS),
    )
    return [_row(row) for row in connection.execute(statement.order_by(_blobs.c.digest))]


def oldest_verified(connection: Connection) -> tuple[int, int, int | None]:
    """How many blobs are here, their bytes, and when the longest unverified one was verified."""
    count, size = blobs.totals(connection)
    never = select(_blobs.c.id).where(_blobs.c.present, _blobs.c.verified_at.is_(None)).limit(1)
    if connection.execute(never).first() is not None:
        return count, size, None
    oldest = select(func.min(_blobs.c.verified_at)).where(_blobs.c.present)
    return count, size, connection.execute(oldest).scalar()


def recorded(connection: Connection, ids: Collection[int]) -> dict[int, Recorded]:
    """What is recorded about some documents, by row id."""
    found = {row: Recorded({}, [], None) for row in ids}
    child = _blobs.alias("child")
    digest = child.c.digest.label("digest")
    edges = select(_edges, digest).outerjoin(child, child.c.id == _edges.c.child_id)
    layers = select(_layers, digest).outerjoin(child, child.c.id == _layers.c.layer_id)
    for chunk in chunks(ids):
        mine = and_(_edges.c.parent_id.in_(chunk), _edges.c.role != Role.REFERRER)
        for row in connection.execute(edges.where(mine)):
            values = {column: getattr(row, column) for column in DescriptorColumns.__annotations__}
            found[row.parent_id].edges[row.role, row.position] = (row.digest, values, row.counted)
        ordered = layers.where(_layers.c.manifest_id.in_(chunk)).order_by(_layers.c.position)
        for row in connection.execute(ordered):
            found[row.manifest_id].layers.append((row.position, row.digest, row.diff_id, row.chain_id))
        for row in connection.execute(select(_texts).where(_texts.c.blob_id.in_(chunk))):
            raw = row.json.encode("utf-8", "surrogatepass")
            found[row.blob_id] = replace(found[row.blob_id], text=raw)
    return found


def references(connection: Connection, ids: Iterable[int]) -> dict[int, list[Reference]]:
    """How documents and names refer to some blobs, each way once, first ones first; subjects don't count."""
    found: dict[int, list[Reference]] = {}
    named = (_images.c.target_id, _images.c.media_type)
    listed = (_edges.c.child_id, _edges.c.role, _edges.c.media_type)
    derived = [Role.REFERRER, Role.SUBJECT]
    for chunk in chunks(ids):
        names = select(*named).where(_images.c.target_id.in_(chunk)).group_by(*named)
        for name in connection.execute(names.order_by(func.min(_images.c.id))):
            found.setdefault(name.target_id, []).append((Role.MANIFEST.value, name.media_type))
        mine = and_(_edges.c.child_id.in_(chunk), _edges.c.role.not_in(derived))
        edges = select(*listed).where(mine).group_by(*listed)
        for edge in connection.execute(edges.order_by(func.min(_edges.c.id))):
            found.setdefault(edge.child_id, []).append((edge.role, edge.media_type))
    return found


def images_above(connection: Connection, ids: Collection[int]) -> dict[int, tuple[str, ...]]:
    """Familiar names of the images that lead to each of some blobs, sorted."""
    found: dict[int, tuple[str, ...]] = {}
    for start in ids:
        up = select(_blobs.c.id).where(_blobs.c.id == start).cte("up", recursive=True)
        step = select(_edges.c.parent_id).join(up, _edges.c.child_id == up.c.id)
        up = up.union(step.where(_edges.c.role != Role.SUBJECT))
        names = (
            select(_images.c.name, _blobs.c.digest)
            .join(up, up.c.id == _images.c.target_id)
            .join(_blobs, _blobs.c.id == _images.c.target_id)
        )
        found[start] = tuple(sorted(_shown(row.name, row.digest) for row in connection.execute(names)))
    return found


def _shown(name: str, target: str) -> str:
    return target if name == dangling_name(Digest.parse(target)) else familiar(name)


def drifted(connection: Connection) -> list[tuple[str, int, str]]:
    """Counters that are not what their references say: table, row id, digest or key."""
    found = []
    for table, counters in triggers.COUNTERS.items():
        differs = " OR ".join(f"{column} <> {expression}" for column, expression in counters.items())
        key = "digest" if table == _blobs.name else "key"
        rows = connection.execute(text(f"SELECT id, {key} FROM {table} WHERE {differs} ORDER BY {key}"))  # noqa: S608
        found += [(table, rowid, name) for rowid, name in rows]
    return found


def wrong_referrers(connection: Connection) -> dict[int, str]:
    """Subjects whose referrer rows are not what other documents' subject rows say, each with why."""
    wrong: dict[int, str] = {}
    said = select(_edges.c.child_id, _edges.c.parent_id).join(_blobs, _blobs.c.id == _edges.c.child_id)
    said = said.where(_edges.c.role == Role.SUBJECT, _blobs.c.expanded)
    wanted = {(row.child_id, row.parent_id) for row in connection.execute(said)}
    there: set[tuple[int, int]] = set()
    rows = connection.execute(select(_edges).where(_edges.c.role == Role.REFERRER).order_by(_edges.c.id))
    for row in rows.all():
        pair = (row.parent_id, row.child_id)
        if pair not in wanted or row.position != row.child_id:
            wrong[row.parent_id] = "a referrer that names no such subject"
            continue
        there.add(pair)
        if row.counted == graph.reaches(connection, row.child_id, row.parent_id):
            wrong[row.parent_id] = "a referrer is counted where it must not be, or not where it must"
    for subject, _ in wanted - there:
        wrong[subject] = "a referrer is missing"
    return wrong


def contradicted_images(connection: Connection) -> list[tuple[str, BlobRow]]:
    """Names whose size or media type contradicts their target, which is here; with the target's row."""
    other = or_(
        and_(_blobs.c.kind == Kind.MANIFEST, _images.c.media_type.in_(sorted(spec.INDEX_TYPES))),
        and_(_blobs.c.kind == Kind.INDEX, _images.c.media_type.in_(sorted(spec.MANIFEST_TYPES))),
    )
    statement = (
        select(_images.c.name.label("image"), _blobs)
        .join(_blobs, _blobs.c.id == _images.c.target_id)
        .where(_blobs.c.present, _blobs.c.damaged_at.is_(None), or_(_images.c.size != _blobs.c.size, other))
        .order_by(_images.c.name)
    )
    return [(row.image, _row(row)) for row in connection.execute(statement)]


def broken_references(connection: Connection) -> dict[str, list[int]]:
    """Rows that refer to rows that don't exist: table -> row ids."""
    found: dict[str, list[int]] = {}
    for table in catalog.names(connection, "table"):
        rows = connection.exec_driver_sql(f'PRAGMA foreign_key_check("{table}")').fetchall()
        if rows:
            found[table] = sorted({row[1] for row in rows})
    return found


def integrity(connection: Connection) -> list[str]:
    """What SQLite finds damaged in imgdb's tables and their indexes; a host's are not read."""
    found: list[str] = []
    for table in catalog.names(connection, "table"):
        lines = connection.exec_driver_sql(f'PRAGMA integrity_check("{table}")').scalars()
        found += [f"{table}: {line}" for line in lines if line != "ok"]
    return found


def altered(connection: Connection) -> list[str]:
    """Names of triggers and views that are missing, too many, or not as this imgdb makes them."""
    wanted = triggers.CREATE_SQL | views.CREATE_SQL
    made = catalog.statements(connection, "trigger", triggers.PATTERN)
    made |= catalog.statements(connection, "view", views.PATTERN)
    return sorted(name for name in wanted.keys() | made.keys() if wanted.get(name) != made.get(name))


def altered_tables(connection: Connection) -> list[str]:
    """Names of tables and indexes that are missing, too many, or not as this imgdb's migrations make them."""
    fresh = create_engine("sqlite://")
    try:
        with fresh.connect() as made:
            schema.upgrade(made)
            wanted, found = _tables(made), _tables(connection)
    finally:
        fresh.dispose()
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def _tables(connection: Connection) -> dict[str, str]:
    return catalog.statements(connection, "table") | catalog.statements(connection, "index")


def snapshot_ids(connection: Connection) -> dict[int, str]:
    """Snapshots: row id -> key."""
    rows = connection.execute(select(_snapshots.c.id, _snapshots.c.key))
    return {row.id: row.key for row in rows}
