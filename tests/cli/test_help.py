"""Help: there for every command, within 80 columns, and the same in docs/cli.md."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from imgdb import __version__
from imgdb.cli.groups import Group, LazyGroup, Verb
from imgdb.cli.root import SECTIONS, cli, image
from tests.tools.sample import ROOT, load_script

make_cli_docs = load_script("make_cli_docs")


def every_command():
    """Words and command, for all there are."""
    context = cli.make_context("imgdb", [], resilient_parsing=True)
    return [(path.split()[1:], command) for path, command, _ in make_cli_docs._commands(cli, context)]


COMMANDS = every_command()
IDS = [" ".join(words) for words, _ in COMMANDS]


@pytest.mark.parametrize("words", [[], *(words for words, _ in COMMANDS)], ids=["", *IDS])
def test_help_is_legible(imgdb, words):
    """On standard output, in 80 columns, with usage, a sentence, and -h for short."""
    done = imgdb(*words, "--help")
    assert done.err == ""
    assert imgdb(*words, "-h").out == done.out
    lines = done.out.splitlines()
    assert lines[0].startswith(" ".join(["Usage: imgdb", *words]))
    assert [line for line in lines if len(line) > 80] == []
    assert lines[2].startswith("  ")
    assert lines[2].rstrip()[-1] not in " …"


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=IDS)
def test_commands_are_ours(words, command):
    """Groups name what was meant, verbs take -q and --progress; each option says what it does."""
    assert isinstance(command, Group if isinstance(command, click.Group) else Verb), words
    for param in command.params:
        assert not isinstance(param, click.Option) or param.help, (words, param.name)


@pytest.mark.parametrize(
    "words", [words for words, command in COMMANDS if isinstance(command, Verb)], ids=" ".join
)
@pytest.mark.parametrize("option", ["-q", "--quiet", "--progress=plain"])
def test_style_behind_every_verb(words, option):
    """Both options may stand behind every verb, and before it."""
    command = dict(zip(IDS, [command for _, command in COMMANDS], strict=True))[" ".join(words)]
    context = click.Context(command, info_name="x", resilient_parsing=True)
    command.parse_args(context, [option])
    assert context.args == []


def test_table_of_verbs():
    """Each name is there once, loads, and its summary fits in its line."""
    names = [name for section in SECTIONS for entry in section.entries for name in entry.names]
    below = [name for section in SECTIONS for entry in section.entries for name in entry.image]
    assert len(names) == len(set(names))
    assert len(below) == len(set(below))
    context = cli.make_context("imgdb", [], resilient_parsing=True)
    for group, group_names in ((cli, names), (image, below)):
        assert isinstance(group, LazyGroup)
        assert None not in [group.get_command(context, name) for name in group_names]
    assert [entry for section in SECTIONS for entry in section.entries if len(entry.summary) > 62] == []


def test_aliases_stand_beside_their_verb(imgdb):
    """In the help of the program, and in the verb's own."""
    lines = [line.split("  ")[1] for line in imgdb("--help").out.splitlines() if line.startswith("  ")]
    assert {"export, save", "import, load", "images, ls", "rm, rmi, untag", "blob, content"} <= set(lines)
    assert "Same as:\n  imgdb export, imgdb image save\n" in imgdb("save", "--help").out
    assert "Same as:\n  imgdb blob\n" in imgdb("content", "--help").out


@pytest.mark.parametrize("words", [[], ["image"], ["blob"], ["db"]])
def test_no_verb(imgdb, words):
    """The help comes, on standard error, since a script that forgot its verb must not succeed."""
    done = imgdb(*words, code=2, store=None)
    assert done.out == ""
    assert done.err == imgdb(*words, "--help").out


def test_version(imgdb):
    """One line."""
    assert imgdb("--version").out == f"imgdb {__version__}\n"


def test_page_is_up_to_date():
    """docs/cli.md is what scripts/make_cli_docs.py writes."""
    assert make_cli_docs.PAGE.read_text(encoding="utf-8") == make_cli_docs.page(), (
        "run scripts/make_cli_docs.py"
    )


def test_page_has_every_command():
    """With its options, but without those that every verb takes."""
    text = make_cli_docs.page()
    for name in IDS:
        assert f"# imgdb {name}\n" in text
    assert text.count("`-q, --quiet`: Neither progress nor notes.") < text.count("\n## ")


@pytest.mark.parametrize(("change", "code"), [("", 0), ("x", 1)])
def test_check(tmp_path, change, code):
    """`make_cli_docs.py --check` notices a page that is not what it would write."""
    for folder in ("scripts", "docs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "docs/cli.md").write_text(make_cli_docs.page() + change)
    script = tmp_path / "scripts/make_cli_docs.py"
    script.write_bytes((ROOT / "scripts/make_cli_docs.py").read_bytes())
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, "is not up to date" in done.stderr) == (code, bool(code))
