"""Attacks by names: A1 to A3, A6, A7, A19, A20 of reliability §2a."""

from __future__ import annotations

from tests.archive import rawtar
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

LONG = "n" * 255
DEEP = "/".join("d" * 256)


def _named(name, inside):
    """A file with a name, and the one path at which it must be."""
    return contained([file(name)], {inside: b"new"})


DOTDOT = {
    "A1 one up": _named("../x", "x"),
    "A1 down and up": _named("a/../../x", "x"),
    "A1 far up": _named("../" * 40 + "x", "x"),
    "A1 dot, then up": _named("./../x", "x"),
    "A1 down, down, up": _named("a/b/../../../../../x", "x"),
    "A1 doubled slashes": _named("..//..//x", "x"),
    "A1 slash, then up": _named("/../x", "x"),
    "A1 three dots are a name": _named(".../x", ".../x"),
    "A1 two dots and more are a name": _named("..x/..y", "..x/..y"),
    "A1 backslashes are letters": _named("..\\..\\x", "..\\..\\x"),
    "A1 to a file that is there": _named("../victim", "victim"),
    "A1 to a program that is there": contained(
        [file("../open/program", mode=0o777)], {"open/program": b"new"}
    ),
    "A1 a directory": contained([directory("../closed", 0o777)], {"closed": None}),
    "A1 a directory that is above": contained([directory("../../", 0o777)], {}),
    "A1 a symlink": contained([symlink("../way", "/")], {"way": Link("/")}),
    "A1 a hard link": contained(
        [file("f"), hardlink("../victim", "f")], {"f": b"new", "victim": b"new"}, same=[("f", "victim")]
    ),
    "A1 a fifo": contained([fifo("../victim")], {"victim": {"kind": "fifo"}}),
    "A1 a whiteout": contained([whiteout("../victim")], {}),
    "A1 an opaque marker": contained([opaque("../open"), file("open/x")], {"open/x": b"new"}),
    "A1 by a PAX path": contained(
        [rawtar.pax((b"path", b"../../x")) + rawtar.member(b"y", b"new")], {"x": b"new"}
    ),
    "A1 by a GNU long name": contained(
        [rawtar.member(b"././@LongLink", b"../../x\0", b"L") + rawtar.member(b"y", b"new")], {"x": b"new"}
    ),
    "A1 by a ustar prefix": contained([rawtar.member(b"x", b"new", prefix=b"../..")], {"x": b"new"}),
    "A1 dot is legal": contained([directory("."), directory("./a"), file("./a/./x")], {"a/x": b"new"}),
    "A1 what is gone by words is not made": _named("a/../b", "b"),
    "A1 words come before links": contained(
        [directory("c/d"), symlink("a", "c/d"), file("a/../b")], {"c/d": None, "a": Link("c/d"), "b": b"new"}
    ),
}

ABSOLUTE = {
    "A2 absolute": _named("/x", "x"),
    "A2 many slashes": _named("////x", "x"),
    "A2 slash dot": _named("/./x", "x"),
    "A2 a file that is there": _named(f"/{WORLD}/victim", f"{WORLD}/victim"),
    "A2 a directory that is there": contained(
        [directory(f"/{WORLD}/closed", 0o777)], {f"{WORLD}/closed": None}
    ),
    "A2 a symlink": contained([symlink(f"/{WORLD}/link", "x")], {f"{WORLD}/link": Link("x")}),
    "A2 a hard link": contained(
        [file("/f"), hardlink(f"/{WORLD}/h", "/f")],
        {"f": b"new", f"{WORLD}/h": b"new"},
        same=[("f",)],
    ),
    "A2 a whiteout": contained([whiteout(f"/{WORLD}/victim"), file("x")], {WORLD: None, "x": b"new"}),
    "A2 up, then absolute": _named(f"../..//{WORLD}/victim", f"{WORLD}/victim"),
}

TWINS = {
    "A3 sibling with the root's name and more": _named("../root-evil/victim", "root-evil/victim"),
    "A3 sibling that only begins like the root": _named("../rootx/x", "rootx/x"),
    "A3 by a symlink": contained(
        [symlink("s", "../root-evil"), file("s/victim")],
        {"s": Link("../root-evil"), "root-evil/victim": b"new"},
    ),
    "A3 by an absolute symlink": contained(
        [symlink("s", f"/{WORLD}/one/two/root-evil"), file("s/victim")],
        {"s": Link(f"/{WORLD}/one/two/root-evil"), f"{WORLD}/one/two/root-evil/victim": b"new"},
    ),
    "A3 by a hard link": refused([hardlink("h", "../root-evil/victim")], "victim"),
}

ROOTS = (".", "./", "/", "//", "/.", "./.", "..", "../", "../..", "a/..", "a/b/../..", "/a/../..")
NAMELESS = {
    "symlink": lambda name: symlink(name, f"/{WORLD}"),
    "hard link": lambda name: hardlink(name, "f"),
    "file": file,
    "fifo": fifo,
    "device": character,
}
THE_ROOT = {
    f"A6 directory {name!r}": contained([directory(name, 0o777, uid=5), file("x")], {"x": b"new"})
    for name in ROOTS
}
THE_ROOT |= {
    f"A6 {kind} {name!r}": refused([file("f"), make(name), file("x")], "root")
    for kind, make in NAMELESS.items()
    for name in (ROOTS if kind == "symlink" else (".", "/", "a/.."))
}
THE_ROOT["A6 symlink without a name"] = refused([symlink("", "/etc/")], "empty name")

