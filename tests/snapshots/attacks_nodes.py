"""Attacks by devices, owners, modes and extended attributes: A21 and A22 of reliability §2a."""

from __future__ import annotations

import struct

from tests.archive import rawtar
from tests.snapshots.attack import Link, contained, refused
from tests.snapshots.members import (
    WORLD,
    block,
    character,
    directory,
    fifo,
    file,
    hardlink,
    symlink,
)
from tests.trees import CAPABILITY

ZERO = {"kind": "character", "device": (1, 5), "mode": 0o666}
NODES = {
    "A21 a character device": contained([character("c", 1, 5, mode=0o666)], {"c": ZERO}, privileged=True),
    "A21 a block device": contained(
        [block("b", 8, 1, mode=0o660, gid=6)],
        {"b": {"kind": "block", "device": (8, 1), "mode": 0o660, "gid": 6}},
        privileged=True,
    ),
    "A21 the largest device": contained(
        [character("c", 4095, 1048575)], {"c": {"device": (4095, 1048575)}}, privileged=True
    ),
    "A21 a major number that is none": refused([character("c", 4096, 0)], "device"),
    "A21 a minor number that is none": refused([character("c", 1, 1048576)], "device"),
    "A21 device numbers that wrap to the whiteout's": refused([character("c", 2**32, 2**32)], "device"),
    "A21 device numbers of 63 bits": refused([block("b", 2**63 - 1, 2**63 - 1)], "device"),
    "A21 negative device numbers": refused(
        [character("c", raw={"devmajor": rawtar.base256(-1, 8)})], "device number"
    ),
    "A21 a fifo": contained(
        [fifo("p", mode=0o620, mtime="7")], {"p": {"kind": "fifo", "mode": 0o620, "mtime_ns": 7 * 10**9}}
    ),
    "A21 a file over a fifo": contained([fifo("p"), file("p")], {"p": b"new"}),
    "A21 a file over a fifo below": contained([file("p")], {"p": b"new"}, lowers=((fifo("p"),),)),
    "A21 a file over a device": contained([character("c", 1, 5), file("c")], {"c": b"new"}, privileged=True),
    "A21 a file over a device below": contained(
        [file("c")], {"c": b"new"}, lowers=((character("c", 1, 5),),), privileged=True
    ),
    "A21 a directory over a fifo": contained([fifo("p"), directory("p"), file("p/x")], {"p/x": b"new"}),
    "A21 below a fifo": refused([fifo("p"), file("p/x")], "no directory"),
    "A21 a hard link to a fifo, then written": contained(
        [fifo("p"), hardlink("h", "p"), file("h")], {"p": {"kind": "fifo"}, "h": b"new"}
    ),
    "A21 a device with content": contained(
        [character("c", 1, 5, mode=0o666), file("x")], {"c": ZERO, "x": b"new"}, privileged=True
    ),
    "A21 a passwd that is a fifo": contained([fifo("etc/passwd")], {"etc/passwd": {"kind": "fifo"}}),
    "A21 a passwd that is a symlink": contained(
        [symlink("etc/passwd", f"/{WORLD}/fifo")], {"etc/passwd": Link(f"/{WORLD}/fifo")}
    ),
    "A21 a socket": refused([rawtar.member(b"s", flag=b"s")], "type"),
}

