"""The cases of containerd's breakout test, by its names (specification §7.3), in our own form.

What containerd applies to a directory first is a layer below here. Three verdicts are stricter: an
entry that names the root and is no directory, and a directory named like a whiteout, are refused.
Their /etc has another name here, so that a test that fails spares this machine's.
"""

from __future__ import annotations

from tests.snapshots.attack import Link, contained, refused
from tests.snapshots.members import WORLD, directory, file, hardlink, symlink, whiteout

ETC = directory("etc-inside", 0o770)
PASSWD = file("/etc-inside/passwd", b"inside")
INSIDE = {"etc-inside/passwd": b"inside"}
USERS = (directory("etc-inside"), file("etc-inside/passwd", b"all users"))
OVER = (directory("etc-inside"), file("etc-inside/passwd", b"inside"), directory("localetc"))
WORDS = "invalid whiteout"


def written(*links, where):
    """A file written through symlinks to /etc."""
    return contained([*links, file(where, b"unbroken")], _links(links) | {"etc-inside/unbroken": b"unbroken"})


def linked(*members, name, target="/etc-inside/passwd", lowers=(), etc=(ETC, PASSWD)):
    """A hard link whose target, by whatever way, is the passwd inside."""
    links = [*(item for layer in lowers for item in layer), *members]
    real = "etc-inside/localpasswd" if name == "/localetc/localpasswd" and _links(links) else name.lstrip("/")
    return contained(
        [*etc, *members, hardlink(name, target)],
        _links(links) | INSIDE | {real: b"inside"},
        same=[(real, "etc-inside/passwd")],
        lowers=lowers,
    )


def _links(items):
    """What is expected of the symlinks and directories among some members."""
    return {
        item.name.strip("/"): Link(item.link) if item.flag == b"2" else None
        for item in items
        if item.flag in {b"2", b"5"}
    }


