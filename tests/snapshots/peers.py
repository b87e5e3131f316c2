"""How other tools are asked what an image looks like unpacked, and what they are known to do otherwise."""

from __future__ import annotations

import bz2
import hashlib
import io
import json
import lzma
import zlib
from pathlib import Path

import zstandard

from imgdb.oci import platform
from tests.builder.blobs import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_LAYOUT, OCI_MANIFEST, REF_NAME
from tests.trees import Ignore, read_tar, read_tree

TAG = "1"
# What `docker create` puts into a container, over what the image has there (moby's initlayer).
PUT_BY_DOCKER = (
    b".dockerenv",
    b"dev",
    b"dev/console",
    b"dev/pts",
    b"dev/shm",
    b"etc",
    b"etc/hostname",
    b"etc/hosts",
    b"etc/mtab",
    b"etc/resolv.conf",
    b"proc",
    b"sys",
)
# `docker export` writes one attribute only, security.capability (moby's pkg/archive).
NOT_EXPORTED = (b"user.", b"system.")


# imgdb


def shown(store, unpacked):
    """The tree of an unpacked image as imgdb mounts it."""
    store.view("to-be-compared", unpacked.snapshot)
    try:
        with store.base_fs("to-be-compared") as path:
            return read_tree(path)
    finally:
        store.remove_snapshot("to-be-compared")


def unpack_each(store):
    """Unpack every complete image manifest of a store; yields its summary and what came of it.

    A manifest that can't be unpacked raises; its ImgdbError is the caller's.
    """
    for image in store.images():
        for manifest in image.manifests:
            if manifest.kind == "image" and manifest.complete:
                yield manifest, lambda image=image, manifest=manifest: unpack_one(store, image, manifest)


def unpack_one(store, image, manifest):
    """Unpack one manifest of an image: name, asked platforms, and `Unpacked`."""
    name = image.record.name
    asked = [platform.parse(manifest.platform)] if len(image.manifests) > 1 else []
    (found,) = [u for u in store.unpack(name, asked) if u.manifest == manifest.digest]
    return name, asked, found


def flat(store, name, asked=()):
    """The tree that `rootfs` writes."""
    out = io.BytesIO()
    store.rootfs(name, out, asked)
    return read_tar(out.getvalue())


# umoci


def plain(data):
    """A layer without its compression."""
    if data.startswith(b"\x1f\x8b"):
        return _gunzip(data)
    if data.startswith(b"\x28\xb5\x2f\xfd") or data[1:4] == b"\x2a\x4d\x18":
        stream = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True)
        return stream.read()
    if data.startswith(b"\xfd7zXZ\0"):
        return lzma.decompress(data)
    return bz2.decompress(data) if data.startswith(b"BZh") else data


def _gunzip(data):
    out = bytearray()
    while data.startswith(b"\x1f\x8b"):  # whatever follows the members is ignored
        member = zlib.decompressobj(31)
        out += member.decompress(data)
        data = member.unused_data
    return bytes(out)


def plain_layout(store, manifest, folder):
    """An OCI layout of one manifest, its layers not compressed and its types OCI's: umoci knows no others.

    Returns:
        What umoci calls it.
    """
    layers = []
    with store.open_blob(str(manifest)) as opened:
        descriptors = json.load(opened)["layers"] or []
    for descriptor in descriptors:
        with store.open_blob(descriptor["digest"]) as opened:
            layers.append(plain(opened.read()))
    diff_ids = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    document = {
        "schemaVersion": 2,
        "config": _put(folder, json.dumps(config).encode(), OCI_CONFIG),
        "layers": [_put(folder, data, OCI_LAYER) for data in layers],
    }
    top = _put(folder, json.dumps(document).encode(), OCI_MANIFEST) | {"annotations": {REF_NAME: TAG}}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [top]}
    (Path(folder) / "index.json").write_text(json.dumps(index))
    (Path(folder) / "oci-layout").write_bytes(OCI_LAYOUT)
    return f"{folder}:{TAG}"


def _put(folder, data, media_type):
    digest = hashlib.sha256(data).hexdigest()
    blobs = Path(folder) / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def umoci_tree(umoci, store, manifest, folder):
    """What umoci unpacks, as root."""
    folder.mkdir()
    umoci("raw", "unpack", "--image", plain_layout(store, manifest, folder / "layout"), folder / "rootfs")
    return read_tree(folder / "rootfs")


# docker and podman


def podman_tree(podman, name):
    """What podman shows of an image that it has; with its vfs driver that is a directory."""
    path = podman.command("image", "mount", name).stdout.strip()
    try:
        return read_tree(path)
    finally:
        podman.command("image", "unmount", name)


def docker_tree(docker, name, tar):
    """What docker exports of a container that was made of an image and never started."""
    docker.export(name, tar)
    return read_tar(tar)


def without_docker(tree):
    """A tree without what docker puts into every container, whoever had it there before."""
    return {path: entry for path, entry in tree.items() if path not in PUT_BY_DOCKER}


# Comparing


def nobody_says(mine, theirs, since_ns):
    """Directories that no layer lists: to imgdb they are of the epoch, to others of this moment."""
    return {
        path: ("mtime_ns",)
        for path, entry in mine.items()
        if (entry.kind, entry.mtime_ns) == ("directory", 0)
        and path in theirs
        and theirs[path].mtime_ns >= since_ns
    }


def like_umoci(mine, theirs, since_ns):
    """What is compared with umoci: all but the root's own attributes and the moment of unpacking."""
    return Ignore(root=True, at=nobody_says(mine, theirs, since_ns))


def like_docker(mine, theirs, since_ns):
    """The same with docker: times are whole seconds, and of attributes there are capabilities alone."""
    return Ignore(
        root=True, fraction=True, xattrs=NOT_EXPORTED, at=nobody_says(mine, theirs, since_ns - 10**9)
    )
