"""Imports that are killed at any system call, or of which one fails; and the order of their calls.

Files may lead rows, rows never lead files (design §4). The order is what makes that true after a power
cut, the kills show that it is true after a crash. `deep` goes through every call; else every nth.
"""

from __future__ import annotations

import itertools
import os
import signal

import pytest

from imgdb.content.disk import DiskBlobStore
from imgdb.content.ingest import SYNCFS_FROM
from imgdb.store import ImageStore
from tests.conftest import absent
from tests.content.crashes import look, make_scenes, recover
from tests.content.importing import REFUSED
from tests.content.strace import Importer
from tests.tools.daemons import ToolMissingError

ERRORS = ("EIO", "ENOSPC", "EACCES")
SYNCS = {"fsync", "fdatasync"}
RENAMES = {"rename", "renameat", "renameat2"}
WRITES = {"write", "pwrite64", "pwritev"}
UNLINKS = {"unlink", "unlinkat"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Stores to be interrupted; see crashes.py."""
    return make_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def importer(scenes, tmp_path_factory):
    """Runs imports under strace."""
    try:
        with Importer(tmp_path_factory.mktemp("traces") / "trace", scenes["moves"].archive) as started:
            started.run(tmp_path_factory.mktemp("probe") / "store", scenes["moves"].archive)
            yield started
    except ToolMissingError as error:
        absent(error)


@pytest.fixture
def root(tmp_path):
    """Where the store is."""
    return tmp_path / "store"


def position(calls, kinds, *ends, after=-1, before=None):
    """Index of the last call of these kinds between two others whose first paths end so; None if none."""
    found = None
    for index, call in enumerate(calls[:before]):
        paths = call.paths
        fits = len(paths) >= len(ends) and all(p.endswith(e) for p, e in zip(paths, ends, strict=False))
        if index > after and call.name in kinds and fits:
            found = index
    return found


def placed(calls):
    """(index, source, target) of each blob's last rename."""
    for index, call in enumerate(calls):
        if call.name in RENAMES and "/ingest/" in call.paths[-2] and "/blobs/" in call.paths[-1]:
            yield index, *call.paths[-2:]


def check_order(calls, root):
    """Synced before its name, the names before the rows, the rows before anybody is told."""
    renames = list(placed(calls))
    assert renames, "no blob was put"
    written = position(calls, WRITES, "imgdb.db-wal", after=renames[-1][0])
    assert written is not None, "no transaction after the blobs"
    for index, source, target in renames:
        wrote = position(calls, WRITES, source, before=index)
        synced = position(calls, SYNCS, source, before=index)
        if synced is None:
            synced = position(calls, {"syncfs"}, os.path.dirname(source), before=index)
        assert wrote is not None, f"{source} was never written"
        assert (synced or -1) > wrote, f"{target} got its name before its bytes were synced"
        folder = os.path.dirname(target)
        for path in (folder, os.path.dirname(folder)):
            named = position(calls, SYNCS, path, after=index)
            assert named is not None, f"{path} was not synced"
            between = position(calls, WRITES, "imgdb.db-wal", after=renames[0][0], before=named)
            assert between is None, f"rows were written before {path} was synced"
    committed = position(
        calls, SYNCS, "imgdb.db-wal", after=written, before=told(calls, "index.json", written)
    )
    assert committed is not None, "index.json changed before the commit was durable"
    for name in ("index.json", "store.json"):
        renamed = told(calls, name, committed)
        assert position(calls, SYNCS, f"{name}.new", before=renamed) is not None, f"{name} was not synced"
        assert position(calls, SYNCS, str(root), after=renamed) is not None, f"{name}'s name was not synced"
    assert told(calls, "store.json", committed) > told(calls, "index.json", committed)
    released = next(i for i, c in enumerate(calls) if c.name in UNLINKS and "/holds/" in c.paths[-1])
    assert released > committed, "the hold went before the commit"
    held = [i for i, c in enumerate(calls) if c.name in WRITES and "/holds/" in c.paths[0]]
    assert held[-1] < renames[0][0], "a blob was put before it was held"


def told(calls, name, after):
    """Index of the rename that replaced a file beside the blobs."""
    found = position(calls, RENAMES, f"{name}.new", name, after=after)
    assert found is not None, f"{name} was not written after the commit"
    return found


@pytest.mark.parametrize("name", ["first", "moves", "many"])
def test_order_of_calls(name, scenes, importer, root):
    """Bytes, names of files, rows, mirror, end of the hold: each durable before the next begins."""
    calls = importer.trace(scenes[name].fresh(root), scenes[name].archive)

    check_order(calls, root)
    assert len([c for c in calls if c.name == "syncfs"]) == (1 if name == "many" else 0)
    assert (len(list(placed(calls))) >= SYNCFS_FROM) == (name == "many")


def without(wanted):
    """Leaves calls out of a trace."""
    return lambda calls: [call for call in calls if not wanted(call)]


def earlier(wanted):
    """Puts calls to the beginning of a trace."""
    return lambda calls: [c for c in calls if wanted(c)] + [c for c in calls if not wanted(c)]


def later(wanted):
    """Puts calls to the end of a trace."""
    return lambda calls: [c for c in calls if not wanted(c)] + [c for c in calls if wanted(c)]


def call(kinds, part):
    """Whether a call is one of these, with this in its line."""
    return lambda found: found.name in kinds and part in found.line


WRONG = {
    "bytes not synced": (without(call(SYNCS, "/ingest/")), "before its bytes were synced"),
    "bytes synced too early": (earlier(call(SYNCS, "/ingest/")), "before its bytes were synced"),
    "names not synced": (without(call(SYNCS, "/blobs/sha256>")), "sha256 was not synced"),
    "names synced too early": (earlier(call(SYNCS, "/blobs")), "sha256 was not synced"),
    "names synced too late": (later(call(SYNCS, "/blobs")), "rows were written before"),
    "folder not synced": (without(call(SYNCS, "/blobs>")), "blobs was not synced"),
    "rows not synced": (without(call(SYNCS, "-wal>")), "before the commit was durable"),
    "mirror not synced": (without(call(SYNCS, "index.json.new>")), "index.json was not synced"),
    "mirror too early": (earlier(call(RENAMES, "index.json")), "index.json was not written after"),
    "pair not synced": (without(call(SYNCS, "store.json.new>")), "store.json was not synced"),
    "hold gone too early": (earlier(call(UNLINKS, "/holds/")), "the hold went before the commit"),
    "held too late": (later(call(WRITES, "/holds/")), "before it was held"),
}


@pytest.fixture(scope="module")
def traced(scenes, importer, tmp_path_factory):
    """(the calls of an import, the store's directory)."""
    root = tmp_path_factory.mktemp("traced") / "store"
    return importer.trace(scenes["moves"].fresh(root), scenes["moves"].archive), root


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_order_is_seen(wrong, traced):
    """The check of the order fails on a trace that is wrong in one thing, and says in which."""
    calls, root = traced
    change, words = WRONG[wrong]
    with pytest.raises(AssertionError, match=words):
        check_order(change(calls), root)


def every(strides):
    """(scene, stride) for each scene; all calls when deep."""
    usual = [pytest.param(name, stride, id=f"{name}-{stride}") for name, stride in strides.items()]
    return usual + [pytest.param(name, 1, id=name, marks=pytest.mark.deep) for name in strides]


# Odd, so that both of SQLite's writes for a page get their turn.
@pytest.mark.parametrize(("name", "stride"), every({"moves": 5, "many": 13, "first": 17}))
def test_killed(name, stride, scenes, importer, root):
    """After SIGKILL at a call: no row leads its file, all or nothing is named, importing again works."""
    scene = scenes[name]
    points = importer.trace(scene.fresh(root), scene.archive)
    outcomes = []
    for point in points[::stride]:
        importer.kill(scene.fresh(root), scene.archive, point)
        outcomes.append(look(root))
        assert outcomes[-1] in (scene.before, scene.after), point
        recover(root, scene)

    assert len(outcomes) > 15
    assert scene.before in outcomes
    assert scene.after in outcomes


# No multiples of three, so that each error gets its turn.
@pytest.mark.parametrize(("name", "stride"), every({"moves": 20, "many": 40, "first": 67}))
def test_one_call_fails(name, stride, scenes, importer, root):
    """With one call failing an import succeeds, or says so in a known way and leaves nothing."""
    scene = scenes[name]
    points = importer.trace(scene.fresh(root), scene.archive)
    faults = list(itertools.product(points, ERRORS))
    outcomes = []
    for point, error in faults[::stride]:
        code, words = importer.fail(scene.fresh(root), scene.archive, point, error)
        outcomes.append(code)
        assert look(root) == (scene.before if code else scene.after), f"{point.line} {error}: {words}"
        assert files_nobody_knows(root) == [], f"{point.line} {error}: {words}"
        recover(root, scene)

    assert len(outcomes) > 15
    assert set(outcomes) == {0, REFUSED}


def files_nobody_knows(root):
    """What a refused import would leave for good: neither rows nor a dead hold tell a collector of it."""
    if not os.path.exists(root / "store.json"):
        return []
    files = DiskBlobStore(str(root))
    with ImageStore.open(root) as store:
        known = {blob.digest for blob in store.blobs() if blob.present} | set(files.dead_holds())
    return [digest for digest, _ in files.walk() if digest not in known]


def test_a_commit_in_doubt(scenes, importer, root):
    """When syncing the commit fails and the machine then stops, SQLite may find it whole at the next start.

    So after such an error the files must stay, for a collector to look at when the doubt is over.
    """
    scene = scenes["moves"]
    calls = importer.trace(scene.fresh(root), scene.archive)
    commit = calls[position(calls, SYNCS, "imgdb.db-wal", before=told(calls, "index.json", -1))]
    code, words, calls = importer.run(scene.fresh(root), scene.archive, (commit, "error=EIO"))
    assert code == REFUSED, words
    end = calls[position(calls, UNLINKS, "imgdb.db-shm")]

    code, words, _ = importer.run(
        scene.fresh(root), scene.archive, (commit, "error=EIO"), (end, "signal=SIGKILL")
    )
    assert code == -signal.SIGKILL, words
    assert look(root) in (scene.before, scene.after)
    recover(root, scene)
