"""``tag`` and ``rm``: change what names point to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from imgdb.cli.context import Settings, complete_images, note, pass_settings
from imgdb.cli.groups import Verb
from imgdb.cli.output import say
from imgdb.cli.params import Failures
from imgdb.cli.printable import human_size, printable
from imgdb.errors import ImgdbError, NotFoundError

if TYPE_CHECKING:
    from imgdb.db.naming import Removal


@click.command(cls=Verb)
@click.argument("source", shell_complete=complete_images)
@click.argument("name", required=False)
@click.option(
    "--restore",
    is_flag=True,
    help="Let the name SOURCE point where it pointed before; a second argument is the digest of an "
    "earlier target (see imgdb history --tag).",
)
@pass_settings
def tag(settings: Settings, /, source: str, name: str | None, restore: bool) -> None:
    """Give an image another NAME (docker tag).

    An image that loses NAME by this is kept, without a name if it has no other.
    """
    if name is None and not restore:
        raise click.UsageError("tag needs a SOURCE and a NAME")
    with settings.open() as store:
        if restore:
            note(f"{source} points to {store.restore_tag(source, name)} again", settings)
            return
        before = store.tag(source, name or "")
    if before is not None:
        note(
            f"{before.display_name} pointed to {before.target.digest}; {undo(before.display_name)}", settings
        )


def undo(name: str) -> str:
    """What to say behind a change that history remembers."""
    return f"undo: imgdb tag --restore {name}"


@click.command(cls=Verb)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_images)
@click.option(
    "-f",
    "--force",
    is_flag=True,
    help="Remove an ID whose image has names in several repositories; a NAME that does not exist "
    "is no error.",
)
@click.option("-i", "--ignore", is_flag=True, help="A NAME that does not exist is no error, and not told.")
@click.option("--no-gc", is_flag=True, help="Remove the names only; the next gc frees what they kept.")
@click.option("--no-prune", is_flag=True, help="Accepted for docker's sake: images have no parents here.")
@pass_settings
def rm(
    settings: Settings, /, names: tuple[str, ...], force: bool, ignore: bool, no_gc: bool, **_: bool
) -> None:
    """Remove names, or an image with all its names (docker rmi).

    NAME may be an ID: then all names of the image go. What nothing else needs is freed.
    """
    failures = Failures(settings)
    deleted = False
    with settings.open() as store:
        for name in names:
            try:
                deleted |= _tell(store.remove(name, force=force), settings)
            except NotFoundError as error:
                if force and not ignore:
                    settings.messages.warning(str(error))
                elif not ignore:
                    failures.add(error)
            except ImgdbError as error:
                failures.add(error)
        freed = store.reclaim() if deleted and not no_gc else 0
    if freed:
        say(f"Total reclaimed space: {human_size(freed)}")
    failures.leave()


def _tell(removal: Removal, settings: Settings) -> bool:
    """Docker's lines; whether the image went with its names."""
    for record in removal.records:
        if not record.is_dangling:
            say(f"Untagged: {printable(record.display_name)}")
            if not removal.deletes:
                name = record.display_name
                note(f"{name} was {removal.target}; {undo(name)}", settings)
    if removal.deletes:
        say(f"Deleted: {removal.target}")
    return removal.deletes
