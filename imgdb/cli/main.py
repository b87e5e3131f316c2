"""The program: options before the verb, verbs loaded when they are used, errors as one line.

``--help``, ``--version``, completion and usage errors load no SQLAlchemy: verbs import the
store inside their functions. Source: design §7.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from imgdb import __version__
from imgdb.cli.context import Settings, style_option
from imgdb.cli.printable import json_text, printable
from imgdb.errors import ImgdbError

if TYPE_CHECKING:
    from types import FrameType

_SIGINT_EXIT = 128 + signal.SIGINT
_SIGPIPE_EXIT = 128 + signal.SIGPIPE
_TRACEBACK_FROM = 2

# verb: (module, attribute). Aliases are hidden in help and named beside their verb.
_VERBS = {
    "export": ("archive", "export"),
    "import": ("archive", "import_"),
    "images": ("images", "images"),
    "inspect": ("images", "inspect"),
    "history": ("images", "history"),
    "exists": ("images", "exists"),
    "tag": ("names", "tag"),
    "rm": ("names", "rm"),
    "prune": ("keep", "prune"),
    "gc": ("keep", "gc"),
    "why": ("keep", "why"),
    "df": ("keep", "df"),
    "blob": ("blob", "blob"),
    "events": ("events", "events"),
    "info": ("info", "info"),
    "db": ("db", "db"),
    "completion": ("completion", "completion"),
}
_ALIASES = {"save": "export", "load": "import", "ls": "images", "rmi": "rm", "untag": "rm", "content": "blob"}
_IMAGE_VERBS = (
    "ls",
    "save",
    "load",
    "inspect",
    "history",
    "tag",
    "rm",
    "prune",
    "exists",
    "export",
    "import",
)


class Terminated(BaseException):
    """A signal asked us to stop; unwinding releases holds and removes half-made files."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class LazyGroup(click.Group):
    """Imports a verb's module when the verb is used or its help is listed."""

    def __init__(self, *args: Any, verbs: tuple[str, ...] = (), listed: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names = verbs
        self._listed = listed

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Verbs in the order in which people need them."""
        return list(self._names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The verb, or the verb that an alias stands for."""
        if cmd_name == "image" and "image" in self._names:
            return image
        allowed = self._names if self is image else (*self._names, *_ALIASES)
        if cmd_name not in allowed:
            return None
        module, attribute = _VERBS[_ALIASES.get(cmd_name, cmd_name)]
        return getattr(importlib.import_module(f"imgdb.cli.{module}"), attribute)  # type: ignore[no-any-return]


@click.group(
    cls=LazyGroup,
    verbs=(*_VERBS, "image"),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--store", metavar="DIR", envvar="IMGDB_STORE", help="The store.  [env: IMGDB_STORE]")
@click.option(
    "--db",
    metavar="FILE|URL",
    envvar="IMGDB_DB",
    help="Its database, when it is not in the store.  [env: IMGDB_DB]",
)
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", help="Form of messages on stderr."
)
@click.option("-v", "--verbose", count=True, help="Say more; -vv shows tracebacks.")
@style_option
@click.option("-q", "--quiet", is_flag=True, help="No progress and no result lines.")
@click.version_option(__version__, "--version", message="imgdb %(version)s")
@click.pass_context
def cli(
    ctx: click.Context,
    store: str | None,
    db: str | None,
    log_format: str,
    verbose: int,
    progress: str | None,
    quiet: bool,
) -> None:
    """Keep container images: import archives, export them again, look at what is there.

    export and import are docker's save and load: archives of images, not root file systems.
    """
    ctx.obj = Settings(store, db, log_format, verbose, progress, quiet)


@click.group(cls=LazyGroup, verbs=_IMAGE_VERBS)
def image() -> None:
    """The same verbs, as docker groups them: image ls, image save, ..."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run, print errors as one line, exit with the code that belongs to them."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    settings = Settings()
    try:
        context = cli.make_context("imgdb", sys.argv[1:] if arguments is None else list(arguments))
        with context:
            result = cli.invoke(context)
            settings = context.obj or settings
        sys.stdout.flush()
        code = result if isinstance(result, int) else 0
    except BaseException as error:  # noqa: BLE001 - every end of the program becomes an exit code here
        context_now = click.get_current_context(silent=True)
        settings = _settings(error, context_now) or settings
        code = _report(error, settings)
    _leave(code)


def _settings(error: BaseException, context: click.Context | None) -> Settings | None:
    found = getattr(error, "ctx", None) or context
    return found.find_object(Settings) if found is not None else Settings.last


def _report(error: BaseException, settings: Settings) -> int:
    """Print an error where there is one to print; returns the exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, Terminated):
        return 128 + error.number
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return _SIGINT_EXIT
    if isinstance(error, BrokenPipeError):
        return _SIGPIPE_EXIT
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    code, message = _explain(error)
    if settings.verbose >= _TRACEBACK_FROM:
        import traceback  # noqa: PLC0415 - seldom needed

        traceback.print_exception(error)
    _print_error(message, settings)
    return code


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, ImgdbError):
        return error.exit_code, str(error)
    if isinstance(error, click.ClickException):
        where = getattr(error, "ctx", None)
        hint = f" (see {where.command_path} --help)" if where is not None else ""
        return error.exit_code, error.format_message().rstrip() + hint
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return 1, f"{where}{error.strerror}"
    return (
        1,
        f"internal error: {type(error).__name__}: {error} (run with -vv for the traceback, and report it)",
    )


def _print_error(message: str, settings: Settings) -> None:
    line = f"imgdb: error: {printable(message)}"
    if settings.log_format == "json":
        line = json_text({"level": "error", "message": message}, ascii_only=True)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise Terminated(number)


def _leave(code: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        # The reader is gone: don't let the interpreter complain about it again at its end.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = code or _SIGPIPE_EXIT
    sys.exit(code)
