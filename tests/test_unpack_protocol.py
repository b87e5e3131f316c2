"""Unpacking beside everything else: durable before a row says so, killed anywhere, collected meanwhile.

Source: design §4.2, §4.9; reliability §4.1, finding 4.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import pytest

from imgdb.errors import ImgdbError
from imgdb.gc import GcOptions
from imgdb.snapshots import disk
from imgdb.store import ImageStore
from imgdb.unpacker import batch, run
from tests.builder import Image
from tests.integrity import check_store
from tests.test_unpack import BASE, HOST, NAME, TOP, directories

IMAGE = Image([BASE, TOP, {"c": b"3"}], HOST)


@pytest.fixture
def durable(tmp_path):
    """A store that syncs, with the image in it."""
    root = tmp_path / "durable"
    with ImageStore.open(root, create=True) as store:
        store.load(IMAGE.oci_tar(tmp_path / "x.tar", NAME))
        yield store
        check_store(store)


def recorded(monkeypatch, calls, owner, name):
    """Note each call of a function, and let it go on."""
    real = getattr(owner, name)

    def noting(*arguments, **options):
        calls.append(name.lstrip("_"))
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, noting)


def test_synced_before_it_is_published_before_it_has_a_row(durable, monkeypatch):
    """One sync for all layers, then their names, those synced too, then one transaction."""
    calls = []
    recorded(monkeypatch, calls, disk, "sync_filesystem")
    recorded(monkeypatch, calls, disk.SnapshotDirectory, "_rename")
    recorded(monkeypatch, calls, disk, "sync_directory")
    recorded(monkeypatch, calls, batch, "_add")
    recorded(monkeypatch, calls, run, "_note")
    durable.unpack(NAME)
    assert calls == ["sync_filesystem", "rename", "rename", "rename", "sync_directory", "add", "note"]


def test_a_sync_that_fails(durable, monkeypatch):
    """Is the end of those files; nothing is published, and the next try begins anew."""
    with monkeypatch.context() as patch:

        def fail(_fd):
            raise OSError(5, "Input/output error")

        patch.setattr(disk, "sync_filesystem", fail)
        with pytest.raises(ImgdbError, match="Input/output error"):
            durable.unpack(NAME)
    assert durable.snapshots() == []
    assert directories(durable) == []
    assert durable.unpack(NAME)[0].new_layers == 3


POINTS = {
    "made": (disk.SnapshotDirectory, "_new", "after"),
    "a layer is applied": (run, "apply_layer", "after"),
    "described": (disk.StagedSnapshot, "describe", "after"),
    "before it is published": (disk.SnapshotDirectory, "publish", "before"),
    "one is renamed": (disk.SnapshotDirectory, "_rename", "after"),
    "published": (disk.SnapshotDirectory, "publish", "after"),
    "before the rows": (batch, "_add", "before"),
    "rows, not committed": (batch, "_add", "after"),
    "before the image is tied to it": (run, "_note", "before"),
    "tied, not committed": (run, "_note", "after"),
}


@pytest.mark.parametrize("point", POINTS)
def test_killed(new_store, tmp_path, monkeypatch, point):
    """The store is whole, a gc leaves nothing of it, and the same command succeeds."""
    store = new_store()
    store.load(IMAGE.oci_tar(tmp_path / "x.tar", NAME))
    owner, name, when = POINTS[point]
    child = os.fork()
    if not child:
        _die_at(monkeypatch, owner, name, when)
        with contextlib.suppress(BaseException), ImageStore.open(store.root, durable=False) as mine:
            mine.unpack(NAME)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    for lease in store.leases():
        store.renew_lease(lease.id, 1e-6)
    store.gc()
    store.gc(GcOptions(full=True, grace_s=-1))
    check_store(store)
    assert directories(store) == [record.id for record in store.snapshots()]
    assert store.unpack(NAME)[0].layers == 3
    store.remove(NAME)
    store.gc()
    assert directories(store) == []


def _die_at(monkeypatch, owner, name, when):
    real = getattr(owner, name)

    def dying(*arguments, **options):
        if when == "after":
            real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(owner, name, dying)


def test_beside_a_collector(new_store, tmp_path):
    """Images come, are unpacked, looked at and go, while everything unneeded is collected all the time."""
    store = new_store()
    archive = IMAGE.oci_tar(tmp_path / "x.tar", NAME)
    ended, failures = threading.Event(), []

    def collect():
        while not ended.is_set():
            try:
                store.gc(GcOptions(full=True))
            except BaseException as error:  # noqa: BLE001 - told below
                failures.append(error)

    collector = threading.Thread(target=collect)
    collector.start()
    looked = 0
    try:
        for turn in range(25):
            store.load(archive)
            store.unpack(NAME)
            store.view("v", NAME)
            layers = f"{store.root}/snapshots/{store.snapshot(store.snapshot('v').parent).id}/fs"
            looked += "c" in os.listdir(layers)
            if turn % 2:
                store.remove(NAME)
            store.remove_snapshot("v")
    finally:
        ended.set()
        collector.join()
    assert failures == []
    assert looked == 25
