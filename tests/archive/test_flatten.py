"""The flattened root file system: known answers for each rule of applying layers."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess

import pytest

from imgdb.archive import merged
from imgdb.archive.compression import open_decompressed
from imgdb.archive.flatten import flatten
from imgdb.archive.tar import MemberKind, TarReader
from imgdb.errors import BadArchiveError
from tests.archive.layers import (
    TIME,
    Openings,
    device,
    fifo,
    file,
    flat,
    flat_tar,
    folder,
    hardlink,
    layer,
    members,
    opaque,
    symlink,
    whiteout,
    xattr,
)
from tests.archive.streams import zstd

CAPABILITY = "\1\0\0\2" + "\0" * 16
FROZEN = "e6db8b0344fe8b3a3ecfe1b111a3258f"


def refused(words, *layers):
    """The message of the refusal."""
    out = io.BytesIO()
    with pytest.raises(BadArchiveError, match=words) as caught:
        flatten([Openings(data) for data in layers], out)
    assert out.getvalue() == b""
    assert str(caught.value).isprintable()
    return str(caught.value)


# -- the tar ------------------------------------------------------------------------------------------


def test_order():
    """Directories first and sorted, parents before what is in them; then everything as it came."""
    tar = flat_tar(
        layer(file("z", b"1"), folder("d-b"), folder("d"), file("a", b"2"), folder("d/e"), symlink("s", "a")),
        layer(file("b", b"3"), file("d/0", b"4"), hardlink("0", "a"), hardlink("zz", "a")),
    )

    assert [os.fsdecode(one.name) for one, _ in members(tar)] == [
        *("d/", "d/e/", "d-b/"),
        *("z", "0", "a", "zz", "s"),
        *("b", "d/0"),
    ]


def test_nothing():
    """No layers, and layers without entries: two zero blocks."""
    assert flat_tar() == bytes(1024)
    assert flat_tar(layer(), layer(whiteout("x"), folder("./"))) == bytes(1024)


def test_the_tar_is_frozen():
    """A change of any byte that we write shows here."""
    tar = flat_tar(*SAMPLE)

    assert hashlib.sha256(tar).hexdigest().startswith(FROZEN)
    assert tar.endswith(bytes(1024))
    assert len(tar) % 512 == 0


def test_the_same_whatever_brings_it():
    """Seekable or not, compressed or not: the same bytes."""
    expected = flat_tar(*SAMPLE)
    for opened in (
        [Openings(data, seekable=False) for data in SAMPLE],
        [lambda data=data: open_decompressed(io.BytesIO(zstd(data)))[0] for data in SAMPLE],
    ):
        out = io.BytesIO()
        flatten(opened, out)
        assert out.getvalue() == expected


SAMPLE = [
    layer(
        folder("usr/", mode=0o755, mtime=TIME + 0.5),
        folder("usr/bin"),
        file(
            "usr/bin/su",
            b"su",
            mode=0o4755,
            uid=0,
            gid=5,
            **xattr(security__capability="\1\0\0\2" + "\0" * 16),
        ),
        hardlink("usr/bin/sudo", "usr/bin/su", mode=0o4755, gid=5),
        symlink("bin", "usr/bin"),
        device("null", mode=0o666),
        fifo("pipe", mode=0o600),
        folder("tmp", mode=0o1777),
        file("tmp/" + "n" * 150, b"long"),
        file("tmp/ü\udcff", b"odd name", uid=2**32 - 2, gid=3_000_000),
    ),
    layer(whiteout("usr/bin/su"), file("bin/ls", b"ls" * 300), folder("tmp", mode=0o700), opaque("tmp")),
]


def test_metadata_survives():
    """Modes, owners, times, attributes, devices; of directories those that the last layer says."""
    found = {os.fsdecode(one.name): one for one, _ in members(flat_tar(*SAMPLE))}

    su = found["usr/bin/sudo"]
    assert (su.kind, su.mode, su.uid, su.gid) == (MemberKind.FILE, 0o4755, 0, 5)
    assert su.xattrs == {b"security.capability": CAPABILITY.encode()}
    assert (found["usr/"].mtime_ns, found["usr/bin/"].mtime_ns) == (TIME * 10**9 + 5 * 10**8, TIME * 10**9)
    assert (found["null"].kind, found["null"].devmajor, found["null"].devminor) == (
        MemberKind.CHARACTER,
        1,
        3,
    )
    assert found["tmp/"].mode == 0o700
    assert set(found) == {"usr/", "usr/bin/", "tmp/", "usr/bin/sudo", "bin", "null", "pipe", "usr/bin/ls"}


def test_gnu_tar_reads_it(tmp_path):
    """GNU tar lists the same names and extracts the same bodies and links."""
    (tmp_path / "a.tar").write_bytes(flat_tar(SAMPLE[0], layer(file("bin/ls", b"ls" * 300))))
    (tmp_path / "root").mkdir()
    command = ["tar", "-xf", "a.tar", "-C", "root", "--exclude=null"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    root = tmp_path / "root"

    assert done.stderr == b""
    assert (root / "bin/ls").read_bytes() == b"ls" * 300
    assert os.path.samefile(root / "usr/bin/su", root / "usr/bin/sudo")
    assert (root / "tmp" / os.fsdecode(b"\xc3\xbc\xff")).read_bytes() == b"odd name"
    assert (root / "tmp" / ("n" * 150)).read_bytes() == b"long"


def test_owners_names_and_unknown_attributes_go():
    """They mean something where they come from only."""
    tar = flat_tar(
        layer(
            file(
                "f",
                uname="joe",
                gname="joes",
                **xattr(user__a="1", security__selinux="x", trusted__b="2", system__posix_acl_access="3"),
            ),
            folder("d", uname="joe", **xattr(user__a="1", security__ima="x", system__posix_acl_default="4")),
        )
    )

    (folder_, _), (file_, _) = members(tar)
    assert file_.xattrs == {b"user.a": b"1", b"system.posix_acl_access": b"3"}
    assert folder_.xattrs == {b"user.a": b"1", b"system.posix_acl_default": b"4"}
    assert {file_.uname, file_.gname, folder_.uname} == {b""}


def test_big_bodies_stream():
    """Bodies larger than any buffer, in pieces, padded."""
    body = os.urandom(1_000_001)
    pieces = []

    class Sink:
        def write(self, data):
            pieces.append(len(data))
            hashed.update(data)

    hashed = hashlib.sha256()
    flatten([Openings(layer(file("a", body), file("b", body[::-1])))], Sink())

    assert max(pieces) <= 1 << 19
    expected = flat_tar(layer(file("a", body), file("b", body[::-1])))
    assert hashed.digest() == hashlib.sha256(expected).digest()
    assert [content for _, content in members(expected)] == [body, body[::-1]]


def test_sparse_files_are_written_out(tmp_path):
    """Zeros where the holes are, whatever form the layer has them in."""
    content = bytes(300_000) + b"A" * 5000 + bytes(295_000) + b"B" + bytes(700_000)
    with (tmp_path / "holes").open("wb") as out:
        out.seek(300_000)
        out.write(b"A" * 5000)
        out.seek(600_000)
        out.write(b"B")
        out.truncate(len(content))
    for form in ("gnu", "pax"):
        command = ["tar", "-S", "--hole-detection=raw", f"--format={form}", "-cf", "-", "holes"]
        made = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout
        assert len(made) < 100_000

        assert flat(made, layer(file("after", b"x"))) == {"holes": content, "after": b"x"}


def test_layers_are_opened_as_little_as_possible():
    """Twice where something of them survives, else once; and always closed."""
    layers = [
        Openings(layer(file("a", b"1"))),
        Openings(layer(file("a", b"2"), folder("d"))),
        Openings(layer(whiteout("b"), folder("e"))),
    ]
    flatten(layers, io.BytesIO())

    assert [(one.opened, one.closed) for one in layers] == [(1, 1), (2, 2), (1, 1)]


def test_nothing_is_written_of_what_is_damaged():
    """The last byte of the last layer is read before the first one is written."""
    good, bad = layer(file("a", b"1")), layer(file("b", b"2"))
    refused("layer 2 of 2: truncated", good, bad[:700])
    refused("layer 2 of 3: .*wrong checksum", good, b"x" + bad[1:], good)
    refused("layer 1 of 1: the input is no tar", b"<html>" * 100)
    out = io.BytesIO()
    with pytest.raises(BadArchiveError, match="damaged zstd"):
        flatten([lambda: open_decompressed(io.BytesIO(zstd(good, write_checksum=True)[:-1] + b"x"))[0]], out)
    assert out.getvalue() == b""


def test_a_layer_that_changes():
    """It is told, and no other body gets into the place of what was there."""
    kept, gone = file("keep", b"1"), file("more", b"2")
    for second in ([], [kept], [gone, folder("more")]):
        contents = [layer(kept, gone), layer(*second)]
        with pytest.raises(BadArchiveError, match="changed while it was read"):
            flatten([lambda contents=contents: io.BytesIO(contents.pop(0))], io.BytesIO())


def test_max_size():
    """Exactly as much as is allowed; holes count as they are written."""
    data = layer(file("a", b"1"))
    size = len(flat_tar(data))

    assert len(flat_tar(data, max_size=size)) == size
    with pytest.raises(BadArchiveError, match="larger than"):
        flat_tar(data, max_size=size - 1)


def test_errors_of_the_sink_pass():
    """A full disk is no bad archive."""

    class Full:
        def write(self, _):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        flatten([Openings(layer())], Full())


def test_warnings():
    """What is left out is told once, and what the reader finds odd with the layer's number."""
    warnings = []
    data = layer(
        file("a", **xattr(user__overlay__origin="x", user__ok="y")),
        folder("d", **xattr(trusted__overlay__opaque="y")),
        folder(".wh..wh.plnk"),
        file(".wh..wh.plnk/1.2"),
        file("d/.wh..wh.aufs"),
    ).rstrip(b"\0")
    flat_tar(data + bytes(-len(data) % 512), on_warning=warnings.append)

    assert warnings == [
        "layer 1 of 1: the tar archive has no end blocks; it may be truncated",
        "3 names that begin with .wh..wh. are ignored",
        "extended attributes of overlayfs are left out of 2 files",
    ]


