"""Counters, cascades, doomed files and history, kept by the database itself.

Whoever changes a row, by any program, gets them. They hold with foreign keys off (a host may
have them so), with recursive triggers off, and under ``ON CONFLICT DO UPDATE``; they do not
hold under ``INSERT OR REPLACE``, which skips delete triggers, so nobody uses that.

What each counter counts is said once, in `COUNTERS`: the triggers add and subtract, a new row
starts from a recount, and ``check`` compares. Source: design §3; reliability §0.7, §4.4.
"""

# ruff: noqa: S608 - the SQL is put together from constants of this module

from __future__ import annotations

from typing import TYPE_CHECKING

from imgdb.db import catalog

if TYPE_CHECKING:
    from sqlalchemy import Connection

PREFIX = "imgdb_tr_"
PATTERN = PREFIX + "*"

NOW = (
    "CAST(strftime('%s', 'now') AS INTEGER) * 1000000"
    " + CAST(substr(strftime('%f', 'now'), 4) AS INTEGER) * 1000"
)
"""SQLite's clock in microseconds, exact to the millisecond, which is all that it has."""


def _held(type_: str, key: str, which: str = "") -> str:
    return (
        "(SELECT count(*) FROM imgdb_lease_resources AS r JOIN imgdb_leases AS l ON l.id = r.lease_id"
        f" WHERE r.type = '{type_}' AND r.key = {key} {which})"
    )


def _rows(table: str, condition: str) -> str:
    return f"(SELECT count(*) FROM imgdb_{table} AS e WHERE {condition})"


COUNTERS: dict[str, dict[str, str]] = {
    "imgdb_blobs": {
        "refcount": " + ".join(
            [
                _rows("descriptors", "e.child_id = imgdb_blobs.id AND e.counted <> 0"),
                _rows("images", "e.target_id = imgdb_blobs.id"),
                _held("content", "imgdb_blobs.digest", "AND l.flat = 0"),
            ]
        ),
        "flat_refcount": _held("content", "imgdb_blobs.digest", "AND l.flat <> 0"),
    },
    "imgdb_snapshots": {
        "refcount": " + ".join(
            [
                _rows("snapshots", "e.parent_id = imgdb_snapshots.id"),
                _rows("unpacks", "e.snapshot_id = imgdb_snapshots.id"),
                _rows("mounts", "e.snapshot_id = imgdb_snapshots.id"),
                _held("snapshots", "imgdb_snapshots.key"),
            ]
        ),
    },
}
"""Table -> counter -> the expression, over a row of the table, that the counter equals."""

# table of the edge, column that refers, table with the counter
_EDGES = (
    ("images", "target_id", "blobs"),
    ("snapshots", "parent_id", "snapshots"),
    ("unpacks", "snapshot_id", "snapshots"),
    ("mounts", "snapshot_id", "snapshots"),
)

# What a row is known by elsewhere; the counters could not follow a change.
_IDENTITIES = {
    "blobs": ("id", "digest"),
    "snapshots": ("id", "key"),
    "leases": ("id",),
    "lease_resources": ("lease_id", "type", "key"),
}


def create(connection: Connection) -> None:
    """Make all triggers; there must be none of the same name."""
    for statement in CREATE_SQL.values():
        connection.exec_driver_sql(statement)


def drop(connection: Connection) -> None:
    """Drop all triggers of imgdb, those of other versions too."""
    catalog.drop(connection, "trigger", PATTERN)


def _trigger(when: str, *statements: str) -> str:
    return f"{when} BEGIN {' '.join(f'{s};' for s in statements)} END"


def _abort(message: str) -> str:
    return f"SELECT RAISE(ABORT, 'imgdb: {message}')"


def _add(table: str, step: int, key: str) -> str:
    return f"UPDATE imgdb_{table} SET refcount = refcount {step:+d} WHERE id = {key}"


