"""What nothing needs: nominated by counters, confirmed by edges, taken down level by level.

The plan is exact and costs time in proportion to the garbage: C is what the candidates lead
to, live is what within C has a root or a parent outside C, with what that leads to; garbage
is C less live. Expired leases count as gone. Functions never commit. Source: design §4.6-4.8.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, delete, exists, func, or_, select, text, update

from imgdb.db import triggers
from imgdb.db.graph import settle_referrers
from imgdb.db.models import Blob, DescriptorRow, Doomed, Image, Layer, Lease, LeaseResource, Unpack
from imgdb.db.sql import chunks, table_of
from imgdb.oci.digest import Digest
from imgdb.oci.spec import Role

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import CTE, Connection, Select

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
        size: bytes; of one that is not here, what its descriptor says.
        present: its file is here.
        flat: a flat lease keeps its bytes; only what it leads to is let go.
    """

    digest: Digest
    size: int
    kind: str
    present: bool
    flat: bool

    @property
    def frees(self) -> bool:
        """Whether a file goes with it."""
        return self.present and not self.flat


def _listed(column: Any, parameter: str) -> Any:
    """IN a list that is one parameter, as JSON: a list of names may be longer than SQLite takes variables."""
    return column.in_(select(func.json_each(bindparam(parameter)).table_valued("value").c.value))


def _held_by(*, flat: bool, but: str = "") -> Any:
    """EXISTS: a lease lists the blob; `but` is the parameter with leases that count as gone."""
    statement = (
        select(_resources.c.key)
        .join(_leases, _leases.c.id == _resources.c.lease_id)
        .where(
            _resources.c.type == CONTENT,
            _resources.c.key == _blobs.c.digest,
            _leases.c.flat == flat,
        )
    )
    return exists((statement.where(~_listed(_leases.c.id, but)) if but else statement).correlate(_blobs))


def _named(*, but: str = "") -> Any:
    """EXISTS: an image points to the blob; `but` is the parameter with names that count as removed."""
    statement = select(_images.c.id).where(_images.c.target_id == _blobs.c.id)
    return exists((statement.where(~_listed(_images.c.name, but)) if but else statement).correlate(_blobs))


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
    return _planned(connection, _plan_statement(), dead, gone)


def plan_full(
    connection: Connection, *, dead: Collection[str] = (), gone: Collection[str] = ()
) -> list[Garbage]:
    """The same for a collection that counts again and marks: whatever no root reaches.

    Costs time in proportion to the store. Args as `plan`.
    """
    return _planned(connection, _full_plan_statement(), dead, gone)


def _planned(
    connection: Connection, statement: Select[Any], dead: Collection[str], gone: Collection[str]
) -> list[Garbage]:
    lists = {"dead": json.dumps(list(dead)), "gone": json.dumps(list(gone))}
    return [_read(row) for row in connection.execute(statement, lists)]


@cache
def _full_plan_statement() -> Select[Any]:
    rooted = or_(_named(but="gone"), _held_by(flat=False, but="dead"))
    live = _below(select(_blobs.c.id).where(rooted), "live")
    return (
        select(_blobs, _held_by(flat=True, but="dead").label("flat"))
        .where(_blobs.c.id.not_in(select(live.c.id)))
        .order_by(_blobs.c.digest)
    )


@cache
def _plan_statement() -> Select[Any]:
    removed = select(_images.c.target_id).where(_listed(_images.c.name, "gone"))
    let_go = select(_resources.c.key).where(
        _resources.c.type == CONTENT, _listed(_resources.c.lease_id, "dead")
    )
    seeds = select(_blobs.c.id).where(
        or_(_blobs.c.refcount == 0, _blobs.c.id.in_(removed), _blobs.c.digest.in_(let_go))
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
        .where(or_(_named(but="gone"), _held_by(flat=False, but="dead"), outside))
    )
    live = _below(rooted, "live")
    return (
        select(_blobs, _held_by(flat=True, but="dead").label("flat"))
        .where(_blobs.c.id.in_(select(candidates.c.id)), _blobs.c.id.not_in(select(live.c.id)))
        .order_by(_blobs.c.digest)
    )


def _read(row: Any) -> Garbage:
    return Garbage(Digest.parse(row.digest), row.size, row.kind, bool(row.present), bool(row.flat))


def recount(connection: Connection) -> int:
    """Set every counter to what its edges say; returns how many were wrong."""
    wrong = 0
    for table, counters in triggers.COUNTERS.items():
        for column, expression in counters.items():
            statement = f"UPDATE {table} SET {column} = {expression} WHERE {column} <> {expression}"  # noqa: S608
            wrong += connection.execute(text(statement)).rowcount
    return wrong