# -- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["/a/b", "./a/b", "a//b", "../a/b", "/../../a/b", "x/../a/b", "a/./b", "a/x/../b", "a/b/"]
)
def test_names_are_clamped(name):
    """However a name tries, it ends up below the root (A1, A2)."""
    assert flat(layer(file(name, b"1"))) == {"a/": 0o755, "a/b": b"1"}


def test_missing_parents():
    """0755, root's, from 1970; listed later, they are what that says."""
    (one, _), *_ = members(flat_tar(layer(file("a/b/c"))))

    assert (one.name, one.mode, one.uid, one.gid, one.mtime_ns) == (b"a/", 0o755, 0, 0, 0)
    assert flat(layer(file("a/b/c"), folder("a", mode=0o700))) == {"a/": 0o700, "a/b/": 0o755, "a/b/c": b""}


@pytest.mark.parametrize("name", ["./", ".", "/", "..", "a/..", "/."])
def test_the_root(name):
    """It keeps what it has, and is no link, file or device (A6)."""
    assert flat(layer(folder(name, mode=0o700))) == {}
    for one in (symlink(name, "/etc"), file(name), hardlink(name, "x"), fifo(name)):
        refused("can't be the root", layer(file("x"), one))


def test_parents_that_are_no_directories():
    """Files, devices, links to them and links to nothing but themselves."""
    refused("'x' is not a directory", layer(file("x")), layer(file("x/y")))
    refused("'x' is not a directory", layer(fifo("x"), folder("x/y")))
    refused("'x' is not a directory", layer(file("x"), symlink("s", "x"), file("s/y")))
    refused("'x' is not a directory", layer(file("x"), symlink("s", "x/.."), file("s/y")))
    refused("255 symbolic links", layer(symlink("s", "s"), file("s/y")))
    refused("255 symbolic links", layer(symlink("s", "t"), symlink("t", "s"), file("s/y")))
    refused("'x' is not a directory", layer(file("x")), layer(whiteout("x/y")))


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("d/e", "d/e"),
        ("/d/e", "d/e"),
        ("../../d/e", "d/e"),
        ("d/../d/./e/", "d/e"),
        ("t/../f", "d/f"),
        ("nowhere", "nowhere"),
        ("nowhere/../x", "x"),
        ("d/nowhere/../x", "d/x"),
        ("d/no/where/../../../x", "x"),
        ("/", ""),
        (".", ""),
        ("/../..", ""),
    ],
)
def test_symbolic_links_stay_inside(target, path):
    """Followed as the kernel does below a root; what they lead to is made (A4)."""
    found = flat(layer(folder("d/e"), symlink("t", "d/e"), symlink("s", target)), layer(file("s/new", b"1")))

    assert found[f"{path}/new".lstrip("/")] == b"1"
    assert found["s"] == f"-> {target}"
    parents = {"d/", "d/e/"} | ({path + "/"} if path else set())
    assert {name for name in found if name.endswith("/")} == parents


