"""Pins: names that are neither removed nor moved, in rows, in the mirror and in the views."""

from __future__ import annotations

import json
import sqlite3

import pytest

from imgdb import ImportOptions, mirror
from imgdb.errors import ConflictError, FailedPreconditionError, NotFoundError, RefusedError
from imgdb.prune import PruneOptions
from tests.builder import Archive, Image

APP = "docker.io/library/app:1"
OTHER = "docker.io/library/other:1"
PIN = "io.imgdb.pinned"


@pytest.fixture
def image():
    """What app:1 points to."""
    return Image()


@pytest.fixture
def store(new_store, image, tmp_path):
    """A store with app:1 and other:1, two images."""
    made = new_store()
    archive = Archive().add(image, "app:1").add(Image(layers=[{"c": b"3"}]), "other:1")
    made.load(archive.oci_tar(tmp_path / "both.tar"))
    return made


def shell(store, statement, *parameters):
    """Plain SQL, as an admin's."""
    with sqlite3.connect(f"{store.root}/imgdb.db") as connection:
        rows = connection.execute(statement, parameters).fetchall()
    connection.close()
    return rows


def mirrored(store):
    """Names that index.json marks as pinned."""
    with open(f"{store.root}/index.json", encoding="utf-8") as file:
        entries = [entry.get("annotations", {}) for entry in json.load(file)["manifests"]]
    return [notes["org.opencontainers.image.ref.name"] for notes in entries if PIN in notes]


def viewed(store):
    """Names that the view marks as pinned."""
    return [name for (name,) in shell(store, "SELECT name FROM imgdb_v1_images WHERE pinned ORDER BY name")]


def pins(store):
    """Names that are pinned, when everybody agrees about them."""
    found = store.pinned()
    assert (mirrored(store), viewed(store)) == (found, found)
    return found


def test_pin(store, image):
    """A lease without expiry on the target, labelled with the name; pinning twice changes nothing."""
    assert store.pin("app:1") == [APP]
    (lease,) = store.leases()
    assert (lease.labels, lease.expires_at, lease.flat) == ({PIN: APP}, None, False)
    assert [(r.type, r.key) for r in store.lease_resources(lease.id)] == [("content", image.digest)]
    assert store.pin("docker.io/library/app:1", "app:1") == [APP, APP]
    assert store.leases() == [lease]
    assert pins(store) == [APP]
    assert store.unpin("app:1") == [APP]
    assert (pins(store), store.leases()) == ([], [])
    actions = [(event.action, event.name, event.actor) for event in store.events()][2:]
    assert actions == [("pin", APP, image.digest), ("unpin", APP, image.digest)]


@pytest.mark.parametrize("force", [False, True])
def test_removing_is_refused(store, image, force):
    """By name and by ID, by force too; other names of the image may go."""
    store.pin("app:1")
    store.tag("app:1", "app:2")
    store.tag("app:1", "elsewhere:1")
    for argument in ("app:1", APP, image.digest, image.digest[7:19], f"app@{image.digest}"):
        with pytest.raises(RefusedError, match=r"imgdb unpin app:1" if force else "app:1|repositories"):
            store.remove(argument, force=force)
    store.remove("app:2", force=force)
    store.remove("elsewhere:1", force=force)
    with pytest.raises(RefusedError, match=r"^app:1 is pinned; imgdb unpin app:1 "):
        store.remove(image.digest, force=force)
    assert store.gc().freed == {}
    assert [r.display_name for r in (s.record for s in store.images())] == ["app:1", "other:1"]
    store.unpin("app:1")
    store.remove("app:1", force=force)
    assert len(store.gc().freed) == 3


def test_moving_is_refused(store, image):
    """By a tag; the same target again is fine, and so is the other way round."""
    store.pin("app:1")
    with pytest.raises(RefusedError, match="imgdb unpin app:1"):
        store.tag("other:1", "app:1")
    store.tag("app:1", "app:1")
    store.tag("app:1", "other:1")
    assert str(store.resolve("app:1").target.digest) == image.digest
    assert pins(store) == [APP]


