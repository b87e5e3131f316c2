"""Between the names a user gives and a plan: resolving, and reading the tree.

Functions take a connection and never commit. Source: specification §1.4, §2.9; design §4.5.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from imgdb.db import blobs, events, graph, images, leases
from imgdb.db.sql import now_us
from imgdb.errors import InvalidArgumentError, NotFoundError
from imgdb.exporter.plan import Requested
from imgdb.exporter.tree import Fact, Tree
from imgdb.oci import spec
from imgdb.oci.reference import Reference, dangling_name, parse_any
from imgdb.oci.spec import Kind, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection

    from imgdb.db.graph import ClosureEdge
    from imgdb.db.images import ImageRecord
    from imgdb.oci.digest import Digest
    from imgdb.oci.platform import Platform
    from imgdb.oci.spec import Descriptor


_LEASE_US = 24 * 3600 * 1_000_000
_USED_COARSE_US = 3600 * 1_000_000


def lease_targets(
    connection: Connection, lease: str, arguments: Sequence[str], *, every: bool, label: str, hold: str
) -> list[Requested]:
    """Resolve and lease in one transaction, so that nothing is collected in between.

    The counted edges protect what is below the targets. The lease expires by itself once the
    export's hold is gone.
    """
    at = now_us()
    requested = choose(connection, arguments, every=every)
    leases.create(connection, lease, created_at=at, expires_at=at + _LEASE_US, owner=(leases.HOLD, hold))
    leases.add_content(connection, lease, (str(request.target.digest) for request in requested))
    saves = [events.NewEvent("save", str(r.target.digest), r.name, source=label) for r in requested]
    events.record(connection, saves, at)
    used = [request.name or dangling_name(request.target.digest) for request in requested]
    images.touch(connection, used, at, coarse_us=_USED_COARSE_US)
    return requested


def choose(connection: Connection, arguments: Sequence[str], *, every: bool) -> list[Requested]:
    """What to export: everything, or what the arguments mean."""
    return all_images(connection) if every else resolve_arguments(connection, arguments)


def resolve_arguments(connection: Connection, arguments: Iterable[str]) -> list[Requested]:
    """What each argument asks for, in order.

    An ID gives an unnamed image. A repository without a tag gives all its tags, by name.

    Raises:
        InvalidArgumentError: no name and no ID.
        NotFoundError: nothing matches.
    """
    return [request for argument in arguments for request in _resolve(connection, argument)]


def _resolve(connection: Connection, argument: str) -> list[Requested]:
    repository = _bare_repository(argument)
    try:
        found = images.resolve(connection, argument)
    except NotFoundError:
        tags = images.of_repository(connection, repository) if repository else []
        if not tags:
            raise
        return [_by_name(record) for record in tags]
    if images.is_id(argument, found[0].target.digest):
        return [Requested(found[0].target, None)]
    if repository and found[0].name.startswith(f"{repository}:"):
        return [_by_name(record) for record in images.of_repository(connection, repository)]
    # A config digest finds an image whose own digest is another one.
    by_name = _names(argument, found[0])
    return [_by_name(found[0]) if by_name else Requested(found[0].target, None)]


def _bare_repository(argument: str) -> str | None:
    try:
        parsed = parse_any(argument)
    except InvalidArgumentError:
        return None
    if isinstance(parsed, Reference) and parsed.tag is None and parsed.digest is None:
        return parsed.name
    return None


def _names(argument: str, record: ImageRecord) -> bool:
    parsed = parse_any(argument)
    return isinstance(parsed, Reference) and str(parsed.tag_or_latest()) == record.name


def _by_name(record: ImageRecord) -> Requested:
    return Requested(record.target, None if record.is_dangling else record.name)


def all_images(connection: Connection) -> list[Requested]:
    """Everything, by canonical name; dangling images after them, by digest."""
    records = images.listing(connection)
    dangling = sorted((r for r in records if r.is_dangling), key=lambda record: record.target.digest)
    return [_by_name(record) for record in [r for r in records if not r.is_dangling] + dangling]


def read_tree(connection: Connection, targets: Sequence[Descriptor]) -> Tree:
    """Everything below some images, in a constant number of statements."""
    rows = blobs.find(connection, {target.digest for target in targets})
    edges = graph.closure(connection, [row.id for row in rows.values()])
    roots = {
        digest: Fact(Kind(row.kind), row.present, row.damaged_at is not None) for digest, row in rows.items()
    }
    return Tree.of(roots, edges, _platforms(connection, targets, edges))


def _platforms(
    connection: Connection, targets: Sequence[Descriptor], edges: Sequence[ClosureEdge]
) -> dict[Digest, Platform]:
    """Platforms of manifests that no descriptor tells, from the texts of their configs."""
    told = {edge.child.digest for edge in edges if edge.role is Role.MANIFEST and edge.child.platform}
    told |= {target.digest for target in targets if target.platform}
    configs = {
        edge.parent: edge.child.digest
        for edge in edges
        if edge.role is Role.CONFIG and edge.parent not in told and edge.child.media_type in spec.CONFIG_TYPES
    }
    texts = blobs.texts(connection, configs.values())
    found = {}
    for manifest, config in configs.items():
        platform = spec.read_config(texts[config], str(config)).platform if config in texts else None
        if platform is not None:
            found[manifest] = platform
    return found


def artifact_types(connection: Connection, tree: Tree) -> dict[Digest, str]:
    """Artifact types of all referrers in a tree, as registries tell them."""
    referrers = {
        child.digest
        for (_, role), children in tree.edges.items()
        if role is Role.REFERRER
        for child in children
    }
    found = {}
    for digest, raw in blobs.texts(connection, referrers).items():
        document = json.loads(raw)
        kind = document.get("artifactType") or (document.get("config") or {}).get("mediaType")
        if kind:
            found[digest] = kind
    return found
