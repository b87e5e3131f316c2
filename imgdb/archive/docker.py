"""Archives of ``docker save``: what manifest.json says, and the manifest made from it.

A docker archive has no OCI manifest, so one is made on import, always the same for the same
config and layers: field order and media types are frozen in tests, since the digest of these
bytes is the image's ID. Source: specification §2.11, §2.13, §6.2; design §5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imgdb.archive.compression import Compression, sniff
from imgdb.errors import BadArchiveError, InvalidArgumentError
from imgdb.oci import jsontext, spec
from imgdb.oci.reference import Reference, parse_docker_ref

if TYPE_CHECKING:
    from imgdb.oci.spec import Descriptor, ImageConfig

_LAYER_SUFFIX = {
    Compression.NONE: "",
    Compression.GZIP: ".gzip",
    Compression.BZIP2: "",
    Compression.XZ: "",
    Compression.ZSTD: ".zstd",
}


@dataclass(frozen=True, slots=True)
class DockerImage:
    """One entry of manifest.json.

    Attributes:
        config: path of the config inside the archive.
        names: RepoTags, parsed; empty when the image was saved by ID.
        layers: paths inside the archive, in order, repeats included.
    """

    config: str
    names: tuple[Reference, ...]
    layers: tuple[str, ...]


def read_manifest_json(raw: bytes) -> tuple[DockerImage, ...]:
    """Parse manifest.json; keys match whatever their case, as they do for Go readers.

    Raises:
        BadArchiveError: malformed, null, or a RepoTags entry that is no image name.
    """
    value = jsontext.parse(raw, limit=spec.INDEX_JSON_LIMIT, what="manifest.json")
    if not isinstance(value, list):
        raise BadArchiveError("manifest.json is not a list of images")
    return tuple(_read_entry(entry) for entry in value)


def synthesize_manifest(config: Descriptor, layers: tuple[Descriptor, ...]) -> bytes:
    """The manifest of a docker image, as docker's containerd store makes it on load."""
    return jsontext.dump(
        {
            "schemaVersion": 2,
            "mediaType": spec.DOCKER_MANIFEST,
            "config": config.to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
    )


def layer_media_type(head: bytes) -> str:
    """Docker's media type for a layer file that begins with `head`; no type exists for bzip2 and xz."""
    return spec.DOCKER_LAYER + _LAYER_SUFFIX[sniff(head)]


def check_layers(
    image: DockerImage, config: ImageConfig, layers: tuple[Descriptor, ...], plain: tuple[bool, ...]
) -> None:
    """Compare layers with the config's diff IDs, as far as that costs nothing.

    Args:
        image: the entry, for its paths.
        config: parsed.
        layers: one descriptor a path.
        plain: which layers are uncompressed, so that their digest is their diff ID.

    Raises:
        BadArchiveError: another number of layers, or a plain layer whose bytes are others.
    """
    if len(config.diff_ids) != len(layers):
        raise BadArchiveError(
            f"image {image.config}: {len(layers)} layers, but its config names {len(config.diff_ids)}"
        )
    for path, layer, diff_id, is_plain in zip(image.layers, layers, config.diff_ids, plain, strict=True):
        if is_plain and layer.digest.algorithm == diff_id.algorithm and layer.digest != diff_id:
            raise BadArchiveError(f"layer {path} is {layer.digest}, but its config says {diff_id}")


def _read_entry(entry: Any) -> DockerImage:
    if not isinstance(entry, dict):
        raise BadArchiveError("manifest.json: an image is not an object")
    fields = _fold_keys(entry)
    config = fields.get("config")
    if not isinstance(config, str) or not config:
        raise BadArchiveError("manifest.json: an image has no Config")
    tags = _strings(fields, "repotags")
    return DockerImage(config, tuple(_read_tag(tag) for tag in tags), _strings(fields, "layers"))


def _fold_keys(entry: dict[str, Any]) -> dict[str, Any]:
    fields = {key.lower(): value for key, value in entry.items()}
    if len(fields) != len(entry):
        raise BadArchiveError("manifest.json: two keys differ by case only")
    return fields


def _strings(fields: dict[str, Any], key: str) -> tuple[str, ...]:
    value = fields.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadArchiveError(f"manifest.json: {key} is not a list of strings")
    return tuple(value)


def _read_tag(tag: str) -> Reference:
    try:
        reference = parse_docker_ref(tag)
    except InvalidArgumentError as error:
        raise BadArchiveError(
            f"manifest.json: RepoTags entry {tag[:300]!r} is no image name: {error}"
        ) from None
    if reference.digest is not None:
        raise BadArchiveError(
            f"manifest.json: RepoTags entry {tag[:300]!r} is a digest, not a name with a tag"
        )
    return reference
