"""What templates do with values: look into them, show them, call functions on them.

Values are what JSON has: None, booleans, numbers, text, lists and maps. Pure: no I/O.
Source: Go's text/template and the functions that docker/cli `templates` adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from imgdb.cli.printable import json_text, printable
from imgdb.errors import InvalidArgumentError

_MAX_SHOWN_FIELDS = 30


class Shown(str):
    """Text that is ready for the terminal and must not be escaped again."""

    __slots__ = ()


def shown(value: object) -> str:
    """The value as text for a terminal."""
    return value if isinstance(value, Shown) else printable(value_text(value))


def value_text(value: object, depth: int = 32) -> str:
    """The value as Go would print it (``true``, ``[a b]``, ``map[k:v]``); None is empty.

    Not yet escaped for a terminal: `shown` does that.

    Args:
        value: a value as JSON has them.
        depth: levels of lists and maps to show; what is below becomes ``…``.
    """
    match value:
        case Mapping() | list() | tuple() if depth == 0:
            return "…"
        case Mapping():
            pairs = (f"{key}:{value_text(value[key], depth - 1)}" for key in sorted(value))
            return f"map[{' '.join(pairs)}]"
        case list() | tuple():
            return f"[{' '.join(value_text(item, depth - 1) for item in value)}]"
    return _scalar_text(value)


def _scalar_text(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case bytes():
            return printable(value)
    return str(value)


def field(value: object, name: str) -> object:
    """A map's value by its exact key, else by its key whatever the case; a field of None is None.

    Raises:
        InvalidArgumentError: there is no such key, or the value is no map.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(f"template: {_kind(value)} has no field .{name}")
    if name in value:
        return value[name]
    lowered = name.lower()
    for key in value:
        if key.lower() == lowered:
            return value[key]
    known = ", ".join(f".{key}" for key in list(value)[:_MAX_SHOWN_FIELDS]) or "none"
    raise InvalidArgumentError(f"template: there is no field .{name}; fields here: {known}")


def items(value: object) -> list[Any]:
    """What range visits: a list's items, or a map's values in the order of its keys.

    Raises:
        InvalidArgumentError: the value is neither.
    """
    if isinstance(value, Mapping):
        return [value[key] for key in sorted(value)]
    if isinstance(value, list | tuple):
        return list(value)
    raise InvalidArgumentError(f"template: range needs a list or a map, not {_kind(value)}")


def _json(value: object) -> str:
    return Shown(json_text(dict(value) if isinstance(value, Mapping) else value))


def _lower(value: object) -> str:
    return value_text(value).lower()


def _upper(value: object) -> str:
    return value_text(value).upper()


def _len(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))  # Go counts bytes
    if isinstance(value, Mapping | list | tuple):
        return len(value)
    raise InvalidArgumentError(f"template: len needs text, a list or a map, not {_kind(value)}")


def _join(value: object, separator: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, list | tuple):
        raise InvalidArgumentError(f"template: join needs a list, not {_kind(value)}")
    return Shown(str(separator).join(shown(item) for item in value))


def _println(*values: object) -> str:
    return Shown(" ".join(shown(value) for value in values) + "\n")


def _index(value: object, *keys: object) -> object:
    for key in keys:
        value = _index_once(value, key)
    return value


def _index_once(value: object, key: object) -> object:
    """A missing key gives nothing, like Go's zero value; a missing position is an error."""
    if value is None:
        return None
    if isinstance(value, Mapping) and isinstance(key, str):
        return value.get(key)
    if not isinstance(value, list | tuple) or not isinstance(key, int):
        raise InvalidArgumentError(f"template: index can't look up {key!r} in {_kind(value)}")
    if not 0 <= key < len(value):
        raise InvalidArgumentError(f"template: index {key} is out of range, the length is {len(value)}")
    return value[key]


def _kind(value: object) -> str:
    match value:
        case str():
            return "text"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case Mapping():
            return "a map"
        case list() | tuple():
            return "a list"
    return "this value"


class Function(NamedTuple):
    """A function of the subset and how many arguments it takes."""

    least: int
    most: int
    apply: Callable[..., object]


_MANY = 100

FUNCTIONS = {
    "json": Function(1, 1, _json),
    "lower": Function(1, 1, _lower),
    "upper": Function(1, 1, _upper),
    "len": Function(1, 1, _len),
    "join": Function(2, 2, _join),
    "println": Function(0, _MANY, _println),
    "index": Function(2, _MANY, _index),
}