OWNERS = {
    f"A22 {key} {number}": refused([file("x", **{key: number})], "owner")
    for key in ("uid", "gid")
    for number in (2**32 - 1, 2**32, 2**32 + 1000, 2**63 - 1)
}
OWNERS |= {
    f"A22 {key} {number} of a {kind}": refused([make("x", **{key: number})], "owner")
    for key, number in (("uid", 2**32 - 1), ("gid", 2**32))
    for kind, make in (
        ("directory", directory),
        ("symlink", lambda name, **more: symlink(name, "y", **more)),
        ("fifo", fifo),
    )
}
OWNERS |= {
    "A22 the largest owner": contained(
        [file("x", uid=2**32 - 2, gid=2**32 - 2)],
        {"x": {"uid": 2**32 - 2, "gid": 2**32 - 2}},
        privileged=True,
    ),
    "A22 a uid in base 256": refused([file("x", raw={"uid": rawtar.base256(2**32 - 1, 8)})], "owner"),
    "A22 a negative uid": refused([file("x", raw={"uid": rawtar.base256(-1, 8)})], "uid"),
    "A22 a negative uid in PAX": refused([file("x", records=((b"uid", b"-1"),))], "uid"),
    "A22 a uid that wraps to root": refused([file("x", records=((b"uid", b"4294967296"),))], "owner"),
}


def _made(make, mode, **more):
    return contained(
        [make("x", mode=mode, uid=1000, gid=1000, **more)],
        {"x": {"mode": mode, "uid": 1000, "gid": 1000}},
        privileged=True,
    )


MODES = {
    f"A22 mode {mode:o} of a {kind}": _made(make, mode)
    for kind, make in (("file", file), ("directory", directory), ("fifo", fifo))
    for mode in (0o4755, 0o2755, 0o1777, 0o7777, 0)
}
MODES["A22 setuid, then written again"] = contained(
    [file("x", mode=0o4755), file("x", b"2", mode=0o644)], {"x": {"kind": "file", "mode": 0o644}}
)
MODES["A22 bits above the mode"] = contained(
    [file("x", raw={"mode": b"0177644\0"})], {"x": {"kind": "file", "mode": 0o7644}}
)

CAPABLE = bytes.fromhex(CAPABILITY)
ENTRY = struct.Struct("<HHI")


def acl(*entries):
    """A POSIX ACL as the kernel keeps it."""
    return struct.pack("<I", 2) + b"".join(ENTRY.pack(*entry) for entry in entries)


