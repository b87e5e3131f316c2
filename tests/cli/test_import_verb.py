"""``imgdb import``: sources, options, and what it says."""

from __future__ import annotations

import json
import os

import pytest

from tests.builder import Archive, Image, Index
from tests.cli.conftest import APP, BUSYBOX

NEW = Image([{"etc/new": b"1"}])
OTHER = Image([{"etc/other": b"1"}])
LINE = "Loaded image: new:1\n"


@pytest.fixture
def archive(tmp_path):
    """An archive with new:1."""
    return NEW.oci_tar(tmp_path / "new.tar", "new:1")


def names(imgdb):
    """Name to ID, as the store has it."""
    listed = json.loads(imgdb("images", "--format", "json").out)
    return {image["name"]: image["id"] for image in listed if image["name"]}


@pytest.mark.parametrize("verb", [["import"], ["load"], ["image", "load"]])
@pytest.mark.parametrize("how", ["argument", "-i", "--input", "directory", "-", "stdin", "-i -"])
def test_sources(imgdb, archive, tmp_path, verb, how):
    """A file, a directory, standard input; docker's line is what comes out."""
    with open(archive, "rb") as file:
        data = file.read()
    arguments = {
        "argument": [archive],
        "-i": ["-i", archive],
        "--input": [f"--input={archive}"],
        "directory": [NEW.oci_dir(tmp_path / "layout", "new:1")],
        "-": ["-"],
        "stdin": [],
        "-i -": ["-i", "-"],
    }[how]
    done = imgdb(*verb, *arguments, stdin=data)
    assert (done.out, done.err) == (LINE, "")
    assert names(imgdb)["docker.io/library/new:1"] == NEW.digest


def test_without_a_name(imgdb, tmp_path):
    """What has no name is told by its ID."""
    done = imgdb("import", NEW.oci_tar(tmp_path / "new.tar"))
    assert done.out == f"Loaded image ID: {NEW.digest}\n"


def test_several(imgdb, archive, tmp_path):
    """Arguments first, then what -i names."""
    other = OTHER.oci_tar(tmp_path / "other.tar", "other:1")
    assert imgdb("import", "-i", archive, other).out == f"Loaded image: other:1\n{LINE}"


def test_several_of_which_one_is_bad(imgdb, archive, tmp_path):
    """What came before stays; the report says so."""
    (tmp_path / "bad.tar").write_bytes(b"no archive at all")
    done = imgdb("import", "--json", archive, tmp_path / "bad.tar", code=1)
    (report,) = json.loads(done.out)
    assert (report["source"], report["images"][0]["digest"]) == (archive, NEW.digest)
    assert "docker.io/library/new:1" in names(imgdb)


@pytest.mark.parametrize("where", [["-q", "import"], ["import", "-q"], ["import", "--quiet"]])
def test_quiet(imgdb, archive, where):
    """As with docker: no progress and no notes, but the result is told."""
    imgdb("tag", "busybox", "new:1")
    done = imgdb(*where, archive)
    assert (done.out, done.err) == (LINE, "")


def test_name(imgdb, archive):
    """One image, a name of one's own."""
    assert imgdb("import", "--name", "mine/new", archive).out == "Loaded image: mine/new:latest\n"
    assert names(imgdb)["docker.io/mine/new:latest"] == NEW.digest


def test_platform(imgdb, tmp_path):
    """Only that platform is stored."""
    path = Index([NEW, Image([{"x": b"x"}], platform="linux/s390x")]).oci_tar(tmp_path / "i.tar", "multi:1")
    imgdb("import", "--platform", "linux/s390x", path)
    (listed,) = json.loads(imgdb("images", "multi", "--format", "json").out)
    assert listed["platforms"] == ["linux/s390x"]


@pytest.mark.parametrize(
    ("rule", "kept", "undo"), [("dangle", True, True), (None, True, True), ("replace", False, False)]
)
def test_replace(imgdb, archive, rule, kept, undo):
    """A name moves, which is said with the way back; the image that had it stays, or not."""
    imgdb("tag", "busybox", "new:1")
    imgdb("rm", "busybox")
    done = imgdb("import", archive, *(["--replace", rule] if rule else []))
    assert done.out == LINE
    assert f"imgdb: new:1 moved from {BUSYBOX.digest} to {NEW.digest}" in done.err
    assert ("undo: imgdb tag --restore new:1\n" in done.err) == undo
    assert (BUSYBOX.digest in imgdb("images", "-q", "--no-trunc").out) == kept


def test_the_way_back_works(imgdb, archive):
    """The command that the note names undoes the move."""
    imgdb("tag", "busybox", "new:1")
    done = imgdb("import", archive)
    imgdb(*done.err.split("undo: imgdb ")[1].split())
    assert names(imgdb)["docker.io/library/new:1"] == BUSYBOX.digest


def test_replace_refuse(imgdb, archive):
    """Nothing is imported, and the exit code says that a policy forbade it."""
    imgdb("tag", "busybox", "new:1")
    done = imgdb("import", "--replace", "refuse", archive, code=4)
    assert (done.out, BUSYBOX.digest in done.err) == ("", True)
    assert names(imgdb)["docker.io/library/new:1"] == BUSYBOX.digest


