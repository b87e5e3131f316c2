"""What verbs share: the options before the verb, the store, the reporter, completion of names."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import click

from imgdb.cli.output import check_format
from imgdb.cli.progress import STYLES, make_reporter
from imgdb.errors import ImgdbError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgdb.oci.platform import Platform
    from imgdb.progress import Reporter
    from imgdb.store import ImageStore

_F = TypeVar("_F", bound="Callable[..., Any]")


@dataclass(slots=True)
class Settings:
    """Options before the verb."""

    store: str | None = None
    db: str | None = None
    log_format: str = "text"
    verbose: int = 0
    progress: str | None = None
    quiet: bool = False

    # For errors that escape click's own contexts.
    last: ClassVar[Settings | None] = None

    def __post_init__(self) -> None:
        Settings.last = self

    def open(self, *, create: bool = False) -> ImageStore:
        """The store that the options name; only import and db init make one."""
        from imgdb.store import ImageStore  # noqa: PLC0415 - loads SQLAlchemy, which help does without

        return ImageStore.open(self.store, self.db, create=create)

    def reporter(self, progress: str | None, *, quiet: bool) -> Reporter:
        """The reporter for a verb; its own options win over those before it."""
        style = progress or self.progress or "auto"
        if self.log_format == "json" and style in {"auto", "none"}:
            return make_reporter("json", quiet=True)
        return make_reporter(style, quiet=quiet or self.quiet)


pass_settings = click.make_pass_decorator(Settings)

style_option = click.option("--progress", type=click.Choice(STYLES), help="How progress is shown on stderr.")


def progress_options(verb: _F) -> _F:
    """``--progress`` and ``-q`` behind the verb."""
    quiet = click.option("-q", "--quiet", is_flag=True, help="No progress and no result lines.")
    return style_option(quiet(verb))


def format_option(verb: _F) -> _F:
    """``--format``, checked before any work is done."""
    return click.option(
        "--format",
        "format_",
        default="table",
        metavar="FORMAT",
        callback=lambda _ctx, _param, value: check_format(value),
        help="table, json, jsonl, or a template such as '{{.Name}}'.",
    )(verb)


class PlatformType(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4 only
    """``os[/arch[/variant]]``, several separated by commas."""

    name = "platform"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse; a mistake is a usage error."""
        from imgdb.oci.platform import parse_list  # noqa: PLC0415 - keeps the start quick

        try:
            return parse_list([value])
        except InvalidArgumentError as error:
            self.fail(str(error), param, ctx)


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


def complete_images(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the store, for the shell."""
    settings = ctx.find_object(Settings) or Settings(
        os.environ.get("IMGDB_STORE"), os.environ.get("IMGDB_DB")
    )
    with contextlib.suppress(ImgdbError, OSError), settings.open() as store:
        names = [image.record.display_name for image in store.images() if not image.record.is_dangling]
        return [name for name in names if name.startswith(incomplete)]
    return []


def note(message: str, settings: Settings) -> None:
    """One line on stderr that is no warning."""
    if not settings.quiet:
        click.echo(f"imgdb: {message}", file=sys.stderr)
