"""Why a blob is kept: the ways from roots down to it, or since when nothing needs it.

Source: design §7, specification §5.2-5.3.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from imgdb.db import leases
from imgdb.db.models import Blob, DescriptorRow, Image, ImageHistory, Lease, LeaseResource
from imgdb.db.sql import chunks, table_of
from imgdb.oci.digest import Digest
from imgdb.oci.reference import familiar
from imgdb.oci.spec import Role

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sqlalchemy import Connection

    from imgdb.db.blobs import BlobRow

_blobs = table_of(Blob)
_edges = table_of(DescriptorRow)
_images = table_of(Image)
_history = table_of(ImageHistory)
_leases = table_of(Lease)
_resources = table_of(LeaseResource)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a way: a blob, and how the one before refers to it."""

    digest: Digest
    kind: str
    role: str


@dataclass(frozen=True, slots=True)
class Root:
    """Something that keeps a blob by itself.

    Attributes:
        kind: ``image``, ``dangling image``, ``pin``, ``lease``, ``flat lease`` or ``hold``.
        name: the image's familiar name, the lease's id, the hold's name.
    """

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Way:
    """From a root down to the blob that was asked about, which comes last."""

    root: Root
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Why:
    """The answer.

    Attributes:
        ways: one for each root, the shortest; empty for garbage.
        garbage_since: microseconds since the epoch, as far as history tells; None when kept.
        present: the blob's bytes are here.
    """

    digest: Digest
    size: int
    present: bool
    ways: tuple[Way, ...]
    garbage_since: int | None


def why(
    connection: Connection, blob: BlobRow, *, dead: Collection[str], held: Mapping[str, Collection[Digest]]
) -> Why:
    """Every root that keeps a blob, with the shortest way from it.

    Args:
        connection: one consistent view.
        blob: which.
        dead: ids of leases that count as gone.
        held: digests that live holds list, by hold.
    """
    down = _ways_down(connection, blob.id)
    roots = _roots(connection, down.keys(), dead)
    ways = [Way(root, down[start]) for start, found in roots.items() for root in found]
    flat = [
        Way(root, down[blob.id])
        for root in _leases_on(connection, [blob.id], dead, flat=True).get(blob.id, [])
    ]
    holds = [
        Way(Root("hold", name), down[blob.id])
        for name, digests in sorted(held.items())
        if blob.digest in digests
    ]
    found = sorted(ways + flat, key=lambda way: (way.root.kind, way.root.name)) + holds
    since = None if found else _garbage_since(connection, down, blob)
    return Why(blob.digest, blob.size, blob.present, tuple(found), since)


def _ways_down(connection: Connection, start: int) -> dict[int, tuple[Step, ...]]:
    """Ancestors by counted edges, each with the shortest way down to the blob."""
    above = select(_blobs.c.id).where(_blobs.c.id == start).cte("above", recursive=True)
    above = above.union(
        select(_edges.c.parent_id).join(above, _edges.c.child_id == above.c.id).where(_edges.c.counted)
    )
    ids = select(above.c.id)
    blobs = {
        row.id: row
        for row in connection.execute(
            select(_blobs.c.id, _blobs.c.digest, _blobs.c.kind).where(_blobs.c.id.in_(ids))
        )
    }
    parents: dict[int, list[tuple[int, str]]] = {}
    rows = connection.execute(
        select(_edges.c.parent_id, _edges.c.child_id, _edges.c.role)
        .where(_edges.c.counted, _edges.c.child_id.in_(ids))
        .order_by(_edges.c.parent_id)
    )
    for row in rows:
        parents.setdefault(row.child_id, []).append((row.parent_id, row.role))

    def step(blob: int, role: str) -> Step:
        return Step(Digest.parse(blobs[blob].digest), blobs[blob].kind, role)

    ways: dict[int, tuple[Step, ...]] = {start: (step(start, ""),)}
    pending = deque([start])
    while pending:
        child = pending.popleft()
        for parent, role in parents.get(child, []):
            if parent not in ways:
                first, rest = ways[child][0], ways[child][1:]
                ways[parent] = (step(parent, ""), Step(first.digest, first.kind, role), *rest)
                pending.append(parent)
    return ways


def _roots(connection: Connection, ids: Iterable[int], dead: Collection[str]) -> dict[int, list[Root]]:
    wanted = list(ids)
    found = _leases_on(connection, wanted, dead, flat=False)
    for chunk in chunks(wanted):
        rows = connection.execute(
            select(_images.c.target_id, _images.c.name).where(_images.c.target_id.in_(chunk))
        )
        for row in rows:
            dangling = row.name.startswith("moby-dangling@")
            name = row.name.partition("@")[2] if dangling else familiar(row.name)
            root = Root("dangling image" if dangling else "image", name)
            found.setdefault(row.target_id, []).append(root)
    return found


def _leases_on(
    connection: Connection, ids: Iterable[int], dead: Collection[str], *, flat: bool
) -> dict[int, list[Root]]:
    found: dict[int, list[Root]] = {}
    statement = (
        select(_blobs.c.id, _leases.c.id.label("lease"), _leases.c.labels)
        .join(_resources, _resources.c.key == _blobs.c.digest)
        .join(_leases, _leases.c.id == _resources.c.lease_id)
        .where(_resources.c.type == leases.CONTENT, _leases.c.flat == flat)
        .order_by(_leases.c.id)
    )
    for chunk in chunks(ids):
        for row in connection.execute(statement.where(_blobs.c.id.in_(chunk))):
            if row.lease in dead:
                continue
            pin = row.labels.get(leases.PIN)
            kind = "flat lease" if flat else "pin" if pin else "lease"
            found.setdefault(row.id, []).append(Root(kind, familiar(pin) if pin else row.lease))
    return found


def _garbage_since(connection: Connection, ways: Mapping[int, tuple[Step, ...]], blob: BlobRow) -> int:
    """When the last name went that led here, else when the blob came."""
    digests = [str(way[0].digest) for way in ways.values()]
    latest = 0
    for chunk in chunks(digests):
        statement = select(func.max(_history.c.until_at)).where(_history.c.digest.in_(chunk))
        latest = max(latest, connection.execute(statement).scalar() or 0)
    return latest or blob.created_at


def kept_by(connection: Connection, dead: Collection[str]) -> dict[Digest, Root]:
    """One root for each blob that something keeps: for explaining a whole collection."""
    digests = {
        row.id: Digest.parse(row.digest) for row in connection.execute(select(_blobs.c.id, _blobs.c.digest))
    }
    children: dict[int, list[int]] = {}
    for row in connection.execute(
        select(_edges.c.parent_id, _edges.c.child_id).where(_edges.c.counted, _edges.c.role != Role.SUBJECT)
    ):
        children.setdefault(row.parent_id, []).append(row.child_id)
    reached: dict[int, Root] = {}
    for start, roots in sorted(_roots(connection, digests, dead).items()):
        pending = [start]
        while pending:
            blob = pending.pop()
            if blob not in reached:
                reached[blob] = roots[0]
                pending += children.get(blob, [])
    for blob, roots in _leases_on(connection, digests, dead, flat=True).items():
        reached.setdefault(blob, roots[0])
    return {digests[blob]: root for blob, root in reached.items()}
