"""Any graph, in pieces, in any order: the store stays whole, and what is exported is what was meant."""

from __future__ import annotations

import filecmp
import json
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgdb import ImageStore, ImportOptions
from tests.builder import Archive, Artifact, Attestation, Image, Index, Layer
from tests.integrity import check_store
from tests.looking import Members, digests, names

LAYERS = [Layer({f"layer{n}": b"x" * n}) for n in range(4)] + [Layer({"foreign": b"f"}, foreign=True)]
PLATFORMS = ["linux/amd64", "linux/arm64", "linux/arm/v7", None]
FEW = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=400)


class World:
    """Nodes, some with names, and archives that carry parts of them.

    Attributes:
        nodes: each refers to earlier ones only.
        archives: lists of (positions of nodes, digests left out).
    """

    def __init__(self, nodes, named, archives):
        self.nodes = nodes
        self.named = named
        self.archives = archives

    def __repr__(self):
        shown = [f"{n}: {type(node).__name__} {node.digest[7:13]}" for n, node in enumerate(self.nodes)]
        return f"World({shown}, named={sorted(self.named)}, archives={self.archives})"

    def name(self, position):
        """The name of a node, if it has one."""
        return [f"docker.io/library/n{position}:1"] if position in self.named else []

    def archive(self, number, path):
        """Write one of the archives."""
        positions, without = self.archives[number]
        archive = Archive()
        for position in positions:
            archive.add(self.nodes[position], *self.name(position))
        carried = reached([self.nodes[position] for position in positions], without)
        return archive.oci_tar(path, without=digests(*self.nodes) - carried)

    @property
    def present(self):
        """What the archives bring together."""
        return {
            digest
            for positions, without in self.archives
            for digest in reached([self.nodes[position] for position in positions], without)
        }


def reached(tops, without):
    """What an archive carries: what its tops lead to, as far as its documents are there.

    Only that, so that no other archive's documents lead to more of it, and the order doesn't matter.
    """
    found, pending = set(), list(tops)
    while pending:
        node = pending.pop()
        if node.digest in without or node.digest in found:
            continue
        found.add(node.digest)
        blobs = [item for item in node.below if not hasattr(item, "below")]
        found |= {blob.digest for blob in blobs} - set(without)
        pending += [item for item in node.below if hasattr(item, "below")]
    return found


@st.composite
def worlds(draw):
    """A world of a few nodes in a few archives."""
    nodes = []
    for number in range(draw(st.integers(1, 7))):
        nodes.append(draw(a_node(number, nodes)))
    positions = st.integers(0, len(nodes) - 1)
    everything = sorted(digests(*nodes))
    archives = draw(
        st.lists(
            st.tuples(
                st.lists(positions, min_size=1, max_size=4, unique=True),
                st.sets(st.sampled_from(everything), max_size=3) | st.just(set()),
            ),
            min_size=1,
            max_size=4,
        )
    )
    return World(nodes, draw(st.sets(positions)), archives)


def a_node(number, earlier):
    """A node that differs from all others and may refer to earlier ones."""
    some = st.sampled_from(earlier) if earlier else st.nothing()
    subject = st.none() | some
    image = st.builds(
        Image,
        st.lists(st.sampled_from(LAYERS), max_size=3),
        st.sampled_from(PLATFORMS),
        labels=st.just({"number": str(number)}),
        subject=subject,
    )
    artifact = st.builds(Artifact, st.just({"number": str(number).encode()}), subject=subject)
    children = st.lists(some, max_size=4) if earlier else st.just([])
    index = st.builds(Index, children, annotations=st.just({"number": str(number)}), subject=subject)
    attestation = st.builds(Attestation, some, st.just(str(number).encode()))
    return st.one_of(image, image, index, index, artifact, attestation)


