"""What a check reads, finds in blobs and files, remembers and leaves alone."""

from __future__ import annotations

import errno
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from imgdb.check.report import CheckOptions, Level, State
from imgdb.content.disk import DiskBlobStore
from imgdb.db.sql import now_us
from imgdb.errors import InvalidArgumentError, RefusedError
from imgdb.oci.digest import Digest
from imgdb.progress import Reporter
from tests import damage
from tests.builder import Image, Layer, noise
from tests.damage import FULL, GONE, QUICK, REPAIR, WRONG, Sample, finds, found, path_of, sql, states


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


@pytest.mark.parametrize("level", Level)
def test_a_whole_store_is_clean(store, sample, level):
    """Nothing is found, and beside QUICK every byte was read and remembered as verified."""
    before = now_us()
    report = store.check(CheckOptions(level))
    assert (report.findings, report.complete, report.blobs) == ((), True, len(sample.blobs))
    if level is Level.QUICK:
        assert (report.verified, report.read_bytes) == (0, 0)
    else:
        assert report.verified == report.blobs
        assert report.read_bytes == sum(blob.size for blob in sample.blobs.values())
        assert report.oldest_verified_at >= before


def test_an_empty_store_is_clean(new_store):
    """There is nothing to read."""
    report = new_store().check(FULL)
    assert (report.findings, report.blobs, report.oldest_verified_at) == ((), 0, None)


# -- bytes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [*WRONG, *GONE], ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("level", [Level.DEFAULT, Level.FULL])
def test_spoiled_layers(store, sample, spoil, level):
    """Found with the images that they concern; set aside; healed by importing the image again."""
    spoil(path_of(store, sample.layer.digest))
    kinds = finds("blob-damaged") if spoil in WRONG else finds("blob-missing")
    report = store.check(CheckOptions(level))
    assert found(report) == kinds
    (finding,) = report.damage
    assert (str(finding.digest), finding.images) == (sample.layer.digest, ("app:1", "one:1"))
    assert found(store.check(CheckOptions(level))) == kinds  # as often as it is asked
    report = store.check(CheckOptions(level, repair=True))
    assert (found(report), states(report)) == (kinds, {State.SET_ASIDE})
    assert not os.path.lexists(path_of(store, sample.layer.digest))
    assert found(store.check()) == finds("blob-lost")
    assert found(store.check(REPAIR)) == {"blob-lost"}
    store.load(sample.archive)
    assert store.check(FULL).damage == ()


@pytest.mark.parametrize("spoil", [damage.truncate, damage.grow, *GONE], ids=lambda spoil: spoil.__name__)
def test_quick_looks_at_sizes(store, sample, spoil):
    """Without reading what is right."""
    spoil(path_of(store, sample.layer.digest))
    report = store.check(QUICK)
    assert found(report) == {"blob-missing"} if spoil in GONE else {"blob-damaged"}
    assert report.read_bytes <= sample.layer.size + 1
    assert found(store.check(REPAIR)) >= found(report)
    store.load(sample.archive)


def test_quick_does_not_see_flipped_bits(store, sample):
    """That is what makes it quick; the next deeper check does."""
    damage.flip(path_of(store, sample.layer.digest))
    assert store.check(QUICK).findings == ()
    assert found(store.check()) == {"blob-damaged"}
    assert found(store.check(QUICK)) == {"blob-damaged"}  # it is remembered
    store.load(sample.archive)


@pytest.mark.parametrize("level", [Level.DEFAULT, Level.FULL])
def test_every_flipped_bit_is_found(store, sample, level):
    """Three random bits of each blob."""
    chance = random.Random(1)  # noqa: S311 - reproducible, nothing secret
    for digest, blob in sorted(sample.blobs.items()):
        for _ in range(3):
            path = path_of(store, digest)
            bit = chance.randrange(blob.size * 8)
            damage.flip(path, bit)
            damaged = {str(f.digest) for f in store.check(CheckOptions(level)).damage if f.digest}
            assert damaged == {digest}, bit
            damage.flip(path, bit)
            report = store.check(REPAIR)
            assert (found(report), states(report)) == (finds("mark-wrong"), {State.REPAIRED})


