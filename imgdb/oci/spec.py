"""Descriptors, manifests, indexes and image configs, as values that keep their raw bytes.

A document is never written again from its parsed form: its digest is its name. `read_document`
is the one place that says what a manifest or an index leads to; import, export, gc and check
all use it. Source: OCI image-spec, specification §2.10-2.11, appendix A; reliability D4-D6, D9.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from imgdb.errors import BadArchiveError, InvalidArgumentError
from imgdb.oci import jsontext
from imgdb.oci.digest import Digest
from imgdb.oci.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Mapping

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer."
OCI_ARTIFACT_MANIFEST = "application/vnd.oci.artifact.manifest.v1+json"
OCI_FOREIGN_LAYER = "application/vnd.oci.image.layer.nondistributable."
EROFS_LAYER = "application/vnd.erofs.layer.v1"

MANIFEST_TYPES = frozenset({DOCKER_MANIFEST, OCI_MANIFEST, OCI_ARTIFACT_MANIFEST})
INDEX_TYPES = frozenset({DOCKER_INDEX, OCI_INDEX})
CONFIG_TYPES = frozenset({DOCKER_CONFIG, OCI_CONFIG})

IMAGE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
MANIFEST_SUBJECT = "io.containerd.manifest.subject"
ATTESTATION_TYPE = "vnd.docker.reference.type"
ATTESTATION_FOR = "vnd.docker.reference.digest"
COSIGN_KIND = "kind"
_COSIGN = "dev.cosignproject.cosign/"
_COSIGN_IMAGES = (_COSIGN + "image", _COSIGN + "imageIndex")

OCI_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'

MANIFEST_LIMIT = 4 << 20
CONFIG_LIMIT = 8 << 20
INDEX_JSON_LIMIT = 20 << 20
MAX_INDEX_DEPTH = 256
MAX_MANIFESTS = 100_000
_MAX_SIZE = 2**63 - 1


class Kind(StrEnum):
    """What a blob is, judged by its first reference and its bytes."""

    MANIFEST = "manifest"
    INDEX = "index"
    CONFIG = "config"
    LAYER = "layer"
    BLOB = "blob"


class Role(StrEnum):
    """How a document refers to a blob; `REFERRER` is derived from `SUBJECT` rows."""

    MANIFEST = "manifest"
    CONFIG = "config"
    LAYER = "layer"
    SUBJECT = "subject"
    REFERRER = "referrer"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to a blob.

    Attributes:
        media_type: may be empty where an old tool left it out.
        size: bytes, 0 <= size < 2**63.
        annotations: string to string.
        urls: where a foreign layer may be fetched; never used, only kept.
    """

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    urls: tuple[str, ...] = ()
    platform: Platform | None = None
    artifact_type: str = ""

    def to_json(self) -> dict[str, Any]:
        """Go's field order; empty fields left out, annotation keys sorted."""
        value: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size,
        }
        if self.urls:
            value["urls"] = list(self.urls)
        if self.annotations:
            value["annotations"] = dict(sorted(self.annotations.items()))
        if self.platform is not None:
            value["platform"] = self.platform.to_json()
        if self.artifact_type:
            value["artifactType"] = self.artifact_type
        return value


@dataclass(frozen=True, slots=True)
class Edge:
    """One reference inside a document; `position` counts per role from 0."""

    role: Role
    position: int
    child: Descriptor


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or an index.

    Attributes:
        raw: the bytes that were hashed.
        kind: `Kind.MANIFEST` or `Kind.INDEX`.
        media_type: the body's own, else the reference's.
        edges: config and layers, or manifests, in order; the subject last.
    """

    raw: bytes
    kind: Kind
    media_type: str
    artifact_type: str
    annotations: Mapping[str, str]
    edges: tuple[Edge, ...]

    @property
    def config(self) -> Descriptor | None:
        """The config descriptor of a manifest."""
        return next((edge.child for edge in self.edges if edge.role is Role.CONFIG), None)

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        """The layer descriptors of a manifest, in order."""
        return tuple(edge.child for edge in self.edges if edge.role is Role.LAYER)

    @property
    def manifests(self) -> tuple[Descriptor, ...]:
        """The descriptors of an index, in order."""
        return tuple(edge.child for edge in self.edges if edge.role is Role.MANIFEST)

    @property
    def subject(self) -> Descriptor | None:
        """What this document is about (signatures, attestations)."""
        return next((edge.child for edge in self.edges if edge.role is Role.SUBJECT), None)


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The fields of an image config that imgdb uses; the rest stays in the raw bytes."""

    raw: bytes
    platform: Platform | None
    diff_ids: tuple[Digest, ...]
    value: Mapping[str, Any]


