"""Images that have in them whatever a layer can have, for comparing with what other tools unpack.

No path stands twice in a layer, which docker's graph store refuses.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile

from tests.builder import Image, Layer, noise
from tests.snapshots.attacks_nodes import ACL
from tests.snapshots.members import (
    block,
    character,
    directory,
    fifo,
    file,
    hardlink,
    layer,
    opaque,
    symlink,
    whiteout,
)
from tests.trees import CAPABILITY

CAPABLE = {"security.capability": bytes.fromhex(CAPABILITY)}
DEEP = "/".join(f"level-{n:04d}-" + "d" * 50 for n in range(20))

BASE = (
    directory("bin", 0o755),
    file("bin/su", b"#!su", mode=0o4755),
    file("bin/wall", b"#!wall", mode=0o2755, gid=5),
    file("bin/both", b"#!both", mode=0o6711, uid=1000, gid=1000),
    file("bin/odd", b"", mode=0o7777, uid=3_000_000, gid=4_000_000),
    file("bin/ping", b"\x7fELF", mode=0o755, xattrs=CAPABLE),
    file("bin/noaccess", b"x", mode=0),
    directory("tmp", 0o1777),
    directory("closed", 0, uid=7, gid=8),
    directory("shared", 0o2775, gid=50),
    file("shared/acl", b"a", mode=0o644, xattrs={"system.posix_acl_access": ACL}),
    directory("lib"),
    file("lib/a.so.1", b"lib" * 1000, mode=0o755),
    hardlink("lib/a.so", "lib/a.so.1", mode=0o755),
    hardlink("bin/linked", "./lib/../lib/a.so", mode=0o755),
    symlink("lib64", "lib"),
    symlink("absolute", "/lib"),
    symlink("dangling", "/no/where"),
    symlink("long", "../" * 300 + "etc"),
    hardlink("dangling-again", "dangling", mode=0o777),
    directory("dev"),
    character("dev/null", 1, 3, mode=0o666),
    character("dev/large", 4095, 70_000, mode=0o600, uid=5),
    block("dev/sda", 8, 300, mode=0o660, gid=6),
    fifo("dev/log", mode=0o622),
    hardlink("dev/null-again", "dev/null", mode=0o666),
    directory("noted", xattrs={"user.dir": b"yes"}),
    file("noted/file", b"n", xattrs={"user.a": b"\0\xff=\n", "user.long": b"v" * 1500}),
    directory("times", mtime="1234567890.123456789"),
    file("times/nano", b"", mtime="1700000000.000000001"),
    file("times/old", b"", mtime="-1.5"),
    file("times/epoch", b"", mtime="0"),
    file("times/2038", b"", mtime="4294967297.25"),
    symlink("times/link", "nano", mtime="1600000000.999999999"),
    directory("names"),
    file(b"names/caf\xe9", b"latin-1"),
    file("names/caf\u00e9", b"composed"),
    file("names/cafe\u0301", b"decomposed"),
    file("names/\U0001f40b", b"whale"),
    file(b"names/new\nline", b"x"),
    file("names/back\\slash", b"x"),
    file("names/-rf", b"x"),
    file("names/ ", b"x"),
    file("names/" + "n" * 255, b"x"),
    file(f"{DEEP}/leaf", b"deep"),
    file("big", noise(300_000)),
    file("empty", b""),
    directory("a/b/c"),
    *(file(f"a/b/c/f{n}", b"%d" % n) for n in range(5)),
    directory("swap"),
    file("swap/file-to-dir"),
    directory("swap/dir-to-file"),
    directory("swap/dir-to-file/deep"),
    directory("swap/dir-to-link"),
    file("swap/dir-to-link/x"),
    symlink("swap/link-to-dir", "../a"),
    symlink("swap/link-to-file", "../a"),
    file("swap/file-to-link"),
    file("swap/file-to-fifo"),
    directory("etc", 0o751, uid=9, gid=9, mtime="1111111111.5"),
    file("etc/passwd", b"root:x:0:0\n"),
    file("etc/shadow", b"root:*\n", mode=0o640, gid=42),
    hardlink("etc/passwd-", "etc/passwd"),
)

CHANGES = (
    directory("a"),
    directory("a/b"),
    file("a/b/late", b"before its marker"),
    opaque("a/b"),
    directory("swap"),
    directory("swap/file-to-dir"),
    file("swap/file-to-dir/in"),
    file("swap/dir-to-file"),
    symlink("swap/dir-to-link", "../etc"),
    directory("swap/link-to-dir", 0o700),
    file("swap/link-to-dir/in"),
    file("swap/link-to-file"),
    symlink("swap/file-to-link", "/etc/passwd"),
    fifo("swap/file-to-fifo"),
    directory("tmp", 0o711, uid=1),
    directory("etc", 0o750, mtime="1222222222.75"),
    whiteout("etc/passwd-", mode=0),
    whiteout("etc/never"),
    file("etc/passwd", b"root:x:0:0:changed\n", mode=0o600),
    directory("lib"),
    whiteout("lib/a.so.1"),
    whiteout("closed"),
    directory("dev"),
    whiteout("dev/log"),
    directory("noted", 0o711),
)

MORE = (
    directory("lib"),
    opaque("lib"),
    file("lib/only", b"one", xattrs={"user.x": b"1"}),
    directory("new"),
    directory("new/made"),
    directory("new/made/here", 0o700),
    file("new/made/here/x", b"x"),
    whiteout("swap"),
    directory("closed", 0o711),
    file("closed/again", b"back"),
    symlink("lib64", "a"),
    directory("dev"),
    opaque("dev"),
    character("dev/null", 1, 3, mode=0o600),
)

# What needs to know the layers below: docker's overlay2 driver and containerd's unpack each layer by itself.
THROUGH = (
    file("lib64/new", b"through a symlink"),
    file("absolute/newer", b"through an absolute one"),
    whiteout("lib64/a.so"),
    hardlink("dev/first", "dev/sda", mode=0o660, gid=6),
    hardlink("etc/linked", "etc/shadow", mode=0o640, gid=42),
    file("noted/implied", b"x"),
    file("shared/implied", b"x"),
)

HIDDEN = (
    whiteout("a/b/c/f1"),
    whiteout("a/b"),
    whiteout("swap"),
    whiteout("swap/file-to-dir"),
    whiteout("nowhere/x"),
    whiteout("dangling/x"),
    whiteout("big"),
)


def sparse_layer(folder):
    """A layer with sparse files as GNU tar writes them, since nothing else here does."""
    for name, islands in {"hole": (), "end": (1 << 20,), "two": (0, 1 << 19)}.items():
        with open(os.path.join(folder, name), "wb") as opened:
            opened.truncate((1 << 20) + 4096)
            for island in islands:
                opened.seek(island)
                opened.write(noise(4096, island))
    flags = ("--sparse", "--format=posix", "--sort=name", "--mtime=@1000000000.25", "--owner=0", "--group=0")
    argv = ["tar", *flags, "-C", folder, "-cf", "-", "hole", "end", "two"]
    return subprocess.run(argv, check=True, capture_output=True).stdout


def gnu_layer():
    """Long names, long targets and large numbers as GNU tar writes them, without PAX."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, flag, link in (
            ("gnu/" + "long/" * 60 + "file", tarfile.REGTYPE, ""),
            ("gnu/link", tarfile.SYMTYPE, "t/" * 120),
            ("gnu/again", tarfile.LNKTYPE, "gnu/" + "long/" * 60 + "file"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.uid, info.mtime = flag, link, 2_500_000, 2**33
            tar.addfile(info)
    return out.getvalue()


def images(folder, platform):
    """Name to image; the folder is for files that a layer is made of."""
    base, changes, more, through, hidden = (
        Layer(layer(items)) for items in (BASE, CHANGES, MORE, THROUGH, HIDDEN)
    )
    sparse = Layer(sparse_layer(folder), compression="none")
    return {
        "one layer": Image([base], platform),
        "two layers": Image([base, changes], platform),
        "three layers": Image([base, changes, more], platform),
        "zstd": Image([Layer(layer(BASE), compression="zstd"), changes], platform),
        "sparse": Image([sparse, Layer(gnu_layer())], platform),
        "the same layer twice": Image([base, base], platform),
        "a layer of nothing": Image([base, Layer(layer([])), changes], platform),
        "no layers": Image([], platform),
        "opaque root": Image([base, Layer(layer([file("before"), opaque(), file("etc/after")]))], platform),
        "through lower layers": Image([base, through], platform),
        "hidden and hidden again": Image([base, hidden], platform),
    }


NAMES = (
    "one layer",
    "two layers",
    "three layers",
    "zstd",
    "sparse",
    "the same layer twice",
    "a layer of nothing",
    "no layers",
    "opaque root",
    "through lower layers",
    "hidden and hidden again",
)
