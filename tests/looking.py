"""Short words for what tests look at: a store's names and blobs, an archive's members."""

from __future__ import annotations

import contextlib
import json
import os
import tarfile
import threading

from imgdb import ImportOptions
from imgdb.oci import platform


def names(store):
    """Name to digest, of all images."""
    return {image.record.name: str(image.record.target.digest) for image in store.images()}


def present(store):
    """Digests of what is here."""
    return {str(blob.digest) for blob in store.blobs() if blob.present}


def digests(*nodes):
    """Digests of everything at and below some nodes of `tests.builder`."""
    return {blob.digest for node in nodes for blob in node.blobs().values()}


def platforms(*specifiers):
    """Parsed platforms."""
    return [platform.parse(specifier) for specifier in specifiers]


def asking_for(*specifiers):
    """Import options that ask for platforms."""
    return ImportOptions(platforms=platforms(*specifiers))


@contextlib.contextmanager
def collecting_pipe():
    """A pipe's end to write to, and a list that holds all of its bytes after the block."""
    reading, writing = os.pipe()
    got = []

    def drain():
        with open(reading, "rb") as file:
            got.append(file.read())

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        with open(writing, "wb") as out:
            yield out, got
    finally:
        thread.join()


class Members:
    """An archive as Python's tarfile sees it.

    Attributes:
        infos: path to `tarfile.TarInfo`, in order.
        bodies: path to bytes, of files.
    """

    def __init__(self, path):
        with tarfile.open(path) as tar:
            self.infos = {info.name: info for info in tar}
            self.bodies = {n: tar.extractfile(i).read() for n, i in self.infos.items() if i.isfile()}

    @property
    def index(self):
        """The descriptors of index.json."""
        return json.loads(self.bodies["index.json"])["manifests"]

    @property
    def manifest_json(self):
        """manifest.json, or None."""
        return json.loads(self.bodies["manifest.json"]) if "manifest.json" in self.bodies else None

    @property
    def digests(self):
        """Of all blobs, by their paths."""
        blobs = [name.removeprefix("blobs/") for name in self.bodies if name.startswith("blobs/")]
        return {name.replace("/", ":") for name in blobs}

    def annotations(self):
        """Digest and annotations of each descriptor of index.json, in order."""
        return [(entry["digest"], entry.get("annotations", {})) for entry in self.index]
