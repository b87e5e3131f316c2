"""Trees of files as values: read from disk or from a tar, laid over each other, compared.

::

    assert_same(read_tree(mounted), read_tar("rootfs.tar"), Ignore(root=True), names=("mount", "tar"))

A tree is a dict from path to `Entry`; paths are bytes without a leading slash, the root is `b"."`.
Nothing of imgdb is used here, so that what is expected doesn't come from what is tested. Reading never
follows a link and never opens anything but directories and regular files.
"""

from __future__ import annotations

import contextlib
import decimal
import errno
import hashlib
import io
import os
import stat
import tarfile
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = b"."
FIELDS = (
    "kind",
    "mode",
    "uid",
    "gid",
    "size",
    "content",
    "target",
    "device",
    "xattrs",
    "mtime_ns",
    "linked",
    "stamp",
)
OPAQUE = (b"trusted.overlay.opaque", b"user.overlay.opaque")
OVERLAY = (b"trusted.overlay.", b"user.overlay.")

_SECOND = 10**9
_SHOWN = 100
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_TAR_KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.GNUTYPE_SPARSE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "character",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}


@dataclass(frozen=True)
class Entry:
    """What there is to say about one path.

    Attributes:
        kind: `file`, `directory`, `symlink`, `character`, `block`, `fifo` or `socket`.
        mode: permission bits with setuid, setgid and sticky.
        size: bytes of a file; 0 of everything else, since it depends on the file system.
        content: sha256 of a file's bytes, in hexadecimal.
        target: of a symlink, raw.
        device: major and minor of a device node.
        xattrs: name to value, all that are listed; None for one that can't be read.
        linked: the first path, in byte order, of those that are the same inode; its own when alone.
        stamp: inode, links and ctime, which change whatever is done to a file; None in a tar.
    """

    kind: str
    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    content: str = ""
    target: bytes = b""
    device: tuple = (0, 0)
    xattrs: dict = field(default_factory=dict)
    mtime_ns: int = 0
    linked: bytes = b""
    stamp: tuple | None = None


@dataclass(frozen=True)
class Ignore:
    """What a comparison does not look at.

    Attributes:
        root: attributes of the root directory itself.
        fraction: of the seconds of times.
        paths: these, and what is below them.
        fields: of every entry.
        at: path to the fields that are ignored there.
        xattrs: beginnings of names of extended attributes.
    """

    root: bool = False
    fraction: bool = False
    paths: tuple = ()
    fields: tuple = ("stamp",)
    at: dict = field(default_factory=dict)
    xattrs: tuple = ()


# Reading


def read_tree(place, *, without=()):
    """A tree from disk.

    Args:
        place: path of a directory, or a file descriptor of one, which is left open.
        without: paths below it that are not looked at.
    """
    given = {"dir_fd": place} if isinstance(place, int) else {}
    directory = os.open("." if given else place, _DIRECTORY, **given)
    try:
        reader = _Reader(frozenset(without))
        reader.add(ROOT, directory, b".")
        reader.walk(directory, b"")
    finally:
        os.close(directory)
    return _linked(reader.tree, reader.inodes)


