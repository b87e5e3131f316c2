"""What an archive will hold: decided, sized and reportable before the first byte.

Same images and arguments, same plan, same bytes, whatever the store held before.
Source: design §5, specification §2.4-2.9.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imgdb.errors import DataLossError, NotFoundError
from imgdb.exporter.tree import Selection, Tree, best
from imgdb.oci import jsontext, spec
from imgdb.oci.platform import Platform, host_platform, matches, preference_key
from imgdb.oci.reference import familiar, oci_ref_name, parse_normalized
from imgdb.oci.spec import Descriptor, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from imgdb.oci.digest import Digest

FORMATS = ("oci-archive", "docker-archive", "oci-dir")


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What the caller of an export may choose.

    Attributes:
        format: ``oci-archive`` (an OCI layout that docker and podman load as well),
            ``docker-archive``, or ``oci-dir``.
        platforms: carry only these; each must be complete in each image. Empty for all.
        prefer: the platform that tools without platforms get; None for the host's.
        strict: fail when anything of a wanted platform is missing.
        foreign: carry foreign layers that are here.
        referrers: carry signatures and attestations that hang on an image.
        trust: don't read blobs whose files have not changed since they were verified.
        compress: ``none``, ``gzip`` or ``zstd`` around the whole archive.
    """

    format: str = "oci-archive"
    platforms: Sequence[Platform] = ()
    prefer: Platform | None = None
    strict: bool = False
    foreign: bool = False
    referrers: bool = True
    trust: bool = False
    compress: str = "none"


@dataclass(frozen=True, slots=True)
class Requested:
    """An image to carry; `name` canonical, or None when it was asked for by ID or is dangling."""

    target: Descriptor
    name: str | None


@dataclass(frozen=True, slots=True)
class ExportedImage:
    """How one requested image is reported.

    Attributes:
        platforms: complete ones that travel.
        missing: wanted ones that are not complete here.
    """

    name: str | None
    digest: Digest
    platforms: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def display_name(self) -> str:
        """Familiar name with tag, or the digest."""
        return familiar(self.name) if self.name else str(self.digest)


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """The content of an archive.

    Attributes:
        images: in the order in which they were asked for.
        blobs: path in the archive to digest and size.
        documents: path to bytes, for index.json, manifest.json, oci-layout.
    """

    images: tuple[ExportedImage, ...]
    blobs: Mapping[str, tuple[Digest, int]]
    documents: Mapping[str, bytes]

    @property
    def blob_bytes(self) -> int:
        """Bytes of all blobs."""
        return sum(size for _, size in self.blobs.values())


@dataclass(slots=True)
class _Walk:
    """Collects what travels."""

    tree: Tree
    options: ExportOptions
    selection: Selection
    blobs: dict[Digest, int] = field(default_factory=dict)
    documents: dict[Digest, Descriptor] = field(default_factory=dict)

    def add(self, top: Descriptor) -> None:
        """Carry what is wanted and here of a tree."""
        pending = [top]
        while pending:
            descriptor = pending.pop()
            if descriptor.digest in self.documents or not self.tree.is_here(descriptor.digest):
                continue
            self.documents[descriptor.digest] = descriptor
            self._carry(descriptor)
            if self.tree.is_index(descriptor):
                pending += self.selection.children(descriptor.digest)[::-1]
            elif not self.tree.missing(descriptor.digest):
                for child in self.tree.content(descriptor.digest):
                    self._carry_content(child)

    def _carry_content(self, child: Descriptor) -> None:
        if spec.is_foreign(child.media_type) and not (
            self.options.foreign and self.tree.is_here(child.digest)
        ):
            return
        self._carry(child)

    def _carry(self, descriptor: Descriptor) -> None:
        if self.tree.facts[descriptor.digest].damaged:
            raise DataLossError(
                f"blob {descriptor.digest} is damaged; import an archive that has it, or see imgdb check"
            )
        self.blobs[descriptor.digest] = descriptor.size

    def add_referrers(self) -> list[tuple[Descriptor, Digest]]:
        """Carry what hangs on the carried documents.

        Returns:
            By digest, each with its subject, those that nothing else leads to.
        """
        found: dict[Digest, tuple[Descriptor, Digest]] = {}
        done: set[Digest] = set()
        while pending := [digest for digest in self.documents if digest not in done]:
            for digest in pending:
                done.add(digest)
                for referrer in self.tree.children(digest, Role.REFERRER):
                    if not any(self.tree.missing(leaf.digest) for leaf in self.tree.leaves(referrer)):
                        if referrer.digest not in self.documents:
                            found[referrer.digest] = (referrer, digest)
                        self.add(referrer)
        inside = {digest for referrer, _ in found.values() for digest in self._below(referrer)}
        return [found[digest] for digest in sorted(found.keys() - inside)]

    def _below(self, top: Descriptor) -> set[Digest]:
        """Documents that an index leads to."""
        below: set[Digest] = set()
        pending = [top]
        while pending:
            descriptor = pending.pop()
            if self.tree.is_here(descriptor.digest) and self.tree.is_index(descriptor):
                fresh = [d for d in self.selection.children(descriptor.digest) if d.digest not in below]
                below.update(child.digest for child in fresh)
                pending += fresh
        return below


