"""A layer's plain bytes: decompressed and hashed in threads, ahead of whoever reads them.

Decompressing, hashing and writing each keep a core busy and let go of Python's lock, so together
they take little longer than the slowest. The hash covers every byte to the stream's end, also
what follows the end of the tar. Source: specification §7.3, reliability E4.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, BinaryIO, Self, TypeVar

from imgdb.archive.compression import open_decompressed
from imgdb.archive.stream import filler
from imgdb.oci.digest import Digest, new_hasher

_T = TypeVar("_T")

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgdb.archive.stream import Source

# Large, for each step hands Python's lock around between the threads, which costs more than the step.
_CHUNK = 1 << 16
_PIECE = 1 << 19
_AHEAD = 8  # pieces


class Piped:
    """Read plain bytes of a layer that may be compressed, by any method; use as a context manager.

    Args:
        source: the layer's bytes, from where they stand.
        algorithm: of the hash.
        on_warning: called with one line, in another thread, for oddities of the compression.

    Attributes:
        count: bytes read so far.
    """

    def __init__(self, source: Source, algorithm: str, on_warning: Callable[[str], None]) -> None:
        self._source = source
        self._algorithm = algorithm
        self._warn = on_warning
        self._hasher = new_hasher(algorithm)
        self._pieces: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
        self._hashed: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self._piece = memoryview(b"")
        self._ended = False
        self.count = 0
        self._threads = [
            threading.Thread(target=work, name=f"imgdb-{name}", daemon=True)
            for name, work in (("decompress", self._decompress), ("hash", self._hash))
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            while thread.is_alive():
                self._discard(self._pieces)
                thread.join(0.01)

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the beginning of `buffer`; 0 only at the end.

        Raises:
            BadArchiveError: damaged or truncated, a bomb, or compressed twice.
        """
        if not self._piece and not self._ended:
            self._next()
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        self.count += count
        return count

    def digest(self) -> Digest:
        """Of everything; to be asked for at the end."""
        self._threads[1].join()
        return Digest(self._algorithm, self._hasher.hexdigest())

    def _next(self) -> None:
        item = self._pieces.get()
        if isinstance(item, BaseException):
            raise item
        self._ended = item is None
        self._piece = memoryview(item or b"")

    def _decompress(self) -> None:
        end: BaseException | None = None
        try:
            plain, _ = open_decompressed(self._source, on_warning=self._warn, chunk=_CHUNK)
            fill = filler(plain)
            while not self._stopped.is_set() and (piece := _full(fill)):
                self._put(self._hashed, piece)
                self._put(self._pieces, piece)
        except BaseException as error:  # noqa: BLE001 - raised again where it is read
            end = error
        self._put(self._hashed, None)
        self._put(self._pieces, end)

    def _hash(self) -> None:
        while (piece := self._hashed.get()) is not None:
            self._hasher.update(piece)

    def _put(self, where: queue.Queue[_T], item: _T) -> None:
        """Wait for room, as long as somebody reads; the end always gets in."""
        while not self._stopped.is_set():
            try:
                where.put(item, timeout=0.1)
            except queue.Full:
                continue
            return
        if item is None or isinstance(item, BaseException):
            self._discard(where)
            where.put(item)

    @staticmethod
    def _discard(where: queue.Queue[_T]) -> None:
        try:
            while True:
                where.get_nowait()
        except queue.Empty:
            pass


def _full(fill: Callable[[memoryview], int]) -> bytes:
    """A whole piece; a shorter one only at the end."""
    buffer = bytearray(_PIECE)
    view = memoryview(buffer)
    done = 0
    while done < _PIECE and (count := fill(view[done:])):
        done += count
    return bytes(view[:done])


class Counted:
    """A blob being read, which tells how far.

    Args:
        blob: open for reading, without a buffer.
        advance: told how many bytes came.
    """

    def __init__(self, blob: BinaryIO, advance: Callable[[int], None]) -> None:
        self._blob = blob
        self._advance = advance

    def readinto(self, buffer: memoryview, /) -> int:
        """As a raw file."""
        count: int = self._blob.readinto(buffer)  # type: ignore[attr-defined] # BinaryIO lacks it
        self._advance(count)
        return count
