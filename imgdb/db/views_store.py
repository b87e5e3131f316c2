"""Views of what the store keeps and why: blobs, garbage, space, leases and the past of names."""

# ruff: noqa: S608 - the SQL is put together from constants of this module

from __future__ import annotations

from imgdb.db.triggers import NOW
from imgdb.db.view import BYTES, View, flag, json, moment, number, text

_DIGEST = "sha256:4b825dc6…"

BLOBS = View(
    "imgdb_v1_blobs",
    "One row for each blob that is held here, or that something held here refers to.",
    {
        "digest": text("b.digest", "names the blob's bytes", _DIGEST),
        "size": number("b.size", "of the blob", "2155520", BYTES),
        "kind": text("b.kind", "manifest, index, config, layer or blob", "layer"),
        "media_type": text("b.media_type", "as first seen", "application/vnd.oci.image.layer.v1.tar+gzip"),
        "present": flag("b.present", "the blob is held here"),
        "refcount": number(
            "b.refcount", "counted references: documents, image names, leases that are not flat", "2"
        ),
        "flat_refcount": number("b.flat_refcount", "flat leases on the blob itself", "0"),
        "damaged": moment("b.damaged_at", "when its file was found damaged; NULL when sound"),
        "created": moment("b.created_at", "when the store first heard of it"),
        "verified": moment("b.verified_at", "when its file was last read and found right; NULL when never"),
    },
    "FROM imgdb_blobs AS b",
)

_EXPIRED = (
    "(SELECT count(*) FROM imgdb_lease_resources AS r JOIN imgdb_leases AS l ON l.id = r.lease_id"
    f" WHERE r.type = '{{type}}' AND r.key = {{key}} AND l.expires_at < {NOW}"
    # What its owner says is asked by gc only; until then an owned lease counts as alive.
    " AND l.owner_kind IS NULL)"
)

GARBAGE = View(
    "imgdb_v1_garbage",
    "Candidates for the next gc: nothing counts on them, and no lease that has not expired. What is"
    " below them follows when they go, and gc confirms each by its edges: `imgdb gc --dry-run` is exact.",
    {
        "type": text("g.type", "content (a blob) or snapshots", "content"),
        "key": text("g.key", "the blob's digest or the snapshot's key", _DIGEST),
        "kind": text("g.kind", "a blob's kind, or committed", "manifest"),
        "size": number("g.size", "of its file or files; NULL when unknown", "1024", BYTES),
        "created": moment("g.created_at", "when the store first heard of it"),
    },
    "FROM (SELECT 'content' AS type, b.digest AS key, b.kind, b.size, b.created_at"
    " FROM imgdb_blobs AS b WHERE b.present <> 0"
    f" AND b.refcount + b.flat_refcount = {_EXPIRED.format(type='content', key='b.digest')}"
    " UNION ALL SELECT 'snapshots', s.key, s.kind, s.usage_bytes, s.created_at"
    " FROM imgdb_snapshots AS s WHERE s.kind = 'committed'"
    f" AND s.refcount = {_EXPIRED.format(type='snapshots', key='s.key')}) AS g",
)

_KINDS = " UNION ALL ".join(
    f"SELECT '{kind}' AS type" for kind in ("index", "manifest", "config", "layer", "blob")
)

DISK_USAGE = View(
    "imgdb_v1_disk_usage",
    "One row for each type of thing that takes space.",
    {
        "type": text("u.type", "index, manifest, config, layer, blob, snapshot or doomed", "layer"),
        "total": number("u.total", "number of files; of directories for snapshots", "120"),
        "size": number(
            "u.size", "what they take; doomed files are already without a row and go next", "734003200", BYTES
        ),
    },
    f"FROM (SELECT k.type, count(b.id) AS total, coalesce(sum(b.size), 0) AS size FROM ({_KINDS}) AS k"
    " LEFT JOIN imgdb_blobs AS b ON b.kind = k.type AND b.present <> 0 GROUP BY k.type"
    " UNION ALL SELECT 'snapshot', count(*), coalesce(sum(usage_bytes), 0) FROM imgdb_snapshots"
    " UNION ALL SELECT 'doomed', count(*), coalesce(sum(size), 0) FROM imgdb_doomed) AS u",
)