def test_dots_in_names_do_not_follow_links():
    """`s/..` is nothing at all, as Go cleans names; umoci and podman do the same."""
    assert flat(layer(folder("d/e"), symlink("s", "d/e"), file("s/../new", b"1")))["new"] == b"1"


def test_links_of_lower_layers_and_of_this_one():
    """A link that is replaced leads nowhere any more (A12)."""
    first = layer(folder("d"), folder("e"), symlink("s", "d"), file("s/1"))

    assert {"d/1", "s/2"} < flat(first, layer(folder("s"), file("s/2"))).keys()
    assert {"d/1", "e/2", "d/3"} < flat(
        first, layer(symlink("s", "e"), file("s/2"), symlink("s", "d"), file("s/3"))
    ).keys()


def test_a_link_that_removes_itself():
    """What a path led to a moment ago is not asked again where the path is gone."""
    first = layer(folder("d"), symlink("s", "."))

    refused("'s' is not a directory", first, layer(file("s/x"), file("s/s"), file("s/y")))
    assert flat(first, layer(file("s/x"), folder("s/s"), file("s/y"))).keys() == {"d/", "s/", "x", "s/y"}
    assert flat(first, layer(file("s/x"), whiteout("s/s"), file("s/y"))).keys() == {"d/", "s/", "x", "s/y"}
    assert flat(first, layer(file("s/x"), opaque("s"), file("s/y"))).keys() == {"s/", "x", "s/y"}


