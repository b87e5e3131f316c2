#!/usr/bin/env python3
"""Assemble a small but real two-platform image as an OCI layout in one tar.

    make_sample_image.py OUT.tar [--name NAME] [--binary linux/arm64=FILE]... [--docker]

The archive holds an image index with linux/amd64 and linux/arm64; each image has two gzip layers: a
root file system with busybox, shared where both platforms carry the same binary, and a small layer on
top that adds a greeting and removes /etc/motd with a whiteout. Where no static busybox is to be had
the first layer carries a few of this machine's own files instead, and the image starts no command.

The same inputs give the same bytes: fixed times and owners, sorted names, no clock, no randomness.
Only the standard library is used, and blobs are produced in chunks, so the same functions write
archives that are larger than the memory (scripts/bench does).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import shutil
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import os

NAME = "example.org/sample:1.0"
PLATFORMS = ("linux/amd64", "linux/arm64/v8")
EPOCH = 1735689600  # 2025-01-01T00:00:00Z
CREATED = "2025-01-01T00:00:00Z"
CHUNK = 1 << 20
APPLETS = ("cat", "echo", "false", "ls", "mkdir", "ps", "rm", "sh", "sleep", "true", "uname", "wget")

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

ELF_MACHINES = {62: "amd64", 183: "arm64"}
HOST = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())

Chunks = Callable[[], Iterable[bytes]]
"""A source of bytes that can be read again: blobs are hashed in one pass and written in another."""


@dataclass(frozen=True)
class Blob:
    """Content with its digest; `chunks()` yields the bytes, each time from the start."""

    media_type: str
    digest: str
    size: int
    chunks: Chunks

    def descriptor(self, **more: Any) -> dict[str, Any]:
        """An OCI descriptor; `more` adds keys such as platform or annotations."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size, **more}

    @property
    def path(self) -> str:
        """Where the blob lies in an OCI layout."""
        return "blobs/" + self.digest.replace(":", "/")


@dataclass(frozen=True)
class File:
    """One entry of a layer: a file, a directory (path ends in `/`), or a symlink (target is set)."""

    path: str
    data: bytes | Chunks = b""
    size: int | None = None
    mode: int = 0o644
    target: str = ""


@dataclass(frozen=True)
class Layer:
    """A compressed layer, the digest of its plain tar, and the history line that explains it."""

    blob: Blob
    diff_id: str
    created_by: str


@dataclass(frozen=True)
class Image:
    """One platform's image: its manifest and everything below it."""

    platform: str
    manifest: Blob
    config: Blob
    layers: tuple[Layer, ...]

    @property
    def blobs(self) -> list[Blob]:
        """Every blob of this image."""
        return [self.manifest, self.config, *(layer.blob for layer in self.layers)]