def make_plan(
    requested: Sequence[Requested],
    tree: Tree,
    options: ExportOptions,
    artifact_types: Mapping[Digest, str],
) -> ExportPlan:
    """Decide the content of an archive.

    Args:
        requested: in order; repeats are carried once.
        tree: everything below them.
        options: see `ExportOptions`.
        artifact_types: of referrers, from their documents.

    Raises:
        NotFoundError: nothing of an image is complete, or a requested platform is not.
        DataLossError: a blob that should travel is known to be damaged.
    """
    requested = _unique(requested)
    selection = Selection(tree, options.platforms)
    images = tuple(_report(request, tree, selection, options) for request in requested)
    walk = _Walk(tree, options, selection)
    for request in requested:
        walk.add(request.target)
    referrers = walk.add_referrers() if options.referrers else []
    if options.format == "docker-archive":
        return _docker_plan(images, requested, walk)
    index = [_entry(request.target, request.name) for request in requested]
    index += [_referrer_entry(d, subject, artifact_types) for d, subject in referrers]
    documents = {
        "index.json": jsontext.dump({"schemaVersion": 2, "mediaType": spec.OCI_INDEX, "manifests": index}),
        "oci-layout": spec.OCI_LAYOUT,
    }
    entries = _docker_entries(requested, walk)
    if entries and options.format == "oci-archive":
        documents["manifest.json"] = _manifest_json(entries, tree, _blob_path, _blob_path)
    return ExportPlan(images, {_blob_path(d): (d, size) for d, size in walk.blobs.items()}, documents)


def _unique(requested: Sequence[Requested]) -> list[Requested]:
    seen: dict[tuple[str | None, Digest], Requested] = {}
    for request in requested:
        seen.setdefault((request.name, request.target.digest), request)
    return list(seen.values())


def _report(request: Requested, tree: Tree, selection: Selection, options: ExportOptions) -> ExportedImage:
    label = familiar(request.name) if request.name else str(request.target.digest)
    leaves = list(tree.leaves(request.target))
    wanted = [leaf for leaf in leaves if selection.accepts(leaf, leaves)]
    whole = [leaf for leaf in wanted if not tree.missing(leaf.digest)]
    _check_platforms(label, tree, options, [leaf for leaf in whole if not spec.is_attestation(leaf)])
    images = [leaf for leaf in wanted if not spec.is_attestation(leaf)] or wanted
    lacking = [leaf for leaf in images if leaf not in whole]
    if lacking and (options.strict or len(lacking) == len(images)):
        first = tree.missing(lacking[0].digest)[0]
        names = ", ".join(_names(tree, lacking)) or "its content"
        raise NotFoundError(f"{label} is not completely here: {names} lacks {first}")
    here = _names(tree, [leaf for leaf in images if leaf in whole])
    missing = tuple(name for name in _names(tree, lacking) if name not in here)
    return ExportedImage(request.name, request.target.digest, here, missing)


def _check_platforms(label: str, tree: Tree, options: ExportOptions, whole: Sequence[Descriptor]) -> None:
    here = [platform for leaf in whole if (platform := tree.platform_of(leaf)) is not None]
    missing = [p for p in options.platforms if not any(matches(p, other) for other in here)]
    if missing:
        shown = ", ".join(str(platform) for platform in missing)
        raise NotFoundError(f"{label} has no complete {shown}; imgdb inspect {label} shows what is here")


