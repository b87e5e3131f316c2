"""The rows of an import: blobs, documents, edges, then names and events.

Functions take a connection inside a write transaction and never commit. Names come last:
nothing is visible under a name before everything below it is there. Source: design §4.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgdb.db import blobs, events, graph, images, leases, pins
from imgdb.db.blobs import BlobRow
from imgdb.db.graph import Expansion
from imgdb.db.revive import revive, teach
from imgdb.errors import RefusedError
from imgdb.oci.reference import dangling_name, familiar

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy import Connection

    from imgdb.db.images import ImageRecord
    from imgdb.importer.plan import Wanted
    from imgdb.importer.walk import StagedImport
    from imgdb.oci.digest import Digest
    from imgdb.oci.spec import Descriptor


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """One image of an import, as it is reported.

    Attributes:
        name: canonical; None when it has none and is kept as dangling.
        digest: the image ID.
        platforms: of which everything is here.
        absent: platforms that its index lists and that are not here.
        state: ``new``, ``same``, or ``replaces`` when the name pointed elsewhere.
        previous: where it pointed.
    """

    name: str | None
    digest: Digest
    platforms: tuple[str, ...]
    absent: tuple[str, ...]
    state: str
    previous: Digest | None = None

    @property
    def display_name(self) -> str:
        """Familiar name with tag, or the digest."""
        return familiar(self.name) if self.name else str(self.digest)


def write_content(connection: Connection, staged: StagedImport, digests: Collection[Digest]) -> None:
    """Rows of some kept blobs, whose files are durable and held, with texts and edges of the documents.

    Together, for a collector beside a large import stops at a document that is here without its edges.
    """
    blobs.put_present(connection, [staged.rows[digest] for digest in digests])
    nodes = staged.plan.graph.nodes
    documents = [(digest, document) for digest in digests if (document := nodes[digest].document)]
    children = {edge.child.digest: edge.child for _, document in documents for edge in document.edges}
    ids = _ids_with_stubs(connection, staged, digests, children)
    configs = {digest: config for digest in digests if (config := nodes[digest].config)}
    texts = {ids[digest]: document.raw for digest, document in documents}
    blobs.put_texts(connection, texts | {ids[digest]: config.raw for digest, config in configs.items()})
    graph.expand(
        connection,
        [
            Expansion(digest, document, staged.plan.graph.config_of(document))
            for digest, document in documents
        ],
        ids,
    )
    teach(connection, configs, but=nodes)
    # What a new edge leads to may be here without its own.
    revive(connection)


def _ids_with_stubs(
    connection: Connection,
    staged: StagedImport,
    digests: Collection[Digest],
    children: Mapping[Digest, Descriptor],
) -> dict[Digest, int]:
    """Row ids of blobs and of their children; those that are not here, or not yet, get a row as well."""
    ids = blobs.ids(connection, {*digests, *children})
    nodes = staged.plan.graph.nodes
    stubs = [
        BlobRow(digest, child.size, nodes[digest].kind.value, child.media_type, present=False)
        for digest, child in children.items()
        if digest not in ids
    ]
    blobs.put_stubs(connection, stubs)
    return ids | blobs.ids(connection, [stub.digest for stub in stubs])


def write_names(
    connection: Connection, staged: StagedImport, *, replace: str, at: int, lease: str | None = None
) -> list[LoadedImage]:
    """Names, dangling records and events; reads what is there inside the same transaction.

    Args:
        connection: inside the last transaction of the import.
        staged: blobs and edges are written.
        replace: see `ImportOptions`.
        at: microseconds since the epoch.
        lease: id of one that shall keep the targets.

    Raises:
        RefusedError: a name points elsewhere, and is pinned or `replace` is ``refuse``.
        NotFoundError: there is no such lease.
    """
    targets = [image.target for image in staged.plan.images if image.target.digest not in staged.rows]
    stubs = [BlobRow(t.digest, t.size, "blob", t.media_type, present=False, created_at=at) for t in targets]
    blobs.put_stubs(connection, stubs)
    result = compare(connection, staged.plan.images, replace=replace)
    for wanted, loaded in zip(staged.plan.images, result, strict=True):
        _put_name(connection, wanted, loaded, keep_old=replace == "dangle", at=at)
    images.drop_useless_dangling(connection, {image.target.digest for image in staged.plan.images})
    events.record(connection, [_event(loaded, staged.source) for loaded in result], at)
    if lease is not None:
        leases.add_content(connection, lease, (str(loaded.digest) for loaded in result))
    return result


def compare(
    connection: Connection, wanted: Sequence[Wanted], *, replace: str = "dangle"
) -> list[LoadedImage]:
    """What naming these images would change; the whole of a dry run.

    Raises:
        RefusedError: it would move a name that is pinned, or any when `replace` is ``refuse``.
    """
    existing = images.by_names(connection, {image.name for image in wanted if image.name})
    targets = {image.name: image.target.digest for image in wanted}
    now = {name: record.target.digest for name, record in existing.items()}
    pins.refuse(connection, {name: digest for name, digest in now.items() if targets[name] != digest})
    named = {
        record.target.digest for record in images.by_targets(connection, {i.target.digest for i in wanted})
    }
    result = [_compare(image, existing.get(image.name or ""), named) for image in wanted]
    _refuse_moves(result, replace)
    return result


def _compare(image: Wanted, existing: ImageRecord | None, named: Collection[Digest]) -> LoadedImage:
    digest = image.target.digest
    state, previous = "new", None
    if existing is not None and existing.target.digest != digest:
        state, previous = "replaces", existing.target.digest
    elif existing is not None or (image.name is None and digest in named):
        state = "same"
    return LoadedImage(image.name, digest, image.platforms, image.absent, state, previous)


def _refuse_moves(loaded: Sequence[LoadedImage], replace: str) -> None:
    moved = next((image for image in loaded if image.state == "replaces"), None)
    if moved is not None and replace == "refuse":
        raise RefusedError(
            f"{moved.display_name} is {moved.previous} here and {moved.digest} in the archive; "
            "nothing was imported (--replace dangle moves the name and keeps the old image)"
        )


def _put_name(
    connection: Connection, wanted: Wanted, loaded: LoadedImage, *, keep_old: bool, at: int
) -> None:
    if loaded.state == "same":
        return
    if loaded.previous is not None and keep_old and wanted.name:
        images.keep_as_dangling(connection, wanted.name, at=at)
    images.put(connection, wanted.name or dangling_name(loaded.digest), wanted.target, at=at)


def _event(loaded: LoadedImage, source: str) -> events.NewEvent:
    return events.NewEvent("load", str(loaded.digest), loaded.name, source=source)
