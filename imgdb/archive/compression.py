"""Outer compression: found by content, never by name, and taken off in a bounded way.

One layer of compression is removed: gzip (any number of members), bzip2 and xz (any number of
streams), zstd (any number of frames). A damaged or truncated stream, a bomb, and what is still
compressed underneath are refused; NULs behind a complete stream are silently ignored, other
junk with a warning. No helper program is ever run. Source: corpus/README, reliability §2c.
"""

from __future__ import annotations

import os
from enum import Enum
from typing import TYPE_CHECKING, Protocol, Self

from imgdb.archive.codecs import (
    DAMAGE,
    SKIPPABLE_MAGIC,
    ZSTD_MAGIC,
    GzipMember,
    ZstdFrame,
    bzip2_stream,
    gzip_encoder,
    xz_stream,
    zstd_encoder,
)
from imgdb.archive.stream import Reader, Source, Stream, ignore, is_seekable
from imgdb.errors import BadArchiveError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgdb.archive.codecs import Codec, Encoder

SNIFF_LENGTH = 10
"""Bytes that `sniff` wants to see."""
RATIO_FREE = 1 << 26
MAX_RATIO = 1000
MAX_EMPTY_MEMBERS = 10_000

CHUNK = 1 << 14
"""Compressed bytes read at once: few, so that what was read and what was consumed hardly differ."""
_PIECE = 1 << 18  # decoders allocate what they are asked for


class Compression(Enum):
    """How a stream of bytes is compressed."""

    NONE = "none"
    GZIP = "gzip"
    BZIP2 = "bzip2"
    XZ = "xz"
    ZSTD = "zstd"


_CODECS: dict[Compression, Callable[[], Codec]] = {
    Compression.GZIP: GzipMember,
    Compression.BZIP2: bzip2_stream,
    Compression.XZ: xz_stream,
    Compression.ZSTD: ZstdFrame,
}

_ENCODERS = {"gzip": gzip_encoder, "zstd": zstd_encoder}