def stored(media_type: str, chunks: Chunks) -> Blob:
    """Hash what `chunks` yields, keeping none of it."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks():
        digest.update(chunk)
        size += len(chunk)
    return Blob(media_type, "sha256:" + digest.hexdigest(), size, chunks)


def document(media_type: str, value: Any) -> Blob:
    """A JSON document in compact form, keys in the order given."""
    data = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    return stored(media_type, lambda: (data,))


def tar_header(
    path: str, size: int = 0, mode: int = 0o644, kind: bytes = tarfile.REGTYPE, target: str = ""
) -> bytes:
    """A ustar header with fixed owner and time."""
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.type, info.linkname, info.mtime = size, mode, kind, target, EPOCH
    return info.tobuf(tarfile.USTAR_FORMAT)


def padding(size: int) -> bytes:
    """What fills the last record of a tar member."""
    return bytes(-size % tarfile.BLOCKSIZE)


def tar_chunks(files: Sequence[File]) -> Iterator[bytes]:
    """The plain tar of a layer."""
    for file in files:
        if file.path.endswith("/"):
            yield tar_header(file.path, mode=0o755, kind=tarfile.DIRTYPE)
        elif file.target:
            yield tar_header(file.path, mode=0o777, kind=tarfile.SYMTYPE, target=file.target)
        elif isinstance(file.data, bytes):
            yield tar_header(file.path, len(file.data), mode=file.mode)
            yield file.data + padding(len(file.data))
        else:
            size = file.size or 0
            yield tar_header(file.path, size, mode=file.mode)
            yield from file.data()
            yield padding(size)
    yield bytes(2 * tarfile.BLOCKSIZE)


def gzip_chunks(chunks: Iterable[bytes], level: int) -> Iterator[bytes]:
    """Gzip without a file name or a time in its header; level 0 stores."""
    packer = zlib.compressobj(level, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    for chunk in chunks:
        yield packer.compress(chunk)
    yield packer.flush()


def make_layer(files: Sequence[File], created_by: str, *, level: int = 6) -> Layer:
    """A gzip layer with these entries; level 0 is for content that does not shrink."""
    plain = hashlib.sha256()

    def seen() -> Iterator[bytes]:
        for chunk in tar_chunks(files):
            plain.update(chunk)
            yield chunk

    blob = stored(LAYER, lambda: gzip_chunks(seen(), level))
    blob = replace(blob, chunks=lambda: gzip_chunks(tar_chunks(files), level))
    return Layer(blob, "sha256:" + plain.hexdigest(), created_by)


def make_image(where: str, layers: Sequence[Layer], config: Mapping[str, Any]) -> Image:
    """An image of these layers for a platform such as `linux/arm64/v8`."""
    history: list[dict[str, Any]]
    history = [{"created": CREATED, "created_by": layer.created_by} for layer in layers]
    history.append({"created": CREATED, "created_by": "CMD and labels", "empty_layer": True})
    config_blob = document(
        CONFIG,
        {
            "created": CREATED,
            "author": "make_sample_image.py",
            **platform_keys(where),
            "config": dict(config),
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": history,
        },
    )
    manifest = document(
        MANIFEST,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config_blob.descriptor(),
            "layers": [layer.blob.descriptor() for layer in layers],
        },
    )
    return Image(where, manifest, config_blob, tuple(layers))


def platform_keys(where: str) -> dict[str, str]:
    """`linux/arm64/v8` as the keys of a platform object."""
    return dict(zip(("os", "architecture", "variant"), where.split("/"), strict=False))


def make_index(images: Sequence[Image]) -> Blob:
    """The index that names one image for each platform."""
    manifests = [image.manifest.descriptor(platform=platform_keys(image.platform)) for image in images]
    return document(INDEX, {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})


def write_archive(out: BinaryIO, name: str, images: Sequence[Image], *, docker: bool = False) -> Blob:
    """Write the images as one OCI archive named `name`; returns what the name points at.

    One image stands for itself, several stand under an index. With `docker`, the archive is also a
    docker archive (manifest.json) of the host's image, which is all that Docker's graph store reads.
    """
    top = images[0].manifest if len(images) == 1 else make_index(images)
    blobs = {blob.path: blob for image in images for blob in image.blobs} | {top.path: top}
    annotations = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [top.descriptor(annotations=annotations)]}
    members = [(path, blobs[path]) for path in sorted(blobs)]
    members.append(("index.json", document(INDEX, index)))
    if docker:
        members.append(("manifest.json", document("", docker_manifest(name, images))))
    members.append(("oci-layout", document("", {"imageLayoutVersion": "1.0.0"})))
    folders = ("blobs/", "blobs/sha256/")
    out.writelines(tar_header(folder, mode=0o755, kind=tarfile.DIRTYPE) for folder in folders)
    for path, blob in members:
        out.write(tar_header(path, blob.size))
        out.writelines(blob.chunks())
        out.write(padding(blob.size))
    out.write(bytes(2 * tarfile.BLOCKSIZE))
    return top


def docker_manifest(name: str, images: Sequence[Image]) -> list[dict[str, Any]]:
    """The manifest.json of a docker archive; it can name one platform only, the host's if it is there."""
    image = next((image for image in images if image.platform.split("/")[1] == HOST), images[0])
    layers = [layer.blob.path for layer in image.layers]
    return [{"Config": image.config.path, "RepoTags": [name], "Layers": layers}]


def random_image(size: int, layers: int = 8, where: str = "linux/amd64") -> Image:
    """An image of about `size` bytes that no compression shrinks, made as it is read; for benchmarks."""

    def noise(seed: int, length: int) -> Chunks:
        def chunks() -> Iterator[bytes]:
            source = random.Random(seed)  # noqa: S311  reproducible noise, nothing secret
            for start in range(0, length, CHUNK):
                yield source.randbytes(min(CHUNK, length - start))

        return chunks

    length = size // layers
    made = [
        make_layer([File(f"noise/{n}", noise(n, length), length)], f"{length} bytes of noise", level=0)
        for n in range(layers)
    ]
    return make_image(where, made, {"Cmd": ["/noise/0"]})


def static_binary(path: str | None) -> str | None:
    """The architecture of a statically linked ELF program, or None for anything else."""
    if path is None:
        return None
    with open(path, "rb") as file:
        head = file.read(64)
        if head[:6] != b"\x7fELF\x02\x01":  # 64 bit, little endian: what amd64 and arm64 are
            return None
        machine, offset, size, count = (
            *struct.unpack_from("<H", head, 18),
            *struct.unpack_from("<Q", head, 32),
            *struct.unpack_from("<HH", head, 54),
        )
        file.seek(offset)
        headers = file.read(size * count)
    kinds = [struct.unpack_from("<I", headers, n * size)[0] for n in range(count)]
    interpreter = 3  # PT_INTERP: names the dynamic loader
    return None if interpreter in kinds else ELF_MACHINES.get(machine)


