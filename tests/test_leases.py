"""Leases: the cases of containerd's lease and collection tests that apply here, and the clock."""

from __future__ import annotations

import re
import threading
import time

import pytest

from imgdb import ImportOptions
from imgdb.db import sql
from imgdb.db.leases import Resource
from imgdb.errors import (
    AlreadyExistsError,
    ConflictError,
    ImgdbError,
    InvalidArgumentError,
    NotFoundError,
    NotSupportedError,
)
from imgdb.importer.commit import commit
from imgdb.prune import PruneOptions
from tests.builder import Image
from tests.clock import DAY, HOUR, Clock

APP = "docker.io/library/app:1"


@pytest.fixture
def clock(monkeypatch):
    """Time for rows and expiries; real until it is moved."""
    made = Clock()
    monkeypatch.setattr(sql, "clock", made)
    return made


@pytest.fixture
def image():
    """A manifest with a config and two layers."""
    return Image(layers=[{"a": b"1"}, {"b": b"2"}])


@pytest.fixture
def archive(image, tmp_path):
    """It, as app:1."""
    return image.oci_tar(tmp_path / "app.tar", "app:1")


@pytest.fixture
def leased(new_store, archive):
    """A store with app:1, and the set of leases that the test leaves behind."""
    left = set()
    made = new_store(leases=left)
    made.load(archive)
    made.left = left
    return made


def present(store):
    """Digests of what is held."""
    return {str(blob.digest) for blob in store.blobs() if blob.present}


def everything(image):
    """Digests of an image."""
    return {blob.digest for blob in image.blobs().values()}


def ids(store, **filters):
    """Of the leases, in order."""
    return [lease.id for lease in store.leases(**filters)]


def test_leases(store):
    """TestLeases: create, list, delete; a taken id; deleting twice."""
    made = store.create_lease("tx1", labels={"a": "1"})
    other = store.create_lease()
    assert re.fullmatch(r"\d{1,9}-[\w-]{4}", other.id)
    assert {lease.id: lease for lease in store.leases()} == {"tx1": made, other.id: other}
    assert (made.expires_at, made.flat, made.labels, made.resources) == (None, False, {"a": "1"}, 0)
    with pytest.raises(AlreadyExistsError, match="tx1"):
        store.create_lease("tx1")
    for lease in ids(store):
        store.remove_lease(lease)
        with pytest.raises(NotFoundError, match=lease):
            store.remove_lease(lease)
    assert ids(store) == []


LISTED = {
    "lease1": {"label1": "value1", "label3": "other"},
    "lease2": {"label1": "", "label2": "", "label3": "other"},
    "lease3": {"label1": "value2", "label2": "something"},
}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["lease1", "lease2", "lease3"]),
        ({"ids": ["lease1"]}, ["lease1"]),
        ({"ids": ["lease1", "lease2", "unknown"]}, ["lease1", "lease2"]),
        ({"labels": {"label1": None}}, ["lease1", "lease3"]),
        ({"labels": {"label1": "value1"}}, ["lease1"]),
        ({"labels": {"label1": "value2"}}, ["lease3"]),
        ({"labels": {"label2": None}}, ["lease3"]),
        ({"labels": {"label3": None}}, ["lease1", "lease2"]),
        ({"labels": {"label3": "other"}, "ids": ["lease2", "lease3"]}, ["lease2"]),
    ],
)
def test_leases_list(new_store, filters, expected):
    """TestLeasesList: by id and by label; a label without a value is not stored."""
    store = new_store(leases=LISTED.keys())
    for lease, labels in reversed(LISTED.items()):
        store.create_lease(lease, labels=labels)
    assert ids(store, **filters) == expected


D = "sha256:" + "d" * 64


