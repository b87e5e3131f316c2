r"""``--format``: records as a table, as JSON, as JSON lines, or through a template.

Records are maps of raw values. A table shows them by its columns; JSON shows them as they
are; a template sees, besides them, the fields that docker's users know (``.Repository``,
``.Size`` as ``1.23MB``), which the verb supplies. Source: design §7, ecosystem §1.2.
"""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO, TypeAlias

from imgdb.cli.printable import display_width, json_text
from imgdb.cli.streams import STDOUT, blame
from imgdb.cli.template import Template
from imgdb.cli.values import shown
from imgdb.errors import InvalidArgumentError

Record: TypeAlias = Mapping[str, Any]
Fields: TypeAlias = Mapping[str, Callable[[Record], Any]]

_GAP = "   "


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        header: in upper case, as docker's.
        render: the cell for a record; any value, it is made text and printable.
    """

    header: str
    render: Callable[[Record], Any]


def check_format(text: str) -> str:
    """The format itself, when `emit` would take it: for option parsing, before any work is done.

    Raises:
        InvalidArgumentError: neither a known name nor a template of the supported subset.
    """
    _writer(text)
    return text


def emit(
    records: Iterable[Record],
    *,
    format: str,  # noqa: A002 - the name of the option
    columns: Sequence[Column],
    template_fields: Fields | None = None,
    headers: Mapping[str, str] | None = None,
    out: TextIO | None = None,
    indented: bool = False,
) -> None:
    """Write records in the format that the user chose.

    ``jsonl`` and templates without ``table`` write each record as it comes; the others need
    them all first. A broken pipe is the caller's to handle.

    Args:
        records: raw values (bytes as integers, RFC 3339 times, full digests).
        format: ``table``, ``json``, ``jsonl``, a template, or ``table TEMPLATE``.
        columns: what ``table`` alone shows.
        template_fields: more fields for templates, by name; they come before a record's own,
            and ``{{json .}}`` has both.
        headers: for ``table TEMPLATE``, headers by field where its name would not do.
        out: where to; standard output by default.
        indented: ``json`` is laid out for people even when it goes to a file or a pipe.

    Raises:
        InvalidArgumentError: unknown format, or a template that asks for what is not there.
    """
    write = _writer(format)
    out = out or sys.stdout
    indent = 2 if indented or out.isatty() else None
    context = _Context(columns, template_fields or {}, headers or {}, out, indent)
    with blame(STDOUT):
        write(records, context)


def say(text: str) -> None:
    """Write a line of a result that has no formats; it must be printable already."""
    with blame(STDOUT):
        _Context((), {}, {}, sys.stdout).line(text)


def table_lines(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Rows as aligned lines: three blanks between columns, none at the end.

    Args:
        rows: printable cells, the header first; rows may differ in length.
    """
    table = list(rows)
    widths: list[int] = []
    for row in table:
        widths += [0] * (len(row) - len(widths))
        for position, cell in enumerate(row):
            widths[position] = max(widths[position], display_width(cell))
    for row in table:
        cells = (cell + " " * (width - display_width(cell)) for cell, width in zip(row, widths, strict=False))
        yield _GAP.join(cells).rstrip(" ")


class _Context(NamedTuple):
    columns: Sequence[Column]
    fields: Fields
    headers: Mapping[str, str]
    out: TextIO
    indent: int | None = None

    @property
    def unicode(self) -> bool:
        """Whether the stream can carry every character (a StringIO has no encoding at all)."""
        encoding = getattr(self.out, "encoding", None)
        return not encoding or codecs.lookup(encoding).name.startswith("utf")

    def line(self, text: str) -> None:
        """Write one line; what a Latin-1 terminal can't show is escaped, never an exception."""
        if not text.isascii() and not self.unicode:
            text = text.encode(self.out.encoding, "backslashreplace").decode(self.out.encoding)
        self.out.write(text + "\n")

    def json(self, value: object, indent: int | None = None) -> None:
        self.out.write(json_text(value, indent=indent, ascii_only=not self.unicode) + "\n")


_Writer: TypeAlias = Callable[[Iterable[Record], _Context], None]


def _writer(text: str) -> _Writer:
    known = _WRITERS.get(text.strip())
    if known is not None:
        return known
    if "{{" not in text:
        raise InvalidArgumentError(
            f"unknown format {text!r}: use table, json, jsonl or a template ({{{{.Field}}}})"
        )
    template = Template.compile(text)
    write = _write_template_table if template.table else _write_template
    return lambda records, context: write(template, records, context)


def _write_table(records: Iterable[Record], context: _Context) -> None:
    rows = [[shown(column.header) for column in context.columns]]
    rows += ([shown(column.render(record)) for column in context.columns] for record in records)
    for line in table_lines(rows):
        context.line(line)


def _write_json(records: Iterable[Record], context: _Context) -> None:
    context.json([dict(record) for record in records], indent=context.indent)


def _write_json_lines(records: Iterable[Record], context: _Context) -> None:
    for record in records:
        context.json(dict(record))


def _write_template(template: Template, records: Iterable[Record], context: _Context) -> None:
    for record in records:
        context.line(template.render(_View(context.fields, record)))


def _write_template_table(template: Template, records: Iterable[Record], context: _Context) -> None:
    texts = [template.header(context.headers)]
    texts += (template.render(_View(context.fields, record)) for record in records)
    for line in table_lines(line.split("\t") for text in texts for line in text.split("\n")):
        context.line(line)


_WRITERS: dict[str, _Writer] = {
    "": _write_table,  # docker takes an empty format for the default one
    "table": _write_table,
    "json": _write_json,
    "jsonl": _write_json_lines,
}


class _View(Mapping[str, Any]):
    """A record behind the extra fields, each worked out only when it is asked for."""

    def __init__(self, fields: Fields, record: Record) -> None:
        self._fields = fields
        self._record = record

    def __getitem__(self, key: str) -> Any:
        field = self._fields.get(key)
        return self._record[key] if field is None else field(self._record)

    def __contains__(self, key: object) -> bool:
        return key in self._fields or key in self._record

    def __iter__(self) -> Iterator[str]:
        yield from self._fields
        yield from (key for key in self._record if key not in self._fields)

    def __len__(self) -> int:
        return sum(1 for _ in self)
