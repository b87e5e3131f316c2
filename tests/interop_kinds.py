"""Kinds of images that are handed to other projects' tools, and what those tools can't do with them.

Every inability is tested as well, so that none stays in the table when the tool has learned it: with
the version named here it must refuse; a newer one may do so or not, but what it takes must be right.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tests.looking import Members
from tests.tools.sample import make_sample_image

PUBLIC = "public"
NAME = "interop.example/kind:1"

# Kind -> path in the corpus; None for the sample image that the project makes itself.
KINDS = {
    "sample": None,
    "docker classic": f"{PUBLIC}/nexB+container-inspector/tests/data/repos/hello-world.tar",
    "docker repeated layers": "edge/d-layer-symlink-in.tar",
    "docker gzip layers": "edge/d-layers-gz.tar",
    "docker zstd layers": "edge/d-layers-zst.tar",
    "docker 26, one platform of many": f"{PUBLIC}/oras-project+oras-go/content/oci/testdata/hello-world.tar",
    "kaniko": f"{PUBLIC}/GoogleContainerTools+kaniko/integration/tar.tar",
    "docker list": "edge/o-docker-list.tar",
    "attestations": f"{PUBLIC}/docker+attest/test/testdata/unsigned-index",
    "artifact": f"{PUBLIC}/containers+olot/tests/data/ociartifact1",
    "referrer": "edge/o-referrer.tar",
    "cosign": f"{PUBLIC}/sylabs+oci-tools/test/images/hello-world-cosign-manifest",
    "zstd layer": f"{PUBLIC}/wagoodman+dive/.data/test-oci-zstd-image.tar",
    "plain layers": "edge/o-uncompressed.tar",
    "sha512 layer": "edge/o-sha512-layer.tar",
    "nested index": "edge/o-nested-index-3.tar",
    "foreign layer absent": "edge/o-foreign-absent.tar",
}


@dataclass(frozen=True)
class Inability:
    """Something that a tool can't do.

    Attributes:
        version: with which that was seen, as far as it matters.
        why: for people.
        message: a part of what the tool says.
    """

    version: str
    why: str
    message: str


ARTIFACT = "an artifact is nothing to run"
FOREIGN = "it wants every layer in the archive, and asks no URL of a foreign one without a network"
SHA512 = "it names blobs by sha256 only"
ZSTD = "it came before zstd"
DOCKER_ZSTD = "it knows zstd in OCI's media types only"
SPARSE = "asked for all platforms, it wants those that are absent"
SCHEMA2 = "it knows OCI's media types only"
MANY = "a tag must be one manifest"

UMOCI_SCHEMA2 = {
    kind: Inability("0.4", SCHEMA2, "not implemented: application/vnd.docker.distribution.manifest")
    for kind in (
        "docker classic",
        "docker repeated layers",
        "docker gzip layers",
        "docker zstd layers",
        "docker 26, one platform of many",
        "kaniko",
        "docker list",
        "cosign",
    )
}

INABILITIES = {
    "dockerd_graph": {
        "docker zstd layers": Inability("20", ZSTD, "unexpected EOF"),
        "zstd layer": Inability("20", ZSTD, "invalid tar header"),
        "artifact": Inability("20", ARTIFACT, "no such file"),
        "foreign layer absent": Inability("20", FOREIGN, "no such file"),
    },
    "dockerd_graph_new": {
        "artifact": Inability("26", ARTIFACT, "no such file"),
        "foreign layer absent": Inability("26", FOREIGN, "no such file"),
    },
    "dockerd_containerd": {
        # It ends well and says that it loaded something; there is nothing.
        "docker zstd layers": Inability("26", DOCKER_ZSTD, ""),
        "artifact": Inability("26", ARTIFACT, "mismatched image rootfs"),
        "foreign layer absent": Inability("26", FOREIGN, "not found"),
        "sha512 layer": Inability("26", SHA512, "content digest sha512:"),
    },
    "podman": {
        "artifact": Inability("4.3", ARTIFACT, "artifact with type"),
        "foreign layer absent": Inability("4.3", FOREIGN, "layer tarfiles are missing"),
    },
    "containerd": {
        "docker zstd layers": Inability("1.6", DOCKER_ZSTD, "diff.tar.zstd: no processor"),
        "docker 26, one platform of many": Inability("1.6", SPARSE, "not found"),
        "artifact": Inability("1.6", ARTIFACT, "mismatched image rootfs"),
        "foreign layer absent": Inability("1.6", FOREIGN, "not found"),
        "sha512 layer": Inability("1.6", SHA512, "content digest sha512:"),
    },
    # skopeo copy --all to its `dir:`, which keeps manifests as they are.
    "skopeo": {
        "foreign layer absent": Inability("1.9", "it asks the URL of a foreign layer", "fetching "),
        "docker zstd layers": Inability("1.9", DOCKER_ZSTD, "unsupported docker v2s2 media type"),
        "docker 26, one platform of many": Inability("1.9", SPARSE, "no such file"),
        "nested index": Inability("1.9", "it knows no index in an index", "manifest list instead"),
        "sha512 layer": Inability("1.9", SHA512, "saved with digest sha256:"),
    },
    # umoci unpack, from an exported directory.
    "umoci": {
        **UMOCI_SCHEMA2,
        "sample": Inability("0.4", MANY, "tag is ambiguous"),
        "attestations": Inability("0.4", MANY, "tag is ambiguous"),
        "artifact": Inability("0.4", ARTIFACT, "config blob is not correct mediatype"),
        "zstd layer": Inability("0.4", ZSTD, "not correct mediatype"),
        "sha512 layer": Inability("0.4", SHA512, 'unsupported algorithm: "sha512"'),
        "foreign layer absent": Inability("0.4", FOREIGN, "no such file"),
    },
}


def truth_of(archive):
    """Digests of the sample image: its index, this machine's manifest, its config."""
    bodies = Members(archive).bodies

    def read(digest):
        return json.loads(bodies[f"blobs/{digest.replace(':', '/')}"])

    index = json.loads(bodies["index.json"])["manifests"][0]["digest"]
    by_machine = {m["platform"]["architecture"]: m["digest"] for m in read(index)["manifests"]}
    host = by_machine[make_sample_image.HOST]
    return {"index": index, "host": host, "config": read(host)["config"]["digest"]}
