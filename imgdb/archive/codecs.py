"""Decoders of one member, frame or stream each, all with the interface of `bz2` and `lzma`.

The standard library brings those two. gzip and zstd are here since their libraries bound
neither the output of one call (zstandard), nor a gzip header that is split between two calls
(isal reads on in the wrong place), nor say where a frame ends. So the framing is read here,
a few bytes at a time, and the libraries see nothing but deflate and zstd blocks.
Source: RFC 1952, RFC 8878, reliability §2c.
"""

from __future__ import annotations

import bz2
import lzma
import os
import zlib
from typing import TYPE_CHECKING, Protocol

import zstandard

try:
    from isal import igzip_lib, isal_zlib

    HAVE_ISAL = True
except ImportError:  # no isal for this machine: zlib is slower, and everywhere
    HAVE_ISAL = False

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_GZIP_HEADER = 1 << 16
MAX_WINDOW = 1 << 27
MAX_SKIPPABLE = 1 << 20
LZMA_MEMORY = MAX_WINDOW + (1 << 23)
"""Bytes of memory an xz stream may need; beside its dictionary a decoder needs little."""

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE_MAGIC = b"\x2a\x4d\x18"  # after a byte from 0x50 to 0x5f

DAMAGE: tuple[type[Exception], ...] = (
    ValueError,
    EOFError,
    OSError,  # bz2's way to say that data is invalid
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    *((igzip_lib.error,) if HAVE_ISAL else ()),
)
"""What `Codec.decompress` raises for damaged data."""


class Codec(Protocol):
    """One compressed member; `bz2.BZ2Decompressor` is the model."""

    @property
    def eof(self) -> bool:
        """The member is complete and its checksum was right."""

    @property
    def needs_input(self) -> bool:
        """Nothing more comes out before something goes in."""

    @property
    def unused_data(self) -> bytes:
        """What was fed beyond the member's end."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Feed bytes, get at most `max_length` (positive), or raise one of `DAMAGE`."""


class _ZlibInflater:
    """Raw deflate by zlib."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(-zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


def _inflater() -> Codec:
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE) if HAVE_ISAL else _ZlibInflater()


_crc32: Callable[[bytes, int], int] = isal_zlib.crc32 if HAVE_ISAL else zlib.crc32


class Encoder(Protocol):
    """One compressed stream being written; `zlib.compressobj` is the model."""

    def compress(self, data: bytes | memoryview, /) -> bytes:
        """Feed bytes; what comes out may be later than what went in."""

    def flush(self) -> bytes:
        """The rest, and the end of the stream."""


def gzip_encoder() -> Encoder:
    """A fast encoder of one gzip member, without a name or a time."""
    if HAVE_ISAL:
        return isal_zlib.compressobj(isal_zlib.ISAL_DEFAULT_COMPRESSION, isal_zlib.DEFLATED, 31)
    return zlib.compressobj(6, zlib.DEFLATED, 31)


def zstd_encoder() -> Encoder:
    """An encoder of one zstd frame with a checksum, on up to four processors."""
    # The number of threads changes nothing in the output, but that there are threads does.
    threads = min(4, os.cpu_count() or 1)
    return zstandard.ZstdCompressor(level=3, write_checksum=True, threads=threads).compressobj()


class GzipMember:
    """One gzip member (RFC 1952) with header, CRC and length checked."""

    _HEADER = 10
    _TRAILER = 8
    _HCRC, _EXTRA, _NAME, _COMMENT, _RESERVED = 2, 4, 8, 16, 0xE0

    def __init__(self) -> None:
        self.eof = False
        self.unused_data = b""
        self._held = b""  # of an incomplete header or trailer
        self._body: Codec | None = None
        self._crc = self._size = 0

    @property
    def needs_input(self) -> bool:
        """Nothing more comes out before something goes in."""
        return not self.eof and (self._body is None or self._body.eof or self._body.needs_input)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Feed bytes, get at most `max_length`, or raise one of `DAMAGE`."""
        if self._body is None:
            data = self._feed_header(data)
            if self._body is None:
                return b""
        output = b""
        if not self._body.eof:
            output = self._body.decompress(data, max_length)
            self._crc = _crc32(output, self._crc)
            self._size += len(output)
            data = self._body.unused_data
        if self._body.eof:
            self._feed_trailer(data)
        return output

    def _feed_header(self, data: bytes) -> bytes:
        """Collect the header; what follows it when it is complete."""
        self._held += data
        length = self._header_length(self._held)
        if (length or len(self._held)) > MAX_GZIP_HEADER:
            raise ValueError(f"header of more than {MAX_GZIP_HEADER} bytes")
        if not length:
            return b""
        rest, self._held = self._held[length:], b""
        self._body = _inflater()
        return rest

    def _header_length(self, data: bytes) -> int:
        """Length of the header at the beginning of `data`; 0 as long as it is incomplete."""
        if len(data) < self._HEADER:
            return 0
        flags, position = data[3], self._HEADER
        if data[:3] != b"\x1f\x8b\x08" or flags & self._RESERVED:
            raise ValueError("unknown header")
        if flags & self._EXTRA:
            position += 2 + int.from_bytes(data[position : position + 2], "little")
        for flag in (self._NAME, self._COMMENT):
            if flags & flag:
                position = data.find(b"\0", position) + 1
                if not position:
                    return 0
        if flags & self._HCRC:
            stored, position = data[position : position + 2], position + 2
            if position <= len(data) and zlib.crc32(data[: position - 2]) & 0xFFFF != int.from_bytes(
                stored, "little"
            ):
                raise ValueError("wrong header CRC")
        return position if position <= len(data) else 0

    def _feed_trailer(self, data: bytes) -> None:
        self._held += data
        if len(self._held) < self._TRAILER:
            return
        crc, size = self._crc & 0xFFFFFFFF, self._size & 0xFFFFFFFF
        if self._held[: self._TRAILER] != crc.to_bytes(4, "little") + size.to_bytes(4, "little"):
            raise ValueError("wrong CRC or length")
        self.unused_data = self._held[self._TRAILER :]
        self.eof = True