def test_many_links():
    """255 in a chain are followed, 256 are not (A9)."""
    links = [symlink(f"s{n}", f"s{n + 1}") for n in range(255)]

    assert "s255/f" in flat(layer(*links, file("s0/f")))
    refused("255 symbolic links", layer(*links, symlink("s255", "s256"), file("s0/f")))


def test_links_that_cost_too_much():
    """Long targets through each other: bounded work."""
    links = [symlink(f"s{n}", "./" * 1000 + "d/../" * 300 + f"s{n + 1}") for n in range(200)]

    refused("10000 steps", layer(folder("d"), *links, file("s0/f")))


def test_depth_and_length_where_links_lead():
    """A short name may lead deep; what can't be written again is refused."""
    deep = "/".join(["d"] * 200)
    refused("deeper than 256", layer(file("/".join(["d"] * 257))))
    refused("deeper than 256", layer(folder(deep), symlink("s", deep), file("s/" + "/".join(["e"] * 57))))
    assert len(flat(layer(folder(deep), symlink("s", deep), file("s/" + "/".join(["e"] * 56))))) == 257
    long = "/".join(["n" * 250] * 15)
    refused("too long", layer(folder(long), symlink("s", long), folder("s/" + "/".join(["n" * 250] * 2))))
    refused("too long", layer(symlink("s", "n" * 256), file("s/f")))


