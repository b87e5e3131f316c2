"""Collecting garbage: what goes, what stays, and what is said about it.

Upstream's cases (specification §5.6) that apply, by name: TricolorBasic and ConcurrentBasic, GCRoots
(images; content on leases that live, that expired, that are flat), GCRefs (what documents lead to, a
reference that only looks like one, children that live as long as what they are about), GCRemove, and the
content part of MetadataCollector. The lease cases are in `test_leases`.

Those that do not: ResourceMax, CollectibleResources and CollectionWithReferences (no types come from
plug-ins), SnapshotterWithRef (no remote snapshots), labels, containers, sandboxes, ingests and namespaces
of the others (there are none), images that expire (only leases do), PauseThreshold, DeletionThreshold,
Trigger and StartupDelay (cron decides when).
"""

from __future__ import annotations

import pytest

from imgdb import ImportOptions
from tests.builder import Artifact, Index
from tests.collecting import FULL, collected, freed, image, orphan, tar
from tests.db.rows import Rows, open_shell
from tests.gc_oracle import graph, reach
from tests.looking import digests, names, present

# -- upstream's cases ----------------------------------------------------------------------------


@pytest.mark.parametrize("extra", ["", "GI"], ids=["TricolorBasic", "ConcurrentBasic"])
def test_reachable(new_store, extra):
    """Circles among them, what the roots A and C reach stays, and E, G and I go."""
    store = new_store()
    edges = ["AB", "BA", "CD", "CF", "CB", "EF", "EG", "FH", *([extra] if extra else [])]
    digest = {name: str(orphan(store, name.encode())) for name in sorted(set("".join(edges)))}
    rows = Rows(open_shell(f"{store.root}/imgdb.db"))
    ids = {name: rows.blob(digest[name], size=1, kind="index", expanded=1) for name in digest}
    for position, (parent, child) in enumerate(edges):
        rows.edge(ids[parent], ids[child], position=position)
    for root in "AC":
        rows.image(f"example.org/{root.lower()}:1", ids[root])
    assert collected(store, FULL) == {digest[name] for name in {"E", *extra, "G"}}
    assert present(store) == {digest[name] for name in "ABCDFH"}
    # The circle has no root any more: counting alone would keep it for ever.
    rows.sql("DELETE FROM imgdb_images")
    assert freed(store.gc()) == {digest[name] for name in "CDFH"}
    assert collected(store, FULL) == {digest["A"], digest["B"]}
    rows.connection.close()


def test_gc_roots(new_store):
    """Images, and what lives on leases; not what expired leases list."""
    store = new_store(leases={"l1", "l2", "flat"})
    images = {number: image(number) for number in range(1, 7)}
    store.load(tar(*((node, f"i{number}:1") for number, node in images.items())))
    for lease, number in {"l1": 2, "l2": 3, "l4": 4, "flat": 5, "l5": 3}.items():
        store.create_lease(lease, flat=lease == "flat", expires_s=None if lease in {"l1", "flat"} else 3600)
        store.add_to_lease(lease, [images[number].digest])
    Rows(open_shell(f"{store.root}/imgdb.db")).sql(
        "UPDATE imgdb_leases SET expires_at = 1 WHERE id IN ('l4', 'l5')"
    )
    for number in (2, 3, 4, 5, 6):
        store.remove(f"i{number}:1")
    kept = digests(*(images[number] for number in (1, 2, 3))) | {images[5].digest}
    assert store.plan_gc().expired == ("l4", "l5")
    assert collected(store) == digests(*images.values()) - kept
    assert present(store) == kept


def test_gc_remove(new_store):
    """Removing every second leaves exactly the others."""
    store = new_store()
    images = [image(number) for number in range(10)]
    store.load(tar(*((node, f"i{number}:1") for number, node in enumerate(images))))
    for number in range(0, 10, 2):
        store.remove(f"i{number}:1")
    assert collected(store) == digests(*images[::2])
    assert present(store) == digests(*images[1::2])


def test_gc_refs(new_store):
    """An index keeps its manifests, a manifest its config and layers; an annotation keeps nothing."""
    store = new_store()
    stranger = image(9)
    note = {"containerd.io/gc.ref.contentbad": stranger.digest, "also": stranger.digest}
    nested = Index([Index([image(1), image(2)], annotations=note), image(3)])
    store.load(tar((nested, "nested:1"), (stranger, "stranger:1")))
    store.remove("stranger:1")
    assert collected(store) == digests(stranger)
    assert present(store) == digests(nested)


def test_gc_back_references(new_store):
    """A signature of a signature lives as long as the image does, and no longer."""
    store = new_store()
    signed = image(1)
    signature = Artifact({"s": b"1"}, subject=signed)
    second = Artifact({"s": b"2"}, subject=signature)
    store.load(tar((signed, "signed:1"), (signature,), (second,)))
    assert collected(store) == set()
    assert names(store) == {"docker.io/library/signed:1": signed.digest}
    store.remove("signed:1")
    assert collected(store) == digests(signed, signature, second)