REENTRY = {
    "A7 out and in again": _named("../root/x", "root/x"),
    "A7 out twice and in again": _named("../../two/root/x", "two/root/x"),
    "A7 a directory": contained([directory("../../two/made")], {"two/made": None}),
    "A7 by a symlink": contained(
        [symlink("s", "../../two/root"), file("s/x")], {"s": Link("../../two/root"), "two/root/x": b"new"}
    ),
    "A7 by an absolute symlink": contained(
        [symlink("s", f"/{WORLD}/one/two/root"), file("s/x")],
        {"s": Link(f"/{WORLD}/one/two/root"), f"{WORLD}/one/two/root/x": b"new"},
    ),
}

TWICE = {
    "A19 a file twice": contained([file("x", b"1"), file("x", b"22")], {"x": b"22"}),
    "A19 a shorter file": contained([file("x", b"12345"), file("x", b"")], {"x": b""}),
    "A19 a file by five names": contained(
        [file(name, name.encode()) for name in ("x", "./x", "/x", "../x", "a/../x")], {"x": b"a/../x"}
    ),
    "A19 a file by an alias": contained(
        [directory("d"), file("d/x", b"1"), symlink("s", "d"), file("s/x", b"2")],
        {"d/x": b"2", "s": Link("d")},
    ),
    "A19 a directory twice": contained(
        [directory("d", 0o700, uid=1), file("d/x"), directory("d", 0o711, mtime="5")],
        {"d": {"kind": "directory", "mode": 0o711, "uid": 0, "mtime_ns": 5 * 10**9}, "d/x": b"new"},
    ),
    "A19 a symlink twice": contained([symlink("s", "a"), symlink("s", "b")], {"s": Link("b")}),
    "A19 a hard link twice": contained(
        [file("a", b"1"), file("b", b"2"), hardlink("h", "a"), hardlink("h", "b")],
        {"a": b"1", "b": b"2", "h": b"2"},
        same=[("b", "h")],
    ),
    "A19 twins by case": contained([file("x", b"1"), file("X", b"2")], {"x": b"1", "X": b"2"}),
    "A19 twins by normal form": contained(
        [file("\u00e9", b"1"), file("e\u0301", b"2")], {"\u00e9": b"1", "e\u0301": b"2"}
    ),
    "A19 twins that expand": contained(
        [file("ß", b"1"), file("ss", b"2"), file("\u017fs", b"3")], {"ß": b"1", "ss": b"2", "\u017fs": b"3"}
    ),
    "A19 a symlink and its twin by case": contained(
        [symlink("S", f"/{WORLD}"), directory("s"), file("s/victim")],
        {"S": Link(f"/{WORLD}"), "s/victim": b"new"},
    ),
}

ODD = {
    "not UTF-8": b"caf\xe9",
    "newline": b"a\nb",
    "tab": b"a\tb",
    "escape": b"\x1b[31mred",
    "bell and backspace": b"\x07\x08",
    "delete": b"\x7f",
    "C1": b"\xc2\x9b31m",
    "right to left": "\u202egnp.exe".encode(),
    "backslash": b"..\\x",
    "spaces": b"  x  ",
    "dash": b"-rf",
    "star": b"*",
    "percent": b"%s%n",
    "surrogate": b"\xed\xa0\x80",
    "255 bytes": LONG.encode(),
}
STRANGE = {f"A20 {what}": contained([file(name)], {name: b"new"}) for what, name in ODD.items()}
STRANGE |= {
    "A20 256 directories": contained([directory(DEEP)], {DEEP: None}),
    "A20 255 directories and a file": _named(DEEP[:-1] + "f", DEEP[:-1] + "f"),
    "A20 deeper by words only": _named("d/../" * 300 + "x", "x"),
    "A20 257 directories": refused([directory(DEEP + "/d")], "256"),
    "A20 257 by a symlink": refused(
        [directory(DEEP[:399]), symlink("s", DEEP[:399]), file("s/" + DEEP[:121])], "256"
    ),
    # each is a kilobyte of the layer, and must not take long to be made
    "A20 ten times 250 directories": contained(
        [file(f"{n}/{'d/' * 250}x") for n in range(10)], {f"{n}/{'d/' * 250}x": b"new" for n in range(10)}
    ),
    "A20 30,000 directories": refused([file("d/" * 30_000 + "x")], "4096"),
    "A20 256 bytes": refused([file(LONG + "n")], "255"),
    "A20 256 bytes further down": refused([file(f"a/{LONG}n/b")], "255"),
    "A20 60 kB": refused([file("n/" * 30_000)], "4096"),
    "A20 NUL": refused([rawtar.pax((b"path", b"a\0b")) + rawtar.member(b"x")], "NUL"),
    "A20 NUL in a target": refused(
        [rawtar.pax((b"linkpath", b"a\0b")) + rawtar.member(b"x", flag=b"2")], "NUL"
    ),
    "A20 a refusal shows no control characters": refused([hardlink(b"x\n\x1b[2J", b"\x07\xff\n")], r"\\x07"),
}

NAMES = DOTDOT | ABSOLUTE | TWINS | THE_ROOT | REENTRY | TWICE | STRANGE