def test_names_are_bounded(monkeypatch):
    """Directories that only a name speaks of count."""
    monkeypatch.setattr(merged, "MAX_NAMES", 10)

    assert len(flat(layer(file("/".join("abcdefghij"))))) == 10
    refused("more than 10 names", layer(file("/".join("abcdefghijk"))))


# -- replacing ----------------------------------------------------------------------------------------

KINDS = {
    "file": file("x", b"old"),
    "folder": folder("x", mode=0o711),
    "symlink": symlink("x", "d"),
    "fifo": fifo("x"),
    "device": device("x"),
    "hardlink": hardlink("x", "f"),
}


@pytest.mark.parametrize("new", KINDS)
@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("same_layer", [True, False])
def test_the_last_one_wins(old, new, same_layer):
    """Whatever was there, in this layer or a lower one (A13, A19); what a link leads to stays."""
    front = [folder("d"), file("d/in", b"in"), file("f", b"f")]
    layers = [[*front, KINDS[old]], [KINDS[new]]]
    found = flat(layer(*layers[0], *layers[1])) if same_layer else flat(layer(*layers[0]), layer(*layers[1]))

    assert found == flat(layer(*front, KINDS[new]))


def test_a_folder_over_a_folder():
    """What is in it stays, attributes are the new one's alone."""
    first = layer(folder("d", mode=0o700, uid=1, **xattr(user__a="1", user__b="2")), file("d/x", b"1"))
    tar = flat_tar(first, layer(folder("d", mode=0o711, gid=2, mtime=7, **xattr(user__b="3"))))

    (one, _), _ = members(tar)
    assert (one.mode, one.uid, one.gid, one.mtime_ns) == (0o711, 0, 2, 7 * 10**9)
    assert one.xattrs == {b"user.b": b"3"}
    assert flat(first, layer(file("d/y")))["d/"] == 0o700


def test_what_a_removed_folder_held_is_gone():
    """Also when a folder comes again."""
    first = layer(folder("d"), file("d/x"), folder("d/e"), file("d/e/y"))

    assert flat(first, layer(file("d", b"1"))) == {"d": b"1"}
    assert flat(first, layer(file("d", b"1"), folder("d", mode=0o700))) == {"d/": 0o700}
    assert flat(first, layer(file("d/e", b"1"))) == {"d/": 0o755, "d/e": b"1", "d/x": b""}


# -- hard links ---------------------------------------------------------------------------------------


def test_hard_links():
    """The first name carries the body, wherever it stands; links to links, to lower layers, to symlinks."""
    first = layer(file("m", b"body"), hardlink("z", "m"), hardlink("a", "z"), symlink("s", "m"))
    found = flat(first, layer(hardlink("b", "/../m"), hardlink("d/t", "./s")))

    assert found == {
        "d/": 0o755,
        "a": b"body",
        "b": "== a",
        "m": "== a",
        "z": "== a",
        "d/t": "-> m",
        "s": "== d/t",
    }


def test_hard_links_outlive_their_first_name():
    """Removed, hidden or replaced: the others have the body (A8)."""
    first = layer(file("a", b"body"), hardlink("b", "a"), hardlink("c", "a"))

    assert flat(first, layer(whiteout("a"))) == {"b": b"body", "c": "== b"}
    assert flat(first, layer(file("a", b"new"))) == {"a": b"new", "b": b"body", "c": "== b"}
    assert flat(first, layer(file("b", b"new"))) == {"a": b"body", "b": b"new", "c": "== a"}
    assert flat(first, layer(opaque(""))) == {}
    assert flat(first, layer(hardlink("d", "c"), whiteout("a"), whiteout("b"), whiteout("c"))) == {
        "d": b"body"
    }


def test_a_link_takes_nothing_from_its_own_header():
    """Its owner and mode are those of the file, which other names have too (A8, A10)."""
    tar = flat_tar(layer(file("a", b"1", mode=0o600), hardlink("b", "a", mode=0o4777, uid=7)))

    assert [(one.mode, one.uid) for one, _ in members(tar)] == [(0o600, 0)] * 2


