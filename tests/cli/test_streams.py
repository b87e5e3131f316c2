"""Standard input, output and error: closed, full, gone, or a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys

import pytest

from tests.builder import Image, noise
from tests.cli.conftest import AMD, BUSYBOX, PLAIN_TEXT, temporary_files

LARGE = 1 << 20  # more than a pipe takes


@pytest.fixture
def shell(root):
    """`shell('imgdb images >&-')` runs a line of sh: (exit code, standard output, standard error)."""

    def run(line):
        command = f'"{sys.executable}" -m imgdb --store "{root}"'
        argv = ["sh", "-c", f'imgdb() {{ {command} "$@"; }}; {line}']
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def large(imgdb, tmp_path):
    """An image larger than a pipe's buffer is in the store, named large:1."""
    path = Image([{"noise": noise(LARGE)}]).oci_tar(tmp_path / "large.tar", "large:1")
    imgdb("import", path)
    return path


@pytest.mark.parametrize("verb", ["images", "images -q", "export busybox"])
@pytest.mark.parametrize(
    ("target", "why"), [("&-", "Bad file descriptor"), ("/dev/full", "No space left on device")]
)
def test_output_that_can_not_be_written(shell, verb, target, why):
    """One line, exit 1: a result that got lost is no success."""
    assert shell(f"imgdb {verb} >{target}") == (1, "", f"imgdb: error: standard output: {why}\n")


def test_full_device_by_name(shell):
    """The target is named, not the blob that was to be copied."""
    assert shell("imgdb export busybox -o /dev/full") == (
        1,
        "",
        "imgdb: error: /dev/full: No space left on device\n",
    )


def test_closed_input(shell, stock):
    """There is nothing to read; a file's name is enough."""
    empty = "imgdb: error: requested import from standard input, but it is empty\n"
    for line in ("imgdb import <&-", "imgdb import - <&-", "imgdb import </dev/null"):
        assert shell(line) == (2, "", empty)
    names = "imgdb: error: standard input: Bad file descriptor\n"
    assert shell("imgdb export --names-from - -o /dev/null <&-") == (1, "", names)
    code, out, err = shell(f'imgdb import "{stock}" <&-')
    assert (code, out.count("Loaded image"), err) == (0, 4, "")


def test_everything_closed(shell, imgdb, large, root):
    """Nothing can be said, nothing goes wrong: no blob and no database gets a standard descriptor."""
    imgdb("rm", "large:1")
    assert shell(f'imgdb import "{large}" <&- >&- 2>&-') == (1, "", "")
    imgdb("inspect", "large:1")
    assert (root / "imgdb.db").read_bytes()[:6] == b"SQLite"
    assert shell("imgdb inspect absent <&- >&- 2>&-")[0] == 1


def test_closed_errors(shell):
    """Messages are lost, results are not."""
    assert shell("imgdb images -q busybox 2>&-") == (0, f"{BUSYBOX.digest[7:19]}\n", "")
    assert shell("imgdb rm -f absent 2>&-") == (0, "", "")
    assert shell("imgdb rm absent 2>/dev/full") == (1, "", "")


@pytest.mark.parametrize("compress", ["none", "gzip"])
def test_reader_that_stops(large, shell, compress):
    """As every Unix filter: silent, and the code of SIGPIPE."""
    assert large
    line = f"{{ imgdb export large:1 --compress {compress}; echo $? >&2; }} | head -c 1 >/dev/null"
    assert shell(line) == (0, "", "141\n")


@pytest.mark.parametrize(
    "verb",
    ["images", "images -q", "images --format json", "blob cat " + AMD.digest, "completion bash", "--help"],
)
def test_reader_that_never_was(root, verb):
    """The same where the output is small and the interpreter writes it at its end."""
    reading, writing = os.pipe()
    os.close(reading)
    argv = [sys.executable, "-m", "imgdb", "--store", str(root), *verb.split()]
    done = subprocess.run(argv, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_fifo_whose_reader_stops(large, started, tmp_path):
    """A FIFO named with -o is such a pipe, too."""
    assert large
    os.mkfifo(tmp_path / "fifo")
    process = started("export", "large:1", "-o", tmp_path / "fifo")
    with open(tmp_path / "fifo", "rb") as fifo:
        assert fifo.read(1) == b"b"
    assert (process.wait(60), process.stderr.read()) == (141, b"")


@pytest.fixture
def terminal(root):
    """`terminal("export", …)` runs with standard output on a terminal: (code, what it shows, errors)."""

    def run(*arguments, stdin=subprocess.DEVNULL, output=True):
        master, slave = pty.openpty()
        argv = [sys.executable, "-m", "imgdb", "--store", str(root), *map(str, arguments)]
        streams = {"stdin": slave if stdin == "terminal" else stdin}
        streams["stdout"] = slave if output else subprocess.PIPE
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, **streams)
        os.close(slave)
        shown = b""
        while select.select([master], [], [], 60)[0]:
            try:
                shown += os.read(master, 65536)
            except OSError:  # the program closed its end
                break
        os.close(master)
        _, err = process.communicate(timeout=60)
        return process.returncode, shown.decode().replace("\r\n", "\n"), err.decode()

    return run


