"""A store with a bit of everything, ways to spoil it, and what its tables say."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path

from imgdb.check.report import CheckOptions, Level
from tests.builder import Archive, Artifact, Attestation, Image, Index, noise

LAYER = {"usr/bin/tool": noise(3000)}

REPAIR = CheckOptions(repair=True)
QUICK = CheckOptions(Level.QUICK)
FULL = CheckOptions(Level.FULL)


def finds(*kinds):
    """The ids; `test_every_kind_is_provoked` looks for calls of this."""
    return set(kinds)


def found(report, *, notes=False):
    """Ids of the findings, or of the notes."""
    return {finding.id for finding in report.findings if finding.is_note == notes}


def states(report):
    """States of the findings."""
    return {finding.state for finding in report.findings if not finding.is_note}


class Sample:
    """Two images in an index, one of them with a name of its own, a signature, and a signature of that."""

    def __init__(self, tmp_path):
        self.image = Image([{"etc/x": b"1"}, LAYER], labels={"a": "b"})
        self.other = Image([LAYER], platform="linux/arm64")
        self.index = Index([self.image, self.other, Attestation(self.image)])
        self.signature = Artifact({"sig": b"signed"}, subject=self.index)
        self.second = Artifact({"sig": b"signed again"}, subject=self.signature)
        self.layer = self.image.below[2]
        archive = Archive().add(self.index, "app:1").add(self.image, "one:1")
        self.archive = archive.add(self.signature).add(self.second).oci_tar(tmp_path / "sample.tar")

    @property
    def blobs(self):
        """All blobs, by digest."""
        nodes = (self.index, self.signature, self.second)
        return {blob.digest: blob for node in nodes for blob in node.blobs().values()}


def path_of(store, digest):
    """Where a blob's file is."""
    return Path(store.root, "blobs", *str(digest).split(":"))


def rewritten(path, data):
    """Other bytes under the same name and in the same inode, as rot would do it."""
    os.chmod(path, 0o600)
    path.write_bytes(data)
    os.chmod(path, 0o400)


def flip(path, bit=None):
    """One bit is another."""
    data = bytearray(path.read_bytes())
    position = len(data) * 4 if bit is None else bit
    data[position // 8] ^= 1 << position % 8
    rewritten(path, bytes(data))


def truncate(path):
    """The last byte is gone."""
    rewritten(path, path.read_bytes()[:-1])


def empty(path):
    """All bytes are gone."""
    rewritten(path, b"")


def grow(path):
    """There is one byte too many."""
    rewritten(path, path.read_bytes() + b"\0")


def delete(path):
    """The file is gone."""
    path.unlink()


def to_directory(path):
    """A directory is in the file's place."""
    path.unlink()
    path.mkdir()
    (path / "file").write_bytes(b"x")


def to_symlink(path):
    """A symlink to the right bytes is in the file's place."""
    kept = path.parent.parent.parent / "quarantine" / "elsewhere"
    path.rename(kept)
    path.symlink_to(kept)


def to_fifo(path):
    """A pipe is in the file's place."""
    path.unlink()
    os.mkfifo(path)


WRONG = (flip, truncate, empty, grow)
GONE = (delete, to_directory, to_symlink, to_fifo)


@contextmanager
def shell(store, *, safe=True):
    """A SQL shell on a store's database; `safe` is how careful a host's connection is."""
    with closing(sqlite3.connect(os.path.join(store.root, "imgdb.db"), isolation_level=None)) as connection:
        connection.execute(f"PRAGMA foreign_keys={int(safe)}")
        yield connection


def sql(store, *statements, safe=True, **parameters):
    """Run statements in a shell; `:digest` and the like are parameters."""
    with shell(store, safe=safe) as connection:
        for statement in statements:
            connection.execute(statement, parameters)


def without_triggers(store, *statements, **parameters):
    """Change rows behind the triggers' back, as rot would do it."""
    with shell(store, safe=False) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement, parameters)
        for _, statement in triggers:
            connection.execute(statement)


def spoil_index(root):
    """Some bytes of an index of a closed store's database are others; returns the file as it was."""
    path = Path(root, "imgdb.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'imgdb_descriptors_ix_child_id_role'"
        ).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    right = path.read_bytes()
    end = page * size
    path.write_bytes(right[: end - 40] + bytes(32) + right[end - 8 :])
    return right


TABLES = {
    "images": "SELECT i.name, b.digest, i.media_type, i.size, i.os, i.architecture, i.variant, i.annotations"
    " FROM imgdb_images i JOIN imgdb_blobs b ON b.id = i.target_id",
    "blobs": "SELECT digest, size, kind, media_type, present, expanded, damaged_at, refcount, flat_refcount"
    " FROM imgdb_blobs",
    "edges": "SELECT p.digest, e.role, e.counted, c.digest, e.media_type, e.size, e.artifact_type,"
    " e.annotations, e.urls, e.os, e.architecture, e.variant,"
    " CASE e.role WHEN 'referrer' THEN 0 ELSE e.position END FROM imgdb_descriptors e"
    " JOIN imgdb_blobs p ON p.id = e.parent_id JOIN imgdb_blobs c ON c.id = e.child_id",
    "layers": "SELECT m.digest, l.position, b.digest, l.diff_id, l.chain_id, l.uncompressed_size"
    " FROM imgdb_layers l JOIN imgdb_blobs m ON m.id = l.manifest_id JOIN imgdb_blobs b ON b.id = l.layer_id",
    "texts": "SELECT b.digest, d.json FROM imgdb_documents d JOIN imgdb_blobs b ON b.id = d.blob_id",
    "pins": "SELECT l.labels, l.expires_at, r.type, r.key FROM imgdb_leases l"
    " JOIN imgdb_lease_resources r ON r.lease_id = l.id",
}


def tables(root):
    """What the tables say, without what depends on time or order; each sorted."""
    with closing(sqlite3.connect(os.path.join(root, "imgdb.db"))) as connection:
        return {name: sorted(connection.execute(query), key=repr) for name, query in TABLES.items()}