CONTAINERD = {
    "SymlinkAbsolute": written(
        directory("etc-inside"), symlink("localetc", "/etc-inside"), where="/localetc/unbroken"
    ),
    "SymlinkUpAndOut": written(
        directory("etc-inside"),
        directory("dummy"),
        symlink("localetc", "/dummy/../etc-inside"),
        where="/localetc/unbroken",
    ),
    "SymlinkMultipleAbsolute": written(
        directory("etc-inside"),
        directory("dummy"),
        symlink("/dummy/etc-inside", "/etc-inside"),
        symlink("localetc", "/dummy/etc-inside"),
        where="/dummy/etc-inside/unbroken",
    ),
    "SymlinkMultipleRelative": written(
        directory("etc-inside"),
        directory("dummy"),
        symlink("/dummy/etc-inside", "/etc-inside"),
        symlink("localetc", "./dummy/etc-inside"),
        where="/dummy/etc-inside/unbroken",
    ),
    "SymlinkEmptyFile": contained(
        [
            directory("etc-inside"),
            file("etc-inside/emptied", b"notempty"),
            symlink("localetc", "/etc-inside"),
            file("/localetc/emptied", b""),
        ],
        {"localetc": Link("/etc-inside"), "etc-inside/emptied": b""},
    ),
    "HardlinkRelative": linked(
        directory("breakouts"),
        symlink("breakouts/d1", "../../etc-inside"),
        name="breakouts/mypasswd",
        target="/breakouts/d1/passwd",
    ),
    "HardlinkDownAndOut": linked(
        directory("breakouts"),
        directory("downandout"),
        symlink("breakouts/d1", "../downandout/../../etc-inside"),
        name="breakouts/mypasswd",
        target="/breakouts/d1/passwd",
    ),
    "HardlinkAbsolute": linked(
        symlink("localetc", "/etc-inside"), name="localpasswd", target="/localetc/passwd"
    ),
    "HardlinkRelativeLong": linked(
        symlink("localetc", "../../../../../../../etc-inside"), name="localpasswd", target="/localetc/passwd"
    ),
    "HardlinkRelativeUpAndOut": linked(
        symlink("localetc", "upandout/../../../etc-inside"), name="localpasswd", target="/localetc/passwd"
    ),
    "HardlinkDirectRelative": linked(name="localpasswd", target="../../../../../etc-inside/passwd"),
    "HardlinkDirectAbsolute": linked(name="localpasswd"),
    "SymlinkParentDirectory": refused(
        [ETC, PASSWD, symlink("..", "/etc-inside/"), hardlink("localpasswd", "/etc-inside/passwd")], "root"
    ),
    "SymlinkEmptyFilename": refused(
        [ETC, PASSWD, symlink("", "/etc-inside/"), hardlink("localpasswd", "/etc-inside/passwd")],
        "empty name",
    ),
    "SymlinkParentRelative": contained(
        [
            ETC,
            PASSWD,
            symlink("localetc/sub/..", "/etc-inside/"),
            hardlink("/localetc/localpasswd", "/etc-inside/passwd"),
        ],
        INSIDE | {"localetc": Link("/etc-inside/"), "etc-inside/localpasswd": b"inside"},
        same=[("etc-inside/localpasswd", "etc-inside/passwd")],
    ),
    "SymlinkSlashEnded": contained(
        [ETC, PASSWD, directory("localetc/"), hardlink("/localetc/localpasswd", "/etc-inside/passwd")],
        INSIDE | {"localetc/localpasswd": b"inside"},
        same=[("localetc/localpasswd", "etc-inside/passwd")],
    ),
    "SymlinkOverrideDirectory": linked(
        symlink("localetc", "/etc-inside"), name="/localetc/localpasswd", lowers=(OVER,), etc=()
    ),
    "SymlinkOverrideDirectoryRelative": linked(
        symlink("localetc", "../../etc-inside"), name="/localetc/localpasswd", lowers=(OVER,), etc=()
    ),
    "DirectoryOverrideSymlink": contained(
        [directory("/localetc/"), hardlink("/localetc/localpasswd", "/etc-inside/passwd")],
        INSIDE | {"localetc": None, "localetc/localpasswd": b"inside"},
        same=[("localetc/localpasswd", "etc-inside/passwd")],
        lowers=((*OVER[:2], symlink("localetc", "/etc-inside")),),
    ),
    "DirectoryOverrideSymlinkAndHardlink": contained(
        [directory("/localetc/"), file("/localetc/localpasswd", b"different")],
        INSIDE
        | {"localetc": None, "localetc/localpasswd": b"different", "etc-inside/localpasswd": b"inside"},
        same=[("etc-inside/localpasswd", "etc-inside/passwd")],
        lowers=(
            (
                *OVER[:2],
                symlink("localetc", "etc-inside"),
                hardlink("/localetc/localpasswd", "/etc-inside/passwd"),
            ),
        ),
    ),
    "WhiteoutRootParent": refused([file(".wh...", b"")], WORDS, lowers=(OVER[:2],)),
    "WhiteoutParent": refused([file("etc-inside/.wh...", b"")], WORDS, lowers=(OVER[:2],)),
    "WhiteoutRoot": refused([file(".wh..", b"")], WORDS, lowers=(OVER[:2],)),
    "WhiteoutCurrentDirectory": refused([file("etc-inside/.wh..", b"")], WORDS, lowers=(OVER[:2],)),
    "WhiteoutSymlink": contained(
        [whiteout("localetc")],
        {"etc-inside/passwd": b"all users"},
        lowers=((*USERS, symlink("localetc", "/etc-inside")),),
    ),
    "WhiteoutSymlinkPath": contained(
        [whiteout("localetc/whitedout")],
        {"etc-inside/passwd": b"all users", "localetc": Link("/etc-inside")},
        lowers=(
            (*USERS, file("etc-inside/whitedout", b"ahhhh whiteout"), symlink("localetc", "/etc-inside")),
        ),
    ),
    "WhiteoutDirectoryName": refused(
        [file(".wh.etc-inside/somefile", b"non-empty")],
        "whiteout",
        lowers=((*USERS, symlink("localetc", "/etc-inside")),),
    ),
    "WhiteoutDeadSymlinkParent": contained(
        [whiteout("localetc/etc-inside")],
        {"etc-inside/passwd": b"all users", "localetc": Link("/dne"), "dne": None},
        lowers=((*USERS, symlink("localetc", "/dne")),),
    ),
    "WhiteoutRelativePath": contained(
        [file("dne/../.wh.etc-inside", b"")],
        {"localetc": Link("/dne")},
        lowers=((*USERS, symlink("localetc", "/dne")),),
    ),
    # containerd has no case of this name in its test any more; the specification lists it
    "SymlinkOverridePath": contained(
        [
            directory("etc-inside"),
            directory("localetc"),
            symlink("localetc", "/etc-inside"),
            file("localetc/unbroken", b"u"),
        ],
        {"localetc": Link("/etc-inside"), "etc-inside/unbroken": b"u"},
    ),
    "HardlinkSymlinkBeforeCreateTarget": contained(
        [
            ETC,
            symlink("localpasswd", "/etc-inside/passwd"),
            hardlink("localpasswd-dup", "localpasswd"),
            file("/etc-inside/passwd", b"after"),
        ],
        {
            "localpasswd": Link("/etc-inside/passwd"),
            "localpasswd-dup": Link("/etc-inside/passwd"),
            "etc-inside/passwd": b"after",
        },
        same=[("localpasswd", "localpasswd-dup")],
    ),
    "HardlinkSymlinkRelative": contained(
        [
            ETC,
            PASSWD,
            symlink("passwdlink", "../../../../../etc-inside/passwd"),
            hardlink("localpasswd", "/passwdlink"),
        ],
        INSIDE | dict.fromkeys(("passwdlink", "localpasswd"), Link("../../../../../etc-inside/passwd")),
        same=[("passwdlink", "localpasswd")],
    ),
    "HardlinkSymlinkAbsolute": contained(
        [ETC, PASSWD, symlink("passwdlink", "/etc-inside/passwd"), hardlink("localpasswd", "/passwdlink")],
        INSIDE | dict.fromkeys(("passwdlink", "localpasswd"), Link("/etc-inside/passwd")),
        same=[("passwdlink", "localpasswd")],
    ),
    "HardlinkSymlinkChmod": contained(
        [
            symlink(f"/{WORLD}/victim", f"/{WORLD}/secret"),
            hardlink("sketchylink", f"/{WORLD}/victim", mode=0o777),
        ],
        {f"{WORLD}/victim": Link(f"/{WORLD}/secret"), "sketchylink": Link(f"/{WORLD}/secret")},
        same=[(f"{WORLD}/victim", "sketchylink")],
    ),
}
