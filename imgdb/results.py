"""What the store's methods return: frozen values, never rows of the ORM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgdb.exporter.plan import ExportedImage
    from imgdb.importer.rows import LoadedImage
    from imgdb.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What an import did, or would do.

    Attributes:
        images: in the archive's order.
        new_blobs, new_bytes: what the store did not have.
        warnings: sentences for the user.
    """

    images: tuple[LoadedImage, ...]
    new_blobs: int
    new_bytes: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export wrote: images in the order asked for, blobs and their bytes."""

    images: tuple[ExportedImage, ...]
    blobs: int
    blob_bytes: int


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A blob's row; counters as the triggers keep them, `size` in bytes, times in microseconds."""

    digest: Digest
    size: int
    kind: str
    media_type: str
    present: bool
    damaged: bool
    refcount: int
    flat_refcount: int
    created_at: int
    verified_at: int | None


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """Facts about a store, for people and bug reports."""

    root: str
    database: str
    store_id: str
    generation: int
    schema: str
    images: int
    blobs: int
    blob_bytes: int
