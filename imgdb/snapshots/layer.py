"""One layer: from its bytes to a directory in overlay form, verified to the last byte.

Source: specification §7.3, design §4.9.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgdb.archive.flatten import MAX_LAYER_ENTRIES
from imgdb.archive.pax import show
from imgdb.archive.stream import Stream, ignore
from imgdb.archive.tar import TarReader
from imgdb.errors import BadArchiveError, NoImageError
from imgdb.snapshots.extract import Extractor
from imgdb.snapshots.piped import Piped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgdb.archive.stream import Source
    from imgdb.archive.tar import Member
    from imgdb.oci.digest import Digest
    from imgdb.snapshots.attributes import Skipped

MAX_BYTES = 64 << 30


@dataclass(frozen=True, slots=True)
class Applied:
    """A layer that became a directory.

    Attributes:
        diff_id: of the plain tar, to its last byte.
        size: bytes of the plain tar.
        hides_all: nothing of the layers below is seen; the stack begins here.
        skipped: what this process had no right to make, when nobody took it as it came.
    """

    diff_id: Digest
    size: int
    hides_all: bool
    skipped: tuple[Skipped, ...] = field(default=())


def apply_layer(
    source: Source,
    directory_fd: int,
    lowers: Sequence[int] = (),
    *,
    algorithm: str = "sha256",
    max_bytes: int = MAX_BYTES,
    on_warning: Callable[[str], None] = ignore,
    on_skip: Callable[[Skipped], None] | None = None,
) -> Applied:
    """Unpack a layer.

    Args:
        source: its bytes, compressed or not; the bytes tell, not their media type.
        directory_fd: an empty directory that only this process sees. After an error it holds
            whatever was made until then.
        lowers: directories of the layers below, topmost first; they are only read.
        algorithm: of the diff ID.
        max_bytes: of all files together.
        on_warning: called with one line for what is accepted and left out.
        on_skip: called for each entry that this process has no right to make completely.

    Raises:
        BadArchiveError: no tar, a damaged one, or one that no layer may be.
        OSError: the disk is full, or fails.
    """
    skipped: list[Skipped] = []
    with Piped(source, algorithm, on_warning) as plain:
        extractor = Extractor(
            directory_fd,
            lowers,
            on_warning=on_warning,
            on_skip=skipped.append if on_skip is None else on_skip,
            max_bytes=max_bytes,
            max_entries=MAX_LAYER_ENTRIES,
        )
        try:
            _extract(Stream(plain), extractor, on_warning)
            extractor.finish()
        finally:
            extractor.close()
        return Applied(plain.digest(), plain.count, extractor.hides_all, tuple(skipped))


def _extract(stream: Stream, extractor: Extractor, on_warning: Callable[[str], None]) -> None:
    if not stream.peek(1):
        return  # nothing at all is the empty layer of some tools
    reader = TarReader(stream, max_entries=MAX_LAYER_ENTRIES, sparse=True, on_warning=on_warning)
    try:
        for member in reader:
            _apply(extractor, member, reader)
        reader.drain()
    except NoImageError:
        raise BadArchiveError("the layer is no tar archive") from None


def _apply(extractor: Extractor, member: Member, reader: TarReader) -> None:
    """Apply a member; what goes wrong is told with its name."""
    try:
        extractor.apply(member, reader)
    except BadArchiveError as error:
        name = show(member.name)
        if name in str(error):
            raise
        raise BadArchiveError(f"{name}: {error}") from None