LEASES = View(
    "imgdb_v1_leases",
    "One row for each lease; a pin is a lease without expiry.",
    {
        "id": text("l.id", "chosen by its maker, or random", "123456789-AbCd"),
        "created": moment("l.created_at", "when it was made"),
        "expires": moment("l.expires_at", "when it ends; NULL when never"),
        "expired": flag(
            f"coalesce(l.expires_at < {NOW}, 0) AND l.owner_kind IS NULL",
            "its time is over and no owner keeps it, so gc treats it as gone",
        ),
        "flat": flag("l.flat", "protects the named blobs only, not what they refer to"),
        "owner_kind": text("l.owner_kind", "kind of the host application's row that owns it, or NULL", "run"),
        "owner_id": text("l.owner_id", "which row that is, or NULL", "42"),
        "labels": json("l.labels", "labels of the lease", '{"a": "b"}'),
        "resources": number(
            "(SELECT count(*) FROM imgdb_lease_resources AS r WHERE r.lease_id = l.id)",
            "number of things that it protects",
            "3",
        ),
    },
    "FROM imgdb_leases AS l",
)

HISTORY = View(
    "imgdb_v1_history",
    "One row for each time that a name pointed to a target; it protects nothing.",
    {
        "name": text("h.name", "canonical name", "docker.io/library/busybox:latest"),
        "digest": text("h.digest", "what it pointed to; may be gone from the store", _DIGEST),
        "media_type": text("h.media_type", "of the target", "application/vnd.oci.image.index.v1+json"),
        "size": number("h.size", "of the target's own bytes", "1024", BYTES),
        "since": moment("h.from_at", "when it began to"),
        "until": moment("h.until_at", "when it moved on or was removed; NULL while it still does"),
    },
    "FROM imgdb_image_history AS h",
)

_CHAIN = "sha256:328be8fe…"

SNAPSHOTS = View(
    "imgdb_v1_snapshots",
    "One row for each unpacked layer, and for each file system that was prepared on one.",
    {
        "key": text("s.key", "its name; of an unpacked layer the chain ID", _CHAIN),
        "kind": text(
            "s.kind", "active (writable), view (read-only) or committed (never changes)", "committed"
        ),
        "parent": text("p.key", "key of the snapshot below; NULL for none", "sha256:ac8b22cd…"),
        "chain_id": text("s.chain_id", "of an unpacked layer; NULL for what was prepared by hand", _CHAIN),
        "size": number(
            "s.usage_bytes",
            "of its own directory, without its parents; NULL while it can change",
            "83886080",
            BYTES,
        ),
        "inodes": number("s.usage_inodes", "in its own directory; NULL while it can change", "6668"),
        "refcount": number("s.refcount", "children, unpacked manifests, mounts and leases", "1"),
        "manifest": text(
            "(SELECT min(b.digest) FROM imgdb_unpacks AS u JOIN imgdb_blobs AS b ON b.id = u.manifest_id"
            " WHERE u.snapshot_id = s.id)",
            "digest of an image manifest of which this is the topmost layer; NULL for none",
            _DIGEST,
        ),
        "labels": json("s.labels", "labels of the snapshot", '{"a": "b"}'),
        "directory": text(
            "'snapshots/' || s.id || '/fs'",
            "where it is, below the store, in overlayfs's form",
            "snapshots/7/fs",
        ),
        "created": moment("s.created_at", "when it was made"),
    },
    "FROM imgdb_snapshots AS s LEFT JOIN imgdb_snapshots AS p ON p.id = s.parent_id",
)

MOUNTS = View(
    "imgdb_v1_mounts",
    "One row for each mount that `imgdb mount` made and nobody ended with `imgdb umount`.",
    {
        "target": text("m.target", "the directory", "/mnt/app"),
        "snapshot": text("s.key", "key of what is mounted there", _CHAIN),
        "boot_id": text(
            "m.boot_id",
            "of the machine's run in which it was made, as in /proc/sys/kernel/random/boot_id; of another one"
            " it is over",
            "04453bac-168a-4ef2-adda-9c7ea2dc5200",
        ),
        "created": moment("m.created_at", "when it was made"),
    },
    "FROM imgdb_mounts AS m JOIN imgdb_snapshots AS s ON s.id = m.snapshot_id",
)
