"""What an export carries and under which names; docstrings quote specification §2.12."""

from __future__ import annotations

import pytest

from imgdb import ExportOptions, ImportOptions
from imgdb.errors import InvalidArgumentError, NotFoundError
from imgdb.oci import platform
from tests.builder import Archive, Artifact, Attestation, Image, Index, Layer, Signature
from tests.looking import Members, digests, names, platforms

LIBRARY = "docker.io/library"
AMD64, RISCV64, ARM64 = (
    Image([{"base": b"1"}, {"arch": machine.encode()}], f"linux/{machine}")
    for machine in ("amd64", "riscv64", "arm64")
)
MULTI = Index([AMD64, RISCV64, ARM64])
FULL_NAME, SHORT_NAME = "io.containerd.image.name", "org.opencontainers.image.ref.name"


def loaded(store, tmp_path, *pairs, without=(), **options):
    """A store with images under names, of which some blobs are absent."""
    archive = Archive()
    for node, *given in pairs:
        archive.add(node, *given)
    path = archive.oci_tar(tmp_path / "in.tar", without=without)
    store.load(path, ImportOptions(allow_incomplete=True, **options))
    return store


def export(store, tmp_path, *arguments, **options):
    """Export and read back."""
    every = options.pop("every", False)
    store.export(arguments, str(tmp_path / "out.tar"), ExportOptions(**options), every=every)
    return Members(tmp_path / "out.tar")


def named(digest, name):
    """The line of index.json for a name."""
    return digest, {FULL_NAME: name, SHORT_NAME: name.rpartition(":")[2]}


# -- names and order -------------------------------------------------------------------------------


def test_save_oci(store, tmp_path):
    """SaveOCI: one manifest, with its names when saved by tag, without when by ID or repo digest."""
    loaded(store, tmp_path, (AMD64, "busybox:latest"))
    assert export(store, tmp_path, "busybox").annotations() == [
        named(AMD64.digest, f"{LIBRARY}/busybox:latest")
    ]
    config = AMD64.config.digest
    for argument in (AMD64.digest, AMD64.digest[7:19], f"busybox@{AMD64.digest}", config, config[7:19]):
        members = export(store, tmp_path, argument)
        assert members.annotations() == [(AMD64.digest, {})]
        assert members.manifest_json[0]["RepoTags"] is None
        assert members.digests == digests(AMD64)


def test_save_repo_with_multiple_images(store, tmp_path):
    """SaveRepoWithMultipleImages: a bare repository gives all its tags, by name; every Config is there."""
    foo, bar, other = (Image(labels={"n": str(n)}) for n in range(3))
    loaded(store, tmp_path, (foo, "repo:foo"), (bar, "repo:bar"), (other, "busybox:latest", "repository:x"))
    members = export(store, tmp_path, "repo", "busybox:latest")
    assert members.annotations() == [
        named(bar.digest, f"{LIBRARY}/repo:bar"),
        named(foo.digest, f"{LIBRARY}/repo:foo"),
        named(other.digest, f"{LIBRARY}/busybox:latest"),
    ]
    assert [entry["RepoTags"] for entry in members.manifest_json] == [
        ["repo:bar"],
        ["repo:foo"],
        ["busybox:latest"],
    ]
    assert {entry["Config"] for entry in members.manifest_json} < members.bodies.keys()


def test_save_single_tag(store, tmp_path):
    """SaveSingleTag: a repository with its tag gives that tag only, `:latest` included."""
    loaded(store, tmp_path, (AMD64, "app:1", "app:latest"))
    assert export(store, tmp_path, "app:latest").annotations() == [
        named(AMD64.digest, f"{LIBRARY}/app:latest")
    ]


def test_save_with_no_exist_image(store, tmp_path):
    """SaveWithNoExistImage: nothing is written, whatever else was asked for."""
    loaded(store, tmp_path, (AMD64, "app:1"))
    for argument in ("nothere", "nothere:1", "app:2", f"sha256:{64 * '0'}", "0000"):
        with pytest.raises(NotFoundError, match="No such image"):
            export(store, tmp_path, "app:1", argument)
        assert not (tmp_path / "out.tar").exists()
    with pytest.raises(InvalidArgumentError):
        export(store, tmp_path, "NO NAME")


def test_save_multiple_names(store, tmp_path):
    """SaveMultipleNames: in the order of the arguments, repeats once, one docker entry for one image."""
    loaded(store, tmp_path, (AMD64, "one:1", "uno:1"), (ARM64, "two:2"))
    members = export(store, tmp_path, "two:2", "uno:1", "one:1", "uno:1")
    assert members.annotations() == [
        named(ARM64.digest, f"{LIBRARY}/two:2"),
        named(AMD64.digest, f"{LIBRARY}/uno:1"),
        named(AMD64.digest, f"{LIBRARY}/one:1"),
    ]
    assert [entry["RepoTags"] for entry in members.manifest_json] == [["two:2"], ["uno:1", "one:1"]]


