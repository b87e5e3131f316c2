"""``unpack``, ``snapshot``, ``mount``, ``umount``, ``rootfs``, and ``import --unpack``."""

from __future__ import annotations

import io
import os
import tarfile

import pytest

from tests.builder import Archive, Blob, Image, Layer
from tests.cli.conftest import BUSYBOX, SIGNATURE
from tests.test_unpack import HOST

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

CHAIN = "sha256:"


def names(data):
    """Members of a tar."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getnames()


def test_unpack_prints_keys(imgdb):
    """One a line, and again when it is done already."""
    first = imgdb("unpack", "busybox", "example.org/app:1").out.splitlines()
    assert len(first) == 2
    assert all(key.startswith(CHAIN) for key in first)
    assert imgdb("unpack", "busybox", "example.org/app:1").out.splitlines() == first


def test_unpack_refuses(imgdb):
    """What is not there, or of no such platform."""
    assert "No such image: absent" in imgdb("unpack", "absent", code=1).err
    assert (
        "has no platform linux/s390x" in imgdb("unpack", "--platform", "linux/s390x", "busybox", code=1).err
    )


def test_snapshots_from_prepare_to_rm(imgdb):
    """Each verb says nothing when it went well, but rm, which says what is gone."""
    imgdb("unpack", "busybox")
    assert imgdb("snapshot", "prepare", "c", "busybox", "--label", "a=1", "--label", "b").out == ""
    imgdb("snapshot", "view", "v", "busybox")
    listed = imgdb("snapshot", "ls").out.splitlines()
    assert listed[0].split() == ["KEY", "KIND", "SIZE", "INODES", "PARENT"]
    assert [line.split()[:2] for line in listed[-2:]] == [["c", "active"], ["v", "view"]]
    parent = listed[-1].split()[-1]
    assert len(parent) == len(CHAIN) + 12
    assert imgdb("snapshot", "usage", parent).out.splitlines()[1].split()[0] == parent
    assert "the next gc frees done, unless" in imgdb("snapshot", "commit", "done", "c").err
    assert imgdb("snapshot", "ls", "-q").out.split()[-2:] in (["v", "done"], ["done", "v"])
    assert imgdb("snapshot", "rm", "v", "done").out.split() == ["v", "done"]
    assert "no snapshot v" in imgdb("snapshot", "rm", "v", code=1).err


def test_a_key_that_is_an_image(imgdb):
    """Was the image meant? Else that could no longer be named where keys are taken, too."""
    for arguments in (["busybox"], ["busybox:latest"], [BUSYBOX.digest]):
        assert "is the image busybox:latest" in imgdb("snapshot", "prepare", *arguments, code=4).err
    assert "must be printable" in imgdb("snapshot", "view", "a\x1b[1m", code=2).err
    assert imgdb("snapshot", "ls", "-q").out == ""


def test_snapshot_errors(imgdb):
    """One line each, with the exit code of its class."""
    assert "busybox:latest is not unpacked: imgdb unpack busybox:latest" in (
        imgdb("snapshot", "prepare", "c", "busybox", code=4).err
    )
    imgdb("snapshot", "prepare", "c")
    assert "snapshot c exists" in imgdb("snapshot", "prepare", "c", code=4).err
    assert "snapshot c is active" in imgdb("snapshot", "prepare", "d", "c", code=2).err
    assert "no snapshot x" in imgdb("snapshot", "commit", "d", "x", code=1).err
    imgdb("snapshot", "rm", "c")


@needs_root
def test_exec(program, imgdb):
    """Ends with the command's code; what it writes stays."""
    imgdb("unpack", "busybox")
    imgdb("snapshot", "prepare", "c", "busybox")
    done = program("snapshot", "exec", "c", "--", "sh", "-c", "ls; echo new > new; exit 5")
    assert (done.returncode, done.stdout.split()) == (5, ["bin", "etc"]), done.stderr
    done = program("snapshot", "exec", "c", "cat", "new")
    assert (done.returncode, done.stdout) == (0, "new\n")
    done = program("snapshot", "exec", "c", "ls", "--help")
    assert (done.returncode, done.stdout.split()[0]) == (0, "Usage:")
    assert "imgdb" not in done.stdout
    assert "which command?" in program("snapshot", "exec", "c", "--").stderr
    done = program("snapshot", "exec", "c", "--", "no-such-command")
    assert (done.returncode, done.stderr) == (127, "imgdb: error: no-such-command: no such command\n")
    done = program("snapshot", "exec", "c", "--", "/etc/passwd")
    assert (done.returncode, done.stderr) == (
        126,
        "imgdb: error: /etc/passwd can't be run: Permission denied\n",
    )
    committed = imgdb("snapshot", "ls", "-q").out.split()[0]
    done = program("snapshot", "exec", committed, "--", "true")
    assert done.returncode == 4
    assert "prepare an active one or a view of it" in done.stderr


