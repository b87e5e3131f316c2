"""What to tell a user whose archive holds no image, judged by the names in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from imgdb.errors import BadArchiveError, ImgdbError, NoImageError

if TYPE_CHECKING:
    from imgdb.importer.intake import Contents

_ROOT_DIRECTORIES = frozenset(
    {"bin", "dev", "etc", "home", "lib", "opt", "proc", "root", "sbin", "usr", "var"}
)
_V1_LAYER = re.compile(r"[0-9a-f]{64}/(json|layer\.tar|VERSION)")


def explain(contents: Contents) -> ImgdbError:
    """The error to raise for an archive without index.json and manifest.json."""
    names = contents.files.keys() | contents.links.keys() | contents.names
    if "repositories" in names or any(_V1_LAYER.fullmatch(name) for name in names):
        return BadArchiveError(
            "this archive is older than docker 1.10 (it has no manifest.json), which is not supported; "
            "load it with docker and save it again"
        )
    if is_dir_transport(contents):
        return NoImageError(
            "this is skopeo's dir: transport, which keeps no names; copy it with skopeo to oci-archive: first"
        )
    if any(name.startswith("docker/registry/v2") for name in names):
        return NoImageError("this is the storage of a docker registry, not an image archive")
    below = sorted(
        name for name in names if name.endswith(("/manifest.json", "/index.json")) and name.count("/") == 1
    )
    if below:
        return NoImageError(
            f"no manifest.json or index.json at the top, but there is {below[0]}; "
            f"make the archive inside {below[0].split('/')[0]}, not around it"
        )
    if _ROOT_DIRECTORIES & {name.split("/")[0] for name in names}:
        return NoImageError(
            "this is a root file system, not an image archive (it comes from docker export); "
            "--rootfs makes an image of it, as docker import does"
        )
    return NoImageError("no image in the archive: neither index.json nor manifest.json is in it")


def is_dir_transport(contents: Contents) -> bool:
    """Whether this is a directory of skopeo's ``dir:`` transport.

    Its manifest.json is the image's own manifest, where docker's is a list of images; old ones
    have no version file.
    """
    version = contents.files.get("version")
    if version is not None and version.head.startswith(b"Directory Transport Version"):
        return True
    raw = contents.documents.get("manifest.json", b"")
    return raw.lstrip().startswith(b"{") and b'"schemaVersion"' in raw
