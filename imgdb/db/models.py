"""The schema. The edges are the truth; the counters are a cache kept by triggers.

::

    imgdb_meta             one row: the store this database belongs to, generation, versions
    imgdb_blobs            a digest that is here (present=1) or that somebody refers to (stub)
      ├ imgdb_documents      its JSON text, when it is a manifest, an index or a config
      ├ imgdb_descriptors    parent ─role, position─▶ child: one row per reference in a document
      └ imgdb_layers         manifest, position ─▶ layer blob, diff ID, chain ID
    imgdb_images           name ─▶ target blob
      └ imgdb_image_history  which name pointed where, from when to when (written by triggers)
    imgdb_leases           protect what has rows, until they expire
      └ imgdb_lease_resources  (type, key); the thing need not exist yet
    imgdb_snapshots        unpacked file systems: key ─parent─▶ key
      ├ imgdb_unpacks        manifest ─▶ its top snapshot
      └ imgdb_mounts         what is mounted where, by whom
    imgdb_events           what happened, for people and for audits
    imgdb_doomed           digests whose file is still to be swept

Counters: ``imgdb_blobs.refcount`` = counted descriptor rows + image rows + resources of
leases that are not flat; ``flat_refcount`` = resources of flat leases;
``imgdb_snapshots.refcount`` = child snapshots + unpacks + mounts + lease resources.
Triggers (`imgdb.db.triggers`) keep them, so plain SQL of an admin keeps them too.
Cascades are triggers as well: a host application may have foreign keys off.

Times are INTEGER microseconds since the epoch, UTC; sizes are bytes. A change here needs a
migration, which must leave `compare_metadata` with nothing to say. Source: design §3.
"""

from __future__ import annotations

from typing import Annotated, Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

PREFIX = "imgdb_"

# SQLite's index names are global to the file, so a guest's begin with its table's name.
_NAMING = {
    "ix": "%(table_name)s_ix_%(column_0_N_name)s",
    "uq": "%(table_name)s_uq_%(column_0_N_name)s",
    "ck": "%(table_name)s_ck_%(constraint_name)s",
    "fk": "%(table_name)s_fk_%(column_0_N_name)s",
    "pk": "%(table_name)s_pk",
}

# SQLite makes a rowid alias of INTEGER PRIMARY KEY only; PostgreSQL wants 64 bits said.
_BIG = BigInteger().with_variant(Integer, "sqlite")

RowId = Annotated[int, mapped_column(_BIG, primary_key=True)]
Micros = Annotated[int, mapped_column(_BIG)]
Bytes = Annotated[int, mapped_column(_BIG)]
Counter = Annotated[int, mapped_column(server_default="0")]
BlobRef = Annotated[int, mapped_column(_BIG, ForeignKey("imgdb_blobs.id"))]
JsonObject = Annotated[dict[str, Any], mapped_column(JSON(none_as_null=True))]
JsonArray = Annotated[list[Any], mapped_column(JSON(none_as_null=True))]
SnapshotRef = Annotated[int, mapped_column(_BIG, ForeignKey("imgdb_snapshots.id"))]


class Base(DeclarativeBase):
    """imgdb's own metadata; never mixed with a host's."""

    metadata = MetaData(naming_convention=_NAMING)


class DescriptorColumns:
    """What a descriptor says about its target, beside the digest."""

    media_type: Mapped[str]
    size: Mapped[Bytes]
    artifact_type: Mapped[str | None]
    annotations: Mapped[JsonObject | None]
    urls: Mapped[JsonArray | None]
    os: Mapped[str | None]
    architecture: Mapped[str | None]
    variant: Mapped[str | None]
    os_version: Mapped[str | None]
    os_features: Mapped[JsonArray | None]


class Meta(Base):
    """The pair of store and database (design §4.10)."""

    __tablename__ = "imgdb_meta"
    __table_args__ = (CheckConstraint("id = 1", name="single_row"),)

    id: Mapped[RowId]
    store_id: Mapped[str]
    generation: Mapped[int] = mapped_column(_BIG)
    format: Mapped[int]
    min_reader: Mapped[int]
    min_writer: Mapped[int]


class Blob(Base):
    """Bytes named by a digest."""

    __tablename__ = "imgdb_blobs"
    __table_args__ = (
        UniqueConstraint("digest"),
        CheckConstraint("size >= 0", name="size"),
        CheckConstraint("refcount >= 0 AND flat_refcount >= 0", name="refcounts"),
        Index(None, "refcount"),
        Index(None, "damaged_at"),
        # Finds documents that were not read, and sums up sizes without touching the table.
        Index(None, "kind", "expanded", "present", "size"),
    )

    id: Mapped[RowId]
    digest: Mapped[str]
    size: Mapped[Bytes]
    kind: Mapped[str]
    media_type: Mapped[str]
    present: Mapped[bool]
    expanded: Mapped[bool]
    damaged_at: Mapped[Micros | None]
    ctime_ns: Mapped[int | None] = mapped_column(_BIG)
    blake3: Mapped[str | None]
    refcount: Mapped[Counter]
    flat_refcount: Mapped[Counter]
    created_at: Mapped[Micros]
    verified_at: Mapped[Micros | None]


class DocumentText(Base):
    """Raw text of a manifest, index or config of up to 4 MiB; it parsed as JSON, which views need."""

    __tablename__ = "imgdb_documents"

    blob_id: Mapped[int] = mapped_column(_BIG, ForeignKey("imgdb_blobs.id"), primary_key=True)
    json: Mapped[str]


