"""Snapshots in the database: their rules, their chains, what is unpacked from what.

Kinds are containerd's: *active* (writable), *view* (read-only), *committed* (never changes, may
be a parent). Directories are somebody else's; a row is written when its directory is durable.
Functions never commit. Source: specification §7.2; design §3, §4.9.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, delete, exists, func, insert, or_, select, update

from imgdb.db.models import Blob, Layer, Lease, LeaseResource, Mount, Snapshot, Unpack
from imgdb.db.sql import chunks, insert_into, table_of
from imgdb.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from imgdb.oci.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy import Connection, Select

ACTIVE, VIEW, COMMITTED = "active", "view", "committed"
_A = {ACTIVE: "active", VIEW: "a view", COMMITTED: "committed"}
STANDALONE = "io.imgdb.standalone"
"""Label of a snapshot whose own directory is everything: nothing of its parents is seen."""

_SHORT = re.compile("sha256:[0-9a-f]{4,63}")

_snapshots = table_of(Snapshot)
_unpacks = table_of(Unpack)
_mounts = table_of(Mount)
_layers = table_of(Layer)
_blobs = table_of(Blob)
_resources = table_of(LeaseResource)


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A snapshot; times in microseconds since the epoch.

    Attributes:
        id: names its directory.
        kind: active, view or committed.
        parent: key of the one below; None for none.
        chain_id: of a layer that was unpacked; None for what somebody made by hand.
        usage_bytes, usage_inodes: of its own directory; None for active ones, which change.
        refcount: children, unpacked manifests, mounts and leases.
    """

    id: int
    key: str
    kind: str
    parent: str | None
    chain_id: str | None
    labels: Mapping[str, str]
    usage_bytes: int | None
    usage_inodes: int | None
    refcount: int
    created_at: int
    updated_at: int

    @property
    def is_standalone(self) -> bool:
        """Whether nothing of its parents is seen."""
        return STANDALONE in self.labels


@dataclass(frozen=True, slots=True)
class NewSnapshot:
    """A snapshot whose directory is there and durable."""

    id: int
    key: str
    kind: str
    parent: str | None
    chain_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    usage_bytes: int | None = None
    usage_inodes: int | None = None


def description(
    key: str, kind: str, parent: str | None, chain_id: str | None, labels: Mapping[str, str]
) -> dict[str, Any]:
    """What is written down beside a snapshot, so that its row can be made again."""
    return {"key": key, "kind": kind, "parent": parent, "chain_id": chain_id, "labels": dict(labels)}


@dataclass(frozen=True, slots=True)
class LayerToUnpack:
    """A layer of a manifest; `diff_id` and `chain_id` None where its config doesn't tell."""

    digest: Digest
    media_type: str
    diff_id: Digest | None
    chain_id: str | None


# -- reading ---------------------------------------------------------------------------------


def _query() -> Select[Any]:
    parent = _snapshots.alias("parent")
    return select(_snapshots, parent.c.key.label("parent")).outerjoin(
        parent, parent.c.id == _snapshots.c.parent_id
    )


