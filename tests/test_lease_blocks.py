"""Leases of ``with`` blocks: their hold, their renewal, their end."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time

import pytest

from imgdb.db import leases, sql
from imgdb.errors import AlreadyExistsError, BusyError, InvalidArgumentError, RefusedError
from tests.builder import Image
from tests.clock import DAY, Clock
from tests.content.children import child

RUNNING = """
from imgdb.store import ImageStore
images = ImageStore.open(sys.argv[1], durable=False)
with images.lease(labels={'job': '1'}) as lease:
    lease.add('app:1')
    say(lease.id)
    wait()
images.close()
"""

FORKING = """
from imgdb.store import ImageStore
images = ImageStore.open(sys.argv[1], durable=False)
with images.lease() as lease:
    forked = os.fork()
    if forked:
        assert os.waitpid(forked, 0)[1] == 0
        say(lease.id)
        wait()
    else:
        lease.add('app:1')
if not forked:
    os._exit(0)
images.close()
"""


@pytest.fixture
def clock(monkeypatch):
    """Time for rows and expiries of this process."""
    made = Clock()
    monkeypatch.setattr(sql, "clock", made)
    return made


@pytest.fixture
def app(new_store, tmp_path):
    """A store with app:1; leases that stay behind go into `app.left`."""
    left = set()
    store = new_store(leases=left)
    store.load(Image().oci_tar(tmp_path / "app.tar", "app:1"))
    store.left = left
    return store


def wait_until(true):
    """Poll for something that another thread does soon."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def held_bytes(store):
    """Of everything that is held."""
    return store.info().blob_bytes


def test_block(app):
    """What is added is kept until the block ends, and then is not."""
    size = held_bytes(app)
    digest = app.resolve("app:1").target.digest
    with app.lease("mine", labels={"job": "1"}, expires_s=60, flat=False) as lease:
        lease.add("app:1", digest, leases.Resource("snapshots", "s"))
        assert [(r.type, r.key) for r in lease.resources] == [("content", str(digest)), ("snapshots", "s")]
        (listed,) = app.leases()
        assert (listed.id, lease.id, listed.labels) == ("mine", "mine", {"job": "1"})
        assert (listed.owner_kind, listed.expires_at - listed.created_at) == ("hold", 60_000_000)
        app.remove("app:1")
        app.gc()
        assert held_bytes(app) == size
    assert app.leases() == []
    app.gc()
    assert held_bytes(app) == 0


def test_block_that_raises(app):
    """The lease goes, the hold goes, the thread goes; the error stays what it is."""
    before = threading.active_count()

    def work():
        with app.lease() as lease:
            assert (len(app.leases()), threading.active_count()) == (1, before + 1)
            lease.add("app:1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert (app.leases(), os.listdir(f"{app.root}/holds")) == ([], [])
    assert threading.active_count() == before


@pytest.mark.parametrize("wrong", [{"id": "taken"}, {"id": ""}, {"expires_s": 0}, {"labels": {"": "x"}}])
def test_block_refused(app, wrong):
    """Nothing is left of a lease that can't be made."""
    app.create_lease("taken")
    app.left.add("taken")
    with pytest.raises((AlreadyExistsError, InvalidArgumentError)), app.lease(**wrong):
        pytest.fail("the block ran")
    assert os.listdir(f"{app.root}/holds") == []


def test_deletion_that_fails(app, monkeypatch, caplog):
    """It is logged only, and the lease expires some day."""
    app.left.add("l")
    with caplog.at_level(logging.WARNING, "imgdb"), app.lease("l"):
        monkeypatch.setattr(leases, "remove", busy)
    assert "lease l was not deleted and will expire: busy" in caplog.text
    monkeypatch.undo()
    assert [lease.expired for lease in app.leases()] == [False]


def busy(*_args, **_more):
    """Anything that meets a lock."""
    raise BusyError("busy")


def test_renewal(app, monkeypatch, caplog):
    """The expiry moves on by itself, also after a renewal that failed."""
    with caplog.at_level(logging.WARNING, "imgdb"), app.lease("l", expires_s=0.4):
        first = app.leases()[0].expires_at
        wait_until(lambda: app.leases()[0].expires_at > first)
        assert caplog.text == ""
        with monkeypatch.context() as patch:
            patch.setattr(leases, "renew", busy)
            wait_until(lambda: "lease l was not renewed: busy" in caplog.text)
        later = app.leases()[0].expires_at
        wait_until(lambda: app.leases()[0].expires_at > later)


def test_renewal_of_nothing(app, caplog):
    """A lease that an admin deletes is missed once, and the block ends well."""
    with caplog.at_level(logging.WARNING, "imgdb"), app.lease("l", expires_s=0.2):
        with sqlite3.connect(f"{app.root}/imgdb.db") as shell:
            shell.execute("DELETE FROM imgdb_leases")
        shell.close()
        wait_until(lambda: caplog.text)
        time.sleep(0.3)
    assert caplog.text.count("lease l was removed while it was in use") == 1


def test_running_command(app, clock):
    """Its lease can't expire, whatever the clock says, and nobody else ends it."""
    size = held_bytes(app)
    with child(RUNNING, app.root) as command:
        lease = command.heard()
        app.remove("app:1")
        clock.forward(3650 * DAY)
        result = app.gc()
        assert (result.expired_leases, result.freed, held_bytes(app)) == (0, {}, size)
        assert [(x.id, x.expired, x.resources) for x in app.leases()] == [(lease, False, 1)]
        with pytest.raises(RefusedError, match="running command"):
            app.remove_lease(lease)
        command.tell()
        command.end()
    assert app.leases() == []
    app.gc()
    assert held_bytes(app) == 0


def test_killed_command(app, clock):
    """Its lease lives until it expires, then all is collected."""
    size = held_bytes(app)
    with child(RUNNING, app.root) as command:
        lease = command.heard()
        command.kill()
    app.remove("app:1")
    app.gc()
    assert ([(x.id, x.expired) for x in app.leases()], held_bytes(app)) == ([(lease, False)], size)
    clock.forward(DAY)
    assert [x.expired for x in app.leases()] == [True]
    assert (app.gc().expired_leases, held_bytes(app)) == (1, 0)


def test_killed_command_s_lease_can_be_removed(app):
    """Without waiting for its expiry."""
    with child(RUNNING, app.root) as command:
        lease = command.heard()
        command.kill()
    app.remove_lease(lease)
    app.gc()
    assert app.leases() == []


def test_forked_child(app):
    """It may add to its parent's lease, and leaves it alone at its own end."""
    with child(FORKING, app.root) as command:
        lease = command.heard()
        assert [(x.id, x.resources) for x in app.leases()] == [(lease, 1)]
        with pytest.raises(RefusedError, match="running command"):
            app.remove_lease(lease)
        command.tell()
        command.end()
    assert app.leases() == []
