"""``--progress``: the reporters that the command line hands to the walks.

All of them write to standard error and none ever fails because of it: a terminal that was
closed must not end an import. Warnings are shown whatever the style, and also with ``-q``.
Source: design §7, ecosystem §1.2.
"""

from __future__ import annotations

import re
import sys
import time
from threading import RLock
from typing import TYPE_CHECKING, Literal, NoReturn, TextIO, TypeAlias, get_args

from imgdb.cli.printable import human_size, json_text, printable
from imgdb.cli.report import Sink
from imgdb.errors import InvalidArgumentError
from imgdb.progress import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from tqdm import tqdm

Style: TypeAlias = Literal["auto", "plain", "json", "none"]
STYLES: tuple[str, ...] = get_args(Style)

_EVENT_INTERVAL = 0.1  # seconds between two JSON events of a phase
_DIGEST = re.compile(r"([a-z0-9]+:[0-9a-f]{12})[0-9a-f]{20,}")  # 12 digits as docker's image IDs
_MAX_LABEL = 40
_CONSOLE = (79, 24)  # columns and rows of a terminal that does not tell


def make_reporter(style: str = "auto", quiet: bool = False, stream: TextIO | None = None) -> Reporter:
    """The reporter for ``--progress STYLE`` and ``-q``.

    Args:
        style: ``auto`` draws bars when the stream is a terminal, else nothing; ``plain`` is a
            line per blob, ``json`` an object per line; ``none`` has only warnings.
        quiet: no progress; warnings stay, in the style's form.
        stream: where to; standard error by default.

    Raises:
        InvalidArgumentError: no such style.
    """
    if style not in STYLES:
        raise InvalidArgumentError(f"unknown progress style {style!r}: use {', '.join(STYLES)}")
    sink = Sink(sys.stderr if stream is None else stream)
    if style == "json":
        return JsonWarnings(sink) if quiet else JsonReporter(sink)
    if quiet or style == "none" or (style == "auto" and not sink.isatty()):
        return TextWarnings(sink)
    return PlainReporter(sink) if style == "plain" else BarReporter(sink)


class TextWarnings(Reporter):
    """No progress; warnings as ``imgdb: warning: …``."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def warn(self, message: str) -> None:
        """Print the warning on one line, without what could steer the terminal."""
        self._sink.line(f"imgdb: warning: {printable(message)}")


class BarReporter(TextWarnings):
    """One tqdm bar per phase, in bytes, with the blob's short digest behind it."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink)
        self._bar: tqdm[NoReturn] | None = None

    def start(self, phase: str, total: int | None = None) -> None:
        """Draw a bar; without a total it only counts."""
        self.finish()
        self._bar = _new_bar(self._sink, printable(phase), total)

    def blob(self, name: str, size: int) -> None:  # noqa: ARG002 - the bar counts bytes, not blobs
        """Show the name at the next redraw."""
        if self._bar is not None:
            self._bar.set_postfix_str(_label(name), refresh=False)

    def advance(self, count: int) -> None:
        """Move the bar; it redraws itself at most ten times a second."""
        if self._bar is not None:
            self._bar.update(count)

    def finish(self) -> None:
        """Leave the bar as it stands and go to the next line."""
        if self._bar is not None:
            self._bar.set_postfix_str("", refresh=False)
            self._bar.close()
            self._bar = None

    def warn(self, message: str) -> None:
        """Print the warning above the bar."""
        if self._bar is not None:
            self._bar.clear()
        super().warn(message)
        if self._bar is not None:
            self._bar.refresh()


def _new_bar(sink: Sink, phase: str, total: int | None) -> tqdm[NoReturn]:
    from tqdm import tqdm  # noqa: PLC0415 - takes 0.1 s, which only those who see a bar should pay

    tqdm.monitor_interval = 0  # no thread of its own: imgdb forks
    tqdm.set_lock(RLock())  # else it makes a semaphore for multiprocessing
    sized = sink.has_size()
    return tqdm(
        desc=phase,
        total=total,
        file=sink,
        unit="B",
        unit_scale=True,
        unit_divisor=1000,  # decimal, as docker's bars and `human_size`
        dynamic_ncols=sized,
        ncols=None if sized else _CONSOLE[0],
        nrows=None if sized else _CONSOLE[1],
    )


