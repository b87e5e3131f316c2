"""``completion``: scripts for the shells, and the answers to what they ask.

Names of images come from the mirror beside the blobs: nobody waits for SQLAlchemy at a prompt.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import click
from click.shell_completion import BashComplete, ShellComplete, get_completion_class, split_arg_string

from imgdb.cli.groups import Verb
from imgdb.cli.output import say

if TYPE_CHECKING:
    from imgdb.cli.context import Settings

_COMPLETE = "_IMGDB_COMPLETE"
_REF_NAME = "org.opencontainers.image.ref.name"

# click's own script is led by COMP_WORDS, which bash splits at colons: no tag could be completed.
_BASH = """\
_imgdb_completion() {
    local type value current=${COMP_LINE:0:COMP_POINT} head=
    current=${current##*[[:space:]]}
    case $current in
        --*=*) current=${current#*=} ;;
    esac
    # Readline replaces what follows the last colon, so that is all it may be given.
    case $COMP_WORDBREAKS in
        *:*) [[ $current == *:* ]] && head=${current%:*}: ;;
    esac
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${value#"$head"}") ;;
        esac
    done < <(_IMGDB_LINE=${COMP_LINE:0:COMP_POINT} _IMGDB_COMPLETE=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F _imgdb_completion imgdb
"""


_EXAMPLES = (
    "source <(imgdb completion bash)",
    "source <(imgdb completion zsh)",
    "imgdb completion fish | source",
)


@click.command(cls=Verb, extras={"Examples": _EXAMPLES})
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell, which completes verbs, options and names of images."""
    say(_shell(shell)(ctx.find_root().command, {}, "imgdb", _COMPLETE).source().rstrip("\n"))


class Bash(BashComplete):
    """bash, with the line up to the cursor instead of the words."""

    def source(self) -> str:
        """The script."""
        return _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """Whole words before the cursor, and the one that is being typed."""
        line = os.environ.get("_IMGDB_LINE", "")
        words = split_arg_string(line)[1:]
        return (words, "") if line[-1:].isspace() or not words else (words[:-1], words[-1])


def _shell(name: str) -> type[ShellComplete]:
    known = Bash if name == "bash" else get_completion_class(name)
    if known is None:
        raise click.UsageError(f"no completion for {name}")
    return known


def complete(instruction: str, settings: Settings) -> int:
    """Answer a shell: ``bash_complete`` and the like; says nothing rather than disturb the prompt."""
    from imgdb.cli.root import cli  # noqa: PLC0415 - root loads this module when the verb is used

    shell, _, what = instruction.partition("_")
    with suppress(Exception):
        answer = _shell(shell)(cli, {"obj": settings}, "imgdb", _COMPLETE)
        text = answer.source() if what == "source" else answer.complete()
        if text:
            say(text)
        return 0
    return 1


def image_names(settings: Settings) -> list[str]:
    """Familiar names of the images of the store; none where they can't be read."""
    from imgdb.oci.reference import familiar  # noqa: PLC0415 - not needed for verbs and options

    with suppress(OSError, ValueError, KeyError):
        return sorted(familiar(name) for name in _mirrored(settings.root))
    return []


def _mirrored(root: str) -> set[str]:
    """Canonical names with a tag from the store's mirror of them; see `imgdb.mirror`."""
    with open(os.path.join(root, "index.json"), encoding="utf-8") as file:
        listed = json.load(file)["manifests"]
    names = {entry["annotations"][_REF_NAME] for entry in listed if _REF_NAME in entry.get("annotations", {})}
    with suppress(FileNotFoundError), open(os.path.join(root, "names.log"), encoding="utf-8") as log:
        for line in log:
            with suppress(ValueError):  # a torn line is ignored
                change = json.loads(line)
                (names.discard if change["descriptor"] is None else names.add)(change["name"])
    return {name for name in names if name and "@" not in name}
