"""Stores to be interrupted in the middle of an import, and what must hold whatever happened."""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgdb.content.disk import DiskBlobStore
from imgdb.errors import NotFoundError
from imgdb.oci.digest import Digest
from imgdb.store import ImageStore
from tests.builder import Image, noise
from tests.integrity import check_store

if TYPE_CHECKING:
    from pathlib import Path

NAME = "example.org/app:1"
BASE = {"base": noise(3000)}


@dataclass(frozen=True)
class Scene:
    """A store, and an archive to be imported into it.

    Attributes:
        empty: an empty store to start from; None to start from nothing.
        archives: what was imported before, and what is imported.
        before, after: names and targets, without and with the last archive.
    """

    empty: Path | None
    archives: tuple[str, ...]
    before: dict
    after: dict

    @property
    def archive(self):
        """What is imported."""
        return self.archives[-1]

    def fresh(self, root):
        """The store as it is before, at a path."""
        shutil.rmtree(root, ignore_errors=True)
        if self.empty is not None:
            # Blobs are imported and not copied, for rows remember their files' ctimes.
            shutil.copytree(self.empty, root)
            with ImageStore.open(root, durable=False) as store:
                for archive in self.archives[:-1]:
                    store.load(archive)
        return root


def make_scenes(path):
    """The first import of all; one that moves a name; one of so many blobs that they are synced at once."""
    images = {
        "old": Image([BASE, {"old": b"1"}]),
        "new": Image([BASE, {"new": b"2"}]),
        "many": Image([BASE, *({f"layer{n}": b"%d" % n} for n in range(10))]),
    }
    old, new, many = (image.oci_tar(path / f"{name}.tar", NAME) for name, image in images.items())
    digests = {name: image.digest for name, image in images.items()}
    empty = path / "empty"
    with ImageStore.open(empty, create=True, durable=False):
        pass
    before = {NAME: digests["old"]}
    dangling = {f"moby-dangling@{digests['old']}": digests["old"]}
    return {
        "first": Scene(None, (new,), {}, {NAME: digests["new"]}),
        "moves": Scene(empty, (old, new), before, {NAME: digests["new"]} | dangling),
        "many": Scene(empty, (old, many), before, {NAME: digests["many"]} | dangling),
    }


def names(store):
    """Names and what they point to."""
    return {summary.record.name: str(summary.record.target.digest) for summary in store.images()}


def look(root):
    """Open a store after something happened to it: names, after checking that no row leads its file."""
    try:
        store = ImageStore.open(root, durable=False)
    except NotFoundError:
        return {}
    with store:
        for blob in store.blobs():
            if blob.present:
                with DiskBlobStore(str(root)).open(blob.digest) as file:
                    assert Digest.of(file.read(), blob.digest.algorithm) == blob.digest
        for summary in store.images():
            store.export([summary.record.name], io.BytesIO())
        return names(store)


def recover(root, scene):
    """Import again: everything is there, everything left over is gone but holds, and those are dead."""
    with ImageStore.open(root, create=True, durable=False) as store:
        store.load(scene.archive)
        assert names(store) == scene.after
        files = DiskBlobStore(str(root))
        assert files.living_holds() == set()
        files.reap_holds(files.dead_holds())
        assert os.listdir(os.path.join(root, "holds")) == []
        check_store(store)
