"""Which names a removal takes: the table of specification §8.1, and what it leads to."""

from __future__ import annotations

import pytest

from imgdb.errors import ConflictError, InvalidArgumentError, NotFoundError
from tests.builder import Archive, Artifact, Image, Index
from tests.looking import digests, names, present

LIBRARY = "docker.io/library"
IMAGE = Image()
D = IMAGE.digest
OTHER = Image(labels={"other": "1"})


def load(store, tmp_path, *given, image=IMAGE):
    """One image under canonical names; short ones are completed."""
    full = [f"{LIBRARY}/{name}" for name in given]
    store.load(image.oci_tar(tmp_path / "a.tar", *full))


def left(store):
    """Names of `IMAGE`, without docker.io/library."""
    return {name.removeprefix(f"{LIBRARY}/") for name, digest in names(store).items() if digest == D}


TABLE = {
    "justoneimage": ("justoneimage", ["justoneimage:latest"], []),
    "justoneref": ("justoneref", ["justoneref:latest", "differentrepo:latest"], ["differentrepo:latest"]),
    "hasdigest": ("hasdigest", ["hasdigest:latest", f"hasdigest@{D}"], []),
    "digest": (D, ["byid:latest", f"byid@{D}"], []),
    "bydigest": (f"bydigest@{D}", ["bydigest:latest", f"bydigest@{D}"], []),
    "onerefoftwo": (
        "onerefoftwo",
        ["onerefoftwo:latest", "onerefoftwo:other", f"onerefoftwo@{D}"],
        ["onerefoftwo:other", f"onerefoftwo@{D}"],
    ),
    "otherreporemaining": (
        "otherreporemaining",
        ["otherreporemaining:latest", f"otherreporemaining@{D}", "someotherrepo:latest"],
        ["someotherrepo:latest"],
    ),
    "repoanddigest": (
        f"repoanddigest@{D}",
        ["repoanddigest:latest", f"repoanddigest:latest@{D}", "someotherrepo:latest"],
        ["someotherrepo:latest"],
    ),
    "repoanddigestothertags": (
        f"repoanddigestothertags@{D}",
        [
            "repoanddigestothertags:v1",
            f"repoanddigestothertags:v1@{D}",
            "repoanddigestothertags:v2",
            f"repoanddigestothertags:v2@{D}",
            "someotherrepo:latest",
        ],
        ["someotherrepo:latest"],
    ),
}


@pytest.mark.parametrize(("argument", "start", "remaining"), TABLE.values(), ids=TABLE)
def test_table(store, tmp_path, argument, start, remaining):
    """The upstream cases: starting records, argument, remaining records; another image is untouched."""
    load(store, tmp_path, "unrelated:latest", image=OTHER)
    load(store, tmp_path, *start)
    removal = store.remove(argument)

    assert left(store) == set(remaining)
    assert {record.name.removeprefix(f"{LIBRARY}/") for record in removal.records} == set(start) - set(
        remaining
    )
    assert (str(removal.target), removal.deletes) == (D, not remaining)
    assert names(store)[f"{LIBRARY}/unrelated:latest"] == OTHER.digest


def test_nothing_there(store, tmp_path):
    """The message has the name in full."""
    load(store, tmp_path, "app:1")
    with pytest.raises(NotFoundError, match=r"No such image: nothingthere:latest$"):
        store.remove("nothingthere")
    with pytest.raises(InvalidArgumentError):
        store.remove("NO NAME")
    assert left(store) == {"app:1"}


def test_repo_and_digest_zero_case(store, tmp_path):
    """The digest is here, but not in that repository: nothing is changed."""
    load(store, tmp_path, "someotherrepo:latest")
    with pytest.raises(NotFoundError, match="No such image: repoanddigestzerocase"):
        store.remove(f"repoanddigestzerocase@{D}")
    assert left(store) == {"someotherrepo:latest"}


def test_an_id_with_several_tags(store, tmp_path):
    """One repository: all tags go. Several: only by force."""
    load(store, tmp_path, "app:1", "other:1")
    for argument in (D, D[7:19]):
        with pytest.raises(
            ConflictError, match=r"must be forced.*referenced in multiple repositories"
        ) as error:
            store.remove(argument)
        assert error.value.exit_code == 4
    assert left(store) == {"app:1", "other:1"}
    assert store.remove(D[7:19], force=True).deletes
    assert left(store) == set()


def test_an_id_with_several_tags_of_one_repository(store, tmp_path):
    """Docker asks for force here as well, since tags differ."""
    load(store, tmp_path, "app:1", "app:2")
    with pytest.raises(ConflictError):
        store.remove(D)
    store.remove(D, force=True)
    assert left(store) == set()


def test_a_dangling_image(store, tmp_path):
    """By its ID, short or full, or by its record's own name."""
    for argument in (D, D[7:17], f"moby-dangling@{D}"):
        load(store, tmp_path)
        assert left(store) == {f"moby-dangling@{D}"}
        assert store.remove(argument).deletes
        assert names(store) == {}


def test_a_config_digest(store, tmp_path):
    """What docker's graph store calls the image ID."""
    load(store, tmp_path, "app:1")
    assert store.remove(IMAGE.config.digest[7:19]).deletes
    assert names(store) == {}


def test_untag_and_delete_are_events(store, tmp_path):
    """`untag` for each name, `delete` with the last one."""
    load(store, tmp_path, "app:1", "app:2")
    store.remove("app:1")
    store.remove("app:2")
    assert [(event.action, event.actor, event.name) for event in store.events()][2:] == [
        ("untag", D, f"{LIBRARY}/app:1"),
        ("untag", D, f"{LIBRARY}/app:2"),
        ("delete", D, None),
    ]


def test_counters_follow(store, tmp_path):
    """What a removal makes garbage has no references left; what another image shares keeps its own."""
    shared = IMAGE.layers[0].blob().digest
    store.load(Archive().add(Index([IMAGE]), "app:1").add(OTHER, "app:2").oci_tar(tmp_path / "a.tar"))
    assert store.blob(shared).refcount == 2
    store.remove("app:1")
    counts = {str(blob.digest): blob.refcount for blob in store.blobs()}
    assert counts[Index([IMAGE]).digest] == 0
    assert all(counts[digest] > 0 for digest in digests(OTHER))


def test_a_removed_image_comes_back(store, tmp_path):
    """Its rows may be garbage still, or gone: an import makes it whole, referrers included."""
    about = Artifact(subject=IMAGE)
    archive = Archive().add(IMAGE, "app:1").add(about)
    path = archive.oci_tar(tmp_path / "a.tar")
    store.load(path)
    store.remove("app:1")
    store.load(path)
    assert names(store) == {f"{LIBRARY}/app:1": D}
    assert present(store) == digests(IMAGE, about)
    assert store.inspect("app:1")["Referrers"] == [about.digest]
