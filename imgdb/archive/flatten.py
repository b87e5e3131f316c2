"""One tar of the file system that a stack of layers adds up to, without unpacking any of them.

Each layer is read twice: first its headers, to learn what survives, then the bodies that do. The
same layers give the same bytes: directories first, sorted, then everything else in the order in
which the layers have it. Of an inode's names the first one, sorted, carries the body, and the
others follow as hard links.
Source: specification §7.3; `merged` for what applying a layer means.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol

from imgdb.archive.memberwriter import member_headers
from imgdb.archive.merged import Directory, MergedTree, kept_xattrs, layer_of, member_of
from imgdb.archive.stream import Reader, Stream, ignore
from imgdb.archive.tar import Member, MemberKind, TarReader
from imgdb.archive.tarwriter import END, padding
from imgdb.errors import BadArchiveError, InvalidArgumentError, NoImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from imgdb.archive.merged import Metadata

MAX_LAYER_ENTRIES = 2_000_000
"""Members that a layer may have."""

_LINK_MODE = 0o777  # which every link has on Linux, whatever its layer says
_CHUNK = 1 << 18
_ZEROS = bytes(_CHUNK)

_Name = tuple[int, Directory, bytes]


class Writable(Protocol):
    """Where the tar goes."""

    def write(self, data: bytes, /) -> object:
        """Take all of `data`."""


def flatten(
    layers: Sequence[Callable[[], Reader]],
    sink: Writable,
    *,
    max_size: int | None = None,
    on_warning: Callable[[str], None] = ignore,
) -> None:
    """Write the root file system of a stack of layers as one tar.

    Nothing is written before all layers were read once, to the end of their input, and found right.
    Holes of sparse files are written as zeros.

    Args:
        layers: the lowest first. Each opens the plain (decompressed) tar of one layer, at most
            twice, and both times it must be the same. What has a `close` is closed.
        sink: where it goes, in pieces of some 256 KiB.
        max_size: bytes that may be written; None for no limit.
        on_warning: called with one line for each oddity that is accepted.

    Raises:
        BadArchiveError: a layer is malformed or can't be applied, or the result is larger than
            `max_size`; says which layer and member.
    """
    tree = MergedTree()
    for number, layer in enumerate(layers):
        with _opened(layer, f"layer {number + 1} of {len(layers)}", on_warning) as reader:
            tree.begin_layer()
            for member in reader:
                tree.apply(member)
            reader.drain()
    _warn(tree, on_warning)
    out = _Output(sink, max_size)
    names = list(_write_directories(tree, out))
    del tree
    names.sort(key=itemgetter(0))
    for number, group in groupby(names, key=lambda name: layer_of(name[0])):
        with _opened(layers[number], f"layer {number + 1} of {len(layers)}", ignore) as reader:
            _write_others(reader, group, out)
    out.write(END)
    out.flush()


@contextmanager
def _opened(layer: Callable[[], Reader], label: str, warn: Callable[[str], None]) -> Iterator[TarReader]:
    """A layer for reading; what goes wrong with it is told with its label."""
    stream = layer()
    try:
        source = Stream(stream)
        yield TarReader(
            # Nothing at all is the empty layer of some tools.
            source if source.peek(1) else BytesIO(END),
            sparse=True,
            max_entries=MAX_LAYER_ENTRIES,
            on_warning=lambda message: warn(f"{label}: {message}"),
        )
    except (BadArchiveError, NoImageError) as error:
        raise BadArchiveError(f"{label}: {error}") from None
    finally:
        close = getattr(stream, "close", None)
        if close is not None:
            close()


def _warn(tree: MergedTree, warn: Callable[[str], None]) -> None:
    if tree.reserved:
        warn(f"{tree.reserved} names that begin with .wh..wh. are ignored")
    if tree.stripped:
        warn(f"extended attributes of overlayfs are left out of {tree.stripped} files")


def _write_directories(tree: MergedTree, out: _Output) -> Iterator[_Name]:
    """Write all directories but the root; yields everything else."""
    for directory, others in tree.take_apart():
        if directory is not tree.root:
            out.headers(_directory(directory.path + b"/", directory.metadata))
        for name, source in others:
            yield source, directory, name


def _directory(path: bytes, metadata: Metadata) -> Member:
    return Member(
        name=path,
        kind=MemberKind.DIRECTORY,
        size=0,
        linkname=b"",
        mode=metadata.mode,
        uid=metadata.uid,
        gid=metadata.gid,
        mtime_ns=metadata.mtime_ns,
        uname=b"",
        gname=b"",
        devmajor=0,
        devminor=0,
        xattrs=metadata.xattrs,
        offset=0,
        realsize=0,
    )


def _write_others(reader: TarReader, names: Iterable[_Name], out: _Output) -> None:
    """Write what survives of one layer, in its order."""
    members = enumerate(reader)
    for source, same in groupby(names, key=itemgetter(0)):
        member = _find(members, member_of(source))
        first, *others = sorted(_path(directory, name) for _, directory, name in same)
        mode = _LINK_MODE if member.kind is MemberKind.SYMLINK else member.mode
        found = replace(member, name=first, mode=mode, xattrs=kept_xattrs(member))
        out.headers(found)
        if found.kind is MemberKind.FILE:
            _write_body(reader, found, out)
        for path in others:
            out.headers(_link(found, path))


def _find(members: Iterator[tuple[int, Member]], wanted: int) -> Member:
    for number, member in members:
        if number == wanted:
            if member.kind is not MemberKind.HARDLINK and member.kind is not MemberKind.DIRECTORY:
                return member
            break
    raise BadArchiveError("it changed while it was read")


def _path(directory: Directory, name: bytes) -> bytes:
    path = directory.path
    return path + b"/" + name if path else name


def _link(member: Member, path: bytes) -> Member:
    return replace(
        member,
        name=path,
        kind=MemberKind.HARDLINK,
        linkname=member.name,
        size=0,
        realsize=0,
        sparse=None,
        devmajor=0,
        devminor=0,
    )


def _write_body(reader: TarReader, member: Member, out: _Output) -> None:
    regions = ((0, member.size),) if member.sparse is None else member.sparse
    position = 0
    for offset, length in regions:
        out.zeros(offset - position)
        for at in range(0, length, _CHUNK):
            out.write(reader.read(min(_CHUNK, length - at)))
        position = offset + length
    out.zeros(member.realsize - position)
    out.write(padding(member.realsize))


class _Output:
    """Collects small pieces, since most of a tar are headers; counts what is written."""

    def __init__(self, sink: Writable, max_size: int | None) -> None:
        self._sink = sink
        self._left = max_size
        self._pieces: list[bytes] = []
        self._held = 0

    def headers(self, member: Member) -> None:
        """Append a member's headers."""
        try:
            self.write(member_headers(member))
        except InvalidArgumentError as error:
            raise BadArchiveError(str(error)) from None

    def zeros(self, count: int) -> None:
        """Append zeros."""
        for at in range(0, count, _CHUNK):
            self.write(_ZEROS[: count - at])

    def write(self, data: bytes) -> None:
        """Append bytes."""
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise BadArchiveError("the file system is larger than is allowed")
        self._pieces.append(data)
        self._held += len(data)
        if self._held >= _CHUNK:
            self.flush()

    def flush(self) -> None:
        """Hand on what is held."""
        self._sink.write(b"".join(self._pieces))
        self._pieces.clear()
        self._held = 0
