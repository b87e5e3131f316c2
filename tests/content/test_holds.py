"""Hold, then look: what a live hold lists is never swept, and the kernel says which holds live."""

from __future__ import annotations

import fcntl
import os
import time

import pytest

from imgdb.content.holds import locked
from imgdb.errors import BusyError, FailedPreconditionError
from imgdb.oci.digest import Digest
from tests.content.children import child
from tests.content.faults import broken
from tests.content.suite import nobody, put

HOLDS = "hold = store.hold(); hold.add([Digest.parse(wait())]); say('held'); wait()"


def directory(store):
    """Where the holds are."""
    return os.path.join(store.root, "holds")


def look(store):
    """(digests of live holds, digests of dead ones), asked as a collector asks."""
    return store.held(), set(store.dead_holds())


def test_hold_then_look(store):
    """A digest that is listed is safe before it is looked for, whether its file is there or not."""
    there, later = put(store, b"there"), Digest.of(b"later")
    with store.hold() as hold:
        hold.add([there, later])
        assert store.sweep([there, later], nobody) == {}
        assert store.stat(there) is not None
        assert store.stat(later) is None
        assert put(store, b"later") == later
        assert store.sweep([there, later], nobody) == {}

    assert store.sweep([there, later], nobody) == {there: 5, later: 5}


def test_holds_of_several_operations(store):
    """A digest is safe as long as one of them holds it."""
    digest = put(store, b"content")
    first, second = store.hold(), store.hold()
    first.add([digest])
    second.add([digest])
    first.release()
    assert store.sweep([digest], nobody) == {}
    second.release()
    assert store.sweep([digest], nobody) == {digest: 7}


def test_adding_again_writes_nothing(store):
    """A digest is listed once."""
    digest = Digest.of(b"x")
    with store.hold() as hold:
        hold.add([digest])
        size = os.path.getsize(hold._path)
        hold.add([digest])
        assert os.path.getsize(hold._path) == size


def test_killed_process(store):
    """The kernel lets go of a killed process's hold; its digests are then swept, its file reaped."""
    digest = put(store, b"content")
    with child(HOLDS, store.root) as holder:
        holder.tell(digest)
        assert holder.heard() == "held"
        assert look(store) == ({digest}, set())
        assert store.sweep([digest], nobody) == {}
        holder.kill()

    assert look(store) == (set(), {digest})
    assert len(os.listdir(directory(store))) == 1
    assert store.sweep([digest], nobody) == {digest: 7}
    store.reap_holds([digest])
    assert os.listdir(directory(store)) == []


def test_what_a_collector_asks(store):
    """Which holds live, what they list, and what those list whose process is gone."""
    living, dead = Digest.of(b"living"), Digest.of(b"dead")
    with store.hold() as hold, child(HOLDS, store.root) as holder:
        hold.add([living])
        holder.tell(dead)
        assert holder.heard() == "held"
        assert store.held() == {living, dead}
        assert hold.name in store.living_holds()
        assert len(store.living_holds()) == 2
        assert store.dead_holds() == []

        holder.kill()
        assert store.held() == {living}
        assert store.living_holds() == {hold.name}
        assert store.held_by() == {hold.name: {living}}
        assert store.dead_holds() == [dead]

        store.reap_holds([])
        assert store.dead_holds() == [dead]
        store.reap_holds([dead])
        assert store.dead_holds() == []
        assert store.held_by() == {hold.name: {living}}
    assert store.held_by() == {}


def test_living_holds_are_not_reaped(store):
    """Reaping takes the dead only."""
    with store.hold() as hold:
        hold.add([Digest.of(b"x")])
        store.reap_holds([Digest.of(b"x")])
        assert look(store) == ({Digest.of(b"x")}, set())
        assert os.listdir(directory(store)) == [os.path.basename(hold._path)]


@pytest.mark.parametrize("clock", ["-1 day", "+10 years"])
def test_no_clock_ends_a_hold(clock, store):
    """The age of a hold's file says nothing about its owner."""
    digest = put(store, b"content")
    at = time.time() + {"-1 day": -86_400, "+10 years": 315_360_000}[clock]
    with store.hold() as hold:
        hold.add([digest])
        os.utime(hold._path, (at, at))
        assert store.sweep([digest], nobody) == {}


FORKS = """
hold = store.hold()
hold.add([Digest.parse(wait())])
if os.fork() == 0:
    try:
        hold.add([Digest.of(b'more')])
    except Exception as error:
        say(type(error).__name__)
    hold.release()
    say('released')
    wait()
    say('gone')
    os._exit(0)
say('forked')
{end}
"""


def test_a_forked_child_does_not_release_a_hold(store):
    """The parent's hold outlives what its child does, and that it ends."""
    digest = put(store, b"content")
    with child(FORKS.format(end="os.wait(); say('parent'); wait(); hold.release()"), store.root) as forking:
        forking.tell(digest)
        heard = {forking.heard() for _ in range(3)}
        assert heard == {"forked", FailedPreconditionError.__name__, "released"}
        assert store.sweep([digest], nobody) == {}
        forking.tell()
        assert (forking.heard(), forking.heard()) == ("gone", "parent")
        assert store.sweep([digest], nobody) == {}
        forking.tell()
        forking.end()

    assert store.sweep([digest], nobody) == {digest: 7}


