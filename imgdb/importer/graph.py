"""What is below the images of an archive: read, validated, and judged complete or not.

The walk goes level by level, without recursion, so that a chain of indexes costs no stack and
each level asks the store once. Whatever is looked up was listed in the hold before.
Source: specification §2.10, §6.6; reliability D5, D6, D9; corpus decisions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from imgdb.errors import BadArchiveError
from imgdb.oci import spec
from imgdb.oci.spec import Descriptor, Document, ImageConfig, Kind, Role

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from imgdb.oci.digest import Digest
    from imgdb.oci.platform import Platform

_KIND_OF_ROLE = {Role.CONFIG: Kind.CONFIG, Role.LAYER: Kind.LAYER, Role.SUBJECT: Kind.BLOB}


class Lookup(Protocol):
    """Archive and store together."""

    def sizes(self, digests: Collection[Digest]) -> dict[Digest, int]:
        """The sizes of those that are here, after listing them in the hold.

        Raises:
            BadArchiveError: the archive has a member of that name with other bytes.
        """

    def read(self, digest: Digest) -> bytes:
        """The bytes of a blob that is here."""

    def awaited(self, digests: Collection[Digest]) -> list[Descriptor]:
        """Those that documents of the store refer to as manifests or indexes, and that were absent."""


@dataclass(slots=True)
class Node:
    """A blob that something refers to.

    Attributes:
        first: the descriptor of its first reference, of a document's as a document.
        present: its bytes are here.
        document: parsed, when it is referred to as manifest or index and is here.
        config: parsed, when it is referred to as an image's config and is here.
    """

    first: Descriptor
    kind: Kind
    present: bool
    document: Document | None = None
    config: ImageConfig | None = None


@dataclass(slots=True)
class Graph:
    """Nodes by digest."""

    nodes: dict[Digest, Node] = field(default_factory=dict)

    def document(self, digest: Digest) -> Document | None:
        """The parsed manifest or index, if it is here."""
        node = self.nodes.get(digest)
        return node.document if node else None

    def config_of(self, document: Document) -> ImageConfig | None:
        """The parsed image config of a manifest, if it is here."""
        node = self.nodes.get(document.config.digest) if document.config else None
        return node.config if node else None

    def platform_of(self, descriptor: Descriptor) -> Platform | None:
        """The descriptor's platform, else its config's."""
        if descriptor.platform is not None:
            return descriptor.platform
        document = self.document(descriptor.digest)
        config = self.config_of(document) if document else None
        return config.platform if config else None

    def missing(self, digest: Digest) -> list[Digest]:
        """What a manifest or leaf lacks to be complete; foreign layers may be absent."""
        node = self.nodes[digest]
        if not node.present:
            return [digest]
        if node.document is None:
            return []
        needed = [d for d in (node.document.config, *node.document.layers) if d is not None]
        return [
            d.digest for d in needed if not (self.nodes[d.digest].present or spec.is_foreign(d.media_type))
        ]

    def leaves(self, top: Descriptor) -> Iterator[Descriptor]:
        """The manifests (and other leaves of indexes) at and below a descriptor, each once, in order."""
        seen: set[Digest] = set()
        pending = [top]
        while pending:
            descriptor = pending.pop()
            if descriptor.digest in seen:
                continue
            seen.add(descriptor.digest)
            document = self.document(descriptor.digest)
            if document is not None and document.kind is Kind.INDEX:
                pending += reversed(document.manifests)
            else:
                yield descriptor


def build(tops: Iterable[Descriptor], lookup: Lookup) -> Graph:
    """Read and validate everything below some descriptors.

    Raises:
        BadArchiveError: a document is malformed or contradicts its reference, a size is wrong,
            or there are too many levels or documents.
    """
    graph = Graph()
    extend(graph, tops, lookup)
    # What is a mere leaf here may be a document that others refer to and were waiting for.
    leaves = [digest for digest, node in graph.nodes.items() if node.present and node.document is None]
    extend(graph, lookup.awaited(leaves), lookup)
    return graph


def extend(graph: Graph, tops: Iterable[Descriptor], lookup: Lookup) -> None:
    """Add what is below some more descriptors; errors as `build`."""
    level = [(Role.MANIFEST, descriptor) for descriptor in tops]
    for _ in range(spec.MAX_INDEX_DEPTH + 2):
        if not level:
            return
        level = _next_level(graph, level, lookup)
    raise BadArchiveError(f"indexes are nested deeper than {spec.MAX_INDEX_DEPTH} levels")


def _next_level(
    graph: Graph, level: list[tuple[Role, Descriptor]], lookup: Lookup
) -> list[tuple[Role, Descriptor]]:
    sizes = lookup.sizes({descriptor.digest for _, descriptor in level})
    following: list[tuple[Role, Descriptor]] = []
    for role, descriptor in level:
        size = sizes.get(descriptor.digest)
        if size is not None and size != descriptor.size and role is not Role.SUBJECT:
            raise BadArchiveError(
                f"blob {descriptor.digest} has {size} bytes, but {descriptor.size} are recorded for it"
            )
        node = _visit(graph, role, descriptor, present=size is not None)
        document = _read_new(node, role, descriptor, lookup)
        if document is not None:
            following += [(edge.role, edge.child) for edge in document.edges]
    if sum(node.document is not None for node in graph.nodes.values()) > spec.MAX_MANIFESTS:
        raise BadArchiveError(f"more than {spec.MAX_MANIFESTS} manifests and indexes")
    return following


def _visit(graph: Graph, role: Role, descriptor: Descriptor, *, present: bool) -> Node:
    node = graph.nodes.get(descriptor.digest)
    if node is None:
        kind = _KIND_OF_ROLE.get(role) or spec.kind_of(descriptor.media_type) or Kind.BLOB
        node = Node(descriptor, kind, present)
        graph.nodes[descriptor.digest] = node
    elif node.kind is Kind.BLOB and role is not Role.SUBJECT:
        # Seen as a subject or an unknown leaf so far; a stronger reference says more.
        node.first = descriptor
        node.kind = _KIND_OF_ROLE.get(role) or spec.kind_of(descriptor.media_type) or Kind.BLOB
    return node


def _read_new(node: Node, role: Role, descriptor: Descriptor, lookup: Lookup) -> Document | None:
    """Parse a document or config at the first reference that makes it one; returns new documents."""
    if not node.present:
        return None
    if role is Role.MANIFEST and node.document is None and _is_document(descriptor):
        if descriptor.size > spec.MANIFEST_LIMIT:
            raise BadArchiveError(f"{descriptor.digest} is larger than {spec.MANIFEST_LIMIT} bytes")
        node.document = spec.read_document(lookup.read(descriptor.digest), descriptor)
        node.kind, node.first = node.document.kind, descriptor
        return node.document
    if role is Role.CONFIG and node.config is None and descriptor.media_type in spec.CONFIG_TYPES:
        if descriptor.size > spec.CONFIG_LIMIT:
            raise BadArchiveError(f"config {descriptor.digest} is larger than {spec.CONFIG_LIMIT} bytes")
        node.config = spec.read_config(lookup.read(descriptor.digest), f"config {descriptor.digest}")
    return None


def _is_document(descriptor: Descriptor) -> bool:
    if descriptor.media_type.startswith(spec.DOCKER_SCHEMA1):
        raise BadArchiveError(f"{descriptor.digest} is docker schema 1, which is not supported")
    # Old tools left the type out; the bytes decide then.
    return not descriptor.media_type or spec.kind_of(descriptor.media_type) is not None
