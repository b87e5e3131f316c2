"""Blobs against their rows: sizes, bytes, and what documents say.

A blob is called bad only when its row is the same before and after its file was read: rows
with `present` are a subset of the files, so whatever an importer or a collector does meanwhile
changes the row. Source: design §3, §4, §7 (check).
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING

from imgdb.check import documents
from imgdb.check.case import Case, blob_case
from imgdb.check.content import Judgement, OutOfTimeError, examine, read_verified
from imgdb.check.report import Finding, Level
from imgdb.db import audit, blobs, mend
from imgdb.db.audit import DOCUMENT_KINDS
from imgdb.db.mend import Verified
from imgdb.db.sql import now_us
from imgdb.oci import spec
from imgdb.oci.spec import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from concurrent.futures import Future

    from sqlalchemy import Connection

    from imgdb.access import Access
    from imgdb.check.content import Meter, Verdict
    from imgdb.check.documents import Difference
    from imgdb.check.report import CheckReport
    from imgdb.db.audit import Recorded, Reference
    from imgdb.db.blobs import BlobRow
    from imgdb.oci.digest import Digest
    from imgdb.oci.spec import Document, ImageConfig

_PAGE = 5000
# Blobs between two looks at the database, and seconds after which what was verified is remembered.
_BATCH = 256
_FLUSH_S = 5.0
# What documents among them may take in memory.
_FLUSH_BYTES = 32 << 20
_LOOKS = 5
_SECOND_LOOK_S = 0.5
_FINDING = {
    Judgement.MISSING: "blob-missing",
    Judgement.DAMAGED: "blob-damaged",
    Judgement.UNREADABLE: "blob-unreadable",
}


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A small blob's bytes, with what they are."""

    raw: bytes
    document: Document | None


