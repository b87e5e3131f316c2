"""What imgdb exports is read by other projects' tools as the same image."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass

import pytest

from imgdb import ExportOptions, ImageStore
from tests.builder import write_tar
from tests.interop_kinds import INABILITIES, KINDS, NAME, truth_of
from tests.looking import Members
from tests.tools.daemons import ToolError
from tests.tools.sample import make_sample_image as sample

pytestmark = pytest.mark.tools
each_kind = pytest.mark.parametrize("kind", KINDS)


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
        if version.startswith(inability.version):
            assert inability.message in str(error)  # noqa: PT017 - a newer version may say it otherwise
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
    """Docker load: the ID is the config's digest."""
    image = exported(kind)
    load_into(dockerd_graph, "dockerd_graph", kind, image, image.config)


@each_kind
def test_newer_docker_graph_store(dockerd_graph_new, exported, kind):
    """The same of a docker that knows OCI layouts."""
    image = exported(kind)
    load_into(dockerd_graph_new, "dockerd_graph_new", kind, image, image.config)


@each_kind
def test_docker_containerd_store(dockerd_containerd, exported, kind):
    """Docker load: the ID is the image's own."""
    image = exported(kind)
    load_into(dockerd_containerd, "dockerd_containerd", kind, image, image.target)


@each_kind
def test_podman(podman, exported, kind):
    """Podman load: the ID is the config's digest."""
    image = exported(kind)
    load_into(podman, "podman", kind, image, image.config)


@each_kind
def test_containerd(containerd, exported, kind):
    """Ctr images import: the target is the image's own, and all of it is there."""
    image = exported(kind)
    load_into(containerd, "containerd", kind, image, image.target, "--all-platforms")


def test_containerd_checks(containerd, sample_image, exported):
    """Ctr images check: complete, and unpacked for this machine."""
    containerd.remove_all()
    containerd.load(exported("sample").archive, "--all-platforms")
    (line,) = containerd.command("images", "check").stdout.splitlines()[1:]
    assert line.startswith(NAME)
    assert "complete (3/3)" in line or "complete (4/4)" in line
    assert line.rstrip().endswith("true")
    containerd.remove_all()
    assert sample_image.exists()


@pytest.fixture(scope="module")
def truth(sample_image):
    """Digests of the sample image."""
    return truth_of(sample_image)


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
    # With a tag it finds OCI's media types only, without one it wants a single entry; referrers are entries.
    source = f"oci-archive:{image.archive}{':1' if kind == 'referrer' else ''}"
    raw = skopeo("inspect", "--raw", source)
    assert sha256(raw.encode()) == image.target
    if image.config and kind != "foreign layer absent":  # its docker archive lacks a layer
        raw = skopeo("inspect", "--config", "--raw", f"docker-archive:{image.archive}")
        assert sha256(raw.encode()) == image.config
    copy = tmp_path / "copy"
    expect(
        "skopeo",
        kind,
        version_of(skopeo),
        lambda: skopeo("copy", "--all", source, f"dir:{copy}"),
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


def test_umoci_unpacks_the_sample(umoci, store, sample_image, truth, tmp_path):
    """One platform under a name of its own: the whiteout is applied, the greeting is this platform's."""
    store.load(str(one_platform(sample_image, truth, tmp_path / "one.tar")))
    store.export(["one:1"], str(tmp_path / "one"), ExportOptions(format="oci-dir"))
    umoci("unpack", "--rootless", "--image", f"{tmp_path / 'one'}:1", tmp_path / "bundle")
    root = tmp_path / "bundle" / "rootfs"
    assert not (root / "etc/motd").exists()
    assert f"linux/{sample.HOST}" in (root / "srv/hello.txt").read_text()


def one_platform(archive, truth, path):
    """The sample without its index."""
    bodies = dict(Members(archive).bodies)
    body = bodies[f"blobs/{truth['host'].replace(':', '/')}"]
    notes = {"org.opencontainers.image.ref.name": "one:1"}
    entry = {"mediaType": sample.MANIFEST, "digest": truth["host"], "size": len(body), "annotations": notes}
    bodies["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    return write_tar(path, bodies)


@pytest.mark.parametrize("kind", ["plain layers", "referrer"])
def test_oci_image_tool_validates(oci_image_tool, exported, kind):
    """image-spec's own tool takes an exported directory; 1.0.0-rc1 knows single OCI images only."""
    oci_image_tool("validate", "--type", "image", "--ref", "name=1", exported(kind).directory)


def sha256(data):
    """As a digest."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
