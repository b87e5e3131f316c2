"""What verbs share: the settings, which options before and behind the verb fill in, and the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imgdb.cli.report import Messages
from imgdb.errors import InvalidArgumentError
from imgdb.places import default_root

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgdb.progress import Reporter
    from imgdb.store import ImageStore

_F = TypeVar("_F", bound="Callable[..., Any]")

_TRACE_FROM = 2
_STYLES = ("auto", "plain", "json", "none")


@dataclass(slots=True)
class Settings:
    """Options of the program.

    Attributes:
        store, db: as given; None for the default.
        log_format: form of the messages on standard error.
        verbose: how often ``-v`` was given.
        progress: style of progress; None for the default one.
        quiet: neither progress nor notes; results, warnings and errors stay.
        least_code: lowest exit code of an error, for verbs to which 1 is an answer.
    """

    store: str | None = None
    db: str | None = None
    log_format: str = "text"
    verbose: int = 0
    progress: str | None = None
    quiet: bool = False
    least_code: int = 1

    @property
    def messages(self) -> Messages:
        """Where errors, warnings and notes go."""
        return Messages(self.log_format)

    @property
    def root(self) -> str:
        """The directory of the store, whether it is there or not."""
        return self.store or default_root()

    def tell(self, error: BaseException, message: str) -> None:
        """Print an error, with a traceback for those who asked for it."""
        self.messages.error(message, _trace(error) if self.verbose >= _TRACE_FROM else "")

    def open(self, *, create: bool = False) -> ImageStore:
        """The store that the options name; only import and db init make one."""
        self.check()
        from imgdb.cli.logs import forward  # noqa: PLC0415 - loads logging
        from imgdb.store import ImageStore  # noqa: PLC0415 - loads SQLAlchemy, which help does without

        click.get_current_context().call_on_close(forward(self.messages, self.verbose))
        store = ImageStore.open(self.store, self.db, create=create)
        if self.verbose:
            note(f"store {store.root}", self)
        return store

    def check(self) -> None:
        """Refuse empty values: an unset variable would mean the current directory.

        Raises:
            InvalidArgumentError: one is.
        """
        for option, value in (("--store", self.store), ("--db", self.db)):
            if value == "":
                raise InvalidArgumentError(f"{option} is empty; leave it out for the default")

    def reporter(self) -> Reporter:
        """The reporter for a walk."""
        from imgdb.cli.progress import make_reporter  # noqa: PLC0415 - not needed for help

        style = self.progress or "auto"
        if self.log_format == "json" and style in {"auto", "none"}:
            return make_reporter("json", quiet=True)
        return make_reporter(style, quiet=self.quiet)


def _trace(error: BaseException) -> str:
    import traceback  # noqa: PLC0415 - seldom needed

    return "".join(traceback.format_exception(error))


def note(message: str, settings: Settings) -> None:
    """Say something that is neither a result nor a warning."""
    if not settings.quiet:
        settings.messages.note(message)


pass_settings = click.make_pass_decorator(Settings)


def setting(*names: str, **attributes: Any) -> Callable[[Any], Any]:
    """An option that goes into the settings, under its name, instead of to the verb."""
    return click.option(*names, expose_value=False, callback=_keep, **attributes)


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    settings = ctx.find_object(Settings)
    # An option that was not given must not undo the same one before the verb.
    if settings is not None and param.name and (value or value == ""):
        setattr(settings, param.name, value)
    return value


def style_options(*, hidden: bool = False) -> list[click.Option]:
    """``--progress`` and ``-q``, which may stand before or behind a verb."""
    return [
        click.Option(
            ["--progress"],
            type=click.Choice(_STYLES),
            metavar="STYLE",
            expose_value=False,
            callback=_keep,
            hidden=hidden,
            help="How to show progress on standard error: auto, plain, json or none.",
        ),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_keep,
            hidden=hidden,
            help="Neither progress nor notes.",
        ),
    ]


def format_option(verb: _F) -> _F:
    """``--format`` of a verb that lists things with names."""
    return format_option_of("table, json, jsonl, or a template such as '{{.Name}}'.")(verb)


def format_option_of(
    help_text: str, *names: str, default: str = "table", table: bool = True
) -> Callable[[_F], _F]:
    """``--format``, checked before any work is done.

    Args:
        help_text: for the option, with a template that fits.
        names: besides ``--format``.
        default: when it is not given.
        table: whether the verb has one.
    """

    def check(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
        if value == default:
            return value
        from imgdb.cli.output import check_format  # noqa: PLC0415 - the default needs no parser

        if not table and check_format(value).strip().split(" ")[0] in {"", "table"}:
            raise InvalidArgumentError("there is no table of this; use json, jsonl or a template")
        return check_format(value)

    return click.option(
        *names, "--format", "format_", default=default, metavar="FORMAT", callback=check, help=help_text
    )


def complete_images(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the store, for the shell."""
    from imgdb.cli.completion import image_names  # noqa: PLC0415 - needed for completion only

    settings: Settings = ctx.find_root().obj
    return [name for name in image_names(settings) if name.startswith(incomplete)]
