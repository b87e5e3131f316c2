r"""The part of Go's templates that scripts around docker use in ``--format``.

::

    {{.Field}}  {{.Field.Sub}}  {{.}}         a field, a field of a field, the value itself
    {{json .X}}  {{lower .X}}  {{upper .X}}   {{len .X}}  {{println .X}}
    {{join .X ","}}  {{index .X 0 "key"}}     {{"text"}}
    {{range .X}} … {{else}} … {{end}}         {{if .X}} … {{else}} … {{end}}
    \t  \n                                    as the shell hands them over
    table {{.A}}\t{{.B}}                      a header line and aligned columns

Everything else is refused by name: a template that half works is worse than none. A template
is compiled once and rendered per record; nothing is ever evaluated as Python, and values are
made printable on their way out. Source: docker/cli `formatter`, Go's text/template.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from imgdb.cli import values
from imgdb.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

SUBSET = (
    "{{.Field}}, {{json .X}}, {{lower .X}}, {{upper .X}}, {{len .X}}, {{println .X}}, "
    '{{join .X ","}}, {{index .X 0}}, {{range .X}}…{{end}}, {{if .X}}…{{else}}…{{end}}'
)

_MAX_NESTING = 64  # rendering recurses once per block
_ACTION = re.compile(r'\{\{((?:"(?:\\.|[^"\\])*"|`[^`]*`|[^"`])*?)\}\}', re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<path>\.(?:[^\W\d]\w*(?:\.[^\W\d]\w*)*)?)
    | (?P<text>"(?:\\.|[^"\\])*"|`[^`]*`)
    | (?P<number>-?\d{1,9})
    | (?P<word>[A-Za-z]+)
    )(?=\s|$)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class _Path(NamedTuple):
    names: tuple[str, ...]  # empty: the dot itself


class _Word(NamedTuple):
    name: str


_Token: TypeAlias = _Path | _Word | str | int  # str: a text in quotes


class _Call(NamedTuple):
    function: str  # empty: the one argument itself
    arguments: tuple[_Token, ...]


class _Block(NamedTuple):
    keyword: str  # range or if
    call: _Call
    body: list[_Node]
    otherwise: list[_Node]


_Node: TypeAlias = str | _Call | _Block


class Template:
    """A compiled template.

    Attributes:
        table: the template began with ``table``: `header` gives the first line, and a tab
            ends a column.
    """

    def __init__(self, nodes: list[_Node], *, table: bool) -> None:
        self._nodes = nodes
        self.table = table

    @classmethod
    def compile(cls, text: str) -> Template:
        """Parse a template.

        Raises:
            InvalidArgumentError: it goes beyond the subset, or a block is not closed.
        """
        table = text.startswith("table ")
        return cls(_parse(text.removeprefix("table ").strip(" ") if table else text), table=table)

    def render(self, record: Mapping[str, Any]) -> str:
        """The text for one record, without a line end of its own; safe for a terminal.

        A field is looked up by its exact name, then whatever its case. None, and a field of
        None, give nothing, where Go would print ``<no value>``.

        Raises:
            InvalidArgumentError: the record has no such field, or a function got a value of
                the wrong kind.
        """
        out: list[str] = []
        _render(self._nodes, record, out)
        return "".join(out)

    def header(self, names: Mapping[str, str] | None = None) -> str:
        """The line above a table: the name of each field instead of its value.

        Args:
            names: headers by field, where the field's name in upper case would not do
                (``{"ID": "IMAGE ID"}``).
        """
        lowered = {field.lower(): name for field, name in (names or {}).items()}
        return "".join(_header(node, lowered) for node in self._nodes)


def _parse(text: str) -> list[_Node]:
    parser = _Parser()
    at = 0
    while (start := text.find("{{", at)) >= 0:
        match = _ACTION.match(text, start)
        if match is None:
            raise _unsupported(text[start + 2 :], "}} is missing")
        parser.text(text[at:start])
        parser.action(match[1].strip())
        at = match.end()
    parser.text(text[at:])
    return parser.finish()


class _Parser:
    """Collects nodes; `_lists[-1]` is where the next one goes."""

    def __init__(self) -> None:
        self._lists: list[list[_Node]] = [[]]
        self._blocks: list[_Block] = []

    def text(self, text: str) -> None:
        r"""Text between actions; its \t and \n are the shell's, and docker replaces them too."""
        if text:
            self._lists[-1].append(text.replace("\\t", "\t").replace("\\n", "\n"))

    def action(self, source: str) -> None:
        """What stands between the braces."""
        match source.split(None, 1):
            case ["end"]:
                self._end(source)
            case ["else"]:
                self._else(source)
            case ["range" | "if" as keyword, rest]:
                self._open(keyword, rest, source)
            case _:
                self._lists[-1].append(_expression(source))

    def _open(self, keyword: str, rest: str, source: str) -> None:
        if len(self._blocks) == _MAX_NESTING:
            raise _unsupported(source, f"more than {_MAX_NESTING} nested blocks")
        block = _Block(keyword, _call(rest, source), [], [])
        self._lists[-1].append(block)
        self._lists.append(block.body)
        self._blocks.append(block)

    def _else(self, source: str) -> None:
        if not self._blocks or self._lists[-1] is not self._blocks[-1].body:
            raise _unsupported(source, "nothing is open")
        self._lists[-1] = self._blocks[-1].otherwise

    def _end(self, source: str) -> None:
        if not self._blocks:
            raise _unsupported(source, "nothing is open")
        self._blocks.pop()
        self._lists.pop()

    def finish(self) -> list[_Node]:
        """All nodes; every block must be closed by now."""
        if self._blocks:
            raise _unsupported(self._blocks[-1].keyword, "{{end}} is missing")
        return self._lists[0]


