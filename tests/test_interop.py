"""What imgdb exports is read by other projects' tools as the same image, and what they write by imgdb."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
from dataclasses import dataclass

import pytest

from imgdb import ExportOptions, ImageStore
from tests.interop_kinds import INABILITIES, KINDS, NAME
from tests.looking import Members, names
from tests.tools.daemons import ToolError
from tests.tools.sample import make_sample_image as sample

pytestmark = pytest.mark.tools
each_kind = pytest.mark.parametrize("kind", KINDS)


# -- imgdb writes, others read ---------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    """An image as imgdb exports it.

    Attributes:
        archive: one tar, an OCI layout and a docker archive at once.
        directory: an OCI layout.
        target: digest of the manifest or index.
        config: digest of the config that manifest.json names, if it names one.
    """

    archive: str
    directory: str
    target: str
    config: str | None


@pytest.fixture(scope="module")
def exported(store_template, tmp_path_factory, request):
    """A function from a kind to its `Exported`; each is made once."""
    made = {}

    def make(kind):
        if kind not in made:
            path = KINDS[kind]
            source = (
                request.getfixturevalue("corpus") / path if path else request.getfixturevalue("sample_image")
            )
            made[kind] = export(store_template, tmp_path_factory.mktemp("kind"), str(source))
        return made[kind]

    return make


def export(template, folder, source):
    """Import an archive, name its first image that has a name or else its first, and export that."""
    with ImageStore.open(shutil.copytree(template, folder / "store"), durable=False) as store:
        images = store.load(source).images
        target = str(next((image for image in images if image.name), images[0]).digest)
        store.tag(target, NAME)
        store.export([NAME], str(folder / "image.tar"))
        store.export([NAME], str(folder / "image"), ExportOptions(format="oci-dir"))
    entries = Members(folder / "image.tar").manifest_json
    config = f"sha256:{entries[0]['Config'].rpartition('/')[2]}" if entries else None
    return Exported(str(folder / "image.tar"), str(folder / "image"), target, config)


def expect(tool, kind, version, attempt, right):
    """Attempt something with a tool; unless the tool is known not to be able to, it must be right.

    Args:
        tool: key of `INABILITIES`.
        kind: key of `KINDS`.
        version: the tool's.
        attempt: does it; ToolError where the tool refuses.
        right: whether the result is; False also where nothing was done.
    """
    inability = INABILITIES[tool].get(kind)
    try:
        attempt()
    except ToolError as error:
        if inability is None:
            raise
        known = version.startswith(inability.version)
        assert not known or inability.message in str(error)
        return
    learned = inability is not None and not version.startswith(inability.version)
    assert right() == (inability is None or learned)


def load_into(engine, fixture, kind, image, expected, *flags):
    """Load into an engine; the image has the right ID and name there."""
    engine.remove_all()
    try:
        expect(
            fixture,
            kind,
            engine.version(),
            lambda: engine.load(image.archive, *flags),
            lambda: (engine.image_ids(), engine.names()) == ({expected}, {NAME}),
        )
    finally:
        engine.remove_all()


@each_kind
def test_docker_graph_store(dockerd_graph, exported, kind):
    """docker load: the ID is the config's digest."""
    image = exported(kind)
    load_into(dockerd_graph, "dockerd_graph", kind, image, image.config)


@each_kind
def test_newer_docker_graph_store(dockerd_graph_new, exported, kind):
    """The same of a docker that knows OCI layouts."""
    image = exported(kind)
    load_into(dockerd_graph_new, "dockerd_graph_new", kind, image, image.config)


@each_kind
def test_docker_containerd_store(dockerd_containerd, exported, kind):
    """docker load: the ID is the image's own."""
    image = exported(kind)
    load_into(dockerd_containerd, "dockerd_containerd", kind, image, image.target)


@each_kind
def test_podman(podman, exported, kind):
    """podman load: the ID is the config's digest."""
    image = exported(kind)
    load_into(podman, "podman", kind, image, image.config)


@each_kind
def test_containerd(containerd, exported, kind):
    """ctr images import: the target is the image's own, and all of it is there."""
    image = exported(kind)
    load_into(containerd, "containerd", kind, image, image.target, "--all-platforms")


def test_containerd_checks(containerd, sample_image, exported):
    """ctr images check: complete, and unpacked for this machine."""
    containerd.remove_all()
    containerd.load(exported("sample").archive, "--all-platforms")
    (line,) = containerd.command("images", "check").stdout.splitlines()[1:]
    assert line.startswith(NAME)
    assert "complete (3/3)" in line or "complete (4/4)" in line
    assert line.rstrip().endswith("true")
    containerd.remove_all()
    assert sample_image.exists()


def test_containerd_takes_a_part(containerd, exported):
    """Without --all-platforms it loads an index of which only this machine's platform is there."""
    image = exported("docker 26, one platform of many")
    containerd.remove_all()
    containerd.load(image.archive)
    assert containerd.image_ids() == {image.target}
    containerd.remove_all()


