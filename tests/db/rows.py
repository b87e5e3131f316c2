"""Rows in a line, written as an admin would in any SQL shell; no SQLAlchemy."""

# ruff: noqa: S608 - the table names are those of the tests

from __future__ import annotations

import sqlite3

T0 = 1_700_000_000_000_000


def open_shell(path, *, foreign_keys=True, recursive_triggers=True):
    """A plain connection in autocommit, set as some host might have it."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA foreign_keys={int(foreign_keys)}")
    connection.execute(f"PRAGMA recursive_triggers={int(recursive_triggers)}")
    connection.execute("PRAGMA trusted_schema=OFF")
    return connection


class Rows:
    """A database shell with one method a table; each returns the new row's id."""

    def __init__(self, connection):
        self.connection = connection

    def sql(self, statement, *parameters):
        """All rows of any statement."""
        return self.connection.execute(statement, parameters).fetchall()

    def one(self, statement, *parameters):
        """The first column of the only row."""
        ((value, *_rest),) = self.sql(statement, *parameters)
        return value

    def insert(self, table, **values):
        """One row into `imgdb_<table>`."""
        columns, marks = ", ".join(values), ", ".join("?" * len(values))
        statement = f"INSERT INTO imgdb_{table} ({columns}) VALUES ({marks})"
        return self.connection.execute(statement, tuple(values.values())).lastrowid

    def blob(self, digest, **values):
        """A present layer of 10 bytes unless said otherwise."""
        start = {
            "size": 10,
            "kind": "layer",
            "media_type": "m",
            "present": 1,
            "expanded": 0,
            "created_at": T0,
        }
        return self.insert("blobs", digest=digest, **start | values)

    def edge(self, parent, child, *, role="manifest", position=0, counted=1, **values):
        """A descriptor row; ids."""
        start = {"media_type": "m", "size": 10}
        ends = {"parent_id": parent, "child_id": child}
        return self.insert(
            "descriptors", role=role, position=position, counted=counted, **ends, **start | values
        )

    def image(self, name, target, **values):
        """A name; the target is a blob's id."""
        start = {"labels": "{}", "created_at": T0, "updated_at": T0, "media_type": "m", "size": 10}
        return self.insert("images", name=name, target_id=target, **start | values)

    def layer(self, manifest, layer, position=0, **values):
        """A layer row; ids."""
        return self.insert("layers", manifest_id=manifest, layer_id=layer, position=position, **values)

    def lease(self, lease_id, *, flat=0, **values):
        """A lease without expiry."""
        return self.insert("leases", id=lease_id, flat=flat, **{"created_at": T0, "labels": "{}"} | values)

    def resource(self, lease_id, key, type_="content"):
        """What a lease protects."""
        return self.insert("lease_resources", lease_id=lease_id, type=type_, key=key)

    def snapshot(self, key, parent=None, **values):
        """A committed snapshot; the parent is an id."""
        start = {"kind": "committed", "labels": "{}", "created_at": T0, "updated_at": T0}
        return self.insert("snapshots", key=key, parent_id=parent, **start | values)

    def unpack(self, manifest, snapshot):
        """Where a manifest is unpacked; ids."""
        return self.insert("unpacks", manifest_id=manifest, snapshot_id=snapshot, created_at=T0)

    def mount(self, snapshot, target):
        """A mount of a snapshot's id."""
        return self.insert("mounts", snapshot_id=snapshot, target=target, boot_id="b", created_at=T0)

    def counts(self, blob):
        """The two counters, strong and flat, of a blob's id."""
        ((strong, flat),) = self.sql("SELECT refcount, flat_refcount FROM imgdb_blobs WHERE id = ?", blob)
        return strong, flat

    def held(self, snapshot):
        """The counter of a snapshot's id."""
        return self.one("SELECT refcount FROM imgdb_snapshots WHERE id = ?", snapshot)

    def drift(self):
        """Counters that differ from a count of the edges, made in Python."""
        counted = {row: (strong, flat) for row, strong, flat in self._blob_counters()}
        wanted = {row: [0, 0] for row in counted}
        digests = dict(self.sql("SELECT digest, id FROM imgdb_blobs"))
        flat = dict(self.sql("SELECT id, flat FROM imgdb_leases"))
        named = [row for (row,) in self.sql("SELECT target_id FROM imgdb_images")]
        named += [row for row, yes in self.sql("SELECT child_id, counted FROM imgdb_descriptors") if yes]
        leased = self.sql("SELECT lease_id, key FROM imgdb_lease_resources WHERE type = 'content'")
        slots = [(row, 0) for row in named]
        slots += [(digests.get(key), flat[lease]) for lease, key in leased if lease in flat]
        for row, slot in slots:
            if row in wanted:
                wanted[row][slot] += 1
        blobs = {
            row: (tuple(wanted[row]), counted[row]) for row in counted if tuple(wanted[row]) != counted[row]
        }
        return blobs | self._snapshot_drift()

    def _blob_counters(self):
        return self.sql("SELECT id, refcount, flat_refcount FROM imgdb_blobs")

    def _snapshot_drift(self):
        counted = dict(self.sql("SELECT key, refcount FROM imgdb_snapshots"))
        keys = dict(self.sql("SELECT id, key FROM imgdb_snapshots"))
        named = [row for (row,) in self.sql("SELECT parent_id FROM imgdb_snapshots")]
        named += [row for (row,) in self.sql("SELECT snapshot_id FROM imgdb_unpacks")]
        named += [row for (row,) in self.sql("SELECT snapshot_id FROM imgdb_mounts")]
        uses = [keys.get(row) for row in named]
        uses += [key for (key,) in self.sql("SELECT key FROM imgdb_lease_resources WHERE type = 'snapshots'")]
        return {key: (uses.count(key), seen) for key, seen in counted.items() if uses.count(key) != seen}
