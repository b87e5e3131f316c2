"""Where members come from: a tar file, a stream, or a directory that holds a layout.

All three look alike: iterate over members, read the body of the current one. Names are keys
into the archive's own table, never paths on the host: `clean` makes them canonical and says
which ones try to leave. Source: design §7, specification §6.2, reliability D11-D12.
"""

from __future__ import annotations

import os
import select
import stat
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

from imgdb.archive.compression import Compression, open_decompressed
from imgdb.archive.stream import filler
from imgdb.archive.tar import MemberKind, TarReader
from imgdb.errors import BadArchiveError, ImgdbError, NoImageError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_ENTRIES = 500_000
RESERVED = ("oci-layout", "index.json", "manifest.json")


@dataclass(frozen=True, slots=True)
class Entry:
    """A member under its canonical name.

    Attributes:
        name: canonical; None when it is absolute or leaves the archive with ``..``.
        raw: as the archive spells it, for messages.
        kind: file, directory, link, …
        size: bytes of body that follow.
        target: for links, the canonical name they lead to; None when it leaves the archive.
    """

    name: str | None
    raw: str
    kind: MemberKind
    size: int
    target: str | None = None


class ArchiveSource(Protocol):
    """Iterate, and read the current entry's body with `readinto`."""

    total: int | None
    compression: Compression

    def __iter__(self) -> Iterator[Entry]: ...

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer` with the current body; 0 at its end."""


def clean(name: str, base: str = "") -> str | None:
    """Canonical form of a member's name, or of a link's target seen from directory `base`.

    Returns:
        Components joined by ``/``; ``""`` for the archive's root; None for an absolute name or
        one that leaves the archive.
    """
    if name.startswith("/"):
        return None
    parts = base.split("/") if base else []
    for part in name.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)


class Metered:
    """Counts what is read from the input, so that progress is exact even when it is compressed.

    Args:
        raw: open for reading; may be non-blocking.
        advance: told how many bytes came.
    """

    def __init__(self, raw: BinaryIO, advance: Callable[[int], None]) -> None:
        self._raw = raw
        self._fill = filler(raw)
        self._advance = advance

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer`, waiting until there is something; 0 at the end."""
        while True:
            try:
                count = self._fill(buffer)
            except BlockingIOError:
                # Whoever started us may have left standard input non-blocking.
                select.select([self._raw], [], [])
            else:
                self._advance(count)
                return count


class TarSource:
    """Entries of a tar stream, compressed or not."""

    def __init__(self, raw: BinaryIO, advance: Callable[[int], None], warn: Callable[[str], None]) -> None:
        self.total = _size_of(raw)
        stream, self.compression = open_decompressed(Metered(raw, advance), on_warning=warn)
        self._reader = TarReader(stream, max_entries=MAX_ENTRIES, on_warning=warn)
        self.readinto = self._reader.readinto

    def __iter__(self) -> Iterator[Entry]:
        for member in self._reader:
            raw = _text(member.name)
            target = None
            if member.kind is MemberKind.SYMLINK:
                target = clean(_text(member.linkname), os.path.dirname(clean(raw) or ""))
            elif member.kind is MemberKind.HARDLINK:
                target = clean(_text(member.linkname))
            # `..` in a name is refused even where it stays inside: nobody's tool writes that.
            name = None if ".." in raw.split("/") else clean(raw)
            yield Entry(name, raw, member.kind, member.size, target)
        # To the end of the input: a wrong checksum shows there, and a writer gets no broken pipe.
        self._reader.drain()


class DirectorySource:
    """Entries of a directory that holds an OCI layout or an unpacked docker archive.

    Only what belongs to the layout is read, so that a layout beside other large files costs
    nothing more. Symbolic links are entries, never followed by the operating system.
    """

    compression = Compression.NONE

    def __init__(self, path: str, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._body = -1
        self._entries = self._list()
        self.total: int | None = sum(entry.size for entry in self._entries)

    def close(self) -> None:
        """Close what is open."""
        self._close_body()
        os.close(self._root)

    def __iter__(self) -> Iterator[Entry]:
        for entry in self._entries:
            self._close_body()
            if entry.kind is MemberKind.FILE and entry.name is not None:
                self._body = self._open(entry.name)
                size = os.fstat(self._body).st_size
                yield Entry(entry.name, entry.raw, entry.kind, size)
            else:
                yield entry
        self._close_body()

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer` with the current body; 0 at its end."""
        count = os.readv(self._body, [buffer]) if self._body >= 0 else 0
        self._advance(count)
        return count

    def _close_body(self) -> None:
        if self._body >= 0:
            os.close(self._body)
            self._body = -1

    def _open(self, name: str) -> int:
        """Open a regular file below the root, following no symbolic link on the way."""
        *parents, last = name.split("/")
        directory = os.dup(self._root)
        try:
            for part in parents:
                inner = os.open(
                    part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
                )
                os.close(directory)
                directory = inner
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(last, flags, dir_fd=directory)
        except OSError as error:
            raise BadArchiveError(f"{name}: {error.strerror}") from None
        finally:
            os.close(directory)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise BadArchiveError(f"{name} is not a regular file")
        return fd

    def _list(self) -> list[Entry]:
        top = self._scan("")
        names = {entry.name for entry in top}
        if "index.json" in names or "oci-layout" in names or "blobs" in names:
            return self._list_layout(top)
        if "manifest.json" in names:
            return self._walk(top)
        below = next((entry.name for entry in top if self._has_layout(entry)), None)
        hint = f"; import {below} inside it" if below else ""
        raise NoImageError(
            f"the directory holds no image: neither index.json nor manifest.json is in it{hint}"
        )

    def _has_layout(self, entry: Entry) -> bool:
        if entry.kind is not MemberKind.DIRECTORY or not entry.name:
            return False
        return any(os.path.basename(inner.raw) in RESERVED for inner in self._scan(entry.name))

    def _list_layout(self, top: list[Entry]) -> list[Entry]:
        blobs = self._walk([entry for entry in top if entry.name == "blobs"])
        wanted = {entry.target for entry in blobs} | set(RESERVED)
        return [entry for entry in top if entry.name in wanted] + blobs

    def _walk(self, entries: list[Entry]) -> list[Entry]:
        found: list[Entry] = []
        pending = list(reversed(entries))
        while pending:
            entry = pending.pop()
            found.append(entry)
            if len(found) > MAX_ENTRIES:
                raise BadArchiveError(f"more than {MAX_ENTRIES} entries")
            if entry.kind is MemberKind.DIRECTORY and entry.name:
                pending += reversed(self._scan(entry.name))
        return found

    def _scan(self, name: str) -> list[Entry]:
        fd = os.open(
            name or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root
        )
        try:
            with os.scandir(fd) as listing:
                items = sorted(listing, key=lambda item: item.name)
                return [_directory_entry(item, name, fd) for item in items]
        finally:
            os.close(fd)


