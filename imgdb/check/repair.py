"""Mending rows: each method puts right what one kind of finding is about.

Rows are derived again from blobs, which carry their own hash; nothing is invented. Every
change is a transaction of its own, and looks again before it changes anything.
Source: design §4, §7 (check --repair).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from imgdb import mirror, pair
from imgdb.check import documents
from imgdb.check.content import Judgement, read_verified
from imgdb.check.report import State
from imgdb.db import audit, blobs, events, images, mend, pins, schema
from imgdb.db.audit import DOCUMENT_KINDS
from imgdb.db.graph import Expansion
from imgdb.db.sql import chunks, now_us
from imgdb.oci import spec
from imgdb.oci.spec import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from sqlalchemy import Connection

    from imgdb.access import Access
    from imgdb.check.content import Verdict
    from imgdb.content.store import BlobStat
    from imgdb.db.blobs import BlobRow
    from imgdb.db.images import ImageRecord
    from imgdb.db.schema import Meta
    from imgdb.oci.digest import Digest
    from imgdb.oci.spec import Document, ImageConfig

# Arrivals of one transaction.
_BATCH = 200


class Mender:
    """Changes one store."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._files = access.files

    def _change(self, work: Callable[[Connection], Any]) -> Any:
        return self._access.write(work, raises_generation=False)

    def _find(self, digest: Digest) -> BlobRow | None:
        found: dict[Digest, BlobRow] = self._access.read(lambda c: blobs.find(c, [digest]))
        return found.get(digest)

    def recount(self, table: str, rowid: int) -> State:
        """Count what refers to a blob or a snapshot."""
        self._change(lambda c: mend.recount(c, table, [rowid]))
        return State.REPAIRED

    def image(self, name: str, target: BlobRow) -> State:
        """Let a name say of its target what that is."""
        self._access.write(lambda c: mend.set_image(c, name, target), changes=lambda _: [name])
        return State.REPAIRED

    def row(self, row: BlobRow, values: Mapping[str, Any]) -> State:
        """Let a row say of its blob what the bytes say; a new document is expanded."""
        if not self._change(lambda c: mend.set_columns(c, row, values)):
            return State.FOUND
        if "kind" not in values:
            return State.REPAIRED
        return self.document(row.digest) if values["kind"] in DOCUMENT_KINDS else State.REPAIRED

    def text(self, row: BlobRow, raw: bytes) -> State:
        """Keep a document's text."""
        self._change(lambda c: mend.put_text(c, row.id, raw))
        return State.REPAIRED

    def no_document(self, row: BlobRow) -> State:
        """Forget references of a blob that can have none."""
        self._change(lambda c: mend.forget(c, row))
        return State.REPAIRED

    def referrers(self, subject: int) -> State:
        """Derive the referrers of a document anew."""
        self._change(lambda c: mend.resettle(c, subject))
        return State.REPAIRED

    def unmark(self, row: BlobRow) -> State:
        """A blob that is marked as damaged is right."""
        return State.REPAIRED if self._change(lambda c: mend.clear_mark(c, row)) else State.FOUND

    def broken(self, table: str, rows: Collection[int]) -> State:
        """Delete derived rows that refer to nothing, and derive them again."""
        parents: set[int] = self._change(lambda c: mend.drop_broken(c, table, rows))
        for row in self._access.read(lambda c: audit.by_ids(c, parents)):
            self.document(row.digest)
        left = self._access.read(audit.broken_references)
        return State.FOUND if table in left else State.REPAIRED

    def mirror(self) -> State:
        """Write all names to the mirror."""
        root = self._access.root
        with pair.index_lock(root):
            records, pinned, meta = self._access.read(_names)
            mirror.write_index(
                root,
                records,
                store_id=meta.store_id,
                generation=meta.generation,
                pinned=pinned,
                durable=self._files.durable,
            )
        return State.REPAIRED

    def document(self, digest: Digest) -> State:
        """Derive edges, layers and text of a document anew, and of documents below that lack theirs."""
        pending, seen = [digest], set()
        state = State.FOUND
        while pending:
            current = pending.pop()
            seen.add(current)
            document = self._rewrite(current)
            if document is None:
                continue
            state = State.REPAIRED if current == digest else state
            below = self._access.read(partial(_unexpanded_below, document=document))
            pending += [child for child in below if child not in seen]
        return state

    def _rewrite(self, digest: Digest) -> Document | None:
        row = self._find(digest)
        if row is None or not row.present:
            return None
        document = self._parse(row)
        if document is None:
            return None
        item = self.expansion(digest, document)
        self._change(lambda c: mend.rewrite_all(c, [item], at=now_us()))
        return document

    def expand(self, row: BlobRow) -> State:
        """Record the references of a document; a row that calls a leaf a document is put right."""
        if self.document(row.digest) is State.REPAIRED:
            return State.REPAIRED
        refs = self._access.read(lambda c: audit.references(c, [row.id]))
        raw = read_verified(self._files, row) if row.size <= spec.MANIFEST_LIMIT else b""
        found = [] if raw is None else documents.row_differences(row, None, refs.get(row.id, []))
        for difference in found:
            return self.row(row, difference.values)
        return State.FOUND

    def configs_of(self, found: Iterable[Document]) -> dict[Digest, ImageConfig]:
        """The parsed configs of image manifests, those that are here and right, by their digests."""
        told = [document.config for document in found if document.config is not None]
        wanted = {config.digest for config in told if config.media_type in spec.CONFIG_TYPES}
        rows: dict[Digest, BlobRow] = self._access.read(lambda c: blobs.find(c, wanted))
        usable = [row for row in rows.values() if row.present and row.damaged_at is None]
        raw = {row.digest: read_verified(self._files, row) for row in usable if row.size <= spec.CONFIG_LIMIT}
        parsed = {digest: documents.parse_config(body) for digest, body in raw.items()}
        return {digest: config for digest, config in parsed.items() if config is not None}

    def expansion(self, digest: Digest, document: Document) -> Expansion:
        """A document with its config."""
        return _with_config(digest, document, self.configs_of([document]))

    def arrive(self, arrivals: Collection[BlobRow]) -> set[Digest]:
        """Say that blobs are here, whose files are durable and held; documents get their edges.

        Args:
            arrivals: rows as they shall be; kind and media type are found out here.

        Returns:
            Those that a row was waiting for. A document that is none is not among them.
        """
        taken: set[Digest] = set()
        for batch in chunks(arrivals, _BATCH):
            taken |= self._arrive(batch)
        for digests in chunks(sorted(taken), _BATCH):
            self._tell_parents(digests)
        return taken

    def _tell_parents(self, digests: Collection[Digest]) -> None:
        """Where these are configs, the layers of their manifests learn their diff IDs."""
        parents: list[BlobRow] = self._access.read(lambda c: mend.parents_by_config(c, digests))
        found = {row.digest: document for row in parents if (document := self._parse(row)) is not None}
        if found:
            configs = self.configs_of(found.values())
            items = [_with_config(digest, document, configs) for digest, document in found.items()]
            self._change(lambda c: mend.learn(c, items))

    def _parse(self, row: BlobRow) -> Document | None:
        raw = read_verified(self._files, row) if row.size <= spec.MANIFEST_LIMIT else None
        return None if raw is None else documents.parse(raw, row)

    def _arrive(self, batch: list[BlobRow]) -> set[Digest]:
        known: dict[Digest, BlobRow] = self._access.read(
            lambda c: blobs.find(c, [row.digest for row in batch])
        )
        refs = self._access.read(lambda c: audit.references(c, [row.id for row in known.values()]))
        rows: list[BlobRow] = []
        found: dict[Digest, Document] = {}
        texts: dict[Digest, bytes] = {}
        for row in (row for row in batch if row.digest in known):
            before = known[row.digest]
            references = refs.get(before.id, [])
            raw = self._body(row, before, references)
            meant = documents.meaning(raw, before, references)
            if meant is None or (raw is None and before.kind in DOCUMENT_KINDS):
                continue
            kind, media_type = meant
            rows.append(replace(row, kind=kind, media_type=media_type))
            document = documents.parse(raw, row) if raw is not None and kind in DOCUMENT_KINDS else None
            if document is not None:
                found[row.digest] = document
            elif raw is not None and documents.is_meant_as_config(references):
                texts[row.digest] = raw
        configs = self.configs_of(found.values())
        items = [_with_config(digest, document, configs) for digest, document in found.items()]
        result: set[Digest] = self._access.write(partial(_arrival, rows=rows, items=items, texts=texts))
        return result

    def _body(self, row: BlobRow, before: BlobRow, references: Sequence[audit.Reference]) -> bytes | None:
        """The bytes of what is meant as a document or a config; of a referrer its row alone says so."""
        if documents.is_meant_as_document(references) or before.kind in DOCUMENT_KINDS:
            return read_verified(self._files, row) if row.size <= spec.MANIFEST_LIMIT else None
        if not documents.is_meant_as_config(references) or row.size > spec.CONFIG_LIMIT:
            return None
        raw = read_verified(self._files, row)
        return raw if documents.parse_config(raw) is not None else None

    def adopt(self, row: BlobRow, verdict: Verdict) -> State:
        """Take a file for the absent blob whose row this is, unless it is another one by now."""
        with self._files.hold() as hold:
            hold.add([row.digest])
            if verdict.status is None or self._files.stat(row.digest) != verdict.status:
                return State.FOUND
            taken = self.arrive([found_row(row, verdict.status, verdict.blake3)])
            return State.REPAIRED if taken else State.FOUND

    def quarantine(self, digest: Digest, verdict: Verdict) -> State:
        """Move a file without a row out of the way, so that no import takes it for the right one."""
        moved = self._files.quarantine(digest, verdict.status)
        return State.FOUND if moved is None else State.SET_ASIDE

    def set_aside(self, row: BlobRow, verdict: Verdict) -> State:
        """Move wrong bytes out of the way, and say that the blob is not here.

        Under the lock of the collector, and only what no running import holds and nobody
        replaced since it was read.
        """
        if verdict.judgement is Judgement.UNREADABLE:
            return State.FOUND
        where = self._files.quarantine(row.digest, verdict.status)
        if where is None and self._files.stat(row.digest) is not None:
            return self._state_now(row.digest)
        reason = {"reason": verdict.detail} | ({"quarantine": where} if where else {})

        def work(connection: Connection) -> bool:
            if not mend.mark_absent(connection, row.digest):
                return False
            events.record(connection, [events.NewEvent("damage", str(row.digest), None, reason)], now_us())
            return True

        return State.SET_ASIDE if self._change(work) else self._state_now(row.digest)

    def _state_now(self, digest: Digest) -> State:
        """Somebody else may have healed it."""
        row = self._find(digest)
        healed = row is None or (row.present and row.damaged_at is None)
        return State.REPAIRED if healed else State.FOUND


