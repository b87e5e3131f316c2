"""The flattened root file system of any layers, against a slow and simple oracle."""

from __future__ import annotations

import io

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from imgdb.archive.flatten import flatten
from imgdb.archive.tar import MemberKind
from imgdb.errors import BadArchiveError
from tests.archive.layers import (
    Openings,
    fifo,
    file,
    flat_tar,
    folder,
    hardlink,
    layer,
    members,
    opaque,
    symlink,
    whiteout,
)


class RefusedError(Exception):
    """The oracle's word for a layer that can't be applied."""


class Inode:
    """What one or several names lead to."""

    def __init__(self, kind, value):
        self.kind = kind
        self.value = value


class Oracle:
    """Paths to inodes in one flat dict; every question looks at all of it."""

    def __init__(self):
        self.paths = {}
        self.made = set()

    def apply(self, entries):
        """One layer."""
        self.made = set()
        for what, name, value in entries:
            path = self.clean(name)
            parent = self.resolve(path[:-1])
            self.ensure(parent)
            target = (*parent, path[-1])
            if what == "whiteout":
                self.hide([target])
            elif what == "opaque":
                inside = self.resolve(target)
                self.ensure(inside)
                self.hide([p for p in self.paths if len(p) == len(inside) + 1 and p[:-1] == inside])
            else:
                self.put(what, target, value)
                self.made.add(target)

    def ensure(self, path):
        """Make what is missing of a directory."""
        for length in range(1, len(path) + 1):
            if path[:length] not in self.paths:
                self.paths[path[:length]] = Inode("folder", 0o755)
                self.made.add(path[:length])

    def put(self, what, path, value):
        """Add or replace."""
        old = self.paths.get(path)
        if old and old.kind == what == "folder":
            old.value = value
            return
        for below in [p for p in self.paths if p[: len(path)] == path]:
            del self.paths[below]
            self.made.discard(below)
        if what == "hardlink":
            target = self.clean(value)
            found = self.paths.get((*self.resolve(target[:-1], missing_ok=False), *target[-1:]))
            if found is None or found.kind == "folder":
                raise RefusedError
            self.paths[path] = found
        else:
            self.paths[path] = Inode(what, value)

    def hide(self, tops):
        """Remove what lower layers have at and below some paths."""
        doomed = [p for p in self.paths if any(p[: len(top)] == top for top in tops) and p not in self.made]
        for path in sorted(doomed, key=len, reverse=True):
            if any(len(p) > len(path) and p[: len(path)] == path for p in self.paths):
                self.paths[path] = Inode("folder", 0o755)
                self.made.add(path)
            else:
                del self.paths[path]

    @staticmethod
    def clean(name):
        """Go's path.Clean below the root."""
        path = []
        for part in name.split("/"):
            path = path[:-1] if part == ".." else path + [part] * (part not in {"", "."})
        return path

    def resolve(self, parts, *, missing_ok=True):
        """Where the kernel would end up."""
        path, ahead, hops = (), list(parts), 0
        while ahead:
            part = ahead.pop(0)
            if part == "..":
                path = path[:-1]
                continue
            found = self.paths.get((*path, part))
            if found is None or found.kind == "folder":
                path = (*path, part)
            elif found.kind == "symlink" and hops < 255:
                hops += 1
                path = () if found.value.startswith("/") else path
                ahead = [p for p in found.value.split("/") if p not in {"", "."}] + ahead
            else:
                raise RefusedError
        if not missing_ok and any(path[:n] not in self.paths for n in range(1, len(path) + 1)):
            raise RefusedError
        return path

    def answer(self):
        """Every path with what it is, and the other names that it has."""
        names = {}
        for path, inode in self.paths.items():
            names.setdefault(id(inode), []).append("/".join(path))
        return {
            "/".join(path): (inode.kind, inode.value, sorted(names[id(inode)]))
            for path, inode in self.paths.items()
        }


def answer(tar):
    """The same of a flattened tar."""
    found, first = {}, {}
    for one, body in members(tar):
        name = one.name.decode().rstrip("/")
        assert name not in found
        if one.kind is MemberKind.HARDLINK:
            target = one.linkname.decode()
            first[target].append(name)
            found[name] = found[target]
            continue
        first[name] = [name]
        kinds = {
            MemberKind.DIRECTORY: ("folder", one.mode),
            MemberKind.FILE: ("file", body.decode()),
            MemberKind.SYMLINK: ("symlink", one.linkname.decode()),
            MemberKind.FIFO: ("fifo", one.mode),
        }
        found[name] = (*kinds[one.kind], first[name])
    return found