def test_no_archive_to_a_terminal(terminal):
    """Docker's sentence; -o and the other formats are the way."""
    code, shown, err = terminal("export", "busybox")
    assert (code, shown) == (4, "")
    assert err == "imgdb: error: cowardly refusing to save to a terminal; use -o FILE or redirect\n"
    assert terminal("export", "busybox", "-o", "-")[0] == 4


def test_no_import_from_a_terminal(terminal):
    """Nobody types an archive."""
    for arguments in (["import"], ["import", "-"]):
        code, _, err = terminal(*arguments, stdin="terminal", output=False)
        assert (code, err) == (
            2,
            "imgdb: error: import needs a FILE, a DIR, or an archive on standard input\n",
        )


def test_json_for_people(terminal):
    """On a terminal it is indented, and the same."""
    code, shown, _ = terminal("inspect", "busybox")
    assert (code, shown.splitlines()[:2]) == (0, ["[", "  {"])
    assert json.loads(shown)[0]["Id"] == BUSYBOX.digest


def test_blob_on_a_terminal(terminal, imgdb, tmp_path):
    """Text is shown, made printable; other bytes are not."""
    code, shown, _ = terminal("blob", "cat", AMD.digest)
    assert (code, shown) == (0, AMD.blob.data.decode() + "\n")
    evil = Image([{"x": b"1"}], author="\x9b31m\u202e")
    imgdb("import", evil.oci_tar(tmp_path / "evil.tar", "evil:1"))
    code, shown, _ = terminal("blob", "cat", evil.config.digest)
    assert (code, "\\x9b31m\\u202e" in shown, bool(PLAIN_TEXT.fullmatch(shown))) == (0, True, True)
    code, shown, err = terminal("blob", "cat", AMD.layers[0].blob().digest)
    assert (code, shown, "no text" in err) == (4, "", True)


def test_bars_on_a_terminal(root, stock):
    """Bars are drawn on standard error where that is a terminal, and the result stays clean."""
    master, slave = pty.openpty()
    argv = [sys.executable, "-m", "imgdb", "--store", str(root), "import", stock]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=slave, timeout=60, check=False)
    shown = os.read(master, 1 << 16)  # the terminal holds it all: the other end is open still
    os.close(slave)
    os.close(master)
    assert (done.returncode, done.stdout.count(b"Loaded image")) == (0, 4)
    assert b"\rread: " in shown
    assert b"\rstore: " in shown


@pytest.fixture
def small_disk(tmp_path):
    """A function that runs imgdb where tmp_path/disk is a file system of so many bytes."""

    def run(size, *arguments):
        mount = f"mount -t tmpfs -o size={size} none '{tmp_path}/disk'"
        argv = [
            "unshare",
            "--mount",
            "sh",
            "-c",
            f'{mount} || exit 99; "$@"; code=$?; ls -A disk; exit $code',
        ]
        program = ["sh", sys.executable, "-m", "imgdb", *map(str, arguments)]
        done = subprocess.run(
            [*argv, *program], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode == 99 or "unshare failed" in done.stderr:
            pytest.skip("no right to mount a file system")
        return done

    (tmp_path / "disk").mkdir()
    return run


def test_export_to_a_full_disk(root, large, small_disk):
    """The file is named and not there."""
    assert large
    done = small_disk("100k", "--store", root, "export", "large:1", "-o", "disk/out.tar")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "imgdb: error: disk/out.tar: No space left on device\n"


@pytest.mark.parametrize("size", ["200k", "1200k"])
def test_import_on_a_full_disk(large, small_disk, tmp_path, size):
    """The store is named, whether making it or filling it fails."""
    done = small_disk(size, "--store", "disk/store", "import", large)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("imgdb: error: ")
    assert "disk/store" in done.stderr
    assert "space" in done.stderr or "disk is full" in done.stderr
    assert temporary_files(tmp_path) == []
