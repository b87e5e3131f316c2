"""``images --filter`` and ``--sort``, by docker's rules. Source: specification §8.3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imgdb.cli.times import parse_moment, parse_rfc3339
from imgdb.errors import InvalidArgumentError, NotFoundError
from imgdb.oci.reference import match_reference_filter, parse_normalized

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgdb.describe import ImageSummary

_TRUE = frozenset({"true", "1", "t"})
_FALSE = frozenset({"false", "0", "f"})


def select(images: Sequence[ImageSummary], filters: Sequence[str]) -> list[ImageSummary]:
    """Images that pass: values of one key are alternatives (labels: all), keys all apply.

    Raises:
        InvalidArgumentError: an unknown key or a malformed value.
        NotFoundError: ``before`` or ``since`` names no image.
    """
    by_key: dict[str, list[Callable[[ImageSummary], bool]]] = {}
    for text in filters:
        key, value = _split(text)
        by_key.setdefault(key, []).append(_test(key, value, images))
    every = {"label", "label!"}
    return [
        image
        for image in images
        if all((all if key in every else any)(test(image) for test in tests) for key, tests in by_key.items())
    ]


def _split(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InvalidArgumentError(f"filter {text!r} has no value; write KEY=VALUE")
    return key, value


def _test(key: str, value: str, images: Sequence[ImageSummary]) -> Callable[[ImageSummary], bool]:
    if key == "dangling":
        wanted = _boolean(value)
        return lambda image: image.record.is_dangling == wanted
    if key in {"label", "label!"}:
        return lambda image: _has_label(image, value) == (key == "label")
    if key in {"before", "since"}:
        at = _created(_named(value, images))
        return lambda image: (_created(image) < at) if key == "before" else (_created(image) > at)
    if key == "until":
        moment = parse_moment(value)
        return lambda image: image.record.created_at <= moment
    if key == "reference":
        return lambda image: (
            not image.record.is_dangling
            and match_reference_filter(value, parse_normalized(image.record.name))
        )
    raise InvalidArgumentError(
        f"unknown filter {key!r}; there are dangling, label, label!, before, since, until, reference"
    )


def _boolean(value: str) -> bool:
    if value.lower() not in _TRUE | _FALSE:
        raise InvalidArgumentError(f"dangling={value!r} is neither true nor false")
    return value.lower() in _TRUE


def _has_label(image: ImageSummary, value: str) -> bool:
    name, equals, wanted = value.partition("=")
    return name in image.labels and (not equals or image.labels[name] == wanted)


def _named(value: str, images: Sequence[ImageSummary]) -> ImageSummary:
    wanted = str(parse_normalized(value).tag_or_latest())
    for image in images:
        if image.record.name == wanted or image.record.target.digest.hex.startswith(
            value.removeprefix("sha256:")
        ):
            return image
    raise NotFoundError(f"No such image: {value}")


def _created(image: ImageSummary) -> int:
    return (parse_rfc3339(image.created) if image.created else None) or 0


_SORT_KEYS: dict[str, Callable[[ImageSummary], Any]] = {
    "created": lambda image: (-_created(image), image.record.name),
    "name": lambda image: image.record.name,
    "repository": lambda image: (image.repository or "~", image.tag or ""),
    "tag": lambda image: (image.tag or "~", image.repository or ""),
    "id": lambda image: image.record.target.digest,
    "size": lambda image: (-image.size, image.record.name),
    "last-used": lambda image: (-(image.record.last_used_at or 0), image.record.name),
}


def sort_key(name: str) -> Callable[[ImageSummary], Any]:
    """The key for ``--sort``; newest, largest and last used come first.

    Raises:
        InvalidArgumentError: no such key.
    """
    try:
        return _SORT_KEYS[name]
    except KeyError:
        raise InvalidArgumentError(f"unknown sort key {name!r}; there are {', '.join(_SORT_KEYS)}") from None
