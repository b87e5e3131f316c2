"""A root file system as an image of one layer: what ``docker import`` makes of what ``docker export`` wrote.

The tar becomes the layer as it is, gzip and zstd included; bzip2 and xz come off, since no layer may
have them. While it is staged, a thread beside reads it as a layer will be read, refuses what could
never be unpacked, and hashes the plain bytes: their digest is the diff ID. With config and
manifest.json around it, it is a docker archive, and the importer goes on as with any other.
There is no clock in it: the same tar makes the same image anywhere, for the same platform.
Source: docker import; design §5 (what a docker archive's manifest looks like).
"""

from __future__ import annotations

import io
import os
import queue
import threading
from typing import TYPE_CHECKING, BinaryIO, Self

from imgdb.archive.compression import SNIFF_LENGTH, Compression, open_decompressed, sniff
from imgdb.archive.flatten import MAX_LAYER_ENTRIES
from imgdb.archive.merged import MergedTree
from imgdb.archive.reader import Metered, open_raw
from imgdb.archive.stream import Stream, filler
from imgdb.archive.tar import TarReader
from imgdb.errors import BadArchiveError, InvalidArgumentError
from imgdb.importer.intake import Contents
from imgdb.oci import jsontext
from imgdb.oci.digest import Digest, new_hasher
from imgdb.oci.platform import host_platform
from imgdb.progress import OneAtATime

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgdb.archive.stream import Source
    from imgdb.content.store import Ingest, Staged
    from imgdb.importer.plan import ImportOptions
    from imgdb.oci.digest import Hasher
    from imgdb.oci.platform import Platform
    from imgdb.progress import Reporter

CREATED_BY = "imgdb import --rootfs"

_CONFIG, _LAYER = "config.json", "layer.tar"
_AHEAD = 16  # pieces of at most a megabyte that wait for the thread
_OF_IMAGES = {b"manifest.json", b"index.json", b"oci-layout"}


def take_in(
    source: str | BinaryIO, ingest: Ingest, options: ImportOptions, *, dry_run: bool, reporter: Reporter
) -> Contents:
    """Read a root file system's tar, and make a docker archive around it.

    Args:
        source: a path or a binary stream.
        ingest: takes layer and config.
        options: of these `platforms` and `max_size`.
        dry_run: keep nothing but the config.
        reporter: told about progress and warnings.

    Raises:
        NoImageError: the input is no tar.
        BadArchiveError: a malformed one, one that can't be unpacked, or larger than `max_size`.
        InvalidArgumentError: a directory.
    """
    if isinstance(source, str) and os.path.isdir(source):
        raise InvalidArgumentError(f"{source} is a directory; --rootfs needs a tar of one")
    shared = OneAtATime(reporter)
    with open_raw(source) as raw:
        size = Stream(raw).remaining
        with shared.phase("read", size):
            layer, diff_id = _take_layer(
                raw, size, ingest, options.max_size, keep=not dry_run, reporter=shared
            )
    platform = options.platforms[0].normalized() if options.platforms else host_platform()
    document = config(platform, diff_id)
    staged = ingest.stage(io.BytesIO(document), len(document))
    images = [{"Config": _CONFIG, "RepoTags": None, "Layers": [_LAYER]}]
    return Contents(
        documents={"manifest.json": jsontext.dump(images)},
        files={_CONFIG: staged, _LAYER: layer},
        blobs={staged.digest: staged, layer.digest: layer},
    )


def config(platform: Platform, diff_id: Digest) -> bytes:
    """The image's config; its bytes are frozen in tests, since they decide the image's ID."""
    return jsontext.dump(
        {
            **platform.to_json(),
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(diff_id)]},
            "history": [{"created_by": CREATED_BY}],
        }
    )


