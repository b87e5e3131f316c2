"""Repairing: right bytes from archives and texts, wrong ones out of the way, and nobody's work spoiled."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from imgdb.check.report import CheckOptions, Level, State
from imgdb.content.disk import DiskBlobStore
from imgdb.errors import BadArchiveError, NotFoundError
from imgdb.oci.digest import Digest
from tests import damage
from tests.builder import Archive, Artifact, Image, Layer, write_tar
from tests.damage import FULL, GONE, QUICK, REPAIR, WRONG, Sample, found, path_of, sql, states
from tests.looking import names


@pytest.fixture
def sample(tmp_path):
    """What is in the store."""
    return Sample(tmp_path)


@pytest.fixture
def store(new_store, sample):
    """A store with the sample."""
    made = new_store()
    made.load(sample.archive)
    return made


def restore(store, *archives):
    """A check that takes what is damaged from archives."""
    return store.check(CheckOptions(archives=archives))


def actions(store, *which):
    """Events of some kinds: action and digest."""
    return {(event.action, event.actor) for event in store.events() if event.action in which}


# -- from where bytes come -------------------------------------------------------------------------


def test_everything_from_one_archive(store, sample):
    """Every blob wrong or gone: all of them come back in one go, and no name is made or moved."""
    before = damage.tables(store.root)
    spoils = [*WRONG, *GONE]
    for n, digest in enumerate(sorted(sample.blobs)):
        spoils[n % len(spoils)](path_of(store, digest))
    sql(store, "DELETE FROM imgdb_documents")
    report = restore(store, sample.archive)
    assert (states(report), report.damage) == ({State.REPAIRED}, ())
    assert {str(f.digest) for f in report.findings if f.digest and not f.is_note} == sample.blobs.keys()
    assert actions(store, "restore") == {("restore", digest) for digest in sample.blobs}
    assert found(store.check(FULL)) == set()
    # The names' rows were not touched, so neither was anything that hangs on them.
    assert damage.tables(store.root) == before


STYLES = ("classic", "hex", "blobs", "docker26", "kaniko", "jib")


@pytest.mark.parametrize("style", STYLES)
def test_docker_archives(new_store, tmp_path, style):
    """Blobs are taken by what they hash to, whatever they are called; the made manifest too."""
    store = new_store()
    image = Image(
        [Layer({"a": b"1"}, compression="none"), Layer({"b": b"2"}, compression="none")], docker=True
    )
    archive = image.docker_tar(tmp_path / "docker.tar", "app:1", style=style, layers="none")
    store.load(archive)
    before = damage.tables(store.root)
    digests = [str(blob.digest) for blob in store.blobs()]
    assert len(digests) == 4
    sql(store, "DELETE FROM imgdb_documents")
    for digest in digests:
        damage.delete(path_of(store, digest))
    report = restore(store, archive)
    assert (found(report), report.damage) == ({"blob-missing"}, ())
    assert store.check(FULL).findings == ()
    assert damage.tables(store.root) == before


@pytest.mark.parametrize("form", ["dir", "gzip", "zstd", "stream"])
def test_sources(store, sample, tmp_path, form):
    """A directory, a compressed archive, a pipe."""
    damage.flip(path_of(store, sample.layer.digest))
    archive = Archive().add(sample.image, "other-name:1")
    if form == "dir":
        source = archive.oci_dir(tmp_path / "dir")
    elif form == "stream":
        source = io.BytesIO(Path(archive.oci_tar(tmp_path / "plain.tar")).read_bytes())
    else:
        source = archive.oci_tar(tmp_path / "packed.tar", compression=form)
    before = names(store)
    assert restore(store, source).damage == ()
    assert names(store) == before
    assert store.check(FULL).findings == ()


def test_several_archives(store, sample, tmp_path):
    """Each gives what it has; what none has is set aside, and comes with the next repair."""
    config, layer = sample.image.config, sample.layer
    other = sample.other.below[1]
    assert other.digest == layer.digest
    sql(store, "DELETE FROM imgdb_documents")
    for blob in (config, layer, sample.signature.below[1]):
        damage.flip(path_of(store, blob.digest))
    one = write_tar(tmp_path / "one.tar", {config.path: config.data, "oci-layout": b"?"})
    two = write_tar(tmp_path / "two.tar", {"some/name": layer.data})
    report = restore(store, str(one), str(two))
    assert {str(f.digest) for f in report.damage} == {sample.signature.below[1].digest}
    assert report.damage[0].state is State.SET_ASIDE
    assert restore(store, sample.archive).damage == ()
    assert found(store.check(FULL)) == set()


def test_archives_with_lies(store, sample, tmp_path):
    """A member under the right path with other bytes restores nothing."""
    damage.flip(path_of(store, sample.layer.digest))
    liar = write_tar(tmp_path / "liar.tar", {sample.layer.path: b"x" * sample.layer.size})
    report = restore(store, str(liar))
    assert (found(report), states(report)) == ({"blob-damaged"}, {State.SET_ASIDE})
    assert restore(store, sample.archive).damage == ()


def test_archives_that_are_none(store, sample, tmp_path):
    """They are errors; nothing is set aside because of them."""
    damage.flip(path_of(store, sample.layer.digest))
    torn = tmp_path / "torn.tar"
    torn.write_bytes(Path(sample.archive).read_bytes()[:3000])
    with pytest.raises(NotFoundError):
        restore(store, str(tmp_path / "absent.tar"))
    with pytest.raises(BadArchiveError):
        restore(store, str(torn))
    assert path_of(store, sample.layer.digest).exists()
    assert restore(store, sample.archive).damage == ()


@pytest.mark.parametrize("spoil", [*WRONG, *GONE], ids=lambda spoil: spoil.__name__)
def test_documents_from_their_texts(store, sample, spoil):
    """The database keeps them, and their digest proves them: no archive is needed."""
    documents = [sample.index, sample.image, sample.other, sample.signature, sample.second]
    kept = [*(node.digest for node in documents), sample.image.config.digest]
    for digest in kept:
        spoil(path_of(store, digest))
    report = store.check(REPAIR)
    assert {str(f.digest) for f in report.findings if f.digest} == set(kept)
    assert (states(report), report.damage) == ({State.REPAIRED}, ())
    assert found(store.check(FULL)) == set()


def test_texts_that_lie(store, sample):
    """A text that is wrong as well restores nothing."""
    damage.flip(path_of(store, sample.image.digest))
    sql(store, "UPDATE imgdb_documents SET json = replace(json, 'sha256', 'sha257')")
    assert {str(f.digest) for f in store.check(REPAIR).damage} == {sample.image.digest}
    assert restore(store, sample.archive).damage == ()
    assert store.check(FULL).damage == ()


# -- importing heals -------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [*WRONG[1:], *GONE], ids=lambda spoil: spoil.__name__)
def test_imports_heal_what_shows_by_its_size(store, sample, spoil):
    """Without any check before."""
    before = damage.tables(store.root)
    for digest in sample.blobs:
        spoil(path_of(store, digest))
    store.load(sample.archive)
    assert found(store.check(FULL)) == set()
    assert damage.tables(store.root) == before


def test_imports_heal_what_a_check_found(store, sample):
    """Flipped bits too, once they are known."""
    before = damage.tables(store.root)
    for digest in sample.blobs:
        damage.flip(path_of(store, digest))
    assert len(store.check().damage) == len(sample.blobs)
    store.load(sample.archive)
    assert store.check(FULL).findings == ()
    assert damage.tables(store.root) == before


def test_imports_heal_what_was_set_aside(store, sample):
    """Also under another name, in another archive."""
    damage.flip(path_of(store, sample.layer.digest))
    damage.delete(path_of(store, sample.image.config.digest))
    sql(store, "DELETE FROM imgdb_documents")
    assert states(store.check(REPAIR)) == {State.SET_ASIDE, State.REPAIRED}
    assert found(store.check()) == {"blob-lost"}
    store.load(sample.archive)
    assert found(store.check(FULL)) == set()


def test_lost_blobs_of_removed_images(store, sample):
    """What nobody needs is missed by nobody."""
    config = sample.second.below[1]
    damage.delete(path_of(store, config.digest))
    store.check(REPAIR)
    assert found(store.check()) == {"blob-lost"}
    store.remove("one:1")
    store.remove("app:1")
    store.gc()
    assert store.check(FULL).findings == ()


# -- beside others ---------------------------------------------------------------------------------


def test_set_aside_leaves_a_trace(store, sample):
    """The bytes are kept, an event says so, and the row is that of a blob that is not here."""
    path = path_of(store, sample.layer.digest)
    damage.flip(path)
    wrong = path.read_bytes()
    store.check(REPAIR)
    (kept,) = Path(store.root, "quarantine").iterdir()
    assert kept.read_bytes() == wrong
    assert actions(store, "damage") == {("damage", sample.layer.digest)}
    (event,) = (event for event in store.events() if event.action == "damage")
    assert event.attributes == {"reason": "other bytes", "quarantine": str(kept)}
    info = store.blob(sample.layer.digest)
    assert (info.present, info.damaged, info.refcount) == (False, True, 2)
    store.gc()
    assert found(store.check(QUICK)) == {"blob-lost"}
    store.load(sample.archive)


def test_held_blobs_stay(store, sample):
    """A running import may be about to heal it."""
    path = path_of(store, sample.layer.digest)
    damage.flip(path)
    with store._blobs.hold() as hold:
        hold.add([Digest.parse(sample.layer.digest)])
        report = store.check(REPAIR)
        assert (states(report), path.exists()) == ({State.FOUND}, True)
        assert store.blob(sample.layer.digest).present
    assert states(store.check(REPAIR)) == {State.SET_ASIDE}
    store.load(sample.archive)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_blobs_that_are_healed_meanwhile(store, sample, monkeypatch, moment):
    """An import ends just before the file would be moved, or just before the row would be changed."""
    path = path_of(store, sample.layer.digest)
    damage.flip(path)
    real = DiskBlobStore.quarantine

    def quarantine(self, digest, seen):
        if moment == "before":
            store.load(sample.archive)
        moved = real(self, digest, seen)
        if moment == "after":
            store.load(sample.archive)
        return moved

    monkeypatch.setattr(DiskBlobStore, "quarantine", quarantine)
    report = store.check(REPAIR)
    assert (found(report), states(report)) == ({"blob-damaged"}, {State.REPAIRED})
    assert path.read_bytes() == sample.layer.data
    assert store.blob(sample.layer.digest).present
    assert found(store.check(FULL)) == set()


def test_a_blob_that_comes_and_goes_is_no_finding(store, sample, monkeypatch):
    """It is looked at again, and only a row that is the same before and after convicts a file."""
    real = DiskBlobStore.stat
    calls = []

    def stat(self, digest):
        if str(digest) == sample.layer.digest and not calls:
            calls.append(digest)
            damage.delete(path_of(store, sample.layer.digest))
            store.load(sample.archive)
            return None
        return real(self, digest)

    monkeypatch.setattr(DiskBlobStore, "stat", stat)
    assert store.check(QUICK).findings == ()
    assert calls


def test_removed_while_it_is_read(store, sample, monkeypatch):
    """A blob that is collected under the checker's eyes is no finding."""
    real = DiskBlobStore.open
    calls = []

    def opened(self, digest):
        if str(digest) == sample.layer.digest and not calls:
            calls.append(digest)
            store.remove("one:1")
            store.remove("app:1")
            store.gc()
        return real(self, digest)

    monkeypatch.setattr(DiskBlobStore, "open", opened)
    assert store.check(FULL).findings == ()
    assert calls


