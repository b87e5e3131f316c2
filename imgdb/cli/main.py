"""The program's frame: signals, standard descriptors, and every end made an exit code and one line.

``--help``, ``--version``, completion and usage errors load no SQLAlchemy. Source: design §7.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from imgdb.cli import streams
from imgdb.cli.context import Settings
from imgdb.cli.root import cli
from imgdb.errors import ImgdbError

if TYPE_CHECKING:
    from types import FrameType

COMPLETE = "_IMGDB_COMPLETE"

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SIGNALLED = 128
_SIGPIPE_EXIT = _SIGNALLED + signal.SIGPIPE


class Terminated(BaseException):
    """A signal asked us to stop; unwinding releases holds and removes half-made files."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = _SIGNALLED + number


def main(arguments: list[str] | None = None) -> NoReturn:
    """Be the program ``imgdb``; with arguments only run them, and leave this process as it is."""
    if arguments is not None:
        sys.exit(run(arguments))
    streams.complete()
    try:
        _catch_signals()
        code = run(sys.argv[1:])
        _ignore_signals()
    except Terminated as stopped:
        code = stopped.exit_code
    sys.exit(code)


def _catch_signals() -> None:
    for number in _SIGNALS:
        # What nohup or a shell's & made us ignore stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _stop(number: int, _frame: FrameType | None) -> None:
    # One is enough, and the way out must not be cut short: timeout(1), for one, sends its signal twice.
    _ignore_signals()
    raise Terminated(number)


def run(arguments: list[str]) -> int:
    """Do what the arguments say, print errors as one line; returns the exit code."""
    settings = Settings(log_format=_log_format(arguments))
    if instruction := os.environ.get(COMPLETE):
        from imgdb.cli.completion import complete  # noqa: PLC0415 - not needed otherwise

        return _flush(complete(instruction, settings), settings)
    try:
        with cli.make_context("imgdb", arguments, obj=settings) as context:
            cli.invoke(context)
        code = 0
    except BaseException as error:  # noqa: BLE001 - every end of the program becomes an exit code here
        code = _end(error, settings)
    return _flush(code, settings)


def _log_format(arguments: list[str]) -> str:
    """The form of messages, known before parsing, since parsing may be what fails."""
    text = "\0".join(arguments)
    return "json" if "--log-format\0json" in text or "--log-format=json" in text else "text"


def _end(error: BaseException, settings: Settings) -> int:
    """The exit code, after printing the error where there is one to print."""
    if isinstance(error, click.exceptions.Exit | Terminated):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return _SIGNALLED + signal.SIGINT
    if isinstance(error, BrokenPipeError):
        return _SIGPIPE_EXIT
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    code, message = _explain(error)
    settings.tell(error, message)
    return max(code, settings.least_code)


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, ImgdbError):
        return error.exit_code, str(error)
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = "" if context is None else f" (see {context.command_path} --help)"
        return error.exit_code, " ".join(error.format_message().split()) + hint
    if isinstance(error, OSError) and error.strerror:
        name = error.filename2 or error.filename
        return 1, f"{os.fsdecode(name)}: {error.strerror}" if isinstance(
            name, str | bytes
        ) else error.strerror
    if isinstance(error, MemoryError):
        return 1, "out of memory"
    what = f"{type(error).__name__}: {error}"
    return 1, f"internal error: {what} (run with -vv for the traceback, and report it)"


def _flush(code: int, settings: Settings) -> int:
    """Write out what is buffered; a failure of that is one like any other."""
    try:
        with streams.blame(streams.STDOUT):
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        streams.drop_stdout()
        return code or _end(error, settings)
    return code
