"""The comparing tool finds each difference, and takes trees for equal that are."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile

import pytest

from tests import trees
from tests.trees import (
    Entry,
    Ignore,
    assert_same,
    canary,
    differences,
    first_difference,
    overlaid,
    read_tar,
    read_tree,
)

FILE = Entry("file", 0o644, 1, 2, 4, "c0ffee", mtime_ns=10**9, xattrs={b"user.a": b"1"}, linked=b"x")
CHANGES = {
    "kind": "directory",
    "mode": 0o4644,
    "uid": 7,
    "gid": 7,
    "size": 5,
    "content": "decade",
    "target": b"y",
    "device": (1, 3),
    "xattrs": {b"user.a": b"2"},
    "mtime_ns": 10**9 + 1,
    "linked": b"a",
    "stamp": (1, 2, 3),
}
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="owners, devices and mounts need root")


def changed(**values):
    """`FILE` with something else."""
    return trees.replace(FILE, **values)


@pytest.fixture
def folder(tmp_path):
    """A directory with one thing of each kind that anybody can make."""
    (tmp_path / "tree" / "d").mkdir(parents=True)
    (tmp_path / "tree" / "d" / "file").write_bytes(b"body")
    os.link(tmp_path / "tree" / "d" / "file", tmp_path / "tree" / "again")
    os.symlink("d/file", tmp_path / "tree" / "link")
    os.mkfifo(tmp_path / "tree" / "fifo", 0o600)
    return tmp_path / "tree"


@pytest.mark.parametrize("name", CHANGES)
def test_each_field_is_compared(name):
    """A field that differs is named, with both values, in one line."""
    found = first_difference({b"x": FILE}, {b"x": changed(**{name: CHANGES[name]})}, Ignore(fields=()))

    assert found.startswith(f"x: {name} is ")
    assert "in left, " in found
    assert found.isprintable()


def test_no_field_is_forgotten():
    """What an entry knows is compared, and has a test above."""
    assert set(trees.FIELDS) == set(Entry.__dataclass_fields__) == set(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_fields_can_be_ignored(name):
    """Everywhere, or at one path only."""
    left, right = {b"x": FILE}, {b"x": changed(**{name: CHANGES[name]})}

    assert first_difference(left, right, Ignore(fields=(name,))) is None
    assert first_difference(left, right, Ignore(fields=(), at={b"x": (name,)})) is None
    assert first_difference(left, right, Ignore(fields=(), at={b"y": (name,)})) is not None


def test_the_line_says_who_has_what():
    """Names of the sides, modes as people write them, only the attributes that differ."""
    right = changed(mode=0o755, xattrs={b"user.a": b"1", b"user.b": b"2"})
    named = {"names": ("umoci", "imgdb")}

    assert first_difference({b"x": FILE}, {b"x": right}, **named) == (
        "x: mode is 0o644 in umoci, 0o755 in imgdb"
    )
    assert first_difference({b"x": FILE}, {b"x": trees.replace(right, mode=0o644)}, **named) == (
        "x: xattrs is {} in umoci, {b'user.b': b'2'} in imgdb"
    )


def test_a_missing_path():
    """On either side; the first in order is told."""
    assert first_difference({b"a": FILE, b"b": FILE}, {b"b": FILE}) == "a: file in left only"
    assert first_difference({}, {b"a": FILE, b"b": FILE}) == "a: file in right only"
    assert first_difference({b"a": FILE}, {}, Ignore(root=True)) is not None


def test_all_differences():
    """Every field of every path, in order."""
    left = {b"a": FILE, b"b": FILE, b"c": FILE}
    right = {b"b": changed(mode=0, uid=5), b"c": FILE, b"d": FILE}

    assert [(path, field) for path, field, _ in differences(left, right)] == [
        (b"a", None),
        (b"b", "mode"),
        (b"b", "uid"),
        (b"d", None),
    ]


def test_names_with_control_characters():
    """They are escaped, as are bytes that are no text."""
    found = first_difference({b"a\n\x1b[31m\xff": FILE}, {})
    assert found == "a\\n\\x1b[31m\\\\xff: file in left only"
    assert len(first_difference({b"n" * 5000: FILE}, {})) < 300


def test_ignored_paths():
    """A path goes with what is below it, and with nothing that only begins like it."""
    left = {b"dev": FILE, b"dev/null": FILE}

    assert first_difference(left, {}, Ignore(paths=(b"dev",))) is None
    assert first_difference({b"device": FILE}, {}, Ignore(paths=(b"dev",))) is not None


def test_the_root_can_be_ignored():
    """Its attributes and its absence, nothing below it."""
    left = {trees.ROOT: FILE, b"x": FILE}

    assert first_difference(left, {trees.ROOT: changed(mode=0), b"x": FILE}, Ignore(root=True)) is None
    assert first_difference(left, {b"x": FILE}, Ignore(root=True)) is None
    assert first_difference(left, {b"x": FILE}) == ".: file in left only"


def test_the_fraction_of_times_can_be_ignored():
    """Seconds are compared all the same, also before 1970."""
    later = {b"x": changed(mtime_ns=2 * 10**9 - 1)}

    assert first_difference({b"x": FILE}, later, Ignore(fraction=True)) is None
    assert first_difference({b"x": FILE}, {b"x": changed(mtime_ns=2 * 10**9)}, Ignore(fraction=True))
    before = {b"x": changed(mtime_ns=-1)}
    assert first_difference({b"x": changed(mtime_ns=0)}, before, Ignore(fraction=True))


def test_attributes_can_be_ignored():
    """By the beginning of their names."""
    right = {b"x": changed(xattrs={b"user.a": b"1", b"user.overlay.origin": b"o"})}

    assert first_difference({b"x": FILE}, right, Ignore(xattrs=(b"user.overlay.",))) is None
    assert first_difference({b"x": FILE}, right, Ignore(xattrs=(b"security.",))) is not None


def test_assert_same():
    """Raises what `first_difference` says, and for two trees with nothing in them."""
    assert_same({b"x": FILE}, {b"x": FILE})
    with pytest.raises(AssertionError, match=r"^x: mode is 0o644 in left, 0o0 in right"):
        assert_same({b"x": FILE}, {b"x": changed(mode=0)})
    with pytest.raises(AssertionError, match="nothing in it"):
        assert_same({}, {})


def test_reading_a_directory(folder):
    """Everything is there, with what it is."""
    tree = read_tree(folder)

    assert {path: entry.kind for path, entry in tree.items()} == {
        b".": "directory",
        b"again": "file",
        b"d": "directory",
        b"d/file": "file",
        b"fifo": "fifo",
        b"link": "symlink",
    }
    file = tree[b"d/file"]
    assert (file.size, file.content) == (
        4,
        "230d8358dc8e8890b4c58deeb62912ee2f20357ae92a5cc861b98e68fe31acb5",
    )
    assert (file.linked, tree[b"again"].linked, tree[b"link"].linked) == (b"again", b"again", b"link")
    assert tree[b"link"].target == b"d/file"
    assert tree[b"fifo"].mode == 0o600
    assert file.mtime_ns == os.stat(folder / "d" / "file").st_mtime_ns
    assert tree[b"d"].size == 0


def test_reading_by_descriptor(folder):
    """The same as by path, and the descriptor stays usable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        assert read_tree(fd) == read_tree(folder) == read_tree(os.fsencode(folder))
        assert os.fstat(fd).st_ino == os.stat(folder).st_ino
    finally:
        os.close(fd)