class ZstdFrame:
    """One zstd frame, or skippable frame (RFC 8878).

    The library is fed whole blocks, a few at a time: each gives 128 KiB at most, so that no
    input, however it is made, comes out as more than a megabyte at once.
    """

    _BATCH = 1 << 18
    _MAX_BLOCK = 1 << 17

    def __init__(self) -> None:
        self.eof = False
        self.unused_data = b""
        self._input = bytearray()
        self._output = memoryview(b"")
        self._advance: Callable[[], bool] = self._frame_header
        self._window = self._skip = 0
        self._checksum = False
        self._starved = True
        self._decoder = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()

    @property
    def needs_input(self) -> bool:
        """Nothing more comes out before something goes in."""
        return not self.eof and self._starved

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Feed bytes, get at most `max_length`, or raise one of `DAMAGE`."""
        self._input += data
        while not self._output and self._advance():
            pass
        self._starved = not self._output
        piece, self._output = self._output[:max_length], self._output[max_length:]
        if self._advance == self._finished and not self._output:
            self.eof, self.unused_data = True, bytes(self._input)
        return bytes(piece)

    def _feed(self, length: int) -> None:
        self._output = memoryview(self._decoder.decompress(self._input[:length]))
        del self._input[:length]

    def _frame_header(self) -> bool:
        head = self._input
        if len(head) < 8:  # noqa: PLR2004 - the shortest frame, and a skippable one's header
            return False
        if head[1:4] == SKIPPABLE_MAGIC:
            return self._skippable_header()
        descriptor = head[4]
        single, self._checksum = bool(descriptor & 0x20), bool(descriptor & 4)
        id_length = (0, 1, 2, 4)[descriptor & 3]
        size_length = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
        length = 5 + (not single) + id_length + size_length
        if len(head) < length:
            return False
        if any(head[length - size_length - id_length : length - size_length]):
            raise ValueError("needs a dictionary")
        self._window = (
            self._window_size(head[length - size_length : length]) if single else self._described(head[5])
        )
        if self._window > MAX_WINDOW:
            raise ValueError(f"window of {self._window} bytes, more than {MAX_WINDOW}")
        self._feed(length)
        self._advance = self._blocks
        return True

    @staticmethod
    def _window_size(content_size: bytearray) -> int:
        return int.from_bytes(content_size, "little") + (256 if len(content_size) == 2 else 0)  # noqa: PLR2004

    @staticmethod
    def _described(byte: int) -> int:
        base = 1 << (10 + (byte >> 3))
        return base + (base >> 3) * (byte & 7)

    def _blocks(self) -> bool:
        """Feed as many complete blocks as there are, up to a bound of what may come out."""
        position = bound = 0
        last = False
        while not last and bound < self._BATCH:
            header = int.from_bytes(self._input[position : position + 3], "little")
            kind, size = header >> 1 & 3, header >> 3
            end = position + 3 + (1 if kind == 1 else size)
            if position + 3 > len(self._input):
                break
            if size > self._MAX_BLOCK:
                raise ValueError(f"block of {size} bytes")
            if end > len(self._input):
                break
            bound += self._MAX_BLOCK if kind == 2 else size  # noqa: PLR2004 - compressed
            last, position = bool(header & 1), end
        if position:
            self._feed(position)
        if last:
            self._advance = self._trailer if self._checksum else self._verdict
        return bool(position)

    def _trailer(self) -> bool:
        if len(self._input) < 4:  # noqa: PLR2004 - bytes of checksum
            return False
        self._feed(4)
        self._advance = self._verdict
        return True

    def _verdict(self) -> bool:
        if not self._decoder.eof:
            raise ValueError("frame and content disagree about its end")
        self._advance = self._finished
        return False

    def _finished(self) -> bool:
        return False

    def _skippable_header(self) -> bool:
        self._skip = 8 + int.from_bytes(self._input[4:8], "little")
        if self._skip - 8 > MAX_SKIPPABLE:
            raise ValueError(f"skippable frame of {self._skip - 8} bytes, more than {MAX_SKIPPABLE}")
        self._advance = self._skippable
        return True

    def _skippable(self) -> bool:
        step = min(self._skip, len(self._input))
        del self._input[:step]
        self._skip -= step
        if not self._skip:
            self._advance = self._finished
        return False


def bzip2_stream() -> Codec:
    """A decoder of one bzip2 stream."""
    return bz2.BZ2Decompressor()


def xz_stream() -> Codec:
    """A decoder of one xz stream in bounded memory."""
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LZMA_MEMORY)
