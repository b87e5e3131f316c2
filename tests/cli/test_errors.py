"""Every way to fail: an exit code, one line, and nothing in it that could steer a terminal."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sqlite3
import tempfile

import pytest

from imgdb.db import engine
from imgdb.errors import BusyError, DataLossError, ImgdbError, RefusedError
from imgdb.store import ImageStore
from tests.builder import Image, write_tar
from tests.cli.conftest import BUSYBOX, PLAIN_TEXT

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\u2028\r\nimgdb: ok\x7f"


@pytest.fixture
def failing(monkeypatch):
    """Let `ImageStore.images` raise."""

    def fail(error):
        def images(_store):
            raise error

        monkeypatch.setattr(ImageStore, "images", images)

    return fail


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ImgdbError("plain"), 1, "plain"),
        (DataLossError("lost"), 3, "lost"),
        (RefusedError("no"), 4, "no"),
        (BusyError("later"), 75, "later"),
        (OSError(errno.EIO, "Input/output error", "/x/y"), 1, "/x/y: Input/output error"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/b"), 1, "/b: Invalid cross-device"),
        (OSError(errno.EIO, "Input/output error", b"/x/\xff"), 1, "/x/\\udcff: Input/output error"),
        (MemoryError(), 1, "out of memory"),
        (ValueError("odd"), 1, "internal error: ValueError: odd (run with -vv for the traceback, and rep"),
        (RecursionError("deep"), 1, "internal error: RecursionError: deep"),
        (UnicodeError("no text"), 1, "internal error: UnicodeError: no text"),
        (KeyboardInterrupt(), 130, None),
        (BrokenPipeError(), 141, None),
        (SystemExit(7), 7, None),
    ],
)
def test_codes(imgdb, failing, error, code, said):
    """The class decides the code; signals and closed pipes say nothing."""
    failing(error)
    done = imgdb("images", code=code)
    assert done.out == ""
    if said is None:
        assert done.err == ""
    else:
        assert done.err.startswith(f"imgdb: error: {said}")
        assert done.err.count("\n") == 1


def test_to_exists_one_is_an_answer(imgdb, monkeypatch):
    """Whatever fails there, the code is not 1."""

    def exists(_store, _name):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(ImageStore, "exists", exists)
    assert imgdb("exists", "busybox", code=2).err == "imgdb: error: Input/output error\n"


@pytest.mark.parametrize("options", [[], ["-v"], ["-vv"]])
def test_traceback(imgdb, failing, options):
    """Only with -vv, and as safe to print as the message."""
    failing(ValueError(EVIL))
    done = imgdb(*options, "images", code=1)
    assert ("Traceback (most recent call last)" in done.err) == (options == ["-vv"])
    assert PLAIN_TEXT.fullmatch(done.err)
    assert done.err.splitlines()[-1].startswith("imgdb: error: internal error: ValueError: \\x1b]0;owned")


def test_traceback_as_json(imgdb, failing):
    """One object, so that a collector gets whole records."""
    failing(ValueError("odd"))
    note, error = map(json.loads, imgdb("-vv", "--log-format", "json", "images", code=1).err.splitlines())
    assert (note["level"], error["level"]) == ("info", "error")
    assert error["traceback"].startswith("Traceback")


def test_tracebacks_of_single_arguments(imgdb):
    """Errors that are told on the way have theirs, too."""
    assert "Traceback" in imgdb("-vv", "rm", "absent", code=1).err
    assert "Traceback" not in imgdb("-v", "rm", "absent", code=1).err


@pytest.mark.parametrize(
    ("arguments", "code", "level"),
    [
        (["images", "--nosuch"], 2, "error"),
        (["--nosuch"], 2, "error"),
        (["imagse"], 2, "error"),
        (["inspect", "absent"], 1, "error"),
        (["rm", "-f", "absent"], 0, "warning"),
        (["db", "init"], 0, "info"),
    ],
)
@pytest.mark.parametrize("option", [["--log-format", "json"], ["--log-format=json"]])
def test_messages_as_json(imgdb, arguments, code, level, option):
    """Every line on standard error is an object, even before the options are parsed."""
    done = imgdb(*option, *arguments, code=code)
    (message,) = map(json.loads, done.err.splitlines())
    assert message["level"] == level
    assert not message["message"].startswith("imgdb:")


@pytest.mark.parametrize("form", ["text", "json"])
def test_messages_of_the_library(imgdb, root, form):
    """What it logs is shown: here that the mirror of names could not be written."""
    (root / "index.json").unlink()
    (root / "index.json").mkdir()
    done = imgdb("--log-format", form, "tag", "busybox", "mine")
    (root / "index.json").rmdir()
    (line,) = done.err.splitlines()
    text = json.loads(line)["message"] if form == "json" else line.removeprefix("imgdb: warning: ")
    assert text.startswith(f"the mirror of names in {root} was not written")
    imgdb("tag", "busybox", "again")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["imagse"], "there is no verb 'imagse'; did you mean image"),
        (["laod", "x"], "there is no verb 'laod'; did you mean load"),
        (["xyzzy"], "there is no verb 'xyzzy' (see imgdb --help)"),
        (["image", "inspekt"], "there is no verb 'inspekt'; did you mean inspect? (see imgdb image --help)"),
        (["image", "import"], "there is no verb 'import'"),
        (["blob", "sta"], "there is no verb 'sta'; did you mean stat? (see imgdb blob --help)"),
        (["db", "upgarde"], "did you mean upgrade?"),
        (["images", "--digest"], "No such option"),
        (
            ["images", "--store", "x"],
            "--store goes before the verb: imgdb --store ... (see imgdb images --help)",
        ),
        (["images", "-v"], "-v goes before the verb"),
        (["inspect"], "Missing argument"),
        (["images", "a", "b"], "unexpected extra argument (b)"),
        (["--progress", "x", "images"], "'x' is not one of 'auto', 'plain', 'json', 'none'"),
        (["--log-format", "x", "images"], "'x' is not one of 'text', 'json'"),
        (["completion"], "Choose from: bash, zsh, fish"),
        (["images", "--format", "{{.X"], "template: unsupported"),
        (["images", "--format", "yaml"], "unknown format 'yaml'"),
        (["images", "--format", "{{.Nosuch}}"], "there is no field .Nosuch"),
        (["images", "--sort", "colour"], "'colour' is not one of"),
        (["--store", "", "images"], "--store is empty"),
        (["--db", "", "images"], "--db is empty"),
        ([EVIL], "there is no verb"),
        (["images", f"--{EVIL}"], "No such option"),
        (["history", EVIL], "is neither an image name nor an ID"),
        (["tag", "busybox", EVIL], "invalid image name"),
        (["images", "--filter", EVIL], "has no value"),
        (["history", "\udcff"], "is neither an image name nor an ID"),
    ],
)
def test_usage(imgdb, arguments, said):
    """Exit code 2, one printable line that says what was wrong; nothing on standard output."""
    done = imgdb(*arguments, code=2)
    assert (done.out, done.err.count("\n")) == ("", 1)
    assert said in done.err
    assert PLAIN_TEXT.fullmatch(done.err)


def test_a_store_that_is_a_file(imgdb, tmp_path):
    """Reading and writing say the same."""
    (tmp_path / "file").touch()
    for arguments in (["images"], ["import", "/dev/zero"], ["db", "init"], ["info"]):
        done = imgdb("--store", tmp_path / "file", *arguments, code=2)
        assert f"Directory '{tmp_path}/file' is a file" in done.err


def test_busy(imgdb, root, monkeypatch):
    """Somebody else writes for too long: 75, so that cron tries again."""
    monkeypatch.setitem(engine.run_write.__kwdefaults__, "deadline_s", 0.2)
    other = sqlite3.connect(root / "imgdb.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    done = imgdb("tag", "busybox", "mine", code=75)
    imgdb("exists", "busybox")
    other.execute("ROLLBACK")
    other.close()
    assert re.fullmatch(r"imgdb: error: .*imgdb\.db: the database is locked by somebody else.*\n", done.err)
    imgdb("tag", "busybox", "mine")


@pytest.mark.parametrize("arguments", [["rm", "busybox"], ["tag", "busybox", "x"], ["import", "-"]])
def test_the_store_of_another_user(imgdb, monkeypatch, arguments):
    """Writing is refused, naming the command that would do."""
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    done = imgdb(*arguments, code=4, stdin=b"x")
    owner = "root" if os.getuid() == 0 else r"\S+"
    assert re.fullmatch(
        rf"imgdb: error: the store in \S+ belongs to {owner}; .*sudo -u {owner}.*\n", done.err
    )


# Modules are loaded first: as nobody, the interpreter's own files may be out of reach.
AS_NOBODY = """
import contextlib, importlib, io, json, os, pkgutil, sys
import difflib, imgdb.cli, imgdb.store, sqlalchemy.dialects.sqlite, traceback
for module in pkgutil.iter_modules(imgdb.cli.__path__):
    importlib.import_module(f"imgdb.cli.{module.name}")
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for arguments in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as err:
        code = imgdb.cli.main.run(["--store", sys.argv[1], *arguments])
    print(json.dumps([arguments, code, err.getvalue()]))