class Oracle:
    """What an export carries, told from the nodes and from what is here."""

    def __init__(self, world):
        self.present = world.present
        self.referrers = {}
        for node in world.nodes:
            self._note_subject(node)

    def _note_subject(self, node):
        subject = json.loads(node.blob.data).get("subject")
        if subject is not None and node.digest in self.present:
            self.referrers.setdefault(subject["digest"], []).append(node)

    def is_complete(self, node):
        """Manifest, config and layers; foreign ones apart."""
        needed = [item for item in node.below if "nondistributable" not in item.media_type]
        return node.digest in self.present and all(item.digest in self.present for item in needed)

    def leaves(self, node):
        """Manifests at and below a node."""
        if isinstance(node, Index) and node.digest in self.present:
            return [leaf for child in node.below for leaf in self.leaves(child)]
        return [node]

    def can_export(self, node):
        """At least one of the images is complete; of nothing but attestations, one of these."""
        leaves = self.leaves(node)
        images = [leaf for leaf in leaves if not isinstance(leaf, Attestation)] or leaves
        return not images or any(not isinstance(i, Index) and self.is_complete(i) for i in images)

    def carried(self, tops):
        """Digests in the archive."""
        found, documents, pending = set(), set(), list(tops)
        while pending:
            node = pending.pop()
            if node.digest not in self.present or node.digest in documents:
                continue
            documents.add(node.digest)
            found.add(node.digest)
            if isinstance(node, Index):
                pending += node.below
            elif self.is_complete(node):
                found |= {i.digest for i in node.below if "nondistributable" not in i.media_type}
            pending += [r for r in self.referrers.get(node.digest, ()) if self._is_whole(r)]
        return found

    def _is_whole(self, referrer):
        leaves = self.leaves(referrer)
        return all(not isinstance(leaf, Index) and self.is_complete(leaf) for leaf in leaves)


class Stores:
    """Fresh stores in a folder of their own."""

    def __init__(self, template, stack):
        self.template = template
        self.stack = stack
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

    def new(self, name):
        """An open store."""
        root = shutil.copytree(self.template, self.folder / name)
        return self.stack.enter_context(ImageStore.open(root, durable=False))

    def filled(self, name, world, order):
        """One with the world's archives, imported in an order, checked after each."""
        store = self.new(name)
        for number in order:
            path = world.archive(number, self.folder / f"{number}.tar")
            store.load(path, ImportOptions(allow_incomplete=True))
            check_store(store)
        return store


def in_any_order(template, world, data):
    """Import in two orders, export both, compare with what should travel, and import that."""
    order = data.draw(st.permutations(range(len(world.archives))))
    oracle = Oracle(world)
    listed = {position for positions, _ in world.archives for position in positions}
    wanted = sorted(p for p in world.named & listed if oracle.can_export(world.nodes[p]))
    arguments = [world.name(position)[0] for position in wanted]
    with ExitStack() as stack:
        stores = Stores(template, stack)
        one = stores.filled("one", world, range(len(world.archives)))
        two = stores.filled("two", world, order)
        assert {str(b.digest) for b in one.blobs() if b.present} == oracle.present
        for name, store in (("one", one), ("two", two)):
            store.export(arguments, str(stores.folder / f"{name}.out"))
        assert filecmp.cmp(stores.folder / "one.out", stores.folder / "two.out", shallow=False)

        members = Members(stores.folder / "one.out")
        assert members.digests == oracle.carried([world.nodes[position] for position in wanted])
        again = stores.new("again")
        if wanted:
            again.load(str(stores.folder / "one.out"))
            check_store(again)
        found = {name: digest for name, digest in names(again).items() if "dangling" not in name}
        assert found == {world.name(p)[0]: world.nodes[p].digest for p in wanted}


def losing_names(template, world, data):
    """Remove one name after the other, checking each time; then import something again."""
    with ExitStack() as stack:
        stores = Stores(template, stack)
        store = stores.filled("one", world, range(len(world.archives)))
        for name in data.draw(st.permutations(sorted(names(store)))):
            store.remove(name, force=True)
            check_store(store)
        assert names(store) == {}
        again = data.draw(st.integers(0, len(world.archives) - 1))
        path = world.archive(again, stores.folder / "again.tar")
        store.load(path, ImportOptions(allow_incomplete=True))
        check_store(store)


@given(world=worlds(), data=st.data())
@FEW
def test_graphs_in_any_order(store_template, world, data):
    """Two orders give the same archive of all names; it holds what it should and loads as the same."""
    in_any_order(store_template, world, data)


@given(world=worlds(), data=st.data())
@FEW
def test_graphs_lose_names(store_template, world, data):
    """Names go, one after the other, and come back: counters and mirrors follow."""
    losing_names(store_template, world, data)


@pytest.mark.deep
@given(world=worlds(), data=st.data())
@MANY
def test_graphs_in_any_order_at_length(store_template, world, data):
    """The same for longer."""
    in_any_order(store_template, world, data)


@pytest.mark.deep
@given(world=worlds(), data=st.data())
@MANY
def test_graphs_lose_names_at_length(store_template, world, data):
    """The same for longer."""
    losing_names(store_template, world, data)