def _take_layer(
    raw: BinaryIO, size: int | None, ingest: Ingest, max_size: int | None, *, keep: bool, reporter: Reporter
) -> tuple[Staged, Digest]:
    """Stage the layer, and find its diff ID on the way."""
    stream = Stream(Metered(raw, reporter.advance))
    compression = sniff(stream.peek(SNIFF_LENGTH))
    source: Source = stream
    if compression in {Compression.BZIP2, Compression.XZ}:
        source, _ = open_decompressed(stream, on_warning=reporter.warn)
        size, compression = None, Compression.NONE
    reporter.blob(_LAYER, size or 0)
    with _Checker(reporter.warn, hashes=compression is not Compression.NONE) as checker:
        checked = _Checked(source, checker, max_size)
        layer = ingest.stage(checked, size, keep=keep)
        checked.end()
        return layer, checker.result() or layer.digest


class _Checked:
    """Passes bytes on and shows them to a checker; what that refuses is raised here."""

    def __init__(self, source: Source, checker: _Checker, max_size: int | None) -> None:
        self._fill = filler(source)
        self._checker = checker
        self._max_size = max_size
        self._count = 0

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer`; 0 at the end.

        Raises:
            NoImageError, BadArchiveError: as `take_in`.
        """
        count = self._fill(buffer)
        self._count += count
        if self._max_size is not None and self._count > self._max_size:
            raise BadArchiveError(f"the archive holds more than --max-size {self._max_size} bytes")
        if count:
            self._checker.show(bytes(buffer[:count]))
        return count

    def end(self) -> None:
        """Say that this was all: a file that has grown meanwhile is as long as it was."""
        self._checker.show(b"")


class _StoppedError(Exception):
    """Nobody wants to know any more."""


class _Checker:
    """Reads a layer in a thread while others do something else with its bytes; a context manager.

    Args:
        warn: called with one line for each oddity, from the thread.
        hashes: find the digest of the plain bytes as well.
    """

    def __init__(self, warn: Callable[[str], None], *, hashes: bool) -> None:
        self._warn = warn
        self._hasher = new_hasher("sha256") if hashes else None
        self._shown: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._piece = memoryview(b"")
        self._ended = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="imgdb-rootfs", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._put(None)
        self._thread.join()

    def show(self, piece: bytes) -> None:
        """Hand on some bytes, none at the end; waits while there are too many.

        Raises:
            NoImageError, BadArchiveError: what was handed on is refused.
        """
        self._put(piece)
        if self._failure is not None:
            raise self._failure

    def result(self) -> Digest | None:
        """The digest of the plain bytes, if it was wanted; after the end was shown.

        Raises:
            NoImageError, BadArchiveError: they are refused.
        """
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return Digest("sha256", self._hasher.hexdigest()) if self._hasher else None

    def _put(self, piece: bytes | None) -> None:
        while self._thread.is_alive():
            try:
                self._shown.put(piece, timeout=0.1)
            except queue.Full:
                continue
            return

    def _work(self) -> None:
        try:
            plain, _ = open_decompressed(_Filled(self._next), on_warning=self._warn)
            _read_layer(_Filled(filler(plain), self._hasher), self._warn)
        except _StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the bytes come from
            self._failure = error

    def _next(self, buffer: memoryview) -> int:
        if not self._piece and not self._ended:
            piece = self._shown.get()
            if piece is None:
                raise _StoppedError
            self._piece, self._ended = memoryview(piece), not piece
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count


class _Filled:
    """A function that fills buffers as a source, hashed where that is wanted."""

    def __init__(self, fill: Callable[[memoryview], int], hasher: Hasher | None = None) -> None:
        self._fill = fill
        self._hasher = hasher

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer`; 0 at the end."""
        count = self._fill(buffer)
        if self._hasher is not None:
            self._hasher.update(buffer[:count])
        return count


def _read_layer(plain: Source, warn: Callable[[str], None]) -> None:
    """Read a layer to the end of its input, and apply it to nothing, to see that this can be done."""
    reader = TarReader(plain, sparse=True, max_entries=MAX_LAYER_ENTRIES, on_warning=warn)
    tree = MergedTree()
    tree.begin_layer()
    found = set()
    for member in reader:
        tree.apply(member)
        found |= _OF_IMAGES & {member.name.removeprefix(b"./")}
    reader.drain()
    if b"manifest.json" in found or len(found) > 1:
        warn("this looks like an image archive; if it is one, import it without --rootfs")