def test_links_through_symbolic_links():
    """Parents are followed inside the root, the last component is not."""
    found = flat(
        layer(folder("d"), file("d/f", b"1"), symlink("s", "/d"), symlink("l", "d/f")),
        layer(hardlink("h", "s/f"), hardlink("s/k", "l")),
    )

    assert (found["d/f"], found["h"], found["d/k"], found["l"]) == (b"1", "== d/f", "-> d/f", "== d/k")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nothing", "does not exist"),
        ("d/nothing", "does not exist"),
        ("no/where", "does not exist"),
        ("x", "does not exist"),
        ("../outside", "does not exist"),
        ("d", "a directory"),
        ("/", "a directory"),
        ("d/..", "a directory"),
        ("f/x", "not a directory"),
    ],
)
def test_hard_links_to_nothing(target, words):
    """Missing, itself, outside, directories."""
    refused(words, layer(folder("d"), file("f"), hardlink("x", target)))


def test_a_link_to_itself():
    """What was there is removed first, so nothing is left to link to; umoci and podman refuse it, too."""
    refused("does not exist", layer(file("x"), hardlink("x", "x")))
    refused("does not exist", layer(file("x/y")), layer(hardlink("x", "x/y")))


def test_links_make_nothing():
    """A missing parent of the target is not made before the refusal, or at all."""
    refused("does not exist", layer(hardlink("x", "a/b/c")))


def test_ten_thousand_links():
    """In a chain, each to the one before (A9)."""
    chain = [hardlink(f"h{n:05}", f"h{n - 1:05}") for n in range(1, 10_000)]
    found = flat(layer(file("h00000", b"1"), *chain))

    assert len(found) == 10_000
    assert found["h09999"] == "== h00000"


# -- whiteouts ----------------------------------------------------------------------------------------

LOWER = layer(
    folder("d", mode=0o700),
    file("d/x", b"1"),
    folder("d/e"),
    file("d/e/y", b"2"),
    file("f", b"3"),
    symlink("s", "d"),
)


def test_plain_whiteouts():
    """A file, a folder with all in it, a link itself, nothing at all (A16)."""
    assert flat(LOWER, layer(whiteout("d"), whiteout("s"))) == {"f": b"3"}
    assert flat(LOWER, layer(whiteout("f"), whiteout("d/e"), whiteout("s"))) == {"d/": 0o700, "d/x": b"1"}
    assert flat(LOWER, layer(whiteout("s/x"), whiteout("no"))).keys() == {"d/", "d/e/", "d/e/y", "f", "s"}
    assert flat(LOWER, layer(whiteout("new/x")))["new/"] == 0o755


def test_whiteouts_of_any_kind():
    """Buildah writes files that have a link target, old tools hard links; nothing else will do (A15)."""
    assert "f" not in flat(LOWER, layer(hardlink(".wh.f", "nowhere")))
    for one in (symlink(".wh.f", "x"), fifo(".wh.f"), device(".wh.f", 1, 3)):
        refused("a whiteout can't be a", LOWER, layer(one))
    stray = file(".wh.f", linkname="stray", uid=2**40)
    assert "f" not in flat(LOWER, layer(stray))
    refused("whiteout can't be a directory", LOWER, layer(folder(".wh.f")))
    refused("whiteout can't be a directory", LOWER, layer(folder("d/.wh..wh..opq")))
    refused("is a directory", LOWER, layer(file(".wh.d/x")))


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh..."])
def test_whiteouts_of_the_directory_itself(name):
    """They would remove it, or what is above (A14)."""
    refused("invalid whiteout name", LOWER, layer(file(name)))


def test_opaque():
    """Everything below goes, wherever the marker stands, and twice (A15)."""
    new = [file("d/n", b"n"), folder("d/e/g")]
    expected = {"d/": 0o700, "d/e/": 0o755, "d/e/g/": 0o755, "d/n": b"n", "f": b"3", "s": "-> d"}

    for entries in ([opaque("d"), *new], [*new, opaque("d")], [new[0], opaque("d"), new[1], opaque("d")]):
        assert flat(LOWER, layer(*entries)) == expected
    assert flat(LOWER, layer(opaque("s"))) == {"d/": 0o700, "f": b"3", "s": "-> d"}
    assert flat(LOWER, layer(opaque(""), file("n"))) == {"n": b""}
    assert flat(LOWER, layer(opaque("new")))["new/"] == 0o755