class DescriptorRow(DescriptorColumns, Base):
    """One reference inside a document."""

    __tablename__ = "imgdb_descriptors"
    __table_args__ = (
        UniqueConstraint("parent_id", "role", "position"),
        Index(None, "child_id", "role"),
    )

    id: Mapped[RowId]
    parent_id: Mapped[BlobRef]
    role: Mapped[str]
    position: Mapped[int] = mapped_column(_BIG)
    counted: Mapped[bool]
    child_id: Mapped[BlobRef]


class Image(DescriptorColumns, Base):
    """A name and what it points to."""

    __tablename__ = "imgdb_images"
    __table_args__ = (UniqueConstraint("name"), Index(None, "target_id"))

    id: Mapped[RowId]
    name: Mapped[str]
    target_id: Mapped[BlobRef]
    labels: Mapped[JsonObject]
    created_at: Mapped[Micros]
    updated_at: Mapped[Micros]
    last_used_at: Mapped[Micros | None]


class Layer(Base):
    """A layer of an image manifest, with what its config says about it."""

    __tablename__ = "imgdb_layers"
    __table_args__ = (
        Index(None, "layer_id"),
        Index(None, "chain_id"),
    )

    manifest_id: Mapped[int] = mapped_column(_BIG, ForeignKey("imgdb_blobs.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    layer_id: Mapped[BlobRef]
    diff_id: Mapped[str | None]
    chain_id: Mapped[str | None]
    uncompressed_size: Mapped[Bytes | None]


class Lease(Base):
    """Protects its resources from gc until it expires."""

    __tablename__ = "imgdb_leases"
    __table_args__ = (Index(None, "expires_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[Micros]
    expires_at: Mapped[Micros | None]
    flat: Mapped[bool]
    labels: Mapped[JsonObject]
    owner_kind: Mapped[str | None]
    owner_id: Mapped[str | None]


class LeaseResource(Base):
    """One thing that a lease protects; type is content, images or snapshots."""

    __tablename__ = "imgdb_lease_resources"
    __table_args__ = (Index(None, "type", "key"),)

    lease_id: Mapped[str] = mapped_column(ForeignKey("imgdb_leases.id"), primary_key=True)
    type: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)


class Snapshot(Base):
    """An unpacked file system state."""

    __tablename__ = "imgdb_snapshots"
    __table_args__ = (
        UniqueConstraint("key"),
        Index(None, "parent_id"),
        Index(None, "chain_id"),
        CheckConstraint("kind IN ('active', 'view', 'committed')", name="kind"),
        CheckConstraint("refcount >= 0", name="refcount"),
    )

    id: Mapped[RowId]
    key: Mapped[str]
    kind: Mapped[str]
    parent_id: Mapped[SnapshotRef | None]
    chain_id: Mapped[str | None]
    labels: Mapped[JsonObject]
    usage_bytes: Mapped[Bytes | None]
    usage_inodes: Mapped[int | None] = mapped_column(_BIG)
    refcount: Mapped[Counter]
    created_at: Mapped[Micros]
    updated_at: Mapped[Micros]


class Unpack(Base):
    """A manifest's top snapshot."""

    __tablename__ = "imgdb_unpacks"
    __table_args__ = (Index(None, "snapshot_id"),)

    manifest_id: Mapped[int] = mapped_column(_BIG, ForeignKey("imgdb_blobs.id"), primary_key=True)
    snapshot_id: Mapped[SnapshotRef]
    created_at: Mapped[Micros]


class Mount(Base):
    """A mount made by imgdb; boot_id and pid tell whether it can still be there."""

    __tablename__ = "imgdb_mounts"
    __table_args__ = (
        UniqueConstraint("target"),
        Index(None, "snapshot_id"),
    )

    id: Mapped[RowId]
    snapshot_id: Mapped[SnapshotRef]
    target: Mapped[str]
    boot_id: Mapped[str]
    pid: Mapped[int | None]
    created_at: Mapped[Micros]


class ImageHistory(Base):
    """A name's past; digests, not row ids, since blobs go and history stays."""

    __tablename__ = "imgdb_image_history"
    __table_args__ = (Index(None, "name", "from_at"),)

    id: Mapped[RowId]
    name: Mapped[str]
    digest: Mapped[str]
    media_type: Mapped[str]
    size: Mapped[Bytes]
    from_at: Mapped[Micros]
    until_at: Mapped[Micros | None]


class Event(Base):
    """What happened: docker's actions, plus who did it from what."""

    __tablename__ = "imgdb_events"
    __table_args__ = (Index(None, "at"),)

    id: Mapped[RowId]
    at: Mapped[Micros]
    action: Mapped[str]
    actor: Mapped[str]
    name: Mapped[str | None]
    attributes: Mapped[JsonObject]
    uid: Mapped[int | None]
    sudo_user: Mapped[str | None]
    host: Mapped[str | None]
    version: Mapped[str | None]
    source: Mapped[str | None]
    archive_sha256: Mapped[str | None]


class Doomed(Base):
    """A digest that lost its row, or its presence, and whose file is still to be swept."""

    __tablename__ = "imgdb_doomed"

    digest: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[Bytes]
    doomed_at: Mapped[Micros]
