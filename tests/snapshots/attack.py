"""What an attack is, the world that it would break out into, and how it is tried.

A layer is applied to `one/two/root` of a world full of canaries; the layers below it lie beside it.
Whatever its verdict, the world must be as it was, and no descriptor may stay open.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from imgdb.errors import ImgdbError
from imgdb.snapshots import beneath
from imgdb.snapshots.layer import apply_layer
from tests.snapshots import members
from tests.snapshots.members import placed
from tests.trees import ROOT, Canary, canary, overlaid, read_tree

SECONDS = 2  # of this process; waiting for anything at all is a hang, and ends at HANG
HANG = 10
NOBODY = 65534


@dataclass(frozen=True)
class Link:
    """A symbolic link that is expected, its target as it was written."""

    target: str | bytes


@dataclass(frozen=True)
class Attack:
    """A layer, what it is put on, and what must come of it: either `inside` or `refused`.

    Attributes:
        layer: members.
        lowers: layers below, the lowest first.
        inside: what the merged tree holds, by path: bytes for a file with that content, None for a
            directory, `Link` for a symbolic link, or a dict of fields of `tests.trees.Entry`.
            Directories on the way need not be named; anything else must be.
        same: paths that must be one inode.
        refused: what the error's message has in it, as a regular expression.
        warned: a part of a warning.
        told: whether less is made than was asked for, which must be said in whatever way.
        privileged: means something only where devices can be made.
    """

    layer: tuple
    lowers: tuple = ()
    inside: dict | None = None
    same: tuple = ()
    refused: str | None = None
    warned: str | None = None
    told: bool = False
    privileged: bool = False


def contained(layer, inside, **more):
    """An attack that stays inside."""
    return Attack(tuple(layer), inside=inside, **more)


def refused(layer, words, **more):
    """An attack that is refused."""
    return Attack(tuple(layer), refused=words, **more)


class World:
    """A folder with canaries on every level, in which layers are applied, one attack after the other.

    Attributes:
        path: of the folder.
        root: the directory that the attacked layer becomes.
        lowers: those of the layers below it, the lowest first.
        bottom: the number of the layer that the stack begins with, since it hides all below it.
    """

    def __init__(self, path, owner=None):
        self.path = Path(path)
        self._two = self.path / "one" / "two"
        self._owner = owner
        self.root = self._two / "root"
        self.lowers = []
        self.bottom = 0
        for folder in (self.root, self._two / "root-evil", self._two / "rootx"):
            folder.mkdir(parents=True)
        for folder in (self.path, self.path / "one", self._two, self._two / "root-evil"):
            canary(folder)
        self._own(self.path)

    def fresh(self, lowers):
        """Make the root and the layers below anew, without anything in them; returns itself."""
        for folder in (self.root, *self.lowers):
            shutil.rmtree(folder)
        self.lowers = [self._two / f"lower-{number}" for number in range(lowers)]
        self.bottom = 0
        for folder in (self.root, *self.lowers):
            folder.mkdir()
            self._own(folder)
        return self

    def _own(self, top):
        for folder, names, files in os.walk(top) if self._owner is not None else ():
            for name in [".", *names, *files]:
                os.chown(os.path.join(folder, name), self._owner, self._owner, follow_symlinks=False)

    @property
    def raw(self):
        """Its absolute path as names in a layer have it."""
        return os.fsencode(self.path).lstrip(b"/")

    def watch(self):
        """The canary of everything but the root; the layers below are part of it."""
        return Canary(self.path, (self.root,))

    def merged(self):
        """What overlayfs would show of the layers."""
        return overlaid(*(read_tree(folder) for folder in [*self.lowers, self.root][self.bottom :]))


class Worlds:
    """A world for each attack: the same one as long as nothing got out."""

    def __init__(self, make):
        self._make = make
        self._known = None

    @contextlib.contextmanager
    def fresh(self, lowers=0):
        """A world with an empty root; after a test that failed it is not used again."""
        world, self._known = self._known or self._make(), None
        yield world.fresh(lowers)
        self._known = world


@dataclass
class Outcome:
    """What came of applying a layer; made of values that can go through a pipe."""

    refusal: str | None = None
    exit_code: int = 0
    diff_id: str = ""
    hides_all: bool = False
    skipped: tuple = ()
    warnings: list = field(default_factory=list)
    seconds: float = 0.0


@contextlib.contextmanager
def directories(paths):
    """Open descriptors of directories."""
    with contextlib.ExitStack() as stack:
        fds = []
        for path in paths:
            fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            stack.callback(os.close, fds[-1])
        yield fds


def stop(*_):
    """A hang becomes a failure."""
    raise TimeoutError(f"not done after {HANG} s")


@contextlib.contextmanager
def alarm():
    """A time limit for whatever waits, as for somebody at the other end of a fifo."""
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def apply(source, root_fd, lower_fds):
    """Apply a layer and note what came of it; anything but an ImgdbError goes through."""
    outcome = Outcome()
    begun = time.process_time()
    try:
        applied = apply_layer(source, root_fd, lower_fds, on_warning=outcome.warnings.append)
        outcome.diff_id, outcome.hides_all = str(applied.diff_id), applied.hides_all
        outcome.skipped = tuple(applied.skipped)
    except ImgdbError as error:
        outcome.refusal, outcome.exit_code = str(error), error.exit_code
    outcome.seconds = time.process_time() - begun
    return outcome


def build_lowers(attack, world):
    """Apply the layers below, which must go well; returns where the stack begins."""
    bottom = 0
    for number, items in enumerate(attack.lowers):
        below = reversed(world.lowers[bottom:number])
        with directories([world.lowers[number], *below]) as (fd, *fds):
            outcome = apply(io.BytesIO(members.layer(items, world.raw)), fd, fds)
        assert outcome.refusal is None, f"layer {number} below: {outcome.refusal}"
        bottom = number if outcome.hides_all else bottom
    return bottom


def play(attack, world):
    """Try an attack in this process."""
    descriptors = os.listdir("/proc/self/fd")
    with directories([world.root, *reversed(world.lowers[world.bottom :])]) as (fd, *fds), alarm():
        outcome = apply(io.BytesIO(members.layer(attack.layer, world.raw)), fd, fds)
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)
    return outcome


def judge(attack, world, outcome, *, plain=False):
    """The verdict is the one expected, and what is inside too."""
    # Without openat2 each component of a deep path is opened by itself.
    assert outcome.seconds < (SECONDS if beneath.HAVE_OPENAT2 else 3 * SECONDS)
    for line in outcome.warnings:
        assert line.isprintable()
    if attack.refused is not None:
        judge_refusal(attack, outcome)
        return
    assert outcome.refusal is None
    if attack.warned is not None:
        assert any(attack.warned in line for line in outcome.warnings), outcome.warnings
    if outcome.hides_all:
        world.bottom = len(world.lowers)
    merged = world.merged()
    expected = {placed(path, world.raw): what for path, what in attack.inside.items()}
    assert show(merged, expected, world) == expected
    for paths in attack.same:
        assert len({merged[placed(path, world.raw)].linked for path in paths}) == 1
    assert not attack.told or outcome.skipped or outcome.warnings
    assert plain or attack.told or outcome.skipped == ()


def judge_refusal(attack, outcome):
    """One clear line, and the exit code of a bad archive."""
    assert outcome.refusal is not None, f"accepted; expected: {attack.refused}"
    assert re.search(attack.refused, outcome.refusal)
    assert outcome.refusal.isprintable()
    assert outcome.exit_code == 3


def show(merged, expected, world):
    """A tree in the words of `Attack.inside`; directories on the way are left out where not asked for."""
    parents = {path.rpartition(b"/")[0] for path in merged}
    return {
        path: shown(entry, expected.get(path), world)
        for path, entry in merged.items()
        if path != ROOT and (path in expected or entry.kind != "directory" or path not in parents)
    }


def shown(entry, asked, world):
    """One entry in the form that is asked for."""
    if isinstance(asked, dict):
        return {name: getattr(entry, name) for name in asked}
    if entry.kind == "file":
        same = isinstance(asked, bytes) and entry.content == hashlib.sha256(asked).hexdigest()
        return asked if same else entry
    if entry.kind == "directory":
        return None
    if entry.kind == "symlink":
        same = isinstance(asked, Link) and placed(asked.target, world.raw) == entry.target
        return asked if same else entry
    return entry