@pytest.fixture(scope="module")
def version_of():
    """A function from a tool to its version."""

    def ask(tool):
        return re.search(r"\d+\.\d+", tool("--version"))[0]

    return ask


@each_kind
def test_skopeo(skopeo, version_of, exported, kind, tmp_path):
    """Skopeo: the raw manifest is the image's, the config is, and a copy of all has the same digest."""
    image = exported(kind)
    raw = skopeo("inspect", "--raw", f"oci-archive:{image.archive}:1")
    assert sha256(raw.encode()) == image.target
    if image.config and kind != "foreign layer absent":  # its docker archive lacks a layer
        raw = skopeo("inspect", "--config", "--raw", f"docker-archive:{image.archive}")
        assert sha256(raw.encode()) == image.config
    copy = tmp_path / "copy"
    expect(
        "skopeo",
        kind,
        version_of(skopeo),
        lambda: skopeo("copy", "--all", f"oci-archive:{image.archive}:1", f"dir:{copy}"),
        lambda: sha256((copy / "manifest.json").read_bytes()) == image.target,
    )


@each_kind
def test_umoci(umoci, version_of, exported, kind, tmp_path):
    """Umoci unpacks an exported directory: history and files are there."""
    image = exported(kind)
    bundle = tmp_path / "bundle"
    expect(
        "umoci",
        kind,
        version_of(umoci),
        lambda: umoci("unpack", "--rootless", "--image", f"{image.directory}:1", bundle),
        lambda: any((bundle / "rootfs").iterdir()),
    )


def test_umoci_unpacks_the_sample(umoci, store, sample_image, tmp_path):
    """One platform of it by ID: the whiteout is applied, the greeting is this platform's."""
    store.load(str(sample_image))
    manifest = next(m for m in store.images()[0].manifests if m.platform == f"linux/{sample.HOST}")
    store.export([sample.NAME], str(tmp_path / "whole"), ExportOptions(format="oci-dir"))
    # umoci knows no index with several platforms: its entry point is the one manifest.
    index = json.loads((tmp_path / "whole" / "index.json").read_text())
    blob = tmp_path / "whole" / "blobs" / "sha256" / manifest.digest.hex
    index["manifests"][0] |= {
        "mediaType": sample.MANIFEST,
        "digest": str(manifest.digest),
        "size": blob.stat().st_size,
    }
    (tmp_path / "whole" / "index.json").write_text(json.dumps(index))
    umoci("unpack", "--rootless", "--image", f"{tmp_path / 'whole'}:1.0", tmp_path / "bundle")
    root = tmp_path / "bundle" / "rootfs"
    assert not (root / "etc/motd").exists()
    assert f"linux/{sample.HOST}" in (root / "srv/hello.txt").read_text()


@pytest.mark.parametrize("kind", ["plain layers", "referrer"])
def test_oci_image_tool_validates(oci_image_tool, exported, kind):
    """image-spec's own tool takes an exported directory; 1.0.0-rc1 knows single OCI images only."""
    oci_image_tool("validate", "--type", "image", "--ref", "name=1", exported(kind).directory)


def sha256(data):
    """As a digest."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


# -- others write, imgdb reads ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth(sample_image):
    """Digests of the sample: index, this machine's manifest, its config."""
    with tarfile.open(sample_image) as tar:

        def read(digest):
            return json.load(tar.extractfile(f"blobs/{digest.replace(':', '/')}"))

        index = json.load(tar.extractfile("index.json"))["manifests"][0]["digest"]
        manifests = read(index)["manifests"]
        host = next(m["digest"] for m in manifests if m["platform"]["architecture"] == sample.HOST)
        return {"index": index, "host": host, "config": read(host)["config"]["digest"]}


def config_of(store, argument=sample.NAME):
    """Digest of the config of an image's manifest for this machine."""
    (manifest,) = [m for m in store.images()[0].manifests if m.platform == f"linux/{sample.HOST}"]
    with store.open_blob(str(manifest.digest)) as file:
        config = json.loads(file.read())["config"]["digest"]
    assert store.resolve(config).target == store.resolve(argument).target
    return config


def there_and_back(engine, store, tmp_path, truth):
    """Save, import, export, load: the engine sees the same image ID."""
    engine.save(sample.NAME, tmp_path / "saved.tar")
    store.load(str(tmp_path / "saved.tar"))
    assert names(store).keys() == {sample.NAME}
    assert config_of(store) == truth["config"]
    store.export([sample.NAME], str(tmp_path / "back.tar"))
    engine.remove_all()
    engine.load(tmp_path / "back.tar")
    assert engine.image_ids() == {truth["config"]}
    engine.remove_all()