@pytest.mark.parametrize(
    ("lease", "thing", "error"),
    [
        ("l1", Resource("content", "not-a-digest"), InvalidArgumentError),
        ("l1", Resource("content", "sha256:abc"), InvalidArgumentError),
        ("l1", Resource("content", ""), InvalidArgumentError),
        ("l1", Resource("snapshots", ""), InvalidArgumentError),
        ("l1", Resource("images", "UPPER"), InvalidArgumentError),
        ("l1", Resource("leases", "l2"), NotSupportedError),
        ("l1", Resource("containers", "c1"), NotSupportedError),
        ("l1", Resource("ingests", "i1"), NotSupportedError),
        ("l1", Resource("snapshots/overlayfs/type1", "s1"), NotSupportedError),
        ("unknown", Resource("content", D), NotFoundError),
    ],
)
def test_lease_resource_refused(new_store, lease, thing, error):
    """TestLeaseResource: what a lease does not take, neither added nor removed; nothing of it stays."""
    store = new_store(leases={"l1"})
    store.create_lease("l1")
    with pytest.raises(error):
        store.add_to_lease(lease, [Resource("content", D), thing])
    with pytest.raises(error):
        store.remove_from_lease(lease, [thing])
    assert store.lease_resources("l1") == []


def test_lease_resource(new_store):
    """TestLeaseResource: what it takes need not exist, is added twice for once, and removed again."""
    store = new_store(leases={"l1"})
    store.create_lease("l1")
    snapshot, name = Resource("snapshots", "sha256:chain"), Resource("images", "qBu.example/img")
    nameless = Resource("images", f"moby-dangling@{D}")
    wanted = [snapshot, name, nameless, Resource("content", D), D, D]
    store.add_to_lease("l1", wanted)
    store.add_to_lease("l1", wanted)
    canonical = Resource("images", "qBu.example/img:latest")
    assert store.lease_resources("l1") == [Resource("content", D), nameless, canonical, snapshot]
    never = Resource("images", "never.example/listed:1")
    store.remove_from_lease("l1", [snapshot, snapshot, nameless, never])
    assert store.lease_resources("l1") == [Resource("content", D), canonical]
    store.remove_from_lease("l1", [D, name])
    assert store.leases()[0].resources == 0
    with pytest.raises(NotFoundError):
        store.lease_resources("unknown")


def test_with_labels(new_store):
    """Labels are kept as they are, up to 4096 bytes each with their values."""
    store = new_store(leases={"l"})
    labels = {"k" * 96: "ü" * 2000, "empty": ""}
    store.create_lease("l", labels=labels)
    assert store.leases()[0].labels == {"k" * 96: "ü" * 2000}
    for wrong in ({"k" * 97: "ü" * 2000}, {"": "x"}, {"io.imgdb.pinned": APP}):
        with pytest.raises(InvalidArgumentError):
            store.create_lease("other", labels=wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": ""},
        {"expires_s": 0},
        {"expires_s": -1.0},
        {"expires_s": float("nan")},
        {"expires_s": float("inf")},
        {"owner": ("hold", "x")},
        {"owner": ("run", "")},
        {"owner": ("", "1")},
    ],
)
def test_create_refused(store, wrong):
    """An id, a time or an owner that can't be."""
    with pytest.raises(InvalidArgumentError):
        store.create_lease(**wrong)


def test_content_leased(leased, image):
    """TestContentLeased: kept for the lease only, with all that it leads to, then collected."""
    leased.create_lease("l1")
    assert leased.add_to_lease("l1", ["app:1"]) == [Resource("content", image.digest)]
    leased.remove("app:1")
    assert leased.gc().freed == {}
    assert present(leased) == everything(image)
    leased.remove_lease("l1")
    assert present(leased) == everything(image)
    assert {str(digest) for digest in leased.gc().freed} == everything(image)


def test_flat(leased, image):
    """MetadataCollector: a flat lease keeps what it lists, and not what that refers to."""
    leased.left.add("flat")
    leased.create_lease("flat", flat=True)
    leased.add_to_lease("flat", [image.digest, image.config.digest])
    leased.remove("app:1")
    leased.gc()
    assert present(leased) == {image.digest, image.config.digest}
    leased.create_lease("strong")
    leased.add_to_lease("strong", [image.config.digest])
    leased.remove_lease("flat")
    leased.left.clear()
    leased.left.add("strong")
    leased.gc()
    assert present(leased) == {image.config.digest}


