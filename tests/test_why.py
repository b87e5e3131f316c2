"""Why something is here: a way from every root that keeps it, or since when nothing does."""

from __future__ import annotations

import pytest

from imgdb.db import sql
from imgdb.errors import NotFoundError
from imgdb.oci.digest import Digest
from tests.builder import Artifact, Index
from tests.clock import HOUR, Clock
from tests.collecting import image, tar
from tests.db.rows import Rows, open_shell
from tests.looking import digests


@pytest.fixture
def clock(monkeypatch):
    """Time for rows; stands still until it is moved."""
    made = Clock()
    made.freeze()
    monkeypatch.setattr(sql, "clock", made)
    return made


def ways(store, argument):
    """Root and roles with digests, of each way."""
    return [
        (way.root.kind, way.root.name, [(step.role or step.kind, str(step.digest)) for step in way.steps])
        for way in store.why(argument).ways
    ]


def layer(node):
    """Digest of a node's only layer."""
    return node.layers[0].blob().digest


def test_every_kind_of_root(new_store):
    """Image, dangling image, pin, lease, flat lease and hold, each with its way down."""
    store = new_store(leases={"strong", "flat"})
    node, other = image(1), image(2)
    store.load(tar((node, "app:1", "example.org/app:2"), (other,)))
    store.pin("app:1")
    store.create_lease("strong")
    store.create_lease("flat", flat=True)
    store.add_to_lease("strong", [node.digest])
    store.add_to_lease("flat", [layer(node), layer(other)])
    down = [("manifest", node.digest), ("layer", layer(node))]
    with store._blobs.hold() as hold:
        hold.add([Digest.parse(layer(node))])
        assert ways(store, layer(node)) == [
            ("flat lease", "flat", [("layer", layer(node))]),
            ("image", "app:1", down),
            ("image", "example.org/app:2", down),
            ("lease", "strong", down),
            ("pin", "app:1", down),
            ("hold", hold.name, [("layer", layer(node))]),
        ]
    assert ways(store, layer(other)) == [
        ("dangling image", other.digest, [("manifest", other.digest), ("layer", layer(other))]),
        ("flat lease", "flat", [("layer", layer(other))]),
    ]


def test_nested(new_store):
    """From an index of indexes down to a layer: the shortest way of each root."""
    store = new_store()
    node = image(1)
    inner = Index([node, image(2)])
    outer = Index([inner, image(3)])
    store.load(tar((outer, "outer:1"), (inner, "inner:1"), (Index([inner, node]), "both:1")))
    tail = [("manifest", node.digest), ("layer", layer(node))]
    both = Index([inner, node])
    assert ways(store, layer(node)) == [
        ("image", "both:1", [("index", both.digest), *tail]),
        ("image", "inner:1", [("index", inner.digest), *tail]),
        ("image", "outer:1", [("index", outer.digest), ("manifest", inner.digest), *tail]),
    ]
    assert ways(store, node.config.digest)[1] == (
        "image",
        "inner:1",
        [("index", inner.digest), ("manifest", node.digest), ("config", node.config.digest)],
    )
    assert ways(store, outer.digest) == [("image", "outer:1", [("index", outer.digest)])]


def test_referrers(new_store):
    """A signature is here for the image's sake, and not the other way round."""
    store = new_store()
    node = image(1)
    signature = Artifact({"s": b"1"}, subject=node)
    store.load(tar((node, "app:1"), (signature,)))
    assert ways(store, signature.digest) == [
        ("image", "app:1", [("manifest", node.digest), ("referrer", signature.digest)])
    ]
    assert [kind for kind, _, _ in ways(store, node.digest)] == ["image"]


def test_names_and_short_digests(new_store):
    """A digest, the beginning of one, or an image, of which the target is meant."""
    store = new_store()
    node = image(1)
    store.load(tar((node, "app:1")))
    for argument in (node.digest, node.digest[7:19], "app:1", "docker.io/library/app:1", node.digest[:15]):
        answer = store.why(argument)
        assert (str(answer.digest), answer.size, answer.present) == (node.digest, node.blob.size, True)
    for argument in ("nothing:1", "f" * 12):
        with pytest.raises(NotFoundError):
            store.why(argument)


def test_garbage_since(new_store, clock):
    """When the last name went that led to it; of what never had one, since it came."""
    store = new_store()
    node, other = image(1), image(2)
    store.load(tar((Index([node]), "index:1"), (node, "app:1"), (other, "other:1")))
    came = clock() // 1000
    store.create_lease("short", expires_s=HOUR)
    store.add_to_lease("short", [other.digest])
    rows = Rows(open_shell(f"{store.root}/imgdb.db"))
    # As if it had come under a lease.
    rows.sql("DELETE FROM imgdb_images WHERE name LIKE '%other:1'")
    rows.sql("DELETE FROM imgdb_image_history WHERE name LIKE '%other:1'")
    rows.connection.close()
    store.tag("app:1", "again:1")
    for name in ("app:1", "index:1", "again:1"):
        clock.forward(HOUR / 4)
        store.remove(name)
    answer = store.why(layer(node))
    assert answer.ways == ()
    # That end is written by SQLite's clock, which this test can't move.
    ends = [p.until_at for name in ("app:1", "index:1", "again:1") for p in store.tag_history(name)]
    assert answer.garbage_since == max(ends)
    assert store.why(layer(other)).garbage_since is None
    clock.forward(HOUR)
    answer = store.why(layer(other))
    assert (answer.ways, answer.garbage_since) == ((), came)
    store.gc()


def test_what_is_not_here(new_store):
    """A stub is kept by what names it, and says that it is absent."""
    store = new_store()
    index = Index([image(1), image(2, platform="linux/arm64")])
    absent = image(2, platform="linux/arm64")
    store.load(tar((index, "app:1"), without=digests(absent)))
    answer = store.why(absent.digest)
    assert not answer.present
    assert ways(store, absent.digest) == [
        ("image", "app:1", [("index", index.digest), ("manifest", absent.digest)])
    ]


def test_expired_leases_keep_nothing(new_store, clock):
    """Though gc has not taken them yet."""
    store = new_store()
    store.load(tar((image(1), "app:1")))
    store.create_lease("l", expires_s=HOUR)
    store.add_to_lease("l", ["app:1"])
    store.remove("app:1")
    assert [kind for kind, _, _ in ways(store, image(1).digest)] == ["lease"]
    clock.forward(2 * HOUR)
    assert ways(store, image(1).digest) == []
    assert store.gc().expired_leases == 1


def test_kept_by(new_store):
    """One root for each blob that something keeps; none for garbage."""
    store = new_store(leases={"flat"})
    node, gone, flat = image(1), image(2), image(3)
    signature = Artifact({"s": b"1"}, subject=node)
    store.load(tar((node, "app:1"), (gone, "gone:1"), (flat, "flat:1"), (signature,)))
    store.create_lease("flat", flat=True)
    store.add_to_lease("flat", [flat.digest])
    for name in ("gone:1", "flat:1"):
        store.remove(name)
    kept = {str(digest): (root.kind, root.name) for digest, root in store.kept_by().items()}
    expected = dict.fromkeys(digests(node, signature), ("image", "app:1"))
    assert kept == expected | {flat.digest: ("flat lease", "flat")}
    store.gc()