def _plain_counters() -> dict[str, str]:
    """Edges that always count: +1, -1, and both when the edge is bent."""
    made = {}
    for table, column, counted in _EDGES:
        on, new, old = f"ON imgdb_{table}", f"NEW.{column}", f"OLD.{column}"
        plus, minus = _add(counted, 1, new), _add(counted, -1, old)
        made[f"{table}_count_insert"] = _trigger(f"AFTER INSERT {on}", plus)
        made[f"{table}_count_delete"] = _trigger(f"AFTER DELETE {on}", minus)
        bent = f"AFTER UPDATE OF {column} {on} WHEN {old} IS NOT {new}"
        made[f"{table}_count_update"] = _trigger(bent, minus, plus)
    return made


def _descriptor_counters() -> dict[str, str]:
    plus = _add("blobs", 1, "NEW.child_id") + " AND NEW.counted <> 0"
    minus = _add("blobs", -1, "OLD.child_id") + " AND OLD.counted <> 0"
    on = "ON imgdb_descriptors"
    bent = "WHEN OLD.counted IS NOT NEW.counted OR OLD.child_id IS NOT NEW.child_id"
    return {
        "descriptors_count_insert": _trigger(f"AFTER INSERT {on} WHEN NEW.counted <> 0", plus),
        "descriptors_count_delete": _trigger(f"AFTER DELETE {on} WHEN OLD.counted <> 0", minus),
        "descriptors_count_update": _trigger(f"AFTER UPDATE OF counted, child_id {on} {bent}", minus, plus),
    }


def _resource_step(row: str, sign: str) -> list[str]:
    flat = f"(SELECT flat <> 0 FROM imgdb_leases WHERE id = {row}.lease_id)"
    counts = f"refcount = refcount {sign} NOT {flat}, flat_refcount = flat_refcount {sign} {flat}"
    blobs = f"UPDATE imgdb_blobs SET {counts} WHERE digest = {row}.key AND {row}.type = 'content'"
    counts = f"refcount = refcount {sign} 1"
    snapshots = f"UPDATE imgdb_snapshots SET {counts} WHERE key = {row}.key AND {row}.type = 'snapshots'"
    return [blobs, snapshots]


def _lease_counters() -> dict[str, str]:
    orphan = "NOT EXISTS (SELECT 1 FROM imgdb_leases WHERE id = NEW.lease_id)"
    keys = "SELECT key FROM imgdb_lease_resources WHERE lease_id = NEW.id AND type = 'content'"
    step = "(CASE WHEN NEW.flat <> 0 THEN 1 ELSE -1 END)"
    moved = f"refcount = refcount - {step}, flat_refcount = flat_refcount + {step}"
    return {
        "lease_resources_refuse_orphan": _trigger(
            f"BEFORE INSERT ON imgdb_lease_resources WHEN {orphan}", _abort("a resource needs a lease")
        ),
        "lease_resources_count_insert": _trigger(
            "AFTER INSERT ON imgdb_lease_resources", *_resource_step("NEW", "+")
        ),
        "lease_resources_count_delete": _trigger(
            "AFTER DELETE ON imgdb_lease_resources", *_resource_step("OLD", "-")
        ),
        "leases_count_flat": _trigger(
            "AFTER UPDATE OF flat ON imgdb_leases WHEN (OLD.flat <> 0) <> (NEW.flat <> 0)",
            f"UPDATE imgdb_blobs SET {moved} WHERE digest IN ({keys})",
        ),
    }


def _first_counts() -> dict[str, str]:
    """A new row starts from the edges that were there before it."""
    made = {}
    for table, counters in COUNTERS.items():
        values = ", ".join(f"{column} = {expression}" for column, expression in counters.items())
        name = table.removeprefix("imgdb_") + "_count_first"
        made[name] = _trigger(f"AFTER INSERT ON {table}", f"UPDATE {table} SET {values} WHERE id = NEW.id")
    return made


