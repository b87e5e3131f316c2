"""The part of `imgdb.store.ImageStore` that keeps a store in order: gc, prune, check."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from imgdb import prune
from imgdb.check.report import CheckOptions
from imgdb.check.walk import Checker
from imgdb.db import events
from imgdb.errors import BusyError, RefusedError
from imgdb.gc import Collector, GcOptions, GcPlan, GcResult
from imgdb.progress import SILENT

if TYPE_CHECKING:
    from imgdb.access import Access
    from imgdb.check.report import CheckReport
    from imgdb.progress import Reporter
    from imgdb.prune import Pruned, PruneOptions, PrunePlan


class Keeping:
    """What keeps a store small and sound."""

    def _access(self) -> Access:
        raise NotImplementedError

    def _check_writable(self) -> None:
        raise NotImplementedError

    def _can_write(self) -> bool:
        raise NotImplementedError

    def _renew_mirror(self, *, full: bool) -> None:
        raise NotImplementedError

    def plan_gc(self, options: GcOptions | None = None) -> GcPlan:
        """What a collection would free at this moment, exactly; changes nothing.

        Raises:
            FailedPreconditionError: a document's edges are not recorded; see `check`.
        """
        return Collector(self._access()).plan(options or GcOptions())

    def gc(self, options: GcOptions | None = None) -> GcResult:
        """Free what nothing needs; safe beside imports and exports.

        Raises:
            BusyError: another collection is running.
            RefusedError: the database is not the store's, or older than it.
            FailedPreconditionError: a document's edges are not recorded; see `check`.
        """
        options = options or GcOptions()
        self._check_writable()
        result = Collector(self._access()).run(options)
        self._renew_mirror(full=options.full)
        return result

    def reclaim(self) -> int:
        """Free what a removal made garbage; returns the bytes.

        Where a collection runs already, it takes that as well, and this returns 0.
        """
        self._check_writable()
        try:
            return Collector(self._access()).run(GcOptions(totals=False)).freed_bytes
        except BusyError:
            return 0

    def plan_prune(self, options: PruneOptions) -> PrunePlan:
        """Which images a prune would remove, and what that would free."""
        return prune.plan(self._access(), options)

    def prune(self, plan: PrunePlan, *, collect: bool = True) -> Pruned:
        """Remove exactly the planned images, as far as nobody uses or has moved one meanwhile."""
        pruned = prune.execute(self._access(), plan)
        return replace(pruned, freed_bytes=self.reclaim()) if collect else pruned

    def check(self, options: CheckOptions | None = None, *, reporter: Reporter = SILENT) -> CheckReport:
        """Compare rows, files, hashes, edges and counters with each other; safe beside everything.

        Writes only what it learns: when a blob was verified, and that one is damaged, so that
        importing its image again heals it. A store that can't be written is only looked at.

        Args:
            options: how deep, how long, and whether to repair.
            reporter: told about progress.

        Raises:
            RefusedError: a repair of a store that may not be written.
            BadArchiveError, NoImageError, NotFoundError: an archive to restore from is none.
            BusyError: the database was locked too long.
        """
        options = options or CheckOptions()
        if options.mends:
            self._check_writable()
        return Checker(self._access(), options, reporter, records=self._may_write()).run()

    def _may_write(self) -> bool:
        try:
            self._check_writable()
        except RefusedError:
            return False
        return self._can_write()

    def prune_events(self, before: int) -> int:
        """Forget events older than a time (microseconds since the epoch); returns how many."""
        count: int = self._access().write(partial(events.prune, before=before), raises_generation=False)
        return count
