"""From what a user typed, or an archive says, to names and back: specification §1.4 to §1.7."""

from __future__ import annotations

import pytest

from imgdb import ImportOptions
from imgdb.db import engine, naming
from imgdb.errors import InvalidArgumentError, NotFoundError
from imgdb.progress import Reporter
from tests.builder import Archive, Artifact, Image, Index, write_tar
from tests.looking import names

LIBRARY = "docker.io/library"


def numbered(count, text=""):
    """Different images."""
    return [Image(labels={"n": f"{text}{n}"}) for n in range(count)]


def beginning_with(prefix):
    """An image whose digest begins with these hex digits."""
    return next(
        image
        for n in range(1 << 20)
        if (image := Image([], labels={"n": str(n)})).digest.startswith(f"sha256:{prefix}")
    )


def load(store, tmp_path, *pairs):
    """Images under names, in one archive."""
    archive = Archive()
    for image, *given in pairs:
        archive.add(image, *given)
    return store.load(archive.oci_tar(tmp_path / "names.tar"))


def resolved(store, argument):
    """Name and digest of what an argument means."""
    record = store.resolve(argument)
    return record.name, str(record.target.digest)


# -- §1.4: one image -------------------------------------------------------------------------------


def test_resolve_names(store, tmp_path):
    """Familiar or canonical, `:latest` when bare, exactly."""
    one, two = numbered(2)
    load(store, tmp_path, (one, "busybox:latest"), (two, "example.org:5000/team/app:1.0"))
    for argument in ("busybox", "busybox:latest", "docker.io/busybox", "index.docker.io/library/busybox"):
        assert resolved(store, argument) == (f"{LIBRARY}/busybox:latest", one.digest)
    assert resolved(store, "example.org:5000/team/app:1.0")[1] == two.digest
    for argument in ("example.org:5000/team/app", "busybox:1", "library/busybox/x", "app:1.0"):
        with pytest.raises(NotFoundError, match="No such image"):
            store.resolve(argument)
    with pytest.raises(NotFoundError, match=r"No such image: team/other:latest$"):
        store.resolve("team/other")


def test_resolve_ids(store, tmp_path):
    """Full and short, with `sha256:` and without; four digits at least."""
    (image,) = numbered(1)
    load(store, tmp_path, (image, "app:1"))
    digits = image.digest[7:]
    for argument in (image.digest, digits, digits[:12], f"sha256:{digits[:12]}", digits[:4], digits[:63]):
        assert resolved(store, argument)[1] == image.digest
    for argument in (digits[:3], digits[:11] + "x", digits[1:13], digits + "0"):
        with pytest.raises(NotFoundError):
            store.resolve(argument)


def test_resolve_a_name_with_a_digest(store, tmp_path):
    """The digest decides, and the repository must have it."""
    one, two = numbered(2)
    load(store, tmp_path, (one, "app:1", "app:2", "other:1"), (two, "app:3"))
    assert resolved(store, f"app@{one.digest}") == (f"{LIBRARY}/app:1", one.digest)
    assert resolved(store, f"app:nothere@{one.digest}")[1] == one.digest
    assert resolved(store, f"other@{one.digest}") == (f"{LIBRARY}/other:1", one.digest)
    for argument in (f"other@{two.digest}", f"app@sha256:{64 * '0'}"):
        with pytest.raises(NotFoundError):
            store.resolve(argument)


def test_resolve_what_is_name_and_id(store, tmp_path):
    """A record with exactly the name wins over IDs that begin so."""
    by_id, by_name = beginning_with("abc"), Image(labels={"named": "abcd"})
    short = by_id.digest[7:11]
    load(store, tmp_path, (by_id, "app:1"), (by_name, f"{short}:latest"))
    assert resolved(store, short)[1] == by_name.digest
    assert resolved(store, by_id.digest[7:15])[1] == by_id.digest


def test_resolve_ambiguous_ids(store, tmp_path):
    """Two images whose IDs begin alike: more digits are asked for, and suffice."""
    seen = {}
    for n in range(10_000):
        image = Image([], labels={"n": str(n)})
        other = seen.setdefault(image.digest[7:11], image)
        if other is not image:
            break
    load(store, tmp_path, (image, "app:1"), (other, "app:2"))
    with pytest.raises(NotFoundError, match="ambiguous reference"):
        store.resolve(image.digest[7:11])
    assert resolved(store, image.digest[7:19])[1] == image.digest
    assert resolved(store, other.digest[7:19])[1] == other.digest


def test_resolve_config_digests(store, tmp_path):
    """What docker's graph store and podman call the ID, when nothing else has it."""
    image, arm64 = Image(), Image(platform="linux/arm64")
    index = Index([image, arm64])
    load(store, tmp_path, (index, "app:1"))
    for config in (image.config, arm64.config):
        for argument in (config.digest, config.digest[7:], config.digest[7:19]):
            assert resolved(store, argument)[1] == index.digest
    load(store, tmp_path, (image, "app:2"))
    with pytest.raises(NotFoundError, match="ambiguous reference"):
        store.resolve(image.config.digest)