def busybox_files(binary: bytes) -> list[File]:
    """A root file system that can start a shell."""
    links = [File(f"bin/{applet}", target="busybox") for applet in APPLETS]
    return sorted(
        [
            File("bin/"),
            File("bin/busybox", binary, mode=0o755),
            *links,
            File("etc/"),
            File("etc/motd", b"You see this in the first layer only.\n"),
            File("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
            File("root/"),
            File("tmp/"),
        ],
        key=lambda file: file.path,
    )


def machine_files() -> list[File]:
    """A few files that every machine with Python has; nothing in them can be run."""
    library = Path(json.__file__).parent
    sources = [File(f"usr/lib/python/json/{path.name}", path.read_bytes()) for path in library.glob("*.py")]
    release = Path("/etc/os-release")
    return sorted(
        [
            File("etc/"),
            File("etc/motd", b"You see this in the first layer only.\n"),
            File("etc/os-release", release.read_bytes() if release.exists() else b"ID=unknown\n"),
            *(File(path) for path in ("usr/", "usr/lib/", "usr/lib/python/", "usr/lib/python/json/")),
            *sources,
        ],
        key=lambda file: file.path,
    )


def greeting_layer(where: str) -> Layer:
    """The second layer: differs between platforms, and hides a file of the first."""
    text = f"Hello from the {where} image.\n".encode()
    files = [File("etc/"), File("etc/.wh.motd"), File("srv/"), File("srv/hello.txt", text)]
    return make_layer(files, f"greet from {where}, remove /etc/motd")


def sample_images(binaries: Mapping[str, str]) -> list[Image]:
    """Both platforms' images; `binaries` maps `linux/amd64` to a static program where there is one."""
    images = []
    for where in PLATFORMS:
        os_arch = where.removesuffix("/v8")
        binary = binaries.get(os_arch) or next(iter(binaries.values()), None)
        config: dict[str, Any] = {"Env": ["PATH=/bin"], "WorkingDir": "/"}
        if binary:
            base = make_layer(busybox_files(Path(binary).read_bytes()), "busybox and links to it")
            config["Cmd"] = ["/bin/sh"]
        else:
            base = make_layer(machine_files(), "a few files of the machine that made this image")
        config["Labels"] = {"org.opencontainers.image.title": "sample", "org.example.platform": where}
        images.append(make_image(where, [base, greeting_layer(where)], config))
    return images


def make_sample(
    out: str | os.PathLike[str],
    *,
    name: str = NAME,
    binaries: Mapping[str, str] | None = None,
    docker: bool = False,
) -> str:
    """Write the sample archive to `out`; returns one line that says honestly what is inside."""
    if binaries is None:
        binaries = {}
        busybox = shutil.which("busybox")
        arch = static_binary(busybox)
        if busybox and arch:
            binaries = {f"linux/{arch}": busybox}
    images = sample_images(binaries)
    with open(out, "wb") as file:
        write_archive(file, name, images, docker=docker)
    return describe(binaries)


def describe(binaries: Mapping[str, str]) -> str:
    """What the two platforms carry."""
    if not binaries:
        return "linux/amd64 and linux/arm64, both with a few files of this machine (no static busybox found)"
    if len(binaries) == 1:
        only = next(iter(binaries))
        return f"linux/amd64 and linux/arm64, both with the same busybox, built for {only}"
    return "linux/amd64 and linux/arm64, each with its own busybox"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Assemble a small two-platform image as an OCI archive.")
    parser.add_argument("out", metavar="OUT.tar")
    parser.add_argument("--name", default=NAME, help="default: %(default)s")
    parser.add_argument(
        "--binary",
        action="append",
        metavar="PLATFORM=FILE",
        help="a static busybox for linux/amd64 or linux/arm64; default: the one on PATH",
    )
    parser.add_argument("--docker", action="store_true", help="add a manifest.json for docker load")
    args = parser.parse_args()
    binaries = dict(item.split("=", 1) for item in args.binary) if args.binary else None
    for where, path in (binaries or {}).items():
        if static_binary(path) != where.removeprefix("linux/"):
            parser.error(f"--binary {where}={path}: no statically linked program for {where}")
    sys.stdout.write(make_sample(args.out, name=args.name, binaries=binaries, docker=args.docker) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
