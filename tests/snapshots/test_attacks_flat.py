"""Hostile layers written out flat: `rootfs` unpacks nothing, and comes to the same verdict and tree.

Two implementations of what a stack of layers is, held against each other.
"""

from __future__ import annotations

import io
import os

import pytest

from imgdb.archive.flatten import flatten
from imgdb.errors import BadArchiveError
from tests.snapshots import attack as attacking
from tests.snapshots import members
from tests.snapshots.attacks import ATTACKS
from tests.trees import Ignore, assert_same, read_tar

# What a tar can say and no file system can keep.
UNKEPT = {
    "xattrs": (
        "A22 user attributes of",
        "A22 an empty capability",
        "A22 a capability of nonsense",
        "A22 an ACL of no",
        "A22 a default ACL of a file",
        "A22 an attribute without a name",
    ),
    "mtime_ns": ("B16 ",),
}
needs_devices = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking devices and owners needs root")
CONTAINED = [name for name, attack in ATTACKS.items() if attack.inside is not None]
REFUSED = [name for name, attack in ATTACKS.items() if attack.refused is not None]


def flat(attack, world):
    """The flattened tar of all layers."""
    out = io.BytesIO()
    layers = [members.layer(items, world.raw) for items in (*attack.lowers, attack.layer)]
    flatten([lambda data=data: io.BytesIO(data) for data in layers], out)
    return out.getvalue()


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, world):
    """In one line, and before anything is written."""
    out = io.BytesIO()
    with pytest.raises(BadArchiveError) as error:
        out.write(flat(ATTACKS[name], world))
    assert str(error.value).isprintable()
    assert out.getvalue() == b""


@needs_devices
@pytest.mark.parametrize("name", CONTAINED)
def test_contained(name, worlds):
    """What is written is what unpacking makes."""
    attack = ATTACKS[name]
    with worlds.fresh(len(attack.lowers)) as world:
        world.bottom = attacking.build_lowers(attack, world)
        outcome = attacking.play(attack, world)
    if outcome.hides_all:
        world.bottom = len(world.lowers)
    unkept = [field for field, names in UNKEPT.items() if name.startswith(names)]
    merged, written = world.merged(), read_tar(flat(attack, world))
    if len(merged) > 1:
        assert_same(merged, written, Ignore(root=True, fields=("stamp", *unkept)), names=("disk", "tar"))
    else:
        assert written == {}