def _expression(source: str) -> _Node:
    r"""A call, or a text alone: `{{"\n"}}` is how Go's own users write a line end."""
    tokens = _tokens(source)
    if len(tokens) == 1 and isinstance(tokens[0], str):
        return tokens[0]
    return _call(source, source)


def _call(text: str, source: str) -> _Call:
    """`function argument…`, or one path."""
    match _tokens(text):
        case [_Path() as path]:
            return _Call("", (path,))
        case [_Word(name), *arguments] if name in values.FUNCTIONS:
            function = values.FUNCTIONS[name]
            if not function.least <= len(arguments) <= function.most:
                raise _unsupported(source, f"wrong number of arguments for {name}")
            if any(isinstance(argument, _Word) for argument in arguments):
                raise _unsupported(source)
            return _Call(name, tuple(arguments))
    raise _unsupported(source)


def _tokens(source: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(source):
        match = _TOKEN.match(source, at)
        if match is None:
            raise _unsupported(source)
        tokens.append(_token(match, source))
        at = match.end()
    return tokens


def _token(match: re.Match[str], source: str) -> _Token:
    kind = match.lastgroup or ""
    text = match[kind]
    match kind:
        case "path":
            return _Path(tuple(name for name in text.split(".") if name))
        case "number":
            return int(text)
        case "text":
            return _unquote(text, source)
    return _Word(text)


def _unquote(quoted: str, source: str) -> str:
    """Go's two kinds of quotes; back quotes know no escapes."""
    if quoted[0] == "`":
        return quoted[1:-1]

    def escape(match: re.Match[str]) -> str:
        if match[1] not in _ESCAPES:
            raise _unsupported(source, f"unknown escape {match[0]}")
        return _ESCAPES[match[1]]

    return re.sub(r"\\(.)", escape, quoted[1:-1], flags=re.DOTALL)


def _unsupported(source: str, why: str = "") -> InvalidArgumentError:
    because = f" ({why})" if why else ""
    return InvalidArgumentError(f"template: unsupported {{{{{source[:80]}}}}}{because}; supported: {SUBSET}")


def _render(nodes: list[_Node], dot: object, out: list[str]) -> None:
    for node in nodes:
        match node:
            case str():
                out.append(node)
            case _Call():
                out.append(values.shown(_evaluate(node, dot)))
            case _Block():
                _render_block(node, dot, out)


def _render_block(block: _Block, dot: object, out: list[str]) -> None:
    value = _evaluate(block.call, dot)
    if not value:
        _render(block.otherwise, dot, out)
    elif block.keyword == "if":
        _render(block.body, dot, out)
    else:
        for item in values.items(value):
            _render(block.body, item, out)


def _evaluate(call: _Call, dot: object) -> object:
    arguments = [_resolve(argument, dot) for argument in call.arguments]
    return values.FUNCTIONS[call.function].apply(*arguments) if call.function else arguments[0]


def _resolve(argument: _Token, dot: object) -> object:
    if not isinstance(argument, _Path):
        return argument
    for name in argument.names:
        dot = values.field(dot, name)
    return dot


def _header(node: _Node, names: Mapping[str, str]) -> str:
    """Text stays as it is; a call, or a whole block, gives the name of the field it asks for."""
    if isinstance(node, str):
        return node
    call = node if isinstance(node, _Call) else node.call
    for argument in call.arguments:
        if isinstance(argument, _Path) and argument.names:
            field = argument.names[-1]
            return names.get(field.lower()) or _CAMEL.sub(" ", field).replace("_", " ").upper()
    return ""
