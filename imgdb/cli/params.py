"""Kinds of values that options have, and what verbs with several arguments do about errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import click

from imgdb.errors import InvalidArgumentError

if TYPE_CHECKING:
    from imgdb.cli.context import Settings
    from imgdb.errors import ImgdbError
    from imgdb.oci.platform import Platform


class PlatformType(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4 only
    """``os[/arch[/variant]]``, several separated by commas; always a tuple."""

    name = "platform"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse; a mistake is a usage error."""
        from imgdb.oci.platform import parse_list  # noqa: PLC0415 - keeps the start quick

        try:
            return parse_list([value])
        except InvalidArgumentError as error:
            self.fail(str(error), param, ctx)


class OnePlatformType(PlatformType):
    """``os[/arch[/variant]]``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse; more than one is a usage error."""
        platforms = super().convert(value, param, ctx)
        if len(platforms) != 1:
            self.fail(f"{value!r} names several platforms; give one", param, ctx)
        return platforms[0]


def flatten(platforms: tuple[tuple[Platform, ...], ...]) -> tuple[Platform, ...]:
    """What a repeatable option of comma lists gives, each once."""
    return tuple(dict.fromkeys(platform for group in platforms for platform in group))


class SizeType(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4 only
    """Bytes, with a decimal or binary unit: 1000, 10MB, 2GiB."""

    name = "size"
    _UNITS: ClassVar[dict[str, int]] = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12} | {
        "ki": 2**10,
        "mi": 2**20,
        "gi": 2**30,
        "ti": 2**40,
    }

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse; a mistake is a usage error."""
        text = str(value).strip().lower()
        text = text if text.isdigit() else text.removesuffix("b")
        digits = text.rstrip("kmgti")
        unit = text[len(digits) :]
        if not digits.isascii() or not digits.isdigit() or unit not in self._UNITS:
            self.fail(f"{value!r} is no size; write 1000000, 10MB or 2GiB", param, ctx)
        return int(digits) * self._UNITS[unit]


def read_labels(texts: tuple[str, ...]) -> dict[str, str]:
    """As ctr reads them: a name alone is true."""
    pairs = (text.partition("=") for text in texts)
    return {key: value if equals else "true" for key, equals, value in pairs}


class Failures:
    """Errors of single arguments: told at once, while the others are still worked on, as docker does.

    Attributes:
        code: of the first error; 0 when all went well.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.code = 0

    def add(self, error: ImgdbError) -> None:
        """Tell an error."""
        self._settings.tell(error, str(error))
        self.code = self.code or error.exit_code

    def leave(self) -> NoReturn:
        """End the program with the code."""
        raise click.exceptions.Exit(self.code)
