"""The program: its verbs, and the options before them."""

from __future__ import annotations

import click

from imgdb import __version__
from imgdb.cli.context import setting, style_options
from imgdb.cli.groups import Entry, LazyGroup, Section
from imgdb.cli.report import FORMS

SECTIONS = (
    Section(
        "Archives",
        (
            Entry(
                ("export", "save"), "archive:export", "Write images to one archive (docker save).", ("save",)
            ),
            Entry(("import", "load"), "archive:import_", "Read image archives (docker load).", ("load",)),
        ),
    ),
    Section(
        "Images",
        (
            Entry(("images", "ls"), "images:images", "List images.", ("ls", "list")),
            Entry(("inspect",), "images:inspect", "Show everything about images, as JSON.", ("inspect",)),
            Entry(("history",), "images:history", "Show how an image was made.", ("history",)),
            Entry(("tag",), "names:tag", "Give an image another name.", ("tag",)),
            Entry(
                ("rm", "rmi", "untag"),
                "names:rm",
                "Remove names, or an image with all its names.",
                ("rm", "remove", "untag"),
            ),
            Entry(("pin",), "lease:pin", "Keep images: their names can't be removed or moved.", ("pin",)),
            Entry(("unpin",), "lease:unpin", "Let images be removed and moved again.", ("unpin",)),
            Entry(("prune",), "keep:prune", "Remove images that nobody uses.", ("prune",)),
            Entry(
                ("exists",), "images:exists", "Tell by the exit code whether an image is here.", ("exists",)
            ),
            Entry(("image",), "root:image", "These verbs as docker groups them: image ls, image save."),
        ),
    ),
    Section(
        "File systems",
        (
            Entry(("unpack",), "filesystem:unpack", "Unpack the layers of images into snapshots."),
            Entry(("mount",), "filesystem:mount", "Mount an image or a snapshot at a directory.", ("mount",)),
            Entry(("umount", "unmount"), "filesystem:umount", "End mounts.", ("unmount",)),
            Entry(
                ("snapshot",), "snapshot:snapshot", "Root file systems under a key: ls, prepare, exec, rm."
            ),
            Entry(("rootfs",), "filesystem:rootfs", "Write a root file system as one tar (docker export)."),
        ),
    ),
    Section(
        "Store",
        (
            Entry(("gc",), "keep:gc", "Free what nothing needs."),
            Entry(("df",), "keep:df", "Show disk usage, and what could be freed."),
            Entry(("why",), "keep:why", "Show what keeps a blob or an image."),
            Entry(("lease",), "lease:lease", "Protect blobs, images and snapshots from gc."),
            Entry(("check", "fsck"), "check:check", "Compare everything with everything, and repair it."),
            Entry(("info",), "info:info", "Show where the store is and what is in it."),
            Entry(("events",), "events:events", "List what happened to images."),
            Entry(("blob", "content"), "blob:blob", "Look at the bytes below the images: ls, stat, cat."),
            Entry(("db",), "db:db", "Make a store; upgrade, check, back up, rebuild its database."),
            Entry(("completion",), "completion:completion", "Print a completion script for a shell."),
        ),
    ),
)

_EXIT_CODES = (
    "0 done, 1 failed or not found, 2 usage, 3 damage, 4 refused by a policy or",
    "conflict, 75 busy (try again), 128+n ended by signal n",
)


@click.group(
    cls=LazyGroup,
    sections=SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    extras={"Exit codes": _EXIT_CODES},
)
@setting(
    "--store",
    type=click.Path(file_okay=False, readable=False),
    metavar="DIR",
    envvar="IMGDB_STORE",
    help="The store.  [default: $IMGDB_STORE, else /var/lib/imgdb for root, ~/.local/share/imgdb for others]",
)
@setting(
    "--db",
    type=click.Path(readable=False),
    metavar="FILE|URL",
    envvar="IMGDB_DB",
    help="Its database, if it is outside of the store; said once, the store remembers it.  [env: IMGDB_DB]",
)
@setting(
    "--log-format",
    type=click.Choice(FORMS),
    metavar="FORM",
    help="Form of the messages on standard error: text or json.",
)
@setting("-v", "--verbose", count=True, help="Say more; -vv shows where an error came from.")
@click.version_option(__version__, "--version", message="imgdb %(version)s")
def cli() -> None:
    """Keep container images in a folder: import archives, look, export them again.

    export and import are docker's save and load, rootfs and import --rootfs its export and import.
    """


cli.params[-1:-1] = style_options()


@click.group(cls=LazyGroup, sections=SECTIONS, below_image=True)
def image() -> None:
    """The verbs for images, as docker groups them."""
