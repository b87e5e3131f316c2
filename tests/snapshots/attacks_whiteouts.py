"""Attacks by replacing and hiding: A13 to A18 of reliability §2a."""

from __future__ import annotations

from tests.snapshots.attack import Link, contained, refused
from tests.snapshots.members import (
    WORLD,
    block,
    character,
    directory,
    fifo,
    file,
    hardlink,
    opaque,
    symlink,
    whiteout,
)

BEFORE = (directory("t"), file("t/old", b"t"))
STAYS = {"t/old": b"t"}
# What may be at a name: the members that make it, and what is then there.
KINDS = {
    "file": ((file("n", b"1"),), {"n": b"1"}),
    "directory": ((directory("n"), file("n/a", b"a")), {"n": None, "n/a": b"a"}),
    "symlink": ((symlink("n", "t"),), {"n": Link("t")}),
    "dangling symlink": ((symlink("n", f"/{WORLD}/victim"),), {"n": Link(f"/{WORLD}/victim")}),
    "fifo": ((fifo("n"),), {"n": {"kind": "fifo"}}),
    "hard link": ((hardlink("n", "t/old"),), {"n": b"t"}),
}
AFTER = KINDS | {"directory": ((directory("n"), file("n/b", b"b")), {"n": None, "n/b": b"b"})}


def replaced(old, new, *, below):
    """Something in the place of something else, of the same layer or of one below."""
    (before, was), (after, now) = KINDS[old], AFTER[new]
    inside = STAYS | now
    if old == new == "directory":
        inside |= was
    if below:
        return contained(after, inside, lowers=((*BEFORE, *before),))
    return contained([*BEFORE, *before, *after], inside)


REPLACED = {
    f"A13 {new} over {old}{where}": replaced(old, new, below=bool(where))
    for old in KINDS
    for new in KINDS
    for where in ("", " below")
}
REPLACED |= {
    "A13 a file over a full directory below": contained(
        [file("d")], {"d": b"new"}, lowers=((file("d/a/b/c"), symlink("d/s", f"/{WORLD}")),)
    ),
    "A13 a directory over a file over a directory": contained(
        [directory("d"), file("d/new")], {"d": None, "d/new": b"new"}, lowers=((file("d/old"),), (file("d"),))
    ),
    "A13 file, directory, file": contained(
        [file("n", b"1"), directory("n"), file("n/x"), file("n", b"3")], {"n": b"3"}
    ),
    "A13 directory, file, directory": contained(
        [directory("n"), file("n/old"), file("n"), directory("n"), file("n/new")],
        {"n": None, "n/new": b"new"},
    ),
    "A13 directory, file, directory over one below": contained(
        [directory("n"), file("n"), directory("n"), file("n/new")],
        {"n": None, "n/new": b"new"},
        lowers=((file("n/old"),),),
    ),
}

WORDS = "invalid whiteout"
BELOW = (directory("a"), file("a/x", b"old"))
KEPT = {"a/x": b"old"}
INVALID = {
    f"A14 {folder}{base}": refused([file(folder + base, b"")], WORDS, lowers=(BELOW,))
    for folder in ("", "a/", "nowhere/", "a/../", "/")
    for base in (".wh.", ".wh..", ".wh...")
}
INVALID |= {
    "A14 without layers below": refused([file(".wh..", b"")], WORDS),
    "A14 as a directory on the way": refused([file(".wh../x")], WORDS, lowers=(BELOW,)),
    "A14 through a symlink": refused(
        [file("s/.wh...", b"")], WORDS, lowers=((symlink("s", f"/{WORLD}/one"),),)
    ),
}

