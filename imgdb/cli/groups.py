"""Groups that import a verb when it is used, and help that names a verb's aliases beside it.

What help and completion say about the verbs is in a table, so that neither loads their modules.
Source: design §7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

from imgdb.cli.context import style_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from click.shell_completion import CompletionItem

# Options of the program that are often written behind the verb, where most of them can't be.
_BEFORE_THE_VERB = ("--store", "--db", "--log-format", "--verbose", "-v", "--version")


class Entry(NamedTuple):
    """A verb before it is loaded.

    Attributes:
        names: the verb, then its other names.
        where: ``module:attribute`` below `imgdb.cli`.
        summary: one line for the help of the group.
        image: its names below ``imgdb image``, docker's own first.
    """

    names: tuple[str, ...]
    where: str
    summary: str
    image: tuple[str, ...] = ()

    @property
    def spellings(self) -> tuple[str, ...]:
        """All ways to call it."""
        return (*(f"imgdb {name}" for name in self.names), *(f"imgdb image {name}" for name in self.image))


class Section(NamedTuple):
    """Verbs under one headline."""

    title: str
    entries: tuple[Entry, ...]


class Told(click.Command):
    """A command whose help ends with its other names, and with paragraphs that are not wrapped.

    Args:
        extras: headline and lines of each paragraph.

    Attributes:
        spellings: all ways to call it.
        extras: as given.
    """

    spellings: tuple[str, ...] = ()

    def __init__(self, *args: Any, extras: Mapping[str, Sequence[str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extras = extras or {}

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The other names, then the paragraphs."""
        others = [name for name in self.spellings if name != ctx.command_path]
        for title, lines in {"Same as": [", ".join(others)] if others else [], **self.extras}.items():
            if lines:
                formatter.write(f"\n{title}:\n")
                formatter.write("".join(f"  {line}\n" for line in lines))


class Verb(Told):
    """A command that takes ``-q`` and ``--progress``, too.

    Args:
        style: show these two in the help; other verbs take them all the same.
    """

    def __init__(self, *args: Any, style: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        taken = {name for param in self.params for name in param.opts}
        self.params += [option for option in style_options(hidden=not style) if not taken & {*option.opts}]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; an option of the program behind the verb gets a hint."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name
            if name not in _BEFORE_THE_VERB:
                raise
            raise click.UsageError(f"{name} goes before the verb: imgdb {name} ...", ctx) from None


class Group(Told, click.Group):
    """A group that names what was meant when a verb is unknown."""

    command_class = Verb

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"no_args_is_help": False, **kwargs})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; without any argument the help comes, and it is a usage error all the same."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb that is meant."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            self._unknown(ctx, name)
        return super().resolve_command(ctx, args)

    def _unknown(self, ctx: click.Context, name: str) -> NoReturn:
        from difflib import get_close_matches  # noqa: PLC0415 - needed for mistakes only

        close = get_close_matches(name, self.known_names(ctx))
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise click.UsageError(f"there is no verb {name!r}{hint}", ctx)

    def known_names(self, ctx: click.Context) -> list[str]:
        """Every name that `get_command` knows."""
        return self.list_commands(ctx)


class LazyGroup(Group):
    """A group whose verbs come from a table.

    Args:
        sections: the table.
        below_image: use the names that verbs have below ``imgdb image``.
    """

    def __init__(
        self, *args: Any, sections: tuple[Section, ...] = (), below_image: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._sections = sections
        self._below_image = below_image

    def _names(self, entry: Entry) -> tuple[str, ...]:
        return entry.image if self._below_image else entry.names

    def _entries(self) -> Iterator[Entry]:
        return (entry for section in self._sections for entry in section.entries if self._names(entry))

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The verbs, without aliases, in the order in which people need them."""
        return [self._names(entry)[0] for entry in self._entries()]

    def known_names(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Verbs and aliases."""
        return [name for entry in self._entries() for name in self._names(entry)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Load a verb, by any of its names."""
        for entry in self._entries():
            if cmd_name in self._names(entry):
                return load(entry)
        return None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs first, as docker has it: they are what people look for."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """A headline and its verbs, each with its aliases."""
        width = max(len(", ".join(self._names(entry))) for entry in self._entries())
        for section in self._sections:
            entries = [entry for entry in section.entries if self._names(entry)]
            if entries:
                with formatter.section(section.title):
                    formatter.write_dl(
                        [(", ".join(self._names(entry)).ljust(width), entry.summary) for entry in entries]
                    )

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Verbs and aliases from the table, then options."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415 - needed for completion only

        found = [
            CompletionItem(name, help=entry.summary)
            for entry in self._entries()
            for name in self._names(entry)
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)


def load(entry: Entry) -> click.Command:
    """Import the verb."""
    import pkgutil  # noqa: PLC0415 - loads importlib.util, which the help of the program does without

    command: click.Command = pkgutil.resolve_name(f"imgdb.cli.{entry.where}")
    if isinstance(command, Told):
        command.spellings = entry.spellings
    return command
