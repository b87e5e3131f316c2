# ruff: noqa: ARG005, S608 - one signature for all changes; SQL of nobody but this file
"""The checker that runs after every test notices each kind of thing that it is there to notice."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from imgdb import ImageStore
from tests.builder import Archive, Artifact, Image, Index
from tests.integrity import IntegrityError, check_store

IMAGE = Image([{"a": b"1"}, {"b": b"2"}])
INDEX = Index([IMAGE, Image(platform="linux/arm64")])


@pytest.fixture
def spoiled(store_template, tmp_path):
    """A store that no fixture checks."""
    root = shutil.copytree(store_template, tmp_path / "store")
    with ImageStore.open(root, durable=False) as store:
        archive = Archive().add(INDEX, "app:1").add(Artifact(subject=IMAGE)).add(Image(labels={"n": "1"}))
        store.load(archive.oci_tar(tmp_path / "a.tar"))
        check_store(store)
        yield store


def sql(store, statement):
    """Change rows behind imgdb's back, triggers and all else off that can be."""
    with contextlib.closing(sqlite3.connect(f"{store.root}/imgdb.db", isolation_level=None)) as db:
        triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            db.execute(f"DROP TRIGGER {name}")
        assert db.execute(statement).rowcount > 0
        for _, text in triggers:
            db.execute(text)


def of(digest):
    """A row's id, as a subquery."""
    return f"(SELECT id FROM imgdb_blobs WHERE digest = '{digest}')"


CHANGED_ROWS = {
    "counters": "UPDATE imgdb_blobs SET refcount = refcount + 1 WHERE kind = 'layer'",
    "counters (": f"DELETE FROM imgdb_images WHERE target_id = {of(INDEX.digest)}",
    "other edges": f"UPDATE imgdb_descriptors SET size = size + 1 WHERE parent_id = {of(IMAGE.digest)}",
    "other edges than": f"DELETE FROM imgdb_descriptors WHERE parent_id = {of(INDEX.digest)}",
    "in use and not expanded": f"UPDATE imgdb_blobs SET expanded = 0 WHERE digest = '{IMAGE.digest}'",
    "counted wrongly": "UPDATE imgdb_descriptors SET counted = 1 WHERE role = 'subject'",
    "counted wrongly: 0": "UPDATE imgdb_descriptors SET counted = 0 WHERE role = 'referrer'",
    "missing or too much": "DELETE FROM imgdb_descriptors WHERE role = 'referrer'",
    "has position": "UPDATE imgdb_descriptors SET position = position + 1000 WHERE role = 'referrer'",
    "other layers": "UPDATE imgdb_layers SET chain_id = diff_id WHERE position = 1",
    "its text is another": "UPDATE imgdb_documents SET json = json || ' '",
    "its text is not kept": "DELETE FROM imgdb_documents",
    "is no index": "UPDATE imgdb_blobs SET kind = 'index' WHERE kind = 'manifest'",
    "blake3 is another": "UPDATE imgdb_blobs SET blake3 = 'x'",
    "ctime is another": "UPDATE imgdb_blobs SET ctime_ns = 1",
    "file without a row": f"UPDATE imgdb_blobs SET present = 0 WHERE digest = '{IMAGE.config.digest}'",
    "the mirror has": "UPDATE imgdb_images SET name = name || 'x'",
    "history is open": "DELETE FROM imgdb_image_history",
    "lease left over": (
        "INSERT INTO imgdb_leases (id, created_at, flat, labels) VALUES ('mine', 1, 0, '{}')"
    ),
    "are no pair": "UPDATE imgdb_meta SET generation = generation + 1",
    "foreign key": "UPDATE imgdb_layers SET layer_id = 12345",
}


@pytest.mark.parametrize(("told", "statement"), CHANGED_ROWS.items(), ids=CHANGED_ROWS)
def test_changed_rows(spoiled, told, statement):
    """Each with the sentence that says which."""
    sql(spoiled, statement)
    with pytest.raises(IntegrityError) as error:
        check_store(spoiled)
    assert told.removesuffix(" (") in str(error.value)


def spoil(path):
    """Another last byte."""
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"~")


CHANGED_FILES = {
    "other bytes": lambda root, blob: spoil(blob),
    "has no file": lambda root, blob: blob.unlink(),
    "mode": lambda root, blob: blob.chmod(0o644),
    "file without a row": lambda root, blob: (blob.parent / ("0" * 64)).touch(),
    "left over: ingest/x": lambda root, blob: (root / "ingest/x").mkdir(),
    "left over: holds/x": lambda root, blob: (root / "holds/x").touch(),
    "stray file: x": lambda root, blob: (root / "x").touch(),
    "the mirror has": lambda root, blob: (root / "index.json").write_text('{"manifests": []}'),
    "are no pair": lambda root, blob: (root / "store.json").write_text('{"store_id": "x", "generation": 1}'),
}


@pytest.mark.parametrize(("told", "change"), CHANGED_FILES.items(), ids=CHANGED_FILES)
def test_changed_files(spoiled, told, change):
    """The same for what lies on disk."""
    root = Path(spoiled.root)
    change(root, root / "blobs" / "sha256" / IMAGE.config.digest[7:])
    with pytest.raises(IntegrityError, match=told):
        check_store(spoiled)


def test_what_is_expected(spoiled):
    """A test may say that it leaves a lease, or files of a crash."""
    sql(spoiled, CHANGED_ROWS["lease left over"])
    Path(spoiled.root, "blobs", "sha256", "0" * 64).touch()
    check_store(spoiled, leases=["mine"], garbage_files=True)
    os.unlink(os.path.join(spoiled.root, "blobs", "sha256", "0" * 64))
    with pytest.raises(IntegrityError, match="lease left over: other"):
        check_store(spoiled, leases=["mine", "other"])
