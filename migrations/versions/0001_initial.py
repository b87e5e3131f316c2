"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON(none_as_null=True)

# Referring tables after those they refer to.
TABLES = (
    "imgdb_meta",
    "imgdb_blobs",
    "imgdb_documents",
    "imgdb_descriptors",
    "imgdb_images",
    "imgdb_layers",
    "imgdb_leases",
    "imgdb_lease_resources",
    "imgdb_snapshots",
    "imgdb_unpacks",
    "imgdb_mounts",
    "imgdb_image_history",
    "imgdb_events",
    "imgdb_doomed",
)


def upgrade() -> None:
    """Make the tables and their indexes."""
    _meta()
    _blobs()
    _descriptors()
    _images()
    _leases()
    _snapshots()
    _mounts()
    _past()


def downgrade() -> None:
    """Undo `upgrade`."""
    for table in reversed(TABLES):
        op.drop_table(table)


def _meta() -> None:
    op.create_table(
        "imgdb_meta",
        sa.Column("id", BIG, nullable=False),
        sa.Column("store_id", sa.String(), nullable=False),
        sa.Column("generation", BIG, nullable=False),
        sa.Column("format", sa.Integer(), nullable=False),
        sa.Column("min_reader", sa.Integer(), nullable=False),
        sa.Column("min_writer", sa.Integer(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("imgdb_meta_ck_single_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("imgdb_meta_pk")),
    )


def _blobs() -> None:
    op.create_table(
        "imgdb_blobs",
        sa.Column("id", BIG, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size", BIG, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("media_type", sa.String(), nullable=False),
        sa.Column("present", sa.Boolean(), nullable=False),
        sa.Column("expanded", sa.Boolean(), nullable=False),
        sa.Column("damaged_at", BIG),
        sa.Column("ctime_ns", BIG),
        sa.Column("blake3", sa.String()),
        sa.Column("refcount", sa.Integer(), server_default="0", nullable=False),
        sa.Column("flat_refcount", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("verified_at", BIG),
        sa.CheckConstraint("refcount >= 0 AND flat_refcount >= 0", name=op.f("imgdb_blobs_ck_refcounts")),
        sa.CheckConstraint("size >= 0", name=op.f("imgdb_blobs_ck_size")),
        sa.PrimaryKeyConstraint("id", name=op.f("imgdb_blobs_pk")),
        sa.UniqueConstraint("digest", name=op.f("imgdb_blobs_uq_digest")),
    )
    op.create_index(op.f("imgdb_blobs_ix_damaged_at"), "imgdb_blobs", ["damaged_at"])
    op.create_index(op.f("imgdb_blobs_ix_refcount"), "imgdb_blobs", ["refcount"])
    op.create_index(
        op.f("imgdb_blobs_ix_kind_expanded_present_size"),
        "imgdb_blobs",
        ["kind", "expanded", "present", "size"],
    )
    op.create_table(
        "imgdb_documents",
        sa.Column("blob_id", BIG, nullable=False),
        sa.Column("json", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["blob_id"], ["imgdb_blobs.id"], name=op.f("imgdb_documents_fk_blob_id")),
        sa.PrimaryKeyConstraint("blob_id", name=op.f("imgdb_documents_pk")),
    )


def _descriptors() -> None:
    op.create_table(
        "imgdb_descriptors",
        sa.Column("id", BIG, nullable=False),
        sa.Column("parent_id", BIG, nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("position", BIG, nullable=False),
        sa.Column("counted", sa.Boolean(), nullable=False),
        sa.Column("child_id", BIG, nullable=False),
        *_descriptor(),
        sa.ForeignKeyConstraint(["child_id"], ["imgdb_blobs.id"], name=op.f("imgdb_descriptors_fk_child_id")),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["imgdb_blobs.id"], name=op.f("imgdb_descriptors_fk_parent_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("imgdb_descriptors_pk")),
        sa.UniqueConstraint(
            "parent_id", "role", "position", name=op.f("imgdb_descriptors_uq_parent_id_role_position")
        ),
    )
    op.create_index(op.f("imgdb_descriptors_ix_child_id_role"), "imgdb_descriptors", ["child_id", "role"])


def _images() -> None:
    op.create_table(
        "imgdb_images",
        sa.Column("id", BIG, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("target_id", BIG, nullable=False),
        sa.Column("labels", JSON, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("updated_at", BIG, nullable=False),
        sa.Column("last_used_at", BIG),
        *_descriptor(),
        sa.ForeignKeyConstraint(["target_id"], ["imgdb_blobs.id"], name=op.f("imgdb_images_fk_target_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("imgdb_images_pk")),
        sa.UniqueConstraint("name", name=op.f("imgdb_images_uq_name")),
    )
    op.create_index(op.f("imgdb_images_ix_target_id"), "imgdb_images", ["target_id"])
    op.create_table(
        "imgdb_layers",
        sa.Column("manifest_id", BIG, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("layer_id", BIG, nullable=False),
        sa.Column("diff_id", sa.String()),
        sa.Column("chain_id", sa.String()),
        sa.Column("uncompressed_size", BIG),
        sa.ForeignKeyConstraint(["layer_id"], ["imgdb_blobs.id"], name=op.f("imgdb_layers_fk_layer_id")),
        sa.ForeignKeyConstraint(
            ["manifest_id"], ["imgdb_blobs.id"], name=op.f("imgdb_layers_fk_manifest_id")
        ),
        sa.PrimaryKeyConstraint("manifest_id", "position", name=op.f("imgdb_layers_pk")),
    )
    op.create_index(op.f("imgdb_layers_ix_chain_id"), "imgdb_layers", ["chain_id"])
    op.create_index(op.f("imgdb_layers_ix_layer_id"), "imgdb_layers", ["layer_id"])


def _leases() -> None:
    op.create_table(
        "imgdb_leases",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("expires_at", BIG),
        sa.Column("flat", sa.Boolean(), nullable=False),
        sa.Column("labels", JSON, nullable=False),
        sa.Column("owner_kind", sa.String()),
        sa.Column("owner_id", sa.String()),
        sa.PrimaryKeyConstraint("id", name=op.f("imgdb_leases_pk")),
    )
    op.create_index(op.f("imgdb_leases_ix_expires_at"), "imgdb_leases", ["expires_at"])
    op.create_table(
        "imgdb_lease_resources",
        sa.Column("lease_id", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["lease_id"], ["imgdb_leases.id"], name=op.f("imgdb_lease_resources_fk_lease_id")
        ),
        sa.PrimaryKeyConstraint("lease_id", "type", "key", name=op.f("imgdb_lease_resources_pk")),
    )
    op.create_index(op.f("imgdb_lease_resources_ix_type_key"), "imgdb_lease_resources", ["type", "key"])


def _snapshots() -> None:
    op.create_table(
        "imgdb_snapshots",
        sa.Column("id", BIG, nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("parent_id", BIG),
        sa.Column("chain_id", sa.String()),
        sa.Column("labels", JSON, nullable=False),
        sa.Column("usage_bytes", BIG),
        sa.Column("usage_inodes", BIG),
        sa.Column("refcount", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("updated_at", BIG, nullable=False),
        sa.CheckConstraint("kind IN ('active', 'view', 'committed')", name=op.f("imgdb_snapshots_ck_kind")),
        sa.CheckConstraint("refcount >= 0", name=op.f("imgdb_snapshots_ck_refcount")),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["imgdb_snapshots.id"], name=op.f("imgdb_snapshots_fk_parent_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("imgdb_snapshots_pk")),
        sa.UniqueConstraint("key", name=op.f("imgdb_snapshots_uq_key")),
    )
    op.create_index(op.f("imgdb_snapshots_ix_chain_id"), "imgdb_snapshots", ["chain_id"])
    op.create_index(op.f("imgdb_snapshots_ix_parent_id"), "imgdb_snapshots", ["parent_id"])


def _mounts() -> None:
    op.create_table(
        "imgdb_unpacks",
        sa.Column("manifest_id", BIG, nullable=False),
        sa.Column("snapshot_id", BIG, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.ForeignKeyConstraint(
            ["manifest_id"], ["imgdb_blobs.id"], name=op.f("imgdb_unpacks_fk_manifest_id")
        ),
        sa.ForeignKeyConstraint(
            ["snapshot_id"], ["imgdb_snapshots.id"], name=op.f("imgdb_unpacks_fk_snapshot_id")
        ),
        sa.PrimaryKeyConstraint("manifest_id", name=op.f("imgdb_unpacks_pk")),
    )
    op.create_index(op.f("imgdb_unpacks_ix_snapshot_id"), "imgdb_unpacks", ["snapshot_id"])
    op.create_table(
        "imgdb_mounts",
        sa.Column("id", BIG, nullable=False),
        sa.Column("snapshot_id", BIG, nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("boot_id", sa.String(), nullable=False),
        sa.Column("pid", sa.Integer()),
        sa.Column("created_at", BIG, nullable=False),
        sa.ForeignKeyConstraint(
            ["snapshot_id"], ["imgdb_snapshots.id"], name=op.f("imgdb_mounts_fk_snapshot_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("imgdb_mounts_pk")),
        sa.UniqueConstraint("target", name=op.f("imgdb_mounts_uq_target")),
    )
    op.create_index(op.f("imgdb_mounts_ix_snapshot_id"), "imgdb_mounts", ["snapshot_id"])


def _past() -> None:
    op.create_table(
        "imgdb_image_history",
        sa.Column("id", BIG, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("media_type", sa.String(), nullable=False),
        sa.Column("size", BIG, nullable=False),
        sa.Column("from_at", BIG, nullable=False),
        sa.Column("until_at", BIG),
        sa.PrimaryKeyConstraint("id", name=op.f("imgdb_image_history_pk")),
    )
    op.create_index(op.f("imgdb_image_history_ix_name_from_at"), "imgdb_image_history", ["name", "from_at"])
    op.create_table(
        "imgdb_events",
        sa.Column("id", BIG, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("name", sa.String()),
        sa.Column("attributes", JSON, nullable=False),
        sa.Column("uid", sa.Integer()),
        sa.Column("sudo_user", sa.String()),
        sa.Column("host", sa.String()),
        sa.Column("version", sa.String()),
        sa.Column("source", sa.String()),
        sa.Column("archive_sha256", sa.String()),
        sa.PrimaryKeyConstraint("id", name=op.f("imgdb_events_pk")),
    )
    op.create_index(op.f("imgdb_events_ix_at"), "imgdb_events", ["at"])
    op.create_table(
        "imgdb_doomed",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size", BIG, nullable=False),
        sa.Column("doomed_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("imgdb_doomed_pk")),
    )


def _descriptor() -> list[sa.Column]:
    return [
        sa.Column("media_type", sa.String(), nullable=False),
        sa.Column("size", BIG, nullable=False),
        sa.Column("artifact_type", sa.String()),
        sa.Column("annotations", JSON),
        sa.Column("urls", JSON),
        sa.Column("os", sa.String()),
        sa.Column("architecture", sa.String()),
        sa.Column("variant", sa.String()),
        sa.Column("os_version", sa.String()),
        sa.Column("os_features", JSON),
    ]