_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class _Reader:
    """Walks by directory descriptors; each inode's content is read once."""

    def __init__(self, without):
        self.tree = {}
        self.inodes = {}
        self._without = without
        self._contents = {}

    def walk(self, directory, prefix):
        for name in sorted(os.listdir(directory)):
            raw = os.fsencode(name)
            path = prefix + raw
            if path in self._without:
                continue
            self.add(path, directory, raw)
            if self.tree[path].kind == "directory":
                below = os.open(raw, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                try:
                    self.walk(below, path + b"/")
                finally:
                    os.close(below)

    def add(self, path, directory, name):
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        kind = _KINDS[stat.S_IFMT(found.st_mode)]
        is_device = kind in {"character", "block"}
        self.inodes[path] = (found.st_dev, found.st_ino)
        self.tree[path] = Entry(
            kind,
            stat.S_IMODE(found.st_mode),
            found.st_uid,
            found.st_gid,
            found.st_size if kind == "file" else 0,
            self._content(found, directory, name) if kind == "file" else "",
            os.readlink(name, dir_fd=directory) if kind == "symlink" else b"",
            (os.major(found.st_rdev), os.minor(found.st_rdev)) if is_device else (0, 0),
            _xattrs(directory, name),
            found.st_mtime_ns,
            stamp=(found.st_ino, found.st_nlink, found.st_ctime_ns),
        )

    def _content(self, found, directory, name):
        inode = (found.st_dev, found.st_ino)
        if inode not in self._contents:
            opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
            with open(opened, "rb", buffering=0) as file:
                self._contents[inode] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._contents[inode]


def _xattrs(directory, name):
    path = b"/proc/self/fd/%d/%s" % (directory, name)
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    return {os.fsencode(name): _xattr(path, name) for name in names}


def _xattr(path, name):
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EINVAL:  # a capability that is none: the kernel took it all the same
            return None
        raise


def read_tar(source):
    """A tree from a tar of a whole file system: whiteouts mean nothing, parents are not invented.

    Args:
        source: path, or bytes.

    Raises:
        ValueError: a path twice, or a hard link to what has not come before it.
    """
    opened = {"fileobj": io.BytesIO(source)} if isinstance(source, bytes) else {"name": source}
    tree, inodes = {}, {}
    with tarfile.open(**opened, encoding="utf-8", errors="surrogateescape") as tar:
        for number, info in enumerate(tar):
            path = _tar_path(info.name)
            if path in tree:
                raise ValueError(f"{_show(path)} is there twice")
            if not info.islnk():
                tree[path], inodes[path] = _tar_entry(tar, info), number
                continue
            target = _tar_path(info.linkname)
            if target not in tree:
                raise ValueError(f"{_show(path)} is a link to {_show(target)}, which is not there yet")
            tree[path], inodes[path] = tree[target], inodes[target]
    return _linked(tree, inodes)


def _tar_path(name):
    return os.path.normpath(b"/" + os.fsencode(name)).lstrip(b"/") or ROOT


def _tar_entry(tar, info):
    kind = _TAR_KINDS[info.type]
    body = tar.extractfile(info) if kind == "file" else None
    is_device = kind in {"character", "block"}
    return Entry(
        kind,
        info.mode & 0o7777,
        info.uid,
        info.gid,
        info.size if kind == "file" else 0,
        hashlib.file_digest(body, "sha256").hexdigest() if body else "",
        os.fsencode(info.linkname) if kind == "symlink" else b"",
        (info.devmajor, info.devminor) if is_device else (0, 0),
        _tar_xattrs(info),
        _tar_time(info),
    )


def _tar_xattrs(info):
    records = ((key.partition("SCHILY.xattr.")[2], value) for key, value in info.pax_headers.items())
    return {os.fsencode(name): os.fsencode(value) for name, value in records if name}


def _tar_time(info):
    """In nanoseconds; tarfile itself makes a float of it."""
    seconds = decimal.Decimal(info.pax_headers.get("mtime", info.mtime))
    return int((seconds * _SECOND).to_integral_value(decimal.ROUND_FLOOR))


def _linked(tree, inodes):
    """The tree with its hard links; inodes are any values that tell files apart."""
    first = {}
    for path in sorted(tree):
        first.setdefault(inodes[path], path)
    return {path: replace(entry, linked=first[inodes[path]]) for path, entry in sorted(tree.items())}


# Overlays


def overlaid(*layers):
    """What overlayfs shows of layer directories, given lowest first, each as `read_tree` read it.

    A directory's own attributes are those of the highest layer that has it. An opaque marker on a
    layer's root means nothing, since the kernel doesn't look for one there.
    """
    tree, inodes = {}, {}
    for number, layer in enumerate(layers):
        for path, entry in sorted(layer.items()):
            if _hides(path, entry, tree.get(path)):
                _drop_below(tree, path)
            if entry.kind == "character" and entry.device == (0, 0):
                tree.pop(path, None)
                continue
            kept = {name: value for name, value in entry.xattrs.items() if not name.startswith(OVERLAY)}
            tree[path] = replace(entry, xattrs=kept)
            inodes[path] = (number, entry.linked)
    return _linked(tree, inodes)


def _hides(path, entry, below):
    """Whether what lower layers have below a path is seen no longer."""
    if path == ROOT or below is None or below.kind != "directory":
        return False
    return entry.kind != "directory" or any(entry.xattrs.get(name) == b"y" for name in OPAQUE)


def _drop_below(tree, path):
    for other in [other for other in tree if other.startswith(path + b"/")]:
        del tree[other]


# Comparing


def first_difference(left, right, ignore=None, *, names=("left", "right")):
    """One line about the first path that differs and how; None where nothing does."""
    return next((line for _, _, line in differences(left, right, ignore, names=names)), None)


def differences(left, right, ignore=None, *, names=("left", "right")):
    """Everything that differs, by path.

    Yields:
        The path, the field (`None` where only one side has the path), and a line for people.
    """
    ignore = ignore or Ignore()
    for path in sorted(left.keys() | right.keys()):
        if any(path == p or path.startswith(p + b"/") for p in ignore.paths):
            continue
        if path == ROOT and ignore.root:
            continue
        if path in left and path in right:
            yield from _unequal_fields(path, left[path], right[path], ignore, names)
        else:
            side, entry = (0, left[path]) if path in left else (1, right[path])
            yield path, None, f"{_show(path)}: {entry.kind} in {names[side]} only"


def _unequal_fields(path, left, right, ignore, names):
    passed = {*ignore.fields, *ignore.at.get(path, ())}
    for name in FIELDS:
        here, there = (_comparable(entry, name, ignore) for entry in (left, right))
        if name not in passed and here != there:
            if name == "xattrs":
                here, there = _unequal_items(here, there)
            shown = f"{_value(name, here)} in {names[0]}, {_value(name, there)} in {names[1]}"
            yield path, name, f"{_show(path)}: {name} is {shown}"


def _comparable(entry, name, ignore):
    value = getattr(entry, name)
    if name == "mtime_ns" and ignore.fraction:
        return value // _SECOND * _SECOND
    if name == "xattrs":
        return {key: item for key, item in value.items() if not key.startswith(ignore.xattrs)}
    return value


def _unequal_items(here, there):
    keys = sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
    return ({key: side[key] for key in keys if key in side} for side in (here, there))


def _value(name, value):
    text = oct(value) if name == "mode" else repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _show(path):
    """A path for people, without anything that a terminal obeys."""
    text = path.decode("utf-8", "backslashreplace")
    shown = text if text.isprintable() else repr(text)[1:-1]
    return shown if len(shown) <= 2 * _SHOWN else shown[: 2 * _SHOWN] + "…"


def assert_same(left, right, ignore=None, *, names=("left", "right")):
    """Two trees are equal and not empty, but for what is ignored; or the first difference says how not."""
    assert left, f"{names[0]} has nothing in it"
    difference = first_difference(left, right, ignore, names=names)
    assert difference is None, difference


# What must not be touched


class Canary:
    """A tree as it was at first; even a change that was taken back shows, by ctimes and inodes."""

    def __init__(self, path, without=()):
        self.path = os.fsencode(path)
        self._without = tuple(os.path.relpath(os.fsencode(p), self.path) for p in without)
        self._before = self._read()

    def _read(self):
        return read_tree(self.path, without=self._without)

    def assert_untouched(self):
        """Nothing was made, removed or changed, not even for a moment."""
        assert_same(self._before, self._read(), Ignore(fields=()), names=("what was", "what is"))


def canary(path, *, without=()):
    """Fill a directory, which may hold things already, with something of each kind.

    Returns:
        The `Canary` of all that is in it then, but for the paths `without`.
    """
    folder = Path(path)
    (folder / "closed").mkdir(mode=0o700)
    (folder / "open" / "inner").mkdir(parents=True)
    (folder / "victim").write_bytes(b"untouched")
    (folder / "secret").write_bytes(b"secret")
    (folder / "secret").chmod(0o400)
    (folder / "open" / "program").write_bytes(b"#!/bin/sh\n")
    (folder / "open" / "program").chmod(0o4755)
    (folder / "open" / "inner" / "file").write_bytes(b"deep")
    os.link(folder / "victim", folder / "victim-again")
    os.symlink("victim", folder / "link")
    os.symlink("open", folder / "way")
    os.mkfifo(folder / "fifo")
    with contextlib.suppress(OSError):  # not every file system has them
        os.setxattr(folder / "victim", "user.canary", b"sings")
    if os.geteuid() == 0:
        os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chown(folder / "secret", 12, 34)
        os.setxattr(folder / "open" / "program", "security.capability", bytes.fromhex(CAPABILITY))
    return Canary(folder, without)


# cap_net_raw, effective, in a VFS capability of revision 2
CAPABILITY = "0100000200200000000000000000000000000000"
