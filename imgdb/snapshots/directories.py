"""The directories of a layer being unpacked: found, copied up, made, hidden, and described at the end.

A directory that a layer needs and does not list has the attributes of the lower layers' one, if
there is one that is seen; all are private until the end, when they get theirs from the bottom up.
Source: specification §7.3; reliability A11, A14-A18.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from imgdb.archive.layernames import MAX_DEPTH
from imgdb.archive.pax import show
from imgdb.errors import BadArchiveError
from imgdb.snapshots import attributes as attrs
from imgdb.snapshots.attributes import DEFAULT, Attributes
from imgdb.snapshots.beneath import DIRECTORY, opened
from imgdb.snapshots.copied import attributes_of
from imgdb.snapshots.merged import Stack, is_whiteout
from imgdb.snapshots.places import Parents
from imgdb.snapshots.trees import remove_entry, remove_whiteouts, walk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgdb.snapshots.merged import Found, Resolved

_PRIVATE = 0o700


class Directories:
    """Directories of the topmost layer of a stack.

    Args:
        fds: descriptors of the layers, topmost first.
        limit: how many directories may be made.

    Attributes:
        tree: the layers as they are seen.
        hides_all: the root is opaque, so the layers below are not in `tree` any more.
    """

    def __init__(self, fds: Sequence[int], limit: int) -> None:
        self._fd = fds[0]
        self._limit = self._room = limit
        self._needs_mode = bool(attrs.umask() & _PRIVATE)
        self._wanted: dict[bytes, Attributes] = {}
        self._copied: set[bytes] = set()
        self.tree = Stack(fds)
        self._cache = Parents(self.tree)
        self.hides_all = False

    def finish(self) -> list[tuple[bytes, list[str], Attributes]]:
        """Give all of them their attributes, the deepest first; returns what could not be given."""
        self.close()
        private = os.geteuid() != 0
        skipped = []
        for path in sorted(self._wanted, key=lambda path: path.count(b"/"), reverse=True):
            fd = self._cache.open(path)
            if fd is None:
                continue  # it was replaced later by something else
            try:
                missing = attrs.give(fd, self._wanted[path], private=private)
            finally:
                os.close(fd)
            if missing:
                skipped.append((path, missing, self._wanted[path]))
        return skipped

    def close(self) -> None:
        """Let go of descriptors."""
        self._cache.close()

    # -- finding and making ------------------------------------------------------------------

    def place(self, parents: Sequence[bytes]) -> tuple[int, bytes]:
        """The directory for an entry, made where it lacks: its descriptor and its path without links."""
        raw = b"/".join(parents)
        known = self._cache.get(raw)
        if known is not None:
            return known
        resolved = self.tree.resolve(parents)
        if len(resolved.parts) >= MAX_DEPTH:
            raise BadArchiveError(f"{show(raw)} leads deeper than {MAX_DEPTH} directories")
        return self._cache.put(raw, self.ensure(resolved), resolved.path)

    def ensure(self, resolved: Resolved) -> int:
        """A descriptor of a directory in this layer, copied up or made; the cache's own."""
        fd = self._cache.directory(resolved.path)
        if fd is not None:
            return fd
        path = b""
        for part, found in zip(resolved.parts, resolved.found, strict=True):
            below = b"%b/%b" % (path, part) if path else part
            if found is None or found.layer:
                self._make_implied(path, part, below, found)
            path = below
        return self._opened(path)

    def _opened(self, path: bytes) -> int:
        fd = self._cache.directory(path)
        if fd is None:
            raise BadArchiveError(f"{show(path)} is no directory, and something lies below it")
        return fd

    def _make_implied(self, above: bytes, name: bytes, path: bytes, found: Found | None) -> None:
        parent = self._opened(above)
        try:
            self.mkdir(parent, name, path)
            hidden = False
        except FileExistsError:
            # Nothing is seen there, so it is a whiteout of this layer.
            os.unlink(name, dir_fd=parent)
            self.mkdir(parent, name, path)
            hidden = True
        self._wanted[path] = DEFAULT if found is None else attributes_of(self.tree, found)
        if found is not None:
            self._copied.add(path)
        else:
            self._copied.discard(path)
        if hidden:
            self.make_opaque(path)

    def mkdir(self, parent: int, name: bytes, path: bytes) -> None:
        """Make a private directory.

        Raises:
            BadArchiveError: there are too many.
            FileExistsError: something is there.
        """
        os.mkdir(name, _PRIVATE, dir_fd=parent)
        self._room -= 1
        if self._room < 0:
            raise BadArchiveError(f"{show(path)}: more than {self._limit} directories")
        if self._needs_mode:
            os.chmod(name, _PRIVATE, dir_fd=parent)
        self._cache.forget_names()

    def listed(self, path: bytes, wanted: Attributes) -> None:
        """The layer says itself what a directory has."""
        self._wanted[path] = wanted
        self._copied.discard(path)

    # -- looking -----------------------------------------------------------------------------

    def status(self, path: bytes) -> os.stat_result | None:
        """What this layer has at a path, whiteouts included."""
        return self._cache.status(path)

    def own(self, path: bytes) -> os.stat_result | None:
        """The same without whiteouts."""
        found = self._cache.status(path)
        return None if found is None or is_whiteout(found) else found

    # -- forgetting --------------------------------------------------------------------------

    def link_changed(self) -> None:
        """A symbolic link came or went, so names may lead elsewhere."""
        self._cache.forget_names()

    def going(self, path: bytes) -> None:
        """A directory is about to be removed, with what is below it."""
        self._cache.forget_below(path)

    def make_opaque(self, path: bytes) -> None:
        """Let a directory hide what is below it in lower layers.

        Whiteouts in it go: in a directory that is not merged overlayfs would show them.
        """
        if len(self.tree.fds) > 1:
            with opened(self._fd, path, DIRECTORY) as fd:
                attrs.set_opaque(fd)
                remove_whiteouts(fd)
            self._cache.forget_names()

    def forget_copied(self, path: bytes, *, itself: bool) -> None:
        """Directories below a path that no member lists had their attributes from what is hidden now."""
        below = path + b"/" if path else b""
        affected = [p for p in self._copied if p.startswith(below) or (itself and p == path)]
        for copied in sorted(affected, reverse=True):  # what is in a directory before itself
            if not self.remove_hollow(copied):
                self._copied.discard(copied)
                self._wanted[copied] = DEFAULT

    def remove_hollow(self, path: bytes) -> bool:
        """Remove a directory that is here for whiteouts in it alone; False where it holds more."""
        found = self.own(path) if path in self._copied else None
        if found is None or not stat.S_ISDIR(found.st_mode):
            return False
        with opened(self._fd, path, DIRECTORY) as fd:
            hollow = all(stat.S_ISDIR(status.st_mode) or is_whiteout(status) for _, _, status in walk(fd))
        below = path + b"/"
        if not hollow or any(p.startswith(below) and p not in self._copied for p in self._wanted):
            return False
        self._cache.forget_below(path)
        for gone in [p for p in self._copied if p == path or p.startswith(below)]:
            self._copied.discard(gone)
            self._wanted.pop(gone, None)
        above, _, name = path.rpartition(b"/")
        with opened(self._fd, above, DIRECTORY) as fd:
            remove_entry(fd, name)
        return True

    def forget_lowers(self) -> None:
        """Nothing of lower layers is seen from here on; overlayfs can't say so, who stacks layers must."""
        if len(self.tree.fds) == 1:
            return
        with opened(self._fd, b"", DIRECTORY) as fd:
            remove_whiteouts(fd)
        self.forget_copied(b"", itself=False)
        self.hides_all = True
        self._cache.close()
        self.tree = Stack([self._fd])
        self._cache = Parents(self.tree)
