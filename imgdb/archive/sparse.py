"""Maps of sparse files: where in a file each piece of its stored data belongs. PURE.

GNU tar has four forms: the ``S`` header with further blocks behind it (old GNU), and in PAX the
versions 0.0 (two records for each region), 0.1 (one record with all of them) and 1.0 (lines in
front of the data). Whatever the form, a map says the same, and is held to the same rules.
Source: GNU tar manual, appendix "Sparse Formats"; reliability B10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgdb.archive.pax import SPARSE, MalformedError, decimal
from imgdb.archive.tarheader import BLOCK, GNU_MAGIC, SPARSE_FILE, number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_REGIONS = 4096
MAX_REALSIZE = 1 << 44
"""Bytes of a sparse file written out: 16 TiB, as long as a file of ext4 can be."""

Regions = tuple[tuple[int, int], ...]
Records = list[tuple[bytes, bytes]]

_ENTRY, _FIELD = 24, 12
_IN_HEADER, _IN_BLOCK = 4, 21
_AT, _MORE, _REALSIZE = 386, 482, 483
_MORE_IN_BLOCK = 504
_LONGEST_LINE = 21  # the digits of a 64-bit number and a newline
_LONGEST_MAP = (1 + 2 * MAX_REGIONS) * _LONGEST_LINE
_PAIR = (b"offset", b"numbytes")
_VERSION_0_0 = ((None, None), (b"0", b"0"))
_VERSION_0_1 = ((None, None), (b"0", b"1"))


@dataclass(frozen=True, slots=True)
class Holes:
    """A sparse file's map, checked.

    Attributes:
        regions: offset and length of each piece of data, ascending and disjoint; a length may be 0.
        realsize: length of the file.
        stored: bytes of data that follow in the archive: the sum of the lengths.
    """

    regions: Regions
    realsize: int
    stored: int


def read_map(block: bytes, records: Records, said: int, take: Callable[[], bytes]) -> Holes:
    """Read a sparse file's map, and be left where its data begins.

    Args:
        block: the member's own header.
        records: its ``GNU.sparse.`` records in order, without that prefix.
        said: bytes that follow the headers, by what these say; of version 1.0 with the map.
        take: gives the next block of the archive.

    Raises:
        MalformedError: two forms at once, more than 4096 regions, or regions that overlap, go
            backwards, leave the file, or don't add up to what is stored.
    """
    if block[156] == SPARSE_FILE:
        if records:
            raise MalformedError("sparse file in two forms at once")
        if block[257:265] != GNU_MAGIC:
            raise MalformedError("sparse file of an unknown form")
        return _checked(*_old_gnu(block, take), said)
    pairs, fields = _sorted_out(records)
    version = fields.get(b"major"), fields.get(b"minor")
    keys = fields.keys() - {b"name", b"major", b"minor"}
    if version == (b"1", b"0") and keys == {b"realsize"} and not pairs:
        regions, length = _from_lines(said, take)
        return _checked(regions, _decimal(b"realsize", fields), said - length)
    if version in _VERSION_0_1 and keys == {b"size", b"numblocks", b"map"} and not pairs:
        regions = _paired(b"map", fields[b"map"].split(b",") if fields[b"map"] else [])
    elif version in _VERSION_0_0 and keys == {b"size", b"numblocks"}:
        regions = _alternating(pairs)
    else:
        raise MalformedError("sparse file of an unknown form")
    if len(regions) != _decimal(b"numblocks", fields):
        raise MalformedError("sparse file with another number of regions than it says")
    return _checked(regions, _decimal(b"size", fields), said)


def _checked(regions: Sequence[tuple[int, int]], realsize: int, stored: int) -> Holes:
    if len(regions) > MAX_REGIONS:
        raise MalformedError(f"sparse file with more than {MAX_REGIONS} regions")
    if realsize > MAX_REALSIZE:
        raise MalformedError(f"sparse file of {realsize} bytes, more than {MAX_REALSIZE}")
    ends = [offset + length for offset, length in regions]
    if any(offset < end for end, (offset, _) in zip(ends, regions[1:], strict=False)):
        raise MalformedError("sparse file whose regions overlap or go backwards")
    if ends and ends[-1] > realsize:
        raise MalformedError(f"sparse file of {realsize} bytes with data up to {ends[-1]}")
    total = sum(length for _, length in regions)
    if total != stored:
        raise MalformedError(f"sparse file with {stored} bytes stored and {total} in its map")
    return Holes(tuple(regions), realsize, stored)


def _old_gnu(block: bytes, take: Callable[[], bytes]) -> tuple[list[tuple[int, int]], int]:
    """The map in an ``S`` header and the blocks that continue it; these don't count as its size."""
    realsize = number(block[_REALSIZE : _REALSIZE + _FIELD], "real size")
    regions = _entries(block[_AT : _AT + _IN_HEADER * _ENTRY])
    expected, more = _IN_HEADER, block[_MORE]
    while more and len(regions) <= MAX_REGIONS:
        # Some parsers go on behind a map that has ended, and some don't.
        if len(regions) != expected:
            raise MalformedError("sparse map that goes on behind its end")
        block = take()
        regions += _entries(block[: _IN_BLOCK * _ENTRY])
        expected, more = expected + _IN_BLOCK, block[_MORE_IN_BLOCK]
    return regions, realsize


