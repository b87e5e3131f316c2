"""Views of what images are made of: names, manifests, configs and layers."""

# ruff: noqa: S608 - the SQL is put together from constants of this module

from __future__ import annotations

from imgdb.db.view import BYTES, View, flag, inside, json, moment, number, text

_DIGEST = "sha256:4b825dc6…"
_ATTESTATION = "EXISTS (SELECT 1 FROM json_each({edge}.annotations) WHERE key = 'vnd.docker.reference.type')"
_FOREIGN = "(instr({edge}.media_type, '.foreign.') OR instr({edge}.media_type, '.nondistributable.'))"

# CROSS JOIN fixes the order: from the few that were reached to their edges, by index.
_KEPT = (
    "WITH RECURSIVE down (id) AS (SELECT i.target_id"
    " UNION SELECT d.child_id FROM down CROSS JOIN imgdb_descriptors AS d"
    " WHERE d.parent_id = down.id AND d.counted <> 0)"
)
_LISTED = (
    "WITH RECURSIVE down (id) AS (SELECT i.target_id"
    " UNION SELECT d.child_id FROM down CROSS JOIN imgdb_descriptors AS d"
    " WHERE d.parent_id = down.id AND d.role = 'manifest')"
)
_OF_CONFIG = (
    " LEFT JOIN imgdb_descriptors AS e ON e.parent_id = m.id AND e.role = 'config' AND e.position = 0"
    " LEFT JOIN imgdb_documents AS doc ON doc.blob_id = e.child_id"
)


def _platform(column: str) -> str:
    """The config's word, else that of the index that lists the manifest."""
    listed = (
        f"(SELECT x.{column} FROM imgdb_descriptors AS x"
        f" WHERE x.child_id = m.id AND x.role = 'manifest' AND x.{column} IS NOT NULL LIMIT 1)"
    )
    said = inside("doc.json", "$." + column)
    return f"coalesce(nullif({said}, ''), {listed})"


_PLATFORMS = (
    f"(SELECT group_concat(platform, ' ') FROM ({_LISTED}"
    f" SELECT DISTINCT {_platform('os')} || '/' || {_platform('architecture')}"
    f" || coalesce('/' || {_platform('variant')}, '') AS platform"
    f" FROM down CROSS JOIN imgdb_blobs AS m ON m.id = down.id{_OF_CONFIG}"
    " WHERE m.kind = 'manifest' AND m.present <> 0 ORDER BY platform)"
    " WHERE platform NOT LIKE 'unknown/%')"
)
_PINNED = (
    "EXISTS (SELECT 1 FROM imgdb_lease_resources AS r JOIN imgdb_leases AS l ON l.id = r.lease_id"
    " WHERE r.type = 'content' AND r.key = b.digest AND l.expires_at IS NULL"
    " AND EXISTS (SELECT 1 FROM json_each(l.labels) WHERE key = 'io.imgdb.pinned' AND value = i.name))"
)

IMAGES = View(
    "imgdb_v1_images",
    "One row for each image name, and for each image that lost its name (dangling).",
    {
        "name": text("i.name", "canonical name", "docker.io/library/busybox:latest"),
        "digest": text("b.digest", "what the name points to: a manifest or an index", _DIGEST),
        "media_type": text("i.media_type", "of the target", "application/vnd.oci.image.index.v1+json"),
        "size": number(
            f"({_KEPT} SELECT coalesce(sum(x.size), 0) FROM down CROSS JOIN imgdb_blobs AS x"
            " WHERE x.id = down.id AND x.present <> 0)",
            "what is held here because of this name, signatures too; shared blobs count for each name",
            "4261550",
            BYTES,
        ),
        "platforms": text(
            _PLATFORMS,
            "of the manifests that are held here, sorted, separated by spaces; NULL when there is none",
            "linux/amd64 linux/arm64/v8",
        ),
        "created": moment("i.created_at", "when the name was first stored"),
        "updated": moment("i.updated_at", "when the name last changed"),
        "last_used": moment("i.last_used_at", "last export, unpack or mount; NULL when never"),
        "dangling": flag("i.name = 'moby-dangling@' || b.digest", "the image has no name any more"),
        "pinned": flag(_PINNED, "the name is pinned: it is neither removed nor moved"),
        "labels": json("i.labels", "labels of the name, not of the image's config", '{"a": "b"}'),
    },
    "FROM imgdb_images AS i JOIN imgdb_blobs AS b ON b.id = i.target_id",
)

