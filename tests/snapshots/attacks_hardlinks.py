"""Attacks by hard links: A8 and A9 of reliability §2a."""

from __future__ import annotations

from tests.snapshots.attack import Link, contained, refused
from tests.snapshots.members import (
    WORLD,
    character,
    directory,
    fifo,
    file,
    hardlink,
    symlink,
)

OUT = f"/{WORLD}/one"
VICTIM = f"/{WORLD}/victim"

HARDLINKS = {
    "A8 to the outside": refused([hardlink("h", "../victim", mode=0o777)], "not there"),
    "A8 to the outside, absolute": refused([hardlink("h", VICTIM, mode=0o777)], "not there"),
    "A8 through a symlink": refused([symlink("s", f"/{WORLD}"), hardlink("h", "s/victim")], "not there"),
    "A8 through a relative symlink": refused([symlink("s", "../.."), hardlink("h", "s/victim")], "not there"),
    "A8 to a symlink": contained(
        [symlink("s", VICTIM), hardlink("h", "s", mode=0o4777, uid=7)],
        {"s": Link(VICTIM), "h": Link(VICTIM)},
        same=[("s", "h")],
    ),
    "A8 to a symlink, then written": contained(
        [symlink("s", VICTIM), hardlink("h", "s"), file("h")], {"s": Link(VICTIM), "h": b"new"}
    ),
    "A8 to a symlink to a file": contained(
        [file("f"), symlink("s", "f"), hardlink("h", "s")],
        {"f": b"new", "s": Link("f"), "h": Link("f")},
        same=[("s", "h")],
    ),
    "A8 attributes of a link are nobody's": contained(
        [file("f", mode=0o600, uid=3), hardlink("h", "f", mode=0o4777, uid=9, mtime="77")],
        {
            path: {"kind": "file", "mode": 0o600, "uid": 3, "mtime_ns": 10**18, "linked": b"f"}
            for path in ("f", "h")
        },
    ),
    "A8 xattrs of a link are nobody's": contained(
        [file("f"), hardlink("h", "f", xattrs={"user.a": b"1", "security.capability": b"x"})],
        {"f": {"xattrs": {}}, "h": {"xattrs": {}}},
    ),
    "A8 writing one leaves the other": contained(
        [file("f", b"1"), hardlink("h", "f"), file("h", b"2")], {"f": b"1", "h": b"2"}
    ),
    "A8 writing the first leaves the other": contained(
        [file("f", b"1"), hardlink("h", "f"), file("f", b"2")], {"f": b"2", "h": b"1"}
    ),
    "A8 before its target": refused([hardlink("h", "f"), file("f")], "not there"),
    "A8 to itself": refused([hardlink("h", "h")], "not there"),
    "A8 to itself, being there": refused([file("h"), hardlink("h", "./h")], "itself"),
    "A8 to what it replaces": refused([file("d/f"), hardlink("d", "d/f")], "not there"),
    "A8 in a circle": refused([hardlink("a", "b"), hardlink("b", "a")], "not there"),
    "A8 to a directory": refused([directory("d"), hardlink("h", "d")], "directory"),
    "A8 to a directory through a symlink": refused(
        [directory("d/e"), symlink("s", "d"), hardlink("h", "s/e")], "directory"
    ),
    "A8 to a directory with a slash": refused([directory("d"), hardlink("h", "d/")], "directory"),
    "A8 to the root": refused([hardlink("h", ".")], "not there"),
    "A8 to the root, absolute": refused([hardlink("h", "/")], "not there"),
    "A8 to the root, from above": refused([hardlink("h", "../..")], "not there"),
    "A8 to a fifo": contained(
        [fifo("f"), hardlink("h", "f")], {"f": {"kind": "fifo"}, "h": {"kind": "fifo"}}, same=[("f", "h")]
    ),
    "A8 to a device": contained(
        [character("c"), hardlink("h", "c")],
        {path: {"kind": "character", "device": (1, 3)} for path in "ch"},
        same=[("c", "h")],
        privileged=True,
    ),
    "A8 below a file": refused([file("f"), hardlink("f/h", "f")], "no directory"),
    "A8 to something below a file": refused([file("f"), hardlink("h", "f/g")], "no directory"),
    "A8 with many dots": contained(
        [file("d/f"), hardlink("h", "./d/..//../d/./f")], {"d/f": b"new", "h": b"new"}, same=[("d/f", "h")]
    ),
    "A8 over a directory": contained(
        [file("f"), directory("d"), file("d/x"), hardlink("d", "f")],
        {"f": b"new", "d": b"new"},
        same=[("d", "f")],
    ),
    "A8 over a symlink": contained(
        [file("f"), symlink("s", VICTIM), hardlink("s", "f")], {"f": b"new", "s": b"new"}, same=[("f", "s")]
    ),
    "A8 an alias of itself": refused(
        [directory("d"), file("d/f"), symlink("s", "d"), hardlink("s/f", "d/f")], "itself"
    ),
    "A9 a row of 10,000": contained(
        [file("0", b"1"), *(hardlink(str(n + 1), str(n)) for n in range(10_000))],
        {str(n): b"1" for n in range(10_001)},
        same=[tuple(str(n) for n in range(10_001))],
    ),
}
