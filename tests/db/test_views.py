"""The views for admins: answers known by construction, on a connection that trusts no schema."""

from __future__ import annotations

# ruff: noqa: S608 - the view names are those of the module
import json
import re
import sqlite3
import time

import pytest

from imgdb.db.views import VIEWS
from tests.db.rows import T0, Rows

T0_TEXT = "2023-11-14T22:13:20.000000Z"
INDEX, ATTESTATION = "application/vnd.oci.image.index.v1+json", "vnd.docker.reference.type"
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


def manifest(rows, name, layers, *, platform=("linux", "amd64", None), **values):
    """A manifest `name` with its config; `layers` are ids. Sizes: manifest 10, config 7."""
    os, architecture, variant = platform
    body = {"os": os, "architecture": architecture, "created": "2024-01-01T00:00:00Z"}
    body |= {"config": {"Env": ["A=1"], "User": "", "Labels": {"k": "v"}}} | (
        {"variant": variant} if variant else {}
    )
    config = rows.blob(f"config-{name}", kind="config", size=7)
    rows.insert("documents", blob_id=config, json=json.dumps(body))
    made = rows.blob(name, kind="manifest", **{"expanded": 1} | values)
    rows.edge(made, config, role="config", size=7)
    for position, layer in enumerate(layers):
        rows.edge(made, layer, role="layer", position=position, size=100)
        rows.layer(made, layer, position, diff_id=f"diff-{position}", chain_id=f"chain-{position}")
    return made


def view(rows, name, where="1", columns="*"):
    """A view's rows as dictionaries."""
    cursor = rows.connection.execute(f"SELECT {columns} FROM imgdb_v1_{name} WHERE {where}")
    return [dict(zip((c[0] for c in cursor.description), row, strict=True)) for row in cursor]


@pytest.fixture
def store(rows):
    """An index of two platforms and an attestation that share a layer, and a single image.

    ``arm`` lacks its second layer; ``single`` has a foreign layer that is not held.
    """
    base, lost = rows.blob("base", size=100), rows.blob("lost", size=100, present=0)
    foreign = rows.blob("foreign", size=100, present=0)
    amd = manifest(rows, "amd", [base])
    arm = manifest(rows, "arm", [base, lost], platform=("linux", "arm64", "v8"))
    about = manifest(rows, "about", [], platform=("unknown", "unknown", None))
    absent = rows.blob("absent", kind="manifest", size=10, present=0)
    index = rows.blob("index", kind="index", expanded=1, size=20)
    rows.edge(index, amd, os="linux", architecture="amd64")
    rows.edge(index, arm, position=1, os="linux", architecture="arm64", variant="v8")
    rows.edge(index, about, position=2, annotations=json.dumps({ATTESTATION: "attestation-manifest"}))
    rows.edge(index, absent, position=3, os="windows", architecture="amd64")
    single = manifest(rows, "single", [base])
    rows.edge(single, foreign, role="layer", position=1, media_type=FOREIGN, size=100)
    signature = manifest(rows, "signature", [])
    rows.edge(signature, amd, role="subject", counted=0)
    rows.edge(amd, signature, role="referrer", position=signature)
    rows.image("multi:1", index, media_type=INDEX, labels='{"a": "b"}', last_used_at=T0)
    rows.image("multi:2", index)
    rows.image("moby-dangling@single", single)
    return rows


def test_images(store):
    """Sizes count what is held because of the name, once; platforms are of what is here."""
    multi, other, dangling = view(store, "images")
    assert multi == {
        "name": "multi:1",
        "digest": "index",
        "media_type": INDEX,
        # the index, three manifests and a signature with their configs, the shared layer
        "size": 20 + 4 * (10 + 7) + 100,
        "platforms": "linux/amd64 linux/arm64/v8",
        "created": T0_TEXT,
        "updated": T0_TEXT,
        "last_used": T0_TEXT,
        "dangling": 0,
        "pinned": 0,
        "labels": '{"a": "b"}',
    }
    assert (other["last_used"], other["size"]) == (None, multi["size"])
    assert (dangling["dangling"], dangling["size"], dangling["platforms"]) == (1, 117, "linux/amd64")


def test_pinned(store):
    """A lease without expiry on the target that is labelled with the name: others pin nothing."""
    label = json.dumps({"io.imgdb.pinned": "multi:1"})
    store.lease("timed", expires_at=T0, labels=label)
    store.lease("other", labels=label)
    store.lease("plain")
    for lease, digest in (("timed", "index"), ("other", "single"), ("plain", "index")):
        store.resource(lease, digest)
    assert view(store, "images", "pinned") == []
    store.lease("pin", labels=label)
    store.resource("pin", "index")
    assert [row["name"] for row in view(store, "images", "pinned")] == ["multi:1"]