PARTS = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
ODD_PATHS = st.builds(
    lambda front, middle, path: front + middle + path,
    st.sampled_from(["", "/", "../", "./"]),
    st.sampled_from(["", "a/../", "b/../../", "c/./"]),
    PATHS,
)
NAMES = st.one_of(PATHS, PATHS, ODD_PATHS)
TARGETS = st.builds(
    lambda front, path, back: front + path + back,
    st.sampled_from(["", "/", "../", "../../", "x/../"]),
    PATHS,
    st.sampled_from(["", "/", "/..", "/."]),
)
MODES = st.sampled_from([0o755, 0o700, 0o1777])
BODIES = st.sampled_from(["one", "two", "three"])

FILES = st.tuples(st.just("file"), NAMES, BODIES)
FOLDERS = st.tuples(st.just("folder"), NAMES, MODES)
SYMLINKS = st.tuples(st.just("symlink"), NAMES, TARGETS)
HARDLINKS = st.tuples(st.just("hardlink"), NAMES, NAMES)
FIFOS = st.tuples(st.just("fifo"), NAMES, MODES)
WHITEOUTS = st.tuples(st.sampled_from(["whiteout", "whiteout", "opaque"]), NAMES, st.just(None))

PLAIN = st.one_of(FILES, FOLDERS, FIFOS, WHITEOUTS)
ANY = st.one_of(FILES, FOLDERS, SYMLINKS, HARDLINKS, WHITEOUTS)
MAKE = {
    "file": lambda name, value: file(name, value.encode()),
    "folder": lambda name, value: folder(name, mode=value),
    "symlink": symlink,
    "hardlink": hardlink,
    "fifo": lambda name, value: fifo(name, mode=value),
    "whiteout": lambda name, _: whiteout(name),
    "opaque": lambda name, _: opaque(name),
}


def tar_of(entries):
    """A layer of entries."""
    return layer(*(MAKE[what](name, value) for what, name, value in entries))


def flattened(layers):
    """The answer of `flatten`, or None where it refuses."""
    try:
        return answer(flat_tar(*map(tar_of, layers)))
    except BadArchiveError:
        return None


def expected(layers):
    """The oracle's answer."""
    oracle = Oracle()
    try:
        for entries in layers:
            oracle.apply(entries)
    except RefusedError:
        return None
    return oracle.answer()


@given(st.lists(st.lists(ANY, max_size=8), min_size=1, max_size=3))
@settings(deadline=None, max_examples=600)
def test_any_layers(layers):
    """Links, whiteouts and replacements in any order: the same tree, or both refuse."""
    found = flattened(layers)
    event("refused" if found is None else "applied")

    assert found == expected(layers)


@given(st.lists(st.lists(PLAIN, max_size=12), min_size=1, max_size=3))
@settings(deadline=None, max_examples=300)
def test_layers_without_links(layers):
    """Fewer refusals, so more is hidden, kept and made anew."""
    found = flattened(layers)
    event("refused" if found is None else "applied")

    assert found == expected(layers)


@given(st.lists(PLAIN, max_size=10), st.lists(PLAIN, max_size=10))
@settings(deadline=None, max_examples=300)
def test_the_order_of_whiteouts_does_not_matter(lower, upper):
    """They concern lower layers, so they may as well come first."""
    hides = {"whiteout", "opaque"}
    first = [one for one in upper if one[0] in hides] + [one for one in upper if one[0] not in hides]
    one, other = flattened([lower, upper]), flattened([lower, first])

    event("compared" if one is not None and other is not None else "refused")
    if one is not None and other is not None:
        assert one == other


@given(st.lists(st.lists(ANY, max_size=8), min_size=1, max_size=3))
@settings(deadline=None, max_examples=150)
def test_flattening_twice_changes_nothing(layers):
    """The result is a layer itself, and its own flattened form."""
    try:
        tar = flat_tar(*map(tar_of, layers))
    except BadArchiveError:
        return

    assert flat_tar(tar) == tar
    assert flat_tar(tar, tar) == tar


@given(st.lists(ANY, max_size=8), st.integers(0, 6000), st.integers(1, 255), st.integers(0, 12_000))
@settings(deadline=None, max_examples=300)
def test_damaged_layers_raise_nothing_else(entries, where, mask, length):
    """One error, and not a byte written."""
    data = bytearray(tar_of(entries)[: 1024 + length])
    data[where % len(data)] ^= mask
    out = io.BytesIO()
    try:
        flatten([Openings(tar_of([("file", "a", "1")])), Openings(bytes(data))], out)
    except BadArchiveError:
        assert out.getvalue() == b""


def test_the_oracle_can_fail():
    """It refuses what it should, so that agreeing with it means something."""
    assert expected([[("file", "a", "1"), ("file", "a/b", "2")]]) is None
    assert expected([[("hardlink", "a", "b")]]) is None
    assert expected([[("symlink", "a", "a"), ("file", "a/b", "2")]]) is None
    with pytest.raises(KeyError):
        expected([[("file", "a", "1")]])["b"]