class BlobChecker:
    """Looks at the blobs of one store.

    Args:
        access: the store.
        meter: counts and slows down reading.
        level: how deep to look.
        records: whether what is learned may be written to rows (verified, damaged).
        report: gets the figures.
    """

    def __init__(
        self, access: Access, meter: Meter, level: Level, report: CheckReport, *, records: bool
    ) -> None:
        self._access = access
        self._meter = meter
        self._full = level is Level.FULL
        self._report = report
        self._records = records

    def sizes(self) -> Iterator[Case]:
        """Every blob that is here has a file of the right size."""
        after = 0
        while page := self._access.read(partial(audit.present_page, after=after, limit=_PAGE)):
            after = page[-1].id
            for row in page:
                status = self._access.files.stat(row.digest)
                if row.damaged_at is None and (status is None or status.size != row.size):
                    yield from self._judge(row)

    def marked(self) -> Iterator[Case]:
        """Blobs that were found damaged before: still so, or right after all."""
        for row in self._access.read(audit.marked):
            if row.present:
                yield from self._judge(row)
            else:
                detail = "it is not here any more"
                yield Case(Finding("blob-lost", str(row.digest), detail, row.digest), row=row)

    def contents(self) -> Iterator[Case]:
        """Read blobs, those first that were verified longest ago, until all are read or the time is over."""
        ids = self._access.read(audit.oldest_first)
        self._report.left = len(ids)
        workers = os.cpu_count() or 1
        pool = ThreadPoolExecutor(workers, "imgdb-check")
        try:
            for start in range(0, len(ids), _BATCH):
                if self._meter.may_stop and self._meter.is_late():
                    return
                yield from self._batch(list(ids[start : start + _BATCH]), pool)
        finally:
            self._meter.stop()
            pool.shutdown(cancel_futures=True)

    def _batch(self, ids: list[int], pool: ThreadPoolExecutor) -> Iterator[Case]:
        position = {rowid: n for n, rowid in enumerate(ids)}
        rows = sorted(self._access.read(partial(audit.by_ids, ids=ids)), key=lambda row: position[row.id])
        self._report.left -= len(ids) - len(rows)
        here = [row for row in rows if row.present]
        self._report.left -= len(rows) - len(here)
        look = partial(examine, self._access.files, meter=self._meter, full=self._full)
        futures = [pool.submit(look, row) for row in here]
        pending: list[tuple[BlobRow, Verdict]] = []
        weight, flushed = 0, time.monotonic()
        for row, future in zip(here, futures, strict=True):
            verdict = _result(future)
            if verdict is None:
                break
            pending.append((row, verdict))
            self._meter.may_stop = True
            weight += min(row.size, spec.CONFIG_LIMIT)
            if weight > _FLUSH_BYTES or time.monotonic() - flushed > _FLUSH_S:
                yield from self._flush(pending)
                pending, weight, flushed = [], 0, time.monotonic()
        yield from self._flush(pending)

    def _flush(self, seen: Sequence[tuple[BlobRow, Verdict]]) -> Iterator[Case]:
        """Judge what was read, and remember what was right in every respect."""
        self._report.left -= len(seen)
        self._report.verified += len(seen)
        sound = [(row, verdict) for row, verdict in seen if verdict.is_sound]
        cases = [case for row, verdict in seen if not verdict.is_sound for case in self._judge(row)]
        cases += self._rows_of(sound)
        wrong = {case.finding.digest for case in cases}
        if self._records:
            verified = [
                Verified(row, verdict.status.ctime_ns, verdict.blake3)
                for row, verdict in sound
                if verdict.status is not None and row.digest not in wrong
            ]
            self._access.write(
                partial(mend.mark_verified, verified=verified, at=now_us()), raises_generation=False
            )
        yield from cases

    def _judge(self, row: BlobRow) -> Iterator[Case]:
        """Read a suspicious blob until row and file belong together."""
        for _ in range(_LOOKS):
            verdict = examine(self._access.files, row, self._meter, full=self._full, patient=True)
            now = self._again(row)
            if now is None or not now.present:
                return
            if _same(now, row):
                yield from self._conclude(now, verdict)
                return
            row = now

    def _again(self, row: BlobRow) -> BlobRow | None:
        found: dict[Digest, BlobRow] = self._access.read(lambda c: blobs.find(c, [row.digest]))
        return found.get(row.digest)

    def _conclude(self, row: BlobRow, verdict: Verdict) -> Iterator[Case]:
        if verdict.is_sound:
            if row.damaged_at is not None:
                yield blob_case("mark-wrong", row, "its bytes are right", methodcaller("unmark", row))
            yield from _flaws(row, verdict)
            return
        if self._records and not self._mark(row):
            return
        finding = Finding(_FINDING[verdict.judgement], str(row.digest), verdict.detail, row.digest)
        yield Case(finding, row=row, verdict=verdict)

    def _mark(self, row: BlobRow) -> bool:
        """Remember the damage, so that the next import heals it; False when that has happened."""
        marked: bool = self._access.write(
            lambda c: mend.mark_damaged(c, row, now_us()), raises_generation=False
        )
        return marked

    def _rows_of(self, sound: Sequence[tuple[BlobRow, Verdict]]) -> Iterator[Case]:
        for row, verdict in sound:
            yield from _flaws(row, verdict)
        parsed = self._parse([row for row, _ in sound])
        ids = [row.id for row, _ in sound]
        first = self._compare(ids, parsed)
        if not first:
            return
        # A large import writes blobs in one transaction and references in a later one.
        held = self._held()
        second = self._compare(list(first), parsed)
        for rowid, (row, differences) in second.items():
            if row.digest in held or first[rowid][1] != differences:
                continue
            for difference in differences:
                cure = _cure(row, difference, parsed.get(rowid))
                yield blob_case(difference.id, row, difference.detail, cure)

    def _held(self) -> set[Digest]:
        if self._records:
            return self._access.files.held()
        time.sleep(_SECOND_LOOK_S)
        return set()

    def _parse(self, rows: Collection[BlobRow]) -> dict[int, _Parsed]:
        """Documents and configs among some blobs, by row id."""
        refs = self._access.read(partial(audit.references, ids=[row.id for row in rows]))
        found = {}
        for row in rows:
            meant = refs.get(row.id, [])
            is_document = row.kind in DOCUMENT_KINDS or row.expanded or documents.is_meant_as_document(meant)
            is_config = row.kind == Kind.CONFIG or documents.is_meant_as_config(meant)
            limit = spec.MANIFEST_LIMIT if is_document else spec.CONFIG_LIMIT if is_config else -1
            raw = read_verified(self._access.files, row) if row.size <= limit else None
            if raw is not None:
                found[row.id] = _Parsed(raw, documents.parse(raw, row) if is_document else None)
        return found

    def _compare(
        self, ids: Sequence[int], parsed: dict[int, _Parsed]
    ) -> dict[int, tuple[BlobRow, list[Difference]]]:
        """Rows that differ from their blobs; one consistent view."""
        compare = partial(_compare, ids=ids, parsed=parsed, config=self._config)
        found: dict[int, tuple[BlobRow, list[Difference]]] = self._access.read(compare)
        return found

    def _config(self, row: BlobRow | None) -> bytes | None:
        if row is None or not row.present or row.damaged_at is not None or row.size > spec.CONFIG_LIMIT:
            return None
        return read_verified(self._access.files, row)


