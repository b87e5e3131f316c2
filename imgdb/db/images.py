"""Image rows: names and what they point to; resolving what a user typed.

Lists are ordered by name, so that "the first" means the same everywhere.
Source: specification §1.4-1.7, §8.0-8.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, func, or_, select, update

from imgdb.db import sql
from imgdb.db.models import Blob, DescriptorRow, Image
from imgdb.db.sql import insert_into, table_of
from imgdb.errors import InvalidArgumentError, NotFoundError
from imgdb.oci.digest import Digest
from imgdb.oci.reference import (
    Reference,
    dangling_name,
    familiar,
    parse_any,
    parse_normalized,
    short_id_hex,
)
from imgdb.oci.spec import IMAGE_NAME, REF_NAME, Descriptor, Role

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Connection, Select

_images = table_of(Image)
_blobs = table_of(Blob)
_edges = table_of(DescriptorRow)
_TAGS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One name.

    Attributes:
        name: canonical, or ``moby-dangling@<digest>``.
        target: the descriptor it points to.
        created_at, updated_at, last_used_at: microseconds since the epoch, UTC.
    """

    name: str
    target: Descriptor
    labels: Mapping[str, str]
    created_at: int
    updated_at: int
    last_used_at: int | None

    @property
    def is_dangling(self) -> bool:
        """True when the record only keeps an untagged image alive."""
        return self.name == dangling_name(self.target.digest)

    @property
    def display_name(self) -> str:
        """Familiar name with tag; of a dangling image its digest."""
        return str(self.target.digest) if self.is_dangling else familiar(self.name)


def _query() -> Select[Any]:
    return (
        select(_images, _blobs.c.digest)
        .join(_blobs, _blobs.c.id == _images.c.target_id)
        .order_by(_images.c.name)
    )


def _read(row: Any) -> ImageRecord:
    return ImageRecord(
        name=row.name,
        target=sql.read_descriptor(row, row.digest),
        labels=row.labels,
        created_at=row.created_at,
        updated_at=row.updated_at,
        last_used_at=row.last_used_at,
    )


def listing(connection: Connection) -> list[ImageRecord]:
    """All names."""
    return [_read(row) for row in connection.execute(_query())]


def count(connection: Connection) -> int:
    """How many names there are."""
    return connection.execute(select(func.count()).select_from(_images)).scalar_one()


def get(connection: Connection, name: str) -> ImageRecord | None:
    """The record of a canonical name."""
    row = connection.execute(_query().where(_images.c.name == name)).first()
    return None if row is None else _read(row)


def by_names(connection: Connection, names: Collection[str]) -> dict[str, ImageRecord]:
    """Those of some canonical names that exist."""
    found: dict[str, ImageRecord] = {}
    for chunk in sql.chunks(names):
        found |= {
            row.name: _read(row) for row in connection.execute(_query().where(_images.c.name.in_(chunk)))
        }
    return found


def by_targets(connection: Connection, digests: Collection[Digest]) -> list[ImageRecord]:
    """All names of some targets."""
    found: list[ImageRecord] = []
    for chunk in sql.chunks(digests):
        statement = _query().where(_blobs.c.digest.in_([str(digest) for digest in chunk]))
        found += [_read(row) for row in connection.execute(statement)]
    return found


def of_repository(connection: Connection, repository: str) -> list[ImageRecord]:
    """The tagged names of a repository (``domain/path``); digest records are left out."""
    statement = _query().where(func.substr(_images.c.name, 1, len(repository) + 1) == f"{repository}:")
    return [_read(row) for row in connection.execute(statement) if "@" not in row.name]


def put(
    connection: Connection, name: str, target: Descriptor, *, at: int, labels: Mapping[str, str] | None = None
) -> None:
    """Create a name or move it; `created_at` of an existing one stays, its history is kept."""
    # Names inside the descriptor would go stale as soon as it is tagged again.
    notes = {k: v for k, v in target.annotations.items() if k not in {IMAGE_NAME, REF_NAME}}
    values = {
        **sql.descriptor_values(target),
        "annotations": notes or None,
        "name": name,
        "target_id": _row_id(target.digest),
        "labels": dict(labels or {}),
        "created_at": at,
        "updated_at": at,
    }
    insert = insert_into(connection, Image).values(values)
    kept = {"name", "created_at"} | ({"labels"} if labels is None else set())
    changed = {key: insert.excluded[key] for key in values if key not in kept}
    connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=changed))


def keep_as_dangling(connection: Connection, name: str, *, at: int) -> bool:
    """Before a name goes or moves: keep its target as dangling when no other name has it."""
    record = get(connection, name)
    if record is None or record.is_dangling or len(by_targets(connection, [record.target.digest])) > 1:
        return False
    put(connection, dangling_name(record.target.digest), record.target, at=at, labels=record.labels)
    return True


def drop_useless_dangling(connection: Connection, digests: Collection[Digest]) -> None:
    """A dangling record goes as soon as another name has its target."""
    records = by_targets(connection, digests)
    named = {record.target.digest for record in records if not record.is_dangling}
    for record in records:
        if record.is_dangling and record.target.digest in named:
            remove(connection, record.name)


def _row_id(digest: Digest) -> Any:
    """A subquery for the row id of a digest."""
    return select(_blobs.c.id).where(_blobs.c.digest == str(digest)).scalar_subquery()