@pytest.mark.parametrize(
    "argument", ["", "UPPER", "a b", "-x", "app:", "app@sha256:00", "app@md5:" + 32 * "0"]
)
def test_resolve_what_is_no_name(store, argument):
    """Neither name nor ID: the caller's mistake, exit code 2."""
    with pytest.raises(InvalidArgumentError) as error:
        store.resolve(argument)
    assert error.value.exit_code == 2


def test_exists(store, tmp_path):
    """True or false; a mistake is neither."""
    load(store, tmp_path, (Image(), "app:1"))
    assert store.exists("app:1")
    assert not store.exists("app:2")
    with pytest.raises(InvalidArgumentError):
        store.exists("NO/../NAME")


# -- §1.5: all records of one target ---------------------------------------------------------------


def lookup(store, argument):
    """What the removal's lookup finds: the exact record's name, and all names."""
    with engine.read(store._engine) as connection:
        exact, found = naming.resolve_all(connection, argument)
    return exact and exact.name, sorted(record.name for record in found)


@pytest.fixture
def ubuntu(store, tmp_path):
    """The records of upstream's lookup test."""
    t10, t11 = numbered(2)
    t12 = beginning_with("abc")
    t13 = Image(labels={"n": "13"})
    word = t12.digest[7:13]
    load(
        store,
        tmp_path,
        (t10, "ubuntu:latest", f"{LIBRARY}/ubuntu:latest@{t10.digest}"),
        (t11, f"{LIBRARY}/ubuntu:latest@{t11.digest}"),
        (t12, f"{word}:latest", f"{LIBRARY}/{word}:latest@{t12.digest}"),
        (t13, "sha256:defcab"),
    )
    return store, t10, t11, t12, t13, word


def test_lookup_by_name(ubuntu):
    """The record so called, and all of its target; a name's own digest decides when no record has it."""
    store, t10, t11, _, t13, _ = ubuntu
    tens = [f"{LIBRARY}/ubuntu:latest", f"{LIBRARY}/ubuntu:latest@{t10.digest}"]
    assert lookup(store, "ubuntu") == (tens[0], tens)
    assert lookup(store, f"ubuntu@{t11.digest}") == (None, [f"{LIBRARY}/ubuntu:latest@{t11.digest}"])
    exact = f"{LIBRARY}/ubuntu:latest@{t11.digest}"
    assert lookup(store, f"ubuntu:latest@{t11.digest}") == (exact, [exact])
    assert lookup(store, "sha256:defcab") == (f"{LIBRARY}/sha256:defcab", [f"{LIBRARY}/sha256:defcab"])
    assert names(store)[f"{LIBRARY}/sha256:defcab"] == t13.digest
    assert lookup(store, f"ubuntu@sha256:{64 * '1'}") == (None, [])
    with pytest.raises(NotFoundError, match="ubuntu:nonexistent"):
        lookup(store, "ubuntu:nonexistent")


def test_lookup_by_id(ubuntu):
    """No exact record, and all names of it; a name that looks like an ID is a name first."""
    store, t10, _, t12, _, word = ubuntu
    twelves = [f"{LIBRARY}/{word}:latest", f"{LIBRARY}/{word}:latest@{t12.digest}"]
    assert lookup(store, t10.digest) == (
        None,
        [f"{LIBRARY}/ubuntu:latest", f"{LIBRARY}/ubuntu:latest@{t10.digest}"],
    )
    assert lookup(store, word) == (twelves[0], twelves)
    assert lookup(store, t12.digest[7:15]) == (None, twelves)
    # Docker finds no `sha256:` with few digits here; everywhere else it does, and so does this.
    assert lookup(store, f"sha256:{word}") == (None, twelves)


# -- names in archives -----------------------------------------------------------------------------


class Warnings(Reporter):
    """Remembers what the user was told."""

    def __init__(self):
        self.lines = []

    def warn(self, message):
        """Keep it."""
        self.lines.append(message)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("busybox:1.36", f"{LIBRARY}/busybox:1.36"),
        ("docker.io/library/busybox:1.36", f"{LIBRARY}/busybox:1.36"),
        ("example.org/app", "example.org/app:latest"),
        ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
        ("1.36", None),
        ("latest", None),
        ("UPPERCASE-IS-INVALID", None),
        ("_cosign:sha256-00.sig", None),
        ("example.org/UPPER:1", None),
        (f"app@sha256:{64 * '0'}", None),
        ("https://example.org/app", None),
    ],
)
def test_names_in_annotations(store, tmp_path, text, name):
    """A reference becomes canonical; what is none leaves the image dangling, and a warning says so."""
    image, told = Image(), Warnings()
    store.load(image.oci_tar(tmp_path / "a.tar", text), reporter=told)
    assert names(store) == {name or f"moby-dangling@{image.digest}": image.digest}
    assert [text in line for line in told.lines] == ([] if name else [True])