def test_a_lease_before_its_content(leased, archive, image):
    """What is leased by digest while it is absent is kept as soon as it comes."""
    leased.left.add("early")
    leased.remove("app:1")
    leased.gc()
    leased.create_lease("early")
    leased.add_to_lease("early", [image.config.digest])
    leased.load(archive)
    leased.remove("app:1")
    leased.gc()
    assert present(leased) == {image.config.digest}


def test_expiry(leased, image, clock):
    """Until its time a lease keeps, then gc takes it and what it kept; others stay."""
    leased.left.add("never")
    leased.create_lease("hour", expires_s=HOUR)
    leased.create_lease("never")
    leased.add_to_lease("hour", ["app:1"])
    leased.add_to_lease("never", [image.layers[0].blob().digest])
    leased.remove("app:1")
    clock.forward(HOUR - 60)
    assert leased.gc().expired_leases == 0
    clock.forward(61)
    assert {lease.id: lease.expired for lease in leased.leases()} == {"hour": True, "never": False}
    planned = leased.plan_gc()
    result = leased.gc()
    assert (planned.expired, result.expired_leases) == (("hour",), 1)
    assert (set(planned.freed), ids(leased)) == (set(result.freed), ["never"])
    clock.forward(3650 * DAY)
    leased.gc()
    assert present(leased) == {image.layers[0].blob().digest}


def test_expiry_is_strictly_past(leased, clock):
    """At the very microsecond of its expiry a lease lives."""
    clock.freeze()
    leased.create_lease("l", expires_s=1)
    clock.forward(1)
    assert (leased.leases()[0].expired, leased.gc().expired_leases) == (False, 0)
    clock.forward(0.000_001)
    assert (leased.leases()[0].expired, leased.gc().expired_leases) == (True, 1)


def test_renew(leased, image, clock):
    """A renewed lease lives on, also one that had expired and was not collected yet."""
    leased.left.add("l")
    leased.create_lease("l", expires_s=HOUR)
    leased.add_to_lease("l", ["app:1"])
    leased.remove("app:1")
    clock.forward(2 * HOUR)
    assert leased.leases()[0].expired
    renewed = leased.renew_lease("l", HOUR)
    assert leased.leases() == [renewed]
    leased.gc()
    assert present(leased) == everything(image)
    assert leased.renew_lease("l", None).expires_at is None
    with pytest.raises(NotFoundError, match="unknown"):
        leased.renew_lease("unknown", HOUR)
    with pytest.raises(InvalidArgumentError):
        leased.renew_lease("l", -1)


def test_an_owner_that_nobody_can_ask_lives(leased, image, clock):
    """Beyond its expiry too: what a host's row owns is not taken by a gc that can't see the row."""
    leased.left.add("l")
    leased.create_lease("l", expires_s=1, owner=("run", "42"))
    leased.add_to_lease("l", [image.digest])
    leased.remove("app:1")
    clock.forward(DAY)
    assert leased.gc().expired_leases == 0
    assert (leased.leases()[0].expired, present(leased)) == (False, everything(image))


def test_a_leased_name(leased, clock):
    """It may be moved; prune passes over it; removing it takes force; an expired lease keeps no name."""
    leased.create_lease("l", expires_s=HOUR)
    leased.add_to_lease("l", [Resource("images", "app:1"), Resource("images", "app:2")])
    leased.tag("app:1", "app:2")
    for name in ("app:1", "app:2"):
        with pytest.raises(ConflictError, match="lease l keeps the name"):
            leased.remove(name)
    leased.remove("app:2", force=True)
    assert leased.plan_prune(PruneOptions(every=True)).records == ()
    clock.forward(2 * HOUR)
    assert [r.name for r in leased.plan_prune(PruneOptions(every=True)).records] == [APP]
    leased.remove("app:1")
    leased.gc()
    assert present(leased) == set()


