"""Removing images by rule: plan the list, show it, then remove exactly that list.

Used images (pinned, leased, mounted, unpacked for a container, owned) are never pruned.
Source: design §7, specification §8.6, ecosystem §2 (rows 2, 3, 19, 20).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from imgdb import describe
from imgdb.db import events, images, usage
from imgdb.db.sql import now_us
from imgdb.errors import InvalidArgumentError
from imgdb.gc import Collector, GcOptions
from imgdb.oci.reference import match_reference_filter, parse_normalized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from imgdb.access import Access
    from imgdb.db.images import ImageRecord
    from imgdb.describe import ImageSummary
    from imgdb.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class PruneOptions:
    """Which images go.

    Attributes:
        every: named images too, not only dangling ones.
        until: only those that became dangling, or got their target, before this time.
        last_used: only those not used since this time (or ever, if imported before it).
        labels, without_labels: ``key`` or ``key=value``; all must hold.
        references: any must match, as docker's ``reference`` filter does.
    """

    every: bool = False
    until: int | None = None
    last_used: int | None = None
    labels: Sequence[str] = ()
    without_labels: Sequence[str] = ()
    references: Sequence[str] = ()

    @property
    def is_filtered(self) -> bool:
        """Whether anything narrows the choice."""
        return any((self.until, self.last_used, self.labels, self.without_labels, self.references))


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What a prune would remove and free.

    Attributes:
        records: names, in the order in which they go.
        deleted: targets that no other name has.
        freed: files that the collection after it frees.
        freed_bytes: of those files, and of the snapshots that go with them.
    """

    records: tuple[ImageRecord, ...]
    deleted: tuple[Digest, ...]
    freed: dict[Digest, int]
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune removed; `deleted` as in `PrunePlan`, `freed_bytes` 0 where nothing was collected."""

    records: tuple[ImageRecord, ...]
    deleted: tuple[Digest, ...]
    freed_bytes: int = 0


def plan(access: Access, options: PruneOptions) -> PrunePlan:
    """Choose.

    Raises:
        InvalidArgumentError: a reference filter is malformed.
    """
    records, deleted = access.read(partial(_plan, options=options))
    collection = Collector(access).plan(GcOptions(), gone=[record.name for record in records])
    return PrunePlan(records, deleted, collection.freed, collection.freed_bytes)


def _plan(
    connection: Connection, options: PruneOptions
) -> tuple[tuple[ImageRecord, ...], tuple[Digest, ...]]:
    records = tuple(_choose(connection, options))
    going = {record.name for record in records}
    targets = {record.target.digest for record in records}
    left = {r.target.digest for r in images.by_targets(connection, targets) if r.name not in going}
    return records, tuple(sorted(targets - left))


def execute(access: Access, chosen: PrunePlan) -> Pruned:
    """Remove exactly the planned names that still point where they did, and are still unused."""

    def work(connection: Connection) -> Pruned:
        used = usage.used_names(connection)
        now = images.by_names(connection, [record.name for record in chosen.records])
        gone = tuple(
            record
            for record in chosen.records
            if record.name not in used
            and record.name in now
            and now[record.name].target.digest == record.target.digest
        )
        for record in gone:
            images.remove(connection, record.name)
        targets = {record.target.digest for record in gone}
        left = {record.target.digest for record in images.by_targets(connection, targets)}
        pruned = Pruned(gone, tuple(sorted(targets - left)))
        events.record(connection, _events(pruned), now_us())
        return pruned

    result: Pruned = access.write(work, changes=lambda pruned: {record.name for record in pruned.records})
    return result


def _events(pruned: Pruned) -> list[events.NewEvent]:
    untagged = [
        events.NewEvent("untag", str(record.target.digest), record.name)
        for record in pruned.records
        if not record.is_dangling
    ]
    return [*untagged, *(events.NewEvent("delete", str(digest)) for digest in pruned.deleted)]


def _choose(connection: Connection, options: PruneOptions) -> list[ImageRecord]:
    used = usage.used_names(connection)
    candidates = [
        record
        for record in images.listing(connection)
        if record.name not in used and (record.is_dangling or options.every) and _is_old(record, options)
    ]
    if not (options.labels or options.without_labels or options.references):
        return candidates
    return [
        summary.record
        for summary in describe.summaries(connection, candidates)
        if _has_labels(summary, options) and _matches(summary, options)
    ]


def _is_old(record: ImageRecord, options: PruneOptions) -> bool:
    if options.until is not None and record.updated_at > options.until:
        return False
    return options.last_used is None or (record.last_used_at or record.updated_at) <= options.last_used


def _has_labels(summary: ImageSummary, options: PruneOptions) -> bool:
    return all(_has_label(summary, label) for label in options.labels) and not any(
        _has_label(summary, label) for label in options.without_labels
    )


def _has_label(summary: ImageSummary, label: str) -> bool:
    name, equals, value = label.partition("=")
    return name in summary.labels and (not equals or summary.labels[name] == value)


def _matches(summary: ImageSummary, options: PruneOptions) -> bool:
    if not options.references:
        return True
    if summary.record.is_dangling:
        return False
    reference = parse_normalized(summary.record.name)
    return any(match_reference_filter(pattern, reference) for pattern in options.references)


def check(options: PruneOptions, *, yes_all: bool) -> None:
    """``--all`` without a filter removes everything that is not used: it must be meant.

    Raises:
        InvalidArgumentError: it was not said.
    """
    if options.every and not options.is_filtered and not yes_all:
        raise InvalidArgumentError("prune --all without a filter needs --yes-all")
