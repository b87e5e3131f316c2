"""imgdb.cli.output: one set of records, four formats."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest

from imgdb.cli.output import Column, check_format, emit, table_lines
from imgdb.cli.printable import human_size
from imgdb.errors import InvalidArgumentError

RECORDS = [
    {"name": "docker.io/library/busybox:latest", "digest": "sha256:aa", "size": 4_260_000, "labels": {}},
    {"name": "ü日本", "digest": "sha256:bbbb", "size": 12, "labels": {"k": "\x1b[31m\x9b"}},
]
COLUMNS = [
    Column("NAME", lambda record: record["name"]),
    Column("DIGEST", lambda record: record["digest"]),
    Column("SIZE", lambda record: human_size(record["size"])),
]
FIELDS = {"Size": lambda record: human_size(record["size"]), "ID": lambda record: record["digest"][7:]}
HEADERS = {"ID": "IMAGE ID"}


def emitted(form, records=RECORDS, out=None):
    """What emit writes."""
    out = out or io.StringIO()
    emit(records, format=form, columns=COLUMNS, template_fields=FIELDS, headers=HEADERS, out=out)
    return out.getvalue()


class Terminal(io.StringIO):
    """A StringIO that says it is a terminal."""

    def isatty(self):
        """Yes."""
        return True


@pytest.mark.parametrize("form", ["table", " table ", ""])
def test_table(form):
    """Docker's look: three blanks between columns, none at the end, wide letters count twice."""
    assert emitted(form) == (
        "NAME                               DIGEST        SIZE\n"
        "docker.io/library/busybox:latest   sha256:aa     4.26MB\n"
        "ü日本                              sha256:bbbb   12B\n"
    )


def test_empty_table():
    """No records: the header remains, as docker's does."""
    assert emitted("table", []) == "NAME   DIGEST   SIZE\n"


def test_cells_are_printable():
    """Control characters are escaped, None is empty, other values are made text."""
    columns = [Column("A\x1b", lambda record: record["a"]), Column("B", lambda record: record["b"])]
    out = io.StringIO()
    records = [{"a": "x\x1b\n", "b": None}, {"a": None, "b": True}, {"a": ["p"], "b": b"\xff"}]
    emit(records, format="table", columns=columns, out=out)
    assert out.getvalue().splitlines() == ["A\\x1b     B", "x\\x1b\\n", "          true", "[p]       \\xff"]


def test_table_lines_of_different_length():
    """Rows need not be equally long."""
    assert list(table_lines([["a"], ["bb", "c"], [], ["", "", "d"]])) == ["a", "bb   c", "", "         d"]


def test_json():
    """One array of raw values on one line, one line end."""
    text = emitted("json")
    assert text.endswith("]\n")
    assert text.count("\n") == 1
    assert json.loads(text) == RECORDS


def test_json_on_a_terminal_is_indented():
    """People get indentation; it is the same array."""
    text = emitted("json", out=Terminal())
    assert text.startswith('[\n  {\n    "name"')
    assert json.loads(text) == RECORDS


@pytest.mark.parametrize("out", [io.StringIO, Terminal])
def test_empty_json(out):
    """No records: an empty array."""
    assert emitted("json", [], out()) == "[]\n"


def test_json_controls_are_escaped():
    """No control character is ever written raw, ordinary Unicode is."""
    assert '"ü日本"' in emitted("json")
    assert "\\u001b[31m\\u009b" in emitted("jsonl")


def test_json_is_whole_or_nothing():
    """When a record can't be had, no half array was written."""

    def failing():
        yield RECORDS[0]
        raise OSError

    out = io.StringIO()
    with pytest.raises(OSError):  # noqa: PT011 - ours, from above
        emitted("json", failing(), out)
    assert out.getvalue() == ""


def test_json_lines():
    """One object a line."""
    lines = emitted("jsonl").splitlines()
    assert [json.loads(line) for line in lines] == RECORDS
    assert emitted("jsonl", []) == ""