def _directory_entry(item: os.DirEntry[str], parent: str, fd: int) -> Entry:
    name = f"{parent}/{item.name}" if parent else item.name
    status = item.stat(follow_symlinks=False)
    if stat.S_ISREG(status.st_mode):
        return Entry(name, name, MemberKind.FILE, status.st_size)
    if stat.S_ISDIR(status.st_mode):
        return Entry(name, name, MemberKind.DIRECTORY, 0)
    if stat.S_ISLNK(status.st_mode):
        return Entry(name, name, MemberKind.SYMLINK, 0, clean(os.readlink(item.name, dir_fd=fd), parent))
    return Entry(name, name, MemberKind.FIFO, 0)


@contextmanager
def open_source(
    source: str | BinaryIO, *, advance: Callable[[int], None], warn: Callable[[str], None]
) -> Iterator[ArchiveSource]:
    """Open a path or a binary stream for reading entries.

    Raises:
        NotFoundError: no such file.
        NoImageError: empty, or no tar.
        ImgdbError: the file can't be read.
    """
    if isinstance(source, str) and os.path.isdir(source):
        with closing(DirectorySource(source, advance)) as directory:
            yield directory
    else:
        with open_raw(source) as raw:
            yield TarSource(raw, advance, warn)


@contextmanager
def open_raw(source: str | BinaryIO) -> Iterator[BinaryIO]:
    """Open a path for reading bytes, or take a stream as it is, which then stays open.

    Raises:
        NotFoundError: no such file.
        NoImageError: a regular file, and empty.
        ImgdbError: the file can't be read.
    """
    if isinstance(source, str):
        with _open_file(source) as raw:
            yield raw
    else:
        yield source


def _open_file(path: str) -> BinaryIO:
    try:
        raw = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by open_raw
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise ImgdbError(f"{path}: {error.strerror}") from None
    status = os.fstat(raw.fileno())
    if stat.S_ISREG(status.st_mode) and not status.st_size:
        raw.close()
        raise NoImageError("the file is empty")
    return raw


def _size_of(raw: BinaryIO) -> int | None:
    try:
        status = os.fstat(raw.fileno())
    except (OSError, AttributeError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
