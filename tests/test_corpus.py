"""Every archive of the corpus is taken or refused as its record says, and comes out again the same.

The archives are other people's; where they are absent the tests are skipped, saying so.
"""

from __future__ import annotations

import filecmp
import os
import threading

import pytest

from imgdb import ImgdbError
from imgdb.oci.platform import Platform
from tests import corpus_records as records

RECORDS = records.load_records()
ACCEPTED = [record for record in RECORDS if record["verdict"] == "accept"]
REJECTED = [record for record in RECORDS if record["verdict"] == "reject"]
LAYOUTS = [record for record in ACCEPTED if record.get("top")]
DOCKER = [record for record in ACCEPTED if record.get("docker") and not record.get("top")]
# Streams are archives; one in five keeps every kind and every compression.
PIPED = [record for record in RECORDS if record["form"].startswith("tar")][::5]


def each(found):
    """Parametrise a test by records."""
    absent = pytest.param(None, marks=pytest.mark.skip(f"no corpus of archives at {records.CORPUS}"))
    params = [pytest.param(record, id=record["path"]) for record in found]
    return pytest.mark.parametrize("record", params or [absent])


def path_of(record):
    """Where the archive is."""
    return str(records.CORPUS / record["path"])


def named(store):
    """Name to digest, of all images."""
    return {image.record.name: str(image.record.target.digest) for image in store.images()}


def is_dangling(name):
    """Whether a record's name stands for no name."""
    return name.startswith("moby-dangling@")


def test_the_corpus_is_complete():
    """As many records as there were when the decisions were made, none without a verdict."""
    if not RECORDS:
        pytest.skip(f"no corpus of archives at {records.CORPUS}")
    assert (len(ACCEPTED), len(REJECTED)) == (163, 145)
    assert len(LAYOUTS) + len(DOCKER) + len(records.UNREAD) == len(ACCEPTED)


@each(ACCEPTED)
def test_accepted(record, store, new_store, tmp_path):
    """It loads under exactly its names; what is exported loads as the same, and exports as the same."""
    store.load(path_of(record))

    assert {name for name in named(store) if not is_dangling(name)} == records.names(record)

    store.export([], str(tmp_path / "out.tar"), every=True)
    other = new_store("other")
    other.load(str(tmp_path / "out.tar"))
    other.export([], str(tmp_path / "again.tar"), every=True)

    assert named(other) == named(store)
    assert filecmp.cmp(tmp_path / "out.tar", tmp_path / "again.tar", shallow=False)


@each(LAYOUTS)
def test_content_of_layouts(record, store):
    """Indexes, images, attestations, artifacts, referrers, platforms and layers are those of the record."""
    store.load(path_of(record))
    tops = records.index_json(record)
    walk = records.Walk(store, tops)

    assert len(tops) == record["top"]
    expected = {key: record[key] for key in walk.record()}
    assert walk.record() == expected | {key: sorted(expected[key]) for key in ("platforms", "layers")}

    kinds = {
        str(manifest.digest): manifest.kind
        for image in store.images()
        for manifest in image.manifests
        if str(manifest.digest) in walk.present
    }
    assert kinds == {digest: walk.kinds[digest] for digest in kinds}
    # What no image lists is kept by the image that it is about.
    about = {digest for digest in walk.kinds if "subject" in walk.document(digest)}
    assert walk.kinds.keys() - kinds.keys() <= about


@each(LAYOUTS)
def test_what_has_no_name_is_dangling(record, store):
    """Each top without a usable name is an image all the same, but for referrers of what is here."""
    store.load(path_of(record))
    walk = records.Walk(store, records.index_json(record))
    tops = {top["digest"] for top in records.index_json(record)}
    with_name = {digest for name, digest in named(store).items() if not is_dangling(name)}
    unnamed = tops - with_name
    hanging = {
        digest
        for digest in unnamed & walk.present
        if walk.document(digest).get("subject", {}).get("digest") in walk.present
    }

    assert with_name <= tops
    assert {name for name in named(store) if is_dangling(name)} == {
        f"moby-dangling@{digest}" for digest in unnamed - hanging
    }


@each(DOCKER)
def test_content_of_docker_archives(record, store):
    """Each entry of manifest.json: its tags, its layers, its platform, and its config's digest."""
    result = store.load(path_of(record))
    # A tag that two entries have is the last one's.
    owners = {tag: entry["config"] for entry in record["docker"] for tag in entry["tags"] or ()}
    found = []
    for image in result.images:
        inspected = store.inspect(str(image.digest))
        found.append((image.name, len(inspected["Layers"]), inspected["Os"], inspected["Architecture"]))

    expected = []
    for entry in record["docker"]:
        platform = Platform.parse(entry["platform"]) if entry["platform"] != "none" else Platform("", "")
        tags = [tag for tag in entry["tags"] or () if owners[tag] == entry["config"]]
        for name in records.names({"names": tags, "path": record["path"]}) or {None}:
            expected.append((name, entry["layers"], platform.os, platform.architecture))
        if entry["config_digest_ok"]:
            hexdigits = entry["config"].rpartition("/")[2].removeprefix("sha256:").removesuffix(".json")
            assert store.resolve(hexdigits).target.digest in {image.digest for image in result.images}
    assert sorted(found, key=str) == sorted(expected, key=str)


@each(REJECTED)
def test_rejected(record, store):
    """One line says why, the exit code says what kind of trouble, and nothing stays."""
    with pytest.raises(ImgdbError) as error:
        store.load(path_of(record))

    assert error.value.exit_code == records.exit_code(record)
    assert str(error.value).startswith(f"{path_of(record)}: ")
    assert "\n" not in str(error.value)
    assert store.blobs() == []
    assert store.images() == []


@each(PIPED)
def test_through_a_pipe(record, store, new_store):
    """A stream that can't seek and comes in small pieces is read as the file is."""
    if record["verdict"] == "reject":
        with pytest.raises(ImgdbError) as error:
            load_through_pipe(store, path_of(record))
        assert error.value.exit_code == records.exit_code(record)
        assert store.blobs() == []
    else:
        load_through_pipe(store, path_of(record))
        other = new_store("other")
        other.load(path_of(record))
        assert named(store) == named(other)
        assert {(b.digest, b.size) for b in store.blobs()} == {(b.digest, b.size) for b in other.blobs()}


def load_through_pipe(store, path):
    """Load from a pipe that a thread fills."""
    reading, writing = os.pipe()

    def fill():
        with open(path, "rb") as source, open(writing, "wb", buffering=0) as out:
            try:
                while chunk := source.read(10_000):
                    out.write(chunk)
            except BrokenPipeError:
                pass  # refused before its end

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        with open(reading, "rb", buffering=0) as stream:
            store.load(stream)
    finally:
        thread.join()
