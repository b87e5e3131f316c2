"""Freeze a database of the newest revision, with a row in every table, for upgrade tests.

Run once for each released revision, from the top of the checkout: python -m tests.db.freeze
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from imgdb.db import engine, schema
from tests.db.rows import T0, Rows

FROZEN = Path(__file__).parent / "frozen"


def fill(rows):
    """One small image with everything that can hang on it."""
    config = rows.blob("sha256:c0", kind="config", media_type="application/vnd.oci.image.config.v1+json")
    layer = rows.blob("sha256:1a", size=100)
    manifest = rows.blob("sha256:aa", kind="manifest", expanded=1)
    index = rows.blob("sha256:bb", kind="index", expanded=1)
    rows.insert("documents", blob_id=config, json='{"os": "linux", "architecture": "amd64"}')
    rows.edge(index, manifest, os="linux", architecture="amd64")
    rows.edge(manifest, config, role="config")
    rows.edge(manifest, layer, role="layer", size=100)
    rows.layer(manifest, layer, diff_id="sha256:d1", chain_id="sha256:d1", uncompressed_size=200)
    rows.image("docker.io/library/frozen:latest", index)
    rows.lease("strong", expires_at=T0)
    rows.lease("flat", flat=1)
    rows.resource("strong", "sha256:bb")
    rows.resource("flat", "sha256:1a")
    lower = rows.snapshot("lower", chain_id="sha256:d1", usage_bytes=4096, usage_inodes=3)
    rows.unpack(manifest, lower)
    rows.mount(rows.snapshot("upper", lower, kind="active"), "/mnt")
    rows.insert("events", at=T0, action="load", actor="sha256:bb", attributes="{}")
    rows.insert("doomed", digest="sha256:ff", size=7, doomed_at=T0)


def freeze(path):
    """Make the file: small, and in journal mode DELETE, so that one file is all of it."""
    path.unlink(missing_ok=True)
    own = engine.own_engine(path, create=True)
    engine.run_write(own, schema.upgrade)
    engine.run_write(own, lambda connection: schema.create_meta(connection, "frozen-store"))
    own.dispose()
    connection = sqlite3.connect(path, isolation_level=None)
    fill(Rows(connection))
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute("PRAGMA page_size=512")
    connection.execute("VACUUM")
    connection.close()
    path.chmod(0o644)


if __name__ == "__main__":
    freeze(FROZEN / f"{schema.HEAD}.sqlite")
