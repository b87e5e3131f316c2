"""The edges between documents and blobs, and the questions asked of them.

Edges are derived from a document once, when it is first referred to as a manifest or an
index and its bytes are here (`expanded`). `subject` rows are not counted; the `referrer` rows
derived from them are, unless counting would close a circle. Source: design §3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, literal, or_, select, update

from imgdb.db import sql
from imgdb.db.models import Blob, DescriptorRow, Layer
from imgdb.db.sql import chunks, insert_into, table_of
from imgdb.oci.digest import Digest
from imgdb.oci.spec import Descriptor, Kind, Role, chain_ids

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sqlalchemy import CTE, Connection, Select

    from imgdb.oci.spec import Document, ImageConfig

_blobs = table_of(Blob)
_edges = table_of(DescriptorRow)
_layers = table_of(Layer)


@dataclass(frozen=True, slots=True)
class Expansion:
    """A document whose edges are to be recorded; `config` when it is here and an image's."""

    digest: Digest
    document: Document
    config: ImageConfig | None


@dataclass(frozen=True, slots=True)
class ClosureEdge:
    """An edge below some roots, with what the store knows of its child.

    Attributes:
        kind: the child's, which counts where the descriptor has no media type.
    """

    parent: Digest
    role: Role
    position: int
    child: Descriptor
    kind: Kind
    present: bool
    damaged: bool


def expand(connection: Connection, expansions: Collection[Expansion], ids: Mapping[Digest, int]) -> None:
    """Record the edges of documents that have none yet, then settle the referrers they touch.

    Where a config came later than its manifest, the layers learn their diff IDs.

    Args:
        connection: inside a write transaction.
        expansions: documents that are here.
        ids: row ids of them and of everything that they refer to.
    """
    fresh = _unexpanded(connection, expansions, ids)
    _fill_in_layers(connection, [item for item in expansions if item not in fresh], ids)
    if not fresh:
        return
    ordered = sorted(fresh, key=lambda item: item.digest)
    edges = _edge_values(ordered, ids)
    if edges:
        connection.execute(insert_into(connection, DescriptorRow), edges)
    layers = [values for item in ordered for values in _layer_values(item, ids)]
    if layers:
        connection.execute(insert_into(connection, Layer), layers)
    parents = [ids[item.digest] for item in ordered]
    for chunk in chunks(parents):
        connection.execute(update(_blobs).where(_blobs.c.id.in_(chunk)).values(expanded=True))
    settle_referrers(connection, parents)


def _unexpanded(
    connection: Connection, expansions: Collection[Expansion], ids: Mapping[Digest, int]
) -> list[Expansion]:
    done: set[int] = set()
    for chunk in chunks(ids[item.digest] for item in expansions):
        rows = connection.execute(select(_blobs.c.id).where(_blobs.c.id.in_(chunk), _blobs.c.expanded))
        done.update(rows.scalars())
    return [item for item in expansions if ids[item.digest] not in done]


def _fill_in_layers(
    connection: Connection, expansions: Iterable[Expansion], ids: Mapping[Digest, int]
) -> None:
    """Diff IDs of layers that were recorded while the config was absent."""
    known = {ids[item.digest]: item for item in expansions if item.config is not None}
    for chunk in chunks(known):
        lacking = select(_layers.c.manifest_id).where(
            _layers.c.manifest_id.in_(chunk), _layers.c.diff_id.is_(None)
        )
        for manifest in set(connection.execute(lacking).scalars()):
            for values in _layer_values(known[manifest], ids):
                row = and_(_layers.c.manifest_id == manifest, _layers.c.position == values["position"])
                connection.execute(update(_layers).where(row).values(values))


def _edge_values(expansions: Iterable[Expansion], ids: Mapping[Digest, int]) -> list[dict[str, Any]]:
    return [
        {
            "parent_id": ids[item.digest],
            "role": edge.role.value,
            "position": edge.position,
            "counted": edge.role is not Role.SUBJECT,
            "child_id": ids[edge.child.digest],
            **sql.descriptor_values(edge.child),
        }
        for item in expansions
        for edge in item.document.edges
    ]


def _layer_values(item: Expansion, ids: Mapping[Digest, int]) -> list[dict[str, Any]]:
    layers = item.document.layers
    diff_ids = item.config.diff_ids if item.config else ()
    if len(diff_ids) != len(layers):
        # An artifact, or an image that unpack will refuse; its layers are still listed.
        pairs = [(None, None)] * len(layers)
    else:
        pairs = [(str(d), str(c)) for d, c in zip(diff_ids, chain_ids(diff_ids), strict=True)]  # type: ignore[misc]
    return [
        {
            "manifest_id": ids[item.digest],
            "position": position,
            "layer_id": ids[layer.digest],
            "diff_id": diff_id,
            "chain_id": chain_id,
            "uncompressed_size": layer.size if diff_id == str(layer.digest) else None,
        }
        for position, (layer, (diff_id, chain_id)) in enumerate(zip(layers, pairs, strict=True))
    ]


def settle_referrers(connection: Connection, touched: Collection[int]) -> None:
    """Derive the referrer rows of documents whose edges changed and decide which count.

    A referrer is counted unless it reaches its subject by counted rows. Decided anew, in
    digest order, for the referrers that are new, and for those above a changed document.
    Call inside the transaction that changed edges.

    Args:
        connection: inside a write transaction.
        touched: row ids of documents that gained or lost edges.
    """
    new = _missing_referrers(connection, touched)
    if new:
        connection.execute(insert_into(connection, DescriptorRow), new)
    pending = {(row["parent_id"], row["child_id"]) for row in new} | _referrers_above(connection, touched)
    _decide(connection, pending)