@needs_root
def test_mount_and_umount(imgdb, tmp_path):
    """An image, listed, and gone again."""
    target = tmp_path / "mnt"
    target.mkdir()
    assert imgdb("mount").out.split() == ["TARGET", "SNAPSHOT", "STATE"]
    imgdb("mount", "busybox", target)
    try:
        assert sorted(os.listdir(target)) == ["bin", "etc"]
        assert imgdb("mount").out.splitlines()[1].split()[::2] == [str(target), "mounted"]
    finally:
        told = imgdb("umount", target).err
    assert told == f"imgdb: {target}: unmounted\n"
    assert os.listdir(target) == []
    assert "imgdb has mounted nothing" in imgdb("umount", target, code=1).err
    assert "write imgdb mount busybox DIR" in imgdb("mount", "busybox", code=2).err


def test_rootfs(imgdb, tmp_path):
    """To standard output or a file, whole or not at all; the same bytes each time."""
    imgdb("rootfs", "busybox")
    first = imgdb.stdout
    assert names(first) == ["bin", "etc", "bin/sh", "etc/b"]
    imgdb("rootfs", "busybox", "-o", tmp_path / "out.tar")
    assert (tmp_path / "out.tar").read_bytes() == first
    imgdb("unpack", "busybox")
    imgdb("rootfs", "busybox", "-o", "-")
    assert imgdb.stdout == first
    assert "No such image: absent" in imgdb("rootfs", "absent", "-o", tmp_path / "no.tar", code=1).err
    assert os.listdir(tmp_path / "..").count("no.tar") == 0


@needs_root
def test_rootfs_of_a_snapshot(imgdb, program, tmp_path):
    """With what was changed in it; and back in as an image."""
    imgdb("unpack", "busybox")
    imgdb("snapshot", "prepare", "c", "busybox")
    assert program("snapshot", "exec", "c", "--", "sh", "-c", "rm bin/sh; echo 1 > new").returncode == 0
    imgdb("rootfs", "c", "-o", tmp_path / "c.tar")
    assert names((tmp_path / "c.tar").read_bytes()) == ["bin", "etc", "etc/b", "new"]
    imgdb("import", "--rootfs", "--name", "again:1", tmp_path / "c.tar")
    imgdb("rootfs", "again:1")
    assert sorted(names(imgdb.stdout)) == ["bin", "etc", "etc/b", "new"]


def test_rootfs_and_several_platforms(imgdb):
    """A tar holds one."""
    said = imgdb("rootfs", "--platform", "linux/amd64,linux/arm64/v8", "example.org/app:1", code=2).err
    assert "give one --platform" in said


def test_import_and_unpack(imgdb, tmp_path):
    """In one command; what is no image is passed over."""
    archive = Archive().add(Image([{"x": b"1"}], HOST), "x:1").add(SIGNATURE, "sig:1")
    done = imgdb("import", "--unpack", archive.oci_tar(tmp_path / "x.tar"))
    assert done.out.splitlines() == ["Loaded image: x:1", "Loaded image: sig:1"]
    assert "nothing in it is an image that can be unpacked; nothing was unpacked" in done.err
    assert len(imgdb("snapshot", "ls", "-q").out.split()) == 1


def test_an_image_that_is_imported_and_not_unpacked(imgdb, tmp_path):
    """Stays, is told, and the others are unpacked."""
    bad = Layer({"a": b"1"})
    bad.diff_id = Blob(b"another", "").digest
    archive = Archive().add(Image([bad], HOST), "bad:1").add(Image([{"x": b"1"}], HOST), "good:1")
    done = imgdb("import", "--unpack", archive.oci_tar(tmp_path / "x.tar"), code=3)
    assert done.out.splitlines() == ["Loaded image: bad:1", "Loaded image: good:1"]
    assert "imgdb: error: bad:1 is imported, but not unpacked: layer sha256:" in done.err
    assert "wrong diff ID" in done.err
    imgdb("exists", "bad:1")
    assert len(imgdb("snapshot", "ls", "-q").out.split()) == 1


def test_nothing_is_unpacked_by_a_dry_run(imgdb, tmp_path):
    """Nor imported."""
    imgdb("import", "-n", "--unpack", Image([{"x": b"1"}], HOST).oci_tar(tmp_path / "x.tar", "x:1"))
    assert imgdb("snapshot", "ls", "-q").out == ""


def test_gc_tells_about_snapshots(imgdb):
    """In its line, in its plan, and in df."""
    imgdb("unpack", "busybox")
    assert imgdb("df").out.splitlines()[3].split()[:3] == ["Snapshots", "2", "0"]
    imgdb("rm", "--no-gc", "busybox")
    plan = imgdb("gc", "-n", "--explain").out
    assert plan.count("freed snapshot sha256:") == 2
    assert "2 snapshots" in plan.splitlines()[-1]
    done = imgdb("gc").out
    assert done.startswith("freed ")
    assert "2 snapshots" in done
    assert BUSYBOX.layers[0].diff_id not in imgdb("snapshot", "ls", "-q").out
