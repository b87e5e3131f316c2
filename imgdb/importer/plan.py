"""What an import will store and name: decided before anything is stored.

Everything here is a pure function of the archive's layout, its graph and the options, so that
a dry run shows what an import then does. Source: specification §6.3-6.4, corpus decisions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from imgdb.errors import BadArchiveError, InvalidArgumentError, NotFoundError
from imgdb.oci import spec
from imgdb.oci.platform import Platform, matches
from imgdb.oci.reference import parse_normalized
from imgdb.oci.spec import Kind, Role

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from imgdb.importer.graph import Graph
    from imgdb.importer.layout import Layout, Top
    from imgdb.oci.digest import Digest
    from imgdb.oci.spec import Descriptor, Document


REPLACE = ("dangle", "refuse", "replace")


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What the caller of an import may choose; see the command line's help for the words.

    Attributes:
        platforms: store only these; empty for all. With `rootfs`, the image's one platform; empty
            for this host's.
        name: for the one image of the archive.
        replace: ``dangle``, ``refuse`` or ``replace`` a name that points elsewhere.
        allow_incomplete: take images of which no platform is complete.
        max_size: bytes of bodies allowed; None for no limit.
        lease: id of a lease that shall keep the imported targets; None for none.
        rootfs: the source is a tar of a root file system, to be made an image of one layer.
    """

    platforms: Sequence[Platform] = ()
    name: str | None = None
    replace: str = "dangle"
    allow_incomplete: bool = False
    max_size: int | None = None
    lease: str | None = None
    rootfs: bool = False

    def __post_init__(self) -> None:
        """Mistakes cost nothing when they are found before an archive is read."""
        if self.replace not in REPLACE:
            raise InvalidArgumentError(f"replace={self.replace!r} is none of {', '.join(REPLACE)}")
        if self.name is not None and parse_normalized(self.name).digest is not None:
            raise InvalidArgumentError(f"--name {self.name}: a name with a digest can't be given")
        if self.rootfs and len(self.platforms) > 1:
            raise InvalidArgumentError("--rootfs makes an image of one platform; give one --platform")


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image that the import makes visible.

    Attributes:
        target: its descriptor.
        name: canonical; None when it shall be dangling.
        platforms: of its complete images.
        absent: platforms that its index lists and that are not here.
    """

    target: Descriptor
    name: str | None
    platforms: tuple[str, ...]
    absent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """What to store and what to name.

    Attributes:
        graph: everything below the archive's images.
        kept: digests to be in the store afterwards, parents before children.
        images: in the archive's order.
        warnings: sentences for the user.
    """

    graph: Graph
    kept: tuple[Digest, ...]
    images: tuple[Wanted, ...]
    warnings: tuple[str, ...]


def make_plan(
    layout: Layout, graph: Graph, options: ImportOptions, *, in_store: Collection[Digest] = ()
) -> ImportPlan:
    """Decide what to store and under which names.

    Args:
        layout: what the archive lists.
        graph: what is below it.
        options: the user's choices.
        in_store: what the store has and the archive has not, as far as the graph needs it.

    Raises:
        BadArchiveError: an image is incomplete, and that was not allowed.
        NotFoundError: a requested platform is not in the archive, or not complete.
        InvalidArgumentError: a name was given for an archive with several images.
    """
    selection = _Selection(graph, options.platforms)
    tops, warnings = _named(layout, graph, options.name)
    if options.platforms:
        selection.check(tops)
    elif not options.allow_incomplete:
        _check_complete(tops, graph)
    tops, more = _last_wins(tops)
    kept = selection.kept(top.target for top in tops)
    anchors = kept.keys() | set(in_store)
    images = [_wanted(top, graph, selection) for top in tops if not _hangs_on_subject(top, graph, anchors)]
    return ImportPlan(graph, tuple(kept), _once(images), tuple(warnings + more))


def _named(layout: Layout, graph: Graph, name: str | None) -> tuple[list[Top], list[str]]:
    if name is not None:
        # The user's name stands for all that the archive says about names.
        return _rename(list(layout.tops), name), [w for w in layout.warnings if "--name" not in w]
    tops, warnings = _names_from_docker(list(layout.tops), layout, graph)
    return tops, [*layout.warnings, *warnings]


class _Selection:
    """Which manifests of the graph are asked for."""

    def __init__(self, graph: Graph, platforms: Sequence[Platform]) -> None:
        self._graph = graph
        self._platforms = tuple(platforms)

    def accepts(self, descriptor: Descriptor, siblings: Sequence[Descriptor] = ()) -> bool:
        """Whether a manifest is wanted; an attestation is when what it attests is."""
        if not self._platforms:
            return True
        about = descriptor.annotations.get(spec.ATTESTATION_FOR)
        if spec.is_attestation(descriptor):
            return any(str(other.digest) == about and self.accepts(other) for other in siblings)
        platform = self._graph.platform_of(descriptor)
        if platform is None:
            return True
        return any(matches(wanted, platform) for wanted in self._platforms)

    def children(self, document: Document) -> list[Descriptor]:
        """What a document leads to and is wanted."""
        if document.kind is Kind.INDEX:
            manifests = document.manifests
            return [m for m in manifests if self._leads_on(m) or self.accepts(m, manifests)]
        return [edge.child for edge in document.edges if edge.role is not Role.SUBJECT]

    def _leads_on(self, descriptor: Descriptor) -> bool:
        document = self._graph.document(descriptor.digest)
        return document is not None and document.kind is Kind.INDEX

    def kept(self, tops: Iterable[Descriptor]) -> dict[Digest, None]:
        """Present digests below the tops that are wanted; a dict, for its order."""
        kept: dict[Digest, None] = {}
        pending = list(tops)[::-1]
        while pending:
            descriptor = pending.pop()
            node = self._graph.nodes[descriptor.digest]
            if descriptor.digest in kept or not node.present:
                continue
            kept[descriptor.digest] = None
            if node.document is not None:
                pending += self.children(node.document)[::-1]
        return kept

    def check(self, tops: Sequence[Top]) -> None:
        """Every requested platform must be there and complete, in every image of the archive.

        Raises:
            NotFoundError: in docker's words.
        """
        for top in tops:
            if top.is_referrer:
                continue
            for platform in self._platforms:
                self._check_platform(top, platform)

    def _check_platform(self, top: Top, platform: Platform) -> None:
        found = [
            leaf
            for leaf in self._graph.leaves(top.target)
            if not spec.is_attestation(leaf)
            and matches(platform, self._graph.platform_of(leaf) or Platform("", ""))
        ]
        label = top.name or top.tag or top.target.digest
        if not found:
            raise NotFoundError(f"requested platform(s) ([{platform}]) not found in {label}")
        missing = [digest for leaf in found for digest in self._graph.missing(leaf.digest)]
        if missing:
            raise NotFoundError(
                f"requested platform(s) ([{platform}]) found in {label}, "
                f"but some content is missing: {missing[0]}"
            )


def _names_from_docker(tops: list[Top], layout: Layout, graph: Graph) -> tuple[list[Top], list[str]]:
    """Give RepoTags of a manifest.json beside index.json to images that index.json leaves unnamed."""
    by_config: dict[Digest, list[int]] = {}
    for position, top in enumerate(tops):
        for leaf in graph.leaves(top.target):
            document = graph.document(leaf.digest)
            if document is not None and document.config is not None:
                by_config.setdefault(document.config.digest, []).append(position)
    result: list[list[Top]] = [[top] for top in tops]
    warnings = []
    for image in layout.docker:
        config = layout.docker_configs.get(image.config)
        positions = by_config.get(config, []) if config else []
        if not positions:
            warnings.append("manifest.json and index.json disagree; index.json is used")
            continue
        first = positions[0]
        if tops[first].name is None and image.names:
            result[first] = [replace(tops[first], name=str(name), tag=None) for name in image.names]
    return [top for group in result for top in group], sorted(set(warnings))


def _check_complete(tops: Sequence[Top], graph: Graph) -> None:
    for top in tops:
        leaves = list(graph.leaves(top.target))
        images = [leaf for leaf in leaves if not spec.is_attestation(leaf)] or leaves
        missing = [graph.missing(leaf.digest) for leaf in images]
        if missing and all(missing):
            shown = ", ".join(str(digest) for digest in min(missing, key=len)[:3])
            raise BadArchiveError(
                f"{top.name or top.tag or top.target.digest} is not complete, missing {shown} "
                "(neither in the archive nor in the store; --allow-incomplete takes it as it is)"
            )


def _rename(tops: list[Top], name: str) -> list[Top]:
    images = [top for top in tops if not top.is_referrer]
    if len({top.target.digest for top in images}) != 1:
        raise InvalidArgumentError(f"--name {name}: the archive holds {len(images)} images, not one")
    reference = parse_normalized(name)
    only = images[0]
    final = reference.with_tag(only.tag) if reference.tag is None and only.tag else reference.tag_or_latest()
    return [replace(only, name=str(final), tag=None)] + [top for top in tops if top.is_referrer]


def _last_wins(tops: list[Top]) -> tuple[list[Top], list[str]]:
    """Of several images with one name the last one has it."""
    owner = {top.name: top.target.digest for top in tops if top.name is not None}
    result, warnings = [], []
    for top in tops:
        if top.name is not None and owner[top.name] != top.target.digest:
            warnings.append(f"{top.name} names several images of the archive; the last one gets it")
            result.append(replace(top, name=None))
        else:
            result.append(top)
    return result, warnings


def _hangs_on_subject(top: Top, graph: Graph, anchors: Collection[Digest]) -> bool:
    """A signature that its subject keeps alive needs no image of its own."""
    if top.name is not None:
        return False
    document = graph.document(top.target.digest)
    subject = document.subject if document else None
    return subject is not None and subject.digest in anchors


def _wanted(top: Top, graph: Graph, selection: _Selection) -> Wanted:
    platforms: dict[str, None] = {}
    absent: dict[str, None] = {}
    for leaf in graph.leaves(top.target):
        platform = graph.platform_of(leaf)
        if platform is None or spec.is_attestation(leaf):
            continue
        complete = selection.accepts(leaf) and not graph.missing(leaf.digest)
        (platforms if complete else absent)[str(platform.normalized())] = None
    return Wanted(top.target, top.name, tuple(platforms), tuple(p for p in absent if p not in platforms))


def _once(images: Sequence[Wanted]) -> tuple[Wanted, ...]:
    """Each (name, target) once; an unnamed entry goes where the target has a name as well."""
    named = {image.target.digest for image in images if image.name is not None}
    seen: dict[tuple[str | None, Digest], Wanted] = {}
    for image in images:
        if image.name is not None or image.target.digest not in named:
            seen.setdefault((image.name, image.target.digest), image)
    return tuple(seen.values())