def miscounted(connection: Connection) -> bool:
    """Whether `recount` has anything to do; a question, since counting again takes its time."""
    return any(
        connection.execute(text(f"SELECT 1 FROM {table} WHERE {column} <> {expression} LIMIT 1")).first()  # noqa: S608
        for table, counters in triggers.COUNTERS.items()
        for column, expression in counters.items()
    )


def unreachable(connection: Connection) -> list[int]:
    """Row ids of documents with edges that no root reaches, for counting misses circles.

    Only foreign hands can have made one.
    """
    return list(connection.execute(_unreachable_statement()).scalars())


@cache
def _unreachable_statement() -> Select[Any]:
    live = _below(select(_blobs.c.id).where(or_(_named(), _held_by(flat=False))), "live")
    return select(_blobs.c.id).where(_blobs.c.expanded, _blobs.c.id.not_in(select(live.c.id)))


def unlink_unreachable(connection: Connection) -> int:
    """Drop the edges of all those documents at once, so that none of them counts for another.

    Then their counters are 0, and `collect` takes them.
    """
    lost = unreachable(connection)
    _drop_edges(connection, lost)
    return len(lost)


def unexpanded(connection: Connection) -> Digest | None:
    """A document that something needs, is here, and whose edges are not recorded; gc must not run."""
    found = connection.execute(_unexpanded_statement()).scalar()
    return None if found is None else Digest.parse(found)


@cache
def _unexpanded_statement() -> Select[Any]:
    # By edges and not by the counter: one that is too high is put right by a full collection.
    needed = or_(_refers(_edges.c.counted), _named(), _held_by(flat=False))
    return (
        select(_blobs.c.digest)
        .where(
            _blobs.c.kind.in_(["manifest", "index"]), _blobs.c.expanded.is_(False), _blobs.c.present, needed
        )
        .limit(1)
    )


def collect(connection: Connection, limit: int) -> list[Garbage]:
    """Take down some blobs whose counter is 0 and whose edges confirm it; again until none is left.

    A blob that no counted reference needs loses its outgoing edges, so that its children's
    counters fall. Its row goes too, unless a flat lease keeps its bytes, or a document still
    names it, when it stays as a stub. Triggers doom the file of what lost its row or presence.
    """
    rows = connection.execute(_collect_statement(), {"most": limit}).all()
    if rows:
        _take_down(connection, [row.id for row in rows if not row.flat], [row.id for row in rows])
    return [_read(row) for row in rows]


def _refers(*conditions: Any) -> Any:
    """EXISTS: a document refers to the blob."""
    return exists(select(_edges.c.id).where(_edges.c.child_id == _blobs.c.id, *conditions).correlate(_blobs))


@cache
def _collect_statement() -> Select[Any]:
    flat = _blobs.c.flat_refcount > 0
    # What would change nothing is left out: flat blobs without edges, stubs that are named.
    idle = or_(and_(flat, _blobs.c.expanded.is_(False)), and_(_blobs.c.present.is_(False), _refers()))
    return (
        select(_blobs, flat.label("flat"))
        .where(_blobs.c.refcount == 0, ~_refers(_edges.c.counted), ~_named(), ~_held_by(flat=False), ~idle)
        .order_by(_blobs.c.id)
        .limit(bindparam("most"))
    )


def _take_down(connection: Connection, gone: Sequence[int], collapsed: Sequence[int]) -> None:
    _drop_edges(connection, collapsed)
    for chunk in chunks(gone):
        mine = _blobs.c.id.in_(chunk)
        connection.execute(update(_blobs).where(mine, _refers()).values(present=False, damaged_at=None))
        connection.execute(delete(_blobs).where(mine, ~_refers()))


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


def undoom(
    connection: Connection, digests: Collection[Digest], gone: Collection[Digest] | None = None
) -> None:
    """Forget digests: those that are gone, and those whose rows are back; all, where `gone` is None."""
    back = exists(select(_blobs.c.id).where(_blobs.c.digest == _doomed.c.digest, _blobs.c.present))
    for chunk in chunks(digests):
        mine: Any = _doomed.c.digest.in_([str(digest) for digest in chunk])
        if gone is not None:
            away = _doomed.c.digest.in_([str(digest) for digest in set(gone).intersection(chunk)])
            mine = and_(mine, or_(away, back.correlate(_doomed)))
        connection.execute(delete(_doomed).where(mine))


def doomed_bytes(connection: Connection) -> tuple[int, int]:
    """How many files wait to be swept, and their bytes."""
    statement = select(func.count(), func.coalesce(func.sum(_doomed.c.size), 0))
    count, size = connection.execute(statement).one()
    return count, size
