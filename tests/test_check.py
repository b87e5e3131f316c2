"""Every kind of finding, provoked by hand; what a check reads, remembers and leaves alone."""

# ruff: noqa: S608 - the statements are those of the tests

from __future__ import annotations

import ast
import errno
import os
import random
import time
from pathlib import Path

import pytest

from imgdb.check.report import KINDS, CheckOptions, Level, State
from imgdb.content.disk import DiskBlobStore
from imgdb.db import garbage
from imgdb.db.sql import now_us
from imgdb.errors import InvalidArgumentError, RefusedError
from imgdb.oci.digest import Digest
from imgdb.progress import Reporter
from tests import damage
from tests.builder import Archive, Image, Layer, noise
from tests.damage import Sample, path_of, sql, without_triggers

REPAIR = CheckOptions(repair=True)
QUICK = CheckOptions(Level.QUICK)
FULL = CheckOptions(Level.FULL)
OF = "(SELECT id FROM imgdb_blobs WHERE digest = :digest)"
EDGES = f"imgdb_descriptors WHERE parent_id = {OF}"


def finds(*kinds):
    """The ids; `test_every_kind_is_provoked` looks for calls of this."""
    return set(kinds)


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


def found(report, *, notes=False):
    """Ids of the findings, or of the notes."""
    return {finding.id for finding in report.findings if finding.is_note == notes}


def states(report):
    """States of the findings."""
    return {finding.state for finding in report.findings if not finding.is_note}


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

WRONG = (damage.flip, damage.truncate, damage.empty, damage.grow)
GONE = (damage.delete, damage.to_directory, damage.to_symlink, damage.to_fifo)


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


# -- rows ------------------------------------------------------------------------------------------

