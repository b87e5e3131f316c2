"""Which manifests of an image are unpacked, and from which layers: decided before anything is made.

Source: specification §7.4; moby unpacks what the host runs since 2024.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgdb.db import images, snapshots
from imgdb.errors import BadArchiveError, NotFoundError, NothingToUnpackError, NotSupportedError
from imgdb.exporter.tree import best
from imgdb.exporter.walk import read_tree
from imgdb.oci.platform import host_platform, matches, only, preference_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from imgdb.db.images import ImageRecord
    from imgdb.db.snapshots import LayerToUnpack
    from imgdb.exporter.tree import Tree
    from imgdb.oci.digest import Digest
    from imgdb.oci.platform import Platform
    from imgdb.oci.spec import Descriptor

NO_LAYERS = f"sha256:{hashlib.sha256(b'').hexdigest()}"
"""Key of the empty file system that an image without layers has."""


@dataclass(frozen=True, slots=True)
class Job:
    """One manifest to be unpacked."""

    manifest: Digest
    platform: Platform | None
    layers: tuple[LayerToUnpack, ...]

    @property
    def chain(self) -> list[str]:
        """Keys of its snapshots, lowest first."""
        return [str(layer.chain_id) for layer in self.layers] or [NO_LAYERS]


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A manifest that is unpacked.

    Attributes:
        snapshot: key of its top snapshot, which is its chain ID.
        layers: how many it has.
        new_layers: how many of these were unpacked now.
        skipped: what a plain user could not set, and how often: owner, mode, device, xattr.
    """

    manifest: Digest
    platform: Platform | None
    snapshot: str
    layers: int
    new_layers: int
    skipped: dict[str, int] = field(default_factory=dict)


def plan(
    connection: Connection, argument: str, platforms: Sequence[Platform] = ()
) -> tuple[ImageRecord, list[Job]]:
    """What is to be unpacked for an image: what this host runs, or what is asked for.

    An image of a single platform is that, whatever this host is.

    Raises:
        NotFoundError: no such image; no manifest of such a platform; a blob is not here.
        NotSupportedError: nothing in it is an image.
        BadArchiveError: its config doesn't fit its layers.
    """
    record = images.resolve(connection, argument)[0]
    tree = read_tree(connection, [record.target])
    found = [leaf for leaf in tree.leaves(record.target) if tree.is_here(leaf.digest) and tree.is_image(leaf)]
    chosen = _chosen(tree, found, platforms, record.display_name)
    return record, [_job(connection, tree, leaf) for leaf in chosen]


def _chosen(
    tree: Tree, found: list[Descriptor], platforms: Sequence[Platform], name: str
) -> list[Descriptor]:
    if not found:
        raise NotSupportedError(f"{name}: nothing in it is an image that can be unpacked")
    if platforms:
        return [leaf for wanted in platforms for leaf in _of_platform(tree, found, wanted, name)]
    if len(found) == 1:
        return found
    host = host_platform()
    fitting = [leaf for leaf in found if _runs(tree.platform_of(leaf), host)]
    top = best(tree, fitting, preference_key(host)) or next(iter(fitting), None)
    if top is None:
        raise NothingToUnpackError(
            f"{name} has nothing for {host}; choose a --platform of {_there(tree, found)}"
        )
    return [top]


def _of_platform(tree: Tree, found: list[Descriptor], wanted: Platform, name: str) -> list[Descriptor]:
    fitting = [leaf for leaf in found if (p := tree.platform_of(leaf)) is not None and matches(wanted, p)]
    if not fitting:
        raise NothingToUnpackError(f"{name} has no platform {wanted}; there is {_there(tree, found)}")
    return fitting


def _runs(candidate: Platform | None, host: Platform) -> bool:
    return candidate is not None and any(matches(fit, candidate) for fit in only(host))


def _there(tree: Tree, found: list[Descriptor]) -> str:
    return ", ".join(sorted({str(tree.platform_of(leaf) or "unknown") for leaf in found}))


def _job(connection: Connection, tree: Tree, leaf: Descriptor) -> Job:
    layers = snapshots.layers_of(connection, leaf.digest)
    if any(layer.chain_id is None for layer in layers):
        raise BadArchiveError(
            f"{leaf.digest}: mismatched image rootfs and manifest layers: its config does not tell a "
            "diff ID for each layer"
        )
    absent = [layer.digest for layer in layers if not tree.is_here(layer.digest)]
    if absent:
        names = ", ".join(map(str, absent))
        raise NotFoundError(f"{leaf.digest} is not completely here: {names}; import an archive that has it")
    return Job(leaf.digest, tree.platform_of(leaf), tuple(layers))
