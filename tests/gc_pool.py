"""Few documents that share much, and archives of them, for `test_gc_machine`."""

from __future__ import annotations

import io

from tests.builder import Archive, Artifact, Attestation, Image, Index, tar_bytes
from tests.gc_oracle import bodies_of


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
NAMES = [f"example.org/{name}:1" for name in "abcd"]


def archive_of(chosen, without=()):
    """A tar with some nodes, less some of their blobs."""
    archive = Archive()
    for node, name in chosen:
        archive.add(POOL[node], *([name] if name else []))
    return io.BytesIO(tar_bytes(archive.members(without=set(without))))


def offered(chosen):
    """Digests of everything at and below some nodes."""
    return {blob.digest for node, _ in chosen for blob in POOL[node].blobs().values()}
