"""What tests of collections have in common."""

from __future__ import annotations

import io
import os

from imgdb.gc import GcOptions
from imgdb.oci.digest import Digest
from tests.builder import Archive, Image, tar_bytes

FULL = GcOptions(full=True, grace_s=0)


def tar(*entries, without=()):
    """An archive of (node, names…)."""
    archive = Archive()
    for node, *more in entries:
        archive.add(node, *more)
    return io.BytesIO(tar_bytes(archive.members(without=without)))


def image(number, **more):
    """An image that shares nothing."""
    return Image([{"n": str(number).encode()}], author=str(number), **more)


def freed(result):
    """Digests that a plan or a result frees."""
    return {str(digest) for digest in result.freed}


def collected(store, options=None):
    """Digests that a collection freed, after making sure that the plan said the same."""
    plan, result = store.plan_gc(options), store.gc(options)
    assert result.freed == plan.freed
    assert result.kept_bytes == plan.kept_bytes == sum(b.size for b in store.blobs() if b.present)
    return freed(result)


def orphan(store, data):
    """A file that no row knows."""
    digest = Digest.of(data)
    os.makedirs(os.path.dirname(store._blobs.path(digest)), mode=0o700, exist_ok=True)
    with open(store._blobs.path(digest), "wb") as file:
        file.write(data)
    os.chmod(file.name, 0o400)
    return digest
