"""JSON as strangers send it and as Go writes it.

Readers of container images are mostly written in Go. Where Go and Python would read one
text differently (duplicate keys, NaN, a BOM, lone surrogates) two tools would see two
images, so `parse` refuses. `dump` gives the bytes that Go's encoder would give, so that
documents made here equal those that docker or containerd make.
Source: reliability §2d (D1-D5), specification §2.4 "JSON bytes".
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from imgdb.errors import BadArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_DEPTH = 64

# Go's encoder escapes these so that JSON can stand inside HTML and JavaScript.
_GO_ESCAPES = {
    ord("<"): "\\u003c",
    ord(">"): "\\u003e",
    ord("&"): "\\u0026",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


def parse(raw: bytes, *, limit: int, what: str) -> Any:
    """Parse UTF-8 JSON strictly.

    Args:
        raw: the text.
        limit: bytes allowed; checked before anything is allocated.
        what: how to call the text in errors.

    Raises:
        BadArchiveError: too long, not UTF-8, not JSON, duplicate keys, NaN or Infinity, nested
            deeper than `MAX_DEPTH`, or with text that is no Unicode.
    """
    if len(raw) > limit:
        raise BadArchiveError(f"{what} is larger than {limit} bytes")
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constants
        )
    except UnicodeDecodeError:
        raise BadArchiveError(f"{what} is not UTF-8 text") from None
    except RecursionError:
        raise BadArchiveError(f"{what} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise BadArchiveError(f"{what} is not valid JSON: {error}") from None
    _check_depth(value, what)
    if b"\\u" in raw:
        _check_surrogates(value, what)
    return value


def dump(value: Any) -> bytes:
    """Compact JSON as Go's encoder writes it; keys keep the order of the dicts given."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(_GO_ESCAPES).encode("utf-8")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} appears twice")
    return result


def _no_constants(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _check_depth(value: Any, what: str) -> None:
    level: Iterable[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [child for node in level for child in _nested(node)]
        if not level:
            return
    raise BadArchiveError(f"{what} is nested deeper than {MAX_DEPTH} levels")


def _nested(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return [child for child in node.values() if isinstance(child, dict | list)]
    if isinstance(node, list):
        return [child for child in node if isinstance(child, dict | list)]
    return ()


def _check_surrogates(value: Any, what: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise BadArchiveError(f"{what} has an escape that is no Unicode character") from None
