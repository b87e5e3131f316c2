"""A store's life in random order, against a mark and sweep that knows nothing of counters."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from imgdb.db import garbage
from imgdb.db import leases as db_leases
from imgdb.db.sql import now_us
from imgdb.errors import RefusedError
from imgdb.gc import GcOptions
from imgdb.importer import commit
from imgdb.importer.plan import ImportOptions
from imgdb.oci.digest import Digest
from imgdb.store import ImageStore
from tests.collecting import FULL
from tests.dying import dying
from tests.gc_oracle import World, children, manifests, reach
from tests.gc_pool import BODIES, NAMES, POOL, archive_of, offered
from tests.integrity import check_store

LARGE = commit.BATCH

nodes = st.sampled_from(sorted(POOL))
names = st.sampled_from(NAMES)
digests = st.sampled_from(sorted(offered([(node, None) for node in POOL])))
# What is listed together: a few digests, a document, or all of an image.
things = st.one_of(
    st.sets(digests, min_size=1, max_size=3),
    nodes.map(lambda node: {POOL[node].digest}),
    nodes.map(lambda node: offered([(node, None)])),
)
entries = st.lists(st.tuples(nodes, st.one_of(names, names, st.none())), min_size=1, max_size=3)
leases = st.sampled_from("xyz")
replaces = st.sampled_from(["dangle", "replace"])
batches = st.sampled_from([LARGE, 3])
effects = st.integers(0, 40)


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


def plans(connection):
    """What both ways of planning call garbage."""
    dead = db_leases.dead(connection, now_us(), ())
    return [plan(connection, dead=dead) for plan in (garbage.plan, garbage.plan_full)]


def named(life):
    """Whether there is any name."""
    return bool(life.world.names())


def leased(life):
    """Whether there is any lease."""
    return bool(life.world.leases())


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

    @initialize(chosen=st.lists(st.tuples(nodes, st.none() | names), min_size=3, max_size=8))
    def start(self, chosen):
        """A store that holds something already."""
        self.store_archive(chosen)

    @rule(chosen=entries, without=st.sets(digests, max_size=2), replace=replaces, batch=batches)
    def load(self, chosen, without, replace, batch):
        """Whole archives and partial ones, in one transaction or in many."""
        self.store_archive(chosen, without, replace, batch)

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

    @precondition(named)
    @rule(data=st.data(), how=st.sampled_from(["remove", "remove all", "tag", "pin"]), name=names)
    def change_name(self, data, how, name):
        """A name goes, or all names of an image; an image gets another name; only a pin can be in the way."""
        there = self.world.names()
        chosen = data.draw(st.sampled_from(sorted(there)))
        if how == "pin" and "dangling" not in chosen:
            (self.store.unpin if chosen in self.world.pinned() else self.store.pin)(chosen)
            return
        with contextlib.suppress(RefusedError) if self.world.pinned() else contextlib.nullcontext():
            if how == "tag":
                self.store.tag(chosen, name)
            else:
                self.store.remove(there[chosen] if how == "remove all" else chosen, force=True)

    @rule(lease=leases, flat=st.booleans(), data=st.data())
    def lease(self, lease, flat, data):
        """A lease is made, or gets more; what it lists need not be here."""
        if lease not in self.world.leases():
            self.store.create_lease(lease, flat=flat)
        self.store.add_to_lease(lease, self.listed(data))

    def listed(self, data):
        """Digests: any, or some of what is here."""
        here = st.sampled_from(sorted(self.have)) if self.have else digests
        return data.draw(things | st.sets(here, min_size=1, max_size=3))

    @precondition(leased)
    @rule(data=st.data(), how=st.sampled_from(["expire", "delete", "remove", "let go"]))
    def end_lease(self, data, how):
        """Time passes, or plain SQL, or the user lets go of all or of one thing."""
        lease = data.draw(st.sampled_from(self.world.leases()))
        if how == "expire":
            self.world.sql("UPDATE imgdb_leases SET expires_at = 1 WHERE id = ?", lease)
        elif how == "delete" or lease not in "xyz":
            self.world.sql("DELETE FROM imgdb_leases WHERE id = ?", lease)
        elif how == "remove":
            self.store.remove_lease(lease)
        else:
            listed = [resource.key for resource in self.store.lease_resources(lease)]
            self.store.remove_from_lease(lease, listed[:1])

    @rule(data=st.data())
    def hold(self, data):
        """An operation begins that relies on files, or ends."""
        if len(self.held) > 1:
            self.held.pop().release()
        else:
            self.held.append(self.store._blobs.hold())
            self.held[-1].add([Digest.parse(key) for key in self.listed(data)])

    @precondition(named)
    @rule(data=st.data(), how=st.sampled_from(["name = ?", "target_id = {0}", "target_id <> {0}"]))
    def delete_images(self, data, how):
        """Plain SQL: a name, all names of an image, or all others."""
        name = data.draw(st.sampled_from(sorted(self.world.names())))
        condition = how.format("(SELECT target_id FROM imgdb_images WHERE name = ?)")
        self.world.sql(f"DELETE FROM imgdb_images WHERE {condition}", name)  # noqa: S608 - constants

    # -- collections -------------------------------------------------------------------------

    @rule(data=st.data())
    def strip(self, data):
        """Hardly more than the bytes of a document or two are left."""
        self.world.sql("DELETE FROM imgdb_leases")
        self.store.create_lease("x", flat=True)
        self.store.add_to_lease("x", self.listed(data))
        self.world.sql("DELETE FROM imgdb_images")
        self.collect(GcOptions())

    @rule(options=st.sampled_from([GcOptions(), GcOptions(), FULL]))
    def gc(self, options):
        """What cron does, and sometimes what an admin does."""
        self.collect(options)

    @rule(digest=digests)
    def drift_and_heal(self, digest):
        """Foreign hands bend a counter; a full collection puts it right, and is exact all the same."""
        self.world.sql("UPDATE imgdb_blobs SET refcount = refcount + 1 WHERE digest = ?", digest)
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

    @invariant()
    def garbage_is_known(self):
        """In proportion to the garbage, and by marking: exactly what the oracle does not reach."""
        expected = self.have - self.world.live()[1]
        for found in self.store._read(plans):
            assert {str(item.digest) for item in found if item.frees} == expected


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

    settings = settings(CALM, max_examples=200, stateful_step_count=10)


@pytest.mark.deep
class TestLongLife(Life.TestCase):
    """2 000 longer ones."""

    settings = settings(CALM, max_examples=2000, stateful_step_count=40)
