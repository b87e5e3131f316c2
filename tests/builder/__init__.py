"""Images in a line, and archives of them as other people's tools write them.

::

    Image(layers=[{"etc/x": b"1"}]).oci_tar(path, "example.org/app:1")
    index = Index([Image(), Image(platform="linux/arm64"), Attestation(Image())])
    Archive().add(index, "app:2").add(Artifact(subject=index)).oci_dir(path)
    Archive().add(Image(), "app:3").docker_tar(path, style="classic")

Everything is made when it is asked for and is the same each time: no clock, no randomness. `members()`
and `docker_members()` give an archive as a dict from path to bytes, to be spoiled before `write_tar`.
Nothing of imgdb is used here, so that what is expected doesn't come from what is tested.
"""

from __future__ import annotations

from tests.builder.archives import Archive
from tests.builder.blobs import OCI_LAYOUT, Blob, Link, document, noise, tar_bytes, write_tar
from tests.builder.nodes import Artifact, Attestation, Image, Index, Layer, Node, Signature

__all__ = [
    "OCI_LAYOUT",
    "Archive",
    "Artifact",
    "Attestation",
    "Blob",
    "Image",
    "Index",
    "Layer",
    "Link",
    "Node",
    "Signature",
    "document",
    "noise",
    "tar_bytes",
    "write_tar",
]