def _result(future: Future[Verdict]) -> Verdict | None:
    """A verdict, or None when there was no time for it."""
    try:
        return future.result()
    except OutOfTimeError:
        return None


def _same(one: BlobRow, other: BlobRow) -> bool:
    """Whether two looks at a row saw it about one and the same file."""
    return _about(one) == _about(other)


def _about(row: BlobRow) -> tuple[object, ...]:
    return row.id, row.present, row.size, row.blake3, row.ctime_ns, row.verified_at, row.created_at


def _flaws(row: BlobRow, verdict: Verdict) -> Iterator[Case]:
    """What a row says of bytes that are right."""
    values: dict[str, object] = {}
    if verdict.status is not None and verdict.status.size != row.size:
        values["size"] = verdict.status.size
    if row.blake3 is not None and row.blake3 != verdict.blake3:
        values["blake3"] = verdict.blake3
    if values:
        detail = ", ".join(f"{column} should be {value}" for column, value in values.items())
        yield blob_case("row-wrong", row, detail, methodcaller("row", row, values))


def _cure(row: BlobRow, difference: Difference, parsed: _Parsed | None) -> methodcaller:
    if difference.values:
        return methodcaller("row", row, difference.values)
    if difference.id == "text-wrong" and parsed is not None:
        return methodcaller("text", row, parsed.raw)
    is_document = parsed is not None and parsed.document is not None
    return methodcaller("document", row.digest) if is_document else methodcaller("no_document", row)


def _compare(
    connection: Connection,
    ids: Sequence[int],
    parsed: dict[int, _Parsed],
    config: Callable[[BlobRow | None], bytes | None],
) -> dict[int, tuple[BlobRow, list[Difference]]]:
    rows = {row.id: row for row in audit.by_ids(connection, ids) if row.present and row.damaged_at is None}
    refs = audit.references(connection, rows)
    recorded = audit.recorded(connection, rows)
    read = {rowid: parsed[rowid] for rowid in rows if rowid in parsed}
    configs = blobs.find(connection, {d for item in read.values() if (d := _config_digest(item))})
    found = {}
    for rowid, row in rows.items():
        item = read.get(rowid)
        digest = _config_digest(item)
        parsed_config = documents.parse_config(config(configs.get(digest))) if digest else None
        differences = _differences(row, item, refs.get(rowid, []), recorded[rowid], parsed_config)
        if differences:
            found[rowid] = (row, differences)
    return found


def _config_digest(item: _Parsed | None) -> Digest | None:
    """Of the config of an image's manifest."""
    told = item.document.config if item is not None and item.document is not None else None
    return told.digest if told is not None and told.media_type in spec.CONFIG_TYPES else None


def _differences(
    row: BlobRow,
    item: _Parsed | None,
    references: Sequence[Reference],
    recorded: Recorded,
    config: ImageConfig | None,
) -> list[Difference]:
    document = item.document if item is not None else None
    if item is None and row.size <= spec.MANIFEST_LIMIT and (row.expanded or row.kind in DOCUMENT_KINDS):
        return []  # it vanished before it was read again
    found = documents.row_differences(row, document, references)
    if document is not None:
        found += documents.text_difference(document.raw, recorded, wanted=True)
        return found + documents.document_differences(row, document, config, recorded)
    if item is not None:
        is_config = documents.is_meant_as_config(references) and documents.parse_config(item.raw) is not None
        found += documents.text_difference(item.raw, recorded, wanted=is_config)
    if recorded.edges or recorded.layers:
        found.append(documents.Difference("edges-wrong", "the blob is no document"))
    return found