def test_a_moved_name(leased, tmp_path):
    """A lease on a name follows it; one on its target stays with that."""
    other = Image(layers=[{"c": b"3"}])
    leased.left.update({"name", "target"})
    for lease, thing in (("name", Resource("images", "app:1")), ("target", "app:1")):
        leased.create_lease(lease)
        leased.add_to_lease(lease, [thing])
    first = leased.resolve("app:1").target.digest
    leased.load(other.oci_tar(tmp_path / "other.tar", "app:1"), ImportOptions(replace="replace"))
    leased.gc()
    assert {str(first), other.digest} <= present(leased)


def test_import_into_a_lease(leased, archive, image, tmp_path):
    """The targets are in the lease with the import's own commit, names or not."""
    leased.left.add("l")
    nameless = Image(layers=[{"c": b"3"}])
    leased.create_lease("l")
    for path in (archive, nameless.oci_tar(tmp_path / "nameless.tar")):
        leased.load(path, ImportOptions(lease="l"))
    assert {r.key for r in leased.lease_resources("l")} == {image.digest, nameless.digest}
    for name in ("app:1", nameless.digest):
        leased.remove(name)
    leased.gc()
    assert present(leased) == everything(image) | everything(nameless)


def test_import_into_no_lease(leased, tmp_path):
    """An unknown lease is found out before the archive is read, in a dry run too."""
    for dry_run in (False, True):
        with pytest.raises(NotFoundError, match="no lease unknown"):
            leased.load(str(tmp_path / "absent.tar"), ImportOptions(lease="unknown"), dry_run=dry_run)


def test_import_when_the_lease_goes_meanwhile(leased, tmp_path, monkeypatch):
    """Then nothing was imported."""
    leased.create_lease("l")
    other = Image(layers=[{"c": b"3"}]).oci_tar(tmp_path / "other.tar", "other:1")
    known = present(leased)

    def late(*args, **more):
        leased.remove_lease("l")
        return commit(*args, **more)

    monkeypatch.setattr("imgdb.store.commit", late)
    with pytest.raises(NotFoundError):
        leased.load(other, ImportOptions(lease="l"))
    assert (present(leased), leased.exists("other:1")) == (known, False)


def test_renewal_races_with_gc(leased, archive, image, clock):
    """Whoever comes first: a lease that was renewed is there with its content, else neither is."""
    for _ in range(20):
        leased.load(archive)
        leased.create_lease("l", expires_s=1)
        leased.add_to_lease("l", ["app:1"])
        leased.remove("app:1")
        clock.forward(2)
        outcome, barrier = [], threading.Barrier(2)

        def renew(outcome=outcome, barrier=barrier):
            barrier.wait()
            try:
                outcome.append(leased.renew_lease("l", HOUR))
            except NotFoundError:
                outcome.append(None)

        thread = threading.Thread(target=renew)
        thread.start()
        barrier.wait()
        leased.gc()
        thread.join()
        leased.gc()
        if outcome == [None]:
            assert (ids(leased), present(leased)) == ([], set())
        else:
            assert (ids(leased), present(leased)) == (["l"], everything(image))
            leased.remove_lease("l")
            leased.gc()


def test_renewed_leases_outlive_collections(leased, image):
    """Short leases, renewed by threads while gc runs over and over, lose nothing."""
    leased.left.update(f"l{n}" for n in range(4))
    for n in range(4):
        leased.create_lease(f"l{n}", expires_s=2)
    leased.add_to_lease("l0", [image.digest])
    leased.remove("app:1")
    end, failures = time.monotonic() + 3, []

    def renew(lease):
        while time.monotonic() < end:
            try:
                leased.renew_lease(lease, 2)
            except ImgdbError as error:
                failures.append(error)
            time.sleep(0.05)

    threads = [threading.Thread(target=renew, args=(f"l{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    expired = 0
    while time.monotonic() < end:
        expired += leased.gc().expired_leases
    for thread in threads:
        thread.join()
    assert (expired, failures, present(leased)) == (0, [], everything(image))