EDGE = "INSERT INTO imgdb_descriptors (parent_id, role, position, counted, child_id, media_type, size)"
LAYER = "INSERT INTO imgdb_layers (manifest_id, position, layer_id)"
IMAGE = "imgdb_images WHERE name LIKE '%/app:1'"
ROWS = {
    "counter-high": ("counter-wrong", "UPDATE imgdb_blobs SET refcount = refcount + 7"),
    "counter-zero": ("counter-wrong", "UPDATE imgdb_blobs SET refcount = 0 WHERE digest = :digest"),
    "counter-flat": ("counter-wrong", "UPDATE imgdb_blobs SET flat_refcount = 1 WHERE digest = :digest"),
    "edge-missing": ("edges-wrong", f"DELETE FROM {EDGES} AND role = 'layer' AND position = 1"),
    "edge-config-missing": ("edges-wrong", f"DELETE FROM {EDGES} AND role = 'config'"),
    "edge-child": (
        "edges-wrong",
        f"UPDATE imgdb_descriptors SET child_id = 1 WHERE parent_id = {OF} AND role || position = 'layer1'",
    ),
    "edge-size": (
        "edges-wrong",
        f"UPDATE imgdb_descriptors SET size = size + 1 WHERE parent_id = {OF} AND role = 'layer'",
    ),
    "edge-type": (
        "edges-wrong",
        f"UPDATE imgdb_descriptors SET media_type = 'x' WHERE parent_id = {OF} AND role = 'config'",
    ),
    "edge-note": (
        "edges-wrong",
        f'UPDATE imgdb_descriptors SET annotations = \'{{"a": "b"}}\' WHERE parent_id = {OF}',
    ),
    "edge-uncounted": ("edges-wrong", f"UPDATE imgdb_descriptors SET counted = 0 WHERE parent_id = {OF}"),
    "edge-extra": (
        "edges-wrong",
        f"{EDGE} SELECT {OF}, 'layer', 9, 1, max(id), 'x', 1 FROM imgdb_blobs",
    ),
    "edge-of-a-layer": (
        "edges-wrong",
        f"{EDGE} SELECT min(id), 'layer', 0, 1, max(id), 'x', 1 FROM imgdb_blobs WHERE kind = 'layer'",
    ),
    "layer-missing": ("layers-wrong", f"DELETE FROM imgdb_layers WHERE manifest_id = {OF} AND position = 0"),
    "layer-diff-id": ("layers-wrong", f"UPDATE imgdb_layers SET diff_id = chain_id WHERE manifest_id = {OF}"),
    "layer-diff-id-lost": (
        "layers-wrong",
        f"UPDATE imgdb_layers SET diff_id = NULL WHERE manifest_id = {OF}",
    ),
    "layer-extra": (
        "layers-wrong",
        f"{LAYER} SELECT {OF}, 5, max(id) FROM imgdb_blobs",
    ),
    "text-other": ("text-wrong", f"UPDATE imgdb_documents SET json = '{{}}' WHERE blob_id = {OF}"),
    "text-missing": ("text-wrong", "DELETE FROM imgdb_documents"),
    "row-size": ("row-wrong", "UPDATE imgdb_blobs SET size = size + 1 WHERE kind = 'layer'"),
    "row-blake3": ("row-wrong", "UPDATE imgdb_blobs SET blake3 = 'beef'"),
    "row-kind": ("row-wrong", "UPDATE imgdb_blobs SET kind = 'layer' WHERE digest = :digest"),
    "row-kind-index": ("row-wrong", "UPDATE imgdb_blobs SET kind = 'index' WHERE digest = :digest"),
    "row-kind-of-a-layer": ("row-wrong", "UPDATE imgdb_blobs SET kind = 'manifest' WHERE kind = 'layer'"),
    "row-type": ("row-wrong", "UPDATE imgdb_blobs SET media_type = 'x' WHERE digest = :digest"),
    "row-expanded": ("row-wrong", "UPDATE imgdb_blobs SET expanded = 1 WHERE kind = 'layer'"),
    "referrer-missing": ("referrers-wrong", "DELETE FROM imgdb_descriptors WHERE role = 'referrer'"),
    "referrer-uncounted": (
        "referrers-wrong",
        "UPDATE imgdb_descriptors SET counted = 0 WHERE role = 'referrer'",
    ),
    "referrer-position": (
        "referrers-wrong",
        "UPDATE imgdb_descriptors SET position = 999 WHERE role = 'referrer'",
    ),
    "referrer-extra": (
        "referrers-wrong",
        f"{EDGE} SELECT {OF}, 'referrer', max(id), 1, max(id), 'x', 1 FROM imgdb_blobs",
    ),
    "image-size": ("image-wrong", f"UPDATE {IMAGE.replace(' WHERE', ' SET size = 1 WHERE')}"),
    "image-type": (
        "image-wrong",
        "UPDATE imgdb_images SET media_type = 'application/vnd.oci.image.manifest.v1+json'",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_wrong_rows(store, sample, case):
    """Each is found under its id, repaired from the blobs, and then nothing is found any more."""
    kind, statement = ROWS[case]
    before = damage.tables(store.root)
    sql(store, statement, digest=sample.image.digest)
    assert kind in found(store.check(FULL))
    report = store.check(CheckOptions(Level.FULL, repair=True))
    assert (states(report), report.damage) == ({State.REPAIRED}, ())
    assert store.check(FULL).findings == ()
    assert damage.tables(store.root) == before


@pytest.mark.parametrize("case", ROWS)
def test_wrong_rows_behind_the_triggers(store, sample, case):
    """The same, with counters that did not follow: repairing them must not run into the database's checks."""
    _, statement = ROWS[case]
    before = damage.tables(store.root)
    without_triggers(store, statement, digest=sample.image.digest)
    assert store.check(CheckOptions(repair=True)).damage == ()
    assert store.check(FULL).findings == ()
    assert damage.tables(store.root) == before


def test_unexpanded_documents(store, sample):
    """What an index leads to is expanded level by level, and gc can run again."""
    before = damage.tables(store.root)
    sql(
        store,
        "DELETE FROM imgdb_layers",
        "DELETE FROM imgdb_descriptors",
        "UPDATE imgdb_blobs SET expanded = 0",
    )
    with pytest.raises(RefusedError, match="check --repair"):
        store.gc()
    assert found(store.check(QUICK)) == finds("document-unexpanded")
    report = store.check(CheckOptions(Level.QUICK, repair=True))
    assert report.damage == ()
    # Signatures hang on nothing but their own bytes, which only a deeper check reads.
    store.check(REPAIR)
    store.load(sample.archive)
    assert damage.tables(store.root) == before
    assert store.gc().freed == {}


def test_absent_platforms_are_no_finding(new_store, tmp_path, sample):
    """An index of which one image is here is whole, and so is a foreign layer that was never here."""
    store = new_store()
    partial = Archive().add(sample.index, "app:1")
    gone = {blob.digest for blob in sample.other.blobs().values()} - {sample.layer.digest}
    store.load(partial.oci_tar(tmp_path / "partial.tar", without=gone))
    assert store.check(FULL).findings == ()
    assert store.check(CheckOptions(Level.FULL, repair=True)).findings == ()


def test_unrecorded_blobs(store, sample):
    """A file that a row calls absent is taken for it again, a document with its references."""
    before = damage.tables(store.root)
    for digest in (sample.layer.digest, sample.image.config.digest, sample.other.digest):
        sql(
            store,
            "UPDATE imgdb_blobs SET present = 0 WHERE digest = :digest",
            "DELETE FROM imgdb_doomed",
            digest=digest,
        )
    assert found(store.check()) == finds("blob-unrecorded")
    report = store.check(REPAIR)
    assert (found(report), states(report)) == ({"blob-unrecorded"}, {State.REPAIRED})
    assert store.check(FULL).findings == ()
    assert damage.tables(store.root) == before


def test_files_that_wait_to_be_swept_are_no_finding(store, sample):
    """Neither after rm, nor where a killed import's hold lists them."""
    store.remove("one:1")
    store.remove("app:1")
    while store._write(lambda connection: garbage.collect(connection, 100)):
        pass
    assert store.check(FULL).findings == ()
    assert len(store.gc().freed) == len(sample.blobs)


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
    sql(store, f"INSERT INTO imgdb_snapshots ({columns}) VALUES (7, 'base', 'committed', '{{}}', 0, 1, 1)")
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


# -- the database as a whole -----------------------------------------------------------------------


def test_the_mirror(store):
    """A mirror that lacks a name, has one too many or is torn is written anew."""
    index = Path(store.root, "index.json")
    right = index.read_bytes()
    for wrong in (right.replace(b"app:1", b"app:2"), right[:-20], b'{"schemaVersion":2,"manifests":[]}'):
        index.write_bytes(wrong)
        assert found(store.check(QUICK)) == finds("mirror-stale")
        report = store.check(CheckOptions(Level.QUICK, repair=True))
        assert (found(report), report.damage) == ({"mirror-stale"}, ())
        assert store.check(QUICK).findings == ()


@pytest.mark.parametrize(
    ("statement", "mended"),
    [
        (
            f"{EDGE} VALUES ({OF}, 'layer', 7, 1, 12345, 'x', 1)",
            True,
        ),
        (f"UPDATE imgdb_descriptors SET child_id = 12345 WHERE parent_id = {OF}", True),
        (f"{LAYER} VALUES (12345, 0, 12346)", True),
        ("INSERT INTO imgdb_documents (blob_id, json) VALUES (12345, '{}')", True),
        (f"UPDATE {IMAGE.replace(' WHERE', ' SET target_id = 12345 WHERE')}", False),
    ],
)
def test_broken_references(new_store, sample, statement, mended):
    """Derived rows are derived again; a name without a target needs the mirror."""
    store = new_store()
    store.load(sample.archive)
    without_triggers(store, statement, digest=sample.image.digest)
    assert found(store.check(QUICK)) >= finds("reference-broken")
    report = store.check(REPAIR)
    assert ("reference-broken" in {finding.id for finding in report.damage}) != mended
    if mended:
        assert store.check(FULL).findings == ()
    else:
        sql(
            store,
            f"UPDATE {IMAGE.replace(' WHERE', f' SET target_id = {OF} WHERE')}",
            digest=sample.index.digest,
        )


def test_a_view_and_a_trigger(store):
    """Changed or lost ones are found; without its triggers nothing is written."""
    sql(store, "DROP VIEW imgdb_v1_images", "CREATE VIEW imgdb_v1_images AS SELECT 1")
    with damage.shell(store) as connection:
        name = "imgdb_tr_images_count_insert"
        (statement,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", [name]).fetchone()
        connection.execute(f"DROP TRIGGER {name}")
    report = store.check()
    assert found(report) == finds("schema-wrong")
    assert [finding.subject for finding in report.findings] == [name, "imgdb_v1_images"]
    assert report.findings[0].remedy == "run imgdb db upgrade"
    with pytest.raises(RefusedError, match="db upgrade"):
        store.check(REPAIR)
    sql(store, statement)


@pytest.mark.parametrize("change", ["store_id = 'another'", "generation = 0"])
def test_another_or_an_older_database(new_store, sample, change):
    """Looking is possible, nothing is written, and the message names the way out."""
    store = new_store()
    store.load(sample.archive)
    with damage.shell(store) as connection:
        (meta,) = connection.execute("SELECT store_id, generation FROM imgdb_meta").fetchall()
        verified = connection.execute("SELECT verified_at FROM imgdb_blobs").fetchall()
        connection.execute(f"UPDATE imgdb_meta SET {change}")
        damage.flip(path_of(store, sample.layer.digest))
        report = store.check()
        assert found(report) == finds("pair-mismatch") | {"blob-damaged"}
        assert "imgdb db rebuild" in report.damage[0].remedy
        with pytest.raises(RefusedError, match="imgdb db rebuild"):
            store.check(REPAIR)
        assert connection.execute("SELECT verified_at FROM imgdb_blobs").fetchall() == verified
        connection.execute("UPDATE imgdb_meta SET store_id = ?, generation = ?", meta)
    damage.flip(path_of(store, sample.layer.digest))
    assert store.check().findings == ()


def test_a_damaged_database(new_store, sample):
    """What SQLite itself finds comes alone: rows that can't be trusted are not compared."""
    store = new_store()
    store.load(sample.archive)
    store.close()
    right = damage.spoil_index(store.root)
    try:
        report = store.check()
        assert found(report) == finds("database-damaged")
        assert all("imgdb_descriptors" in finding.detail for finding in report.findings)
    finally:
        store.close()
        Path(store.root, "imgdb.db").write_bytes(right)


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


def test_every_kind_is_provoked():
    """No check that can't fail: each kind stands in a test above, as what it finds."""
    calls = [node for node in ast.walk(ast.parse(Path(__file__).read_text())) if isinstance(node, ast.Call)]
    said = {
        argument.value
        for call in calls
        if getattr(call.func, "id", "") == "finds"
        for argument in call.args
        if isinstance(argument, ast.Constant)
    }
    assert said | {kind for kind, _ in ROWS.values()} == set(KINDS)