def test_damage_that_blake3_was_taken_of(store, sample):
    """The full check believes no row: a checksum of the wrong bytes does not hide them."""
    damage.flip(path_of(store, sample.layer.digest))
    wrong = store._blobs.blake3(Digest.parse(sample.layer.digest))
    sql(
        store,
        "UPDATE imgdb_blobs SET blake3 = :wrong WHERE digest = :digest",
        wrong=wrong,
        digest=sample.layer.digest,
    )
    assert store.check().findings == ()
    assert found(store.check(FULL)) == {"blob-damaged"}
    store.load(sample.archive)
    assert store.check(FULL).findings == ()


def test_blobs_without_blake3_get_one(store, sample):
    """They are verified by their digest, and from then on by blake3."""
    sql(store, "UPDATE imgdb_blobs SET blake3 = NULL, verified_at = NULL, ctime_ns = NULL")
    damage.flip(path_of(store, sample.layer.digest))
    assert found(store.check()) == {"blob-damaged"}
    with damage.shell(store) as connection:
        lacking = connection.execute(
            "SELECT digest FROM imgdb_blobs WHERE blake3 IS NULL OR ctime_ns IS NULL"
        )
        assert lacking.fetchall() == [(sample.layer.digest,)]
    store.load(sample.archive)


def test_unreadable_blobs(store, sample, monkeypatch):
    """A bad sector is told from wrong bytes, and the file stays where it is."""
    real = DiskBlobStore.open

    def broken(self, digest):
        if str(digest) == sample.layer.digest:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, digest)

    monkeypatch.setattr(DiskBlobStore, "open", broken)
    report = store.check(REPAIR)
    assert (found(report), states(report)) == (finds("blob-unreadable"), {State.FOUND})
    assert report.damage[0].detail == "Input/output error"
    monkeypatch.undo()
    assert found(store.check(REPAIR)) == {"mark-wrong"}
    assert store.check().findings == ()


# -- notes -----------------------------------------------------------------------------------------


def test_orphans_and_foreign_files_are_notes(store):
    """They are left alone, also by a repair, and the store counts as clean."""
    data = b"nobody knows me"
    orphan = path_of(store, Digest.of(data))
    orphan.write_bytes(data)
    foreign = orphan.with_name("README")
    foreign.write_bytes(b"?")
    for options in (CheckOptions(), QUICK, REPAIR):
        report = store.check(options)
        assert found(report, notes=True) == finds("orphan-file", "foreign-file")
        assert report.damage == ()
    assert orphan.read_bytes() == data
    foreign.unlink()
    orphan.unlink()


def test_a_wanted_orphan_with_other_bytes(store, sample):
    """It is not what the row misses; a repair moves it away, so that no import is taken in by it."""
    sql(
        store,
        "UPDATE imgdb_blobs SET present = 0 WHERE digest = :digest",
        "DELETE FROM imgdb_doomed",
        digest=sample.layer.digest,
    )
    damage.flip(path_of(store, sample.layer.digest))
    report = store.check(REPAIR)
    assert (found(report), found(report, notes=True)) == (set(), {"orphan-file", "quarantined"})
    assert not path_of(store, sample.layer.digest).exists()
    store.load(sample.archive)
    assert found(store.check(FULL), notes=True) == {"quarantined"}


def test_quarantined_bytes_are_a_note(store, sample):
    """Until somebody removes them; they are the evidence."""
    damage.flip(path_of(store, sample.layer.digest))
    store.check(REPAIR)
    store.load(sample.archive)
    report = store.check()
    assert found(report, notes=True) == finds("quarantined")
    (note,) = report.findings
    os.unlink(note.subject)
    assert store.check().findings == ()