"""
REFUSED = [
    ["images"],
    ["inspect", "busybox"],
    ["exists", "busybox"],
    ["rm", "busybox"],
    ["info"],
    ["import", os.devnull],
]


@pytest.fixture
def in_the_open(root):
    """A copy of the store to which others find the way; pytest's own folders are closed to them."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: S103 - it is the point
        yield shutil.copytree(root, os.path.join(folder, "store"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_nobody_looks_at_roots_store(in_the_open, python, tmp_path, mode):
    """Exit 4, naming `sudo -u root`; the store's directory or its files are closed to others."""
    os.chmod(in_the_open, mode)
    (tmp_path / "commands").write_text(json.dumps(REFUSED))
    with open(tmp_path / "commands", encoding="utf-8") as commands:
        done = python("-c", AS_NOBODY, in_the_open, stdin=commands)
    assert done.stderr == ""
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(arguments, code) for arguments, code, _ in ends] == [(command, 4) for command in REFUSED]
    for _, _, err in ends:
        assert re.fullmatch(r"imgdb: error: the store in \S+ belongs to root; .*sudo -u root.*\n", err)


@pytest.fixture
def evil(imgdb, tmp_path):
    """A store with an image whose every text is hostile, named evil:1."""
    image = Image(
        [{"x": b"1"}],
        labels={EVIL: EVIL},
        author=EVIL,
        created=EVIL,
        history=[{"created_by": EVIL, "comment": EVIL, "created": EVIL}],
    )
    path = image.oci_tar(tmp_path / f"evil{EVIL.replace('/', '')}.tar", "evil:1")
    imgdb("import", path)
    return imgdb


@pytest.mark.parametrize(
    "arguments",
    [
        ["images"],
        ["images", "--format", "json"],
        ["images", "--format", "jsonl"],
        ["images", "evil:1", "--format", "{{.labels}} {{json .labels}} {{.CreatedAt}}"],
        ["images", "evil:1", "--format", "table {{.labels}}\t{{.ID}}"],
        ["inspect", "evil:1"],
        ["inspect", "evil:1", "-f", "{{.Author}} {{.Config}} {{range $.Config.Labels}}{{.}}{{end}}"],
        ["history", "evil:1"],
        ["history", "--no-trunc", "--no-human", "evil:1"],
        ["history", "evil:1", "--format", "json"],
        ["history", "evil:1", "--format", "{{.CreatedBy}} {{.Comment}} {{.CreatedAt}}"],
        ["events"],
        ["events", "--format", "json"],
        ["events", "--format", "{{.source}}"],
        ["blob", "ls"],
    ],
)
def test_hostile_texts(evil, arguments):
    """Names, labels and histories of other people can't reach the terminal."""
    code = 2 if "$" in " ".join(arguments) else 0
    done = evil(*arguments, code=code)
    assert PLAIN_TEXT.fullmatch(done.out + done.err)
    assert done.out or code


def test_hostile_texts_survive_in_json(evil):
    """Escaped they are, changed they are not."""
    (found,) = json.loads(evil("inspect", "evil:1").out)
    assert (found["Author"], found["Config"]["Labels"]) == (EVIL, {EVIL: EVIL})


@pytest.mark.parametrize("form", ["text", "json"])
def test_hostile_archive(imgdb, tmp_path, form):
    """A member's path, and the archive's own, in an error."""
    path = tmp_path / f"a{EVIL.replace('/', '')}.tar"
    write_tar(path, {f"../{EVIL}": b"", "index.json": b"{}"})
    done = imgdb("--log-format", form, "import", path, code=3)
    assert PLAIN_TEXT.fullmatch(done.err)
    assert done.err.count("\n") == 1
    assert "owned" in done.err


def test_hostile_progress(imgdb, tmp_path):
    """Paths of members are shown while they are read."""
    members = {f"x{EVIL.replace('/', '')}": b"1"}
    write_tar(tmp_path / "a.tar", members | {"index.json": BUSYBOX.blob.data})
    for style in ("plain", "json"):
        done = imgdb("import", "--progress", style, tmp_path / "a.tar", code=3)
        assert PLAIN_TEXT.fullmatch(done.err)
        assert "egnp.exe" in done.err


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_that_can_not_show_everything(python, tmp_path, monkeypatch, encoding):
    """What its encoding lacks is escaped, in results and in messages."""
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    there = tmp_path / "日本"
    run = ["-m", "imgdb", "--store", there]
    assert "\\u65e5\\u672c" in python(*run, "db", "init").stderr
    done = python(*run, "info")
    assert (done.returncode, "\\u65e5\\u672c" in done.stdout) == (0, True)
    assert python(*run, "inspect", "日").returncode == 2