_GZIP_MAGIC = b"\x1f\x8b\x08"
_XZ_MAGIC = b"\xfd7zXZ\0"
_BZIP2_MAGIC = b"BZh"
# Three letters and a digit may as well begin a file's name; a block or the end follows them.
_BZIP2_NEXT = (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90")


def sniff(head: bytes) -> Compression:
    """Tell the compression of a stream, be it an archive or a layer, from its beginning.

    Args:
        head: the first `SNIFF_LENGTH` bytes, or all there are.
    """
    if head.startswith(_GZIP_MAGIC):
        return Compression.GZIP
    if head.startswith(ZSTD_MAGIC) or (head[1:4] == SKIPPABLE_MAGIC and head[0] >> 4 == 5):  # noqa: PLR2004
        return Compression.ZSTD
    if head.startswith(_XZ_MAGIC):
        return Compression.XZ
    if head.startswith(_BZIP2_MAGIC) and head[3:4] in b"123456789" and _begins_bzip2(head[4:SNIFF_LENGTH]):
        return Compression.BZIP2
    return Compression.NONE


def _begins_bzip2(following: bytes) -> bool:
    return any(magic.startswith(following) for magic in _BZIP2_NEXT)


def open_decompressed(
    source: Source, *, on_warning: Callable[[str], None] = ignore, chunk: int = CHUNK
) -> tuple[Reader, Compression]:
    """Open a stream of bytes as what is in it.

    Args:
        source: anything with ``readinto`` or ``read``, read from where it stands. Nobody else
            may move it while the returned reader is in use.
        on_warning: called with one line where junk is ignored.
        chunk: compressed bytes to be read at once; more make it quicker, and busy for longer.

    Returns:
        A reader of the plain bytes, and the compression that was found. What is not compressed
        and can seek comes back as it is, so that its reader can seek.

    Raises:
        BadArchiveError: damaged at its very beginning, or compressed twice; what is damaged
            further on raises it from the reader.
    """
    if is_seekable(source) and hasattr(source, "readinto") and hasattr(source, "read"):
        start = source.seek(0, os.SEEK_CUR)  # type: ignore[union-attr] # is_seekable
        stream = Stream(source)
        compression = sniff(stream.peek(SNIFF_LENGTH))
        if compression is Compression.NONE:
            source.seek(start)  # type: ignore[union-attr] # is_seekable
            return source, compression  # type: ignore[return-value] # looked at above
    else:
        stream = Stream(source)
        compression = sniff(stream.peek(SNIFF_LENGTH))
        if compression is Compression.NONE:
            return stream, compression
    reader = Decompressor(stream, compression, on_warning=on_warning, chunk=chunk)
    inner = sniff(reader.peek(SNIFF_LENGTH))
    if inner is not Compression.NONE:
        raise BadArchiveError(f"compressed twice: {inner.value} inside {compression.value}")
    return reader, compression


class Decompressor:
    """Reads plain bytes out of a compressed stream, member after member.

    After an error it stays broken and raises it again.

    Args:
        stream: what to read from.
        compression: anything but NONE.
        on_warning: called with one line where junk is ignored.
        chunk: compressed bytes to be read at once.
    """

    def __init__(
        self,
        stream: Stream,
        compression: Compression,
        *,
        on_warning: Callable[[str], None] = ignore,
        chunk: int = CHUNK,
    ) -> None:
        self._stream = stream
        self._compression = compression
        self._warn = on_warning
        self._chunk = chunk
        self._codec = _CODECS[compression]()
        self._input = b""  # read, and not yet fed
        self._ahead = b""  # decompressed by `peek`
        self._consumed = self._produced = 0
        self._member_start = self._empty_members = 0
        self._ended = False
        self._failure: BadArchiveError | None = None

    def peek(self, size: int) -> bytes:
        """What `read` will return, without moving; fewer bytes only at the end."""
        while len(self._ahead) < size and (more := self._decompress(size)):
            self._ahead += more
        return self._ahead[:size]

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the beginning of `buffer`; 0 only at the end.

        Raises:
            BadArchiveError: damaged, truncated, or a decompression bomb.
        """
        data = self.read(min(len(buffer), _PIECE))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int, /) -> bytes:
        """Between one and `size` bytes; none at the end.

        Raises:
            BadArchiveError: damaged, truncated, or a decompression bomb.
        """
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        return self._decompress(min(size, _PIECE))

    def _decompress(self, size: int) -> bytes:
        if self._failure is not None:
            raise self._failure
        try:
            while size and not self._ended:
                if data := self._step(size):
                    return data
        except BadArchiveError as error:
            self._failure = error
            raise
        return b""

    def _step(self, size: int) -> bytes:
        if self._codec.eof:
            self._next_member()
            return b""
        chunk = b""
        if self._codec.needs_input:
            chunk = self._input or self._read_chunk()
            self._input = b""
            if not chunk:
                raise BadArchiveError(f"truncated: the {self._compression.value} stream ends too early")
        try:
            data = self._codec.decompress(chunk, size)
        except DAMAGE as error:
            raise BadArchiveError(
                f"damaged {self._compression.value} stream, before offset {self._consumed}: {error}"
            ) from error
        self._produced += len(data)
        if self._produced > RATIO_FREE and self._produced > MAX_RATIO * self._consumed:
            raise BadArchiveError(f"decompression bomb: {self._produced} bytes out of {self._consumed}")
        return data

    def _read_chunk(self) -> bytes:
        chunk = self._stream.read(self._chunk)
        self._consumed += len(chunk)
        return chunk

    def _next_member(self) -> None:
        """Look what follows a complete member: another one, nothing, or junk."""
        self._empty_members += 1
        if self._produced > self._member_start:
            self._empty_members, self._member_start = 0, self._produced
        if self._empty_members > MAX_EMPTY_MEMBERS:
            raise BadArchiveError(
                f"more than {MAX_EMPTY_MEMBERS} empty {self._compression.value} members in a row"
            )
        self._input = self._after_padding(self._codec.unused_data)
        if sniff(self._input) is self._compression:
            self._codec = _CODECS[self._compression]()
            return
        self._ended = True
        if self._input:
            self._warn(f"junk after the end of the {self._compression.value} stream is ignored")
            # To the end, so that who writes into a pipe gets no broken one.
            while self._read_chunk():
                pass

    def _after_padding(self, data: bytes) -> bytes:
        """Skip NULs; what follows them, at least `SNIFF_LENGTH` bytes if there are so many."""
        data = data.lstrip(b"\0")
        while len(data) < SNIFF_LENGTH and (more := self._read_chunk()):
            data = (data + more).lstrip(b"\0")
        return data


class Sink(Protocol):
    """Where compressed bytes go; must take all of what it is given."""

    def write(self, data: bytes, /) -> object:
        """Take bytes."""


class Compressor:
    """A binary file for writing that compresses into another one, which stays open.

    As a context manager it is closed only where no exception passes: half an archive must not
    end like a whole one.
    """

    def __init__(self, sink: Sink, encoder: Encoder) -> None:
        self._sink = sink
        self._encoder = encoder

    def write(self, data: bytes | memoryview, /) -> int:
        """Compress bytes; they may reach the sink later.

        Returns:
            How many bytes were taken: all.

        Raises:
            OSError: from the sink.
        """
        if compressed := self._encoder.compress(data):
            self._sink.write(compressed)
        return len(data)

    def close(self) -> None:
        """Write the end of the stream; once, after the last `write`.

        Raises:
            OSError: from the sink.
        """
        self._sink.write(self._encoder.flush())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()


def open_compressor(sink: Sink, compression: str) -> Compressor:
    """Begin a compressed stream.

    The same bytes come out on any run with the same libraries, but not on any machine: gzip
    is written by isal where there is one (several times faster), else by zlib. Its header has
    no name and no time.

    Args:
        sink: where it goes; stays open.
        compression: ``gzip`` or ``zstd``.

    Raises:
        InvalidArgumentError: any other compression.
    """
    encoder = _ENCODERS.get(compression)
    if encoder is None:
        raise InvalidArgumentError(
            f"unknown compression {compression!r}; there are {' and '.join(_ENCODERS)}"
        )
    return Compressor(sink, encoder())