def test_links_are_not_followed(folder):
    """Neither to a directory, nor to one that holds itself."""
    os.symlink("..", folder / "d" / "up")
    os.symlink("/etc", folder / "etc")

    assert {b"d/up", b"etc"} <= read_tree(folder).keys()
    assert not any(path.startswith((b"etc/", b"d/up/")) for path in read_tree(folder))


def test_reading_without_a_part(folder):
    """It is left out with what is below it."""
    assert read_tree(folder, without=(b"d",)).keys() == {b".", b"again", b"fifo", b"link"}


def test_names_are_bytes(folder):
    """Whatever they are."""
    name = b"\xe9\n\\\xff"
    with open(os.path.join(os.fsencode(folder), name), "wb") as file:
        file.write(b"x")
    os.setxattr(file.name, b"user.\xe9", b"\0\xff")

    assert read_tree(folder)[name].xattrs == {b"user.\xe9": b"\0\xff"}


@root_only
def test_what_root_can_make(folder):
    """Owners, devices, capabilities."""
    os.mknod(folder / "disk", stat.S_IFBLK | 0o660, os.makedev(8, 300))
    os.chown(folder / "again", 3_000_000, 2**32 - 2)
    os.setxattr(folder / "again", "security.capability", bytes.fromhex(trees.CAPABILITY))
    tree = read_tree(folder)

    assert (tree[b"disk"].kind, tree[b"disk"].device) == ("block", (8, 300))
    assert (tree[b"d/file"].uid, tree[b"d/file"].gid) == (3_000_000, 2**32 - 2)
    assert tree[b"again"].xattrs.keys() == {b"security.capability"}