def _entries(raw: bytes) -> list[tuple[int, int]]:
    """Pairs of number fields up to the first empty one, behind which there is nothing."""
    used = raw.rstrip(b"\0")
    entries = [raw[at : at + _ENTRY] for at in range(0, len(used), _ENTRY)]
    return [(_field(entry[:_FIELD]), _field(entry[_FIELD:])) for entry in entries]


def _field(raw: bytes) -> int:
    if not raw.strip(b" \0"):
        raise MalformedError("sparse map with an empty field")
    return number(raw, "sparse map")


def _from_lines(said: int, take: Callable[[], bytes]) -> tuple[list[tuple[int, int]], int]:
    """The map in front of the data, with NULs up to the end of a block; how long it is, too."""
    text, lines, wanted = b"", 0, 1
    while lines < wanted:
        if len(text) + BLOCK > min(said, _LONGEST_MAP + BLOCK):
            raise MalformedError("sparse map that does not end")
        block = take()
        if not text:
            wanted += 2 * decimal(SPARSE + b"numblocks", block.partition(b"\n")[0])
        text += block
        lines += block.count(b"\n")
    *numbers, padding = text.split(b"\n", wanted)
    if padding.strip(b"\0"):
        raise MalformedError("sparse map that goes on behind its end")
    return _paired(b"map", numbers[1:]), len(text)


def _sorted_out(records: Records) -> tuple[Records, dict[bytes, bytes]]:
    """The records of version 0.0, which are repeated for each region, and all others."""
    pairs = [(key, value) for key, value in records if key in _PAIR]
    others = [(key, value) for key, value in records if key not in _PAIR]
    fields = dict(others)
    if len(fields) != len(others):
        raise MalformedError("record of a sparse file given twice")
    return pairs, fields


def _alternating(pairs: Records) -> list[tuple[int, int]]:
    if [key for key, _ in pairs] != list(_PAIR) * (len(pairs) // 2):
        raise MalformedError("sparse map whose offsets and lengths don't alternate")
    return _paired(b"offset or numbytes", [value for _, value in pairs])


def _paired(what: bytes, values: Sequence[bytes]) -> list[tuple[int, int]]:
    numbers = [decimal(SPARSE + what, value) for value in values]
    if len(numbers) % 2:
        raise MalformedError("sparse map with an offset without a length")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _decimal(key: bytes, fields: dict[bytes, bytes]) -> int:
    return decimal(SPARSE + key, fields[key])
