"""Rows that contradict the blobs or each other: each kind is found, and repaired from the blobs."""

# ruff: noqa: S608 - the statements are those of the tests

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from imgdb.check.report import KINDS, CheckOptions, Level, State
from imgdb.db import garbage
from imgdb.errors import RefusedError
from tests import damage
from tests.builder import Archive
from tests.damage import FULL, QUICK, REPAIR, Sample, finds, found, path_of, sql, states, without_triggers

OF = "(SELECT id FROM imgdb_blobs WHERE digest = :digest)"
EDGES = f"imgdb_descriptors WHERE parent_id = {OF}"


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


def test_every_kind_is_provoked():
    """No check that can't fail: each kind stands in a test above, as what it finds."""
    sources = [path.read_text() for path in Path(__file__).parent.glob("test_check*.py")]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    said = {
        argument.value
        for call in calls
        if getattr(call.func, "id", "") == "finds"
        for argument in call.args
        if isinstance(argument, ast.Constant)
    }
    assert said | {kind for kind, _ in ROWS.values()} == set(KINDS)