NOT_FILES = {
    "directory": directory,
    "symlink": lambda name: symlink(name, "x"),
    "fifo": fifo,
    "character device": character,
    "block device": block,
}
MARKERS = {
    "A15 AUFS's own files": contained(
        [file(".wh..wh.aufs", b""), file(".wh..wh.orph"), file("a/.wh..wh.x"), file("y")],
        KEPT | {"y": b"new"},
        lowers=(BELOW,),
        warned="AUFS",
    ),
    "A15 AUFS's own directory": contained(
        [directory(".wh..wh.plnk", 0o700), file(".wh..wh.plnk/12.34"), file("y")],
        {"y": b"new"},
        warned="AUFS",
    ),
    "A15 AUFS's own, over a file": contained([file(".wh..wh.a")], KEPT, lowers=(BELOW,), warned="AUFS"),
    "A15 opaque before": contained([opaque("a"), file("a/y")], {"a/y": b"new"}, lowers=(BELOW,)),
    "A15 opaque after": contained([file("a/y"), opaque("a")], {"a/y": b"new"}, lowers=(BELOW,)),
    "A15 opaque in the middle": contained(
        [file("a/y"), opaque("a"), file("a/z")], {"a/y": b"new", "a/z": b"new"}, lowers=(BELOW,)
    ),
    "A15 opaque twice": contained([opaque("a"), file("a/y"), opaque("a")], {"a/y": b"new"}, lowers=(BELOW,)),
    "A15 opaque alone": contained([opaque("a")], {"a": None}, lowers=(BELOW,)),
    "A15 opaque before its directory": contained(
        [opaque("a"), directory("a", 0o700), file("a/y")],
        {"a": {"mode": 0o700}, "a/y": b"new"},
        lowers=(BELOW,),
    ),
    "A15 opaque with content": contained(
        [file("a/.wh..wh..opq", b"content" * 1000), file("a/y")], {"a/y": b"new"}, lowers=(BELOW,)
    ),
    "A15 opaque and the name that is hidden": contained(
        [file("a/x", b"2"), opaque("a")], {"a/x": b"2"}, lowers=(BELOW,)
    ),
    "A15 opaque hides what is deep": contained(
        [file("a/b/y"), opaque("a")], {"a/b/y": b"new"}, lowers=((file("a/b/x"), file("a/c/d/e")),)
    ),
    "A15 opaque, then a directory that is hidden": contained(
        [opaque("a"), directory("a/b"), file("a/b/y")], {"a/b/y": b"new"}, lowers=((file("a/b/x"),),)
    ),
    "A15 opaque and whiteouts": contained(
        [whiteout("a/x"), opaque("a"), whiteout("a/x"), file("a/y")], {"a/y": b"new"}, lowers=(BELOW,)
    ),
    "A15 opaque below an opaque one": contained(
        [opaque("a/b"), file("a/b/y"), opaque("a")], {"a/b/y": b"new"}, lowers=((file("a/b/x"), file("a/z")),)
    ),
    "A15 opaque where nothing is": contained(
        [opaque("n/m"), file("n/m/y")], KEPT | {"n/m/y": b"new"}, lowers=(BELOW,)
    ),
    "A15 opaque of the root": contained(
        [file("y"), opaque(), file("z")], {"y": b"new", "z": b"new"}, lowers=(BELOW,)
    ),
    "A15 opaque of the root in the lowest layer": contained([file("y"), opaque()], {"y": b"new"}),
    "A15 opaque of the root by dots": contained(
        [file("../.wh..wh..opq", b""), file("y")], {"y": b"new"}, lowers=(BELOW,)
    ),
    "A15 opaque of the root, then a whiteout": contained(
        [opaque(), file("y"), whiteout("a"), whiteout("y")], {"y": b"new"}, lowers=(BELOW,)
    ),
    "A15 a whiteout, then opaque of the root": contained(
        [whiteout("a"), file("b/y"), whiteout("b/x"), opaque()],
        {"b/y": b"new"},
        lowers=((file("a"), file("b/x")),),
    ),
    "A15 opaque of the root, then a directory that is hidden": contained(
        [opaque(), file("a/y")],
        {"a": {"mode": 0o755, "uid": 0}, "a/y": b"new"},
        lowers=((directory("a", 0o700), file("a/x")),),
    ),
    "A15 opaque of the root between": contained(
        [file("a/z")], {"a/y": b"new", "a/z": b"new"}, lowers=(BELOW, (opaque(), file("a/y")))
    ),
    "A15 opaque through a symlink": contained(
        [opaque("s"), file("s/y")], {"s": Link("a"), "a/y": b"new"}, lowers=((*BELOW, symlink("s", "a")),)
    ),
    "A15 opaque through a symlink out": contained(
        [opaque("s")], {"s": Link(f"/{WORLD}"), WORLD: None}, lowers=((symlink("s", f"/{WORLD}"),),)
    ),
    "A15 opaque of a symlink that became a directory": contained(
        [directory("s"), opaque("s"), file("s/y")],
        KEPT | {"s": None, "s/y": b"new"},
        lowers=((*BELOW, symlink("s", "a")),),
    ),
    "A15 opaque below a file": refused([opaque("f")], "no directory", lowers=((file("f"),),)),
    "A15 a whiteout with content": contained([file("a/.wh.x", b"content")], {"a": None}, lowers=(BELOW,)),
    # as buildah writes them
    "A15 a whiteout without mode and with a target": contained(
        [file("a/.wh.x", b"", link="etc/motd", mode=0)], {"a": None}, lowers=(BELOW,)
    ),
    # AUFS kept whiteouts as hard links of one file, and so they are in layers from those days
    "A15 a whiteout that is a hard link": contained(
        [whiteout("a/x"), hardlink(".wh.f", "a/.wh.x")], {"a": None}, lowers=((*BELOW, file("f")),)
    ),
}
MARKERS |= {
    f"A15 {what} is a {kind}": refused([make(name)], "whiteout", lowers=(BELOW,))
    for kind, make in NOT_FILES.items()
    for what, name in (("opaque marker", "a/.wh..wh..opq"), ("whiteout", "a/.wh.x"))
}
MARKERS["A15 a file in a whiteout"] = refused([file(".wh.a/x")], "whiteout", lowers=(BELOW,))