@pytest.mark.parametrize("replace", ["dangle", "refuse", "replace"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_importing_over_it_is_refused(store, tmp_path, replace, dry_run):
    """Then nothing of the archive comes in; a dry run says so as well."""
    store.pin("app:1")
    new = Archive().add(Image(layers=[{"n": b"new"}]), "new:1").add(Image(layers=[{"m": b"x"}]), "app:1")
    before = store.info().blob_bytes
    with pytest.raises(RefusedError, match="imgdb unpin app:1"):
        store.load(new.oci_tar(tmp_path / "new.tar"), ImportOptions(replace=replace), dry_run=dry_run)
    assert (store.exists("new:1"), store.info().blob_bytes) == (False, before)


def test_importing_the_same_is_fine(store, image, tmp_path):
    """A pinned name with the target that it has."""
    store.pin("app:1")
    result = store.load(image.oci_tar(tmp_path / "same.tar", "app:1"), ImportOptions(replace="refuse"))
    assert [loaded.state for loaded in result.images] == ["same"]
    assert pins(store) == [APP]


def test_by_id(store, image):
    """An ID stands for the one name of its image; with several it must be said which."""
    assert store.pin(image.digest[7:19]) == [APP]
    store.tag("app:1", "app:2")
    with pytest.raises(ConflictError, match=r"several names; say which: app:1, app:2"):
        store.pin(image.digest)
    assert store.unpin(image.digest) == [APP]
    store.pin("app:1", "app:2")
    with pytest.raises(ConflictError, match="app:1, app:2"):
        store.unpin(image.digest)
    assert pins(store) == [APP, APP.replace(":1", ":2")]


def test_a_dangling_image(store, tmp_path):
    """It has no name to be pinned."""
    nameless = Image(layers=[{"d": b"4"}])
    store.load(nameless.oci_tar(tmp_path / "nameless.tar"))
    with pytest.raises(FailedPreconditionError, match="no name to be pinned"):
        store.pin(nameless.digest)


def test_all_or_none(store):
    """One argument that fails leaves the others as they were."""
    with pytest.raises(NotFoundError, match="absent:latest"):
        store.pin("app:1", "absent")
    assert pins(store) == []
    store.pin("app:1")
    with pytest.raises(NotFoundError, match="other:1 is not pinned"):
        store.unpin("app:1", "other:1")
    assert pins(store) == [APP]


def test_prune_leaves_it(store):
    """Pinned images are used."""
    store.pin("app:1")
    plan = store.plan_prune(PruneOptions(every=True))
    assert [record.name for record in plan.records] == [OTHER]


def test_lease_verbs_leave_it(store):
    """A pin is ended by unpin only."""
    store.pin("app:1")
    lease = store.leases()[0].id
    for refused in (
        lambda: store.remove_lease(lease),
        lambda: store.renew_lease(lease, 60),
        lambda: store.add_to_lease(lease, ["other:1"]),
        lambda: store.remove_from_lease(lease, [store.resolve("app:1").target.digest]),
    ):
        with pytest.raises(RefusedError, match="imgdb unpin app:1"):
            refused()
    assert pins(store) == [APP]


def test_the_log(store, monkeypatch):
    """Above the limit of index.json the log tells pins, the last line about a name wins."""
    monkeypatch.setattr(mirror, "LIMIT", 0)
    store.pin("app:1")
    store.tag("app:1", "app:2")
    store.unpin("app:1")
    store.pin("other:1")
    with open(f"{store.root}/names.log", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    told = [(line["name"], line["pinned"]) for line in lines if line["descriptor"]]
    assert told == [(APP, True), (APP.replace(":1", ":2"), False), (APP, False), (OTHER, True)]


def test_plain_sql_is_stronger(store, image):
    """An admin's DELETE goes through; the pin keeps the content until it is ended, by the name."""
    store.pin("app:1")
    shell(store, "DELETE FROM imgdb_images WHERE name = ?", APP)
    assert store.gc().freed == {}
    assert (viewed(store), store.pinned()) == ([], [APP])
    assert store.unpin("app:1") == [APP]
    assert len(store.gc().freed) == len(image.blobs())


def test_plain_sql_that_moves(store, image):
    """The pin holds what it was on; pinning again pins what the name means now."""
    store.pin("app:1")
    shell(
        store,
        "UPDATE imgdb_images SET target_id = (SELECT target_id FROM imgdb_images WHERE name = ?)"
        " WHERE name = ?",
        OTHER,
        APP,
    )
    assert (viewed(store), store.gc().freed) == ([], {})
    store.pin("app:1")
    assert pins(store) == [APP]
    assert len(store.gc().freed) == len(image.blobs())


def test_another_store_s_pins(store, new_store):
    """Importing a store's directory brings no pins, and the mirror claims none."""
    store.pin("app:1")
    copy = new_store("copy")
    copy.load(store.root)
    assert pins(copy) == []
