"""Disk accounting that adds up: sizes are those of files, reclaimable is what would be freed.

Each line says what one command frees, exactly: images and snapshots, ``prune --all --yes-all``;
blobs, ``gc``.
Source: design §7, specification §8.4 (whose figures never added up).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgdb.db import images, snapshots, usage
from imgdb.errors import DataLossError
from imgdb.exporter.walk import read_tree
from imgdb.gc import Collector, GcOptions
from imgdb.snapshots.disk import SnapshotDirectory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from imgdb.access import Access
    from imgdb.db.images import ImageRecord
    from imgdb.db.snapshots import SnapshotRecord
    from imgdb.exporter.tree import Tree
    from imgdb.oci.digest import Digest
    from imgdb.oci.spec import Descriptor


@dataclass(frozen=True, slots=True)
class Line:
    """One kind of thing; sizes in bytes.

    Attributes:
        active: how many are in use (images: pinned, leased, mounted, owned; blobs: needed;
            snapshots: needed by more than images that are not in use).
        reclaimable: what would be freed by removing those that are not.
    """

    type: str
    total: int
    active: int
    size: int
    reclaimable: int


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """What one image takes; `shared` with other images, `unique` to it, in bytes."""

    record: ImageRecord
    size: int
    shared: int
    unique: int
    used: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """The whole account."""

    lines: tuple[Line, ...]
    images: tuple[ImageUsage, ...]


def account(access: Access) -> Usage:
    """Measure a store."""
    files = {digest: status.size for digest, status in access.files.walk()}
    records, tree, used, unpacked = access.read(_questions)
    collector = Collector(access)
    garbage = collector.plan(GcOptions()).freed
    unused = [record.name for record in records if record.name not in used]
    pruned = collector.plan(GcOptions(), gone=unused)
    without_unused = pruned.freed
    held = {record.target.digest: _content(tree, record.target) for record in records}
    # A referrer that leads to its own subject is below it and garbage all the same.
    kept = {digest: size for digest, size in files.items() if digest not in garbage}
    reached = set().union(*held.values()) & kept.keys()
    lines = (
        Line(
            "Images",
            len(held),
            len({record.target.digest for record in records if record.name in used}),
            sum(kept[digest] for digest in reached),
            sum(size for digest, size in without_unused.items() if digest not in garbage),
        ),
        Line("Blobs", len(files), len(files) - len(garbage), sum(files.values()), sum(garbage.values())),
        Line(
            "Snapshots",
            len(unpacked),
            len(unpacked) - len(pruned.snapshots),
            sum(_size(access, record) for record in unpacked),
            sum(record.usage_bytes or 0 for record in pruned.snapshots),
        ),
    )
    return Usage(lines, tuple(_images(records, held, kept, used)))


def _size(access: Access, record: SnapshotRecord) -> int:
    """Of one that changes, as it is now."""
    if record.usage_bytes is not None:
        return record.usage_bytes
    try:
        return SnapshotDirectory(access.root).measure(record.id).bytes
    except DataLossError:
        return 0


def _questions(connection: Connection) -> tuple[list[ImageRecord], Tree, set[str], list[SnapshotRecord]]:
    records = images.listing(connection)
    tree = read_tree(connection, [record.target for record in records])
    return records, tree, usage.used_names(connection), snapshots.listing(connection)


def _content(tree: Tree, target: Descriptor) -> set[Digest]:
    """Every blob below an image, referrers included, whether it is here or not."""
    seen: set[Digest] = set()
    pending = [target.digest]
    while pending:
        digest = pending.pop()
        if digest not in seen:
            seen.add(digest)
            pending += [child.digest for child in tree.below(digest)]
    return seen


def _images(
    records: Sequence[ImageRecord],
    held: dict[Digest, set[Digest]],
    files: dict[Digest, int],
    used: set[str],
) -> list[ImageUsage]:
    users = Counter(digest for blobs in held.values() for digest in blobs)
    result = []
    for record in records:
        here = [digest for digest in held[record.target.digest] if digest in files]
        size = sum(files[digest] for digest in here)
        unique = sum(files[digest] for digest in here if users[digest] == 1)
        result.append(ImageUsage(record, size, size - unique, unique, record.name in used))
    return result
