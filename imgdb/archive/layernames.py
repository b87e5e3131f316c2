"""What names in a layer mean: paths below its root, and whiteouts. PURE: bytes in, values out.

A layer's names are raw bytes and may be anything that a tar can hold. `cleaned` turns them into
components that can't leave the root, by the words alone, as Go's path.Clean does for containerd,
docker and umoci; symbolic links are somebody else's to resolve. Base names that begin with
``.wh.`` say what is to be hidden of lower layers.
Source: specification §7.3; reliability A1, A2, A6, A7, A14, A15, A20; OCI image-spec 1.1 layer.md.
"""

from __future__ import annotations

from enum import Enum

from imgdb.archive.pax import show
from imgdb.errors import BadArchiveError

MAX_DEPTH = 256
"""Components that a path in a layer may have."""

_PREFIX = b".wh."
_META_PREFIX = b".wh..wh."
_OPAQUE = b".wh..wh..opq"


class Whiteout(Enum):
    """What a base name asks for.

    NONE is an ordinary name, PLAIN hides one name of the same directory, OPAQUE hides everything
    of lower layers in the directory, and RESERVED is AUFS's own book-keeping, to be ignored.
    """

    NONE = "none"
    PLAIN = "plain"
    OPAQUE = "opaque"
    RESERVED = "reserved"


def components(name: bytes) -> list[bytes]:
    """A path's components in order, without empty ones and ``.``; ``..`` stays for a resolver.

    A leading ``/`` makes no difference. No components: the name is the root's.
    """
    return [part for part in name.split(b"/") if part not in {b"", b"."}]


def cleaned(name: bytes) -> list[bytes]:
    """The components of a member's name or of a hard link's target, with every ``..`` applied.

    ``..`` takes away the component before it, whatever that is in the file system, and at the root
    nothing: ``a/../../b`` is ``b`` also where ``a`` is a symbolic link. Not for the targets of
    symbolic links, where the kernel follows ``a`` first.

    Returns:
        Components without ``..``; none for the root itself.

    Raises:
        BadArchiveError: more than `MAX_DEPTH` components are left.
    """
    path: list[bytes] = []
    for part in components(name):
        if part != b"..":
            path.append(part)
        elif path:
            path.pop()
    if len(path) > MAX_DEPTH:
        raise BadArchiveError(f"{show(name)} is nested deeper than {MAX_DEPTH} directories")
    return path


def whiteout(base: bytes) -> tuple[Whiteout, bytes]:
    """Classify the last component of a member's name.

    Returns:
        The kind, and for PLAIN the name that is hidden; else an empty one.

    Raises:
        BadArchiveError: it would hide its own directory or the one above: ``.wh.``, ``.wh..``,
            ``.wh...``.
    """
    if not base.startswith(_PREFIX):
        return Whiteout.NONE, b""
    if base == _OPAQUE:
        return Whiteout.OPAQUE, b""
    if base.startswith(_META_PREFIX):
        return Whiteout.RESERVED, b""
    hidden = base[len(_PREFIX) :]
    if hidden in {b"", b".", b".."}:
        raise BadArchiveError(f"invalid whiteout name {show(base)}")
    return Whiteout.PLAIN, hidden


def below_whiteout(parents: list[bytes]) -> Whiteout:
    """Whether a member lies in a directory that is named like a whiteout.

    Args:
        parents: the components before the last one, cleaned.

    Returns:
        NONE, or RESERVED for what lies in one of AUFS's directories and is to be ignored with it.

    Raises:
        BadArchiveError: the directory is named like a whiteout, which can't be a directory.
    """
    kinds = [whiteout(part)[0] for part in parents if part.startswith(_PREFIX)]
    if Whiteout.RESERVED in kinds:
        return Whiteout.RESERVED
    if kinds:
        raise BadArchiveError(f"whiteout {show(b'/'.join(parents))} is a directory")
    return Whiteout.NONE
