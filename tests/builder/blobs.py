"""Bytes with a digest, and tars of them."""

from __future__ import annotations

import bz2
import functools
import gzip
import hashlib
import io
import json
import lzma
import random
import tarfile
from dataclasses import dataclass
from pathlib import Path

import zstandard

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
IMAGE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
SUBJECT = "io.containerd.manifest.subject"
ATTESTATION_TYPE = "vnd.docker.reference.type"
ATTESTATION_FOR = "vnd.docker.reference.digest"

CREATED = "2025-01-01T00:00:00Z"
OCI_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'

COMPRESSORS = {
    "none": bytes,
    "gzip": functools.partial(gzip.compress, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: zstandard.ZstdCompressor(level=3).compress(data),
}


@dataclass(frozen=True)
class Link:
    """A symbolic link in an archive or a layer."""

    target: str


@dataclass(frozen=True)
class Blob:
    """Bytes with a media type."""

    data: bytes
    media_type: str
    algorithm: str = "sha256"

    @functools.cached_property
    def digest(self):
        """`alg:hex`."""
        return f"{self.algorithm}:{hashlib.new(self.algorithm, self.data).hexdigest()}"

    @property
    def size(self):
        """Bytes."""
        return len(self.data)

    @property
    def path(self):
        """Where an OCI layout has it."""
        return "blobs/" + self.digest.replace(":", "/")

    def descriptor(self, **more):
        """A reference to it; `more` adds keys, or replaces them."""
        known = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return known | {key: value for key, value in more.items() if value is not None}


def document(media_type, value):
    """A JSON document in compact form, its keys in the order given; None is left out."""
    kept = {key: item for key, item in value.items() if item is not None}
    return Blob(json.dumps(kept, separators=(",", ":"), ensure_ascii=False).encode(), media_type)


def noise(size, seed=0):
    """Bytes that no compression shrinks."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - reproducible, nothing secret


def write_tar(path, members, compression="none"):
    """A tar with these members: bytes, a `Link`, or None for a directory."""
    Path(path).write_bytes(COMPRESSORS[compression](tar_bytes(members)))
    return path


def tar_bytes(members):
    """The same in memory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.mode = 0o644
            if body is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif isinstance(body, Link):
                info.type, info.linkname = tarfile.SYMTYPE, body.target
            else:
                info.size = len(body)
            tar.addfile(info, io.BytesIO(body) if isinstance(body, bytes) else None)
    return out.getvalue()