def kind_of(media_type: str) -> Kind | None:
    """`Kind.MANIFEST` or `Kind.INDEX` for their media types, else None (a leaf)."""
    if media_type in MANIFEST_TYPES:
        return Kind.MANIFEST
    if media_type in INDEX_TYPES:
        return Kind.INDEX
    return None


def is_foreign(media_type: str) -> bool:
    """True for layers that may not be distributed; they may be absent and are never fetched."""
    return media_type.startswith((OCI_FOREIGN_LAYER, DOCKER_FOREIGN_LAYER))


def is_layer(media_type: str) -> bool:
    """True for media types of file system layers."""
    return media_type.startswith((OCI_LAYER, DOCKER_LAYER, DOCKER_FOREIGN_LAYER, EROFS_LAYER))


def is_attestation(descriptor: Descriptor) -> bool:
    """True for BuildKit's attestation manifests inside an index (specification §2.9)."""
    if ATTESTATION_TYPE in descriptor.annotations:
        return True
    return descriptor.platform is not None and descriptor.platform.is_unknown


def is_signature(descriptor: Descriptor) -> bool:
    """True for what cosign save lists beside an image: signatures and the like, in an image's clothes."""
    kind = descriptor.annotations.get(COSIGN_KIND, "")
    return kind.startswith(_COSIGN) and kind not in _COSIGN_IMAGES


def is_pseudo(descriptor: Descriptor, document: Document) -> bool:
    """True for manifests that are no runnable image (specification §6.6)."""
    if is_attestation(descriptor) or is_signature(descriptor):
        return True
    config = document.config
    if config is None or config.media_type not in CONFIG_TYPES:
        return True
    return bool(document.layers) and not any(is_layer(layer.media_type) for layer in document.layers)


def read_descriptor(value: Any, what: str) -> Descriptor:
    """Validate one descriptor object.

    Raises:
        BadArchiveError: wrong types, malformed digest, negative or huge size.
    """
    if not isinstance(value, dict):
        raise BadArchiveError(f"{what}: a descriptor is not an object")
    size = value.get("size")
    if type(size) is not int or not 0 <= size <= _MAX_SIZE:
        raise BadArchiveError(f"{what}: descriptor size {size!r} is no size")
    try:
        digest = Digest.parse(value.get("digest"))
        platform = value.get("platform")
        return Descriptor(
            media_type=_text(value, "mediaType", what),
            digest=digest,
            size=size,
            annotations=_annotations(value, what),
            urls=_urls(value, what),
            platform=None if platform is None else Platform.from_json(platform),
            artifact_type=_text(value, "artifactType", what),
        )
    except InvalidArgumentError as error:
        raise BadArchiveError(f"{what}: {error}") from None


def read_document(raw: bytes, reference: Descriptor) -> Document:
    """Parse and validate a manifest or an index that `reference` points to.

    Raises:
        BadArchiveError: the body is malformed, is schema 1, can be read in two ways, or
            contradicts the media type of the reference.
    """
    what = f"{kind_of(reference.media_type) or 'document'} {reference.digest}"
    value = jsontext.parse(raw, limit=MANIFEST_LIMIT, what=what)
    if not isinstance(value, dict):
        raise BadArchiveError(f"{what} is not a JSON object")
    kind = _kind_of_body(value, reference, what)
    edges = _index_edges(value, what) if kind is Kind.INDEX else _manifest_edges(value, what)
    if value.get("subject") is not None:
        edges.append(Edge(Role.SUBJECT, 0, read_descriptor(value["subject"], what)))
    return Document(
        raw=raw,
        kind=kind,
        media_type=_text(value, "mediaType", what) or reference.media_type,
        artifact_type=_text(value, "artifactType", what),
        annotations=_annotations(value, what),
        edges=tuple(edges),
    )


def read_index_json(raw: bytes) -> tuple[Descriptor, ...]:
    """The descriptors of a layout's index.json; empty when it lists none.

    Raises:
        BadArchiveError: malformed, schema 1, or a manifest instead of an index.
    """
    what = "index.json"
    value = jsontext.parse(raw, limit=INDEX_JSON_LIMIT, what=what)
    if not isinstance(value, dict):
        raise BadArchiveError(f"{what} is not a JSON object")
    _check_schema(value, what)
    if "layers" in value or "config" in value:
        raise BadArchiveError(f"{what}: expected an index but found a manifest")
    return tuple(edge.child for edge in _index_edges(value, what))


