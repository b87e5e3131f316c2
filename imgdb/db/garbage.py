"""What nothing needs: nominated by counters, confirmed by edges, taken down level by level.

The plan is exact and costs time in proportion to the garbage: C is what the candidates lead
to, live is what within C has a root or a parent outside C, with what that leads to; garbage
is C less live. Expired leases count as gone. Functions never commit. Source: design §4.6-4.8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, exists, func, or_, select, text, update

from imgdb.db import triggers
from imgdb.db.graph import settle_referrers
from imgdb.db.models import Blob, DescriptorRow, Doomed, Image, Layer, Lease, LeaseResource, Unpack
from imgdb.db.sql import chunks, table_of
from imgdb.oci.digest import Digest
from imgdb.oci.spec import Role

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import CTE, Connection

_blobs = table_of(Blob)
_edges = table_of(DescriptorRow)
_images = table_of(Image)
_leases = table_of(Lease)
_resources = table_of(LeaseResource)
_doomed = table_of(Doomed)

CONTENT = "content"


@dataclass(frozen=True, slots=True)
class Garbage:
    """A blob that nothing needs.

    Attributes:
        size: bytes on disk; 0 for one that is not here.
        flat: a flat lease keeps its bytes; only what it leads to is let go.
    """

    digest: Digest
    size: int
    kind: str
    flat: bool


def _held_by(dead: Collection[str], *, flat: bool) -> Any:
    """EXISTS: a lease that is not dead lists the blob."""
    return exists(
        select(_resources.c.key)
        .join(_leases, _leases.c.id == _resources.c.lease_id)
        .where(
            _resources.c.type == CONTENT,
            _resources.c.key == _blobs.c.digest,
            _leases.c.flat == flat,
            _leases.c.id.not_in(list(dead)),
        )
        .correlate(_blobs)
    )


def _named(gone: Collection[str] = ()) -> Any:
    """EXISTS: an image, apart from some that count as removed, points to the blob."""
    statement = select(_images.c.id).where(_images.c.target_id == _blobs.c.id)
    return exists(statement.where(_images.c.name.not_in(list(gone))).correlate(_blobs))


def _below(seeds: Any, name: str) -> CTE:
    below: CTE = seeds.cte(name, recursive=True)
    return below.union(
        select(_edges.c.child_id).join(below, _edges.c.parent_id == below.c.id).where(_edges.c.counted)
    )


def plan(connection: Connection, *, dead: Collection[str] = (), gone: Collection[str] = ()) -> list[Garbage]:
    """Exactly what a collection at this moment would take, without changing anything.

    Args:
        connection: one consistent view.
        dead: ids of leases that count as gone.
        gone: names of images that count as removed, for "what would be freed".
    """
    seeds = select(_blobs.c.id).where(
        or_(
            _blobs.c.refcount == 0,
            _blobs.c.id.in_(select(_images.c.target_id).where(_images.c.name.in_(list(gone)))),
            _blobs.c.digest.in_(
                select(_resources.c.key).where(
                    _resources.c.type == CONTENT, _resources.c.lease_id.in_(list(dead))
                )
            ),
        )
    )
    candidates = _below(seeds, "candidates")
    parent = _edges.alias("parent")
    outside = exists(
        select(parent.c.id)
        .where(
            parent.c.child_id == _blobs.c.id,
            parent.c.counted,
            parent.c.parent_id.not_in(select(candidates.c.id)),
        )
        .correlate(_blobs)
    )
    rooted = (
        select(_blobs.c.id)
        .join(candidates, candidates.c.id == _blobs.c.id)
        .where(or_(_named(gone), _held_by(dead, flat=False), outside))
    )
    live = _below(rooted, "live")
    rows = connection.execute(
        select(_blobs, _held_by(dead, flat=True).label("flat"))
        .where(_blobs.c.id.in_(select(candidates.c.id)), _blobs.c.id.not_in(select(live.c.id)))
        .order_by(_blobs.c.digest)
    )
    return [_read(row) for row in rows]


def _read(row: Any) -> Garbage:
    return Garbage(Digest.parse(row.digest), row.size if row.present else 0, row.kind, bool(row.flat))


def recount(connection: Connection) -> int:
    """Set every counter to what its edges say; returns how many were wrong."""
    wrong = 0
    for table, counters in triggers.COUNTERS.items():
        for column, expression in counters.items():
            statement = f"UPDATE {table} SET {column} = {expression} WHERE {column} <> {expression}"  # noqa: S608
            wrong += connection.execute(text(statement)).rowcount
    return wrong


def unlink_unreachable(connection: Connection) -> int:
    """Mark from the roots, and drop the edges of counted documents that no root reaches.

    Counting misses circles, which only foreign hands can have made. Their edges gone, the
    counters fall and `collect` takes them. Returns how many documents that were.
    """
    live = _below(select(_blobs.c.id).where(or_(_named(), _held_by((), flat=False))), "live")
    lost = list(
        connection.execute(
            select(_blobs.c.id).where(
                _blobs.c.refcount > 0, _blobs.c.expanded, _blobs.c.id.not_in(select(live.c.id))
            )
        ).scalars()
    )
    _drop_edges(connection, lost)
    return len(lost)


def unexpanded(connection: Connection) -> Digest | None:
    """A document that something needs, is here, and whose edges are not recorded; gc must not run."""
    found = connection.execute(
        select(_blobs.c.digest)
        .where(
            _blobs.c.present,
            _blobs.c.expanded.is_(False),
            _blobs.c.refcount > 0,
            _blobs.c.kind.in_(["manifest", "index"]),
        )
        .limit(1)
    ).scalar()
    return None if found is None else Digest.parse(found)


def collect(connection: Connection, limit: int) -> list[Garbage]:
    """Take down some blobs whose counter is 0 and whose edges confirm it; again until none is left.

    A blob that no counted reference needs loses its outgoing edges, so that its children's
    counters fall. Its row goes too, unless a flat lease keeps its bytes, or a document still
    names it, when it stays as a stub. Triggers doom the file of what lost its row or presence.
    """
    counted = exists(
        select(_edges.c.id).where(_edges.c.child_id == _blobs.c.id, _edges.c.counted).correlate(_blobs)
    )
    flat = _blobs.c.flat_refcount > 0
    named = exists(select(_edges.c.id).where(_edges.c.child_id == _blobs.c.id).correlate(_blobs))
    # What would change nothing is left out: flat blobs without edges, stubs that are named.
    idle = or_(and_(flat, _blobs.c.expanded.is_(False)), and_(_blobs.c.present.is_(False), named))
    rows = connection.execute(
        select(_blobs, flat.label("flat"))
        .where(_blobs.c.refcount == 0, ~counted, ~_named(), ~_held_by((), flat=False), ~idle)
        .order_by(_blobs.c.id)
        .limit(limit)
    ).all()
    if rows:
        _take_down(connection, [row.id for row in rows if not row.flat], [row.id for row in rows])
    return [_read(row) for row in rows]


def _take_down(connection: Connection, gone: Sequence[int], collapsed: Sequence[int]) -> None:
    _drop_edges(connection, collapsed)
    for chunk in chunks(gone):
        named = exists(select(_edges.c.id).where(_edges.c.child_id == _blobs.c.id).correlate(_blobs))
        mine = _blobs.c.id.in_(chunk)
        connection.execute(update(_blobs).where(mine, named).values(present=False, damaged_at=None))
        connection.execute(delete(_blobs).where(mine, ~named))


def _drop_edges(connection: Connection, documents: Sequence[int]) -> None:
    """Forget what documents lead to, and that they refer to anything."""
    for chunk in chunks(documents):
        subjects = select(_edges.c.child_id).where(
            _edges.c.parent_id.in_(chunk), _edges.c.role == Role.SUBJECT
        )
        touched = list(connection.execute(subjects).scalars())
        # A referrer row is derived from the subject row that goes here.
        derived = and_(_edges.c.role == Role.REFERRER, _edges.c.child_id.in_(chunk))
        connection.execute(delete(_edges).where(or_(_edges.c.parent_id.in_(chunk), derived)))
        connection.execute(delete(table_of(Layer)).where(table_of(Layer).c.manifest_id.in_(chunk)))
        connection.execute(delete(table_of(Unpack)).where(table_of(Unpack).c.manifest_id.in_(chunk)))
        connection.execute(update(_blobs).where(_blobs.c.id.in_(chunk)).values(expanded=False))
        settle_referrers(connection, touched)


def doomed(connection: Connection, limit: int | None = None) -> list[Digest]:
    """Digests whose file is to be swept."""
    statement = select(_doomed.c.digest).order_by(_doomed.c.doomed_at, _doomed.c.digest).limit(limit)
    return [Digest.parse(digest) for digest in connection.execute(statement).scalars()]


def undoom(connection: Connection, digests: Collection[Digest]) -> None:
    """Forget digests whose files are gone, or whose rows are back."""
    for chunk in chunks(digests):
        connection.execute(delete(_doomed).where(_doomed.c.digest.in_([str(digest) for digest in chunk])))


def doomed_bytes(connection: Connection) -> tuple[int, int]:
    """How many files wait to be swept, and their bytes."""
    statement = select(func.count(), func.coalesce(func.sum(_doomed.c.size), 0))
    count, size = connection.execute(statement).one()
    return count, size
