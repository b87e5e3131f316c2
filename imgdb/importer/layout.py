"""Which images an archive claims to hold, and under which names.

index.json decides; manifest.json is read where there is no index.json, or one that lists
nothing. Source: corpus decisions, specification §6.2-6.4, design §4, §7.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgdb.archive import docker
from imgdb.archive.compression import Compression, sniff
from imgdb.archive.reader import clean
from imgdb.errors import BadArchiveError, InvalidArgumentError
from imgdb.importer import diagnosis
from imgdb.oci import jsontext, spec
from imgdb.oci.digest import Digest
from imgdb.oci.reference import is_bare_tag, parse_docker_ref, parse_normalized
from imgdb.oci.spec import Descriptor

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgdb.archive.docker import DockerImage
    from imgdb.content.store import Staged
    from imgdb.importer.intake import Contents

_MAX_IMAGES = spec.MAX_MANIFESTS


@dataclass(frozen=True, slots=True)
class Top:
    """An image that an archive lists.

    Attributes:
        target: its descriptor, as listed.
        name: canonical, or None when it has no usable one.
        tag: a bare tag that needs a repository to become a name.
        is_referrer: listed only because it says something about another image.
    """

    target: Descriptor
    name: str | None = None
    tag: str | None = None
    is_referrer: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """What the archive's own documents say.

    Attributes:
        tops: in the archive's order.
        made: manifests that were made from a docker archive, by digest.
        docker: entries of a manifest.json that stands beside an index.json.
        docker_configs: digests of the configs that those entries name, by path.
        warnings: sentences for the user.
    """

    tops: tuple[Top, ...]
    made: dict[Digest, bytes] = field(default_factory=dict)
    docker: tuple[DockerImage, ...] = ()
    docker_configs: dict[str, Digest] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_layout(contents: Contents, read: Callable[[Staged], bytes]) -> Layout:
    """Find the images of an archive.

    Args:
        contents: from `intake.take_in`.
        read: gives the bytes of a config.

    Raises:
        NoImageError: nothing in it is an image archive.
        BadArchiveError: it is one, and malformed, ambiguous, too old or empty.
    """
    documents = contents.documents
    if "index.json" not in documents and "oci-layout" not in documents and "manifest.json" not in documents:
        raise diagnosis.explain(contents)
    if contents.outside is not None:
        raise BadArchiveError(f"{contents.outside!r} leaves the archive")
    if "index.json" not in documents and "oci-layout" not in documents:
        return _docker_layout(contents, read)
    return _oci_layout(contents, read)


def _oci_layout(contents: Contents, read: Callable[[Staged], bytes]) -> Layout:
    warnings = _check_layout_version(contents)
    if "index.json" not in contents.documents:
        raise BadArchiveError("index.json is missing from the OCI layout")
    descriptors = spec.read_index_json(contents.documents["index.json"])
    images: tuple[DockerImage, ...] = ()
    if "manifest.json" in contents.documents:
        images = docker.read_manifest_json(contents.documents["manifest.json"])
    if not descriptors and images:
        # Docker 25.0.0 wrote such archives.
        return _docker_layout(contents, read, "index.json lists nothing; manifest.json is used")
    if not descriptors:
        raise BadArchiveError("no image in the archive: index.json lists nothing")
    tops = [_top(descriptor) for descriptor in descriptors]
    warnings += [
        w for top, descriptor in zip(tops, descriptors, strict=True) for w in _complaints(top, descriptor)
    ]
    return Layout(tuple(tops), {}, images, _config_digests(images, contents), tuple(warnings))


def _config_digests(images: tuple[DockerImage, ...], contents: Contents) -> dict[str, Digest]:
    found = {}
    for image in images:
        # Beside an index.json this is a second opinion only: what it names may be absent.
        with suppress(BadArchiveError):
            found[image.config] = contents.resolve(_key(image.config)).digest
    return found


def _check_layout_version(contents: Contents) -> list[str]:
    raw = contents.documents.get("oci-layout")
    if raw is None:
        return ["oci-layout is missing; index.json is used all the same"]
    value = jsontext.parse(raw, limit=spec.MANIFEST_LIMIT, what="oci-layout")
    version = value.get("imageLayoutVersion") if isinstance(value, dict) else None
    if version != "1.0.0":
        raise BadArchiveError(f"unsupported OCI layout version {version!r}")
    return []


def _top(descriptor: Descriptor) -> Top:
    full = descriptor.annotations.get(spec.IMAGE_NAME)
    short = descriptor.annotations.get(spec.REF_NAME)
    is_referrer = spec.MANIFEST_SUBJECT in descriptor.annotations
    text = full or short
    if text and not full and is_bare_tag(text):
        return Top(descriptor, None, text, is_referrer)
    return Top(descriptor, _name(text, descriptor.digest) if text else None, None, is_referrer)


def _name(text: str, digest: Digest) -> str | None:
    """Canonical name of an annotation's value, or None when it is no reference."""
    try:
        reference = parse_normalized(text)
        if reference.digest is not None:
            # A name with a digest is fine as long as the digest is the image's own.
            return str(reference) if reference.digest == digest else None
        return str(parse_docker_ref(text))
    except InvalidArgumentError:
        return None


