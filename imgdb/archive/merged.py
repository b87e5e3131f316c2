"""The file system that a stack of layers adds up to, as names only. PURE: members in, a tree out.

Layers are applied one after the other, as containerd and umoci unpack them into one directory; but
nothing is unpacked, and bodies stay where they are: a name leads to the number of the member that
carries its body. Names of one inode have one number, so hard links cost nothing and survive the
first of them. Whiteouts count as if they came first in their layer, wherever they stand: they hide
what is below the layer and nothing that is in it. As in containerd and docker, one in a directory
that is not there makes the directory.

Memory, measured: 120 bytes for each name and 400 for each directory; see `MAX_NAMES`.
Source: specification §7.3; OCI image-spec 1.1 layer.md; reliability A1, A4-A9, A13-A22.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING

from imgdb.archive.layernames import MAX_DEPTH, Whiteout, below_whiteout, cleaned, components, whiteout
from imgdb.archive.pax import show
from imgdb.archive.tarheader import MAX_COMPONENT, MAX_MAJOR, MAX_MINOR, MAX_PATH, MemberKind
from imgdb.archive.xattrs import is_kept, is_overlay
from imgdb.errors import BadArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imgdb.archive.tarheader import Member

MAX_NAMES = 10_000_000
"""Names that may be made, directories that no layer lists included, removed ones too."""
MAX_HOPS = 255
"""Symbolic links that may be followed for one name."""
MAX_OWNER = 0xFFFF_FFFE
"""The largest uid and gid: the kernel has 32 bits, and takes all of them set for "leave it"."""

_MAX_STEPS = 10_000  # components on the way to one name, those of links included
_LAYER = 32  # bits of a number that count a layer's members


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a directory has besides its name; see `Member`."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


IMPLIED = Metadata()
"""Of a directory that only the names below it speak of."""


class Directory:
    """A directory of the tree.

    Attributes:
        parent: the one it is in; of the root, itself.
        name: in it; empty for the root.
        metadata: as the last layer that lists it says.
        children: by name: directories, symbolic links, and numbers of members.
        depth: components of its path.
        length: bytes of its path.
        made: the last layer that lists it, or made it for something in it.
        own: the last layer of which it is known that everything in it comes from there.
    """

    __slots__ = ("children", "depth", "length", "made", "metadata", "name", "own", "parent")

    def __init__(self, parent: Directory | None, name: bytes, metadata: Metadata, layer: int) -> None:
        self.parent: Directory = parent or self
        self.name = name
        self.metadata = metadata
        self.children: dict[bytes, Child] = {}
        self.depth: int = parent.depth + 1 if parent else 0
        self.length: int = parent.length + 1 + len(name) if parent else -1
        self.made = self.own = layer

    @property
    def path(self) -> bytes:
        """Components joined by ``/``, without one at the front; empty for the root."""
        parts = []
        directory = self
        while directory.parent is not directory:
            parts.append(directory.name)
            directory = directory.parent
        return b"/".join(reversed(parts))


class Symlink:
    """A symbolic link of the tree: its member's number, and where it leads."""

    __slots__ = ("source", "target")

    def __init__(self, source: int, target: bytes) -> None:
        self.source = source
        self.target = target


Child = Directory | Symlink | int


def source_of(layer: int, member: int) -> int:
    """The number of a member: both count from 0, and numbers ascend as the members are read."""
    return layer << _LAYER | member


def layer_of(source: int) -> int:
    """Which layer a number's member is in."""
    return source >> _LAYER


def member_of(source: int) -> int:
    """Which member of its layer a number means."""
    return source & (1 << _LAYER) - 1


def kept_xattrs(member: Member) -> dict[bytes, bytes]:
    """The extended attributes of a member that stay; ``user.*`` is for files and directories alone."""
    if member.kind not in {MemberKind.FILE, MemberKind.DIRECTORY}:
        return {
            name: value
            for name, value in member.xattrs.items()
            if is_kept(name, value) and not name.startswith(b"user.")
        }
    return {name: value for name, value in member.xattrs.items() if is_kept(name, value)}