NOBODY = 0xFFFFFFFF
ACL = acl((1, 6, NOBODY), (2, 4, 1234), (4, 4, NOBODY), (16, 4, NOBODY), (32, 4, NOBODY))
KEPT = {"user.a": b"1", "user.mime_type": b"text/plain", "user.bin": b"\0\xff=\n", "user.empty": b""}
DROPPED = {
    "security.selinux": b"system_u:object_r:bin_t:s0\0",
    "security.ima": b"\x04\x01",
    "security.evm": b"\x02",
    "security.apparmor": b"x",
    "security.SMACK64": b"_",
    "trusted.md5sum": b"0",
    "system.nfs4_acl": b"\0",
    "foo": b"1",
    "nonsense.a": b"1",
    "user": b"1",
}
XATTRS = {
    "A22 attributes that are kept": contained(
        [file("x", xattrs=KEPT), directory("d", xattrs=KEPT)],
        {path: {"xattrs": {key.encode(): value for key, value in KEPT.items()}} for path in "xd"},
    ),
    "A22 a capability": contained(
        [file("x", xattrs={"security.capability": CAPABLE}, uid=5, mode=0o755)],
        {"x": {"xattrs": {b"security.capability": CAPABLE}, "uid": 5, "mode": 0o755}},
        privileged=True,
    ),
    "A22 a capability and setuid": contained(
        [file("x", xattrs={"security.capability": CAPABLE}, uid=5, mode=0o4755)],
        {"x": {"xattrs": {b"security.capability": CAPABLE}, "uid": 5, "mode": 0o4755}},
        privileged=True,
    ),
    "A22 an access ACL": contained(
        [file("x", xattrs={"system.posix_acl_access": ACL}, mode=0o644)],
        {"x": {"xattrs": {b"system.posix_acl_access": ACL}, "mode": 0o644}},
    ),
    "A22 a default ACL is not inherited": contained(
        [
            directory("d", xattrs={"system.posix_acl_default": ACL}),
            file("d/x", mode=0o600),
            directory("d/e", 0o700),
        ],
        {
            "d": {"xattrs": {b"system.posix_acl_default": ACL}, "mode": 0o755},
            "d/x": {"xattrs": {}, "mode": 0o600},
            "d/e": {"xattrs": {}, "mode": 0o700},
        },
    ),
    "A22 a default ACL below is not inherited": contained(
        [file("d/x", mode=0o600)],
        {"d": {"xattrs": {b"system.posix_acl_default": ACL}}, "d/x": {"xattrs": {}, "mode": 0o600}},
        lowers=((directory("d", xattrs={"system.posix_acl_default": ACL}),),),
    ),
    "A22 user attributes of a symlink": contained(
        [symlink("s", f"/{WORLD}/victim", xattrs={"user.a": b"1"})], {"s": {"kind": "symlink", "xattrs": {}}}
    ),
    "A22 user attributes of a fifo": contained(
        [fifo("p", xattrs={"user.a": b"1"})], {"p": {"kind": "fifo", "xattrs": {}}}
    ),
    "A22 a name of 256 bytes": refused([file("x", xattrs={"user." + "n" * 251: b"1"})], "name"),
    "A22 a value of more than 64 KiB": refused([file("x", xattrs={"user.a": bytes((1 << 16) + 1)})], "65536"),
    "A22 more than 1 MiB": refused(
        [file("x", xattrs={f"user.{n}": bytes(1 << 16) for n in range(17)})], "1048576"
    ),
    "A22 100,000 attributes": refused(
        [file("x", xattrs={f"user.{n}": b"" for n in range(100_000)})], "1048576"
    ),
}
XATTRS |= {
    f"A22 {name} is dropped": contained(
        [file("x", xattrs={name: value, "user.a": b"1"})], {"x": {"xattrs": {b"user.a": b"1"}}}, warned=name
    )
    for name, value in DROPPED.items()
}
# The kernel refuses these; whatever is done about it, it is no crash.
UNUSABLE = {
    "a capability of nonsense": {"security.capability": b"nonsense"},
    "an empty capability": {"security.capability": b""},
    "an ACL of nonsense": {"system.posix_acl_access": b"nonsense"},
    "an ACL of nobody": {"system.posix_acl_access": acl((2, 7, NOBODY))},
    "a default ACL of a file": {"system.posix_acl_default": ACL},
    "an attribute without a name": {"user.": b"1"},
}
XATTRS |= {
    # what isn't even the right version of an ACL the file system has no support for, says the kernel
    f"A22 {what}": contained(
        [file("x", xattrs=xattrs)],
        {"x": {"kind": "file", "xattrs": {}}},
        told=what != "an ACL of nonsense",
    )
    for what, xattrs in UNUSABLE.items()
}
EMPTY = {"security.capability": b""}
XATTRS |= {
    "A22 an empty capability below, linked to": contained(
        [hardlink("h", "x")],
        {"x": b"new", "h": b"new"},
        same=[("x", "h")],
        lowers=((file("x", xattrs=EMPTY),),),
    ),
    "A22 an empty capability below, of a directory": contained(
        [file("d/x")], {"d/x": b"new"}, lowers=((directory("d", xattrs=EMPTY),),)
    ),
}

TIMES = {
    "year 1": "-62135596800",
    "before 1970": "-1.5",
    "a nanosecond": "0.000000001",
    "2038": "2147483648",
    "2446": "15032385536",
    "year 10^12": "31556889864403199",
    "64 bits": "18446744073709551616",
    "infinite": "1e400",
    "not a number": "nan",
    "nonsense": "yesterday",
}
MOMENTS = {
    f"B16 {what}": contained(
        [file("x", mtime=mtime), directory("d", mtime=mtime), symlink("s", "x", mtime=mtime)],
        {"x": b"new", "d": None, "s": Link("x")},
    )
    for what, mtime in TIMES.items()
}

NODES_AND_ATTRIBUTES = NODES | OWNERS | MODES | XATTRS | MOMENTS
