"""imgdb.cli.printable: nothing hostile reaches a terminal, and numbers look as docker's."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgdb.cli.printable import display_width, human_duration, human_size, json_text, printable, rfc3339

ANY_TEXT = st.text(st.characters(exclude_categories=[]))  # with lone surrogates
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=10,
)
BIDI = [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C]
CONTROLS = [*range(0x20), *range(0x7F, 0xA0)]


def harmless(text):
    """No control, format, surrogate, private or unassigned character, no separator but the blank."""
    return all(char == " " or unicodedata.category(char)[0] not in "CZ" for char in text)


@given(ANY_TEXT | st.binary())
def test_output_is_harmless_and_stable(text):
    """Whatever comes in, the result can't steer a terminal, and escaping it again changes nothing."""
    shown = printable(text)
    assert harmless(shown)
    assert printable(shown) == shown
    assert shown.encode().decode() == shown  # no surrogates: any UTF-8 stream takes it


@given(st.text(st.characters(categories=["L", "M", "N", "P", "S"])))
def test_ordinary_unicode_stays(text):
    """Letters, marks, numbers, punctuation and symbols of every script pass as they are."""
    assert printable(text) == text


@pytest.mark.parametrize("code", [*BIDI, 0x2028, 0x2029, 0x200B, 0xFEFF])
def test_bidi_and_separators_are_escaped(code):
    r"""What reorders or hides text is shown as \uXXXX."""
    assert printable(f"a{chr(code)}b") == f"a\\u{code:04x}b"


@pytest.mark.parametrize("code", [code for code in CONTROLS if chr(code) not in "\t\n\r"])
def test_controls_are_escaped(code):
    r"""C0, DEL and C1 are shown as \xXX."""
    assert printable(chr(code)) == f"\\x{code:02x}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\r\tend", "two\\nlines\\r\\tend"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("no\u00a0break", "no\\xa0break"),
        (b"caf\xc3\xa9 \xff\x1b", "café \\xff\\x1b"),
        ("C:\\new", "C:\\new"),
        ("日本 naïve 🦫", "日本 naïve 🦫"),
        ("", ""),
    ],
)
def test_examples(text, shown):
    """Known inputs and what is shown for them."""
    assert printable(text) == shown


@given(JSON_VALUES, st.sampled_from([None, 2]), st.booleans())
def test_json_is_harmless_and_exact(value, indent, ascii_only):
    """JSON has nothing that steers a terminal, and parses to what json.dumps would give."""
    text = json_text(value, indent=indent, ascii_only=ascii_only)
    assert harmless(text.replace("\n", ""))
    assert json.loads(text) == json.loads(json.dumps(value))
    assert text.isascii() or not ascii_only
    assert "\n" not in text or indent


def test_json_form():
    """Compact JSON has no blanks, ordinary Unicode stays, the rest is escaped."""
    assert json_text({"ä": ["\x7f\x9b\u202e", 1]}) == '{"ä":["\\u007f\\u009b\\u202e",1]}'
    assert json_text({"ä": 1}, indent=2, ascii_only=True) == '{\n  "\\u00e4": 1\n}'
    assert json_text("\U000e0041") == '"\\udb40\\udc41"'
    assert json_text(b"\0\xff") == '"AP8="'


def test_json_refuses_foreign_objects():
    """A value that JSON has no form for is the caller's mistake."""
    with pytest.raises(TypeError, match="object has no JSON form"):
        json_text({"a": object()})


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1kB"),
        (1234, "1.23kB"),
        (45_600_000, "45.6MB"),
        (810_000_000, "810MB"),
        (999_499, "999kB"),
        (999_500, "1MB"),  # docker: 1e+03kB
        (1_500_000_000, "1.5GB"),
        (2**63 - 1, "9.22EB"),
        (10**30, "1e+06YB"),
    ],
)
def test_human_size(size, shown):
    """Three significant digits, decimal units."""
    assert human_size(size) == shown


@given(st.integers(0, 10**26))
def test_human_size_is_short_and_close(size):
    """Never more than three digits, and within half a percent of the truth."""
    shown = human_size(size)
    number = shown.rstrip("BkMGTPEZY")
    unit = ["B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"].index(shown[len(number) :])
    assert len(number.replace(".", "")) <= 4  # 0.00 does not occur, 1.23 does
    assert abs(float(number) * 1000**unit - size) <= 0.00501 * size


MINUTE, HOUR, DAY = 60, 3600, 86400


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "Less than a second ago"),
        (0.9, "Less than a second ago"),
        (1, "1 second ago"),
        (59.9, "59 seconds ago"),
        (MINUTE, "About a minute ago"),
        (2 * MINUTE, "2 minutes ago"),
        (59 * MINUTE, "59 minutes ago"),
        (HOUR, "About an hour ago"),
        (1.5 * HOUR, "2 hours ago"),
        (47 * HOUR, "47 hours ago"),
        (2 * DAY, "2 days ago"),
        (5 * DAY, "5 days ago"),
        (13 * DAY, "13 days ago"),
        (14 * DAY, "2 weeks ago"),
        (59 * DAY, "8 weeks ago"),
        (60 * DAY, "2 months ago"),
        (729 * DAY, "24 months ago"),
        (730 * DAY, "2 years ago"),
        (3000 * DAY, "8 years ago"),
    ],
)
def test_human_duration(seconds, shown):
    """The words and bounds of go-units."""
    assert human_duration(seconds) == shown


def test_human_duration_without_suffix():
    """A span that is no age has no ago."""
    assert human_duration(90, suffix="") == "About a minute"


@pytest.mark.parametrize(
    ("us", "shown"),
    [
        (None, None),
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_795_493_700_123_456, "2026-11-24T04:15:00.123456Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (-62_135_596_800_000_000, "0001-01-01T00:00:00.000000Z"),  # what Go writes for no time
        (2**63 - 1, "9999-12-31T23:59:59.999999Z"),
        (-(2**63), "0001-01-01T00:00:00.000000Z"),
        (10**40, "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_rfc3339(us, shown):
    """Microseconds, always six digits, always Z; beyond the calendar, its end."""
    assert rfc3339(us) == shown


def test_display_width():
    """Wide letters take two columns, combining marks none."""
    assert [display_width(text) for text in ("abc", "日本", "e\u0301", "ü")] == [3, 4, 1, 1]