class MergedTree:
    """A tree that layers are applied to: `begin_layer`, then `apply` each member of it, in order.

    After an error it is of no more use.

    Attributes:
        root: the top directory.
        reserved: names of AUFS's own that were left out.
        stripped: members that had attributes of overlayfs, which were left out.
    """

    def __init__(self) -> None:
        self.root = Directory(None, b"", IMPLIED, 0)
        self.reserved = self.stripped = 0
        self._layer = -1
        self._member = 0
        self._names = 0
        self._links: set[tuple[Directory, bytes]] = set()  # of this layer, to inodes of lower ones
        self._last: tuple[list[bytes], Directory] = ([], self.root)

    def begin_layer(self) -> None:
        """What is applied from now on is in the next layer."""
        self._layer += 1
        self._member = 0
        self._links.clear()

    def apply(self, member: Member) -> None:
        """Apply the layer's next member.

        Raises:
            BadArchiveError: it can't be applied, or may not be; says which and why.
        """
        source = source_of(self._layer, self._member)
        self._member += 1
        try:
            self._apply(member, source)
        except BadArchiveError as error:
            raise BadArchiveError(f"{show(member.name)}: {error}") from None

    def take_apart(self) -> Iterator[tuple[Directory, list[tuple[bytes, int]]]]:
        """Every directory, sorted, the root first and parents before what is in them; the tree is used up.

        Yields:
            The directory, and names and numbers of everything in it that is none, sorted.
        """
        pending = [self.root]
        while pending:
            directory = pending.pop()
            children = sorted(directory.children.items(), key=itemgetter(0))
            directory.children = {}
            pending += [child for _, child in reversed(children) if isinstance(child, Directory)]
            yield (
                directory,
                [(n, _source(child)) for n, child in children if not isinstance(child, Directory)],
            )

    def _apply(self, member: Member, source: int) -> None:
        path = cleaned(member.name)
        if not path:
            if member.kind is not MemberKind.DIRECTORY:
                raise BadArchiveError(f"a {member.kind.value} can't be the root")
            return
        base = path.pop()
        kind, hidden = whiteout(base)
        if below_whiteout(path) is Whiteout.RESERVED or kind is Whiteout.RESERVED:
            self.reserved += 1
            return
        if kind is Whiteout.NONE:
            _check(member)
            self.stripped += any(map(is_overlay, member.xattrs))
            self._add(self._parent(path), base, member, source)
            return
        if member.kind not in {MemberKind.FILE, MemberKind.HARDLINK}:
            raise BadArchiveError(f"a whiteout can't be a {member.kind.value}")
        directory = self._parent(path)
        if kind is Whiteout.OPAQUE:
            self._hide_below(directory)
        else:
            self._hide(directory, hidden)

    def _add(self, directory: Directory, name: bytes, member: Member, source: int) -> None:
        old = directory.children.get(name)
        if member.kind is MemberKind.DIRECTORY:
            metadata = Metadata(member.mode, member.uid, member.gid, member.mtime_ns, kept_xattrs(member))
            if isinstance(old, Directory):
                old.metadata, old.made = metadata, self._layer
                return
            self._remove(directory, name)
            self._make(directory, name, metadata)
            return
        self._remove(directory, name)
        child: Child = source
        if member.kind is MemberKind.SYMLINK:
            child = Symlink(source, member.linkname)
        elif member.kind is MemberKind.HARDLINK:
            child = self._target(member)
            if layer_of(_source(child)) != self._layer:
                self._links.add((directory, name))
        self._check_room(directory, name)
        directory.children[name] = child

    def _target(self, link: Member) -> Symlink | int:
        """What a hard link leads to: an inode of any layer, a symbolic link itself."""
        *path, name = cleaned(link.linkname) or [b""]
        directory, missing = self._resolve(path)
        child = None if missing else directory.children.get(name)
        if isinstance(child, Directory) or not name:
            raise BadArchiveError(f"hard link to {show(link.linkname)}, a directory")
        if child is None:
            raise BadArchiveError(f"hard link to {show(link.linkname)}, which does not exist")
        return child

    def _make(self, directory: Directory, name: bytes, metadata: Metadata) -> Directory:
        self._check_room(directory, name)
        made = Directory(directory, name, metadata, self._layer)
        directory.children[name] = made
        return made

    def _check_room(self, directory: Directory, name: bytes) -> None:
        self._names += 1
        if self._names > MAX_NAMES:
            raise BadArchiveError(f"more than {MAX_NAMES} names in all layers")
        if directory.depth >= MAX_DEPTH:
            raise BadArchiveError(f"nested deeper than {MAX_DEPTH} directories")
        # A directory's path in an archive has a slash at the end.
        if len(name) > MAX_COMPONENT or directory.length + len(name) + 2 > MAX_PATH:
            raise BadArchiveError("its path is too long where its symbolic links lead")

    # -- finding ---------------------------------------------------------------------------------

    def _parent(self, path: list[bytes]) -> Directory:
        """The directory at a path, made if need be; most members are where the one before them was."""
        if path != self._last[0]:
            directory, missing = self._resolve(path)
            for name in missing:
                directory = self._make(directory, name, IMPLIED)
            self._last = path, directory
        return self._last[1]

    def _resolve(self, path: list[bytes]) -> tuple[Directory, list[bytes]]:
        """Follow a path as the kernel does, but that nothing leaves the root.

        Returns:
            The directory, and below it what doesn't exist. ``..`` takes that away again.
        """
        here, missing = self.root, list[bytes]()
        ahead, hops = path[::-1], 0
        for _ in range(_MAX_STEPS):
            if not ahead:
                return here, missing
            part = ahead.pop()
            child = None if missing else here.children.get(part)
            if part == b"..":
                here = here if missing else here.parent
                missing = missing[:-1]
            elif child is None:
                missing.append(part)
            elif isinstance(child, Directory):
                here = child
            elif isinstance(child, Symlink) and hops < MAX_HOPS:
                hops += 1
                here = self.root if child.target.startswith(b"/") else here
                ahead += components(child.target)[::-1]
            else:
                raise BadArchiveError(_no_way(part, child))
        raise BadArchiveError(f"more than {_MAX_STEPS} steps through symbolic links")

    # -- removing --------------------------------------------------------------------------------

    def _remove(self, directory: Directory, name: bytes) -> None:
        old = directory.children.pop(name, None)
        if isinstance(old, Directory | Symlink):
            self._last = [], self.root  # it may have led through that

    def _hide(self, directory: Directory, name: bytes) -> None:
        """Remove what lower layers have under a name."""
        child = directory.children.get(name)
        if isinstance(child, Directory):
            self._hide_below(child)
        if child is not None:
            self._settle(directory, name, child)

    def _hide_below(self, top: Directory) -> None:
        """Remove what lower layers have in a directory, however deep."""
        found, pending = list[Directory](), [top]
        while pending:
            directory = pending.pop()
            if directory.own != self._layer:
                found.append(directory)
                pending += [child for child in directory.children.values() if isinstance(child, Directory)]
        for directory in reversed(found):  # what is in a directory comes before itself
            for name, child in list(directory.children.items()):
                self._settle(directory, name, child)
            directory.own = self._layer

    def _settle(self, directory: Directory, name: bytes, child: Child) -> None:
        """Keep or remove something that is hidden; of a directory everything below is settled already."""
        if self._is_ours(directory, name, child):
            return
        if isinstance(child, Directory) and child.children:
            # This layer put something in there, so it makes the directory anew.
            child.metadata, child.made = IMPLIED, self._layer
        else:
            self._remove(directory, name)

    def _is_ours(self, directory: Directory, name: bytes, child: Child) -> bool:
        """Whether the current layer made a name; whiteouts spare it then."""
        if isinstance(child, Directory):
            return child.made == self._layer
        return layer_of(_source(child)) == self._layer or (directory, name) in self._links


def _source(child: Symlink | int) -> int:
    return child.source if isinstance(child, Symlink) else child


def _no_way(part: bytes, child: Child) -> str:
    if isinstance(child, Symlink):
        return f"more than {MAX_HOPS} symbolic links to follow, at {show(part)}"
    return f"{show(part)} is not a directory"


def _check(member: Member) -> None:
    """Refuse what no layer may ask for."""
    if max(member.uid, member.gid) > MAX_OWNER:
        raise BadArchiveError(f"owner {member.uid}:{member.gid} does not fit into 32 bits")
    if member.kind is MemberKind.CHARACTER and member.devmajor == member.devminor == 0:
        raise BadArchiveError("character device 0:0 is overlayfs's whiteout, which no layer may have")
    if member.devmajor > MAX_MAJOR or member.devminor > MAX_MINOR:
        raise BadArchiveError(f"there is no device {member.devmajor}:{member.devminor}")
    if member.kind is MemberKind.SYMLINK and len(member.linkname) >= MAX_PATH:
        raise BadArchiveError(f"its target is longer than {MAX_PATH - 1} bytes")
