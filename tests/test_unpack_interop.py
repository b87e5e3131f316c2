"""What imgdb unpacks, mounts and writes flat is what umoci, podman and docker make of the same image.

As root only: owners, devices and mounts are a part of it. Where peers do otherwise, the table says why,
and what they do is tested as well, so that nothing stays in it when a tool has learned.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass, replace

import pytest

from imgdb import ImgdbError
from imgdb.oci.platform import host_platform
from tests import corpus_records as records
from tests.builder import Archive
from tests.snapshots import images, peers
from tests.test_large import IMAGES as LARGE
from tests.test_large import built, source_of
from tests.tools.daemons import ToolError
from tests.trees import Ignore, assert_same, differences

pytestmark = [
    pytest.mark.tools,
    pytest.mark.skipif(os.geteuid() != 0, reason="owners, devices and mounts need root"),
]
__all__ = ["built"]  # a fixture
NAMED = "unpack.example/image:1"
ACCEPTED = [record["path"] for record in records.load_records() if record["verdict"] == "accept"]


@pytest.fixture(scope="module")
def begun():
    """When this module's tests began, in nanoseconds."""
    return time.time_ns()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The images of `tests.snapshots.images`, by name."""
    return images.images(tmp_path_factory.mktemp("sparse"), str(host_platform()))


@pytest.fixture
def unpacked(store, made, tmp_path):
    """A function from an image's name to what imgdb shows of it."""

    def call(name):
        store.load(Archive().add(made[name], NAMED).oci_tar(tmp_path / "image.tar", docker=True))
        (found,) = store.unpack(NAMED)
        return found, peers.shown(store, found)

    return call


def test_each_image_is_compared(made):
    """None is forgotten below."""
    assert made.keys() == set(images.NAMES) == PODMAN.keys() == DOCKER.keys() == DOCKER_20.keys()


@pytest.mark.parametrize("name", images.NAMES)
def test_umoci(umoci, store, unpacked, begun, tmp_path, name):
    """Everything: names, types, modes, owners, contents, links, attributes, devices, times."""
    found, mine = unpacked(name)
    theirs = peers.umoci_tree(umoci, store, found.manifest, tmp_path / "umoci")

    ignore = peers.like_umoci(mine, theirs, begun)
    unequal = differences(mine, theirs, ignore, names=("imgdb", "umoci"))
    known = NO_PARENTS if name == "hidden and hidden again" else {}
    assert [line for path, field, line in unequal if (path, field) not in known] == []
    assert len(mine) > 1 or name == "no layers"


# A whiteout's parents are made as anything else's, though it hides nothing, as containerd does.
# Umoci makes none.
NO_PARENTS = {(path, None) for path in (b"no", b"no/where", b"nowhere", b"swap")}


@pytest.mark.parametrize("name", images.NAMES)
def test_rootfs(store, unpacked, name):
    """What is written flat is what is mounted: from the layers, and from the snapshot's directories."""
    found, mine = unpacked(name)
    for what in (NAMED, found.snapshot):
        written = peers.flat(store, what)
        if len(mine) > 1:
            assert_same(mine, written, Ignore(root=True), names=("mount", "rootfs"))
        else:
            assert written == {}


# What docker and podman do otherwise: path and field of each difference, or what comes of the whole image.


@dataclass(frozen=True)
class Refused:
    """The engine does not take or show the image; what it says."""

    words: str


@dataclass(frozen=True)
class Otherwise:
    """What the engine shows has nothing to do with what the layers say; why."""

    why: str