def remove(connection: Connection, name: str) -> bool:
    """Delete a name; False when it does not exist."""
    return connection.execute(delete(_images).where(_images.c.name == name)).rowcount > 0


def touch(connection: Connection, names: Collection[str], at: int, *, coarse_us: int) -> None:
    """Remember use, at most once per `coarse_us` so that reading stores seldom writes."""
    for chunk in sql.chunks(names):
        stale = or_(_images.c.last_used_at.is_(None), _images.c.last_used_at < at - coarse_us)
        connection.execute(update(_images).where(_images.c.name.in_(chunk), stale).values(last_used_at=at))


def resolve(connection: Connection, argument: str) -> list[ImageRecord]:
    """Find what a user typed: a name, an image ID, a short ID, or last a config digest.

    Returns:
        Records of one and the same target. The first is the one that was meant; where the
        argument was an ID, there may be more names of it.

    Raises:
        InvalidArgumentError: no name and no ID.
        NotFoundError: nothing matches, or several images do.
    """
    try:
        parsed = parse_any(argument)
    except InvalidArgumentError as error:
        hexdigits = short_id_hex(argument)
        found = _by_short_id(connection, argument, hexdigits, None) if hexdigits else []
        if not found:
            raise InvalidArgumentError(f"{argument!r} is neither an image name nor an ID: {error}") from None
        return found
    if isinstance(parsed, Digest):
        return _by_digest(connection, argument, parsed)
    return _by_reference(connection, argument, parsed)


def is_id(argument: str, target: Digest) -> bool:
    """Whether the argument named a target by its digest, so that no name was meant."""
    return "@" in argument or target.hex.startswith(argument.removeprefix(f"{target.algorithm}:"))


def not_found(argument: str) -> NotFoundError:
    """The error for a name that nothing has."""
    return NotFoundError(f"No such image: {with_latest(argument)}")


def with_latest(argument: str) -> str:
    """The familiar form, with ``:latest`` when bare, as docker's messages show names."""
    try:
        parsed = parse_any(argument)
    except InvalidArgumentError:
        return argument
    return str(parsed) if isinstance(parsed, Digest) else parsed.tag_or_latest().familiar


def _by_digest(connection: Connection, argument: str, digest: Digest) -> list[ImageRecord]:
    found = by_targets(connection, [digest]) or _by_config(connection, argument, digest.hex)
    if not found:
        raise not_found(argument)
    return found


def _by_reference(connection: Connection, argument: str, reference: Reference) -> list[ImageRecord]:
    if reference.digest is not None:
        found = [
            r for r in by_targets(connection, [reference.digest]) if _repository(r.name) == reference.name
        ]
        if not found:
            raise not_found(argument)
        return found
    canonical = str(reference.tag_or_latest())
    record = get(connection, canonical)
    if record is not None:
        return [record]
    hexdigits = short_id_hex(argument)
    found = _by_short_id(connection, argument, hexdigits, canonical) if hexdigits else []
    if not found:
        raise _no_such_tag(connection, argument, reference)
    return found


def _no_such_tag(connection: Connection, argument: str, reference: Reference) -> NotFoundError:
    """With the tags that the repository has, since "latest" is meant wherever none is given."""
    error = not_found(argument)
    others = [] if reference.tag else of_repository(connection, reference.name)
    if not others:
        return error
    names = [record.display_name for record in others[:_TAGS_SHOWN]]
    more = f" and {len(others) - len(names)} more" if len(others) > len(names) else ""
    return NotFoundError(f"{error}; there is {', '.join(names)}{more}")


def _repository(name: str) -> str | None:
    try:
        return parse_normalized(name).name
    except InvalidArgumentError:
        return None


def _by_short_id(
    connection: Connection, argument: str, hexdigits: str, canonical: str | None
) -> list[ImageRecord]:
    statement = _query().where(_begins(_blobs.c.digest, hexdigits))
    found = [_read(row) for row in connection.execute(statement)]
    found = [r for r in found if r.name == canonical] or found
    if not found:
        return _by_config(connection, argument, hexdigits)
    return _unambiguous(argument, found)


def _begins(column: Any, hexdigits: str) -> Any:
    """A range, not LIKE, so that the index serves; "g" is behind every hex digit."""
    prefix = f"sha256:{hexdigits}"
    return and_(column >= prefix, column < f"{prefix}g")


def _unambiguous(argument: str, found: list[ImageRecord]) -> list[ImageRecord]:
    if len({record.target.digest for record in found}) > 1:
        raise NotFoundError(f"ambiguous reference {argument!r}: several images match; give more digits")
    return found


def _by_config(connection: Connection, argument: str, hexdigits: str) -> list[ImageRecord]:
    """Images that hold a manifest whose config has this digest: docker's and podman's IDs."""
    config = _blobs.alias("config")
    above = (
        select(_edges.c.parent_id.label("id"))
        .join(config, config.c.id == _edges.c.child_id)
        .where(_edges.c.role == Role.CONFIG, _begins(config.c.digest, hexdigits))
        .cte("above", recursive=True)
    )
    above = above.union(
        select(_edges.c.parent_id)
        .join(above, _edges.c.child_id == above.c.id)
        .where(_edges.c.role == Role.MANIFEST)
    )
    statement = _query().where(_images.c.target_id.in_(select(above.c.id)))
    return _unambiguous(argument, [_read(row) for row in connection.execute(statement)])
