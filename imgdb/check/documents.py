"""What rows should say about a blob, derived again from its bytes, and how they differ.

Pure: bytes and rows come in, differences go out. `spec.read_document` says what a document
leads to, here as on import. Source: design §3 (the edges are the truth), §7 (check).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imgdb.db.audit import DOCUMENT_KINDS
from imgdb.db.blobs import DOCUMENT_TEXT_LIMIT
from imgdb.db.sql import descriptor_values
from imgdb.errors import BadArchiveError
from imgdb.oci import spec
from imgdb.oci.spec import Descriptor, Kind, Role, chain_ids

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imgdb.db.audit import Recorded, Reference
    from imgdb.db.blobs import BlobRow
    from imgdb.oci.spec import Document, ImageConfig

_MAX_NAMED = 3
_KINDS_OF_ROLE = {Role.CONFIG.value: Kind.CONFIG, Role.LAYER.value: Kind.LAYER}


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which rows differ from a blob.

    Attributes:
        id: of the finding.
        values: columns of the blob's row that are wrong, with what they should be.
    """

    id: str
    detail: str
    values: Mapping[str, Any] = field(default_factory=dict)


def parse(raw: bytes, row: BlobRow) -> Document | None:
    """A manifest or an index from its bytes, whatever the row says of its type; None for anything else."""
    if len(raw) > spec.MANIFEST_LIMIT:
        return None
    for media_type in (row.media_type, ""):
        with suppress(BadArchiveError):
            return spec.read_document(raw, Descriptor(media_type, row.digest, row.size))
    return None


def parse_config(raw: bytes | None) -> ImageConfig | None:
    """An image config from its bytes, or None."""
    if raw is None or len(raw) > spec.CONFIG_LIMIT:
        return None
    with suppress(BadArchiveError):
        return spec.read_config(raw, "config")
    return None


def is_meant_as_document(references: Sequence[Reference]) -> bool:
    """Whether something refers to the blob as a manifest or an index."""
    return any(
        role == Role.MANIFEST and (not media_type or spec.kind_of(media_type) is not None)
        for role, media_type in references
    )


def is_meant_as_config(references: Sequence[Reference]) -> bool:
    """Whether a manifest refers to the blob as an image's config."""
    return any(role == Role.CONFIG and media_type in spec.CONFIG_TYPES for role, media_type in references)


def meaning(raw: bytes | None, row: BlobRow, references: Sequence[Reference]) -> tuple[str, str] | None:
    """Kind and media type of a blob, from its bytes and from what refers to it.

    Args:
        raw: its bytes, where it may be a document; else None.
        row: for its digest and size.
        references: in their order; the first that fits gives the media type.

    Returns:
        None where something refers to it as a document, and it is none.
    """
    if is_meant_as_document(references):
        document = None if raw is None else parse(raw, row)
        if document is None:
            return None
        fitting = [m for role, m in references if role == Role.MANIFEST and spec.kind_of(m) is document.kind]
        return document.kind.value, (fitting or [document.media_type])[0]
    if not references or (raw is not None and row.kind in DOCUMENT_KINDS and parse(raw, row) is not None):
        return row.kind, row.media_type
    role, media_type = references[0]
    return _KINDS_OF_ROLE.get(role, Kind.BLOB).value, media_type


def row_differences(
    row: BlobRow, document: Document | None, references: Sequence[Reference]
) -> list[Difference]:
    """Where a row's kind and media type contradict the bytes.

    What a blob was once needed as stays right when only weaker references are left.

    Args:
        row: of a blob that is here.
        document: parsed, where the row or a reference says that it is one.
        references: what refers to it.
    """
    if document is None:
        return _of_no_document(row, references)
    fits = not row.media_type or spec.kind_of(row.media_type) is document.kind
    if row.kind == document.kind and fits:
        return []
    right = meaning(document.raw, row, references) if is_meant_as_document(references) else None
    kind, media_type = right or (document.kind.value, document.media_type)
    return [_kind_difference(row, kind, media_type)]


def _of_no_document(row: BlobRow, references: Sequence[Reference]) -> list[Difference]:
    found = []
    if row.expanded:
        found.append(Difference("row-wrong", "marked as expanded, and no document", {"expanded": False}))
    right = meaning(None, row, references) if row.kind in DOCUMENT_KINDS and references else None
    if right is not None:
        found.append(_kind_difference(row, *right))
    return found


def _kind_difference(row: BlobRow, kind: str, media_type: str) -> Difference:
    detail = f"{row.kind} of type {row.media_type!r} instead of {kind} of type {media_type!r}"
    return Difference("row-wrong", detail, {"kind": kind, "media_type": media_type})


def text_difference(raw: bytes, recorded: Recorded, *, wanted: bool) -> list[Difference]:
    """Where the kept text is missing or other than the bytes.

    Args:
        raw: the blob's bytes.
        recorded: what is kept.
        wanted: the text should be kept, if it is not too long.
    """
    if recorded.text is None and wanted and len(raw) <= DOCUMENT_TEXT_LIMIT:
        return [Difference("text-wrong", "it is not kept")]
    if recorded.text is not None and recorded.text != raw:
        return [Difference("text-wrong", "it is another one")]
    return []


def document_differences(
    row: BlobRow, document: Document, config: ImageConfig | None, recorded: Recorded
) -> list[Difference]:
    """Where recorded edges and layers differ from a document that is here."""
    wanted = _edges(document) if row.expanded else {}
    wrong = sorted(
        key for key in wanted.keys() | recorded.edges.keys() if wanted.get(key) != recorded.edges.get(key)
    )
    found = []
    if wrong:
        named = ", ".join(f"{role} {position}" for role, position in wrong[:_MAX_NAMED])
        more = f" and {len(wrong) - _MAX_NAMED} more" if len(wrong) > _MAX_NAMED else ""
        found.append(Difference("edges-wrong", f"{named}{more}"))
    if row.expanded and not _same_layers(document, config, recorded):
        found.append(Difference("layers-wrong", f"{len(recorded.layers)} rows"))
    elif not row.expanded and recorded.layers:
        found.append(Difference("layers-wrong", "rows of a document that is not expanded"))
    return found


def _edges(document: Document) -> dict[tuple[str, int], tuple[str, dict[str, Any], bool]]:
    return {
        (edge.role.value, edge.position): (
            str(edge.child.digest),
            descriptor_values(edge.child),
            edge.role is not Role.SUBJECT,
        )
        for edge in document.edges
    }


def _same_layers(document: Document, config: ImageConfig | None, recorded: Recorded) -> bool:
    layers = [str(layer.digest) for layer in document.layers]
    if [(position, digest) for position, digest, _, _ in recorded.layers] != list(enumerate(layers)):
        return False
    if config is None:
        # What its config said is remembered also when that is lost.
        return True
    diff_ids = [str(digest) for digest in config.diff_ids]
    chain = [str(digest) for digest in chain_ids(config.diff_ids)]
    if len(diff_ids) != len(layers):
        diff_ids = chain = [None] * len(layers)  # type: ignore[list-item]
    return [(diff, ids) for _, _, diff, ids in recorded.layers] == list(zip(diff_ids, chain, strict=True))
