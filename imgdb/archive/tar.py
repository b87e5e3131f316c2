"""The strict tar reader: untrusted archives and layers go through here and nowhere else.

Python's `tarfile` hangs on some hostile archives, takes a damaged header for the end, and
believes sizes. `TarReader` is iterative and bounded: whatever the bytes, it costs time in
proportion to them and a little memory, and raises BadArchiveError, or NoImageError where not
even the first header is a tar's. What it refuses and why: `tarheader`, `pax`.

An archive ends with two zero blocks, or at the end of the input where a header would begin
(several tools write no end blocks). Whatever follows two zero blocks is ignored with a
warning. Source: design §4 end, corpus/README, reliability §2b.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from imgdb.archive.pax import SPARSE, MalformedError, check_global, pax_records, show, sparse_records
from imgdb.archive.sparse import read_map
from imgdb.archive.stream import READ_AHEAD, Source, Stream, ignore
from imgdb.archive.tarheader import (
    BLOCK,
    EXTENDED,
    EXTENSIONS,
    GLOBAL,
    LONG_LINK,
    LONG_NAME,
    SPARSE_FILE,
    ZERO_BLOCK,
    Extensions,
    Member,
    MemberKind,
    build_member,
    checksum_matches,
    extension_size,
    header_name,
    is_ustar,
    long_name,
)
from imgdb.errors import BadArchiveError, NoImageError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_ENTRIES", "Member", "MemberKind", "TarReader"]

MAX_ENTRIES = 500_000
MAX_GLOBALS = 16

_TYPE = 156  # offset of the type flag
_PIECE = 1 << 18


class TarReader:
    """Iterate over the members of one tar archive, once, in order.

    The body of the current member is read with `readinto` or `read`; what is left of it is
    skipped when the iteration goes on, by seeking where the source can. After an error the
    reader stays broken and raises it again.

    Args:
        source: anything with ``readinto`` or ``read``, read from where it stands. Nobody else
            may move it while the reader is in use; the reader reads ahead of what it yields.
        sparse: read sparse files as well, in all forms of GNU tar; outer archives have none.
        max_entries: members allowed; extension headers don't count.
        on_warning: called with one line for each oddity that is accepted.
    """

    def __init__(
        self,
        source: Source,
        *,
        sparse: bool = False,
        max_entries: int = MAX_ENTRIES,
        on_warning: Callable[[str], None] = ignore,
    ) -> None:
        self._stream = source if isinstance(source, Stream) else Stream(source)
        self._sparse = sparse
        self._max_entries = max_entries
        self._warn = on_warning
        self._entries = self._globals = 0
        self._left = self._padding = 0  # of the current body
        self._name = b""
        self._header_at = self._stream.offset
        self._recognised = self._ended = False
        self._failure: BadArchiveError | NoImageError | None = None

    @property
    def offset(self) -> int:
        """Bytes of the archive used so far; where a seekable source stood at first counts too."""
        return self._stream.offset

    def __iter__(self) -> TarReader:
        return self

    def __next__(self) -> Member:
        """The next member.

        Raises:
            BadArchiveError: malformed, truncated, or beyond a limit; names member and offset.
            NoImageError: the input is no tar archive.
        """
        self._check()
        if self._ended:
            raise StopIteration
        self._skip_body()
        try:
            member = self._advance()
        except MalformedError as error:
            self._fail(f"tar header of {show(self._name)} at offset {self._header_at}: {error}")
        if member is None:
            self._ended = True
            raise StopIteration
        return member

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the beginning of `buffer` with more of the current member's body.

        Returns:
            How many bytes, at least one until the body's end; 0 there.

        Raises:
            BadArchiveError: the archive ends within the body.
        """
        self._check()
        view = memoryview(buffer)[: self._left]
        if not len(view):
            return 0
        count = self._stream.readinto(view)
        if not count:
            self._truncated()
        self._left -= count
        return count

    def read(self, size: int, /) -> bytes:
        """The next `size` bytes of the current member's body, fewer only at its end.

        Raises:
            BadArchiveError: the archive ends within the body.
        """
        self._check()
        wanted = min(size, self._left)
        data = bytearray()
        while len(data) < wanted:
            # What an archive announces is allocated only as it comes.
            piece = bytearray(min(wanted - len(data), _PIECE))
            data += memoryview(piece)[: self.readinto(memoryview(piece))]
        return bytes(data)

    def drain(self) -> int:
        """Go through what is left, members and then whatever follows them, to the input's end.

        Returns:
            How many bytes other than NUL follow the end of the archive; these are warned of.

        Raises:
            BadArchiveError: as for iterating.
        """
        for _ in self:
            pass
        buffer, junk = bytearray(READ_AHEAD), 0
        while count := self._stream.readinto(memoryview(buffer)):
            junk += count - buffer.count(0, 0, count)
        if junk:
            self._warn(f"{junk} bytes of junk after the end of the tar archive are ignored")
        return junk

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, message: str) -> NoReturn:
        self._failure = BadArchiveError(message)
        raise self._failure from None

    def _refuse(self, message: str) -> NoReturn:
        self._failure = NoImageError(message)
        raise self._failure

    def _truncated(self) -> NoReturn:
        self._fail(f"truncated: the archive ends at offset {self._stream.offset}, within {show(self._name)}")

    def _skip_body(self) -> None:
        rest = self._left + self._padding
        if rest and self._stream.skip(rest) < rest:
            self._truncated()
        self._left = self._padding = 0

    def _advance(self) -> Member | None:
        """Headers up to and with the next member's own; None at the end."""
        extensions = Extensions()
        while block := self._next_block(extensions):
            self._name = header_name(block)
            self._recognised = True
            if block[_TYPE] not in EXTENSIONS:
                return self._begin(block, extensions)
            self._extend(block, extensions)
        return None

    def _next_block(self, extensions: Extensions) -> bytes | None:
        """A header block whose checksum is right; None at the end of the archive."""
        self._header_at = self._stream.offset
        block = self._stream.take(BLOCK)
        if block == ZERO_BLOCK or not block:
            self._end(extensions, at_block=bool(block))
            return None
        if len(block) < BLOCK or not checksum_matches(block):
            self._reject(block)
        return block

    def _reject(self, block: bytes) -> NoReturn:
        if not self._recognised and not is_ustar(block):
            self._refuse("the input is no tar archive")
        if len(block) < BLOCK:
            self._fail(f"truncated: the archive ends within the tar header at offset {self._header_at}")
        self._fail(f"tar header at offset {self._header_at}: wrong checksum, after member {show(self._name)}")

    def _end(self, extensions: Extensions, *, at_block: bool) -> None:
        """Judge the end of the archive, found at a zero block or at the end of the input."""
        if extensions:
            raise MalformedError("extension header without a member")
        if not at_block:
            self._end_of_input()
            return
        second = self._stream.take(BLOCK)
        if not second:
            self._warn("the tar archive ends with one zero block instead of two")
        elif len(second) < BLOCK:
            self._fail(f"truncated: the archive ends within its end blocks, at offset {self._stream.offset}")
        elif second != ZERO_BLOCK:
            self._fail(f"zero block in the middle of the tar archive, at offset {self._header_at}")

    def _end_of_input(self) -> None:
        if not self._recognised:
            self._refuse("the input is empty")
        if not self._entries:
            self._fail(
                f"truncated: the archive ends at offset {self._stream.offset}, before its first member"
            )
        self._warn("the tar archive has no end blocks; it may be truncated")

    def _extend(self, block: bytes, extensions: Extensions) -> None:
        flag, size = block[_TYPE], extension_size(block)
        data = self._stream.take(size)
        padding = -size % BLOCK
        if len(data) < size or self._stream.skip(padding) < padding:
            self._truncated()
        match flag:
            case _ if flag == GLOBAL:
                self._count_global(data)
            case _ if flag == EXTENDED and extensions.pax is None:
                extensions.pax = pax_records(data)
                if self._sparse and SPARSE in data:
                    extensions.sparse = sparse_records(data)
            case _ if flag == LONG_NAME and extensions.name is None:
                extensions.name = long_name(data)
            case _ if flag == LONG_LINK and extensions.linkname is None:
                extensions.linkname = long_name(data)
            case _:
                raise MalformedError(f"second extension header of type {chr(flag)!r} for one member")

    def _count_global(self, data: bytes) -> None:
        self._globals += 1
        if self._globals > MAX_GLOBALS:
            raise MalformedError(f"more than {MAX_GLOBALS} global headers")
        check_global(pax_records(data))

    def _begin(self, block: bytes, extensions: Extensions) -> Member:
        self._entries += 1
        if self._entries > self._max_entries:
            raise MalformedError(f"more than {self._max_entries} members")
        member, said = build_member(block, extensions, self._stream.offset, sparse=self._sparse)
        self._name = member.name
        if extensions.sparse or block[_TYPE] == SPARSE_FILE:
            member, said = self._with_holes(member, said, block, extensions)
        if member.kind is MemberKind.FILE:
            self._left, self._padding = said, -said % BLOCK
            remaining = self._stream.remaining
            if remaining is not None and said > remaining:
                raise MalformedError(f"truncated: {said} bytes are announced and {remaining} are left")
        elif said and member.kind is MemberKind.HARDLINK:
            self._skip_link_data(said)
        return member

    def _with_holes(
        self, member: Member, said: int, block: bytes, extensions: Extensions
    ) -> tuple[Member, int]:
        """Read a sparse file's map; the member with it, and how many bytes of data follow."""
        if member.kind is not MemberKind.FILE:
            raise MalformedError(f"sparse {member.kind.value}")
        holes = read_map(block, extensions.sparse, said, self._take_block)
        changed = replace(
            member,
            size=holes.stored,
            offset=self._stream.offset,
            realsize=holes.realsize,
            sparse=holes.regions,
        )
        return changed, holes.stored

    def _take_block(self) -> bytes:
        block = self._stream.take(BLOCK)
        if len(block) < BLOCK:
            self._truncated()
        return block

    def _skip_link_data(self, said: int) -> None:
        """Prepare to pass over the data of a hard link; other kinds never have any.

        POSIX pax writes the file's data behind each of its links, older tars announce the size
        and write none. Where a header follows, both readings find an archive, but another one.
        """
        following = self._stream.peek(BLOCK)
        if following == ZERO_BLOCK or (len(following) == BLOCK and checksum_matches(following)):
            raise MalformedError(f"hard link with {said} bytes of data that may as well be members")
        self._padding = said + -said % BLOCK