def test_a_forked_child_does_not_keep_a_hold_alive(store):
    """When the parent is killed its hold is dead, although its child lives."""
    digest = put(store, b"content")
    with child(FORKS.format(end="os.wait()"), store.root) as forking:
        forking.tell(digest)
        assert {forking.heard() for _ in range(3)} == {
            "forked",
            FailedPreconditionError.__name__,
            "released",
        }
        forking.kill()
        assert look(store) == (set(), {digest})
        assert store.sweep([digest], nobody) == {digest: 7}
        forking.tell()
        assert forking.heard() == "gone"


FORKS_LOCKED = """
import fcntl
from imgdb.content.holds import locked
until_closed, opened = os.pipe()
with locked(store.gc_lock, fcntl.LOCK_EX):
    if os.fork() == 0:
        os.close(opened)
        say('forked')
        os.read(until_closed, 1)
        os._exit(0)
    wait()
say('unlocked')
wait()
os.close(opened)
os.wait()
"""


def test_a_forked_child_does_not_keep_a_lock(store):
    """A lock is given back although a child that was forked meanwhile has its descriptor."""
    with child(FORKS_LOCKED, store.root) as forking:
        assert forking.heard() == "forked"
        with pytest.raises(BusyError), locked(store.gc_lock, fcntl.LOCK_SH, deadline_s=0):
            pass
        forking.tell()
        assert forking.heard() == "unlocked"
        with locked(store.gc_lock, fcntl.LOCK_EX, deadline_s=5):
            pass
        forking.tell()
        forking.end()


def test_release_never_fails(store, monkeypatch):
    """It comes after a commit: a file that can't be unlinked is a dead hold, and no error."""
    hold = store.hold()
    hold.add([Digest.of(b"x")])
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", broken)
        hold.release()

    assert look(store) == (set(), {Digest.of(b"x")})


def test_a_hold_that_can_not_be_had_leaves_nothing(store, monkeypatch):
    """No lock, no hold: its file goes, and its descriptor."""
    descriptors = len(os.listdir("/proc/self/fd"))
    flock = fcntl.flock

    def lock(fd, mode):
        return broken() if mode == fcntl.LOCK_EX else flock(fd, mode)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lock)
        with pytest.raises(OSError, match="Input/output error"):
            store.hold()

    assert os.listdir(directory(store)) == []
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_torn_last_line(store):
    """A line that was cut off is a digest whose `add` never returned; the others count."""
    whole, torn = put(store, b"whole"), put(store, b"torn!")
    with store.hold() as hold:
        hold.add([whole])
        with open(hold._path, "a") as file:
            file.write(str(torn)[:-1])

        assert look(store) == ({whole}, set())
        assert store.sweep([whole, torn], nobody) == {torn: 5}


def test_a_torn_line_does_not_swallow_the_next(store, monkeypatch):
    """After an append that failed half-way the hold is as good as before."""
    failed, after = put(store, b"failed"), put(store, b"after")
    with store.hold() as hold:
        with monkeypatch.context() as patch:
            write = os.write
            patch.setattr(os, "write", lambda fd, data: write(fd, data[:20]) if len(data) > 60 else 1 / 0)
            with pytest.raises(ZeroDivisionError):
                hold.add([failed])
        assert hold.digests == frozenset()
        hold.add([after])

        assert look(store) == ({after}, set())
        assert store.sweep([failed, after], nobody) == {failed: 6}


def test_strange_bytes_in_a_hold(store):
    """Bytes that are no text hide no digest."""
    digest = put(store, b"content")
    with store.hold() as hold:
        with open(hold._path, "ab") as file:
            file.write(b"\xff\x00\n")
        hold.add([digest])
        assert look(store) == ({digest}, set())


def test_an_unreadable_hold_stops_the_sweep(store):
    """What can't be read may list anything: nothing is removed."""
    digest = put(store, b"content")
    os.symlink("nowhere", os.path.join(directory(store), "1-strange"))

    with pytest.raises(OSError, match="symbolic link"):
        store.sweep([digest], nobody)
    assert store.stat(digest) is not None


def test_a_collector_excludes_add(store, monkeypatch):
    """While the lock is exclusive `add` waits, for a bounded time; then it says busy and lists nothing."""
    first, second = Digest.of(b"1"), Digest.of(b"2")
    hold = store.hold()
    hold.add([first])
    monkeypatch.setitem(locked.__wrapped__.__kwdefaults__, "deadline_s", 0.2)
    with locked(store.gc_lock, fcntl.LOCK_EX):
        started = time.monotonic()
        with pytest.raises(BusyError, match=r"gc\.lock has been locked for 0 s; try again later"):
            hold.add([second])
        assert 0.2 <= time.monotonic() - started < 10
        with pytest.raises(BusyError) as refused:
            store.hold()
    assert refused.value.exit_code == 75
    assert hold.digests == {first}
    assert look(store) == ({first}, set())
    hold.add([second])
    assert look(store) == ({first, second}, set())
    hold.release()