MANIFESTS = View(
    "imgdb_v1_manifests",
    "One row for each manifest that is held here or listed by an index.",
    {
        "digest": text("m.digest", "of the manifest", _DIGEST),
        "media_type": text("m.media_type", "as first seen", "application/vnd.oci.image.manifest.v1+json"),
        "os": text(_platform("os"), "the config's, else the index's; NULL when nobody says", "linux"),
        "architecture": text(_platform("architecture"), "likewise", "arm64"),
        "variant": text(_platform("variant"), "likewise", "v8"),
        "config_digest": text(
            "(SELECT c.digest FROM imgdb_blobs AS c WHERE c.id = e.child_id)",
            "the image ID of docker's graph store; NULL when the manifest is not held",
            _DIGEST,
        ),
        "layers": number(
            "(SELECT count(*) FROM imgdb_descriptors AS x WHERE x.parent_id = m.id AND x.role = 'layer')",
            "number of layers; 0 when the manifest is not held",
            "3",
        ),
        "size": number(
            "m.size + (SELECT coalesce(sum(x.size), 0) FROM (SELECT DISTINCT y.child_id, y.size"
            " FROM imgdb_descriptors AS y WHERE y.parent_id = m.id AND y.role IN ('config', 'layer')) AS x)",
            "manifest, config and layers by their descriptors, held here or not",
            "2156544",
            BYTES,
        ),
        "present": flag("m.present", "the manifest itself is held here"),
        "complete": flag(
            "m.present <> 0 AND m.expanded <> 0 AND NOT EXISTS (SELECT 1 FROM imgdb_descriptors AS x"
            " JOIN imgdb_blobs AS c ON c.id = x.child_id"
            " WHERE x.parent_id = m.id AND x.role IN ('config', 'layer') AND c.present = 0"
            f" AND NOT {_FOREIGN.format(edge='x')})",
            "manifest, config and layers are held here; foreign layers need not be",
        ),
        "is_attestation": flag(
            "EXISTS (SELECT 1 FROM imgdb_descriptors AS x WHERE x.child_id = m.id AND x.role = 'manifest'"
            f" AND ({_ATTESTATION.format(edge='x')} OR x.os = 'unknown'))",
            "BuildKit's provenance or SBOM and no image",
        ),
        "indexes": number(
            "(SELECT count(DISTINCT x.parent_id) FROM imgdb_descriptors AS x"
            " WHERE x.child_id = m.id AND x.role = 'manifest')",
            "number of indexes that list the manifest",
            "1",
        ),
        "subject_digest": text(
            "(SELECT s.digest FROM imgdb_descriptors AS x JOIN imgdb_blobs AS s ON s.id = x.child_id"
            " WHERE x.parent_id = m.id AND x.role = 'subject')",
            "what a signature or another artifact is about; NULL for images",
            _DIGEST,
        ),
        "imported": moment("m.created_at", "when the store first heard of it"),
    },
    f"FROM imgdb_blobs AS m{_OF_CONFIG} WHERE m.kind = 'manifest'",
)

