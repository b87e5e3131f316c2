"""imgdb.cli.progress: bars, lines and JSON; warnings always; no exception ever."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import struct
import sys
import termios
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgdb.cli.progress import (
    STYLES,
    BarReporter,
    JsonReporter,
    PlainReporter,
    TextWarnings,
    make_reporter,
)
from imgdb.cli.report import Sink
from imgdb.errors import InvalidArgumentError

DIGEST = "sha256:" + "0123456789abcdef" * 4
SHORT = "sha256:0123456789ab…"


class Clock:
    """A clock that a test turns."""

    now = 100.0

    def __call__(self):
        """The time."""
        return self.now


class Terminal:
    """A pseudo-terminal; `stream` is the program's end."""

    def __init__(self, rows, columns):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.stream = open(slave, "w", encoding="utf-8")  # noqa: SIM115 - closed by `terminal`

    def text(self):
        """What the program has written."""
        data = b""
        while select.select([self.master], [], [], 0.2)[0]:
            data += os.read(self.master, 65536)
        return data.decode()


@contextmanager
def terminal(rows=24, columns=100):
    """A terminal of this size."""
    made = Terminal(rows, columns)
    try:
        yield made
    finally:
        made.stream.close()
        os.close(made.master)


def import_two_blobs(reporter):
    """One phase with a known total of 300 bytes, one without."""
    with reporter.phase("read", 300):
        reporter.blob(DIGEST, 100)
        reporter.advance(60)
        reporter.advance(40)
        reporter.blob("dir/\x1b[31m", 200)
        reporter.advance(200)
    with reporter.phase("store"):
        reporter.advance(5)


def events(stream):
    """The JSON lines of a stream."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_bar_on_a_terminal():
    """A bar per phase, in bytes: exact total, digest behind it, the finished one stays."""
    with terminal() as tty:
        reporter = make_reporter("auto", stream=tty.stream)
        with reporter.phase("read", 810_000_000):
            reporter.blob(DIGEST, 810_000_000)
            reporter.advance(405_000_000)
            reporter.warn("odd \x1b[31m name")
            reporter.advance(405_000_000)
        shown = tty.text()
    assert isinstance(reporter, BarReporter)
    assert re.search(r"read:   0%\|", shown)
    assert re.search(rf"read:  50%\|\S+ *\| 405M/810M .*{SHORT}", shown)
    assert re.search(r"read: 100%\|\S+\| 810M/810M \[[^\r]*\]\r\n$", shown)
    assert "imgdb: warning: odd \\x1b[31m name\r\n" in shown
    assert "\x1b[31m" not in shown


def test_bar_without_a_total():
    """A pipe has no total: the bar only counts."""
    with terminal() as tty:
        reporter = make_reporter("auto", stream=tty.stream)
        with reporter.phase("read"):
            reporter.advance(12_000)
        shown = tty.text()
    assert "read: 12.0kB [" in shown
    assert "%" not in shown


def test_bar_on_a_console_without_a_size():
    """A serial console says 0 rows and 0 columns; it gets a bar all the same."""
    with terminal(0, 0) as tty:
        import_two_blobs(make_reporter("auto", stream=tty.stream))
        shown = tty.text()
    assert "| 300/300 [" in shown
    assert max(map(len, re.split(r"[\r\n]", shown))) < 80


def test_bar_follows_phase_after_phase():
    """A phase that begins before the last one ended closes its bar."""
    with terminal() as tty:
        reporter = make_reporter("auto", stream=tty.stream)
        reporter.start("read", 10)
        reporter.start("store", 20)
        reporter.finish()
        shown = tty.text()
    assert re.findall(r"(\w+): +0%.*?\r\n", shown) == ["read", "store"]


def test_bar_only_on_terminals():
    """A log file gets no bars from auto, only warnings."""
    stream = io.StringIO()
    reporter = make_reporter("auto", stream=stream)
    import_two_blobs(reporter)
    reporter.warn("look")
    assert stream.getvalue() == "imgdb: warning: look\n"


def test_plain():
    """A line per blob, escaped and short, and one per phase."""
    stream = io.StringIO()
    import_two_blobs(make_reporter("plain", stream=stream))
    assert stream.getvalue().splitlines() == [
        f"read {SHORT} 100B",
        "read dir/\\x1b[31m 200B",
        "read done: 2 blobs, 300B",
        "store done: 0 blobs, 5B",
    ]


def test_plain_says_when_a_phase_ends_early():
    """A failing phase does not say that it is done."""
    stream = io.StringIO()
    reporter = make_reporter("plain", stream=stream)

    def interrupted():
        with reporter.phase("read", 1000):
            reporter.blob("x" * 60, 1000)
            reporter.advance(400)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue() == f"read …{'x' * 39} 1kB\nread ended: 1 blob, 400B of 1kB\n"


def test_json_lines():
    """First and last event of each phase, exact numbers, the full digest."""
    stream = io.StringIO()
    reporter = make_reporter("json", stream=stream)
    import_two_blobs(reporter)
    reporter.warn("odd \x1b name ü")
    seen = events(stream)
    assert seen[0] == {"phase": "read", "blob": None, "done": 0, "total": 300}
    assert {"phase": "read", "blob": "dir/\x1b[31m", "done": 300, "total": 300} in seen
    assert seen[-3] == {"phase": "store", "blob": None, "done": 0, "total": None}
    assert seen[-2] == {"phase": "store", "blob": None, "done": 5, "total": None}
    assert seen[-1] == {"level": "warning", "message": "odd \x1b name ü"}
    assert stream.getvalue().isascii()
    assert "\x1b" not in stream.getvalue()


def test_json_is_throttled():
    """At most ten events a second, however many blobs there are; the last one is exact."""
    stream, clock = io.StringIO(), Clock()
    reporter = JsonReporter(Sink(stream), clock)
    with reporter.phase("read", 10_000):
        for step in range(10_000):  # ten seconds
            clock.now = 100 + step / 1000
            reporter.blob(f"blob {step}", 1)
            reporter.advance(1)
    seen = events(stream)
    assert 90 <= len(seen) <= 102
    assert seen[0]["done"] == 0
    assert seen[-1] == {"phase": "read", "blob": "blob 9999", "done": 10_000, "total": 10_000}


@given(st.lists(st.integers(0, 10**12)), st.sampled_from(["json", "plain"]))
def test_totals_are_exact(counts, style):
    """What was advanced is what the end of the phase says."""
    stream = io.StringIO()
    reporter = make_reporter(style, stream=stream)
    with reporter.phase("read", sum(counts)):
        for count in counts:
            reporter.advance(count)
    last = stream.getvalue().splitlines()[-1]
    if style == "json":
        assert json.loads(last) == {"phase": "read", "blob": None, "done": sum(counts), "total": sum(counts)}
    else:
        assert last.startswith("read done: 0 blobs, ")


@pytest.mark.parametrize(
    ("style", "quiet", "shown"),
    [
        ("none", False, "imgdb: warning: two\\nlines\n"),
        ("none", True, "imgdb: warning: two\\nlines\n"),
        ("auto", True, "imgdb: warning: two\\nlines\n"),
        ("plain", True, "imgdb: warning: two\\nlines\n"),
        ("json", True, '{"level":"warning","message":"two\\nlines"}\n'),
    ],
)
def test_warnings_are_shown_without_progress(style, quiet, shown):
    """Neither none nor -q hides a warning, and it is one line."""
    stream = io.StringIO()
    reporter = make_reporter(style, quiet=quiet, stream=stream)
    import_two_blobs(reporter)
    reporter.warn("two\nlines")
    assert stream.getvalue() == shown


def test_quiet_on_a_terminal():
    """-q draws no bar."""
    with terminal() as tty:
        reporter = make_reporter("auto", quiet=True, stream=tty.stream)
        import_two_blobs(reporter)
        assert tty.text() == ""


def broken_pipe():
    """A stream whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", buffering=1)