def test_the_full_name_wins_over_the_short_one(store, tmp_path):
    """Written by containerd and docker beside it."""
    image = Image()
    store.load(image.oci_tar(tmp_path / "a.tar", f"{LIBRARY}/app:1", containerd=True))
    assert names(store) == {f"{LIBRARY}/app:1": image.digest}


def test_a_name_with_its_own_digest(store, tmp_path):
    """Written by bazel; kept as it is."""
    image = Image()
    load(store, tmp_path, (image, f"app@{image.digest}"))
    assert names(store) == {f"{LIBRARY}/app@{image.digest}": image.digest}
    assert resolved(store, f"app@{image.digest}")[1] == image.digest


def test_one_name_for_two_images(store, tmp_path):
    """The last one in the archive has it."""
    one, two = numbered(2)
    told = Warnings()
    archive = Archive().add(one, "app:1").add(two, "app:1")
    store.load(archive.oci_tar(tmp_path / "a.tar"), reporter=told)
    assert names(store) == {f"{LIBRARY}/app:1": two.digest, f"moby-dangling@{one.digest}": one.digest}
    assert len(told.lines) == 1


def test_names_from_manifest_json(store, tmp_path):
    """RepoTags name what index.json leaves unnamed; where both name it, index.json wins."""
    one, two = numbered(2)
    members = Archive().add(one).add(two, f"{LIBRARY}/index:1").members()
    tagged = Archive().add(one, "tagged:1", "tagged:2").add(two, "other:1").members(docker=True)
    members |= {"manifest.json": tagged["manifest.json"]}
    store.load(str(write_tar(tmp_path / "a.tar", members)))
    assert names(store) == {
        f"{LIBRARY}/tagged:1": one.digest,
        f"{LIBRARY}/tagged:2": one.digest,
        f"{LIBRARY}/index:1": two.digest,
    }


def test_a_referrer_needs_no_name(store, tmp_path):
    """What is about an image that is here is kept by it, and by no record of its own."""
    image = Image()
    about = Artifact(subject=image)
    load(store, tmp_path, (image, "app:1"), (about,))
    assert names(store) == {f"{LIBRARY}/app:1": image.digest}
    assert store.blob(about.digest).refcount == 1
    assert store.inspect("app:1")["Referrers"] == [about.digest]


def test_a_referrer_without_its_subject(store, tmp_path):
    """Is an image until its subject comes, whenever that is."""
    image = Image()
    about = Artifact(subject=image)
    load(store, tmp_path, (about,))
    assert names(store) == {f"moby-dangling@{about.digest}": about.digest}
    load(store, tmp_path, (image, "app:1"))
    assert store.inspect("app:1")["Referrers"] == [about.digest]


def test_an_image_that_is_named_later(store, tmp_path):
    """Its dangling record goes."""
    image = Image()
    load(store, tmp_path, (image,))
    assert names(store) == {f"moby-dangling@{image.digest}": image.digest}
    store.load(image.oci_tar(tmp_path / "b.tar", "1"), ImportOptions(name="app"))
    assert names(store) == {f"{LIBRARY}/app:1": image.digest}


# -- §1.7: tagging ---------------------------------------------------------------------------------


def test_tag(store, tmp_path):
    """A new name of the same image; the same again changes nothing, and each is an event."""
    image = Image()
    load(store, tmp_path, (image, "app:1"))
    for _ in range(2):
        assert store.tag("app:1", "example.org/app") is None
    assert names(store) == {f"{LIBRARY}/app:1": image.digest, "example.org/app:latest": image.digest}
    assert [event.action for event in store.events()] == ["load", "tag", "tag"]


def test_tag_moves_a_name(store, tmp_path):
    """The image that had it is kept as dangling, unless it has another name."""
    one, two, three = numbered(3)
    load(store, tmp_path, (one, "app:1"), (two, "app:2", "keep:2"), (three, "app:3"))
    assert store.tag("app:3", "app:1").target.digest.hex == one.digest[7:]
    assert store.tag("app:3", "app:2").name == f"{LIBRARY}/app:2"
    assert names(store) == {
        **{f"{LIBRARY}/app:{n}": three.digest for n in (1, 2, 3)},
        f"{LIBRARY}/keep:2": two.digest,
        f"moby-dangling@{one.digest}": one.digest,
    }


def test_tag_gives_a_dangling_image_a_name(store, tmp_path):
    """By its ID; the dangling record goes."""
    image = Image()
    load(store, tmp_path, (image,))
    store.tag(image.digest[7:19], "app")
    assert names(store) == {f"{LIBRARY}/app:latest": image.digest}


def test_tag_refuses(store, tmp_path):
    """A digest in the new name, a repository called like an algorithm, and what is no name."""
    image = Image()
    load(store, tmp_path, (image, "app:1"))
    for name in (f"app@{image.digest}", "sha256:abcd", "sha512:latest", "UPPER", ""):
        with pytest.raises(InvalidArgumentError):
            store.tag("app:1", name)
    with pytest.raises(NotFoundError):
        store.tag("absent", "app:2")
    assert names(store) == {f"{LIBRARY}/app:1": image.digest}
