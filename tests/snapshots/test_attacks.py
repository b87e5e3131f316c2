"""Hostile layers: each stays inside or is refused in one line, and the world around is as it was.

Each attack of the tables is tried with openat2 and without, and once more by a plain user.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import pickle
import re
from dataclasses import replace

import pytest

from imgdb.errors import ImgdbError
from imgdb.snapshots import beneath
from tests.snapshots import attack as attacking
from tests.snapshots import members
from tests.snapshots.attack import NOBODY
from tests.snapshots.attacks import ATTACKS, TABLES
from tests.snapshots.attacks_containerd import CONTAINERD
from tests.snapshots.members import directory, file, symlink
from tests.trees import CAPABILITY, ROOT, read_tree

IS_ROOT = os.geteuid() == 0
each_attack = pytest.mark.parametrize("name", ATTACKS)
root_only = pytest.mark.skipif(not IS_ROOT, reason="changing the user needs root")


@pytest.fixture(params=["openat2", "components"])
def resolver(request, monkeypatch):
    """Both ways to open what is below a directory."""
    if request.param == "openat2" and not beneath.HAVE_OPENAT2:
        pytest.skip("this kernel or this container has no openat2")
    monkeypatch.setattr(beneath, "HAVE_OPENAT2", request.param == "openat2")
    return request.param


def test_the_tables_are_complete():
    """Every class of the attack list and every case of the specification, none twice."""
    classes = {match[1] for name in ATTACKS if (match := re.match(r"(A\d+) ", name))}
    # A11 is a race and below
    assert classes == {f"A{n}" for n in range(1, 23)} - {"A11"}
    assert len(ATTACKS) == sum(len(table) for table in TABLES) >= 300
    assert set(CONTAINERD) == set(BREAKOUTS.split())


BREAKOUTS = """
    SymlinkAbsolute SymlinkUpAndOut SymlinkMultipleAbsolute SymlinkMultipleRelative SymlinkEmptyFile
    HardlinkRelative HardlinkDownAndOut HardlinkAbsolute HardlinkRelativeLong HardlinkRelativeUpAndOut
    HardlinkDirectRelative HardlinkDirectAbsolute SymlinkParentDirectory SymlinkEmptyFilename
    SymlinkParentRelative SymlinkSlashEnded SymlinkOverrideDirectory SymlinkOverrideDirectoryRelative
    DirectoryOverrideSymlink DirectoryOverrideSymlinkAndHardlink WhiteoutRootParent WhiteoutParent
    WhiteoutRoot WhiteoutCurrentDirectory WhiteoutSymlink WhiteoutSymlinkPath WhiteoutDirectoryName
    WhiteoutDeadSymlinkParent WhiteoutRelativePath SymlinkOverridePath HardlinkSymlinkBeforeCreateTarget
    HardlinkSymlinkRelative HardlinkSymlinkAbsolute HardlinkSymlinkChmod
"""


@each_attack
@pytest.mark.usefixtures("resolver")
def test_attack(name, worlds):
    """The verdict, what is inside, the world outside, and the root's own attributes."""
    attack = ATTACKS[name]
    if attack.privileged and not IS_ROOT:
        pytest.skip("devices, owners and modes of others need root; see test_as_a_plain_user")
    with worlds.fresh(len(attack.lowers)) as world:
        world.bottom = attacking.build_lowers(attack, world)
        bird, before = world.watch(), os.stat(world.root)

        outcome = attacking.play(attack, world)

        bird.assert_untouched()
    attacking.judge(attack if IS_ROOT else of_a_plain_user(attack), world, outcome, plain=not IS_ROOT)
    after = os.stat(world.root)
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert os.listxattr(world.root) == []


# As a plain user


def as_nobody(work):
    """Run a function in a forked child as the user nobody; returns what it returns."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            become_nobody()
            result = work()
        except BaseException as error:  # noqa: BLE001 - handed to the parent
            result = error
        with open(writing, "wb") as pipe:
            pickle.dump(result, pipe)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        result = pickle.load(pipe)  # noqa: S301 - our own child's
    os.waitpid(child, 0)
    if isinstance(result, BaseException):
        raise result
    return result


def become_nobody():
    """Give up root for good, but stay able to use /proc/self, as any process that a user starts."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    dumpable = 4  # PR_SET_DUMPABLE
    ctypes.CDLL(None).prctl(dumpable, 1, 0, 0, 0)


def of_a_plain_user(attack):
    """What he gets of what is inside: no devices, files that are his own, and directories he can open."""
    if attack is ATTACKS["A12 a hard link to a device below"]:
        # What was left out of a layer below is known to whoever unpacked that, and not to this layer.
        return replace(attack, inside=None, refused="not there")
    if attack.inside is None:
        return attack
    inside = {
        path: without_owner(what, attack) if isinstance(what, dict) else what
        for path, what in attack.inside.items()
        if not (isinstance(what, dict) and ("device" in what or what.get("kind") == "character"))
    }
    same = tuple(paths for paths in attack.same if set(paths) <= inside.keys())
    return replace(attack, inside=inside, same=same)


def without_owner(what, attack):
    """Fields of an entry, without those that depend on who its owner is."""
    lost = {"uid", "gid"} | ({"xattrs"} if attack.privileged else set())
    if what.get("kind") != "file" or what.get("mode", 0) & 0o6000:
        lost.add("mode")
    return {key: value for key, value in what.items() if key not in lost}


