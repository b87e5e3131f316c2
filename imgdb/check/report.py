"""What a check may find, and how it says so.

Each finding has a stable id: scripts may rely on it. Notes are no damage: a store with notes
only is clean. Source: design §7; reliability §4.5; git's fsck message ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, BinaryIO

from imgdb.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgdb.oci.digest import Digest

_HEAL = "import an archive that has it, or run imgdb check --repair --from ARCHIVE"
_REPAIR = "run imgdb check --repair"
_UPGRADE = "run imgdb db upgrade"
_REBUILD = "run imgdb db rebuild"


class Level(StrEnum):
    """How deep a check looks at blobs.

    `QUICK` looks at sizes only, `DEFAULT` reads everything and compares blake3, `FULL` reads
    everything and compares the identity digest.
    """

    QUICK = "quick"
    DEFAULT = "default"
    FULL = "full"


class State(StrEnum):
    """What became of a finding.

    `FOUND`: nothing yet. `REPAIRED`: it is as if it had never been. `SET_ASIDE`: the wrong bytes
    are out of the way, and the right ones are still missing.
    """

    FOUND = "found"
    REPAIRED = "repaired"
    SET_ASIDE = "set-aside"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding.

    Attributes:
        says: what is wrong, as a sentence without its end.
        remedy: what to do.
        is_note: no damage, only worth knowing.
    """

    says: str
    remedy: str
    is_note: bool = False


KINDS = {
    "blob-missing": Kind("the row says that the blob is here, and there is no file", _HEAL),
    "blob-damaged": Kind("the bytes fail their digest", _HEAL),
    "blob-unreadable": Kind("the file can't be read", f"look at the disk and at permissions; {_HEAL}"),
    "blob-lost": Kind("an earlier check or export found the blob damaged or missing", _HEAL),
    "blob-unrecorded": Kind("the file is here and right, and the row says that it is absent", _REPAIR),
    "mark-wrong": Kind("the blob is marked as damaged, and its bytes are right", _REPAIR),
    "row-wrong": Kind("the blob's row differs from its bytes", _REPAIR),
    "text-wrong": Kind("the kept text differs from the blob", _REPAIR),
    "edges-wrong": Kind("the recorded references differ from the document", _REPAIR),
    "layers-wrong": Kind("the recorded layers differ from manifest and config", _REPAIR),
    "document-unexpanded": Kind("the references of a document in use are not recorded", _REPAIR),
    "referrers-wrong": Kind("the referrers differ from the subjects that documents name", _REPAIR),
    "counter-wrong": Kind("a counter differs from a count of the references", _REPAIR),
    "image-wrong": Kind("the image's descriptor differs from its target", _REPAIR),
    "mirror-stale": Kind("index.json and names.log differ from the names", _REPAIR),
    "reference-broken": Kind(
        "rows refer to rows that don't exist", f"{_REPAIR}; images need imgdb db rebuild"
    ),
    "snapshot-missing": Kind(
        "the snapshot has a row and no directory",
        "unpack its image again (imgdb unpack), or remove it (imgdb snapshot rm)",
    ),
    "schema-wrong": Kind("tables, triggers or views are not what this imgdb made", _UPGRADE),
    "pair-mismatch": Kind("store and database don't fit", _REBUILD),
    "database-damaged": Kind("SQLite finds its own structures damaged", _REBUILD),
    "orphan-file": Kind("a file without a row", "imgdb gc --full frees it after a day", is_note=True),
    "foreign-file": Kind("no blob", "imgdb leaves it alone; remove it by hand", is_note=True),
    "snapshot-orphan": Kind("a directory without a snapshot", "imgdb gc --full frees it", is_note=True),
    "quarantined": Kind(
        "damaged bytes that were set aside", "remove it by hand when it is of no use", is_note=True
    ),
}
"""Finding id -> what it means."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or a note.

    Attributes:
        id: a key of `KINDS`.
        subject: what it is about: a digest, an image name, a path, a table.
        detail: what exactly is wrong.
        digest: the blob, when it is about one.
        images: familiar names of the images that lead to the blob, sorted.
    """

    id: str
    subject: str
    detail: str
    digest: Digest | None = None
    images: tuple[str, ...] = ()
    state: State = State.FOUND

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return KINDS[self.id].remedy

    @property
    def is_note(self) -> bool:
        """Whether it is no damage."""
        return KINDS[self.id].is_note


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """What the caller of a check may choose.

    Attributes:
        level: how deep to look.
        time_limit_s: seconds after which reading blobs stops cleanly; the next check goes on
            with the blobs that were verified longest ago. Each check verifies one at least.
        rate: bytes a second that may be read; None for no limit.
        repair: mend what is found.
        archives: paths or streams of archives to take damaged and lost blobs from; imply `repair`.
    """

    level: Level = Level.DEFAULT
    time_limit_s: float | None = None
    rate: int | None = None
    repair: bool = False
    archives: Sequence[str | BinaryIO] = ()

    def __post_init__(self) -> None:
        """Mistakes cost nothing when they are found before any work is done."""
        if self.rate is not None and self.rate <= 0:
            raise InvalidArgumentError(f"a rate of {self.rate} bytes a second never ends; give more")
        if self.time_limit_s is not None and self.time_limit_s < 0:
            raise InvalidArgumentError(f"a time limit of {self.time_limit_s} s lies in the past")

    @property
    def mends(self) -> bool:
        """Whether anything is to be changed."""
        return self.repair or bool(self.archives)


@dataclass(slots=True)
class CheckReport:
    """What a check saw.

    Attributes:
        findings: damage first, then notes; in the order in which they were found.
        blobs: how many the rows say are here.
        verified: how many of them were read.
        read_bytes: of those.
        left: how many were not read for want of time.
        oldest_verified_at: microseconds since the epoch; of the blobs that are here, when the one
            was verified that was verified longest ago; None when one never was.
    """

    level: Level
    findings: tuple[Finding, ...] = ()
    blobs: int = 0
    verified: int = 0
    read_bytes: int = 0
    left: int = 0
    oldest_verified_at: int | None = None
    duration_s: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every blob was looked at as deep as was asked for."""
        return self.left == 0

    @property
    def damage(self) -> tuple[Finding, ...]:
        """What is wrong and was not repaired."""
        return tuple(f for f in self.findings if not f.is_note and f.state is not State.REPAIRED)