def test_manifests(store):
    """One row each, with what decides whether it can run here."""
    found = {row["digest"]: row for row in view(store, "manifests")}
    assert set(found) == {"amd", "arm", "about", "absent", "single", "signature"}
    assert found["arm"] == {
        "digest": "arm",
        "media_type": "m",
        "os": "linux",
        "architecture": "arm64",
        "variant": "v8",
        "config_digest": "config-arm",
        "layers": 2,
        "size": 10 + 7 + 200,
        "present": 1,
        "complete": 0,
        "is_attestation": 0,
        "indexes": 1,
        "subject_digest": None,
        "imported": T0_TEXT,
    }
    assert {name for name, row in found.items() if row["complete"]} == {"amd", "about", "single", "signature"}
    assert {name for name, row in found.items() if row["is_attestation"]} == {"about"}
    assert (found["absent"]["os"], found["absent"]["config_digest"]) == ("windows", None)
    assert (found["signature"]["subject_digest"], found["signature"]["indexes"]) == ("amd", 0)


def test_layers(store):
    """In the order of each manifest."""
    found = view(store, "layers", "manifest_digest = 'arm' ORDER BY position")
    assert [row["digest"] for row in found] == ["base", "lost"]
    assert [row["present"] for row in found] == [1, 0]
    assert found[1] == {
        "manifest_digest": "arm",
        "position": 1,
        "digest": "lost",
        "diff_id": "diff-1",
        "chain_id": "chain-1",
        "size": 100,
        "uncompressed_size": None,
        "media_type": "m",
        "present": 0,
    }


def test_layer_sharing(store):
    """Three manifests use the base, three names lead to it, two copies are saved."""
    found = {row["digest"]: row for row in view(store, "layer_sharing")}
    base = {"digest": "base", "size": 100, "present": 1, "manifests": 3, "images": 3, "saved": 200}
    lost = {"digest": "lost", "size": 100, "present": 0, "manifests": 1, "images": 2, "saved": 0}
    assert found == {"base": base, "lost": lost}


def test_blobs(store):
    """Every row, counters and times as they are."""
    store.sql("UPDATE imgdb_blobs SET damaged_at = ?, verified_at = ? WHERE digest = 'base'", T0, T0 + 1)
    (base,) = view(store, "blobs", "digest = 'base'")
    assert base == {
        "digest": "base",
        "size": 100,
        "kind": "layer",
        "media_type": "m",
        "present": 1,
        "refcount": 3,
        "flat_refcount": 0,
        "damaged": T0_TEXT,
        "created": T0_TEXT,
        "verified": T0_TEXT.replace("000000Z", "000001Z"),
    }
    assert len(view(store, "blobs")) == store.one("SELECT count(*) FROM imgdb_blobs")


def test_garbage(store):
    """Candidates: no counted reference, no lease or only expired ones; stubs are no garbage."""
    now = time.time_ns() // 1000
    for lease, expires_at, flat in (
        ("old", T0, 0),
        ("old-flat", T0, 1),
        ("new", now + 10**9, 0),
        ("pin", None, 1),
    ):
        store.lease(lease, expires_at=expires_at, flat=flat)
    for digest, leases in {
        "free": [],
        "expired": ["old"],
        "expired-twice": ["old", "old-flat"],
        "leased": ["old", "new"],
        "pinned": ["pin"],
    }.items():
        store.blob(digest)
        for lease in leases:
            store.resource(lease, digest)
    store.blob("stub", present=0)
    store.resource("old", "index")
    parent = store.snapshot("parent", usage_bytes=5)
    store.snapshot("child", parent)
    store.snapshot("active", kind="active")
    store.snapshot("leased-snapshot")
    store.resource("new", "leased-snapshot", "snapshots")
    found = {(row["type"], row["key"]) for row in view(store, "garbage")}
    assert found == {("content", key) for key in ("free", "expired", "expired-twice")} | {
        ("snapshots", "child")
    }
    (free,) = view(store, "garbage", "key = 'free'")
    assert free == {"type": "content", "key": "free", "kind": "layer", "size": 10, "created": T0_TEXT}


def test_disk_usage(store):
    """One row a type, empty types too; what is not held takes nothing."""
    store.snapshot("s", usage_bytes=4096)
    store.insert("doomed", digest="d", size=3, doomed_at=T0)
    assert {row["type"]: (row["total"], row["size"]) for row in view(store, "disk_usage")} == {
        "index": (1, 20),
        "manifest": (5, 50),
        "config": (5, 35),
        "layer": (1, 100),
        "blob": (0, 0),
        "snapshot": (1, 4096),
        "doomed": (1, 3),
    }