@root_only
@each_attack
def test_as_a_plain_user(name, public_worlds):
    """The same verdicts; what needs root is left out and told, and the result is the user's."""
    attack = ATTACKS[name]
    with public_worlds.fresh(len(attack.lowers)) as world:
        world.bottom = as_nobody(lambda: attacking.build_lowers(attack, world))
        bird = world.watch()

        outcome = as_nobody(lambda: attacking.play(attack, world))

        bird.assert_untouched()
    attacking.judge(of_a_plain_user(attack), world, outcome, plain=True)
    assert {(e.uid, e.gid) for e in read_tree(world.root).values()} == {(NOBODY, NOBODY)}


@root_only
def test_what_a_plain_user_can_not_make_is_told(public_worlds):
    """Owners and devices, by their paths."""
    layer = [
        file("own", uid=NOBODY, gid=NOBODY),
        file("other", uid=5, gid=6, mode=0o4755),
        members.character("dev/null", 1, 3),
        members.block("dev/sda", 8, 0),
        file("x", xattrs={"security.capability": bytes.fromhex(CAPABILITY)}),
    ]

    with public_worlds.fresh() as world:
        outcome = as_nobody(lambda: attacking.play(attacking.contained(layer, {}), world))

    assert outcome.refusal is None
    told = {entry.path: entry.what for entry in outcome.skipped}
    assert told.keys() >= {b"other", b"dev/null", b"dev/sda", b"x"}
    assert b"own" not in told
    tree = read_tree(world.root)
    assert tree.keys() == {ROOT, b"own", b"other", b"dev", b"x"}
    assert tree[b"other"].mode & 0o6000 == 0  # no setuid for another owner than was meant


# Races and slow sources


class Treacherous(io.RawIOBase):
    """A layer that does something to the directory once a part of it has been read."""

    def __init__(self, data, after, act):
        self._file = io.BytesIO(data)
        self._after, self._act = after, act

    def readable(self):
        """It is."""
        return True

    def readinto(self, buffer):
        """At most 64 KiB at a time."""
        if self._act and self._file.tell() >= self._after:
            act, self._act = self._act, None
            act()
        return self._file.readinto(memoryview(buffer)[: 1 << 16])


def swap(world, path, target):
    """Put a symlink to the outside where a directory is, as somebody else would who can write there."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(world.root / path, world.root / f"{path}-aside")
        os.symlink(target, world.root / path)


@pytest.mark.parametrize("after", [0, 1 << 20, 3 << 20, 5 << 20])
@pytest.mark.parametrize("path", ["d", "d/e"])
@pytest.mark.parametrize("target", ["one", "one/open"])
@pytest.mark.usefixtures("resolver")
def test_a_directory_is_swapped_while_it_is_filled(world, after, path, target):
    """A11: whatever becomes of the layer, nothing outside changes."""
    bird = world.watch()
    body = bytes(1 << 19)
    layer = [directory("d", 0o777), directory("d/e", 0o777)]
    for n in range(6):
        layer += [
            file(f"d/{n}", body),
            file(f"d/e/{n}", body),
            directory(f"d/inner-{n}"),
            symlink(f"d/s{n}", "x"),
        ]
    layer += [file("d/victim", body), file("d/e/victim", body), directory("d/closed", 0o777)]
    source = Treacherous(members.layer(layer), after, lambda: swap(world, path, world.path / target))

    with (
        attacking.directories([world.root]) as (fd,),
        attacking.alarm(),
        contextlib.suppress(ImgdbError, OSError),
    ):
        attacking.apply(source, fd, [])

    bird.assert_untouched()


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o777])
def test_the_umask_changes_nothing(tmp_path, mask):
    """Modes are those of the layer, or 0755 where nobody says."""
    own = {"uid": os.geteuid(), "gid": os.getegid()}  # else it loses its set-user-ID bit
    layer = [
        directory("d", 0o1777),
        file("d/x", mode=0o4666, **own),
        file("implied/y", mode=0o640),
        members.fifo("p", mode=0o622),
    ]
    before = os.umask(mask)
    try:
        with attacking.directories([tmp_path]) as (fd,):
            outcome = attacking.apply(io.BytesIO(members.layer(layer)), fd, [])
    finally:
        os.umask(before)

    assert outcome.refusal is None
    assert {path: entry.mode for path, entry in read_tree(tmp_path).items() if path != ROOT} == {
        b"d": 0o1777,
        b"d/x": 0o4666,
        b"implied": 0o755,
        b"implied/y": 0o640,
        b"p": 0o622,
    }


def test_broken_off(world):
    """A layer that ends early is refused wherever it ends, and nothing is left open."""
    bird = world.watch()
    whole = members.layer(
        [directory("d"), file("d/x", b"x" * 700), symlink("s", "d"), members.hardlink("s/h", "d/x")]
    )
    open_before = os.listdir("/proc/self/fd")
    refusals = 0
    for end in range(0, len(whole) - 1024, 256):
        place = world.root / str(end)
        place.mkdir()
        with attacking.directories([place]) as (fd,):
            outcome = attacking.apply(io.BytesIO(whole[:end]), fd, [])
        refusals += outcome.refusal is not None
        assert outcome.refusal is None or (outcome.exit_code == 3 and outcome.refusal.isprintable())
    bird.assert_untouched()
    assert len(os.listdir("/proc/self/fd")) == len(open_before)
    assert refusals >= 6  # where a member ends exactly, it may as well be an archive without end blocks