EPOCH = {(b"times/old", "mtime_ns"): "times before 1970 become the epoch"}
COPIED = EPOCH | {
    (b"shared/acl", "xattrs"): "podman's vfs driver copies the layers below without their ACLs",
    (b"dangling-again", "linked"): "and keeps hard links of regular files only",
}
MERGED = COPIED | {
    (b"dev/null-again", "linked"): "the same",
    (b"noted", "xattrs"): "attributes that a directory had below stay when a layer lists it without",
}
ADDED_TO = "a directory's time is that of the last addition, where the layer that adds doesn't list it"
NOWHERE = "a whiteout below a link to nowhere makes nothing there"
PODMAN = {
    "one layer": EPOCH,
    "two layers": MERGED,
    # its own dev/null replaces that of the layers below
    "three layers": {key: why for key, why in MERGED.items() if key != (b"dev/null-again", "linked")},
    "zstd": MERGED,
    "sparse": {},
    "the same layer twice": EPOCH,
    "a layer of nothing": MERGED,
    "no layers": Refused("layer not known"),
    "opaque root": {},
    "through lower layers": COPIED
    | {(b"dev/null-again", "linked"): "vfs again"}
    | {(path, "mtime_ns"): ADDED_TO for path in (b"dev", b"etc", b"lib", b"noted", b"shared")},
    "hidden and hidden again": COPIED
    | {(b"dev/null-again", "linked"): "vfs again"}
    | {(path, None): NOWHERE for path in (b"no", b"no/where")},
}
DOCKER = {
    **dict.fromkeys(images.NAMES, EPOCH),
    "sparse": {},
    "no layers": {},
    "opaque root": Otherwise("overlayfs knows no opaque root, so docker's marker hides nothing"),
    # each layer is unpacked by itself, and knows nothing of those below
    "through lower layers": Refused("no such file or directory"),
    # a directory and what is in it can't both be hidden
    "hidden and hidden again": Refused("file exists"),
}
DOCKER_20 = DOCKER | {"zstd": Refused("invalid tar header")}  # it came before zstd
SEEN = {"podman": "4.3", "docker": ("20.10", "26.1")}  # versions with which all of this was seen


def check(engine, known, look, compare):
    """The tree that an engine shows differs in what is known, and in nothing else.

    With a version in `SEEN` it must differ so; a newer one may have learned.

    Args:
        engine: it.
        known: of the tables above.
        look: returns the tree; ToolError where the engine refuses.
        compare: from that tree to the `differences`.
    """
    seen = engine.version().startswith(SEEN[engine.name])
    try:
        tree = look()
    except ToolError as error:
        if not isinstance(known, Refused):
            raise
        assert known.words in str(error) or not seen  # noqa: PT017 - a newer version may say it otherwise
        return
    found = {(path, field): line for path, field, line in compare(tree)}
    learned = f"{engine.name} has learned; take it out of the table: {known}"
    if isinstance(known, Refused | Otherwise):
        assert not seen or (found and isinstance(known, Otherwise)), learned
        return
    assert [line for key, line in found.items() if key not in known] == []
    assert not seen or known.keys() <= found.keys(), learned


@contextlib.contextmanager
def loaded(engine, store, folder):
    """An engine that has the image which is named `NAMED`, and nothing else."""
    store.export([NAMED], str(folder / "exported.tar"))
    engine.remove_all()
    try:
        engine.load(folder / "exported.tar")
        yield
    finally:
        engine.remove_all()


def check_podman(podman, store, mine, known, begun, folder):
    """`podman image mount` against imgdb's mount."""

    def look():
        with loaded(podman, store, folder):
            return peers.podman_tree(podman, NAMED)

    def compare(theirs):
        return differences(mine, theirs, peers.like_umoci(mine, theirs, begun), names=("imgdb", "podman"))

    check(podman, known, look, compare)


def check_docker(docker, store, mine, known, begun, folder):
    """`docker export` of a container against imgdb's mount and against `rootfs`."""

    def look():
        with loaded(docker, store, folder):
            return peers.without_docker(peers.docker_tree(docker, NAMED, folder / "container.tar"))

    def compare(theirs):
        ignore = peers.like_docker(mine, theirs, begun)
        written = peers.without_docker(peers.flat(store, NAMED))
        shown = peers.without_docker(mine)
        yield from differences(shown, theirs, ignore, names=("imgdb", "docker"))
        yield from differences(written, theirs, ignore, names=("rootfs", "docker"))

    check(docker, known, look, compare)


@pytest.mark.parametrize("name", images.NAMES)
def test_podman(podman, store, unpacked, begun, tmp_path, name):
    """With its vfs driver."""
    check_podman(podman, store, unpacked(name)[1], PODMAN[name], begun, tmp_path)