def _complaints(top: Top, descriptor: Descriptor) -> list[str]:
    text = descriptor.annotations.get(spec.IMAGE_NAME) or descriptor.annotations.get(spec.REF_NAME)
    if not text or top.name is not None or top.is_referrer:
        return []
    why = (
        "is a tag without a repository (give a name with --name, or later with imgdb tag)"
        if top.tag
        else "is no image name"
    )
    return [f"{text!r} {why}; {top.target.digest} has no name"]


def _docker_layout(contents: Contents, read: Callable[[Staged], bytes], *warnings: str) -> Layout:
    if diagnosis.is_dir_transport(contents):
        raise diagnosis.explain(contents)
    images = docker.read_manifest_json(contents.documents["manifest.json"])
    if not images:
        raise BadArchiveError("no image in the archive: manifest.json lists nothing")
    if len(images) > _MAX_IMAGES:
        raise BadArchiveError(f"manifest.json lists more than {_MAX_IMAGES} images")
    made: dict[Digest, bytes] = {}
    tops: list[Top] = []
    for image in images:
        target, raw = _docker_image(image, contents, read)
        made[target.digest] = raw
        names = [Top(target, str(name)) for name in image.names]
        tops += names or [Top(target)]
    return Layout(tuple(tops), made, warnings=warnings)


def _docker_image(
    image: DockerImage, contents: Contents, read: Callable[[Staged], bytes]
) -> tuple[Descriptor, bytes]:
    staged = contents.resolve(_key(image.config))
    if staged.size > spec.CONFIG_LIMIT:
        raise BadArchiveError(f"config {image.config} is larger than {spec.CONFIG_LIMIT} bytes")
    config = spec.read_config(read(staged), f"config {image.config}")
    bodies = [contents.resolve(_key(path)) for path in image.layers]
    layers = tuple(Descriptor(docker.layer_media_type(b.head), b.digest, b.size) for b in bodies)
    plain = tuple(sniff(body.head) is Compression.NONE for body in bodies)
    docker.check_layers(image, config, layers, plain)
    raw = docker.synthesize_manifest(Descriptor(spec.DOCKER_CONFIG, staged.digest, staged.size), layers)
    return Descriptor(spec.DOCKER_MANIFEST, Digest.of(raw), len(raw), platform=config.platform), raw


def _key(path: str) -> str:
    """A path in manifest.json as a key into the archive; one that leaves it is refused."""
    name = None if ".." in path.split("/") else clean(path)
    if not name:
        raise BadArchiveError(f"manifest.json: path {path[:300]!r} leaves the archive")
    return name
