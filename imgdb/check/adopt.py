"""From files to rows: what a database that is new, or older than its store, has to learn.

Rows lead: a blob is taken when something refers to it and its file is here, level after level
below the names; then signatures and other referrers, which only their own bytes connect with
what they are about. Documents and configs are read and verified; leaves are believed when their
size is right, and verified by the next check, which begins with them.
Source: design §3, §4.11, §7 (db rebuild).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from imgdb.check import documents
from imgdb.check.content import Judgement, Verdict, examine, read_verified
from imgdb.check.repair import Mender, found_row
from imgdb.db import audit, blobs, images, mend
from imgdb.db.blobs import BlobRow
from imgdb.db.sql import chunks, now_us
from imgdb.oci import spec
from imgdb.oci.reference import dangling_name
from imgdb.oci.spec import Descriptor, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from imgdb.access import Access
    from imgdb.check.content import Meter
    from imgdb.content.store import BlobStat
    from imgdb.oci.digest import Digest
    from imgdb.oci.spec import Document

# Blobs that are held and looked at together.
_BATCH = 500
_MEDIA_TYPE = {Kind.MANIFEST: spec.OCI_MANIFEST, Kind.INDEX: spec.OCI_INDEX}


class Adopter:
    """Teaches the database of one store what lies in its files.

    Attributes:
        spoiled: digests that something needs and whose files have other bytes.
    """

    def __init__(self, access: Access, meter: Meter) -> None:
        self._access = access
        self._files = access.files
        self._meter = meter
        self._mender = Mender(access)
        self.spoiled: set[Digest] = set()

    def drop_absent(self) -> set[Digest]:
        """Rows whose files are gone say so; returns their digests."""
        gone: set[Digest] = set()
        after = 0
        while page := self._access.read(partial(audit.present_page, after=after, limit=_BATCH)):
            after = page[-1].id
            for row in page:
                status = self._files.stat(row.digest)
                if status is None or status.size != row.size:
                    self._drop(row, status)
                    gone.add(row.digest)
        return gone

    def _drop(self, row: BlobRow, status: BlobStat | None) -> None:
        self._access.write(lambda c: mend.mark_damaged(c, row, now_us()))
        verdict = Verdict(
            Judgement.DAMAGED if status else Judgement.MISSING, status, detail="found by a rebuild"
        )
        self._mender.set_aside(row, verdict)

    def needed(self) -> None:
        """Take what something refers to and whose file is here, level after level."""
        while True:
            stubs = self._access.read(audit.wanted_stubs)
            there = [row for row in stubs if row.digest not in self.spoiled and self._files.stat(row.digest)]
            if not there:
                break
            for batch in chunks(there, _BATCH):
                self._take(batch)
        self._access.write(partial(mend.mark_lost, digests=self.spoiled, at=now_us()))
        for row in self._access.read(audit.unexpanded):
            self._mender.document(row.digest)

    def _take(self, batch: list[BlobRow]) -> None:
        refs = self._access.read(partial(audit.references, ids=[row.id for row in batch]))
        with self._files.hold() as hold:
            hold.add(row.digest for row in batch)
            rows = [self._row(row, refs.get(row.id, [])) for row in batch]
            taken = self._mender.arrive([row for row in rows if row is not None])
        self.spoiled |= {row.digest for row in batch} - taken

    def _row(self, row: BlobRow, references: list[audit.Reference]) -> BlobRow | None:
        """A blob's row, or None when its file is not what is needed."""
        small = documents.is_meant_as_document(references) or documents.is_meant_as_config(references)
        if small and row.size <= spec.CONFIG_LIMIT:
            verdict = examine(self._files, row, self._meter, full=True, patient=True)
            right = verdict.is_sound and verdict.status is not None
            return found_row(row, verdict.status, verdict.blake3) if right and verdict.status else None
        status = self._files.stat(row.digest)
        if status is None or status.size != row.size:
            return None
        return replace(row, present=True, created_at=now_us(), verified_at=None, ctime_ns=None, blake3=None)

    def referrers(self) -> None:
        """Take documents that name a subject which is here, with what is below them."""
        waiting = {row.digest: (row, document) for row, document in self._unlisted() if document.subject}
        while True:
            subjects = {d.subject.digest for _, d in waiting.values() if d.subject}
            known = self._access.read(partial(blobs.find, digests=subjects))
            ready = [
                digest
                for digest, (_, d) in waiting.items()
                if d.subject and (row := known.get(d.subject.digest)) and row.present and row.expanded
            ]
            if not ready:
                break
            for batch in chunks(sorted(ready), _BATCH):
                self._take_documents([waiting.pop(digest) for digest in batch])
        self.needed()

    def unnamed(self) -> int:
        """Name as dangling what no other document leads to; for a store that has lost its names."""
        found = {row.digest: (row, document) for row, document in self._unlisted() if not document.subject}
        below = {edge.child.digest for _, document in found.values() for edge in document.edges}
        tops = {digest: pair for digest, pair in found.items() if digest not in below}
        for digest, (row, _) in sorted(tops.items()):
            target = Descriptor(row.media_type, digest, row.size)
            self._access.write(partial(_name, target=target))
        self.needed()
        return len(tops)

    def _unlisted(self) -> Iterator[tuple[BlobRow, Document]]:
        """Manifests and indexes among the files that no row knows."""
        sizes = {
            digest: status for digest, status in self._files.walk() if status.size <= spec.MANIFEST_LIMIT
        }
        known = self._access.read(partial(blobs.known, digests=sizes.keys()))
        for digest in sorted(sizes.keys() - known - self.spoiled):
            row = BlobRow(digest, sizes[digest].size, Kind.BLOB.value, "")
            raw = read_verified(self._files, row)
            if raw is None:
                # Its size is right: an import would take it for what it is called.
                self._files.quarantine(digest, sizes[digest])
            document = documents.parse(raw, row) if raw is not None and raw.lstrip()[:1] == b"{" else None
            if document is not None:
                media_type = document.media_type or _MEDIA_TYPE[document.kind]
                yield replace(row, kind=document.kind.value, media_type=media_type), document

    def _take_documents(self, batch: list[tuple[BlobRow, Document]]) -> None:
        with self._files.hold() as hold:
            hold.add(row.digest for row, _ in batch)
            right: dict[Digest, BlobRow] = {}
            for row, _ in batch:
                verdict = examine(self._files, row, self._meter, full=True, patient=True)
                if verdict.status is not None and verdict.is_sound:
                    right[row.digest] = found_row(row, verdict.status, verdict.blake3)
            items = [
                self._mender.expansion(row.digest, document) for row, document in batch if row.digest in right
            ]

            def work(connection: Connection) -> None:
                blobs.put_present(connection, list(right.values()))
                mend.rewrite_all(connection, items, at=now_us(), always=True)

            self._access.write(work)


def _name(connection: Connection, target: Descriptor) -> None:
    stub = BlobRow(target.digest, target.size, Kind.BLOB.value, target.media_type, present=False)
    blobs.put_stubs(connection, [stub])
    images.put(connection, dangling_name(target.digest), target, at=now_us())
