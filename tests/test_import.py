"""What an import names; the names in docstrings are those of the specification's catalogue, §6.7."""

from __future__ import annotations

import pytest

from imgdb import ImportOptions
from imgdb.errors import BadArchiveError, InvalidArgumentError, NotFoundError, RefusedError
from tests.builder import Archive, Attestation, Image, Index, write_tar
from tests.looking import asking_for, digests, names, present

AMD64, ARM64, RISCV64 = (Image(platform=f"linux/{machine}") for machine in ("amd64", "arm64", "riscv64"))
MULTI = Index([AMD64, ARM64, RISCV64])
INCOMPLETE = ImportOptions(allow_incomplete=True)


def content(image):
    """Digests of config and layers, without the manifest."""
    return digests(image) - {image.digest}


# -- TestImport ------------------------------------------------------------------------------------


def test_index_without_any_manifest(store, tmp_path):
    """OCI-IndexWithoutAnyManifest: refused by name of what is missing; taken when that is asked for."""
    path = MULTI.oci_tar(
        tmp_path / "a.tar", "docker.io/library/sparse:ok", without=digests(MULTI) - {MULTI.digest}
    )
    with pytest.raises(BadArchiveError, match=f"missing {AMD64.digest}.*--allow-incomplete"):
        store.load(path)
    assert store.blobs() == []

    result = store.load(path, INCOMPLETE)
    assert [(i.name, i.platforms) for i in result.images] == [("docker.io/library/sparse:ok", ())]
    assert result.images[0].absent == ("linux/amd64", "linux/arm64", "linux/riscv64")
    assert present(store) == {MULTI.digest}


def test_docker_before_1_10(store, tmp_path):
    """DockerV2.0: directories and `repositories`, but no manifest.json."""
    with pytest.raises(BadArchiveError, match=r"older than docker 1\.10"):
        store.load(AMD64.docker_tar(tmp_path / "a.tar", "test-import:latest", style="v1"))


def test_docker(store, tmp_path):
    """DockerV2.1: two RepoTags of one image; config and layers keep their digests."""
    image = Image(docker=True)
    store.load(
        image.docker_tar(tmp_path / "a.tar", "test-import:notlatest", "another/repo:tag", style="classic")
    )

    assert names(store).keys() == {"docker.io/library/test-import:notlatest", "docker.io/another/repo:tag"}
    assert len(set(names(store).values())) == 1
    assert {image.config.digest, image.layers[0].diff_id} < present(store)


def test_docker_of_another_platform(store, tmp_path):
    """DockerV2.1-BadOSArch: taken as it is, but not for somebody who asks for a platform."""
    path = Image(platform="foo/lish", docker=True).docker_tar(tmp_path / "a.tar", "bad:arch")
    with pytest.raises(NotFoundError, match=r"requested platform\(s\) \(\[linux/amd64\]\) not found"):
        store.load(path, asking_for("linux/amd64"))
    assert store.load(path).images[0].platforms == ("foo/lish",)


@pytest.mark.parametrize("text", [b'{"imageLayoutVersion":"2.0.0"}', b"{}", b"[]", b"x", b""])
def test_bad_layout_version(store, tmp_path, text):
    """OCI-BadFormat: a layout of another version, or none."""
    members = Archive().add(AMD64, "a:1").members() | {"oci-layout": text}
    with pytest.raises(BadArchiveError):
        store.load(str(write_tar(tmp_path / "a.tar", members)))


def test_one_image_under_two_names(store, tmp_path):
    """OCI: a bare tag is no name; what has a name besides is not dangling."""
    store.load(AMD64.oci_tar(tmp_path / "a.tar", "latest", "docker.io/lib/img:ok"))
    assert names(store) == {"docker.io/lib/img:ok": AMD64.digest}


def test_a_name_for_a_bare_tag(store, tmp_path):
    """OCIPrefixName: --name gives the repository of a bare tag."""
    path = AMD64.oci_tar(tmp_path / "a.tar", "1.36")
    store.load(path, ImportOptions(name="localhost:5000/myimage"))
    assert names(store) == {"localhost:5000/myimage:1.36": AMD64.digest}


