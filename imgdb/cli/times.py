"""Times that users type or configs hold, as microseconds since the epoch."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from imgdb.errors import InvalidArgumentError

_UNITS = {"us": 1, "ms": 1000, "s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6, "d": 86400 * 10**6}
_PART = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)")
_FRACTION = re.compile(r"(\.\d{1,6})\d*")


def parse_rfc3339(text: str) -> int | None:
    """A config's ``created``; None when it is no time. Go writes nanoseconds, Python reads six digits."""
    try:
        moment = datetime.fromisoformat(_FRACTION.sub(r"\1", text.strip()))
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 10**6)


def parse_duration(text: str) -> int:
    """A Go duration such as ``168h`` or ``1h30m``, or days such as ``7d``; in microseconds.

    Raises:
        InvalidArgumentError: it is none.
    """
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidArgumentError(f"{text!r} is no duration; write 90m, 168h or 7d")
    return round(sum(float(number) * _UNITS[unit] for number, unit in parts))


def parse_moment(text: str) -> int:
    """A point in time: a duration ago, an RFC 3339 time or date, or seconds since the epoch.

    Raises:
        InvalidArgumentError: it is none.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return round(float(text) * 10**6)
    moment = parse_rfc3339(text)
    if moment is not None:
        return moment
    try:
        return time.time_ns() // 1000 - parse_duration(text)
    except InvalidArgumentError:
        raise InvalidArgumentError(
            f"{text!r} is no time; write 24h, 2026-01-31 or 2026-01-31T12:00:00Z"
        ) from None
