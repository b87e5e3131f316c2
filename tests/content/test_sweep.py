"""Sweeping beside imports: which looks come first, what is locked when, and what a storm of both does."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time

from imgdb.content.holds import locked
from imgdb.errors import BusyError
from tests.content.children import PRELUDE
from tests.content.suite import nobody, put
from tests.tools.sample import ROOT


def test_holds_are_read_before_rows(store):
    """A commit that is followed by the end of its hold can't fall between the two looks."""
    digest = put(store, b"content")
    hold = store.hold()
    hold.add([digest])
    committed = []

    def known(digests):
        # The rows are asked now. An import that commits and ends before this was seen by its
        # hold; one that does so after the holds were read is seen by this answer.
        hold.release()
        committed.extend(digests)
        return committed

    assert store.sweep([digest], known) == {}
    assert committed == [digest]

    # With the other order both looks would miss it: the rows before the commit, the holds after.
    other = store.hold()
    other.add([digest])

    def before_the_commit(_digests):
        other.release()
        return ()

    assert store.sweep([digest], before_the_commit) == {}
    assert store.sweep([digest], nobody) == {digest: 7}


def test_rows_are_asked_under_the_lock(store):
    """Nobody can add to a hold between the looks and the removal."""
    digest = put(store, b"content")
    states = []

    def known(_digests):
        try:
            with locked(store.gc_lock, fcntl.LOCK_SH, deadline_s=0):
                states.append("free")
        except BusyError:
            states.append("locked")
        return ()

    assert store.sweep([digest], known) == {digest: 7}
    assert states == ["locked"]


def test_add_goes_on_when_the_collector_is_done(store):
    """A short wait is no error, and what is then looked for is what the collector left."""
    digest = put(store, b"content")
    inside, results = threading.Event(), []

    def known(_digests):
        inside.set()
        time.sleep(0.2)
        return ()

    collector = threading.Thread(target=lambda: results.append(store.sweep([digest], known)))
    with store.hold() as hold:
        collector.start()
        assert inside.wait(60)
        hold.add([digest])
        assert store.stat(digest) is None
        collector.join(60)
    assert results == [{digest: 7}]


def test_sweep_in_batches(store, monkeypatch):
    """At most a hundred at a time, and in between the lock is free for those who want to hold."""
    digests = sorted(put(store, b"%d" % number) for number in range(201))
    batches = []

    def known(batch):
        batches.append(list(batch))
        return ()

    with store.hold() as hold:
        # Called after each batch, when the lock was given back.
        monkeypatch.setattr(store, "empty_trash", lambda: hold.add([digests[-1]]))
        freed = store.sweep(iter(reversed(digests)), known)

    assert batches == [digests[:100], digests[100:200], digests[200:]]
    assert list(freed) == digests[:-1]
    assert [digest for digest, _ in store.walk()] == digests[-1:]


HAMMER = """
import random, time
mode, seed, seconds = sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
random.seed(seed)
pool = [b'%d' % n for n in range(6)]
digests = {Digest.of(data): data for data in pool}
end = time.monotonic() + seconds
seen = lost = swept = 0

def importer():
    global seen, lost
    digest, data = random.choice(list(digests.items()))
    with store.hold() as hold, store.ingest() as ingest:
        if mode == 'look-then-hold':
            there = store.stat(digest)
            time.sleep(random.random() / 1000)
            hold.add([digest])
        else:
            hold.add([digest])
            there = store.stat(digest)
        if there is None:
            store.put(ingest, [ingest.stage(io.BytesIO(data), len(data))])
        seen += there is not None
        for _ in range(random.randrange(4)):
            time.sleep(random.random() / 1000)
            if store.stat(digest) is None:
                lost += 1

def collector():
    global swept
    swept += len(store.sweep(digests, lambda asked: ()))
    time.sleep(random.random() / 500)

while time.monotonic() < end:
    (collector if mode == 'collect' else importer)()
say(seen, lost, swept)
"""


def hammer(store, modes, seconds):
    """Processes that import and collect the same few blobs; the sums of what they saw."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PRELUDE + HAMMER, store.root, mode, str(seed), str(seconds)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed, mode in enumerate(modes)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running)
    return [sum(int(output.split()[column]) for output in outputs) for column in range(3)]


def test_hammer(store):
    """No digest that was held and then seen is swept, by processes that do nothing else."""
    seen, lost, swept = hammer(store, ["import"] * 3 + ["collect"] * 2, 3)

    assert lost == 0
    assert seen > 10
    assert swept > 10
    for name in ("holds", "ingest", "trash"):
        assert os.listdir(os.path.join(store.root, name)) == []


def test_the_hammer_notices(store):
    """Looking before holding does lose blobs under the same load, so the test above can fail."""
    assert any(hammer(store, ["look-then-hold"] * 3 + ["collect"] * 2, 1)[1] for _ in range(20))