class _Phase:
    """Where a phase stands."""

    def __init__(self, name: str, total: int | None) -> None:
        self.name = name
        self.total = total
        self.done = 0
        self.blob: str | None = None
        self.blobs = 0


class PlainReporter(TextWarnings):
    """A line per blob when it begins, and one when a phase is over: for logs."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink)
        self._phase: _Phase | None = None

    def start(self, phase: str, total: int | None = None) -> None:
        """Begin to count; nothing is printed yet."""
        self.finish()
        self._phase = _Phase(phase, total)

    def blob(self, name: str, size: int) -> None:
        """Print ``read sha256:0123456789ab… 12.3MB``."""
        if self._phase is not None:
            self._phase.blobs += 1
            self._sink.line(f"{printable(self._phase.name)} {_label(name)} {human_size(size)}")

    def advance(self, count: int) -> None:
        """Count."""
        if self._phase is not None:
            self._phase.done += count

    def finish(self) -> None:
        """Print how much was done, and of how much when that is not all."""
        if self._phase is None:
            return
        phase, self._phase = self._phase, None
        blobs = f"{phase.blobs} blob{'' if phase.blobs == 1 else 's'}"
        if phase.total in (None, phase.done):
            done = f"done: {blobs}, {human_size(phase.done)}"
        else:
            done = f"ended: {blobs}, {human_size(phase.done)} of {human_size(phase.total or 0)}"
        self._sink.line(f"{printable(phase.name)} {done}")


class JsonWarnings(Reporter):
    """No progress; warnings as ``{"level":"warning","message":…}``."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def warn(self, message: str) -> None:
        """Write the warning as one line."""
        self._event(level="warning", message=message)

    def _event(self, **members: str | int | None) -> None:
        # ASCII, because nobody told the reader which encoding our standard error has.
        self._sink.line(json_text(members, ascii_only=True))


class JsonReporter(JsonWarnings):
    """Lines ``{"phase":…,"blob":…,"done":…,"total":…}``.

    The first and the last state of a phase are always written, those in between at most ten
    times a second, however many blobs there are.

    Args:
        sink: where to.
        clock: seconds from anywhere, never going back.
    """

    def __init__(self, sink: Sink, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(sink)
        self._clock = clock
        self._phase: _Phase | None = None
        self._next = 0.0

    def start(self, phase: str, total: int | None = None) -> None:
        """Write the first event."""
        self.finish()
        self._phase = _Phase(phase, total)
        self._write(self._phase)

    def blob(self, name: str, size: int) -> None:  # noqa: ARG002 - the total covers it
        """Name the blob in the events to come."""
        if self._phase is not None:
            self._phase.blob = name
            self._write_if_due(self._phase)

    def advance(self, count: int) -> None:
        """Count, and write when it is time."""
        if self._phase is not None:
            self._phase.done += count
            self._write_if_due(self._phase)

    def finish(self) -> None:
        """Write the last event."""
        if self._phase is not None:
            self._write(self._phase)
            self._phase = None

    def _write_if_due(self, phase: _Phase) -> None:
        if self._clock() >= self._next:
            self._write(phase)

    def _write(self, phase: _Phase) -> None:
        self._next = self._clock() + _EVENT_INTERVAL
        self._event(phase=phase.name, blob=phase.blob, done=phase.done, total=phase.total)


def _label(name: str) -> str:
    """A short form for people: the head of a digest, the tail of a path."""
    digest = _DIGEST.fullmatch(name)
    if digest:
        return f"{digest[1]}…"
    text = printable(name)
    return text if len(text) <= _MAX_LABEL else "…" + text[1 - _MAX_LABEL :]