def closed_file():
    """A stream that was closed."""
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("make", [closed_file, broken_pipe])
def test_a_closed_stream_is_no_error(style, make):
    """An import goes on when nobody reads standard error any more."""
    stream = make()
    try:
        reporter = make_reporter(style, stream=stream)
        import_two_blobs(reporter)
        reporter.warn("x")
        assert not Sink(stream).isatty()
    finally:
        if not stream.closed:  # what is buffered must go somewhere before it can be closed
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, stream.fileno())
            os.close(devnull)
            stream.close()


def test_a_terminal_that_hangs_up_is_no_error():
    """The bar, too, survives its terminal."""
    master, slave = pty.openpty()
    stream = open(slave, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed below
    reporter = make_reporter("auto", stream=stream)
    reporter.start("read", 100)
    os.close(master)
    reporter.advance(50)
    reporter.warn("x")
    reporter.blob(DIGEST, 50)
    reporter.finish()
    import_two_blobs(reporter)
    assert isinstance(reporter, BarReporter)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, slave)
    os.close(devnull)
    stream.close()


@pytest.mark.parametrize("style", STYLES)
def test_no_standard_error_at_all(style, monkeypatch):
    """Python has no sys.stderr when descriptor 2 was closed; then nothing is written."""
    monkeypatch.setattr(sys, "stderr", None)
    reporter = make_reporter(style)
    import_two_blobs(reporter)
    reporter.warn("x")
    assert not isinstance(reporter, BarReporter)
    assert Sink(None).fileno() == -1


def test_standard_error_is_the_default(capsys):
    """The stream is looked up when the reporter is made."""
    make_reporter("none").warn("x")
    assert capsys.readouterr().err == "imgdb: warning: x\n"


def test_kinds():
    """The style decides the class."""
    stream = io.StringIO()
    assert type(make_reporter("plain", stream=stream)) is PlainReporter
    assert type(make_reporter("json", stream=stream)) is JsonReporter
    assert type(make_reporter("auto", stream=stream)) is TextWarnings


def test_unknown_style():
    """A style that does not exist is refused, naming those that do."""
    with pytest.raises(InvalidArgumentError, match="use auto, plain, json, none"):
        make_reporter("fancy")


def test_calls_outside_of_a_phase():
    """A walk that reports before its first phase does no harm."""
    for style in STYLES:
        stream = io.StringIO()
        reporter = make_reporter(style, stream=stream)
        reporter.blob(DIGEST, 1)
        reporter.advance(1)
        reporter.finish()
        assert stream.getvalue() == ""