@pytest.mark.parametrize("name", images.NAMES)
def test_docker_graph_store(dockerd_graph, store, unpacked, begun, tmp_path, name):
    """Debian 12's docker, on overlay2."""
    check_docker(dockerd_graph, store, unpacked(name)[1], DOCKER_20[name], begun, tmp_path)


@pytest.mark.parametrize("name", images.NAMES)
def test_newer_docker_graph_store(dockerd_graph_new, store, unpacked, begun, tmp_path, name):
    """The same of a newer docker."""
    check_docker(dockerd_graph_new, store, unpacked(name)[1], DOCKER[name], begun, tmp_path)


@pytest.mark.parametrize("name", images.NAMES)
def test_docker_containerd_store(dockerd_containerd, store, unpacked, begun, tmp_path, name):
    """A docker that leaves unpacking to containerd."""
    check_docker(dockerd_containerd, store, unpacked(name)[1], DOCKER[name], begun, tmp_path)


# The corpus

EXAMPLES = [
    "public/docker-library+busybox/dist-amd64/latest/glibc/amd64.layout.tar",
    "public/aquasecurity+trivy/pkg/fanal/test/testdata/alpine-310.tar.gz",
    "public/wagoodman+dive/.data/test-docker-image.tar",
    "public/GoogleContainerTools+kaniko/integration/tar.tar",
    "public/google+go-containerregistry/pkg/v1/mutate/testdata/whiteout_dir.tar",
    "public/sylabs+oci-tools/test/images/whiteout-opaque-end",
]
NO_IMAGE = "nothing in it is an image"
NO_DIFF_IDS = "mismatched image rootfs and manifest layers"
NOTATION = "public/notaryproject+notation/test/e2e/testdata/registry/oci_layout/e2e"
ZOT = "public/oras-project+oras/test/e2e/testdata/zot/command"
# Accepted archives of which nothing is compared, and why: what unpacking says, or there is no image in them.
NOT_UNPACKED = {
    "public/containers+olot/tests/data/ociartifact1": NO_IMAGE,
    "public/google+go-containerregistry/pkg/v1/layout/testdata/test_index_media_type": NO_IMAGE,
    "public/sylabs+oci-tools/test/images/overlayfs-docker-v2-manifest": NO_IMAGE,  # its layer is a squashfs
    **{f"{ZOT}/{name}": NO_DIFF_IDS for name in ("artifacts", "images")},
    **{
        f"{NOTATION}{what}": NO_IMAGE
        for what in (
            "",
            "-expired-signature",
            "-invalid-signature",
            "-valid-multiple-signatures",
            "-valid-signature",
            "-with-expired-cert",
            "-with-invalid-timestamped-signature",
            "-with-timestamped-signature",
        )
    },
    "edge/o-config-no-rootfs.tar": NO_DIFF_IDS,
    "edge/o-encrypted.tar": "no tar archive",
    "edge/o-foreign-absent.tar": "not completely here",
    "edge/o-layer-hardlink.tar": "not there",
    "edge/o-layer-nottar.tar": "no tar archive",
    "edge/o-layer-wh-dots.tar": "invalid whiteout name",
    "edge/o-layer-wh-empty.tar": "invalid whiteout name",
    "edge/o-unknown-layer-type.tar": NO_IMAGE,
}
# A hard link to a file below copies that up, under the two names that the layer tells of; its third name
# stays a file of its own, as on any overlayfs. Unpacked into one directory it is the same file.
BROKEN_LINK = {
    "public/sylabs+oci-tools/test/images/hard-link-delete-4": {b"a/b/foo": ("linked",)},
}


def each(paths):
    """Parametrise by archives of the corpus."""
    absent = pytest.param(None, marks=pytest.mark.skip(f"no corpus of archives at {records.CORPUS}"))
    return pytest.mark.parametrize("path", paths if ACCEPTED else [absent])


def test_the_corpus_is_compared():
    """Whatever isn't is listed, and is there."""
    if not ACCEPTED:
        pytest.skip(f"no corpus of archives at {records.CORPUS}")
    assert NOT_UNPACKED.keys() | BROKEN_LINK.keys() | set(EXAMPLES) <= set(ACCEPTED)
    assert len(ACCEPTED) - len(NOT_UNPACKED) >= 140


