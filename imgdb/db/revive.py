"""What an import brings to documents that are here already: their edges again, or a config at last.

Some lost their edges while a flat lease kept their bytes, and something needs them again. gc reads
no manifest and stops at one whose edges it can't see. So whoever adds a strong reference derives
them in the same transaction, from the text that was kept. Source: design §3, §4.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from imgdb.db import blobs, mend
from imgdb.db.graph import Expansion
from imgdb.db.models import Blob
from imgdb.db.sql import now_us, table_of
from imgdb.errors import BadArchiveError
from imgdb.oci import spec
from imgdb.oci.digest import Digest
from imgdb.oci.spec import Descriptor, Document, ImageConfig, Kind

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from sqlalchemy import Connection

_blobs = table_of(Blob)


def revive(connection: Connection) -> None:
    """Record the edges of all documents that are here and needed and lack them, and of those below.

    What has no text, or one that can't be read, is left for gc to name and for check to repair.
    """
    tried: set[Digest] = set()
    while asleep := {digest: row for digest, row in _asleep(connection).items() if digest not in tried}:
        tried |= asleep.keys()
        for digest, raw in blobs.texts(connection, asleep).items():
            document = _parse(raw, asleep[digest])
            if document is not None:
                mend.rewrite(connection, digest, document, _config(connection, document), at=now_us())


def teach(connection: Connection, configs: Mapping[Digest, ImageConfig], *, but: Container[Digest]) -> None:
    """Layers of manifests that were here before one of these configs learn their diff IDs.

    Args:
        connection: inside a write transaction.
        configs: that have just come.
        but: manifests that know their config.
    """
    parents = [row for row in mend.parents_by_config(connection, configs) if row.digest not in but]
    texts = blobs.texts(connection, [row.digest for row in parents])
    items = []
    for row in parents:
        raw = texts.get(row.digest)
        document = None if raw is None else _parse(raw, Descriptor(row.media_type, row.digest, row.size))
        config = configs.get(document.config.digest) if document and document.config else None
        if document is not None and config is not None:
            items.append(Expansion(row.digest, document, config))
    if items:
        mend.learn(connection, items)


def _asleep(connection: Connection) -> dict[Digest, Descriptor]:
    rows = connection.execute(
        select(_blobs.c.digest, _blobs.c.media_type, _blobs.c.size).where(
            _blobs.c.kind.in_([Kind.MANIFEST, Kind.INDEX]),
            _blobs.c.expanded.is_(False),
            _blobs.c.present,
            _blobs.c.refcount > 0,
        )
    )
    return {
        digest: Descriptor(row.media_type, digest, row.size)
        for row in rows
        for digest in [Digest.parse(row.digest)]
    }


def _parse(raw: bytes, reference: Descriptor) -> Document | None:
    try:
        return spec.read_document(raw, reference)
    except BadArchiveError:
        return None


def _config(connection: Connection, document: Document) -> ImageConfig | None:
    """Parsed from its text, which is kept only of a config that is here."""
    if document.config is None or document.config.media_type not in spec.CONFIG_TYPES:
        return None
    digest = document.config.digest
    row = blobs.find(connection, [digest]).get(digest)
    raw = blobs.texts(connection, [digest]).get(digest) if row is not None and row.present else None
    return None if raw is None else spec.read_config(raw, f"config {digest}")