def _read(row: Any) -> SnapshotRecord:
    return SnapshotRecord(
        id=row.id,
        key=row.key,
        kind=row.kind,
        parent=row.parent,
        chain_id=row.chain_id,
        labels=row.labels,
        usage_bytes=row.usage_bytes,
        usage_inodes=row.usage_inodes,
        refcount=row.refcount,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def find(connection: Connection, key: str) -> SnapshotRecord | None:
    """The snapshot, or None."""
    row = connection.execute(_query().where(_snapshots.c.key == key)).first()
    return None if row is None else _read(row)


def look_up(connection: Connection, key: str) -> SnapshotRecord | None:
    """The snapshot of a key, or of the beginning of a chain ID when that is the only one; or None."""
    exact = find(connection, key)
    if exact is not None or not _SHORT.fullmatch(key):
        return exact
    rows = connection.execute(_query().where(_snapshots.c.key.like(f"{key}%")).limit(2)).all()
    return _read(rows[0]) if len(rows) == 1 else None


def get(connection: Connection, key: str) -> SnapshotRecord:
    """The snapshot; `key` may be the beginning of a chain ID.

    Raises:
        NotFoundError: there is none.
    """
    record = look_up(connection, key)
    if record is None:
        raise NotFoundError(f"no snapshot {key}; imgdb snapshot ls lists them")
    return record


def listing(connection: Connection) -> list[SnapshotRecord]:
    """All snapshots, parents before their children."""
    return [_read(row) for row in connection.execute(_query().order_by(_snapshots.c.id))]


def largest_id(connection: Connection) -> int:
    """The largest id of any row; 0 without rows."""
    return int(connection.execute(select(func.coalesce(func.max(_snapshots.c.id), 0))).scalar_one())


def ids(connection: Connection, keys: Collection[str]) -> dict[str, int]:
    """Ids of those of some keys that exist."""
    found: dict[str, int] = {}
    for chunk in chunks(keys):
        rows = connection.execute(
            select(_snapshots.c.key, _snapshots.c.id).where(_snapshots.c.key.in_(chunk))
        )
        found |= {row.key: row.id for row in rows}
    return found


def known(connection: Connection, ids: Collection[int]) -> set[int]:
    """Those of some ids that have a row."""
    found: set[int] = set()
    for chunk in chunks(ids):
        found.update(connection.execute(select(_snapshots.c.id).where(_snapshots.c.id.in_(chunk))).scalars())
    return found


def stack(connection: Connection, top: int) -> list[int]:
    """Ids of the layers that make up a snapshot, itself first; ends where one is standalone."""
    chain = (
        select(_snapshots.c.id, _snapshots.c.parent_id, _snapshots.c.labels, bindparam("zero", 0).label("n"))
        .where(_snapshots.c.id == top)
        .cte("chain", recursive=True)
    )
    below = select(_snapshots.c.id, _snapshots.c.parent_id, _snapshots.c.labels, chain.c.n + 1)
    chain = chain.union_all(below.join(chain, _snapshots.c.id == chain.c.parent_id))
    layers = []
    for row in connection.execute(select(chain.c.id, chain.c.labels).order_by(chain.c.n)):
        layers.append(row.id)
        if STANDALONE in row.labels:
            break
    return layers


# -- changing --------------------------------------------------------------------------------


def check_new(connection: Connection, key: str, parent: str | None) -> None:
    """See whether a snapshot may be made.

    Raises:
        InvalidArgumentError: the key is empty, or the parent is not committed.
        AlreadyExistsError: the key is taken.
        NotFoundError: the parent does not exist.
    """
    if not key:
        raise InvalidArgumentError("a snapshot needs a key that is not empty")
    if find(connection, key) is not None:
        raise AlreadyExistsError(f"snapshot {key} exists")
    if parent is None:
        return
    below = find(connection, parent)
    if below is None:
        raise NotFoundError(f"no snapshot {parent} to be the parent of {key}")
    if below.kind != COMMITTED:
        raise InvalidArgumentError(
            f"snapshot {parent} is {_A[below.kind]}, and only a committed one can be a parent"
        )


def add(connection: Connection, new: NewSnapshot, at: int) -> SnapshotRecord:
    """Write the row of a new snapshot; errors as `check_new`."""
    check_new(connection, new.key, new.parent)
    parent = None if new.parent is None else get(connection, new.parent).id
    values = {
        "id": new.id,
        "key": new.key,
        "kind": new.kind,
        "parent_id": parent,
        "chain_id": new.chain_id,
        "labels": dict(new.labels),
        "usage_bytes": new.usage_bytes,
        "usage_inodes": new.usage_inodes,
        "created_at": at,
        "updated_at": at,
    }
    connection.execute(insert(_snapshots), [values])
    return get(connection, new.key)


def check_commit(connection: Connection, name: str, key: str) -> SnapshotRecord:
    """See whether an active snapshot may become a committed one of another key.

    Raises:
        NotFoundError: there is no snapshot `key`.
        FailedPreconditionError: it is a view, committed, or mounted.
        AlreadyExistsError: `name` is taken.
        InvalidArgumentError: `name` is empty.
    """
    record = get(connection, key)
    if record.kind != ACTIVE:
        raise FailedPreconditionError(
            f"snapshot {key} is {_A[record.kind]}, and only an active one can be committed"
        )
    if not name:
        raise InvalidArgumentError("a snapshot needs a key that is not empty")
    if find(connection, name) is not None:
        raise AlreadyExistsError(f"snapshot {name} exists")
    target = connection.execute(select(_mounts.c.target).where(_mounts.c.snapshot_id == record.id)).scalar()
    if target is not None:
        raise FailedPreconditionError(f"snapshot {key} is mounted at {target}; imgdb umount {target} first")
    return record


def promote(
    connection: Connection, name: str, key: str, labels: Mapping[str, str], usage: tuple[int, int], at: int
) -> SnapshotRecord:
    """Turn an active snapshot into a committed one; its key disappears. Errors as `check_commit`.

    Args:
        connection: inside a write transaction.
        name: the new key.
        key: the active one.
        labels: replace those that it had, as containerd has it.
        usage: bytes and inodes of its directory.
        at: microseconds since the epoch.
    """
    old = check_commit(connection, name, key)
    connection.execute(delete(_snapshots).where(_snapshots.c.id == old.id))
    kept = {STANDALONE: old.labels[STANDALONE]} if old.is_standalone else {}
    new = NewSnapshot(old.id, name, COMMITTED, old.parent, None, kept | dict(labels), *usage)
    return add(connection, new, at)


def set_labels(connection: Connection, key: str, labels: Mapping[str, str], at: int) -> None:
    """Replace a snapshot's labels; NotFoundError where there is none."""
    record = get(connection, key)
    values = {"labels": dict(labels), "updated_at": at}
    connection.execute(update(_snapshots).where(_snapshots.c.id == record.id).values(values))


def remove(connection: Connection, key: str) -> SnapshotRecord:
    """Delete a snapshot's row.

    Raises:
        NotFoundError: there is none.
        FailedPreconditionError: it has children, is mounted, or an image is unpacked into it.
    """
    record = get(connection, key)
    child = connection.execute(select(_snapshots.c.key).where(_snapshots.c.parent_id == record.id)).scalar()
    if child is not None:
        raise FailedPreconditionError(f"snapshot {key} has children, {child} among them; remove them first")
    target = connection.execute(select(_mounts.c.target).where(_mounts.c.snapshot_id == record.id)).scalar()
    if target is not None:
        raise FailedPreconditionError(f"snapshot {key} is mounted at {target}; imgdb umount {target} first")
    # What was unpacked can be unpacked again.
    connection.execute(delete(_unpacks).where(_unpacks.c.snapshot_id == record.id))
    connection.execute(delete(_snapshots).where(_snapshots.c.id == record.id))
    return record


# -- unpacked images -------------------------------------------------------------------------


def layers_of(connection: Connection, manifest: Digest) -> list[LayerToUnpack]:
    """The layers of a manifest, lowest first."""
    top = _blobs.alias("top")
    rows = connection.execute(
        select(_blobs.c.digest, _blobs.c.media_type, _layers.c.diff_id, _layers.c.chain_id)
        .join(_layers, _layers.c.layer_id == _blobs.c.id)
        .join(top, top.c.id == _layers.c.manifest_id)
        .where(top.c.digest == str(manifest))
        .order_by(_layers.c.position)
    )
    return [
        LayerToUnpack(
            Digest.parse(row.digest),
            row.media_type,
            None if row.diff_id is None else Digest.parse(row.diff_id),
            row.chain_id,
        )
        for row in rows
    ]


def put_unpack(connection: Connection, manifest: Digest, key: str, at: int) -> None:
    """Note that a manifest is unpacked into a snapshot; NotFoundError where either is gone."""
    blob = connection.execute(select(_blobs.c.id).where(_blobs.c.digest == str(manifest))).scalar()
    if blob is None:
        raise NotFoundError(f"manifest {manifest} was removed meanwhile")
    values = {"manifest_id": blob, "snapshot_id": get(connection, key).id, "created_at": at}
    statement = insert_into(connection, Unpack).values(values)
    change = {"snapshot_id": statement.excluded.snapshot_id}
    connection.execute(statement.on_conflict_do_update(index_elements=["manifest_id"], set_=change))


def unpacked(connection: Connection, manifests: Collection[Digest]) -> dict[Digest, str]:
    """Those of some manifests that are unpacked, each with its top snapshot's key."""
    found: dict[Digest, str] = {}
    for chunk in chunks(map(str, manifests)):
        rows = connection.execute(
            select(_blobs.c.digest, _snapshots.c.key)
            .join(_unpacks, _unpacks.c.manifest_id == _blobs.c.id)
            .join(_snapshots, _snapshots.c.id == _unpacks.c.snapshot_id)
            .where(_blobs.c.digest.in_(chunk))
        )
        found |= {Digest.parse(row.digest): row.key for row in rows}
    return found


def tie_unpacked(connection: Connection) -> None:
    """Note for every manifest whose topmost layer's snapshot is here that it is unpacked."""
    upper = _layers.alias("upper")
    topmost = ~exists(
        select(upper.c.position)
        .where(upper.c.manifest_id == _layers.c.manifest_id, upper.c.position > _layers.c.position)
        .correlate(_layers)
    )
    found = (
        select(_layers.c.manifest_id, _snapshots.c.id, _snapshots.c.created_at)
        .join(_snapshots, _snapshots.c.key == _layers.c.chain_id)
        .where(topmost, _snapshots.c.chain_id == _layers.c.chain_id)
    )
    values = [
        {"manifest_id": row.manifest_id, "snapshot_id": row.id, "created_at": row.created_at}
        for row in connection.execute(found)
    ]
    for chunk in chunks(values):
        connection.execute(insert_into(connection, Unpack).on_conflict_do_nothing(), chunk)


# -- garbage ---------------------------------------------------------------------------------


def _unneeded() -> Any:
    """Committed, counted as needed by nothing, and confirmed by the edges."""
    child = _snapshots.alias("child")
    lease = table_of(Lease)
    edges = (
        select(child.c.id).where(child.c.parent_id == _snapshots.c.id),
        select(_unpacks.c.manifest_id).where(_unpacks.c.snapshot_id == _snapshots.c.id),
        select(_mounts.c.id).where(_mounts.c.snapshot_id == _snapshots.c.id),
        select(_resources.c.key)
        .join(lease, lease.c.id == _resources.c.lease_id)
        .where(_resources.c.type == "snapshots", _resources.c.key == _snapshots.c.key),
    )
    needed = or_(*(exists(edge.correlate(_snapshots)) for edge in edges))
    return and_(_snapshots.c.kind == COMMITTED, _snapshots.c.refcount == 0, ~needed)


def has_garbage(connection: Connection) -> bool:
    """Whether `collect` would find something; a question, which locks nobody out."""
    return connection.execute(select(_snapshots.c.id).where(_unneeded()).limit(1)).first() is not None


def collect(connection: Connection, limit: int) -> list[SnapshotRecord]:
    """Delete some committed snapshots that nothing needs; again until none is left.

    Children go before their parents, since a child is a reference.
    """
    statement = _query().where(_unneeded()).order_by(_snapshots.c.id.desc()).limit(limit)
    found = [_read(row) for row in connection.execute(statement)]
    connection.execute(delete(_snapshots).where(_snapshots.c.id.in_([record.id for record in found])))
    return found


def plan(
    connection: Connection, *, manifests: Collection[Digest] = (), dead: Sequence[str] = ()
) -> list[SnapshotRecord]:
    """What `collect` would take, level after level, children first.

    Args:
        connection: one consistent view.
        manifests: that count as removed.
        dead: ids of leases that count as gone.
    """
    records = {record.id: record for record in listing(connection)}
    if not records:
        return []
    id_of = {record.key: record.id for record in records.values()}
    needs = dict.fromkeys(records, 0)
    for record in records.values():
        if record.parent is not None:
            needs[id_of[record.parent]] += 1
    for number in _referring(connection, manifests, dead):
        needs[number] += 1
    garbage = []
    pending = [n for n in reversed(records) if not needs[n] and records[n].kind == COMMITTED]
    while pending:
        record = records[pending.pop(0)]
        garbage.append(record)
        if record.parent is not None:
            below = id_of[record.parent]
            needs[below] -= 1
            if not needs[below] and records[below].kind == COMMITTED:
                pending.append(below)
    return garbage


def _referring(connection: Connection, manifests: Collection[Digest], dead: Sequence[str]) -> list[int]:
    """Ids of snapshots, once for each unpacked manifest, mount and lease resource that stays."""
    gone = {str(digest) for digest in manifests}
    rows = connection.execute(
        select(_unpacks.c.snapshot_id, _blobs.c.digest).join(_blobs, _blobs.c.id == _unpacks.c.manifest_id)
    )
    found = [row.snapshot_id for row in rows if row.digest not in gone]
    found += connection.execute(select(_mounts.c.snapshot_id)).scalars()
    over = func.json_each(json.dumps(list(dead))).table_valued("value").c.value
    found += connection.execute(
        select(_snapshots.c.id)
        .join(_resources, _resources.c.key == _snapshots.c.key)
        .where(_resources.c.type == "snapshots", _resources.c.lease_id.not_in(select(over)))
    ).scalars()
    return found
