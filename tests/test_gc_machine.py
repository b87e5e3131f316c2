"""A store's life in random order, against a mark and sweep that knows nothing of counters."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from imgdb.errors import RefusedError
from imgdb.gc import GcOptions
from imgdb.importer import commit
from imgdb.importer.plan import ImportOptions
from imgdb.oci.digest import Digest
from imgdb.store import ImageStore
from tests.builder import Archive, Artifact, Attestation, Image, Index, tar_bytes
from tests.dying import dying
from tests.gc_oracle import World, bodies_of, children, manifests, reach
from tests.integrity import check_store

LARGE = commit.BATCH
FULL = GcOptions(full=True, grace_s=0)


def make_pool():
    """Few documents that share much, with every way of leading from one to another."""
    layers = [{"f": b"%d" % n} for n in range(4)]
    one, two = Image(layers[:1]), Image(layers[:2])
    arm = Image([layers[1], layers[2]], platform="linux/arm64")
    index = Index([two, arm, Attestation(two)])
    signature = Artifact({"s": b"1"}, subject=one)
    return {
        "one": one,
        "two": two,
        "arm": arm,
        "docker": Image(layers[2:], docker=True),
        "index": index,
        "nested": Index([index, one]),
        "signature": signature,
        "countersignature": Artifact({"s": b"2"}, subject=signature),
        "sbom": Artifact({"s": b"1", "empty": b""}, subject=index),
        "patch": Image(layers[3:], subject=two),
        # Leads to its own subject: must not keep itself alive.
        "self": Index([arm], subject=arm),
        # Two that keep each other by way of their subjects, if both counted.
        "ring": Index([two], subject=one),
        "rung": Index([one], subject=two),
        # Holds a manifest as mere bytes.
        "copy": Artifact({"manifest": one.blob.data}),
    }


POOL = make_pool()
BODIES = bodies_of(POOL.values())
DIGESTS = sorted({blob.digest for node in POOL.values() for blob in node.blobs().values()})
NAMES = [f"example.org/{name}:1" for name in "abcd"]

nodes = st.sampled_from(sorted(POOL))
names = st.sampled_from(NAMES)
digests = st.sampled_from(DIGESTS) | st.sampled_from(sorted(BODIES))
entries = st.lists(st.tuples(nodes, st.none() | names), min_size=1, max_size=3)
leases = st.sampled_from("xyz")
replaces = st.sampled_from(["dangle", "replace"])
batches = st.sampled_from([LARGE, 3])
effects = st.integers(0, 40)


def archive_of(chosen, without=()):
    """A tar with some nodes, less some of their blobs."""
    archive = Archive()
    for node, name in chosen:
        archive.add(POOL[node], *([name] if name else []))
    return io.BytesIO(tar_bytes(archive.members(without=set(without))))


def offered(chosen):
    """Digests of everything at and below some nodes."""
    return {blob.digest for node, _ in chosen for blob in POOL[node].blobs().values()}


class Place:
    """One store for all lives, since a new engine would have to compile every statement again."""

    def __init__(self, template, root):
        shutil.copytree(template, root)
        self.store = ImageStore.open(root, durable=False)
        self.world = World(root, BODIES)
        self.empty = sqlite3.connect(template / "imgdb.db")
        self.files = {name: (template / name).read_bytes() for name in ("index.json", "store.json")}

    def reset(self):
        """As it was when it was new."""
        self.empty.backup(self.world.db)
        for folder in ("blobs", "ingest", "holds", "trash"):
            shutil.rmtree(self.world.root / folder)
            (self.world.root / folder).mkdir(mode=0o700)
        for name, body in self.files.items():
            (self.world.root / name).write_bytes(body)
        for name in ("gc-run.lock", "names.log"):
            (self.world.root / name).unlink(missing_ok=True)

    def close(self):
        """It is gone."""
        self.store.close()
        self.world.close()
        self.empty.close()
        shutil.rmtree(self.world.root)


class Life(RuleBasedStateMachine):
    """Everything that users, admins and crashes do to a store.

    `have` is what is here, `read` the documents whose edges are recorded; only an import adds to them
    and only a collection takes away. A collection that died is asked how far it came with garbage.
    """

    place: Place

    def __init__(self):
        super().__init__()
        self.place.reset()
        self.store, self.world = self.place.store, self.place.world
        self.have, self.read, self.held = set(), set(), []

    def teardown(self):
        """A last collection, the mirror that plain SQL passed by written anew, and nothing is wrong."""
        while self.held:
            self.held.pop().release()
        self.world.sql("DELETE FROM imgdb_leases")
        self.collect(FULL)
        self.store._after_commit(self.generation(), NAMES)
        check_store(self.store)

    # -- users -------------------------------------------------------------------------------

    @rule(
        chosen=entries, without=st.sets(digests, max_size=2), replace=st.sampled_from(["dangle", "replace"])
    )
    def load(self, chosen, without, replace):
        """Whole archives and partial ones."""
        self.store_archive(chosen, without, replace)

    @initialize(chosen=st.lists(st.tuples(nodes, st.none() | names), max_size=8))
    def start(self, chosen):
        """A store that holds something already."""
        if chosen:
            self.store_archive(chosen)

    def store_archive(self, chosen, without=(), replace="dangle", batch=LARGE):
        """Import; only a pin can be in the way."""
        options = ImportOptions(replace=replace, allow_incomplete=True)
        try:
            with mock.patch.object(commit, "BATCH", batch):
                self.store.load(archive_of(chosen, without), options)
        except RefusedError:
            assert self.world.pinned() & {name for _, name in chosen}
        else:
            self.came(chosen, without)

    def came(self, chosen, without):
        """What an archive leads to, by itself or with what was here, is here now."""
        there = (offered(chosen) - set(without)) | self.have
        tops = [POOL[node].digest for node, _ in chosen]
        indexes = {digest: manifests(BODIES[digest]) for digest in BODIES.keys() & there}
        read = reach(indexes, tops) & indexes.keys()
        self.have |= reach({digest: children(BODIES[digest]) for digest in read}, tops) & there
        self.read |= read

    @rule(data=st.data(), name=names)
    def tag(self, data, name):
        """Another name, or a name that moves."""
        self.change_name(data, lambda source: self.store.tag(source, name))

    @rule(data=st.data())
    def remove(self, data):
        """A name goes."""
        self.change_name(data, self.store.remove)

    @rule(data=st.data())
    def remove_all(self, data):
        """All names of an image go."""
        self.change_name(data, lambda name: self.store.remove(self.world.names()[name], force=True))

    def change_name(self, data, change):
        """Do something to one of the names; only a pin can be in the way."""
        there = sorted(self.world.names())
        if there:
            with contextlib.suppress(RefusedError) if self.world.pinned() else contextlib.nullcontext():
                change(data.draw(st.sampled_from(there)))

    @rule(data=st.data())
    def pin(self, data):
        """A name is pinned, or let go."""
        named = sorted(name for name in self.world.names() if "dangling" not in name)
        if named:
            name = data.draw(st.sampled_from(named))
            (self.store.unpin if name in self.world.pinned() else self.store.pin)(name)

    @rule(lease=leases, flat=st.booleans(), keys=st.sets(digests, min_size=1, max_size=3))
    def lease(self, lease, flat, keys):
        """A lease is made, or gets more; what it lists need not be here."""
        if lease not in self.world.sql("SELECT id FROM imgdb_leases"):
            self.store.create_lease(lease, flat=flat)
        self.store.add_to_lease(lease, keys)

    @rule(lease=leases, key=digests)
    def let_go(self, lease, key):
        """A lease lets go of something."""
        if lease in self.world.sql("SELECT id FROM imgdb_leases"):
            self.store.remove_from_lease(lease, [key])

    @rule(keys=st.sets(digests, min_size=1, max_size=3))
    def hold(self, keys):
        """An operation begins that relies on files, or ends."""
        if len(self.held) > 1:
            self.held.pop().release()
        else:
            self.held.append(self.store._blobs.hold())
            self.held[-1].add([Digest.parse(key) for key in keys])

    # -- admins ------------------------------------------------------------------------------

    @rule(lease=leases)
    def expire(self, lease):
        """Time passes for a lease."""
        self.world.sql("UPDATE imgdb_leases SET expires_at = 1 WHERE id = ?", lease)

    @rule(name=names)
    def delete_image(self, name):
        """Plain SQL; a pinned name's image stays by its lease."""
        self.world.sql("DELETE FROM imgdb_images WHERE name = ?", name)

    @rule(lease=leases)
    def delete_lease(self, lease):
        """Plain SQL."""
        self.world.sql("DELETE FROM imgdb_leases WHERE id = ?", lease)

    @rule(digest=digests)
    def delete_images_of(self, digest):
        """Plain SQL with a condition."""
        target = "(SELECT id FROM imgdb_blobs WHERE digest = ?)"
        self.world.sql(f"DELETE FROM imgdb_images WHERE target_id = {target}", digest)  # noqa: S608

    # -- collections -------------------------------------------------------------------------

    @rule()
    def gc(self):
        """What cron does."""
        self.collect(GcOptions())

    @rule()
    def gc_full(self):
        """What an admin does."""
        self.collect(FULL)

    def collect(self, options):
        """The same live set as the oracle's, and the dry run's list is what went."""
        marked, alive = self.world.live()
        before, held = self.world.present(), self.holding()
        plan = self.store.plan_gc(options)
        assert self.world.present() == before
        assert {str(item.digest) for item in plan.garbage if item.frees} == before - alive - held
        result = self.store.gc(options)
        assert result.freed == plan.freed
        assert result.complete
        assert result.remaining_bytes == 0
        assert result.expired_leases == len(plan.expired)
        assert result.kept_bytes == plan.kept_bytes
        self.have &= alive
        self.read &= marked
        assert self.world.present() == alive & before
        assert self.world.files() == self.have | (held & self.world.files())

    @rule(digest=digests)
    def drift_and_heal(self, digest):
        """Foreign hands bend a counter; a full collection puts it right, and is exact all the same."""
        self.world.sql("UPDATE imgdb_blobs SET refcount = refcount + 1 WHERE digest = ?", digest)
        self.collect(FULL)

    @rule(digest=digests)
    def ask(self, digest):
        """Why something is here; what nobody can say is garbage."""
        alive = self.world.live()[1]
        if digest in self.have:
            kept = digest in alive | self.holding()
            answer = self.store.why(digest)
            assert bool(answer.ways) == kept
            assert (answer.garbage_since is None) == kept
        assert {str(digest) for digest in self.store.kept_by()} & self.have == alive & self.have

    def holding(self):
        """Digests that operations rely on."""
        return {str(digest) for hold in self.held for digest in hold.digests}

    # -- crashes -----------------------------------------------------------------------------

    @rule(effects=effects, full=st.booleans())
    def die_in_gc(self, effects, full):
        """A collection that died took garbage only; the next one takes the rest."""
        with dying(self.store, effects):
            self.store.gc(FULL if full else GcOptions())
        marked, alive = self.world.live()
        self.have &= alive | self.world.present()
        self.read &= marked | self.world.read()

    @rule(effects=effects, chosen=entries, batch=batches)
    def die_in_load(self, effects, chosen, batch):
        """An import that died is all there or nothing of it, if it had one transaction."""
        before = self.generation()
        with dying(self.store, effects) as life, contextlib.suppress(RefusedError):
            self.store_archive(chosen, batch=batch)
        if self.generation() > before and (life.ended and batch == LARGE):
            self.came(chosen, ())
        elif life.ended and batch != LARGE:
            # Some transactions came through, under a lease that lasts a day.
            now = self.world.present()
            assert self.have <= now <= self.have | offered(chosen)
            self.have, self.read = now, self.world.read()

    def generation(self):
        """How far the database has come."""
        return self.world.rows.one("SELECT generation FROM imgdb_meta")

    # -- at any time -------------------------------------------------------------------------

    @invariant()
    def nothing_is_wrong(self):
        """Counters, files, circles; what must be here is here."""
        assert self.world.wrong() == []
        assert self.world.present() == self.have
        now_read = self.world.read()
        assert self.read <= now_read
        self.read = now_read


@pytest.fixture(scope="module", autouse=True)
def _place(store_template, tmp_path_factory):
    memory = Path("/dev/shm")  # noqa: S108 - SQLite syncs each commit; nothing secret
    usable = os.access(memory, os.W_OK)
    folder = tempfile.mkdtemp(prefix="imgdb-life-", dir=memory) if usable else tmp_path_factory.mktemp("life")
    Life.place = Place(store_template, Path(folder) / "store")
    yield
    Life.place.close()
    Path(folder).rmdir()


CALM = settings(
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


class TestLife(Life.TestCase):
    """200 lives."""

    settings = settings(CALM, max_examples=200, stateful_step_count=12)


@pytest.mark.deep
class TestLongLife(Life.TestCase):
    """2 000 longer ones."""

    settings = settings(CALM, max_examples=2000, stateful_step_count=40)