OUTSIDE = (
    symlink("s", f"/{WORLD}"),
    symlink("v", f"/{WORLD}/victim"),
    symlink("u", "../.."),
    file("f", b"f"),
)
LINKS = {"s": Link(f"/{WORLD}"), "v": Link(f"/{WORLD}/victim"), "u": Link("../.."), "f": b"f"}
MADE = {WORLD: None}  # parents of a whiteout are made like those of anything else
HIDING = {
    "A16 through a symlink": contained([whiteout("s/victim")], LINKS | MADE, lowers=(OUTSIDE,)),
    "A16 through a relative symlink": contained([whiteout("u/victim")], LINKS, lowers=(OUTSIDE,)),
    "A16 through a relative symlink, of what is inside": contained(
        [whiteout("u/f")], {k: v for k, v in LINKS.items() if k != "f"}, lowers=(OUTSIDE,)
    ),
    "A16 of a directory through a symlink": contained(
        [whiteout("s/closed")], LINKS | MADE, lowers=(OUTSIDE,)
    ),
    "A16 of a symlink": contained(
        [whiteout("s")], {k: v for k, v in LINKS.items() if k != "s"}, lowers=(OUTSIDE,)
    ),
    "A16 of a symlink to a file": contained(
        [whiteout("v")], {k: v for k, v in LINKS.items() if k != "v"}, lowers=(OUTSIDE,)
    ),
    "A16 through a symlink of this layer": contained(
        [symlink("t", "a"), whiteout("t/x")], {"t": Link("a"), "a": None}, lowers=(BELOW,)
    ),
    "A16 through a dead symlink": contained(
        [whiteout("s/nowhere/x")], LINKS | {f"{WORLD}/nowhere": None}, lowers=(OUTSIDE,)
    ),
    "A16 of nothing": contained(
        [whiteout("nothing"), whiteout("no/thing")], KEPT | {"no": None}, lowers=(BELOW,)
    ),
    "A16 of nothing, twice": contained([whiteout("a/no"), whiteout("a/no")], KEPT, lowers=(BELOW,)),
    "A16 twice": contained([whiteout("a/x"), whiteout("a/x")], {"a": None}, lowers=(BELOW,)),
    "A16 without layers below": contained([whiteout("x"), whiteout("d/x"), file("d/y")], {"d/y": b"new"}),
    "A16 of a directory": contained([whiteout("a")], {}, lowers=(BELOW,)),
    "A16 of something hidden already": contained([whiteout("a")], {}, lowers=(BELOW, (whiteout("a"),))),
    "A16 up": contained([file("../../.wh.a", b"")], {}, lowers=(BELOW,)),
    "A16 down and up": contained([file("b/../.wh.a", b"")], {}, lowers=(BELOW,)),
    "A16 absolute": contained([file("/.wh.a", b"")], {}, lowers=(BELOW,)),
    "A16 absolute, outside": contained([whiteout(f"/{WORLD}/victim")], KEPT | MADE, lowers=(BELOW,)),
    "A16 of a directory and what is in it": contained([whiteout("a/x"), whiteout("a")], {}, lowers=(BELOW,)),
    "A16 of a name with a newline": contained(
        [file(b"a/.wh.\n\xff", b"")], {"a": None}, lowers=((file(b"a/\n\xff"),),)
    ),
    "A16 of a name of 255 bytes": refused([whiteout("n" * 255)], "255", lowers=((file("n" * 255),),)),
    "A16 of a name that looks hidden": contained(
        [file("x.wh.y"), file("wh.x"), file(".whx")], {"x.wh.y": b"new", "wh.x": b"new", ".whx": b"new"}
    ),
    "A16 something comes back": contained(
        [directory("a"), file("a/y")], {"a": None, "a/y": b"new"}, lowers=(BELOW, (whiteout("a"),))
    ),
}