def test_a_referrer_of_a_lost_subject(store, sample):
    """Its edges are kept, and so is everything below them."""
    sql(store, "DELETE FROM imgdb_documents")
    damage.delete(path_of(store, sample.index.digest))
    assert found(store.check(REPAIR)) >= {"blob-missing"}
    assert store.gc().freed == {}
    store.load(sample.archive)
    assert found(store.check(FULL)) == set()


def test_repairs_ask_nothing_of_a_clean_store(store):
    """No event, no generation, no write of the mirror."""
    generation = store.info().generation
    index = Path(store.root, "index.json").stat()
    assert store.check(CheckOptions(Level.FULL, repair=True)).findings == ()
    assert store.info().generation == generation
    assert Path(store.root, "index.json").stat() == index
    assert os.listdir(Path(store.root, "quarantine")) == []


def test_a_blob_that_nothing_refers_to(store, tmp_path):
    """Restoring what was removed meanwhile makes no row of it."""
    artifact = Artifact({"x": b"only here"})
    archive = artifact.oci_tar(tmp_path / "gone.tar", "gone:1")
    store.load(archive)
    damage.flip(path_of(store, artifact.below[1].digest))
    assert found(store.check()) == {"blob-damaged"}
    store.remove("gone:1")
    store.gc()
    assert restore(store, archive).findings == ()
    assert artifact.below[1].digest not in {str(blob.digest) for blob in store.blobs()}