LAYERS = View(
    "imgdb_v1_layers",
    "One row for each layer of each image manifest.",
    {
        "manifest_digest": text("m.digest", "of the manifest", _DIGEST),
        "position": number("l.position", "0 is the lowest layer", "0"),
        "digest": text("b.digest", "of the layer as it is stored", _DIGEST),
        "diff_id": text("l.diff_id", "digest of the plain tar; NULL when unknown", _DIGEST),
        "chain_id": text("l.chain_id", "of this layer and all below it; NULL when unknown", _DIGEST),
        "size": number("b.size", "as stored", "2155520", BYTES),
        "uncompressed_size": number(
            "l.uncompressed_size", "of the plain tar; NULL when unknown", "4495360", BYTES
        ),
        "media_type": text("b.media_type", "as first seen", "application/vnd.oci.image.layer.v1.tar+gzip"),
        "present": flag("b.present", "the layer is held here"),
    },
    "FROM imgdb_layers AS l JOIN imgdb_blobs AS m ON m.id = l.manifest_id"
    " JOIN imgdb_blobs AS b ON b.id = l.layer_id",
)

_SHARERS = "(SELECT count(DISTINCT l.manifest_id) FROM imgdb_layers AS l WHERE l.layer_id = b.id)"

LAYER_SHARING = View(
    "imgdb_v1_layer_sharing",
    "One row for each layer blob: how many use it, and what sharing saves.",
    {
        "digest": text("b.digest", "of the layer as it is stored", _DIGEST),
        "size": number("b.size", "as stored", "2155520", BYTES),
        "present": flag("b.present", "the layer is held here"),
        "manifests": number(_SHARERS, "number of manifests with this layer", "12"),
        "images": number(
            "(WITH RECURSIVE up (id) AS (SELECT l.manifest_id FROM imgdb_layers AS l WHERE l.layer_id = b.id"
            " UNION SELECT d.parent_id FROM up CROSS JOIN imgdb_descriptors AS d"
            " WHERE d.child_id = up.id AND d.role = 'manifest')"
            " SELECT count(*) FROM up CROSS JOIN imgdb_images AS i WHERE i.target_id = up.id)",
            "number of image names that lead to it",
            "14",
        ),
        "saved": number(
            f"b.size * b.present * ({_SHARERS} - 1)",
            "what more it would take if each manifest had its own copy",
            "23710720",
            BYTES,
        ),
    },
    "FROM imgdb_blobs AS b WHERE b.id IN (SELECT layer_id FROM imgdb_layers)",
)


def _config(path: str) -> str:
    return inside("d.json", path)


CONFIGS = View(
    "imgdb_v1_configs",
    "One row for each image config that is held here; NULL where the config says nothing.",
    {
        "digest": text("b.digest", "of the config", _DIGEST),
        "created": text(
            _config("$.created"), "when it was built, as the builder wrote it", "2024-05-07T00:00:00Z"
        ),
        "author": text(_config("$.author"), "as the builder wrote it", "Jane <jane@example.org>"),
        "os": text(_config("$.os"), "operating system", "linux"),
        "architecture": text(_config("$.architecture"), "processor", "amd64"),
        "variant": text(_config("$.variant"), "of the processor", "v8"),
        "user": text(_config("$.config.User"), "user or user:group of the process", "1000:1000"),
        "working_dir": text(_config("$.config.WorkingDir"), "where the process starts", "/srv"),
        "entrypoint": json(_config("$.config.Entrypoint"), "array of arguments", '["/entry.sh"]'),
        "cmd": json(_config("$.config.Cmd"), "array of arguments", '["sh"]'),
        "env": json(_config("$.config.Env"), "array of NAME=value", '["PATH=/bin"]'),
        "labels": json(_config("$.config.Labels"), "object", '{"org.opencontainers.image.version": "1"}'),
        "exposed_ports": json(_config("$.config.ExposedPorts"), "object whose keys count", '{"80/tcp": {}}'),
        "volumes": json(_config("$.config.Volumes"), "object whose keys count", '{"/data": {}}'),
        "stop_signal": text(_config("$.config.StopSignal"), "what ends the process", "SIGTERM"),
    },
    "FROM imgdb_blobs AS b JOIN imgdb_documents AS d ON d.blob_id = b.id WHERE b.kind = 'config'",
)