def test_docker_save(dockerd_graph, store, sample_docker_image, truth, tmp_path):
    """The classic archive: a directory for each layer."""
    dockerd_graph.remove_all()
    dockerd_graph.load(sample_docker_image)
    there_and_back(dockerd_graph, store, tmp_path, truth)


def test_newer_docker_save(dockerd_graph_new, store, sample_docker_image, truth, tmp_path):
    """An OCI layout and a manifest.json in one."""
    dockerd_graph_new.remove_all()
    dockerd_graph_new.load(sample_docker_image)
    there_and_back(dockerd_graph_new, store, tmp_path, truth)


def test_docker_save_by_id(dockerd_graph, store, sample_docker_image, truth, tmp_path):
    """No name travels: the image is dangling, and still found by docker's ID."""
    dockerd_graph.remove_all()
    dockerd_graph.load(sample_docker_image)
    dockerd_graph.save(truth["config"], tmp_path / "saved.tar")
    store.load(str(tmp_path / "saved.tar"))
    assert store.resolve(truth["config"]).is_dangling
    dockerd_graph.remove_all()


def test_docker_containerd_save(dockerd_containerd, store, sample_image, truth, tmp_path):
    """The whole index, byte for byte."""
    dockerd_containerd.remove_all()
    dockerd_containerd.load(sample_image)
    dockerd_containerd.save(sample.NAME, tmp_path / "saved.tar")
    store.load(str(tmp_path / "saved.tar"))
    assert names(store) == {sample.NAME: truth["index"]}
    assert config_of(store) == truth["config"]
    dockerd_containerd.remove_all()


def test_ctr_export(containerd, store, sample_image, truth, tmp_path):
    """All platforms, and one of them with the index unchanged."""
    containerd.remove_all()
    containerd.load(sample_image, "--all-platforms")
    for flags in (["--all-platforms"], ["--platform", f"linux/{sample.HOST}"]):
        containerd.save(sample.NAME, tmp_path / "saved.tar", *flags)
        store.load(str(tmp_path / "saved.tar"))
        assert config_of(store) == truth["config"]
    assert sample.NAME in names(store)
    containerd.remove_all()


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_podman_save(podman, store, sample_image, truth, tmp_path, form):
    """Both of its formats; the config is the same in both."""
    podman.remove_all()
    podman.load(sample_image)
    podman.save(sample.NAME, tmp_path / "saved.tar", "--format", form)
    store.load(str(tmp_path / "saved.tar"))
    assert names(store).keys() == {sample.NAME}
    assert config_of(store) == truth["config"]
    podman.remove_all()


def test_podman_save_of_several(podman, store, sample_image, truth, tmp_path):
    """One archive with two names of one image."""
    podman.remove_all()
    podman.load(sample_image)
    podman.command("tag", sample.NAME, "example.org/again:2")
    podman.save([sample.NAME, "example.org/again:2"], tmp_path / "saved.tar", "--multi-image-archive")
    store.load(str(tmp_path / "saved.tar"))
    assert names(store).keys() == {sample.NAME, "example.org/again:2"}
    assert len(set(names(store).values())) == 1
    assert store.resolve(truth["config"])
    podman.remove_all()


@pytest.mark.parametrize(
    ("flags", "target", "same"),
    [
        ([], "docker-archive:{}:" + sample.NAME, "config"),
        ([], "oci-archive:{}:" + sample.NAME, "host"),
        (["--all"], "oci-archive:{}:" + sample.NAME, "index"),
        (["--all"], "oci:{}:" + sample.NAME, "index"),
    ],
)
def test_skopeo_copy(skopeo, store, sample_image, truth, tmp_path, flags, target, same):
    """Every transport that makes a file or a directory of an image."""
    path = tmp_path / "copied"
    skopeo("copy", *flags, f"oci-archive:{sample_image}", target.format(path))
    store.load(str(path))
    assert names(store).keys() == {sample.NAME}
    found = {
        "config": config_of(store),
        "host": names(store)[sample.NAME],
        "index": names(store)[sample.NAME],
    }
    assert found[same] == truth[same]


def test_umoci_writes(umoci, skopeo, store, sample_image, truth, tmp_path):
    """A layout that umoci changed: both images of it, under the digests that it gives them."""
    layout = tmp_path / "layout"
    skopeo("copy", f"oci-archive:{sample_image}", f"oci:{layout}:example.org/umoci:1")
    changed = ("--tag", "example.org/umoci:2", "--config.label", "a=b")
    umoci("config", "--image", f"{layout}:example.org/umoci:1", *changed)
    store.load(str(layout))
    entries = json.loads((layout / "index.json").read_text())["manifests"]
    given = {e["annotations"]["org.opencontainers.image.ref.name"]: e["digest"] for e in entries}
    assert names(store) == given
    assert given["example.org/umoci:1"] == truth["host"] != given["example.org/umoci:2"]
    assert store.images()[1].labels["a"] == "b"
