"""Start-up is part of the interface: what is loaded for what. Times vary, modules don't."""

from __future__ import annotations

import json
import os

import pytest

from imgdb import places
from imgdb.cli import root

HEAVY = {
    *("sqlalchemy", "alembic", "tqdm", "blake3", "zstandard", "isal"),
    *("sqlite3", "logging", "asyncio", "subprocess", "tempfile", "hashlib", "email", "ssl"),
}

# Runs commands one after the other and says which modules each has added.
MODULES = """
import contextlib, io, json, os, sys
import click
seen = set(sys.modules)
from imgdb.cli.main import run
for arguments, environment in json.loads(sys.argv[1]):
    os.environ.update(environment)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = run(arguments)
    for name in environment:
        del os.environ[name]
    print(json.dumps([code, sorted(set(sys.modules) - seen)]))
    seen |= set(sys.modules)
"""


@pytest.fixture
def modules(python, tmp_path):
    """`modules([arguments, environment], …)`: for each command its exit code and what it has loaded."""

    def run(*commands):
        commands = [[["--store", str(tmp_path / "store"), *words], more] for words, more in commands]
        done = python("-c", MODULES, json.dumps(commands))
        assert done.stderr == ""
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def heavy(names):
    """The packages among them that cost much."""
    return {name.partition(".")[0] for name in names} & HEAVY


def test_help_of_the_program(modules):
    """Click, a table of verbs, and not one verb's module."""
    ((code, loaded),) = modules([["--help"], {}])
    ours = {name for name in loaded if name.startswith("imgdb")}
    assert code == 0
    assert ours == {
        *("imgdb", "imgdb.errors", "imgdb.cli", "imgdb.cli.main", "imgdb.cli.root", "imgdb.cli.groups"),
        *("imgdb.cli.context", "imgdb.places", "imgdb.cli.report", "imgdb.cli.printable"),
        "imgdb.cli.streams",
    }
    assert heavy(loaded) == set()


VERBS = [entry.names[0] for section in root.SECTIONS for entry in section.entries]
LIGHT = [
    *(
        [[], 2],
        [["--version"], 0],
        [["-h"], 0],
        [["imagse"], 2],
        [["--nosuch"], 2],
        [["images", "--nosuch"], 2],
    ),
    *([["inspect"], 2], [["export"], 2], [["images", "--format", "{{.X"], 2], [["rm", "--store", "x"], 2]),
    *([["import", "--max-size", "x"], 2], [["export", "x", "--platform", "/"], 2]),
    *([[verb, "--help"], 0] for verb in VERBS),
    *([["completion", shell], 0] for shell in ("bash", "zsh", "fish")),
]


def test_help_and_usage_errors(modules):
    """The help of every verb, scripts for shells and mistakes need no SQLAlchemy."""
    ends = modules(*([words, {}] for words, _ in LIGHT))
    found = [(words, code, heavy(loaded)) for (words, _), (code, loaded) in zip(LIGHT, ends, strict=True)]
    assert found == [(words, code, set()) for words, code in LIGHT]


def test_completion(modules):
    """Verbs, options and values at once; names of images without SQLAlchemy."""
    lines = ["imgdb ", "imgdb exp", "imgdb export --", "imgdb export --format ", "imgdb inspect "]
    questions = [[[], {"_IMGDB_COMPLETE": "bash_complete", "_IMGDB_LINE": line}] for line in lines]
    ends = modules(*questions)
    needed = {"blake3", "hashlib"}  # to tell names from digests
    assert [(code, heavy(loaded) - needed) for code, loaded in ends] == [(0, set())] * len(lines)


def test_verbs_load_no_alembic(modules, stock):
    """Making a store does, nothing else where there is nothing to migrate."""
    commands = [["import", stock], ["images"], ["import", stock], ["inspect", "busybox"], ["db", "current"]]
    ends = modules(*([words, {}] for words in commands))
    assert [code for code, _ in ends] == [0] * len(commands)
    assert "alembic" in heavy(ends[0][1])
    ends = modules(*([words, {}] for words in commands))
    assert ["alembic" in heavy(names) for _, names in ends] == [False] * len(commands)
    assert "sqlalchemy" in heavy(ends[0][1])


@pytest.mark.parametrize("user", [0, 4242])
@pytest.mark.parametrize("data", [None, "", "/data"])
@pytest.mark.parametrize("told", [None, "", "/told"])
def test_default_root(monkeypatch, user, data, told):
    """Root's store is the machine's, everybody else has one of their own."""
    monkeypatch.setattr("os.geteuid", lambda: user)
    for name, value in (("XDG_DATA_HOME", data), ("IMGDB_STORE", told)):
        if value is not None:
            monkeypatch.setenv(name, value)
    own = f"{data or os.path.expanduser('~/.local/share')}/imgdb"
    assert places.default_root() == (told or ("/var/lib/imgdb" if user == 0 else own))


def test_other_store(monkeypatch, tmp_path):
    """Root is told of the store of the user behind sudo, and the user of root's."""
    home = tmp_path / "home"
    other = home / ".local/share/imgdb"
    other.mkdir(parents=True)
    monkeypatch.setattr("os.path.expanduser", lambda path: str(home) if path == "~ann" else path)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_USER", "ann")
    assert places.other_store(None) is None
    (other / "store.json").touch()
    assert places.other_store(None) == str(other)
    assert places.other_store(str(other)) is None
    monkeypatch.setattr("os.geteuid", lambda: 4242)
    monkeypatch.setattr(places, "_OF_ROOT", str(other))
    assert places.other_store(None) == str(other)


def test_images_names_the_other_store(imgdb, monkeypatch, tmp_path):
    """Where this store is empty or absent and nobody asked for it by name."""
    other = tmp_path / "of_root"
    other.mkdir()
    (other / "store.json").touch()
    monkeypatch.setattr(places, "_OF_ROOT", str(other))
    monkeypatch.setattr("os.geteuid", lambda: 4242)
    hint = f"imgdb: there is another store in {other}; see it with --store {other}\n"
    assert imgdb("images", code=1, store=None).err.startswith(hint)
    assert hint not in imgdb("images", code=1, store=tmp_path / "absent").err
    assert hint not in imgdb("-q", "images", code=1, store=None).err