def _cascades() -> dict[str, str]:
    """BEFORE, since the resources' trigger still needs the lease's flat flag."""
    return {
        "blobs_delete": _trigger(
            "BEFORE DELETE ON imgdb_blobs",
            _abort("an image points to this blob")
            + " WHERE EXISTS (SELECT 1 FROM imgdb_images WHERE target_id = OLD.id)",
            _abort("a document refers to this blob")
            + " WHERE EXISTS (SELECT 1 FROM imgdb_descriptors WHERE child_id = OLD.id)"
            " OR EXISTS (SELECT 1 FROM imgdb_layers WHERE layer_id = OLD.id)",
            "DELETE FROM imgdb_documents WHERE blob_id = OLD.id",
            "DELETE FROM imgdb_layers WHERE manifest_id = OLD.id",
            "DELETE FROM imgdb_descriptors WHERE parent_id = OLD.id",
            "DELETE FROM imgdb_unpacks WHERE manifest_id = OLD.id",
        ),
        "leases_delete": _trigger(
            "BEFORE DELETE ON imgdb_leases", "DELETE FROM imgdb_lease_resources WHERE lease_id = OLD.id"
        ),
        "snapshots_delete": _trigger(
            "BEFORE DELETE ON imgdb_snapshots",
            _abort("the snapshot has children, unpacked images or mounts")
            + " WHERE EXISTS (SELECT 1 FROM imgdb_snapshots WHERE parent_id = OLD.id)"
            " OR EXISTS (SELECT 1 FROM imgdb_unpacks WHERE snapshot_id = OLD.id)"
            " OR EXISTS (SELECT 1 FROM imgdb_mounts WHERE snapshot_id = OLD.id)",
        ),
    }


def _identities() -> dict[str, str]:
    made = {}
    for table, columns in _IDENTITIES.items():
        changed = " OR ".join(f"OLD.{column} IS NOT NEW.{column}" for column in columns)
        when = f"BEFORE UPDATE OF {', '.join(columns)} ON imgdb_{table} WHEN {changed}"
        made[f"{table}_refuse_rename"] = _trigger(when, _abort(f"{', '.join(columns)} can not be changed"))
    return made


def _doomed() -> dict[str, str]:
    doom = (
        f"INSERT INTO imgdb_doomed (digest, size, doomed_at) VALUES (OLD.digest, OLD.size, {NOW})"
        " ON CONFLICT (digest) DO UPDATE SET size = excluded.size, doomed_at = excluded.doomed_at"
    )
    lost = "AFTER UPDATE OF present ON imgdb_blobs WHEN OLD.present <> 0 AND NEW.present = 0"
    return {
        "blobs_doom_delete": _trigger("AFTER DELETE ON imgdb_blobs WHEN OLD.present <> 0", doom),
        "blobs_doom_absent": _trigger(lost, doom),
    }


def _history() -> dict[str, str]:
    def end(at: str) -> str:
        return (
            f"UPDATE imgdb_image_history SET until_at = max(from_at, {at})"
            " WHERE name = OLD.name AND until_at IS NULL"
        )

    start = (
        "INSERT INTO imgdb_image_history (name, digest, media_type, size, from_at)"
        " SELECT NEW.name, digest, NEW.media_type, NEW.size, NEW.updated_at"
        " FROM imgdb_blobs WHERE id = NEW.target_id"
    )
    moved = "WHEN OLD.target_id IS NOT NEW.target_id OR OLD.name IS NOT NEW.name"
    return {
        "images_history_insert": _trigger("AFTER INSERT ON imgdb_images", start),
        "images_history_update": _trigger(
            f"AFTER UPDATE OF target_id, name ON imgdb_images {moved}", end("NEW.updated_at"), start
        ),
        "images_history_delete": _trigger("AFTER DELETE ON imgdb_images", end(NOW)),
    }


_MADE = (
    _plain_counters()
    | _descriptor_counters()
    | _lease_counters()
    | _first_counts()
    | _cascades()
    | _identities()
    | _doomed()
    | _history()
)
CREATE_SQL = {PREFIX + name: f"CREATE TRIGGER {PREFIX}{name} {body}" for name, body in _MADE.items()}
"""Name -> statement, as SQLite keeps it."""
