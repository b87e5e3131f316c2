"""Attacks by symbolic links: A4, A5 and A10 of reliability §2a."""

from __future__ import annotations

from tests.snapshots.attack import Link, contained, refused
from tests.snapshots.members import (
    WORLD,
    directory,
    fifo,
    file,
    hardlink,
    symlink,
)

OUT = f"/{WORLD}/one"
VICTIM = f"/{WORLD}/victim"


def through(target, leads_to, *, before=()):
    """A symlink, and a file written through it."""
    return contained(
        [*before, symlink("s", target), file("s/victim")],
        {"s": Link(target), f"{leads_to}/victim".lstrip("/"): b"new"},
    )


def chain(length):
    """Symlinks in a row, the last one to a directory, and a file written through all of them."""
    links = [symlink(f"l{n}", f"l{n + 1}") for n in range(length)]
    return [*links, directory(f"l{length}"), file("l0/x")]


def winding(rounds):
    """A symlink whose target walks up and down: cheap to write, expensive to follow in user space."""
    return "d/../" * rounds + "next"


WRITES = {
    "A4 absolute": through(OUT, OUT),
    "A4 relative": through("../..", ""),
    "A4 far up": through("../" * 50, ""),
    "A4 up and absolute by words": through(f"../../..{OUT}", OUT),
    "A4 with a slash at its end": through(f"{OUT}/", OUT),
    "A4 to the root": through("/", ""),
    "A4 to itself's directory": through(".", ""),
    "A4 to a directory that is not there": through("nowhere/deep", "nowhere/deep"),
    "A4 by /proc/self/root": through(f"/proc/self/root{OUT}", f"proc/self/root{OUT}"),
    "A4 by /proc/self/cwd": through("/proc/self/cwd", "proc/self/cwd"),
    "A4 by /proc/self/fd": through("/proc/self/fd/3", "proc/self/fd/3"),
    "A4 by /dev/fd": through("/dev/fd/3/..", "dev/fd"),
    "A4 in two steps": contained(
        [symlink("t", OUT), symlink("s", "t"), file("s/victim")],
        {"t": Link(OUT), "s": Link("t"), f"{OUT[1:]}/victim": b"new"},
    ),
    "A4 in two steps, absolute": contained(
        [symlink("s", "/t"), symlink("t", OUT), file("s/victim")],
        {"t": Link(OUT), "s": Link("/t"), f"{OUT[1:]}/victim": b"new"},
    ),
    "A4 from within a directory": contained(
        [directory("d"), symlink("d/s", "../../../e"), file("d/s/x")],
        {"d/s": Link("../../../e"), "e/x": b"new"},
    ),
    "A4 dots after a link are the kernel's": contained(
        [directory("b/c"), symlink("a", "b/c"), symlink("t", "a/../x"), file("t/f")],
        {"a": Link("b/c"), "b/c": None, "t": Link("a/../x"), "b/x/f": b"new"},
    ),
    "A4 a directory through it": contained(
        [symlink("s", OUT), directory("s/closed", 0o777)], {"s": Link(OUT), f"{OUT[1:]}/closed": None}
    ),
    "A4 a symlink through it": contained(
        [symlink("s", OUT), symlink("s/way", "/")], {"s": Link(OUT), f"{OUT[1:]}/way": Link("/")}
    ),
    "A4 a hard link through it": contained(
        [file("f"), symlink("s", OUT), hardlink("s/victim", "f")],
        {"f": b"new", "s": Link(OUT), f"{OUT[1:]}/victim": b"new"},
        same=[("f", f"{OUT[1:]}/victim")],
    ),
    "A4 a fifo through it": contained(
        [symlink("s", OUT), fifo("s/victim")], {"s": Link(OUT), f"{OUT[1:]}/victim": {"kind": "fifo"}}
    ),
    "A4 a file over it": contained([symlink("s", VICTIM), file("s")], {"s": b"new"}),
    "A4 an empty file over it": contained([symlink("s", VICTIM), file("s", b"")], {"s": b""}),
    "A4 a fifo over it": contained([symlink("s", VICTIM), fifo("s")], {"s": {"kind": "fifo"}}),
    "A4 a directory over it": contained(
        [symlink("s", OUT), directory("s", 0o700), file("s/victim")],
        {"s": {"kind": "directory", "mode": 0o700}, "s/victim": b"new"},
    ),
    "A4 retargeted": contained(
        [directory("d"), directory("e"), symlink("s", "d"), file("s/x"), symlink("s", "e"), file("s/y")],
        {"s": Link("e"), "d/x": b"new", "e/y": b"new"},
    ),
    "A4 a directory becomes it": contained(
        [directory("d"), file("d/x"), symlink("d", OUT), file("d/y")],
        {"d": Link(OUT), f"{OUT[1:]}/y": b"new"},
    ),
    "A4 a directory above becomes it": contained(
        [file("a/b/c/x"), symlink("a", f"/{WORLD}"), file("a/b/c/y")],
        {"a": Link(f"/{WORLD}"), f"{WORLD}/b/c/y": b"new"},
    ),
    "A4 what it leads to becomes one": contained(
        [directory("d"), symlink("s", "d"), file("s/x"), symlink("d", OUT), file("s/y")],
        {"s": Link("d"), "d": Link(OUT), f"{OUT[1:]}/y": b"new"},
    ),
    "A4 it becomes a directory": contained(
        [directory("d"), symlink("s", "d"), file("s/x"), directory("s"), file("s/y")],
        {"s": None, "d/x": b"new", "s/y": b"new"},
    ),
    "A4 by a hard link to it": contained(
        [symlink("s", OUT), hardlink("h", "s"), file("h/victim")],
        {"s": Link(OUT), "h": Link(OUT), f"{OUT[1:]}/victim": b"new"},
        same=[("s", "h")],
    ),
    "A4 a row of 30": contained(
        chain(30), {"l30": None, "l30/x": b"new"} | {f"l{n}": Link(f"l{n + 1}") for n in range(30)}
    ),
    "A4 a row of 300": refused(chain(300), "too many"),
    "A4 to itself": refused([symlink("s", "s"), file("s/x")], "too many"),
    "A4 to itself, absolute": refused([symlink("s", "/s/s"), file("s/x")], "too many"),
    "A4 in a circle": refused([symlink("a", "b"), symlink("b", "a"), file("a/x")], "too many"),
    "A4 below itself": refused([symlink("s", "s/d"), file("s/x")], "too many"),
    "A4 to a file": refused([file("f"), symlink("s", "f"), file("s/x")], "no directory"),
    "A4 to a fifo": refused([fifo("f"), symlink("s", "f"), file("s/x")], "no directory"),
    "A4 without a target": refused([symlink("s", "")], "target"),
    "A4 target of 4095 bytes": contained([symlink("s", "t/" * 2047 + "t")], {"s": Link("t/" * 2047 + "t")}),
    "A4 target of 4096 bytes": refused([symlink("s", "t/" * 2048)], "target|long"),
    "A4 target of 4097 bytes": refused([symlink("s", "t/" * 2048 + "t")], "target|long"),
    "A4 target of a long name": refused([symlink("s", "t" * 256), file("s/x")], "255|long"),
    "A4 winding": refused(
        [
            directory("d"),
            *(symlink(f"{n}", winding(800).replace("next", str(n + 1))) for n in range(300)),
            file("0/x"),
        ],
        "too many",
    ),
    "A4 winding, again and again": refused(
        [
            directory("d"),
            directory("40"),
            *(symlink(f"{n}", winding(800).replace("next", str(n + 1))) for n in range(40)),
            *(file(f"0/{n}/x") for n in range(200)),
        ],
        "too many",
    ),
}

