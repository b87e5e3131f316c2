"""Attacks through layers below: A12 of reliability §2a, also with hard links."""

from __future__ import annotations

from tests.snapshots.attack import Link, contained, refused
from tests.snapshots.members import (
    WORLD,
    character,
    directory,
    fifo,
    file,
    hardlink,
    opaque,
    symlink,
    whiteout,
)

OUT = f"/{WORLD}/one"
VICTIM = f"/{WORLD}/victim"

SYMLINK_BELOW = (symlink("s", OUT),)
LOWERS = {
    "A12 through a symlink below": contained(
        [file("s/victim")], {"s": Link(OUT), f"{OUT[1:]}/victim": b"new"}, lowers=(SYMLINK_BELOW,)
    ),
    "A12 through a relative one": contained(
        [file("s/victim")], {"s": Link("../.."), "victim": b"new"}, lowers=((symlink("s", "../.."),),)
    ),
    "A12 through one deep down": contained(
        [file("d/s/x")], {"d/s": Link("../../e"), "e/x": b"new"}, lowers=((symlink("d/s", "../../e"),),)
    ),
    "A12 through links of two layers": contained(
        [file("a/x")],
        {"a": Link("b"), "b": Link("/c"), "c/x": b"new"},
        lowers=((symlink("a", "b"),), (symlink("b", "/c"),)),
    ),
    "A12 through a link below to one of its own": contained(
        [symlink("b", OUT), file("a/x")],
        {"a": Link("b"), "b": Link(OUT), f"{OUT[1:]}/x": b"new"},
        lowers=((symlink("a", "b"),),),
    ),
    "A12 a symlink over a directory below": contained(
        [symlink("d", OUT), file("d/x")],
        {"d": Link(OUT), f"{OUT[1:]}/x": b"new"},
        lowers=((directory("d"), file("d/old")),),
    ),
    "A12 a directory became a symlink between": contained(
        [file("d/x")],
        {"d": Link(OUT), f"{OUT[1:]}/x": b"new"},
        lowers=((directory("d"), file("d/old")), (symlink("d", OUT),)),
    ),
    "A12 a symlink became a directory between": contained(
        [file("s/x")], {"s": None, "s/x": b"new"}, lowers=(SYMLINK_BELOW, (directory("s"),))
    ),
    "A12 a symlink was hidden between": contained(
        [file("s/x")], {"s/x": b"new"}, lowers=(SYMLINK_BELOW, (whiteout("s"),))
    ),
    "A12 a symlink was hidden by an opaque directory": contained(
        [file("d/s/x")], {"d/s/x": b"new"}, lowers=((symlink("d/s", OUT),), (opaque("d"),))
    ),
    "A12 a symlink was hidden by an opaque root": contained(
        [file("s/x")],
        {"s/x": b"new", "y": b"new"},
        lowers=(SYMLINK_BELOW, (opaque(), file("y"), whiteout("y"))),
    ),
    "A12 into a directory below": contained(
        [file("d/x")],
        {
            "d": {"mode": 0o2711, "uid": 5, "gid": 6, "mtime_ns": 10**9 + 5, "xattrs": {b"user.a": b"1"}},
            "d/old": b"old",
            "d/x": b"new",
        },
        lowers=(
            (
                directory("d", 0o2711, uid=5, gid=6, mtime="1.000000005", xattrs={"user.a": b"1"}),
                file("d/old", b"old"),
            ),
        ),
        privileged=True,
    ),
    "A12 into a directory that a link below leads to": contained(
        [file("s/x")],
        {"s": Link("d"), "d": {"mode": 0o711, "mtime_ns": 7 * 10**9}, "d/old": b"old", "d/x": b"new"},
        lowers=((directory("d", 0o711, mtime="7"), file("d/old", b"old"), symlink("s", "d")),),
    ),
    "A12 in a circle of layers": refused(
        [file("a/x")], "too many", lowers=((symlink("a", "b"),), (symlink("b", "a"),))
    ),
    "A12 below a file of a lower layer": refused([file("f/x")], "no directory", lowers=((file("f"),),)),
    "A12 below a fifo of a lower layer": refused([file("f/x")], "no directory", lowers=((fifo("f"),),)),
    "A12 a whiteout below a file": refused([whiteout("f/x")], "no directory", lowers=((file("f"),),)),
    "A12 a file over a symlink": contained([file("s")], {"s": b"new"}, lowers=((symlink("s", VICTIM),),)),
    "A12 a directory over a symlink": contained(
        [directory("s", 0o700), file("s/x")],
        {"s": {"kind": "directory", "mode": 0o700}, "s/x": b"new"},
        lowers=(SYMLINK_BELOW,),
    ),
    "A12 attributes of a directory over a symlink": contained(
        [directory("s", 0o700, xattrs={"user.evil": b"1"})],
        {"s": {"kind": "directory", "mode": 0o700}, "d": {"mode": 0o755, "xattrs": {}}},
        lowers=((directory("d"), symlink("s", "d")),),
    ),
    "A12 a hard link through a symlink below": refused(
        [hardlink("h", "s/victim")], "not there", lowers=(SYMLINK_BELOW,)
    ),
    "A12 a hard link to a symlink below": contained(
        [hardlink("h", "s")],
        {"s": Link(VICTIM), "h": Link(VICTIM)},
        same=[("s", "h")],
        lowers=((symlink("s", VICTIM),),),
    ),
    "A12 a hard link to a file below": contained(
        [hardlink("h", "d/f", mode=0o777)],
        {
            path: {
                "kind": "file",
                "mode": 0o640,
                "mtime_ns": 10**9 + 5,
                "xattrs": {b"user.a": b"1"},
                "linked": b"d/f",
            }
            for path in ("h", "d/f")
        },
        lowers=((file("d/f", mode=0o640, mtime="1.000000005", xattrs={"user.a": b"1"}),),),
    ),
    "A12 two hard links to a file below": contained(
        [hardlink("h", "f"), hardlink("i", "f")],
        dict.fromkeys("fhi", b"new"),
        same=[("f", "h", "i")],
        lowers=((file("f"),),),
    ),
    "A12 a hard link to a file below, then written": contained(
        [hardlink("h", "f"), file("h", b"2")], {"f": b"1", "h": b"2"}, lowers=((file("f", b"1"),),)
    ),
    "A12 a hard link to a file below, by a symlink below": contained(
        [hardlink("h", "s/f")],
        {"s": Link("d"), "d/f": b"new", "h": b"new"},
        same=[("d/f", "h")],
        lowers=((file("d/f"), symlink("s", "d")),),
    ),
    "A12 a hard link to a fifo below": contained(
        [hardlink("h", "f")],
        {path: {"kind": "fifo"} for path in "fh"},
        same=[("f", "h")],
        lowers=((fifo("f"),),),
    ),
    "A12 a hard link to a device below": contained(
        [hardlink("h", "c")],
        {path: {"kind": "character", "device": (5, 1), "mode": 0o620} for path in "ch"},
        lowers=((character("c", 5, 1, mode=0o620),),),
        privileged=True,
    ),
    "A12 a hard link to a directory below": refused(
        [hardlink("h", "d")], "directory", lowers=((directory("d"),),)
    ),
    "A12 a hard link to what was hidden between": refused(
        [hardlink("h", "f")], "not there", lowers=((file("f"),), (whiteout("f"),))
    ),
    "A12 a hard link to what an opaque directory hides": refused(
        [hardlink("h", "d/f")], "not there", lowers=((file("d/f"),), (opaque("d"),))
    ),
    "A12 a hard link to what an opaque root hides": refused(
        [hardlink("h", "f")], "not there", lowers=((file("f"),), (opaque(), file("x")))
    ),
    "A12 a hard link to what this layer hides": refused(
        [whiteout("f"), hardlink("h", "f")], "not there", lowers=((file("f"),),)
    ),
    "A12 a hard link to what this layer replaced": contained(
        [file("f", b"2"), hardlink("h", "f")],
        {"f": b"2", "h": b"2"},
        same=[("f", "h")],
        lowers=((file("f", b"1"),),),
    ),
    "A12 deep below a link chain of ten layers": contained(
        [file("l0/x")],
        {"l10/x": b"new"} | {f"l{n}": Link(f"l{n + 1}") for n in range(10)},
        lowers=tuple((symlink(f"l{n}", f"l{n + 1}"),) for n in range(10)),
    ),
}
