"""The first step of an import: one pass over the archive, every byte hashed once.

Bodies go into the import's private ingest, or are only hashed when the store has them: a
member whose path claims a digest is first listed in the hold and then looked for. A file that
no row vouches for counts as absent: its name says what its bytes should be, and no more. Nothing
here trusts a name: what a member is called and what its bytes are stay separate until the
graph asks for a digest. Source: design §4.1, specification §6.2.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from imgdb.archive.reader import RESERVED, ArchiveSource, Entry, open_source
from imgdb.archive.tar import MemberKind
from imgdb.errors import BadArchiveError, InvalidArgumentError
from imgdb.oci.digest import Digest
from imgdb.oci.spec import INDEX_JSON_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imgdb.content.store import Hold, Ingest, Staged
    from imgdb.progress import Reporter

_MAX_HOPS = 8
# A dry run keeps what may be a document and only hashes the rest.
_DRY_RUN_KEEP = INDEX_JSON_LIMIT


@dataclass(slots=True)
class Contents:
    """What an archive holds.

    Attributes:
        documents: bytes of oci-layout, index.json, manifest.json.
        files: canonical name to hashed bytes.
        links: canonical name to canonical target; None where the target is outside.
        blobs: digest to hashed bytes, only for bytes that really have that digest.
        liars: digests that a path claimed and its bytes do not have, with that path.
        outside: a name that tries to leave the archive, if there is one.
        names: canonical names of everything that is neither file nor link.
    """

    documents: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, Staged] = field(default_factory=dict)
    links: dict[str, str | None] = field(default_factory=dict)
    blobs: dict[Digest, Staged] = field(default_factory=dict)
    liars: dict[Digest, str] = field(default_factory=dict)
    outside: str | None = None
    names: set[str] = field(default_factory=set)

    def resolve(self, path: str) -> Staged:
        """The bytes under a name, following links inside the archive.

        Raises:
            BadArchiveError: absent, outside, or more than a few links away.
        """
        name: str | None = path
        for _ in range(_MAX_HOPS):
            if name is None:
                raise BadArchiveError(f"{path}: its link leads out of the archive")
            if name in self.files:
                return self.files[name]
            if name not in self.links:
                raise BadArchiveError(f"{path} is not in the archive")
            name = self.links[name]
        raise BadArchiveError(f"{path}: too many links, or links in a circle")


@contextmanager
def reading(source: str | BinaryIO, reporter: Reporter) -> Iterator[ArchiveSource]:
    """Open an archive in a phase of its own; what opening reads counts as well."""
    early, begun = 0, False

    def advance(count: int) -> None:
        nonlocal early
        if begun:
            reporter.advance(count)
        else:
            early += count

    with (
        open_source(source, advance=advance, warn=reporter.warn) as entries,
        reporter.phase("read", entries.total),
    ):
        begun = True
        reporter.advance(early)
        yield entries


def take_in(
    source: ArchiveSource,
    ingest: Ingest,
    hold: Hold,
    *,
    trusted: Callable[[Digest, int], bool],
    max_size: int | None,
    dry_run: bool,
    reporter: Reporter,
) -> Contents:
    """Read a whole archive.

    Args:
        source: the entries.
        ingest: takes the bodies.
        hold: lists claimed digests before they are looked for.
        trusted: whether the store has that many bytes of a digest and vouches for them.
        max_size: bytes of bodies allowed, None for no limit.
        dry_run: keep only what may be a document.
        reporter: told about each file.

    Raises:
        BadArchiveError: malformed, ambiguous, or larger than `max_size`.
    """
    contents = Contents()
    taken = 0
    for entry in source:
        if entry.kind is MemberKind.FILE:
            taken += entry.size
            if max_size is not None and taken > max_size:
                raise BadArchiveError(f"the archive holds more than --max-size {max_size} bytes")
        if entry.name is None:
            contents.outside = contents.outside or entry.raw
        elif entry.name in RESERVED:
            _take_document(entry, source, contents)
        elif entry.kind is MemberKind.FILE:
            reporter.blob(entry.name, entry.size)
            _take_file(entry, source, contents, ingest, hold, trusted, dry_run=dry_run)
        elif entry.kind in {MemberKind.SYMLINK, MemberKind.HARDLINK}:
            contents.links[entry.name] = entry.target
        else:
            contents.names.add(entry.name)
    return contents


def claimed_digest(name: str) -> Digest | None:
    """The digest that the path of a blob in an OCI layout claims."""
    directory, _, hexdigits = name.rpartition("/")
    if os.path.dirname(directory) != "blobs":
        return None
    try:
        return Digest.parse(f"{os.path.basename(directory)}:{hexdigits}")
    except InvalidArgumentError:
        return None


def _take_document(entry: Entry, source: ArchiveSource, contents: Contents) -> None:
    name = entry.name or ""
    if entry.kind is not MemberKind.FILE:
        raise BadArchiveError(f"{name} is not a regular file")
    if name in contents.documents:
        raise BadArchiveError(f"{name} is in the archive twice")
    if entry.size > INDEX_JSON_LIMIT:
        raise BadArchiveError(f"{name} is larger than {INDEX_JSON_LIMIT} bytes")
    buffer = bytearray(entry.size)
    view = memoryview(buffer)
    while view:
        count = source.readinto(view)
        if not count:
            raise BadArchiveError(f"{name} ends early")
        view = view[count:]
    contents.documents[name] = bytes(buffer)


def _take_file(
    entry: Entry,
    source: ArchiveSource,
    contents: Contents,
    ingest: Ingest,
    hold: Hold,
    trusted: Callable[[Digest, int], bool],
    *,
    dry_run: bool,
) -> None:
    name = entry.name or ""
    claimed = claimed_digest(name)
    here = claimed is not None and _is_here(claimed, entry.size, hold, trusted)
    staged = ingest.stage(
        source,
        entry.size,
        algorithm=claimed.algorithm if claimed else "sha256",
        keep=not here and (not dry_run or entry.size <= _DRY_RUN_KEEP),
    )
    if claimed is not None and staged.digest != claimed:
        contents.liars[claimed] = name
        if here:
            # Not kept because its claim was believed: these bytes are lost, and nobody may need them.
            return
    first = contents.blobs.setdefault(staged.digest, staged)
    if first is not staged:
        ingest.discard(staged)
    contents.files[name] = first


def _is_here(digest: Digest, size: int, hold: Hold, trusted: Callable[[Digest, int], bool]) -> bool:
    hold.add([digest])
    return trusted(digest, size)