def test_an_index_and_one_of_its_manifests(store, tmp_path):
    """Upstream's second entry overwrites the names of the first; here they are merged."""
    loaded(store, tmp_path, (MULTI, "all:1"), (AMD64, "one:1"))
    members = export(store, tmp_path, "all:1", "one:1", prefer=platform.parse("linux/amd64"))
    assert [entry["RepoTags"] for entry in members.manifest_json] == [["all:1", "one:1"]]


def test_all(store, tmp_path):
    """By canonical name, then dangling images by digest; these have no name."""
    one, two, three = sorted((Image(labels={"n": str(n)}) for n in range(3)), key=lambda image: image.digest)
    loaded(store, tmp_path, (three,), (one,), (two, "example.org/z:1", "a:1"))
    assert export(store, tmp_path, every=True).annotations() == [
        named(two.digest, f"{LIBRARY}/a:1"),
        named(two.digest, "example.org/z:1"),
        (one.digest, {}),
        (three.digest, {}),
    ]


def test_no_names(store, tmp_path):
    """An empty list is a valid archive of nothing."""
    members = export(store, tmp_path)
    assert members.infos.keys() == {"index.json", "oci-layout"}
    assert members.index == []


def test_a_name_by_digest(store, tmp_path):
    """The short annotation of a name without a tag is the whole name, and it is loaded as it was."""
    name = f"{LIBRARY}/app@{AMD64.digest}"
    loaded(store, tmp_path, (AMD64, name))
    ((_, notes),) = export(store, tmp_path, every=True).annotations()
    assert notes == {FULL_NAME: name, SHORT_NAME: name}


# -- platforms: the matrix of §2.9, with amd64 as the host ------------------------------------------

NATIVE, FOREIGN = (
    {"linux/amd64": AMD64, "linux/riscv64": RISCV64},
    {"linux/arm64": ARM64, "linux/riscv64": RISCV64},
)


@pytest.mark.parametrize(
    ("stored", "asked", "travels"),
    [
        (NATIVE, [], [AMD64, RISCV64]),
        (NATIVE, ["linux/amd64"], [AMD64]),
        (NATIVE, ["linux/amd64", "linux/riscv64"], [AMD64, RISCV64]),
        (NATIVE, ["linux/arm64"], None),
        # Upstream lets the available ones travel here and not there; imgdb wants all that is asked for.
        (NATIVE, ["linux/arm64", "linux/riscv64"], None),
        (FOREIGN, [], [RISCV64, ARM64]),
        (FOREIGN, ["linux/amd64"], None),
        (FOREIGN, ["linux/arm64"], [ARM64]),
        (FOREIGN, ["linux/arm64", "linux/riscv64"], [RISCV64, ARM64]),
        (FOREIGN, ["linux/arm64", "linux/amd64"], None),
        (FOREIGN, ["linux/s390x"], None),
    ],
)
def test_save_matrix(store, tmp_path, stored, asked, travels):
    """The index is unchanged, and so the image ID; manifest.json names what travels."""
    absent = digests(MULTI) - digests(*stored.values()) - {MULTI.digest}
    loaded(store, tmp_path, (MULTI, "app:1"), without=absent)
    options = {"platforms": platforms(*asked), "prefer": platform.parse("linux/amd64")}
    if travels is None:
        with pytest.raises(NotFoundError, match="app:1 has no complete linux/"):
            export(store, tmp_path, "app:1", **options)
        return

    members = export(store, tmp_path, "app:1", **options)
    assert [entry["digest"] for entry in members.index] == [MULTI.digest]
    assert members.digests == digests(*travels) | {MULTI.digest}
    assert members.manifest_json[0]["Config"] == travels[0].config.path


def test_missing_platforms_are_reported(store, tmp_path):
    """What travels and what is not here; `strict` wants it all."""
    loaded(store, tmp_path, (MULTI, "app:1"), without=digests(ARM64) - digests(AMD64, RISCV64))
    result = store.export(["app:1"], str(tmp_path / "out.tar"))
    assert result.images[0].platforms == ("linux/amd64", "linux/riscv64")
    assert result.images[0].missing == ("linux/arm64",)
    with pytest.raises(NotFoundError, match="not completely here: linux/arm64 lacks"):
        export(store, tmp_path, "app:1", strict=True)


@pytest.mark.parametrize("lost", ["manifest", "config", "layer"])
def test_nothing_complete(store, tmp_path, lost):
    """TestExportAllCases, index only: of an image of which no platform is complete nothing is written."""
    missing = {"manifest": AMD64.digest, "config": AMD64.config.digest, "layer": AMD64.below[2].digest}[lost]
    loaded(store, tmp_path, (Index([AMD64]), "app:1"), without={missing})
    with pytest.raises(NotFoundError, match=f"app:1 is not completely here: .*lacks {missing}"):
        export(store, tmp_path, "app:1")
    assert not (tmp_path / "out.tar").exists()