@pytest.mark.parametrize("form", ["jsonl", "{{.name}}"])
def test_lines_stream(form):
    """Each record is written before the next one is asked for."""
    out = io.StringIO()
    seen = []

    def records():
        for record in RECORDS:
            seen.append(out.getvalue().count("\n"))
            yield record

    emitted(form, records(), out)
    assert seen == [0, 1]


def test_template():
    """A record's own fields and the verb's; the verb's come first, by their exact name."""
    assert emitted("{{.ID}} {{.Size}} {{.size}} {{.SIZE}}") == "aa 4.26MB 4260000 4.26MB\nbbbb 12B 12 12B\n"


def test_template_json_has_both():
    """`{{json .}}` shows everything that a template can ask for."""
    first = json.loads(emitted("{{json .}}").splitlines()[0])
    assert first == {"Size": "4.26MB", "ID": "aa", **RECORDS[0]}


def test_template_unknown_field_names_all():
    """The message lists the verb's fields too."""
    with pytest.raises(InvalidArgumentError, match=r"no field .Nope; fields here: .Size, .ID, .name"):
        emitted("{{.Nope}}")


def test_template_table():
    """`table TEMPLATE` has headers and aligned columns."""
    assert emitted(r"table {{.ID}}\t{{.Size}}\t{{.name}}") == (
        "IMAGE ID   SIZE     NAME\n"
        "aa         4.26MB   docker.io/library/busybox:latest\n"
        "bbbb       12B      ü日本\n"
    )
    assert emitted(r"table {{.ID}}\t{{.Size}}", []) == "IMAGE ID   SIZE\n"


def test_template_table_with_lines():
    """A template may make several lines of a record; they share the columns."""
    assert emitted(r"table {{.ID}}\t{{.size}}\n-\t{{.Size}}", RECORDS[:1]).splitlines() == [
        "IMAGE ID   SIZE",
        "-          SIZE",
        "aa         4260000",
        "-          4.26MB",
    ]


@pytest.mark.parametrize("form", ["jsn", "raw", "JSON", "table x"])
def test_unknown_format(form):
    """A word that is no format is refused before a record is asked for, naming the formats."""

    def never():
        pytest.fail("a record was asked for")
        yield

    with pytest.raises(InvalidArgumentError, match="use table, json, jsonl or a template"):
        emitted(form, never())


def test_check_format():
    """Option parsing can refuse a format before anything is opened."""
    assert [check_format(form) for form in ("json", "{{.A}}")] == ["json", "{{.A}}"]
    with pytest.raises(InvalidArgumentError, match="unsupported"):
        check_format("{{printf}}")


def test_streams_without_unicode():
    """A Latin-1 terminal gets escapes instead of an exception, and JSON stays JSON."""
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="latin-1", newline="")
    for form in ("{{.name}}", "json"):
        emit(RECORDS[1:], format=form, columns=COLUMNS, out=out)
    out.flush()
    template, array = raw.getvalue().decode("latin-1").splitlines()
    assert template == "ü\\u65e5\\u672c"
    assert array.isascii()
    assert json.loads(array) == RECORDS[1:]


def test_standard_output_is_the_default(capsys):
    """The stream is looked up when emit runs, so redirections hold."""
    emit(RECORDS[:1], format="{{.digest}}", columns=COLUMNS)
    assert capsys.readouterr().out == "sha256:aa\n"


def test_broken_pipe_is_the_callers():
    """Emit hides no error of standard output."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as out:
        with pytest.raises(BrokenPipeError):
            emit(RECORDS, format="jsonl", columns=COLUMNS, out=out)
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # so that closing can flush


def test_start_up_is_light():
    """Printing needs neither SQLAlchemy nor tqdm."""
    code = (
        "import sys, imgdb.cli.output, imgdb.cli.progress as p; p.make_reporter('auto')\n"
        "print([name for name in ('sqlalchemy', 'alembic', 'tqdm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
