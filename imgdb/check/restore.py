"""Putting right bytes in the place of wrong or missing ones, from wherever they are.

Sources are the texts of documents that the database keeps, and archives of any format: what
counts is what their bytes hash to. No name is made. Source: design §7 (check --from).
"""

from __future__ import annotations

import io
import os
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

from imgdb.check.repair import Mender, found_row
from imgdb.db import blobs, events
from imgdb.db.sql import now_us
from imgdb.errors import BadArchiveError, NoImageError
from imgdb.importer.intake import reading, take_in
from imgdb.importer.layout import read_layout
from imgdb.oci.digest import Digest
from imgdb.oci.spec import INDEX_JSON_LIMIT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgdb.access import Access
    from imgdb.content.store import Hold, Ingest, Staged
    from imgdb.db.blobs import BlobRow
    from imgdb.progress import Reporter


class Restorer:
    """Restores blobs of one store."""

    def __init__(self, access: Access, mender: Mender, reporter: Reporter) -> None:
        self._access = access
        self._files = access.files
        self._mender = mender
        self._reporter = reporter

    def from_texts(self, wanted: Mapping[Digest, BlobRow]) -> set[Digest]:
        """Restore documents and configs from the texts that the database keeps; returns which."""
        texts: dict[Digest, bytes] = self._access.read(lambda c: blobs.texts(c, wanted))
        right = {digest: raw for digest, raw in texts.items() if Digest.of(raw, digest.algorithm) == digest}
        if not right:
            return set()
        with self._files.hold() as hold, self._files.ingest() as ingest:
            staged = [
                ingest.stage(io.BytesIO(raw), len(raw), algorithm=digest.algorithm)
                for digest, raw in right.items()
            ]
            return self._put(ingest, hold, staged, wanted, "the text in the database")

    def from_archive(self, source: str | BinaryIO, wanted: Mapping[Digest, BlobRow]) -> set[Digest]:
        """Restore what an archive has of the wanted blobs; returns which.

        Raises:
            NotFoundError: no such file.
            BadArchiveError, NoImageError: it is damaged, or no archive at all.
        """
        label = source if isinstance(source, str) else "standard input"
        with self._files.hold() as hold, self._files.ingest() as ingest:
            found = self._found(source, ingest, hold, wanted)
            return self._put(ingest, hold, [found[d] for d in wanted if d in found], wanted, label)

    def _found(
        self, source: str | BinaryIO, ingest: Ingest, hold: Hold, wanted: Mapping[Digest, BlobRow]
    ) -> dict[Digest, Staged]:
        reporter = self._reporter
        with reading(source, reporter) as entries:
            contents = take_in(
                entries,
                ingest,
                hold,
                trusted=lambda digest, size: digest not in wanted and self._is_here(digest, size),
                max_size=None,
                dry_run=False,
                reporter=reporter,
            )
        found = {digest: staged for digest, staged in contents.blobs.items() if staged.token}
        made: dict[Digest, bytes] = {}
        with suppress(BadArchiveError, NoImageError):
            # The manifest of a docker archive is made on import, so that is where it comes from again.
            made = read_layout(contents, lambda staged: self._read(ingest, staged)).made
        for digest, raw in made.items():
            if digest in wanted and digest not in found:
                found[digest] = ingest.stage(io.BytesIO(raw), len(raw))
        return found

    def _is_here(self, digest: Digest, size: int) -> bool:
        # Only spares the writing of what nobody wants; nothing relies on it.
        status = self._files.stat(digest)
        return status is not None and status.size == size

    def _read(self, ingest: Ingest, staged: Staged) -> bytes:
        with ingest.open(staged) if staged.token else self._files.open(staged.digest) as file:
            return file.read(INDEX_JSON_LIMIT + 1)

    def _put(
        self,
        ingest: Ingest,
        hold: Hold,
        staged: list[Staged],
        wanted: Mapping[Digest, BlobRow],
        label: str,
    ) -> set[Digest]:
        if not staged:
            return set()
        digests = [blob.digest for blob in staged]
        for digest in digests:
            if self._files.stat(digest) is None and os.path.lexists(self._files.path(digest)):
                # A directory in the way; nobody can hold that.
                self._files.quarantine(digest, None)
        hold.add(digests)
        placed = self._files.put(ingest, staged, replace=digests)
        rows = [found_row(wanted[blob.digest], placed[blob.digest], blob.blake3) for blob in staged]
        taken = self._mender.arrive(rows)
        self._record(taken, label)
        return taken

    def _record(self, taken: set[Digest], label: str) -> None:
        happened = [events.NewEvent("restore", str(digest), source=label) for digest in sorted(taken)]
        self._access.write(lambda c: events.record(c, happened, now_us()), raises_generation=False)