def test_attestations_travel_with_their_platform(store, tmp_path):
    """Unasked all of them, byte for byte; for a platform its own, and never in manifest.json."""
    index = Index([AMD64, ARM64, Attestation(AMD64), Attestation(ARM64, b"{}")])
    loaded(store, tmp_path, (index, "app:1"))
    assert export(store, tmp_path, "app:1").digests == digests(index)
    members = export(store, tmp_path, "app:1", platforms=platforms("linux/arm64"))
    assert members.digests == digests(ARM64, Attestation(ARM64, b"{}")) | {index.digest}
    assert [entry["Config"] for entry in members.manifest_json] == [ARM64.config.path]


@pytest.mark.parametrize("prefer", ["linux/amd64", "linux/arm64", "linux/riscv64"])
def test_manifest_json_has_the_preferred_platform(store, tmp_path, prefer):
    """The one image that tools without platforms see."""
    wanted = {f"linux/{image.entry['platform']['architecture']}": image for image in (AMD64, ARM64, RISCV64)}[
        prefer
    ]
    loaded(store, tmp_path, (MULTI, "app:1"))
    (entry,) = export(store, tmp_path, "app:1", prefer=platform.parse(prefer)).manifest_json
    assert entry == {
        "Config": wanted.config.path,
        "RepoTags": ["app:1"],
        "Layers": [layer.blob().path for layer in wanted.layers],
    }


@pytest.mark.parametrize("node", [Artifact(), Signature(AMD64), Index([Artifact()])])
def test_manifest_json_has_images_only(store, tmp_path, node):
    """Nobody could run an artifact or a signature."""
    loaded(store, tmp_path, (node, "thing:1"))
    members = export(store, tmp_path, "thing:1")
    assert members.manifest_json is None
    assert members.digests == digests(node)


def test_what_a_descriptor_alone_tells(store, new_store, tmp_path):
    """The kind that cosign writes and an artifact type come back; other annotations do not."""
    archive = Archive().add(Signature(AMD64), "sig:1", annotations={"org.example.note": "x"})
    archive.add(Artifact(), "thing:1", artifactType="application/vnd.example.thing")
    store.load(archive.oci_tar(tmp_path / "in.tar"))
    signature, thing = export(store, tmp_path, "sig:1", "thing:1").index
    assert signature["annotations"].keys() == {"kind", FULL_NAME, SHORT_NAME}
    assert thing["artifactType"] == "application/vnd.example.thing"
    other = new_store("other")
    other.load(str(tmp_path / "out.tar"))
    assert [m.kind for image in other.images() for m in image.manifests] == ["artifact", "artifact"]


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("dev.cosignproject.cosign/image", "image"),
        ("dev.cosignproject.cosign/sigs", "artifact"),
        ("dev.cosignproject.cosign/atts", "artifact"),
        ("anything else", "image"),
    ],
)
def test_kinds_of_cosign(store, tmp_path, kind, what):
    """What `cosign save` writes: an image stays one, and what is beside it is none."""
    store.load(Archive().add(AMD64, "app:1", annotations={"kind": kind}).oci_tar(tmp_path / "in.tar"))
    assert [manifest.kind for manifest in store.images()[0].manifests] == [what]
    members = export(store, tmp_path, "app:1")
    assert (members.manifest_json is not None) == (what == "image")
    assert members.index[0]["annotations"]["kind"] == kind


# -- foreign layers --------------------------------------------------------------------------------


@pytest.mark.parametrize("docker", [False, True])
def test_foreign_layers(store, tmp_path, docker):
    """Not carried unless asked for, but listed; absent they make nothing incomplete."""
    foreign = Layer({"windows": b"w"}, foreign=True)
    image = Image([foreign, {"own": b"o"}], docker=docker)
    blob = foreign.blob(docker=docker)
    loaded(store, tmp_path, (image, "app:1"))
    members = export(store, tmp_path, "app:1")
    assert members.digests == digests(image) - {blob.digest}
    assert members.manifest_json[0]["Layers"][0] == blob.path
    assert export(store, tmp_path, "app:1", foreign=True).digests == digests(image)


def test_an_absent_foreign_layer(store, tmp_path):
    """The image is complete without it, and --foreign has nothing to carry."""
    image = Image([Layer({"windows": b"w"}, foreign=True), {"own": b"o"}])
    absent = {image.below[1].digest}
    store.load(image.oci_tar(tmp_path / "in.tar", "app:1", without=absent))
    for foreign in (False, True):
        assert export(store, tmp_path, "app:1", foreign=foreign).digests == digests(image) - absent
    assert names(store).keys() == {f"{LIBRARY}/app:1"}