def test_allow_incomplete(imgdb, tmp_path):
    """An image without its layer is refused unless one insists."""
    gone = NEW.layers[0].blob().digest
    path = Archive().add(NEW, "new:1").oci_tar(tmp_path / "new.tar", without={gone})
    assert gone in imgdb("import", path, code=3).err
    done = imgdb("import", "--allow-incomplete", path)
    assert (done.out, done.err) == (LINE, "imgdb: new:1: not in the archive: linux/amd64\n")
    assert [
        item["digest"] for item in json.loads(imgdb("blob", "ls", "--absent", "--format", "json").out)
    ] == [gone]


@pytest.mark.parametrize(("size", "code"), [("1", 3), ("1kB", 3), ("1MiB", 0), ("5GB", 0)])
def test_max_size(imgdb, archive, size, code):
    """Larger archives are refused."""
    imgdb("import", "--max-size", size, archive, code=code)
    assert ("docker.io/library/new:1" in names(imgdb)) == (code == 0)


@pytest.mark.parametrize("size", ["-1", "x", "1.5GB", "1XB", ""])
def test_max_size_must_be_a_size(imgdb, archive, size):
    """What is none is a usage error."""
    assert "is no size" in imgdb("import", f"--max-size={size}", archive, code=2).err


def test_dry_run(imgdb, archive):
    """What would happen, in a table and a sum; nothing happens."""
    before = names(imgdb)
    lines = imgdb("import", "-n", archive).out.splitlines()
    assert lines[0].split() == ["NAME", "DIGEST", "PLATFORMS", "STATE"]
    assert lines[1].split() == ["docker.io/library/new:1", NEW.digest, "linux/amd64", "new"]
    assert lines[2].startswith("3 new blobs, ")
    report = json.loads(imgdb("import", "--dry-run", "--json", archive).out)
    assert (report[0]["new_blobs"], report[0]["images"][0]["state"]) == (3, "new")
    assert names(imgdb) == before


def test_dry_run_makes_no_store(imgdb, archive, tmp_path):
    """Where there is none, everything would be new, and there still is none."""
    done = imgdb("--store", tmp_path / "absent", "import", "--dry-run", archive)
    assert "3 new blobs" in done.out
    assert not (tmp_path / "absent").exists()


def test_import_makes_the_store(imgdb, archive, tmp_path):
    """The first import makes it; a source that does not exist does not."""
    there = tmp_path / "a" / "b"
    imgdb("--store", there, "import", "/absent.tar", code=1)
    assert not (tmp_path / "a").exists()
    imgdb("--store", there, "import", archive)
    assert (there / "store.json").is_file()


def test_json(imgdb, stock):
    """What is the same as before is said to be so."""
    (report,) = json.loads(imgdb("import", "--json", stock).out)
    assert {image["state"] for image in report["images"]} == {"same"}
    assert (report["new_blobs"], report["new_bytes"]) == (0, 0)
    assert report["images"][0] == {
        "name": "example.org/app:1",
        "digest": APP.digest,
        "platforms": ["linux/amd64", "linux/arm64"],
        "missing_platforms": [],
        "state": "same",
        "previous": None,
    }


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "said"),
    [
        (["/absent.tar"], b"", 1, "/absent.tar: no such file"),
        ([""], b"", 1, ": no such file"),
        ([], b"", 1, "standard input: the input is empty"),
        (["-", "-"], b"", 2, "standard input can be read only once"),
        (["--name", "x", "/dev/null", "/dev/zero"], b"", 2, "--name is for one archive"),
        (["--name", "Bad Name", "-"], b"", 2, "Bad Name"),
        (["--replace", "x", "-"], b"", 2, "'x' is not one of"),
        (["-"], b"<html>not found</html>", 1, "standard input: "),
        (["-"], b"\x1f\x8b\x08\x00", 3, "standard input: "),
    ],
)
def test_refusals(imgdb, root, arguments, stdin, code, said):
    """One line that names the input; the store is as before."""
    before = names(imgdb)
    done = imgdb("import", *arguments, stdin=stdin, code=code)
    assert (done.out, done.err.count("\n"), said in done.err) == ("", 1, True), done
    assert names(imgdb) == before
    assert os.listdir(root / "ingest") == []


def test_root_file_system(imgdb, tmp_path):
    """What `docker export` makes is no image; the message says what to do."""
    (tmp_path / "rootfs.tar").write_bytes(Image([{"bin/sh": b"#!", "etc/passwd": b"r"}]).layers[0].plain)
    assert "docker import" in imgdb("import", tmp_path / "rootfs.tar", code=1).err


@pytest.mark.parametrize("style", ["plain", "json", "none", "auto"])
@pytest.mark.parametrize("place", ["before", "behind"])
def test_progress(imgdb, archive, style, place):
    """Progress is on standard error alone, and the place of the option makes no difference."""
    option = ["--progress", style]
    done = imgdb(*option, "import", archive) if place == "before" else imgdb("import", *option, archive)
    assert done.out == LINE
    lines = done.err.splitlines()
    if style == "json":
        assert {json.loads(line)["phase"] for line in lines} == {"read", "store"}
    elif style == "plain":
        assert lines[-1].startswith("store done: ")
    else:
        assert lines == []


def test_the_later_style_wins(imgdb, archive):
    """Behind the verb is nearer; -q before it wins over both."""
    assert imgdb("--progress", "json", "import", "--progress", "plain", archive).err.startswith("read ")
    assert imgdb("-q", "import", "--progress", "plain", archive).err == ""