def test_snapshots(store):
    """A row without a directory is damage, a directory without a row a note."""
    columns = "id, key, kind, labels, refcount, created_at, updated_at"
    values = "7, 'base', 'committed', '{}', 0, 1, 1"
    sql(store, f"INSERT INTO imgdb_snapshots ({columns}) VALUES ({values})")  # noqa: S608 - of this test
    folder = Path(store.root, "snapshots")
    (folder / "8" / "fs").mkdir(parents=True)
    report = store.check(QUICK)
    assert found(report) == finds("snapshot-missing")
    assert found(report, notes=True) == finds("snapshot-orphan")
    (folder / "7").mkdir()
    (folder / "8").rename(folder / "unpacking")
    assert store.check(QUICK).findings == ()
    sql(store, "UPDATE imgdb_snapshots SET refcount = 3")
    assert found(store.check(QUICK)) == {"counter-wrong"}
    assert store.check(REPAIR).damage == ()
    sql(store, "DELETE FROM imgdb_snapshots")
    shutil.rmtree(folder)


# -- slices ----------------------------------------------------------------------------------------


@pytest.fixture
def large(new_store, tmp_path):
    """A store with some blobs of 100 kB, that nobody ever verified."""
    store = new_store()
    image = Image([Layer(noise(100_000, seed), compression="none") for seed in range(6)])
    store.load(image.oci_tar(tmp_path / "large.tar", "large:1"))
    sql(store, "UPDATE imgdb_blobs SET verified_at = NULL, ctime_ns = NULL")
    return store


def test_slices_cover_a_store(large):
    """Each check goes on where the last one stopped, makes progress in no time, and none reads twice."""
    started = now_us()
    verified, runs = 0, 0
    report = None
    while report is None or not report.complete:
        report = large.check(CheckOptions(rate=400_000, time_limit_s=0.05))
        assert (report.damage, report.verified > 0) == ((), True)
        if report.oldest_verified_at is not None:
            break
        verified, runs = verified + report.verified, runs + 1
        assert report.left == report.blobs - report.verified
    assert report.oldest_verified_at >= started
    assert runs > 1
    # The slice that finishes the round goes on with the oldest of it while it has time.
    assert verified + report.verified >= report.blobs > verified


def test_the_rate(large):
    """Reading takes as long as it says, and is counted."""
    started = time.monotonic()
    report = large.check(CheckOptions(rate=1_000_000))
    took = time.monotonic() - started
    assert report.complete
    assert report.read_bytes > 600_000
    assert took >= report.read_bytes / 1_000_000 * 0.9


def test_a_long_blob_ends_a_limited_check(large):
    """The time limit counts within a blob too, once another was verified."""
    started = time.monotonic()
    report = large.check(CheckOptions(rate=100_000, time_limit_s=0.5))
    assert not report.complete
    assert time.monotonic() - started < 4


def test_progress(large):
    """The reporter hears every blob and every byte."""

    class Heard(Reporter):
        phases: dict[str, int] = {}  # noqa: RUF012 - of this test alone
        blobs = 0

        def start(self, phase, total=None):
            self.phases[phase] = total

        def blob(self, name, size):
            self.blobs += bool(name) and size >= 0

        def advance(self, count):
            self.phases["read"] = self.phases.get("read", 0) + count

    heard = Heard()
    report = large.check(reporter=heard)
    assert heard.phases == {"files": None, "verify": report.read_bytes, "read": report.read_bytes}
    assert heard.blobs == report.verified


@pytest.mark.parametrize("options", [{"rate": 0}, {"rate": -1}, {"time_limit_s": -1}])
def test_options_that_make_no_sense(options):
    """They are refused before anything is read."""
    with pytest.raises(InvalidArgumentError):
        CheckOptions(**options)


def test_another_users_store(store, sample, monkeypatch):
    """It is looked at, nothing is written, and repairing it is refused."""
    damage.flip(path_of(store, sample.layer.digest))
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    before = damage.tables(store.root)
    assert found(store.check()) == {"blob-damaged"}
    assert damage.tables(store.root) == before
    with pytest.raises(RefusedError, match="sudo -u"):
        store.check(REPAIR)
    monkeypatch.undo()
    store.check()
    store.load(sample.archive)