def _missing_referrers(connection: Connection, touched: Collection[int]) -> list[dict[str, Any]]:
    """Rows subject → referrer that should be there: the subject is expanded, and either is touched."""
    subject = _edges.alias("subject")
    parent = _blobs.alias("parent")
    child = _blobs.alias("child")
    existing = _edges.alias("existing")
    base = (
        select(subject.c.child_id, subject.c.parent_id, parent.c.media_type, parent.c.size, parent.c.digest)
        .join(parent, parent.c.id == subject.c.parent_id)
        .join(child, child.c.id == subject.c.child_id)
        .outerjoin(
            existing,
            and_(
                existing.c.parent_id == subject.c.child_id,
                existing.c.role == Role.REFERRER,
                existing.c.position == subject.c.parent_id,
            ),
        )
        .where(subject.c.role == Role.SUBJECT, child.c.expanded, existing.c.id.is_(None))
    )
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for chunk in chunks(touched):
        found = connection.execute(
            base.where(or_(subject.c.parent_id.in_(chunk), subject.c.child_id.in_(chunk)))
        )
        for row in found:
            rows[row.child_id, row.parent_id] = {
                "parent_id": row.child_id,
                "role": Role.REFERRER.value,
                "position": row.parent_id,
                "counted": False,
                "child_id": row.parent_id,
                "media_type": row.media_type,
                "size": row.size,
            }
    return list(rows.values())


def _referrers_above(connection: Connection, touched: Collection[int]) -> set[tuple[int, int]]:
    """Referrer rows (subject, referrer) on some way up from a touched document."""
    found: set[tuple[int, int]] = set()
    for chunk in chunks(touched):
        above = select(_blobs.c.id).where(_blobs.c.id.in_(chunk)).cte("above", recursive=True)
        above = above.union(
            select(_edges.c.parent_id)
            .join(above, _edges.c.child_id == above.c.id)
            .where(_edges.c.role != Role.SUBJECT)
        )
        rows = connection.execute(
            select(_edges.c.parent_id, _edges.c.child_id)
            .join(above, _edges.c.child_id == above.c.id)
            .where(_edges.c.role == Role.REFERRER)
        )
        found.update((row.parent_id, row.child_id) for row in rows)
    return found


def _decide(connection: Connection, pending: set[tuple[int, int]]) -> None:
    if not pending:
        return
    by_digest = _digests(connection, {row for pair in pending for row in pair})
    ordered = sorted(pending, key=lambda pair: (by_digest[pair[1]], by_digest[pair[0]]))
    set_counted = (
        update(_edges)
        .where(
            _edges.c.parent_id == bindparam("of"),
            _edges.c.role == Role.REFERRER,
            _edges.c.child_id == bindparam("by"),
        )
        .values(counted=bindparam("count"))
    )
    connection.execute(set_counted, [{"of": s, "by": r, "count": False} for s, r in ordered])
    for subject, referrer in ordered:
        if not reaches(connection, referrer, subject):
            connection.execute(set_counted, {"of": subject, "by": referrer, "count": True})


def reaches(connection: Connection, start: int, goal: int) -> bool:
    """Whether counted rows lead from one blob to another."""
    below = _below(select(literal(start).label("id")), _edges.c.counted)
    return connection.execute(select(below.c.id).where(below.c.id == goal).limit(1)).first() is not None


def _digests(connection: Connection, rows: Collection[int]) -> dict[int, str]:
    result: dict[int, str] = {}
    for chunk in chunks(rows):
        found = connection.execute(select(_blobs.c.id, _blobs.c.digest).where(_blobs.c.id.in_(chunk)))
        result |= {rowid: digest for rowid, digest in found}  # noqa: C416 - Row is no tuple to mypy
    return result


def _below(roots: Select[Any], condition: Any) -> CTE:
    below = roots.cte("below", recursive=True)
    step = select(_edges.c.child_id).join(below, _edges.c.parent_id == below.c.id).where(condition)
    return below.union(step)


def closure(connection: Connection, roots: Collection[int]) -> list[ClosureEdge]:
    """Every edge below `roots`, referrers included, by one recursive query a chunk of roots."""
    child = _blobs.alias("child")
    parent = _blobs.alias("parent")
    edges: dict[tuple[str, str, int], ClosureEdge] = {}
    for chunk in chunks(roots):
        below = _below(select(_blobs.c.id).where(_blobs.c.id.in_(chunk)), _edges.c.role != Role.SUBJECT)
        rows = connection.execute(
            select(
                _edges,
                parent.c.digest.label("parent_digest"),
                child.c.digest.label("child_digest"),
                child.c.kind,
                child.c.present,
                child.c.damaged_at,
            )
            .join(below, _edges.c.parent_id == below.c.id)
            .join(parent, parent.c.id == _edges.c.parent_id)
            .join(child, child.c.id == _edges.c.child_id)
        )
        for row in rows:
            edges[row.parent_digest, row.role, row.position] = ClosureEdge(
                parent=Digest.parse(row.parent_digest),
                role=Role(row.role),
                position=row.position,
                child=sql.read_descriptor(row, row.child_digest),
                kind=Kind(row.kind),
                present=row.present,
                damaged=row.damaged_at is not None,
            )
    return list(edges.values())


def above(connection: Connection, blobs: Collection[int]) -> set[int]:
    """Row ids of some blobs and of everything that leads to them by counted edges."""
    found: set[int] = set()
    for chunk in chunks(blobs):
        up = select(_blobs.c.id).where(_blobs.c.id.in_(chunk)).cte("up", recursive=True)
        up = up.union(
            select(_edges.c.parent_id).join(up, _edges.c.child_id == up.c.id).where(_edges.c.counted)
        )
        found.update(connection.execute(select(up.c.id)).scalars())
    return found
