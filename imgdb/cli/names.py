"""``tag`` and ``rm``: change what names point to."""

from __future__ import annotations

import click

from imgdb.cli.context import Settings, complete_images, note, pass_settings
from imgdb.cli.printable import printable
from imgdb.errors import ImgdbError


@click.command()
@click.argument("source", shell_complete=complete_images)
@click.argument("name")
@pass_settings
def tag(settings: Settings, /, source: str, name: str) -> None:
    """Give an image another NAME."""
    with settings.open() as store:
        before = store.tag(source, name)
    if before is not None:
        shown = printable(before.display_name)
        digest = before.target.digest
        note(f"{shown} pointed to {digest}; undo: imgdb tag {digest} {shown}", settings)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_images)
@click.option(
    "-f", "--force", is_flag=True, help="Remove an ID whose image has names in several repositories."
)
@click.option("-i", "--ignore", is_flag=True, help="No error for a NAME that does not exist.")
@pass_settings
def rm(settings: Settings, /, names: tuple[str, ...], force: bool, ignore: bool) -> None:
    """Remove names, or all names of an ID (docker rmi)."""
    failed: ImgdbError | None = None
    with settings.open() as store:
        for name in names:
            try:
                removal = store.remove(name, force=force)
            except ImgdbError as error:
                if not (ignore and error.exit_code == 1):
                    # As docker does: the others are removed all the same.
                    failed = _first(failed, error)
                continue
            for record in removal.records:
                if not record.is_dangling:
                    click.echo(f"Untagged: {printable(record.display_name)}")
            if removal.deletes:
                click.echo(f"Deleted: {removal.target}")
    if failed is not None:
        raise failed


def _first(failed: ImgdbError | None, error: ImgdbError) -> ImgdbError:
    if failed is None:
        return error
    click.echo(f"imgdb: error: {printable(str(error))}", err=True)
    return failed