def test_a_name_instead_of_all_others(store, tmp_path):
    """OCIPrefixName2: --name stands for all that the archive says."""
    path = AMD64.oci_tar(tmp_path / "a.tar", "localhost:5000/other:old", "docker.io/lib/img:ok")
    store.load(path, ImportOptions(name="localhost:5000/myimage:new"))
    assert names(store) == {"localhost:5000/myimage:new": AMD64.digest}


def test_missing_descendants(store, tmp_path):
    """OCI-IndexWithMissingManifestDescendants: one manifest complete, one without config and layers."""
    index = Index([AMD64, Image([{"b": b"2"}], "linux/arm64")])
    arm64 = index.below[1]
    result = store.load(index.oci_tar(tmp_path / "a.tar", "a:1", without=content(arm64)))

    assert {AMD64.digest, arm64.digest} < present(store)
    assert content(arm64).isdisjoint(present(store))
    assert (result.images[0].platforms, result.images[0].absent) == (("linux/amd64",), ("linux/arm64",))
    assert [m.complete for m in store.images()[0].manifests] == [True, False]


# -- TestImageLoad ---------------------------------------------------------------------------------


def test_load_empty_index(store, tmp_path):
    """Nothing in it: no platform can be asked for, but it may be kept."""
    path = Index([]).oci_tar(tmp_path / "a.tar", "emptyindex:latest")
    with pytest.raises(NotFoundError, match=r"\(\[linux/amd64\]\) not found in .*emptyindex:latest"):
        store.load(path, asking_for("linux/amd64"))
    store.load(path)
    assert names(store).keys() == {"docker.io/library/emptyindex:latest"}


@pytest.mark.parametrize("image", [AMD64, Index([AMD64])], ids=["manifest", "index"])
def test_load_single_platform(store, tmp_path, image):
    """The one that is there can be asked for, another one can't."""
    path = image.oci_tar(tmp_path / "a.tar", "single:latest")
    with pytest.raises(NotFoundError, match=r"\(\[linux/arm64\]\) not found in .*single:latest"):
        store.load(path, asking_for("linux/arm64"))
    assert store.blobs() == []
    assert store.load(path, asking_for("linux/amd64")).images[0].platforms == ("linux/amd64",)


@pytest.mark.parametrize(
    ("asked", "images"),
    [
        (["linux/arm64"], [ARM64]),
        (["linux/riscv64", "linux/amd64"], [AMD64, RISCV64]),
        (["linux/amd64", "linux/arm64/v8", "linux/riscv64"], [AMD64, ARM64, RISCV64]),
    ],
    ids=["one", "two", "all"],
)
def test_load_some_platforms(store, tmp_path, asked, images):
    """Those are stored and no others; the index, and so the image ID, is the same."""
    result = store.load(MULTI.oci_tar(tmp_path / "a.tar", "multi:1"), asking_for(*asked))

    assert names(store) == {"docker.io/library/multi:1": MULTI.digest}
    assert len(result.images[0].platforms) == len(images)
    assert present(store) == digests(*images) | {MULTI.digest}


@pytest.mark.parametrize("asked", [["linux/arm/v5"], ["linux/amd64", "linux/arm/v5"]])
def test_load_a_platform_that_is_not_there(store, tmp_path, asked):
    """All that are asked for must be there."""
    with pytest.raises(NotFoundError, match=r"\(\[linux/arm/v5\]\) not found"):
        store.load(MULTI.oci_tar(tmp_path / "a.tar", "multi:1"), asking_for(*asked))


@pytest.mark.parametrize("lost", [{ARM64.digest}, {ARM64.config.digest}], ids=["manifest", "config"])
def test_load_a_platform_that_is_not_complete(store, tmp_path, lost):
    """Found in the index, but some content is missing."""
    path = MULTI.oci_tar(tmp_path / "a.tar", "multi:1", without=lost)
    with pytest.raises(NotFoundError, match=r"found in .*, but some content is missing"):
        store.load(path, asking_for("linux/arm64"))
    store.load(path, asking_for("linux/amd64"))
    assert present(store) == digests(AMD64) | {MULTI.digest}


