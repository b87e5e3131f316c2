"""Every archive of the corpus is taken or refused as its record says, and comes out again the same.

The archives are other people's; where they are absent the tests are skipped, saying so.
"""

from __future__ import annotations

import filecmp
import os
import threading

import pytest

from imgdb import ImgdbError
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
    """It loads as its record says; what is exported loads as the same, and exports as the same."""
    result = store.load(path_of(record))

    assert {name for name in named(store) if not is_dangling(name)} == records.names(record)
    if record.get("top"):
        check_layout(record, store)
    elif record["path"] not in records.UNREAD:
        check_docker_archive(record, store, result)

    store.export([], str(tmp_path / "out.tar"), every=True)
    other = new_store("other")
    other.load(str(tmp_path / "out.tar"))
    other.export([], str(tmp_path / "again.tar"), every=True)
    assert named(other) == named(store)
    assert filecmp.cmp(tmp_path / "out.tar", tmp_path / "again.tar", shallow=False)


def check_layout(record, store):
    """Indexes, images, attestations, artifacts, referrers, platforms and layers are those of the record."""
    tops = records.index_json(record)
    walk = records.Walk(store, tops)

    assert len(tops) == record["top"]
    assert walk.contents() == records.contents(record)
    check_kinds(store, walk)
    check_dangling(store, walk, {top["digest"] for top in tops})


def check_kinds(store, walk):
    """What is an image, an attestation or an artifact, in imgdb's own words."""
    kinds = {str(m.digest): m.kind for image in store.images() for m in image.manifests}
    present = {digest: kind for digest, kind in kinds.items() if digest in walk.present}
    if not walk.was_cut:
        assert present == {digest: walk.kinds[digest] for digest in present}
        # What no image lists is kept by the image that it is about.
        about = {digest for digest in walk.kinds if "subject" in walk.document(digest)}
        assert walk.kinds.keys() - present.keys() <= about


def check_dangling(store, walk, tops):
    """Each top without a usable name is an image all the same, but for referrers of what is here."""
    with_name = {digest for name, digest in named(store).items() if not is_dangling(name)}
    hanging = {
        digest
        for digest in (tops - with_name) & walk.present
        if walk.document(digest).get("subject", {}).get("digest") in walk.present
    }

    assert with_name <= tops
    assert {name for name in named(store) if is_dangling(name)} == {
        f"moby-dangling@{digest}" for digest in tops - with_name - hanging
    }


def check_docker_archive(record, store, result):
    """Each entry of manifest.json: its tags, its layers, its platform, and its config's digest."""
    found = []
    for image in result.images:
        inspected = store.inspect(str(image.digest))
        found.append((image.name, len(inspected["Layers"]), inspected["Os"], inspected["Architecture"]))

    # A tag that two entries have is the last one's.
    owners = {tag: entry["config"] for entry in record["docker"] for tag in entry["tags"] or ()}
    expected = []
    for entry in record["docker"]:
        system, _, machine = entry["platform"].partition("/")
        facts = (entry["layers"], *((system, machine) if machine else ("", "")))
        tags = [tag for tag in entry["tags"] or () if owners[tag] == entry["config"]]
        names = records.names({"names": tags, "path": record["path"]}) or {None}
        expected += [(name, *facts) for name in names]
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