def gnu_tar(folder, *flags):
    """The folder as GNU tar writes it."""
    argv = ["tar", "-C", folder, "--format=posix", "--xattrs", "--xattrs-include=*", *flags, "-cf", "-", "."]
    return subprocess.run(argv, check=True, capture_output=True).stdout


def test_a_tar_is_what_it_was_made_of(folder):
    """By another program, with times in nanoseconds, attributes, links and names of any bytes."""
    os.setxattr(folder / "again", "user.a", b"\0\n\xff=")
    os.utime(folder / "again", ns=(0, -1_500_000_001))
    os.utime(folder / "link", ns=(0, 4_294_967_297_123_456_789), follow_symlinks=False)
    (folder / ("n" * 250)).write_bytes(b"")
    with open(os.path.join(os.fsencode(folder), b"d/\xe9"), "wb") as file:
        file.write(b"x")

    assert_same(read_tree(folder), read_tar(gnu_tar(folder)))


def test_a_sparse_tar(folder):
    """Its holes are read as zeros."""
    with open(folder / "sparse", "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"island")

    archive = gnu_tar(folder, "--sparse")
    assert len(archive) < 1 << 18
    assert_same(read_tree(folder), read_tar(archive))


@root_only
def test_a_tar_with_devices(folder):
    """Major and minor numbers, owners and capabilities."""
    os.mknod(folder / "disk", stat.S_IFBLK | 0o660, os.makedev(8, 300))
    os.chown(folder / "again", 3_000_000, 4_000_000)
    os.setxattr(folder / "again", "security.capability", bytes.fromhex(trees.CAPABILITY))

    assert_same(read_tree(folder), read_tar(gnu_tar(folder, "--numeric-owner")))


def test_a_tar_by_its_path(folder, tmp_path):
    """The same as its bytes."""
    (tmp_path / "x.tar").write_bytes(gnu_tar(folder))
    assert read_tar(tmp_path / "x.tar") == read_tar(gnu_tar(folder))


def tar_of(*infos):
    """A tar of empty members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, flag, link in infos:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = flag, link
            tar.addfile(info)
    return out.getvalue()


def test_a_tar_that_is_no_file_system():
    """A path twice, or a link before its target: no flattened tar has that."""
    with pytest.raises(ValueError, match="x is there twice"):
        read_tar(tar_of(("x", b"0", ""), ("./x", b"0", "")))
    with pytest.raises(ValueError, match="x is a link to y, which is not there yet"):
        read_tar(tar_of(("x", b"1", "y"), ("y", b"0", "")))


def test_names_in_a_tar_are_cleaned():
    """Tools begin them with a slash, a dot or neither."""
    found = read_tar(tar_of(("./", b"5", ""), ("./a/", b"5", ""), ("/b", b"0", ""), ("c", b"1", "./b")))

    assert found.keys() == {b".", b"a", b"b", b"c"}
    assert found[b"c"].linked == b"b"


# Overlays


def layers(tmp_path):
    """Two layer directories with everything that overlayfs knows, lowest first."""
    low, top = tmp_path / "low", tmp_path / "top"
    for name in ("d", "opaque", "gone", "file-over", "to-file", "deep/er"):
        (low / name).mkdir(parents=True)
        (low / name / "old").write_bytes(b"old")
    os.link(low / "d" / "old", low / "linked")
    (low / "to-dir").write_bytes(b"old")
    for name in ("d", "opaque", "to-dir", "deep/er"):
        (top / name).mkdir(parents=True)
        (top / name / "new").write_bytes(b"new")
    (top / "d").chmod(0o700)
    (top / "to-file").write_bytes(b"new")
    os.setxattr(top / "opaque", "trusted.overlay.opaque", b"y")
    os.setxattr(top, "trusted.overlay.opaque", b"y")
    for name in ("gone", "d/old", "never"):
        os.mknod(top / name, stat.S_IFCHR, os.makedev(0, 0))
    return low, top


@root_only
def test_overlaid_is_what_the_kernel_shows(tmp_path):
    """Compared with a real mount, which ends with the process that made it."""
    low, top = layers(tmp_path)
    (tmp_path / "shown").mkdir()
    script = 'mount -t overlay overlay -o "ro,lowerdir=$1:$0" "$2" && cp -a --preserve=all "$2" "$2.copy"'
    mount = ["unshare", "--mount", "sh", "-c", script, low, top, tmp_path / "shown"]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("no overlay mount is possible here")

    expected = overlaid(read_tree(low), read_tree(top))
    assert_same(expected, read_tree(tmp_path / "shown.copy"))
    assert b"opaque/old" not in expected
    assert b"opaque/new" in expected
    assert b"file-over/old" in expected  # an opaque root means nothing


def test_hard_links_of_two_layers():
    """Files are the same only within one layer."""
    low = {b"a": changed(linked=b"a"), b"b": changed(linked=b"a"), b"c": changed(linked=b"a")}
    top = {b"a": changed(linked=b"a"), b"d": changed(linked=b"a")}

    assert {path: e.linked for path, e in overlaid(low, top).items()} == {
        b"a": b"a",
        b"b": b"b",
        b"c": b"b",
        b"d": b"a",
    }


# The canary


HARMS = {
    "write": lambda bird: (bird / "victim").write_bytes(b"UNTOUCHED"),
    "write the same": lambda bird: (bird / "victim").write_bytes(b"untouched"),
    "touch": lambda bird: os.utime(bird / "open"),
    "chmod and back": lambda bird: [(bird / "secret").chmod(mode) for mode in (0o600, 0o400)],
    "add": lambda bird: (bird / "open" / "inner" / "new").write_bytes(b""),
    "add and remove": lambda bird: ((bird / "open" / "new").mkdir(), (bird / "open" / "new").rmdir()),
    "remove": lambda bird: (bird / "fifo").unlink(),
    "link": lambda bird: os.link(bird / "victim", bird / "root" / "hold"),
    "attribute": lambda bird: os.setxattr(bird / "open", "user.x", b"1"),
    "retarget": lambda bird: ((bird / "way").unlink(), (bird / "way").symlink_to("closed")),
    "make anew": lambda bird: ((bird / "closed").rmdir(), (bird / "closed").mkdir(mode=0o700)),
}


@pytest.mark.parametrize("harm", HARMS)
def test_the_canary_dies_of_anything(tmp_path, harm):
    """Whatever is done to it or beside it, also what was taken back; but not of what is in the root."""
    (tmp_path / "root").mkdir()
    bird = canary(tmp_path, without=(tmp_path / "root",))
    (tmp_path / "root" / "x").write_bytes(b"allowed")
    bird.assert_untouched()

    HARMS[harm](tmp_path)
    with pytest.raises(AssertionError, match="in what was"):
        bird.assert_untouched()


def test_the_canary_survives_being_read(tmp_path):
    """Reading and listing changes nothing that is compared."""
    bird = canary(tmp_path)
    shutil.copytree(tmp_path / "open", tmp_path.parent / "copy")
    assert (tmp_path / "victim").read_bytes() == b"untouched"
    bird.assert_untouched()
