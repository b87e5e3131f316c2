"""The flattened root file system against umoci, which unpacks the same layers with Go's archive/tar."""

from __future__ import annotations

import os
import struct

import pytest

from tests.archive.layers import (
    TIME,
    device,
    fifo,
    file,
    flat_tar,
    folder,
    hardlink,
    layer,
    opaque,
    symlink,
    whiteout,
    xattr,
)
from tests.builder import Image, Layer
from tests.trees import Ignore, assert_same, read_tar, read_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for owners and devices")

CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0).decode("latin-1")
# Every folder is listed in every layer that changes it: umoci gives others the time of today.
LAYERS = [
    layer(
        folder("usr", mtime=TIME + 0.25),
        folder("usr/bin", uid=1, gid=2),
        file("usr/bin/su", b"su", mode=0o6755, gid=5),
        hardlink("usr/bin/sudo", "usr/bin/su", mode=0o6755, gid=5),
        file("usr/bin/ping", b"ping", mode=0o755, **xattr(security__capability=CAPABILITY)),
        symlink("bin", "usr/bin"),
        symlink("abs", "/usr"),
        folder("dev"),
        device("dev/null", mode=0o666),
        fifo("dev/pipe", mode=0o600),
        folder("tmp", mode=0o1777),
        file("tmp/" + "n" * 150, b"long name"),
        file("tmp/ü", b"not ASCII", uid=2**32 - 2, gid=3_000_000),
        file("tmp/\udcff\udcfe", b"not UTF-8"),
        folder("tmp/" + "\udcff" * 120),
        symlink("tmp/" + "l" * 101, "t" * 300, uid=7, mtime=TIME + 0.5),
        folder("gone"),
        file("gone/x", b"x"),
        folder("opaque"),
        file("opaque/x", b"x"),
        hardlink("kept", "opaque/x"),
        file("early", b"1969", mtime=-1000.5, **xattr(user__comment="a\n=b")),
    ),
    layer(
        whiteout("gone"),
        folder("opaque", mode=0o700),
        opaque("opaque"),
        file("opaque/y", b"y" * 3000),
        folder("usr/bin", mode=0o711),
        whiteout("usr/bin/su"),
        file("bin/ls", b"ls", mode=0o755),
        hardlink("abs/bin/dir", "bin/ls", mode=0o755),
        folder("abs/lib", mtime=TIME),
        folder("usr", mode=0o555, mtime=TIME),
    ),
    layer(file("bin/ls", b"new ls", mode=0o755), folder("usr/bin"), symlink("kept", "opaque/y")),
]


def unpacked(umoci, path, layers):
    """What umoci unpacks, as a tree."""
    Image([Layer(data) for data in layers]).oci_dir(path / "image", "latest")
    umoci("unpack", "--image", f"{path / 'image'}:latest", str(path / "bundle"))
    return read_tree(path / "bundle" / "rootfs")


def test_the_tree_is_what_umoci_unpacks(umoci, tmp_path):
    """Names, types, modes, owners, times, bodies, links, attributes, devices."""
    theirs = unpacked(umoci, tmp_path, LAYERS)

    assert_same(read_tar(flat_tar(*LAYERS)), theirs, Ignore(root=True), names=("flatten", "umoci"))


def test_go_reads_it(umoci, tmp_path):
    """The flattened tar as an image's only layer: nothing of it gets lost."""
    tar = flat_tar(*LAYERS)
    theirs = unpacked(umoci, tmp_path, [tar])

    assert_same(read_tar(tar), theirs, Ignore(root=True), names=("flatten", "umoci"))
