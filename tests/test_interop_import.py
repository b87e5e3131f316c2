"""What other projects' tools write is imported as the image that they had."""

from __future__ import annotations

import json

import pytest

from tests.interop_kinds import truth_of
from tests.looking import names
from tests.tools.sample import make_sample_image as sample

pytestmark = pytest.mark.tools


@pytest.fixture(scope="module")
def truth(sample_image):
    """Digests of the sample image."""
    return truth_of(sample_image)


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