@each(ACCEPTED)
def test_corpus(umoci, store, begun, tmp_path, path):
    """Every image of every archive: the mount is what umoci unpacks, and what is written flat."""
    store.load(str(records.CORPUS / path))
    compared, refusals = 0, []
    for manifest, unpack in peers.unpack_each(store):
        try:
            name, asked, found = unpack()
        except ImgdbError as error:
            refusals.append(str(error))
            continue
        compared += 1
        mine = peers.shown(store, found)
        theirs = peers.umoci_tree(umoci, store, manifest.digest, tmp_path / f"umoci-{compared}")
        broken = BROKEN_LINK.get(path, {})
        ignore = peers.like_umoci(mine, theirs, begun)
        assert_same(mine, theirs, replace(ignore, at=ignore.at | broken), names=("imgdb", "umoci"))
        flat_differences = differences(
            mine, peers.flat(store, name, asked), Ignore(root=True, at=broken), names=("mount", "rootfs")
        )
        assert [line for _, _, line in flat_differences] == []
    why = NOT_UNPACKED.get(path)
    assert (compared == 0) == (why is not None)
    assert all(why is not None and why in refusal for refusal in refusals)
    assert bool(refusals) == (why not in {None, NO_IMAGE})


@pytest.fixture
def example(store):
    """A function from an archive to what imgdb shows of its one image."""

    def call(path):
        (image,) = store.load(str(records.CORPUS / path)).images
        store.tag(str(image.digest), NAMED)
        (found,) = store.unpack(NAMED)
        return peers.shown(store, found)

    return call


@each(EXAMPLES)
def test_podman_on_the_corpus(podman, store, example, begun, tmp_path, path):
    """A handful."""
    check_podman(podman, store, example(path), {}, begun, tmp_path)


@each(EXAMPLES)
def test_docker_graph_store_on_the_corpus(dockerd_graph, store, example, begun, tmp_path, path):
    """The same."""
    check_docker(dockerd_graph, store, example(path), {}, begun, tmp_path)


@each(EXAMPLES)
def test_docker_containerd_store_on_the_corpus(dockerd_containerd, store, example, begun, tmp_path, path):
    """The same."""
    check_docker(dockerd_containerd, store, example(path), {}, begun, tmp_path)


# Larger images

# Archives in which one image has a layer that was written to be refused; umoci refuses it, too.
TRAPS = ("exotic-umoci.oci", "exotic-umoci.oci.tar", "oras-image-with-referrers.oci")
TRAP = "'etc/passwd' is no directory, and something lies below it"


@pytest.fixture(scope="module")
def compared():
    """Chain IDs of larger images that were compared already; many archives hold the same."""
    return set()


@pytest.mark.deep
@pytest.mark.parametrize("name", LARGE)
def test_large(request, umoci, store, compared, begun, tmp_path, name):
    """Each image of each archive that Debian's tools build."""
    store.load(source_of(request.getfixturevalue("built"), name))
    refusals = []
    for manifest, unpack in peers.unpack_each(store):
        try:
            image, asked, found = unpack()
        except ImgdbError as error:
            refusals.append(str(error))
            continue
        if found.snapshot in compared:
            continue
        mine = peers.shown(store, found)
        theirs = peers.umoci_tree(umoci, store, manifest.digest, tmp_path / "umoci")
        assert_same(mine, theirs, peers.like_umoci(mine, theirs, begun), names=("imgdb", "umoci"))
        shutil.rmtree(tmp_path / "umoci")
        assert_same(mine, peers.flat(store, image, asked), Ignore(root=True), names=("mount", "rootfs"))
        compared.add(found.snapshot)
    assert len(refusals) == (name in TRAPS)
    assert all(TRAP in refusal for refusal in refusals)


@pytest.mark.deep
@pytest.mark.parametrize("name", ["debpy.docker.tar", "docker26-save-debpy.tar"])
def test_large_in_docker(request, dockerd_graph_new, store, begun, tmp_path, name):
    """A Debian with Python, which buildah and docker built."""
    image = store.load(source_of(request.getfixturevalue("built"), name)).images[0]
    store.tag(str(image.digest), NAMED)
    (found,) = store.unpack(NAMED)
    check_docker(dockerd_graph_new, store, peers.shown(store, found), {}, begun, tmp_path)
