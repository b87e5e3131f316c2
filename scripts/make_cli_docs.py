#!/usr/bin/env python3
"""Write docs/cli.md from the help of the commands themselves.

make_cli_docs.py [--check]

--check only says whether the page is up to date: exit 1 when it is not.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imgdb.cli.groups import Told
from imgdb.cli.root import cli, image

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
HEAD = """\
# The command line

<!-- Made by scripts/make_cli_docs.py from the help of the commands; change that in imgdb/cli/. -->

`imgdb` and `python -m imgdb` are the same. Options of the program stand before the verb; `-q` and
`--progress` may stand behind it, too. `imgdb VERB --help`, or `-h`, says what this page says. The JSON that
`--format json` and `--json` give is described in [formats.md](formats.md)."""


def page() -> str:
    """The whole page."""
    context = cli.make_context("imgdb", [], resilient_parsing=True)
    parts = [HEAD, *_described(cli, context)]
    for name, command, inner in _commands(cli, context):
        parts += [f"{'##' if name.count(' ') == 1 else '###'} {name}", *_described(command, inner)]
    return "\n\n".join(parts) + "\n"


def _commands(
    group: click.Group, context: click.Context
) -> Iterator[tuple[str, click.Command, click.Context]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None:
            raise LookupError(name)
        inner = click.Context(command, info_name=name, parent=context)
        yield inner.command_path, command, inner
        # The verbs below `image` are told where they stand alone.
        if isinstance(command, click.Group) and command is not image:
            yield from _commands(command, inner)


def _described(command: click.Command, context: click.Context) -> Iterator[str]:
    """Paragraphs: usage, text, options, other names, examples."""
    yield f"    {context.command_path} {' '.join(command.collect_usage_pieces(context))}"
    yield inspect.cleandoc(command.help or "")
    options = [option for option in command.get_params(context) if isinstance(option, click.Option)]
    records = [option.get_help_record(context) for option in options if "--help" not in option.opts]
    lines = [f"* `{record[0]}`: {' '.join(record[1].split())}" for record in records if record]
    if lines:
        yield "\n".join(lines)
    if isinstance(command, Told):
        others = [f"`{name}`" for name in command.spellings if name != context.command_path]
        if others:
            yield f"The same as {', '.join(others)}."
        for title, text in command.extras.items():
            yield f"{title}:\n\n" + "\n".join(f"    {line}" for line in text)


def main() -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    text = page()
    if not parser.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != text:
        sys.exit(f"{PAGE} is not up to date; run {sys.argv[0]}")


if __name__ == "__main__":
    main()