# CVE-2025-4517: a path that is longer than PATH_MAX once its links are followed
_STEPS = "abcdefghijklmnop"
_LONG = "d" * 247


def expanding():
    """Short names that lead to a path of 4 kB, a symlink at its end, and a way out behind it."""
    made, above = [], ""
    for step in _STEPS:
        made += [directory(above + _LONG), symlink(above + step, _LONG)]
        above += step + "/"
    end = above + "l" * 254
    out = f"{end}/../../../..{OUT}"
    return [*made, symlink(end, "../" * len(_STEPS)), symlink("escape", out)]


REALPATH = {
    "A5 a file": refused([*expanding(), file("escape/victim")], "4096|long"),
    "A5 a directory": refused([*expanding(), directory("escape/closed", 0o777)], "4096|long"),
    "A5 a hard link": refused([*expanding(), hardlink("h", "escape/victim")], "4096|long"),
    "A5 a long way down": refused(
        [symlink("s", ("d" * 200 + "/") * 15 + "d"), file("s/" + ("e" * 200 + "/") * 15 + "x")], "4096|long"
    ),
}

EVIL = {"mode": 0o4777, "mtime": "5", "xattrs": {"user.evil": b"1"}}
ATTRIBUTES = {
    "A10 of a symlink": contained(
        [symlink("s", VICTIM, uid=7, gid=8, **EVIL)],
        {"s": {"kind": "symlink", "mtime_ns": 5 * 10**9, "xattrs": {}}},
    ),
    "A10 of a symlink to a directory": contained([symlink("s", OUT, uid=7, **EVIL)], {"s": Link(OUT)}),
    "A10 of a directory that became a symlink": contained(
        [directory("d", uid=7, **EVIL), symlink("d", OUT)], {"d": Link(OUT)}
    ),
    "A10 of a directory below one that did": contained(
        [directory("d"), directory("d/closed", uid=7, **EVIL), symlink("d", OUT)], {"d": Link(OUT)}
    ),
    "A10 of a directory below one that did, relative": contained(
        [directory("d"), directory("d/closed", uid=7, **EVIL), symlink("d", "../..")], {"d": Link("../..")}
    ),
    "A10 of a directory that became a symlink inside": contained(
        [directory("e", 0o755), directory("d", **EVIL), symlink("d", "e")],
        {"d": Link("e"), "e": {"mode": 0o755, "mtime_ns": 10**18, "xattrs": {}}},
    ),
    "A10 of a directory that became a file": contained(
        [directory("d", **EVIL), file("d", mode=0o600)],
        {"d": {"kind": "file", "mode": 0o600, "mtime_ns": 10**18, "xattrs": {}}},
    ),
    "A10 of a directory that became a fifo": contained(
        [directory("d", **EVIL), fifo("d", mode=0o600)],
        {"d": {"kind": "fifo", "mode": 0o600, "mtime_ns": 10**18}},
    ),
    "A10 of a directory by a symlink": contained(
        [directory("d"), symlink("s", "d"), directory("s", 0o700)],
        {"d": {"mode": 0o755}, "s": {"kind": "directory", "mode": 0o700}},
    ),
    "A10 of a file by a symlink": contained(
        [file("f", mode=0o600), symlink("s", "f"), file("s", mode=0o777)],
        {"f": {"mode": 0o600}, "s": {"kind": "file", "mode": 0o777}},
    ),
    "A10 of a directory, then a file in it": contained(
        [directory("d", 0o500, mtime="5"), file("d/x"), directory("d/e"), file("d/e/y")],
        {"d": {"mode": 0o500, "mtime_ns": 5 * 10**9}, "d/x": b"new", "d/e/y": b"new"},
    ),
    "A10 of directories, the inner first": contained(
        [
            directory("a/b/c", mtime="3"),
            directory("a/b", mtime="2"),
            directory("a", mtime="1"),
            file("a/b/c/x"),
        ],
        {
            "a": {"mtime_ns": 10**9},
            "a/b": {"mtime_ns": 2 * 10**9},
            "a/b/c": {"mtime_ns": 3 * 10**9},
            "a/b/c/x": b"new",
        },
    ),
}

SYMLINKS = WRITES | REALPATH | ATTRIBUTES