def test_a_named_signature_keeps_no_subject(new_store):
    """What is about something does not keep it: it is a stub, and back with its signature when imported."""
    store = new_store()
    signed = image(1)
    signature = Artifact({"s": b"1"}, subject=signed)
    store.load(tar((signed, "signed:1"), (signature, "signature:1")))
    store.remove("signed:1")
    assert collected(store) == digests(signed)
    assert not store.blob(signed.digest).present
    assert collected(store, FULL) == set()
    store.load(tar((signed, "signed:1")))
    store.remove("signature:1")
    assert collected(store) == set()


def test_an_index_about_its_own_member_keeps_nothing_alive(new_store):
    """Nor does a ring of two, of which each is about what the other lists."""
    store = new_store()
    one, two = image(1), image(2)
    own = Index([one], subject=one)
    ring, rung = Index([two], subject=one), Index([one], subject=two)
    store.load(tar((one, "one:1"), (two, "two:1"), (own, "own:1"), (ring,), (rung,)))
    for name in ("own:1", "one:1", "two:1"):
        store.remove(name)
    assert collected(store) == digests(one, two, own, ring, rung)


def test_metadata_collector(new_store):
    """Kept: an image's, a lease's with what it leads to, a flat lease's without; nothing else."""
    store = new_store(leases={"lease-1", "flat"})
    named, leased, flat, lost = (image(number) for number in range(4))
    store.load(tar(*((node, f"n{number}:1") for number, node in enumerate((named, leased, flat, lost)))))
    store.create_lease("lease-1")
    store.add_to_lease("lease-1", [leased.digest])
    store.create_lease("flat", flat=True)
    store.add_to_lease("flat", [flat.digest])
    for number in (1, 2, 3):
        store.remove(f"n{number}:1")
    gone = digests(lost) | (digests(flat) - {flat.digest})
    assert collected(store) == gone
    assert present(store) == digests(named, leased) | {flat.digest}
    assert collected(store) == set()


# -- flat leases: documents that lost their edges --------------------------------------------------


@pytest.fixture
def flat(new_store):
    """A store that has nothing but a manifest, by a flat lease, and the manifest's image."""
    store = new_store(leases={"flat"})
    node = image(1)
    store.load(tar((node, "app:1")))
    store.create_lease("flat", flat=True)
    store.add_to_lease("flat", [node.digest])
    store.remove("app:1")
    store.gc()
    assert present(store) == {node.digest}
    return store, node


def test_a_flat_lease_ends(flat):
    """Its manifest goes; the lease stays, and lists what may come back."""
    store, node = flat
    store.remove_from_lease("flat", [node.digest])
    assert collected(store) == {node.digest}


def test_a_manifest_of_a_flat_lease_is_leased(flat):
    """A lease that is not flat gives it its references back: what comes later stays."""
    store, node = flat
    store.create_lease("strong")
    store.add_to_lease("strong", [node.digest])
    assert collected(store) == set()
    (layer,) = (layer.blob() for layer in node.layers)
    missing = {str(blob.digest) for blob in store.blobs() if not blob.present}
    assert missing == {layer.digest, node.config.digest}
    store.load(tar((node, "app:1"), without={node.digest}))
    store.remove("app:1")
    assert collected(store) == set()
    store.remove_lease("strong")
    assert collected(store) == {layer.digest, node.config.digest}


def test_a_manifest_of_a_flat_lease_is_held_as_bytes(flat):
    """By a document that refers to it as to any file: it counts as a manifest all the same."""
    store, node = flat
    copy = Artifact({"manifest": node.blob.data})
    store.load(tar((copy, "copy:1"), without={node.digest}))
    assert collected(store) == set()
    store.remove("copy:1")
    assert collected(store) == digests(copy) - {node.digest}


def test_a_manifest_of_a_flat_lease_is_indexed(flat):
    """By an index that comes without it."""
    store, node = flat
    index = Index([node])
    options = ImportOptions(allow_incomplete=True)
    store.load(tar((index, "index:1"), without=digests(node)), options)
    assert collected(store) == set()
    store.load(tar((index, "index:1")))
    assert collected(store) == set()
    assert present(store) == digests(index)


def test_the_oracle_is_no_rubber_stamp():
    """Of the machine in `test_gc_machine`: a referrer hangs on its subject, unless that closed a circle."""
    documents = {
        "a": {"layers": [{"digest": "x"}]},
        "b": {"subject": {"digest": "a"}, "manifests": [{"digest": "c"}]},
        "c": {"subject": {"digest": "b"}, "config": {"digest": "y"}},
        "d": {"subject": {"digest": "c"}, "manifests": [{"digest": "c"}]},
    }
    edges = graph(documents)
    assert edges == {"a": {"x", "b"}, "b": {"c"}, "c": {"y"}, "d": {"c"}}
    assert reach(edges, ["a"]) == {"a", "x", "b", "c", "y"}
