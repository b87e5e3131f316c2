"""An export never hands on damage: exit code 3, no file left, the blob marked, and an import heals it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from imgdb import ExportOptions
from imgdb.errors import DataLossError, ImgdbError, RefusedError
from imgdb.exporter.write import BlobDamageError
from imgdb.oci.digest import Digest
from tests.builder import Image, Index, Layer, noise
from tests.looking import Members, collecting_pipe, digests, present

IMAGE = Image([Layer({"noise": noise(150_000)}), {"small": b"s"}])
OTHER = Image(labels={"other": "1"})
BLOBS = {"manifest": IMAGE.digest, "config": IMAGE.config.digest, "layer": IMAGE.below[1].digest}


def file_of(store, digest):
    """Where a blob's bytes are."""
    return os.path.join(store.root, "blobs", *digest.split(":"))


def flip(path):
    """Other bytes, the same length."""
    with open(path, "rb") as file:
        body = bytearray(file.read())
    body[len(body) // 2] ^= 1
    rewrite(path, bytes(body))


def cut(path):
    """Fewer bytes."""
    with open(path, "rb") as file:
        rewrite(path, file.read()[:-1])


def rewrite(path, body):
    """In place, as a broken disk does; the mode forbids it to everybody but root."""
    os.chmod(path, 0o600)
    with open(path, "wb") as file:
        file.write(body)
    os.chmod(path, 0o400)


DAMAGE = {"flipped": flip, "cut": cut, "gone": os.unlink}


@pytest.fixture
def filled(store, tmp_path):
    """A store with an image of three kinds of blobs, and another image."""
    store.load(IMAGE.oci_tar(tmp_path / "image.tar", "app:1"))
    store.load(OTHER.oci_tar(tmp_path / "other.tar", "other:1"))
    return store


def heal(store, tmp_path):
    """Import the image again."""
    return store.load(IMAGE.oci_tar(tmp_path / "image.tar", "app:1"))


@pytest.mark.parametrize("kind", BLOBS)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage(filled, tmp_path, kind, damage):
    """Noticed, remembered, named; what is whole goes on, and an import of the image makes all whole."""
    damage(file_of(filled, BLOBS[kind]))
    before = set(os.listdir(tmp_path))
    for _ in range(2):  # found the first time, known the second
        with pytest.raises(DataLossError, match=f"blob {BLOBS[kind]} is damaged") as error:
            filled.export(["app:1"], str(tmp_path / "out.tar"))
        assert error.value.exit_code == 3
    assert set(os.listdir(tmp_path)) == before
    assert filled.blob(BLOBS[kind]).damaged
    filled.export(["other:1"], str(tmp_path / "other-out.tar"))
    assert Members(tmp_path / "other-out.tar").digests == digests(OTHER)

    assert heal(filled, tmp_path).new_blobs == 1
    assert not filled.blob(BLOBS[kind]).damaged
    filled.export(["app:1"], str(tmp_path / "out.tar"))
    assert Members(tmp_path / "out.tar").digests == digests(IMAGE)


@pytest.mark.parametrize("style", ["hex", "classic", "docker26"])
def test_docker_archives_heal(store, tmp_path, style):
    """Their paths claim no digest, so that their bytes are looked at anyhow."""
    image = Image([{"a": b"a" * 9000}], docker=True)
    path = image.docker_tar(tmp_path / "image.tar", "app:1", style=style, layers="none")
    store.load(path)
    layer = next(str(blob.digest) for blob in store.blobs() if blob.kind == "layer")
    flip(file_of(store, layer))
    with pytest.raises(BlobDamageError):
        store.export(["app:1"], str(tmp_path / "out.tar"))
    store.load(path)
    store.export(["app:1"], str(tmp_path / "out.tar"))
    assert not store.blob(layer).damaged


@pytest.mark.parametrize("style", ["hex", "classic", "docker26"])
def test_an_import_vouches_only_for_a_file_that_it_wrote(store, tmp_path, style):
    """The store's file was changed after it was verified: the same archive again puts its own there."""
    path = Image([{"a": b"a" * 9000}], docker=True).docker_tar(tmp_path / "in.tar", "app:1", style=style)
    store.load(path)
    layer = next(blob.digest for blob in store.blobs() if blob.kind == "layer")
    file = file_of(store, str(layer))
    flip(file)
    store.load(path)
    store.export(["app:1"], str(tmp_path / "out.tar"), ExportOptions(trust=True))
    assert Digest.of(Path(file).read_bytes()) == layer


def test_damage_found_before_it_is_written_to_a_stream(filled, tmp_path):
    """What went out can't be withdrawn: it is a beginning, never a whole archive with wrong bytes."""
    flip(file_of(filled, BLOBS["layer"]))
    out = io.BytesIO()
    with pytest.raises(BlobDamageError):
        filled.export(["app:1"], out)
    heal(filled, tmp_path)
    whole = io.BytesIO()
    filled.export(["app:1"], whole)
    assert whole.getvalue().startswith(out.getvalue())
    assert len(out.getvalue()) < len(whole.getvalue())


def test_damage_found_before_it_is_written_to_a_pipe(filled, tmp_path):
    """The same for what the kernel copies."""
    flip(file_of(filled, BLOBS["layer"]))
    with collecting_pipe() as (out, got), pytest.raises(BlobDamageError):
        filled.export(["app:1"], out)
    with open(tmp_path / "part.tar", "wb") as part:
        part.write(got[0])
    with pytest.raises(ImgdbError):
        filled.load(str(tmp_path / "part.tar"))
    heal(filled, tmp_path)


@pytest.mark.parametrize("form", ["oci-dir", "docker-archive", "oci-archive"])
@pytest.mark.parametrize("compress", ["none", "gzip", "zstd"])
def test_damage_leaves_what_was_there(filled, tmp_path, form, compress):
    """In every format: neither half a file, nor an older file touched, nor a temporary one left."""
    target = tmp_path / "target"
    if form != "oci-dir":
        target.write_bytes(b"precious")
    before = set(os.listdir(tmp_path))
    flip(file_of(filled, BLOBS["layer"]))
    with pytest.raises(BlobDamageError):
        filled.export(["app:1"], str(target), ExportOptions(format=form, compress=compress))
    assert set(os.listdir(tmp_path)) == before
    assert form == "oci-dir" or target.read_bytes() == b"precious"
    heal(filled, tmp_path)


def test_trust(filled, tmp_path, monkeypatch):
    """Blobs that did not change since they were verified are not read for that, others are."""
    monkeypatch.setattr(filled._blobs, "blake3", lambda digest: pytest.fail(f"{digest} was read"))
    filled.export(["app:1"], str(tmp_path / "out.tar"), ExportOptions(trust=True))
    monkeypatch.undo()
    flip(file_of(filled, BLOBS["layer"]))
    with pytest.raises(BlobDamageError):
        filled.export(["app:1"], str(tmp_path / "out.tar"), ExportOptions(trust=True))
    heal(filled, tmp_path)


def test_a_damaged_document_of_the_store(filled, tmp_path):
    """A delta archive that needs it is refused; a complete one heals it."""
    flip(file_of(filled, BLOBS["manifest"]))
    delta = Index([IMAGE, OTHER]).oci_tar(tmp_path / "delta.tar", "both:1", without=digests(IMAGE, OTHER))
    with pytest.raises(ImgdbError, match=f"{BLOBS['manifest']}.*damaged") as error:
        filled.load(delta)
    assert error.value.exit_code == 3
    with pytest.raises(BlobDamageError):
        filled.export(["app:1"], str(tmp_path / "out.tar"))
    assert heal(filled, tmp_path).new_blobs == 1
    filled.load(delta)
    assert Index([IMAGE, OTHER]).digest in present(filled)


@pytest.mark.parametrize("form", ["oci-archive", "oci-dir"])
def test_targets_that_can_not_be(filled, tmp_path, form):
    """A directory that is not there, a place that is taken, a stream for a directory."""
    options = ExportOptions(format=form)
    with pytest.raises(ImgdbError, match="No such file"):
        filled.export(["app:1"], str(tmp_path / "absent" / "out"), options)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(RefusedError):
        filled.export(["app:1"], str(tmp_path / "taken"), options)
    assert os.listdir(tmp_path / "taken") == ["file"]
    if form == "oci-dir":
        with pytest.raises(RefusedError, match="directory"):
            filled.export(["app:1"], io.BytesIO(), options)
