"""Stores that lose what ``db rebuild`` brings back."""

from __future__ import annotations

import os
import shutil

from imgdb.gc import GcOptions
from imgdb.rebuild import rebuild
from imgdb.store import ImageStore
from tests.builder import Image
from tests.damage import FULL
from tests.integrity import FILES, check_store


def make_store(template, tmp_path, sample):
    """The directory of a store, closed: the sample, a pin, a dangling image, a second name."""
    root = shutil.copytree(template, tmp_path / "store")
    with ImageStore.open(root, durable=False) as store:
        store.load(sample.archive)
        store.tag("app:1", "registry.example/team/app:stable")
        store.pin("app:1")
        old = Image(labels={"old": "yes"})
        store.load(old.oci_tar(tmp_path / "old.tar", "moving:1"))
        store.load(Image(labels={"new": "yes"}).oci_tar(tmp_path / "new.tar", "moving:1"))
    return root


def lose(root, *which):
    """Files of the store are gone; the database is all of its files."""
    for name in which or ("imgdb.db",):
        for suffix in ("", "-wal", "-shm"):
            (root / f"{name}{suffix}").unlink(missing_ok=True)


def rebuilt(root, **options):
    """Rebuild, and see that the store is whole; the result."""
    result = rebuild(root, durable=False, **options)
    with ImageStore.open(root, durable=False) as store:
        assert store.check(FULL).findings == ()
        for name in os.listdir(root):
            if name not in FILES:
                (root / name).unlink()
        check_store(store)
        assert store.gc(GcOptions(full=True)).freed == {}
    return result


def files(root):
    """Every blob file."""
    return sorted(path.name for path in (root / "blobs").glob("*/*"))
