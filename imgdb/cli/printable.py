"""Text that is safe to show, and numbers as docker shows them.

Names, labels, annotations and member paths come from other people's archives. Printed raw,
an escape sequence could move the cursor, rename the window or hide a warning, and a bidi
control could make one name look like another (reliability D17, D18). So whatever is not
plainly printable is shown as the escape that a Python or JSON string would have.
Pure: no I/O.
"""

from __future__ import annotations

import binascii
import json
import re
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
_THOUSAND = 1000
_HOUR, _DAY = 3600, 24
_BEYOND_PLAIN_ASCII = re.compile(r"[^\n\x20-\x7e]")


def printable(text: str | bytes) -> str:
    r"""Text with everything escaped that could steer a terminal or deceive a reader.

    Escaped are control characters (C0, DEL, C1), format characters (bidi, zero width), line
    and paragraph separators, spaces other than U+0020, lone surrogates, and code points that
    are private or unassigned: as ``\n``, ``\x1b``, ``\u202e`` or ``\U000e0001``. All other
    Unicode stays, and so does the backslash: escaping twice changes nothing, and the result
    is for eyes, not for parsing.

    Args:
        text: anything; bytes are read as UTF-8, and those that are none become ``\xff``.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def json_text(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    r"""JSON that may be printed to a terminal; parsed again it is the same value.

    Args:
        value: what `json.dumps` takes; bytes become base64, as in Go's JSON.
        indent: spaces per level; None puts everything on one line, without blanks.
        ascii_only: escape ordinary Unicode too, for streams that can't carry it.
    """
    colon = ":" if indent is None else ": "
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent, separators=(",", colon), default=_base64)
    return _BEYOND_PLAIN_ASCII.sub(_json_escape, text)


def _base64(value: object) -> str:
    if isinstance(value, bytes):
        return binascii.b2a_base64(value, newline=False).decode("ascii")
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _json_escape(match: re.Match[str]) -> str:
    char = match[0]
    return char if char.isprintable() else json.dumps(char)[1:-1]


def display_width(text: str) -> int:
    """Columns that printable text takes on a terminal: 2 for wide letters, 0 for combining marks."""
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def human_size(size: float) -> str:
    """Bytes as docker prints them: three significant digits, decimal units (``1.23kB``, ``810MB``).

    Source: go-units `HumanSizeWithPrecision(size, 3)`, except that what rounds to 1000 takes
    the next unit, where docker prints ``1e+03kB``.
    """
    unit = 0
    while float(f"{size:.3g}") >= _THOUSAND and unit < len(_UNITS) - 1:
        size /= _THOUSAND
        unit += 1
    return f"{size:.3g}{_UNITS[unit]}"


def human_duration(seconds: float, suffix: str = " ago") -> str:
    """A span of time as docker prints it: ``About a minute ago``, ``2 weeks ago``.

    Source: go-units `HumanDuration`.

    Args:
        seconds: the span; a negative one (a clock that runs behind) is less than a second.
        suffix: what follows; empty for a span that is not an age.
    """
    return _rough_duration(seconds) + suffix


def _rough_duration(seconds: float) -> str:
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:  # noqa: PLR2004 - seconds in a minute
        whole = int(seconds)
        return f"{whole} second{'s' if whole > 1 else ''}"
    if seconds < _HOUR:
        minutes = int(seconds / 60)
        return f"{minutes} minutes" if minutes > 1 else "About a minute"
    hours = int(seconds / _HOUR + 0.5)
    return f"{_days(hours)}" if hours > 1 else "About an hour"


def _days(hours: int) -> str:
    """The coarsest unit of which there are two, with go-units' bounds."""
    for unit, days in (("years", 365), ("months", 30), ("weeks", 7), ("days", 1)):
        if hours >= 2 * _DAY * days:
            return f"{hours // _DAY // days} {unit}"
    return f"{hours} hours"


def rfc3339(us: int | None) -> str | None:
    """Microseconds since the epoch as ``2026-11-24T04:15:00.123456Z``; None stays None.

    RFC 3339 knows four-digit years only, so a time beyond them becomes the last (or the
    first) instant that can be written.
    """
    if us is None:
        return None
    try:
        when = _EPOCH + timedelta(microseconds=us)
    except OverflowError:
        when = datetime.max if us > 0 else datetime.min  # noqa: DTZ901 - only written, never compared
    return when.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