def _names(tree: Tree, leaves: Sequence[Descriptor]) -> tuple[str, ...]:
    platforms = (tree.platform_of(leaf) for leaf in leaves)
    return tuple(dict.fromkeys(str(p.normalized()) for p in platforms if p is not None))


def _entry(target: Descriptor, name: str | None, subject: Digest | None = None) -> dict[str, Any]:
    """A descriptor of index.json: only what identifies and names the image, nothing of its past."""
    annotations = {key: value for key, value in target.annotations.items() if key == spec.COSIGN_KIND}
    if name is not None:
        annotations[spec.IMAGE_NAME] = name
        annotations[spec.REF_NAME] = oci_ref_name(parse_normalized(name))
    if subject is not None:
        annotations[spec.MANIFEST_SUBJECT] = str(subject)
    entry = Descriptor(
        target.media_type, target.digest, target.size, annotations, artifact_type=target.artifact_type
    )
    return entry.to_json()


def _referrer_entry(
    referrer: Descriptor, subject: Digest, artifact_types: Mapping[Digest, str]
) -> dict[str, Any]:
    typed = Descriptor(
        referrer.media_type,
        referrer.digest,
        referrer.size,
        artifact_type=artifact_types.get(referrer.digest, ""),
    )
    return _entry(typed, None, subject)


def _docker_entries(requested: Sequence[Requested], walk: _Walk) -> dict[Digest, list[str]]:
    """For tools that load one platform: the best complete image of each request, with its names."""
    entries: dict[Digest, list[str]] = {}
    for request in requested:
        chosen = _chosen(request, walk)
        if chosen is None:
            continue
        names = entries.setdefault(chosen.digest, [])
        if request.name is not None and "@" not in request.name:
            names.append(familiar(request.name))
    return entries


def _chosen(request: Requested, walk: _Walk) -> Descriptor | None:
    leaves = [leaf for leaf in walk.tree.leaves(request.target) if leaf.digest in walk.documents]
    return best(walk.tree, leaves, preference_key(walk.options.prefer or host_platform()))


def _manifest_json(
    entries: Mapping[Digest, Sequence[str]],
    tree: Tree,
    config_path: Callable[[Digest], str],
    layer_path: Callable[[Digest], str],
) -> bytes:
    value = [
        {
            "Config": config_path(tree.children(digest, Role.CONFIG)[0].digest),
            "RepoTags": list(dict.fromkeys(names)) or None,
            "Layers": [layer_path(layer.digest) for layer in tree.children(digest, Role.LAYER)] or None,
        }
        for digest, names in entries.items()
    ]
    return jsontext.dump(value)


def _docker_plan(
    images: tuple[ExportedImage, ...], requested: Sequence[Requested], walk: _Walk
) -> ExportPlan:
    """Configs and layers only, under the names that docker's own archives use."""
    for image, request in zip(images, requested, strict=True):
        _check_docker(image, _chosen(request, walk), walk)
    entries = _docker_entries(requested, walk)
    blobs: dict[str, tuple[Digest, int]] = {}
    for digest in entries:
        for config in walk.tree.children(digest, Role.CONFIG):
            blobs[_config_path(config.digest)] = (config.digest, config.size)
        for layer in walk.tree.children(digest, Role.LAYER):
            blobs[_layer_path(layer.digest)] = (layer.digest, layer.size)
    documents = {"manifest.json": _manifest_json(entries, walk.tree, _config_path, _layer_path)}
    return ExportPlan(images, blobs, documents)


def _check_docker(image: ExportedImage, chosen: Descriptor | None, walk: _Walk) -> None:
    """A docker archive can hold images only, and each whole."""
    if chosen is None:
        raise NotFoundError(f"{image.display_name} has no image for a docker archive; use oci-archive")
    layers = walk.tree.children(chosen.digest, Role.LAYER)
    absent = [layer.digest for layer in layers if layer.digest not in walk.blobs]
    if absent:
        raise NotFoundError(
            f"{image.display_name}: a docker archive needs its foreign layer {absent[0]}; "
            "use --foreign where it is here, or oci-archive"
        )


def _blob_path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _config_path(digest: Digest) -> str:
    return f"{digest.hex}.json"


def _layer_path(digest: Digest) -> str:
    return f"{digest.hex}.tar"
