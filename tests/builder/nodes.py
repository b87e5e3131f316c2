"""Manifests and indexes, with what is below them."""

from __future__ import annotations

import json

from tests.builder.archives import Archive
from tests.builder.blobs import (
    ATTESTATION_FOR,
    ATTESTATION_TYPE,
    COMPRESSORS,
    CREATED,
    DOCKER_CONFIG,
    DOCKER_FOREIGN,
    DOCKER_INDEX,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_EMPTY,
    OCI_FOREIGN,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Blob,
    document,
    tar_bytes,
)


class Layer:
    """A layer of an image.

    Args:
        files: path to bytes, `Link`, or None for a directory; or the bytes of the plain tar.
        compression: `none`, `gzip`, `zstd` (`bzip2` and `xz` in docker archives only).
        foreign: not to be distributed; has a URL.
        algorithm: of its digest.
    """

    def __init__(self, files, *, compression="gzip", foreign=False, algorithm="sha256"):
        self.plain = files if isinstance(files, bytes) else tar_bytes(files)
        self.compression = compression
        self.foreign = foreign
        self.data = COMPRESSORS[compression](self.plain)
        self.algorithm = algorithm
        self.diff_id = Blob(self.plain, "").digest

    def blob(self, *, docker=False):
        """It with the media type of its kind of image."""
        known = {(False, False): OCI_LAYER, (False, True): OCI_FOREIGN, (True, False): DOCKER_LAYER}
        base = known.get((docker, self.foreign), DOCKER_FOREIGN)
        suffix = "" if self.compression == "none" else ("." if docker else "+") + self.compression
        return Blob(self.data, base + suffix, self.algorithm)


class Node:
    """A document, and what is below it.

    Attributes:
        blob: the document.
        below: what it refers to and what travels with it.
        entry: what an index that lists it says about it.
    """

    def __init__(self, blob, below=(), entry=None):
        self.blob = blob
        self.below = tuple(below)
        self.entry = entry or {}

    @property
    def digest(self):
        """Of the document: the image ID."""
        return self.blob.digest

    def descriptor(self, **more):
        """A reference to the document."""
        return self.blob.descriptor(**more)

    def blobs(self):
        """Everything at and below it, by path; without recursion, since indexes may be nested deep."""
        found, pending = {}, [self]
        while pending:
            item = pending.pop()
            blob = item.blob if isinstance(item, Node) else item
            if blob.path not in found:
                found[blob.path] = blob
                pending += item.below if isinstance(item, Node) else ()
        return found

    def oci_tar(self, path, *names, **options):
        """See `Archive.oci_tar`."""
        return Archive().add(self, *names).oci_tar(path, **options)

    def oci_dir(self, path, *names, **options):
        """See `Archive.oci_dir`."""
        return Archive().add(self, *names).oci_dir(path, **options)

    def docker_tar(self, path, *names, **options):
        """See `Archive.docker_tar`."""
        return Archive().add(self, *names).docker_tar(path, **options)


def platform_keys(text):
    """`linux/arm64/v8` as the keys of a platform object."""
    return dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False))


class Image(Node):
    """An image manifest with config and layers.

    Args:
        layers: `Layer`, or what a gzip layer is made of; layers may repeat and be shared.
        platform: `os/architecture[/variant]`, or None for a config without.
        labels: of the config.
        docker: Docker's media types instead of OCI's.
        subject: what it is about.
        more: further keys of the config.
    """

    def __init__(
        self,
        layers=({"etc/os-release": b"ID=test\n"},),
        platform="linux/amd64",
        *,
        labels=None,
        docker=False,
        annotations=None,
        subject=None,
        **more,
    ):
        self.layers = [layer if isinstance(layer, Layer) else Layer(layer) for layer in layers]
        keys = platform_keys(platform) if platform else {}
        history = [{"created": CREATED, "created_by": f"layer {n}"} for n in range(len(self.layers))]
        config = {
            "created": CREATED,
            **keys,
            "config": {"Labels": labels} if labels else {},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]},
            "history": history,
        }
        self.docker = docker
        self.config = document(DOCKER_CONFIG if docker else OCI_CONFIG, config | more)
        bodies = [layer.blob(docker=docker) for layer in self.layers]
        urls = [["https://invalid.example/layer"] if layer.foreign else None for layer in self.layers]
        media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
        value = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": self.config.descriptor(),
            "layers": [body.descriptor(urls=url) for body, url in zip(bodies, urls, strict=True)],
            "subject": subject and subject.descriptor(),
            "annotations": annotations,
        }
        super().__init__(document(media_type, value), (self.config, *bodies), {"platform": keys or None})


class Index(Node):
    """An index of images, other indexes, attestations and artifacts.

    Args:
        manifests: nodes, or (node, keys) where the entry says something else than usual.
        docker: Docker's media type instead of OCI's.
    """

    def __init__(self, manifests, *, docker=False, annotations=None, subject=None, artifact_type=None):
        pairs = [item if isinstance(item, tuple) else (item, item.entry) for item in manifests]
        media_type = DOCKER_INDEX if docker else OCI_INDEX
        value = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "artifactType": artifact_type,
            "manifests": [node.descriptor(**more) for node, more in pairs],
            "subject": subject and subject.descriptor(),
            "annotations": annotations,
        }
        super().__init__(document(media_type, value), [node for node, _ in pairs])


class Artifact(Node):
    """A manifest that is no image.

    Args:
        files: bodies, by file name.
        artifact_type: what it is.
        subject: what it is about: then it is a referrer.
        config: a config with content; without one, OCI's empty config.
    """

    def __init__(
        self,
        files=None,
        *,
        artifact_type="application/vnd.example.thing",
        subject=None,
        config=None,
        annotations=None,
        layer_type="application/octet-stream",
        entry=None,
    ):
        names = {"thing.txt": b"a thing\n"} if files is None else files
        bodies = [Blob(body, layer_type) for body in names.values()]
        config = config or Blob(b"{}", OCI_EMPTY)
        titles = [{"org.opencontainers.image.title": name} for name in names]
        value = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": config.descriptor(),
            "layers": [
                body.descriptor(annotations=title) for body, title in zip(bodies, titles, strict=True)
            ],
            "subject": subject and subject.descriptor(),
            "annotations": annotations,
        }
        super().__init__(document(OCI_MANIFEST, value), (config, *bodies), entry)


class Attestation(Artifact):
    """BuildKit's statement about an image, listed beside it in their index."""

    def __init__(self, image, statement=b'{"_type":"https://in-toto.io/Statement/v0.1"}'):
        config = {"architecture": "unknown", "os": "unknown", "rootfs": {"type": "layers", "diff_ids": []}}
        super().__init__(
            {"statement": statement},
            artifact_type=None,
            config=document(OCI_CONFIG, config),
            layer_type="application/vnd.in-toto+json",
            entry={
                "annotations": {ATTESTATION_FOR: image.digest, ATTESTATION_TYPE: "attestation-manifest"},
                "platform": {"architecture": "unknown", "os": "unknown"},
            },
        )


class Signature(Artifact):
    """What `cosign save` writes: looks like an image, only the entry's annotation tells."""

    def __init__(self, image):
        payload = json.dumps({"critical": {"image": {"docker-manifest-digest": image.digest}}}).encode()
        diff_ids = [Blob(payload, "").digest]
        config = {"architecture": "", "os": "", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        super().__init__(
            {"payload": payload},
            artifact_type=None,
            config=document(OCI_CONFIG, config),
            layer_type="application/vnd.dev.cosign.simplesigning.v1+json",
            entry={"annotations": {"kind": "dev.cosignproject.cosign/sigs"}},
        )
