"""What is below an image, as the database knows it: no document is read for an export.

Source: specification §2.3, §2.6-2.9; design §5.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgdb.oci import spec
from imgdb.oci.platform import Platform, matches
from imgdb.oci.spec import Descriptor, Kind, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from imgdb.db.graph import ClosureEdge
    from imgdb.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class Fact:
    """What the store knows about a blob."""

    kind: Kind
    present: bool
    damaged: bool = False


def _by_position(item: tuple[int, Descriptor]) -> int:
    return item[0]


def _by_digest(item: tuple[int, Descriptor]) -> Digest:
    return item[1].digest


@dataclass(slots=True)
class Tree:
    """Edges by parent, in the documents' order; referrers by digest.

    Attributes:
        facts: one for each digest in it.
        platforms: of manifests whose descriptor has none, from their configs.
    """

    facts: dict[Digest, Fact]
    platforms: Mapping[Digest, Platform]
    edges: dict[tuple[Digest, Role], list[Descriptor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, roots: Mapping[Digest, Fact], edges: Iterable[ClosureEdge], platforms: Mapping[Digest, Platform]
    ) -> Tree:
        """Sort the rows of a closure into a tree."""
        facts = dict(roots)
        grouped: dict[tuple[Digest, Role], list[tuple[int, Descriptor]]] = defaultdict(list)
        for edge in edges:
            facts[edge.child.digest] = Fact(edge.kind, edge.present, edge.damaged)
            grouped[edge.parent, edge.role].append((edge.position, edge.child))
        tree = cls(facts, platforms)
        for (parent, role), children in grouped.items():
            # A referrer's position is a row number, which differs from store to store.
            children.sort(key=_by_digest if role is Role.REFERRER else _by_position)
            tree.edges[parent, role] = [child for _, child in children]
        return tree

    def children(self, digest: Digest, role: Role) -> list[Descriptor]:
        """What a document refers to in one role."""
        return self.edges.get((digest, role), [])

    def below(self, digest: Digest) -> list[Descriptor]:
        """Everything that a document leads to, and what hangs on it; not its own subject."""
        roles = (Role.MANIFEST, Role.CONFIG, Role.LAYER, Role.REFERRER)
        return [child for role in roles for child in self.children(digest, role)]

    def content(self, digest: Digest) -> list[Descriptor]:
        """Config and layers of a manifest."""
        return self.children(digest, Role.CONFIG) + self.children(digest, Role.LAYER)

    def is_here(self, digest: Digest) -> bool:
        """Whether its bytes are in the store."""
        return self.facts[digest].present

    def is_index(self, descriptor: Descriptor) -> bool:
        """Whether it is an index, by its bytes where they are here."""
        fact = self.facts[descriptor.digest]
        if fact.present:
            return fact.kind is Kind.INDEX
        return spec.kind_of(descriptor.media_type) is Kind.INDEX

    def is_image(self, descriptor: Descriptor) -> bool:
        """Whether it is a manifest that something could run: no attestation, signature or artifact."""
        if spec.is_attestation(descriptor) or spec.is_signature(descriptor):
            return False
        config = self.children(descriptor.digest, Role.CONFIG)
        layers = self.children(descriptor.digest, Role.LAYER)
        if not config or config[0].media_type not in spec.CONFIG_TYPES:
            return False
        return all(spec.is_layer(layer.media_type) for layer in layers)

    def missing(self, digest: Digest) -> list[Digest]:
        """What a manifest or leaf lacks to be complete; foreign layers may be absent."""
        if not self.is_here(digest):
            return [digest]
        return [
            child.digest
            for child in self.content(digest)
            if not (self.is_here(child.digest) or spec.is_foreign(child.media_type))
        ]

    def platform_of(self, descriptor: Descriptor) -> Platform | None:
        """The descriptor's platform, else its config's."""
        return descriptor.platform or self.platforms.get(descriptor.digest)

    def leaves(self, top: Descriptor) -> Iterator[Descriptor]:
        """Manifests and other leaves at and below a descriptor, each once, in order."""
        seen: set[Digest] = set()
        pending = [top]
        while pending:
            descriptor = pending.pop()
            if descriptor.digest in seen:
                continue
            seen.add(descriptor.digest)
            if self.is_index(descriptor):
                pending += self.children(descriptor.digest, Role.MANIFEST)[::-1]
            else:
                yield descriptor


@dataclass(frozen=True, slots=True)
class Selection:
    """Which manifests travel."""

    tree: Tree
    platforms: Sequence[Platform]

    def accepts(self, descriptor: Descriptor, siblings: Sequence[Descriptor] = ()) -> bool:
        """Whether a manifest is wanted; an attestation is when what it attests is."""
        if not self.platforms:
            return True
        if spec.is_attestation(descriptor):
            about = descriptor.annotations.get(spec.ATTESTATION_FOR)
            return any(str(other.digest) == about and self.accepts(other) for other in siblings)
        platform = self.tree.platform_of(descriptor)
        return platform is not None and any(matches(wanted, platform) for wanted in self.platforms)

    def children(self, index: Digest) -> list[Descriptor]:
        """The wanted manifests of an index."""
        manifests = self.tree.children(index, Role.MANIFEST)
        return [m for m in manifests if self.tree.is_index(m) or self.accepts(m, manifests)]


def best(
    tree: Tree, leaves: Iterable[Descriptor], key: Callable[[Platform | None], tuple[int, int]]
) -> Descriptor | None:
    """The complete image that fits a host best, for tools that can load one only."""
    images = [leaf for leaf in leaves if tree.is_image(leaf) and not tree.missing(leaf.digest)]
    return min(images, key=lambda leaf: key(tree.platform_of(leaf)), default=None)