def read_config(raw: bytes, what: str) -> ImageConfig:
    """Parse an image config.

    Raises:
        BadArchiveError: not a JSON object, or a used field has a wrong type.
    """
    value = jsontext.parse(raw, limit=CONFIG_LIMIT, what=what)
    if not isinstance(value, dict):
        raise BadArchiveError(f"{what} is not a JSON object")
    try:
        platform = Platform.from_json(value) if value.get("os") or value.get("architecture") else None
        diff_ids = tuple(Digest.parse(item) for item in _diff_ids(value, what))
    except InvalidArgumentError as error:
        raise BadArchiveError(f"{what}: {error}") from None
    return ImageConfig(raw, platform, diff_ids, value)


def chain_ids(diff_ids: tuple[Digest, ...]) -> tuple[Digest, ...]:
    """Chain IDs of a stack of layers (specification §7.1)."""
    result: list[Digest] = []
    for diff_id in diff_ids:
        result.append(Digest.of(f"{result[-1]} {diff_id}".encode()) if result else diff_id)
    return tuple(result)


def _kind_of_body(value: dict[str, Any], reference: Descriptor, what: str) -> Kind:
    """One body must not be readable as manifest and as index (CVE-2021-41190)."""
    _check_schema(value, what)
    is_index = value.get("manifests") is not None
    is_manifest = value.get("layers") is not None or value.get("config") is not None
    if is_index and is_manifest:
        raise BadArchiveError(f"{what} is ambiguous: it has manifests as well as config or layers")
    said = kind_of(_text(value, "mediaType", what)), kind_of(reference.media_type)
    kinds = {kind for kind in said if kind is not None}
    if is_index:
        kinds.add(Kind.INDEX)
    if is_manifest:
        kinds.add(Kind.MANIFEST)
    if len(kinds) != 1:
        raise BadArchiveError(f"{what}: its bytes and its media type contradict each other")
    return kinds.pop()


def _check_schema(value: dict[str, Any], what: str) -> None:
    if "fsLayers" in value or value.get("schemaVersion") == 1:
        raise BadArchiveError(
            f"{what} is docker schema 1, which is not supported; save it with a newer docker"
        )
    version = value.get("schemaVersion", 2)
    if type(version) is not int or version != 2:  # noqa: PLR2004 - the only version there is
        raise BadArchiveError(f"{what}: schemaVersion {version!r} is not 2")
    lower = {key.lower(): key for key in value}
    for known in ("config", "layers", "manifests", "mediaType", "subject", "schemaVersion", "artifactType"):
        found = lower.get(known.lower(), known)
        if found != known:
            raise BadArchiveError(f"{what}: key {found!r} differs from {known!r} by case only")


def _index_edges(value: dict[str, Any], what: str) -> list[Edge]:
    manifests = value.get("manifests")
    if manifests is None:
        return []
    if not isinstance(manifests, list):
        raise BadArchiveError(f"{what}: manifests is not a list")
    if len(manifests) > MAX_MANIFESTS:
        raise BadArchiveError(f"{what} lists more than {MAX_MANIFESTS} manifests")
    return [Edge(Role.MANIFEST, i, read_descriptor(item, what)) for i, item in enumerate(manifests)]


def _manifest_edges(value: dict[str, Any], what: str) -> list[Edge]:
    edges = []
    if value.get("config") is not None:
        edges.append(Edge(Role.CONFIG, 0, read_descriptor(value["config"], what)))
    layers = value.get("layers")
    if layers is None and _text(value, "mediaType", what) == OCI_ARTIFACT_MANIFEST:
        layers = value.get("blobs")
    if layers is not None and not isinstance(layers, list):
        raise BadArchiveError(f"{what}: layers is not a list")
    edges += [Edge(Role.LAYER, i, read_descriptor(item, what)) for i, item in enumerate(layers or ())]
    return edges


def _text(value: dict[str, Any], key: str, what: str) -> str:
    text = value.get(key)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise BadArchiveError(f"{what}: {key} is not a string")
    return text


def _annotations(value: dict[str, Any], what: str) -> dict[str, str]:
    annotations = value.get("annotations")
    if annotations is None:
        return {}
    if not isinstance(annotations, dict) or not all(isinstance(v, str) for v in annotations.values()):
        raise BadArchiveError(f"{what}: annotations are not strings")
    return annotations


def _urls(value: dict[str, Any], what: str) -> tuple[str, ...]:
    urls = value.get("urls")
    if urls is None:
        return ()
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise BadArchiveError(f"{what}: urls are not strings")
    return tuple(urls)


def _diff_ids(value: dict[str, Any], what: str) -> list[Any]:
    rootfs = value.get("rootfs")
    if rootfs is None:
        return []
    if not isinstance(rootfs, dict):
        raise BadArchiveError(f"{what}: rootfs is not an object")
    diff_ids = rootfs.get("diff_ids")
    if diff_ids is None:
        return []
    if not isinstance(diff_ids, list):
        raise BadArchiveError(f"{what}: diff_ids is not a list")
    return diff_ids
