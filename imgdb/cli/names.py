"""``tag`` and ``rm``: change what names point to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from imgdb.cli.context import Settings, complete_images, note, pass_settings
from imgdb.cli.groups import Verb
from imgdb.cli.output import say
from imgdb.cli.params import Failures
from imgdb.cli.printable import printable
from imgdb.errors import ImgdbError, NotFoundError

if TYPE_CHECKING:
    from imgdb.db.naming import Removal


@click.command(cls=Verb)
@click.argument("source", shell_complete=complete_images)
@click.argument("name")
@pass_settings
def tag(settings: Settings, /, source: str, name: str) -> None:
    """Give an image another NAME (docker tag).

    An image that loses NAME by this is kept, without a name if it has no other.
    """
    with settings.open() as store:
        before = store.tag(source, name)
    if before is not None:
        shown, digest = before.display_name, before.target.digest
        note(f"{shown} pointed to {digest}; undo: imgdb tag {digest} {shown}", settings)


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
@click.option("--no-prune", is_flag=True, help="Accepted for docker's sake: images have no parents here.")
@pass_settings
def rm(settings: Settings, /, names: tuple[str, ...], force: bool, ignore: bool, **_: bool) -> None:
    """Remove names, or an image with all its names (docker rmi).

    NAME may be an ID: then all names of the image go.
    """
    failures = Failures(settings)
    with settings.open() as store:
        for name in names:
            try:
                _tell(store.remove(name, force=force), settings)
            except NotFoundError as error:
                if force and not ignore:
                    settings.messages.warning(str(error))
                elif not ignore:
                    failures.add(error)
            except ImgdbError as error:
                failures.add(error)
    failures.leave()


def _tell(removal: Removal, settings: Settings) -> None:
    for record in removal.records:
        if not record.is_dangling:
            say(f"Untagged: {printable(record.display_name)}")
            if not removal.deletes:
                name = record.display_name
                note(f"{name} was {removal.target}; undo: imgdb tag {removal.target} {name}", settings)
    if removal.deletes:
        say(f"Deleted: {removal.target}")