def test_leases(rows):
    """Expiry is judged by SQLite's clock; what an owner says is not asked here."""
    rows.lease("old", expires_at=T0, labels='{"a": "b"}')
    rows.lease("owned", expires_at=T0, owner_kind="run", owner_id="42")
    rows.lease("pin", flat=1)
    rows.resource("old", "k")
    old, owned, pin = view(rows, "leases")
    assert (owned["expired"], owned["owner_kind"], owned["owner_id"]) == (0, "run", "42")
    assert old == {
        "id": "old",
        "created": T0_TEXT,
        "expires": T0_TEXT,
        "expired": 1,
        "flat": 0,
        "owner_kind": None,
        "owner_id": None,
        "labels": '{"a": "b"}',
        "resources": 1,
    }
    assert (pin["expires"], pin["expired"], pin["flat"], pin["resources"]) == (None, 0, 1, 0)


def test_configs(store):
    """Fields of the JSON; what it does not say is NULL."""
    (row,) = view(store, "configs", "digest = 'config-arm'")
    said = {
        "created": "2024-01-01T00:00:00Z",
        "os": "linux",
        "architecture": "arm64",
        "variant": "v8",
        "user": "",
    }
    said |= {"digest": "config-arm", "env": '["A=1"]', "labels": '{"k":"v"}'}
    assert {key: value for key, value in row.items() if value is not None} == said


def test_history(store):
    """As the triggers wrote it."""
    store.sql("UPDATE imgdb_images SET target_id = 1, updated_at = ? WHERE name = 'multi:1'", T0 + 1)
    first, second = view(store, "history", "name = 'multi:1' ORDER BY since")
    later = T0_TEXT.replace("000000Z", "000001Z")
    assert (first["digest"], first["since"], first["until"]) == ("index", T0_TEXT, later)
    assert (second["digest"], second["since"], second["until"]) == ("base", later, None)
    assert (first["media_type"], first["size"]) == (INDEX, 10)


@pytest.mark.parametrize("described", VIEWS, ids=lambda v: v.name)
def test_documentation_matches(store, described):
    """Names and order are those of the view, types those of its values, and nothing is left blank."""
    store.lease("x", expires_at=T0, owner_kind="k", owner_id="i")
    store.blob("free")
    store.mount(store.snapshot("upper", store.snapshot("lower"), kind="active"), "/mnt")
    cursor = store.connection.execute(f"SELECT * FROM {described.name}")
    assert [column[0] for column in cursor.description] == list(described.columns)
    rows = cursor.fetchall()
    assert rows
    for (name, column), *values in zip(described.columns.items(), *rows, strict=True):
        kind = int if column.type == "integer" else str
        assert {type(value) for value in values} <= {kind, type(None)}, name
        assert column.meaning, name
        assert column.example, name
        if column.unit.startswith("RFC"):
            assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", v) for v in values if v), name


def test_views_need_only_what_is_safe(database):
    """They work for an admin's shell and for a reader that trusts no schema."""
    for trusted in (0, 1):
        connection = sqlite3.connect(database)
        connection.execute(f"PRAGMA trusted_schema={trusted}")
        Rows(connection).blob("a")
        for described in VIEWS:
            connection.execute(f"SELECT * FROM {described.name}").fetchall()
        connection.close()


def test_ten_thousand_images_are_fast(rows):
    """A listing of all names with sizes and platforms takes seconds at most, one name no time."""
    rows.sql("BEGIN")
    layers = [rows.blob(f"layer{n}", size=100) for n in range(20)]
    manifests = [manifest(rows, f"m{n}", layers[n % 15 : n % 15 + 5]) for n in range(2_000)]
    rows.connection.executemany(
        "INSERT INTO imgdb_images (name, target_id, labels, created_at, updated_at, media_type, size)"
        " VALUES (?, ?, '{}', 0, 0, 'm', 1)",
        [(f"name{n}", manifests[n % 2_000]) for n in range(10_000)],
    )
    rows.sql("COMMIT")
    start = time.monotonic()
    assert len(view(rows, "images", "size = 517 AND platforms = 'linux/amd64'")) == 10_000
    assert len(view(rows, "layer_sharing")) == 19
    middle = time.monotonic()
    assert view(rows, "images", "name = 'name77'")[0]["digest"] == "m77"
    assert middle - start < 20
    assert time.monotonic() - middle < 0.5
