"""Archives as other people's tools write them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.builder.blobs import (
    COMPRESSORS,
    IMAGE_NAME,
    OCI_INDEX,
    OCI_LAYOUT,
    REF_NAME,
    Blob,
    Link,
    write_tar,
)


class Archive:
    """Nodes with names, in order."""

    def __init__(self):
        self.entries = []

    def add(self, node, *names, **more):
        """List a node under names; `more` are further keys of its descriptors in index.json."""
        self.entries.append((node, names, more))
        return self

    def blobs(self):
        """All blobs, by path."""
        return {path: blob for node, _, _ in self.entries for path, blob in node.blobs().items()}

    def descriptors(self, *, containerd=False):
        """What index.json lists; `containerd` adds the annotation with the full name."""
        found = []
        for node, names, more in self.entries:
            notes = node.entry.get("annotations", {}) | more.get("annotations", {})
            for name in names or [None]:
                named = notes if name is None else notes | _name_annotations(name, containerd=containerd)
                found.append(node.descriptor(**(more | {"annotations": named or None})))
        return found

    def members(self, *, docker=False, containerd=False, without=()):
        """The files of an OCI layout; `docker` adds a manifest.json, `without` leaves out digests."""
        blobs = sorted(self.blobs().items())
        members = {path: blob.data for path, blob in blobs if blob.digest not in without}
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX}
        index["manifests"] = self.descriptors(containerd=containerd)
        members["index.json"] = json.dumps(index).encode()
        if docker:
            members["manifest.json"] = json.dumps(self._manifest_json(_BLOBS, None)).encode()
        return members | {"oci-layout": OCI_LAYOUT}

    def oci_tar(self, path, *, compression="none", **options):
        """An OCI layout in a tar; returns its path as text, which is what `ImageStore.load` takes."""
        return str(write_tar(path, self.members(**options), compression))

    def oci_dir(self, path, **options):
        """An OCI layout in a directory."""
        for name, body in self.members(**options).items():
            file = Path(path) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(body)
        (Path(path) / "blobs").mkdir(exist_ok=True)
        return str(path)

    def docker_tar(self, path, *, style="hex", layers=None, compression="none"):
        """A docker archive.

        Args:
            path: of the tar.
            style: `classic` (docker up to 24: a directory for each layer, repeats are links),
                `hex` (podman), `blobs` (docker since 25, without its layout), `docker26` (with it),
                `kaniko`, `jib` (keys in lower case), `v1` (before docker 1.10: no manifest.json).
            layers: how layer files are compressed; None for what the style is used to.
            compression: around the whole.
        """
        return str(write_tar(path, self.docker_members(style=style, layers=layers), compression))

    def docker_members(self, *, style="hex", layers=None):
        """The files of a docker archive."""
        paths = _STYLES[style]
        compression = layers or paths.compression
        members = {}
        for image in self._images():
            members |= paths.layer_members(image, compression)
            members[paths.config(image)] = image.config.data
        if style == "docker26":
            members |= self.members(containerd=True)
        if style in {"classic", "v1"}:
            members["repositories"] = json.dumps(self._repositories()).encode()
        value = self._manifest_json(paths, compression)
        if style == "jib":
            value = [{"config": v["Config"], "repoTags": v["RepoTags"], "layers": v["Layers"]} for v in value]
        return members if style == "v1" else members | {"manifest.json": json.dumps(value).encode()}

    def _images(self):
        return [node for node, _, _ in self.entries if hasattr(node, "layers")]

    def _manifest_json(self, style, layers):
        return [
            {
                "Config": style.config(node),
                "RepoTags": list(names) or None,
                "Layers": [style.layer(node, n, layers) for n in range(len(node.layers))],
            }
            for node, names, _ in self.entries
            if hasattr(node, "layers")
        ]

    def _repositories(self):
        found = {}
        for node, names, _ in self.entries:
            for name in names:
                repository, _, tag = name.rpartition(":")
                found.setdefault(repository, {})[tag] = _v1_id(node, len(node.layers) - 1)
        return found


def _name_annotations(name, *, containerd):
    if containerd:
        return {IMAGE_NAME: name, REF_NAME: name.rpartition(":")[2]}
    return {REF_NAME: name}


def _v1_id(image, position):
    text = "".join(layer.diff_id for layer in image.layers[: position + 1]) + str(position)
    return hashlib.sha256(text.encode()).hexdigest()


def _layer_file(layer, compression):
    """A layer's bytes, compressed as told, or as the image has it."""
    return layer.blob() if compression is None else Blob(COMPRESSORS[compression](layer.plain), "")


class _Style:
    """Where a docker archive has its files, and how layers are compressed unless told otherwise."""

    def __init__(self, config, layer, compression="none"):
        self._config = config
        self._layer = layer
        self.compression = compression

    def config(self, image):
        return self._config(image.config)

    def layer(self, image, position, compression):
        return self._layer(_layer_file(image.layers[position], compression), image, position)

    def layer_members(self, image, compression):
        return {
            self.layer(image, n, compression): _layer_file(layer, compression).data
            for n, layer in enumerate(image.layers)
        }


class _Classic(_Style):
    """A directory for each layer, with what docker 1.9 needed beside it; repeats are links."""

    def layer_members(self, image, compression):
        members, first = {}, {}
        for n, layer in enumerate(image.layers):
            folder = _v1_id(image, n)
            members |= {f"{folder}/": None, f"{folder}/VERSION": b"1.0", f"{folder}/json": b"{}"}
            if layer.diff_id in first:
                members[f"{folder}/layer.tar"] = Link(f"../{first[layer.diff_id]}/layer.tar")
            else:
                members[f"{folder}/layer.tar"] = _layer_file(layer, compression).data
            first.setdefault(layer.diff_id, folder)
        return members


def _hex(suffix):
    return lambda blob, *_: blob.digest.partition(":")[2] + suffix


_BLOBS = _Style(lambda config: config.path, lambda blob, *_: blob.path, None)
_CLASSIC = _Classic(_hex(".json"), lambda _, image, n: f"{_v1_id(image, n)}/layer.tar")
_STYLES = {
    "classic": _CLASSIC,
    "v1": _CLASSIC,
    "hex": _Style(_hex(".json"), _hex(".tar")),
    "blobs": _BLOBS,
    "docker26": _BLOBS,
    "kaniko": _Style(lambda config: config.digest, _hex(".tar.gz"), "gzip"),
    "jib": _Style(lambda _: "config.json", _hex(".tar.gz"), "gzip"),
}