def test_what_this_layer_made_is_spared():
    """Files, folders, links, links to lower layers, whatever the order (A18)."""
    new = [file("f", b"new"), folder("d", mode=0o711), file("d/n", b"n"), hardlink("d/h", "d/x")]
    hidden = [whiteout("d"), whiteout("f"), whiteout("d/h"), whiteout("d/n")]
    expected = {"d/": 0o711, "f": b"new", "d/n": b"n", "d/h": b"1", "s": "-> d"}

    assert flat(LOWER, layer(*new, *hidden)) == expected
    assert flat(LOWER, layer(*new, *hidden, *hidden)) == expected
    # What hides something in a folder that is gone makes the folder, as in containerd and docker.
    assert flat(LOWER, layer(*new), layer(*hidden)) == {"d/": 0o755, "s": "-> d"}


def test_a_hidden_folder_with_new_things_is_made_anew():
    """It is as if the whiteout came first: the old mode is gone with the old folder."""
    for entries in ([whiteout("d"), file("d/n")], [file("d/n"), whiteout("d")]):
        assert flat(LOWER, layer(*entries)) == {"d/": 0o755, "d/n": b"", "f": b"3", "s": "-> d"}
    for entries in ([opaque("d"), file("d/e/n")], [file("d/e/n"), opaque("d")]):
        found = flat(layer(folder("d/e", mode=0o700), file("d/e/x")), layer(*entries))
        assert found == {"d/": 0o755, "d/e/": 0o755, "d/e/n": b""}


def test_whiteouts_and_the_layers_above():
    """What is hidden may come back."""
    assert flat(LOWER, layer(whiteout("d")), layer(file("d/x", b"back")))["d/x"] == b"back"
    assert flat(LOWER, layer(opaque("d")), layer(file("d/x", b"back")))["d/"] == 0o700


def test_hiding_again_costs_nothing(monkeypatch):
    """A folder is gone through once for each layer, however often it is hidden."""
    looked_at = []
    settle = merged.MergedTree._settle
    monkeypatch.setattr(
        merged.MergedTree, "_settle", lambda *args: (looked_at.append(args[2]), settle(*args))
    )
    lower, upper = ([file(f"d/{front}{n}") for n in range(50)] for front in "lu")
    found = flat(layer(*lower), layer(*upper, *[opaque("d"), whiteout("d")] * 50))

    assert len(found) == 51
    assert len(looked_at) <= 100 + 50


def test_reserved_names():
    """AUFS's own are left out with everything in them (A15)."""
    found = flat(layer(folder(".wh..wh.orph"), file(".wh..wh.orph/x"), file("d/.wh..wh.aufs"), file("f")))

    assert found == {"f": b""}


# -- what no layer may ask for ------------------------------------------------------------------------


@pytest.mark.parametrize("owner", [{"uid": 2**32 - 1}, {"gid": 2**32 - 1}, {"uid": 2**32}, {"gid": 2**40}])
@pytest.mark.parametrize("make", [file, folder, fifo])
def test_owners(owner, make):
    """32 bits, and not all of them (A22)."""
    refused("32 bits", layer(make("x", **owner)))


def test_overlay_whiteouts():
    """A device that overlayfs would take for a whiteout (A17); other devices are kept."""
    refused("0:0", layer(device("x", 0, 0)))
    assert flat(layer(device("x", 0, 1))) == {"x": "character device"}


def test_messages_name_layer_and_member():
    """With the name escaped."""
    message = refused("owner", LOWER, layer(file("\x1b[31m\n", uid=2**40)))

    assert message.startswith(r"layer 2 of 2: '\x1b[31m\n': owner")


def test_the_reader_is_strict():
    """Layers go through the same reader as everything else, with sparse files allowed."""
    tar = flat_tar(LOWER)

    assert sum(1 for _ in TarReader(io.BytesIO(tar))) == 6
