"""What there is to say about images: summaries, docker's inspect, docker's history.

Built from rows only; no blob is read. Source: specification §8.3, ecosystem §1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imgdb.db import blobs
from imgdb.errors import NotFoundError
from imgdb.exporter.tree import best
from imgdb.exporter.walk import read_tree
from imgdb.oci import spec
from imgdb.oci.platform import host_platform, matches, preference_key
from imgdb.oci.reference import parse_normalized
from imgdb.oci.spec import Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

    from imgdb.db.images import ImageRecord
    from imgdb.exporter.tree import Tree
    from imgdb.oci.digest import Digest
    from imgdb.oci.platform import Platform
    from imgdb.oci.spec import Descriptor


@dataclass(frozen=True, slots=True)
class ManifestSummary:
    """One manifest of an image.

    Attributes:
        kind: ``image``, ``attestation`` or ``artifact``.
        complete: everything of it is here, foreign layers apart.
        size: bytes of it that are here.
    """

    digest: Digest
    kind: str
    platform: str
    complete: bool
    size: int


@dataclass(frozen=True, slots=True)
class ImageSummary:
    """A name, what it points to, and what of it is here.

    Attributes:
        record: the name.
        size: bytes of content that are here, each blob once, the index itself not counted.
        created: RFC 3339, as the best image's config says; empty when it does not.
        labels: of the best image's config.
        manifests: in the index's order.
    """

    record: ImageRecord
    size: int
    created: str
    labels: Mapping[str, str]
    manifests: tuple[ManifestSummary, ...]

    @property
    def repository(self) -> str | None:
        """Familiar repository; None for a dangling image."""
        if self.record.is_dangling:
            return None
        return parse_normalized(self.record.name).familiar_name

    @property
    def tag(self) -> str | None:
        """The tag; None for a dangling image or a name with a digest only."""
        return None if self.record.is_dangling else parse_normalized(self.record.name).tag

    @property
    def platforms(self) -> tuple[str, ...]:
        """Platforms of complete images."""
        return tuple(m.platform for m in self.manifests if m.kind == "image" and m.complete and m.platform)


def summaries(connection: Connection, records: Sequence[ImageRecord]) -> list[ImageSummary]:
    """Describe some names, in a constant number of statements."""
    tree = read_tree(connection, [record.target for record in records])
    key = preference_key(host_platform())
    chosen = {
        digest: best(tree, tree.leaves(target), key)
        for digest, target in {record.target.digest: record.target for record in records}.items()
    }
    configs = _configs(connection, tree, [leaf for leaf in chosen.values() if leaf is not None])
    return [_summary(record, tree, chosen[record.target.digest], configs) for record in records]


def _choose(tree: Tree, record: ImageRecord, platform: Platform | None) -> Descriptor | None:
    """The complete image of a platform; without one, that which fits the host best, if there is any."""
    if platform is None:
        return best(tree, tree.leaves(record.target), preference_key(host_platform()))
    known = [(leaf, tree.platform_of(leaf)) for leaf in tree.leaves(record.target)]
    fitting = [leaf for leaf, its in known if its is not None and matches(platform, its)]
    chosen = best(tree, fitting, preference_key(platform))
    if chosen is None:
        label = record.display_name
        raise NotFoundError(f"{label} has no complete {platform}; imgdb inspect {label} shows what is here")
    return chosen


def _configs(
    connection: Connection, tree: Tree, leaves: Sequence[Descriptor]
) -> dict[Digest, dict[str, Any]]:
    """Parsed configs by manifest digest."""
    of = {leaf.digest: tree.children(leaf.digest, Role.CONFIG)[0].digest for leaf in leaves}
    texts = blobs.texts(connection, of.values())
    return {leaf: json.loads(texts[config]) for leaf, config in of.items() if config in texts}


def _summary(
    record: ImageRecord, tree: Tree, chosen: Descriptor | None, configs: Mapping[Digest, dict[str, Any]]
) -> ImageSummary:
    leaves = list(tree.leaves(record.target))
    sizes: dict[Digest, int] = {}
    for leaf in leaves:
        sizes |= _present_sizes(tree, leaf)
    config = configs.get(chosen.digest, {}) if chosen else {}
    created = config.get("created")
    return ImageSummary(
        record=record,
        size=sum(sizes.values()),
        created=created if isinstance(created, str) else "",
        labels=_labels(config),
        manifests=tuple(_manifest(tree, leaf) for leaf in leaves),
    )


def _present_sizes(tree: Tree, leaf: Descriptor) -> dict[Digest, int]:
    return {d.digest: d.size for d in (leaf, *tree.content(leaf.digest)) if tree.is_here(d.digest)}


def _manifest(tree: Tree, leaf: Descriptor) -> ManifestSummary:
    platform = tree.platform_of(leaf)
    kind = "attestation" if spec.is_attestation(leaf) else "image" if tree.is_image(leaf) else "artifact"
    if not tree.is_here(leaf.digest) and kind == "artifact" and platform is not None:
        # Its config can't be seen, but an index gives platforms to images only.
        kind = "image"
    return ManifestSummary(
        digest=leaf.digest,
        kind=kind,
        platform=str(platform.normalized()) if platform else "",
        complete=not tree.missing(leaf.digest),
        size=sum(_present_sizes(tree, leaf).values()),
    )


def _labels(config: Mapping[str, Any]) -> dict[str, str]:
    inner = config.get("config")
    labels = inner.get("Labels") if isinstance(inner, dict) else None
    return {str(k): str(v) for k, v in labels.items()} if isinstance(labels, dict) else {}


def inspect(
    connection: Connection, records: Sequence[ImageRecord], platform: Platform | None = None
) -> dict[str, Any]:
    """One image as ``docker inspect`` shows it, with what docker does not tell.

    Args:
        connection: any.
        records: all names of one target, the one that was meant first.
        platform: of the image; None for the one that fits the host best.

    Raises:
        NotFoundError: the target has no complete image of that platform.
    """
    target = records[0].target
    tree = read_tree(connection, [target])
    chosen = _choose(tree, records[0], platform)
    config = _configs(connection, tree, [chosen]).get(chosen.digest, {}) if chosen else {}
    rootfs = config.get("rootfs")
    summary = _summary(records[0], tree, chosen, {chosen.digest: config} if chosen else {})
    names = [record for record in records if not record.is_dangling]
    repositories = dict.fromkeys(parse_normalized(record.name).familiar_name for record in names)
    return {
        "Id": str(target.digest),
        "RepoTags": [record.display_name for record in names],
        "RepoDigests": [f"{repository}@{target.digest}" for repository in repositories],
        "Created": summary.created,
        "Author": config.get("author") or "",
        "Architecture": config.get("architecture") or "",
        "Variant": config.get("variant") or "",
        "Os": config.get("os") or "",
        "Size": summary.size,
        "Config": config.get("config") or {},
        "RootFS": {
            "Type": rootfs.get("type", "") if isinstance(rootfs, dict) else "",
            "Layers": rootfs.get("diff_ids") or [] if isinstance(rootfs, dict) else [],
        },
        "Descriptor": target.to_json(),
        "Manifests": [
            {
                "Digest": str(manifest.digest),
                "Kind": manifest.kind,
                "Platform": manifest.platform,
                "Complete": manifest.complete,
                "Size": manifest.size,
            }
            for manifest in summary.manifests
        ],
        "Referrers": [str(referrer.digest) for referrer in tree.children(target.digest, Role.REFERRER)],
        "Layers": [str(layer.digest) for layer in tree.children(chosen.digest, Role.LAYER)] if chosen else [],
    }


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One step of an image's making, newest first as docker prints them.

    Attributes:
        layer: digest of the layer it made, None for a step without one.
        created: RFC 3339, or empty.
        size: bytes of the stored layer.
    """

    layer: Digest | None
    created: str
    created_by: str
    size: int
    comment: str


def history(
    connection: Connection, record: ImageRecord, platform: Platform | None = None
) -> list[HistoryEntry]:
    """How an image was made; layers without a history line come as they are.

    Args:
        connection: any.
        record: a name of the image.
        platform: of the image; None for the one that fits the host best.

    Raises:
        NotFoundError: the target has no complete image of that platform.
    """
    tree = read_tree(connection, [record.target])
    chosen = _choose(tree, record, platform)
    if chosen is None:
        return []
    config = _configs(connection, tree, [chosen]).get(chosen.digest, {})
    layers = list(tree.children(chosen.digest, Role.LAYER))
    entries = []
    for step in config.get("history") or []:
        layer = layers.pop(0) if layers and not step.get("empty_layer") else None
        entries.append(_step(step, layer))
    entries += [_step({}, layer) for layer in layers]
    return entries[::-1]


def _step(step: Mapping[str, Any], layer: Descriptor | None) -> HistoryEntry:
    return HistoryEntry(
        layer=layer.digest if layer else None,
        created=str(step.get("created") or ""),
        created_by=str(step.get("created_by") or ""),
        size=layer.size if layer else 0,
        comment=str(step.get("comment") or ""),
    )
