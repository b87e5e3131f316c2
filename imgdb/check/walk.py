"""The check of a whole store: look at everything once, mend at once, restore at the end.

Beside running imports, exports and collectors, and without false alarms: whatever looks wrong
is looked at again before it is said. A check writes only what it learned (when a blob was
verified, that it is damaged); everything else needs `CheckOptions.repair`.
Source: design §7; reliability §4.5.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from imgdb.check import files, rows
from imgdb.check.blobs import BlobChecker
from imgdb.check.content import Meter
from imgdb.check.repair import Mender
from imgdb.check.report import CheckReport, Level, State
from imgdb.check.restore import Restorer
from imgdb.db import audit, blobs
from imgdb.progress import SILENT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from imgdb.access import Access
    from imgdb.check.case import Case
    from imgdb.check.report import CheckOptions, Finding
    from imgdb.db.blobs import BlobRow
    from imgdb.oci.digest import Digest
    from imgdb.progress import Reporter

# A repair may bring up what was hidden below; each pass goes one level deeper at least.
_PASSES = 10


class Checker:
    """A check of one store.

    Args:
        access: the store.
        options: see `CheckOptions`.
        reporter: told about progress.
        records: whether rows may be written; False for another user's store, or one whose
            database is not its own.
    """

    def __init__(
        self, access: Access, options: CheckOptions, reporter: Reporter = SILENT, *, records: bool = True
    ) -> None:
        self._access = access
        self._options = options
        self._reporter = reporter
        self._records = records
        self._meter = Meter(reporter, options.rate, options.time_limit_s)
        self._report = CheckReport(options.level)
        self._mender = Mender(access)
        self._blobs = BlobChecker(access, self._meter, options.level, self._report, records=records)
        self._cases: dict[tuple[str, str, str], tuple[Case, State]] = {}

    def run(self) -> CheckReport:
        """Check, and repair if that was asked for.

        Raises:
            BusyError: the database was locked too long.
            DataLossError: the database can't be read at all.
        """
        started = time.monotonic()
        self._take(rows.damaged(self._access))
        if not self._cases:
            self._look()
            if self._options.mends:
                self._mend()
        self._report.findings = self._named()
        count, _, oldest = self._access.read(audit.oldest_verified)
        self._report.blobs = count
        self._report.oldest_verified_at = oldest
        self._report.read_bytes = self._meter.read_bytes
        self._report.duration_s = time.monotonic() - started
        return self._report

    def _look(self) -> None:
        self._take(rows.schema_and_pair(self._access))
        self._take_rows()
        with self._reporter.phase("files"):
            self._take(self._blobs.marked())
            self._take(self._blobs.sizes())
            self._take(files.unlisted(self._access, self._meter, writable=self._records))
            self._take(files.foreign(self._access))
            self._take(files.quarantined(self._access))
            self._take(files.snapshots(self._access))
        if self._options.level is not Level.QUICK:
            _, size, _ = self._access.read(audit.oldest_verified)
            with self._reporter.phase("verify", size):
                self._take(self._blobs.contents())

    def _take_rows(self) -> None:
        # Counters first: with a wrong one other repairs may be refused by the database.
        self._take(rows.counters(self._access))
        self._take(rows.references(self._access))
        self._take(rows.unexpanded(self._access, writable=self._records))
        self._take(rows.referrers(self._access))
        self._take(rows.names(self._access))
        self._take(rows.mirrored(self._access, writable=self._records))

    def _take(self, cases: Iterable[Case]) -> int:
        """Remember cases, each once, and mend those that can be mended on the spot; returns how many."""
        new = 0
        for case in cases:
            finding = case.finding
            key = (finding.id, finding.subject, finding.detail)
            if key not in self._cases:
                new += 1
                mends = self._options.mends and case.cure is not None
                state = case.cure(self._mender) if mends and case.cure is not None else finding.state
                self._cases[key] = (case, state)
        return new

    def _mend(self) -> None:
        """Restore what can be restored, set aside the rest, and look whether all rows fit now."""
        bad = {key: case for key, (case, _) in self._cases.items() if case.is_bad_blob}
        wanted = {case.row.digest: case.row for case in bad.values() if case.row is not None}
        restored = self._restore(wanted)
        for key, case in bad.items():
            if case.row is None or case.row.digest in restored:
                state = State.REPAIRED
            elif case.verdict is None:
                state = State.FOUND
            else:
                state = self._mender.set_aside(case.row, case.verdict)
            self._cases[key] = (case, state)
        for _ in range(_PASSES):
            if not self._settle():
                break

    def _settle(self) -> int:
        return self._take(rows.counters(self._access)) + self._take(
            rows.unexpanded(self._access, writable=self._records)
        )

    def _restore(self, wanted: dict[Digest, BlobRow]) -> set[Digest]:
        restorer = Restorer(self._access, self._mender, self._reporter)
        restored = restorer.from_texts(wanted) if wanted else set()
        for archive in self._options.archives:
            left = {digest: row for digest, row in wanted.items() if digest not in restored}
            if left:
                restored |= restorer.from_archive(archive, left)
        return restored

    def _named(self) -> tuple[Finding, ...]:
        """All findings with the images that they concern; damage first."""
        digests = {
            case.finding.digest
            for case, _ in self._cases.values()
            if case.finding.digest is not None and not case.finding.is_note
        }
        ids: dict[Digest, int] = self._access.read(lambda c: blobs.ids(c, digests))
        images = self._access.read(partial(audit.images_above, ids=ids.values()))
        found = [
            replace(
                case.finding,
                state=state,
                images=images.get(ids.get(case.finding.digest, 0), ()) if case.finding.digest else (),
            )
            for case, state in self._cases.values()
        ]
        return tuple(sorted(found, key=lambda finding: finding.is_note))
