"""The import walk: read, look, plan, put. Rows come last and are written by the caller.

`stage` does everything that needs no transaction and leaves durable files that a hold
protects; `write` only writes rows, in a transaction that somebody else begins and commits.
Source: design §4.1-4.4, §9.4.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

from imgdb.archive.compression import Compression, sniff
from imgdb.db.blobs import BlobRow
from imgdb.errors import BadArchiveError, NoImageError
from imgdb.importer import graph as graphs
from imgdb.importer import rootfs
from imgdb.importer.intake import Contents, reading, take_in
from imgdb.importer.layout import Layout, read_layout
from imgdb.importer.plan import ImportOptions, ImportPlan, make_plan
from imgdb.oci import spec
from imgdb.oci.digest import Digest
from imgdb.oci.spec import Descriptor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from imgdb.content.store import BlobStat, BlobStore, Hold, Ingest, Staged
    from imgdb.progress import Reporter


@dataclass(slots=True)
class StagedImport:
    """An import whose files are durable and held, and whose rows are still to be written.

    Attributes:
        plan: what to store and name.
        source: the archive, for events.
        rows: one for each kept blob.
        new: digests that were not here before.
        placed: digests whose files this import put.
    """

    plan: ImportPlan
    source: str
    rows: dict[Digest, BlobRow]
    new: frozenset[Digest]
    placed: tuple[Digest, ...]
    hold: Hold

    @property
    def new_bytes(self) -> int:
        """Bytes that the store did not have."""
        return sum(self.rows[digest].size for digest in self.new)

    def release(self) -> None:
        """Give up the hold: after the commit, or after giving up."""
        self.hold.release()

    def leave(self) -> None:
        """Leave the hold dead, as a crash does: the next collection sweeps what no row needs."""
        self.hold.abandon()


@dataclass(frozen=True, slots=True)
class Rows:
    """What staging asks the database, each question in a transaction of its own."""

    find: Callable[[Collection[Digest]], dict[Digest, BlobRow]]
    known: Callable[[Collection[Digest]], set[Digest]]


def stage(
    store: BlobStore,
    rows: Rows,
    source: str | BinaryIO,
    options: ImportOptions,
    *,
    now: int,
    dry_run: bool,
    reporter: Reporter,
) -> StagedImport:
    """Read an archive, validate it, and put its blobs.

    Args:
        store: where the blobs go.
        rows: what the database knows.
        source: a path or a binary stream.
        options: see `ImportOptions`.
        now: microseconds since the epoch, for `verified_at`.
        dry_run: read and validate only.
        reporter: told about progress and warnings.

    Raises:
        NoImageError, BadArchiveError, NotFoundError, InvalidArgumentError: see the planning steps.
        ImgdbError: no space, or the input can't be read.
    """
    label = source if isinstance(source, str) else "standard input"
    hold = store.hold()
    try:
        with store.ingest() as ingest:
            trust = _Trust(store, rows)
            contents = _take_in(ingest, hold, source, options, trust, dry_run, reporter)
            layout = read_layout(contents, lambda staged: _read(ingest, store, staged))
            found = _ArchiveAndStore(contents, layout, ingest, hold, store, rows, trust)
            graph = graphs.build([top.target for top in layout.tops], found)
            _check_plain_layers(graph, found)
            plan = make_plan(layout, graph, options, in_store=found.rows_seen)
            return _put(plan, label, found, now=now, dry_run=dry_run, reporter=reporter)
    except BaseException as error:
        hold.release()
        if isinstance(error, NoImageError | BadArchiveError):
            raise type(error)(f"{label}: {error}") from None
        raise


def _take_in(
    ingest: Ingest,
    hold: Hold,
    source: str | BinaryIO,
    options: ImportOptions,
    trust: _Trust,
    dry_run: bool,
    reporter: Reporter,
) -> Contents:
    if options.rootfs:
        return rootfs.take_in(source, ingest, options, dry_run=dry_run, reporter=reporter)
    with reading(source, reporter) as entries:
        return take_in(
            entries,
            ingest,
            hold,
            trusted=trust.has,
            max_size=options.max_size,
            dry_run=dry_run,
            reporter=reporter,
        )


def _check_plain_layers(graph: graphs.Graph, found: _ArchiveAndStore) -> None:
    """A layer that is not compressed has its digest for its diff ID: a wrong config is seen for free."""
    for digest, node in graph.nodes.items():
        config = graph.config_of(node.document) if node.document else None
        if node.document is None or config is None or len(config.diff_ids) != len(node.document.layers):
            continue
        for layer, diff_id in zip(node.document.layers, config.diff_ids, strict=True):
            body = found.body(layer.digest)
            plain = (
                body is not None and spec.is_layer(layer.media_type) and sniff(body.head) is Compression.NONE
            )
            encrypted = layer.media_type.endswith("encrypted")
            comparable = layer.digest.algorithm == diff_id.algorithm
            if plain and comparable and not encrypted and layer.digest != diff_id:
                raise BadArchiveError(
                    f"layer {layer.digest} of {digest} is not what its config says: {diff_id}"
                )


def _put(
    plan: ImportPlan,
    label: str,
    found: _ArchiveAndStore,
    *,
    now: int,
    dry_run: bool,
    reporter: Reporter,
) -> StagedImport:
    """Make the kept blobs durable and say what their rows will hold."""
    found.hold.add(plan.kept)
    bodies = [body for body in map(found.body, plan.kept) if body is not None and body.token]
    # Asked before anything is put, and again after the reading: others may have stored the same since.
    read = [digest for digest in plan.kept if found.body(digest) is not None]
    new = frozenset(read) - found.trust.among(read)
    placed: dict[Digest, BlobStat] = {}
    if not dry_run:
        with reporter.phase("store"):
            placed = _put_or_sweep(found, bodies, new)
    ours = {digest: status for digest, status in placed.items() if digest in new}
    rows = {digest: _row(digest, plan, found, ours, now) for digest in plan.kept}
    return StagedImport(plan, label, rows, new, tuple(placed), found.hold)


def _put_or_sweep(
    found: _ArchiveAndStore, bodies: list[Staged], new: Collection[Digest]
) -> dict[Digest, BlobStat]:
    try:
        return found.store.put(found.ingest, bodies, replace=new)
    except BaseException:
        # Nothing of a failed import stays; what others need is known by their holds and rows.
        found.hold.release()
        found.store.sweep([body.digest for body in bodies], found.rows.known)
        raise


def _row(
    digest: Digest, plan: ImportPlan, found: _ArchiveAndStore, ours: dict[Digest, BlobStat], now: int
) -> BlobRow:
    node = plan.graph.nodes[digest]
    body = found.body(digest)
    if body is None:
        # Not read today: if somebody found it damaged meanwhile, it stays so.
        kind, media_type = node.kind.value, node.first.media_type
        return replace(found.rows_seen[digest], kind=kind, media_type=media_type, verified_at=None)
    status = ours.get(digest)
    return BlobRow(
        digest=digest,
        size=body.size,
        kind=node.kind.value,
        media_type=node.first.media_type,
        blake3=body.blake3,
        # What was here before is vouched for by its row, which says when.
        ctime_ns=status.ctime_ns if status else None,
        verified_at=now if status else None,
        created_at=now,
    )


class _Trust:
    """Which blobs of the store an import need not write again.

    Not those that merely have a file of the right size: without a row nobody has said that its bytes
    are right, and one that changed since its row was written has to be looked at first.
    """

    def __init__(self, store: BlobStore, rows: Rows) -> None:
        self._store = store
        self._rows = rows

    def has(self, digest: Digest, size: int) -> bool:
        """Whether that many bytes of a digest are here and vouched for; the file is looked for first."""
        status = self._store.stat(digest)
        return status is not None and status.size == size and digest in self.among([digest])

    def among(self, digests: Collection[Digest]) -> set[Digest]:
        """Those that are here and vouched for."""
        return {digest for digest, row in self._rows.find(digests).items() if self._vouches(row)}

    def _vouches(self, row: BlobRow) -> bool:
        if not row.present or row.damaged_at is not None:
            return False
        status = self._store.stat(row.digest)
        return status is not None and (status.size, status.ctime_ns) == (row.size, row.ctime_ns)


class _ArchiveAndStore:
    """Looks blobs up in the archive first, then in the store; see `graph.Lookup`."""

    def __init__(
        self,
        contents: Contents,
        layout: Layout,
        ingest: Ingest,
        hold: Hold,
        store: BlobStore,
        rows: Rows,
        trust: _Trust,
    ) -> None:
        self.contents = contents
        self.ingest = ingest
        self.hold = hold
        self.store = store
        self.rows = rows
        self.trust = trust
        self.rows_seen: dict[Digest, BlobRow] = {}
        self._made = {digest: ingest.stage(io.BytesIO(raw), len(raw)) for digest, raw in layout.made.items()}

    def body(self, digest: Digest) -> Staged | None:
        """The archive's bytes of a digest, or None."""
        return self._made.get(digest) or self.contents.blobs.get(digest) or self._linked(digest)

    def _linked(self, digest: Digest) -> Staged | None:
        """A blob whose path is a link to a member of another name."""
        path = f"blobs/{digest.algorithm}/{digest.hex}"
        if path not in self.contents.links:
            return None
        body = self.contents.resolve(path)
        return body if body.digest == digest else None

    def sizes(self, digests: Collection[Digest]) -> dict[Digest, int]:
        """The sizes of those that are here, after listing them in the hold."""
        bodies = {digest: self.body(digest) for digest in digests}
        sizes = {digest: body.size for digest, body in bodies.items() if body is not None}
        absent = [digest for digest, body in bodies.items() if body is None]
        for digest in absent:
            if digest in self.contents.liars:
                raise BadArchiveError(
                    f"{self.contents.liars[digest]}: the bytes have another digest than the name says"
                )
        self.hold.add(absent)
        for digest, row in self.rows.find(absent).items():
            if self._usable(row):
                self.rows_seen[digest] = row
                sizes[digest] = row.size
        return sizes

    def awaited(self, digests: Collection[Digest]) -> list[Descriptor]:
        """Those that documents of the store refer to as manifests or indexes, and that were absent."""
        return [
            Descriptor(row.media_type, digest, row.size)
            for digest, row in self.rows.find(digests).items()
            if not row.present and spec.kind_of(row.media_type) is not None
        ]

    def _usable(self, row: BlobRow) -> bool:
        status = self.store.stat(row.digest) if row.present and row.damaged_at is None else None
        return status is not None and status.size == row.size

    def read(self, digest: Digest) -> bytes:
        """The bytes of a document that is here."""
        body = self.body(digest)
        if body is not None:
            return _read(self.ingest, self.store, body)
        with self.store.open(digest) as file:
            raw = file.read()
        if Digest.of(raw, digest.algorithm) != digest:
            raise BadArchiveError(
                f"blob {digest} of the store is damaged; import a complete archive of its image"
            )
        return raw


def _read(ingest: Ingest, store: BlobStore, staged: Staged) -> bytes:
    with ingest.open(staged) if staged.token else store.open(staged.digest) as file:
        return file.read(spec.INDEX_JSON_LIMIT + 1)