def _with_config(digest: Digest, document: Document, configs: Mapping[Digest, ImageConfig]) -> Expansion:
    config = configs.get(document.config.digest) if document.config is not None else None
    return Expansion(digest, document, config)


def _arrival(
    connection: Connection,
    rows: Collection[BlobRow],
    items: Collection[Expansion],
    texts: Mapping[Digest, bytes],
) -> set[Digest]:
    taken = mend.arrive(connection, rows)
    for digest, rowid in blobs.ids(connection, taken & texts.keys()).items():
        mend.put_text(connection, rowid, texts[digest])
    mend.rewrite_all(connection, [item for item in items if item.digest in taken], at=now_us())
    return taken


def _names(connection: Connection) -> tuple[list[ImageRecord], dict[str, str], Meta]:
    return images.listing(connection), pins.pinned(connection), schema.read_meta(connection)


def found_row(row: BlobRow, status: BlobStat, blake3: str) -> BlobRow:
    """The row of a blob that was read now and found right."""
    now = now_us()
    return replace(
        row,
        size=status.size,
        present=True,
        blake3=blake3,
        ctime_ns=status.ctime_ns,
        verified_at=now,
        created_at=now,
    )


def _unexpanded_below(connection: Connection, document: Document) -> list[Digest]:
    children = [edge.child.digest for edge in document.edges if edge.role is Role.MANIFEST]
    return [
        row.digest
        for row in blobs.find(connection, children).values()
        if row.present and not row.expanded and row.damaged_at is None and row.kind in DOCUMENT_KINDS
    ]