def test_an_attestation_goes_with_its_image(store, tmp_path):
    """Asking for a platform brings what is said about it, and nothing that is said about others."""
    about, other = Attestation(AMD64), Attestation(ARM64, b"{}")
    index = Index([AMD64, ARM64, about, other])
    store.load(index.oci_tar(tmp_path / "a.tar", "a:1"), asking_for("linux/amd64"))
    assert present(store) == digests(AMD64, about) | {index.digest}


# -- TestLoadDanglingImages and --replace -----------------------------------------------------------


def test_load_dangling_images(store, tmp_path):
    """The second version has the tag, the first remains as dangling."""
    one, two = Image(labels={"v": "1"}), Image(labels={"v": "2"})
    store.load(one.oci_tar(tmp_path / "1.tar", "app:v"))
    result = store.load(two.oci_tar(tmp_path / "2.tar", "app:v"))

    assert (result.images[0].state, str(result.images[0].previous)) == ("replaces", one.digest)
    assert names(store) == {
        "docker.io/library/app:v": two.digest,
        f"moby-dangling@{one.digest}": one.digest,
    }
    store.load(one.oci_tar(tmp_path / "3.tar", "app:old"))
    assert f"moby-dangling@{one.digest}" not in names(store)


def test_no_dangling_record_for_what_has_another_name(store, tmp_path):
    """Neither before the import, nor given by the same archive."""
    one, two, three = (Image(labels={"v": str(n)}) for n in range(3))
    store.load(one.oci_tar(tmp_path / "1.tar", "app:v", "app:1"))
    store.load(two.oci_tar(tmp_path / "2.tar", "app:v"))
    store.load(Archive().add(three, "app:v").add(two, "app:2").oci_tar(tmp_path / "3.tar"))
    library = "docker.io/library/app"
    assert names(store) == {
        f"{library}:1": one.digest,
        f"{library}:2": two.digest,
        f"{library}:v": three.digest,
    }


@pytest.mark.parametrize(("replace", "dangling"), [("dangle", True), ("replace", False)])
def test_replace(store, tmp_path, replace, dangling):
    """The old image stays or goes, the new one has the name."""
    one, two = Image(labels={"v": "1"}), Image(labels={"v": "2"})
    store.load(one.oci_tar(tmp_path / "1.tar", "app:v"))
    store.load(two.oci_tar(tmp_path / "2.tar", "app:v"), ImportOptions(replace=replace))
    assert (f"moby-dangling@{one.digest}" in names(store)) == dangling
    assert names(store)["docker.io/library/app:v"] == two.digest


def test_replace_refuse(store, tmp_path):
    """Nothing of the archive comes in, not even what has a free name; the same image is no conflict."""
    one, two, free = Image(labels={"v": "1"}), Image(labels={"v": "2"}), Image(labels={"v": "3"})
    refuse = ImportOptions(replace="refuse")
    store.load(one.oci_tar(tmp_path / "1.tar", "app:v"))
    with pytest.raises(RefusedError, match=f"app:v is {one.digest} here and {two.digest} in the archive"):
        store.load(Archive().add(free, "free:1").add(two, "app:v").oci_tar(tmp_path / "2.tar"), refuse)
    assert present(store) == digests(one)
    assert store.load(one.oci_tar(tmp_path / "1.tar", "app:v"), refuse).images[0].state == "same"


def test_events(store, tmp_path):
    """One `load` for each name, with the image ID and where it came from."""
    path = AMD64.oci_tar(tmp_path / "a.tar", "a:1", "a:2")
    store.load(path)
    assert [(e.action, e.actor, e.name, e.source) for e in store.events()] == [
        ("load", AMD64.digest, f"docker.io/library/a:{tag}", path) for tag in "12"
    ]


def test_a_name_for_several_images(store, tmp_path):
    """One name can't be two images'."""
    path = Archive().add(AMD64, "a:1").add(ARM64, "a:2").oci_tar(tmp_path / "a.tar")
    with pytest.raises(InvalidArgumentError, match="holds 2 images"):
        store.load(path, ImportOptions(name="b:1"))
