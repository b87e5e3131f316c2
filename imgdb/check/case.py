"""A finding together with what mends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from imgdb.check.report import Finding

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgdb.check.content import Verdict
    from imgdb.check.repair import Mender
    from imgdb.check.report import State
    from imgdb.db.blobs import BlobRow

Cure: TypeAlias = "Callable[[Mender], State]"


@dataclass(frozen=True, slots=True)
class Case:
    """One finding.

    Attributes:
        cure: mends it, at once; None where nothing here can.
        row: of a blob whose bytes are wrong or missing.
        verdict: on those bytes; None for one that was lost before.
    """

    finding: Finding
    cure: Cure | None = None
    row: BlobRow | None = None
    verdict: Verdict | None = None

    @property
    def is_bad_blob(self) -> bool:
        """Whether right bytes are needed to mend it."""
        return self.row is not None


def blob_case(kind: str, row: BlobRow, detail: str, cure: Cure | None = None) -> Case:
    """A finding about a blob whose bytes are right."""
    return Case(Finding(kind, str(row.digest), detail, row.digest), cure)