OVERLAY = {
    "opaque": b"y",
    "redirect": f"/{WORLD}".encode(),
    "metacopy": b"",
    "origin": b"\0",
    "whiteout": b"y",
    "impure": b"y",
    "protattr": b"x",
}
NATIVE = {
    "A17 the whiteout device": refused([character("a/x", 0, 0)], "overlayfs", lowers=(BELOW,)),
    "A17 the whiteout device at the root": refused([character("a", 0, 0)], "overlayfs", lowers=(BELOW,)),
    "A17 the whiteout device without layers below": refused([character("c", 0, 0)], "overlayfs"),
    "A17 the whiteout device through a symlink": refused(
        [symlink("t", "a"), character("t/x", 0, 0)], "overlayfs", lowers=(BELOW,)
    ),
    "A17 a block device 0/0 is none": contained(
        [block("b", 0, 0)],
        KEPT | {"b": {"kind": "block", "device": (0, 0)}},
        lowers=(BELOW,),
        privileged=True,
    ),
    "A17 a hard link to a whiteout": refused(
        [hardlink("h", "a/x")], "not there", lowers=(BELOW, (whiteout("a/x"),))
    ),
}
NATIVE |= {
    f"A17 {space}.overlay.{name} of a {kind}": contained(
        [make("a", xattrs={f"{space}.overlay.{name}": value, "user.kept": b"1"})],
        {"a": {"xattrs": {b"user.kept": b"1"}}} | (KEPT if kind == "directory" else {}),
        lowers=(BELOW,),
        warned="overlay",
    )
    for space in ("trusted", "user")
    for name, value in OVERLAY.items()
    for kind, make in (("directory", directory), ("file", file))
    if kind == "directory" or name in {"whiteout", "metacopy"}
}

OLD = (file("x", b"old"), file("d/old", b"old"), file("y", b"y"))
SAME = {
    "A18 a file, then its whiteout": ([file("x"), whiteout("x")], {"x": b"new", "d/old": b"old"}),
    "A18 a file after its whiteout": ([whiteout("x"), file("x")], {"x": b"new", "d/old": b"old"}),
    "A18 a directory, then its whiteout": ([file("d/new"), whiteout("d")], {"x": b"old", "d/new": b"new"}),
    "A18 a directory after its whiteout": (
        [whiteout("d"), directory("d"), file("d/new")],
        {"x": b"old", "d/new": b"new"},
    ),
    "A18 a directory that is implied, after its whiteout": (
        [whiteout("d"), file("d/new")],
        {"x": b"old", "d/new": b"new"},
    ),
    "A18 a directory around its whiteout": (
        [file("d/1"), whiteout("d"), file("d/2")],
        {"x": b"old", "d/1": b"new", "d/2": b"new"},
    ),
    "A18 a symlink, then its whiteout": ([symlink("d", "x"), whiteout("d")], {"x": b"old", "d": Link("x")}),
    "A18 a symlink after its whiteout": ([whiteout("d"), symlink("d", "x")], {"x": b"old", "d": Link("x")}),
    "A18 a hard link, then its whiteout": ([hardlink("d", "x"), whiteout("d")], {"x": b"old", "d": b"old"}),
    "A18 a target, then its whiteout": (
        [hardlink("h", "x"), file("x"), whiteout("x")],
        {"h": b"old", "x": b"new", "d/old": b"old"},
    ),
    "A18 a file where a directory was, then its whiteout": (
        [file("d"), whiteout("d")],
        {"x": b"old", "d": b"new"},
    ),
    "A18 a directory where a file was, then its whiteout": (
        [file("x/new"), whiteout("x")],
        None,
    ),
    "A18 a directory in place of a file, then its whiteout": (
        [directory("x"), file("x/new"), whiteout("x")],
        {"x/new": b"new", "d/old": b"old"},
    ),
    "A18 in a directory, then whiteouts of both": (
        [file("d/new"), whiteout("d/old"), whiteout("d/new")],
        {"x": b"old", "d/new": b"new"},
    ),
    "A18 a whiteout of both, then the directory": (
        [whiteout("d/old"), whiteout("d"), file("d/new")],
        {"x": b"old", "d/new": b"new"},
    ),
    "A18 a new file, then its whiteout": (
        [file("n"), whiteout("n")],
        {"n": b"new", "x": b"old", "d/old": b"old"},
    ),
    "A18 a new directory, then its whiteout": (
        [file("n/m"), whiteout("n")],
        {"n/m": b"new", "x": b"old", "d/old": b"old"},
    ),
    "A18 a file, its whiteout, the file again": (
        [file("x", b"1"), whiteout("x"), file("x", b"2")],
        {"x": b"2", "d/old": b"old"},
    ),
}
OWN = {
    name: contained(items, inside | {"y": b"y"}, lowers=(OLD,))
    if inside is not None
    else refused(items, "no directory", lowers=(OLD,))
    for name, (items, inside) in SAME.items()
}

WHITEOUTS = REPLACED | INVALID | MARKERS | HIDING | NATIVE | OWN
