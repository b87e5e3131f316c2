"""A file of the store is believed only where a row vouches for it; everything else comes from the archive."""

from __future__ import annotations

import os

import pytest

from imgdb import ImportOptions
from imgdb.errors import RefusedError
from tests.builder import Image, noise
from tests.damage import flip, path_of, rewritten
from tests.looking import digests

IMAGE = Image([{"tool": noise(5000)}], labels={"v": "1"})
NODES = {"manifest": IMAGE.blob, "config": IMAGE.below[0], "layer": IMAGE.below[1]}


def put_file(store, blob, data):
    """A file without a row, as a killed import or a careless admin leaves it."""
    path = path_of(store, blob.digest)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o400)
    return path


def flipped(data):
    """Another byte in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("form", ["tar", "pipe", "dir"])
@pytest.mark.parametrize("kind", NODES)
def test_a_wrong_file_without_a_row(store, tmp_path, kind, form):
    """Its size is right, its name promises the rest, and nobody ever read it."""
    blob = NODES[kind]
    path = put_file(store, blob, flipped(blob.data))
    archive = (
        IMAGE.oci_dir(tmp_path / "a", "app:1") if form == "dir" else IMAGE.oci_tar(tmp_path / "a", "app:1")
    )
    if form == "pipe":
        with open(archive, "rb", buffering=0) as stream:
            result = store.load(stream)
    else:
        result = store.load(archive)
    assert result.new_blobs == len(digests(IMAGE))
    assert path.read_bytes() == blob.data
    assert store.check().findings == ()
    store.export(["app:1"], str(tmp_path / "out.tar"))


def test_a_right_file_without_a_row(store, tmp_path):
    """It is written once more: one that is right can't be told from one that is not without reading it."""
    path = put_file(store, NODES["layer"], NODES["layer"].data)
    before = path.stat().st_ino
    assert store.load(IMAGE.oci_tar(tmp_path / "a.tar", "app:1")).new_blobs == len(digests(IMAGE))
    assert path.stat().st_ino != before


@pytest.mark.parametrize("damage", ["flipped", "touched"])
def test_a_file_that_changed_since_its_row_was_written(store, tmp_path, damage):
    """Nobody has read it again yet; importing its image heals it."""
    archive = IMAGE.oci_tar(tmp_path / "a.tar", "app:1")
    store.load(archive)
    path = path_of(store, NODES["layer"].digest)
    if damage == "flipped":
        flip(path)
    else:
        rewritten(path, path.read_bytes())
    result = store.load(archive)
    assert (result.new_blobs, result.images[0].state) == (1, "same")
    assert path.read_bytes() == NODES["layer"].data
    assert store.check().findings == ()
    assert store.load(archive).new_blobs == 0


def test_a_file_that_changed_stays_right_when_the_import_is_refused(store, tmp_path):
    """Its bytes were put in the place of the old ones, and a row needs them."""
    store.load(IMAGE.oci_tar(tmp_path / "a.tar", "app:1"))
    other = Image([*IMAGE.layers, {"more": b"m"}])
    path = path_of(store, NODES["layer"].digest)
    flip(path)
    with pytest.raises(RefusedError):
        store.load(other.oci_tar(tmp_path / "b.tar", "app:1"), ImportOptions(replace="refuse"))
    assert path.read_bytes() == NODES["layer"].data
    assert store.check().findings == ()


def test_a_dry_run_does_not_believe_it_either(store, tmp_path):
    """And leaves it as it is."""
    blob = NODES["layer"]
    path = put_file(store, blob, flipped(blob.data))
    result = store.load(IMAGE.oci_tar(tmp_path / "a.tar", "app:1"), dry_run=True)
    assert result.new_bytes == sum(each.size for each in NODES.values())
    assert path.read_bytes() == flipped(blob.data)
    os.unlink(path)
