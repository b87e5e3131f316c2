# ruff: noqa: D103  the names of the tests say it
"""Each engine and tool does with a known archive what tests later take its word for."""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.conftest import absent
from tests.tools import daemons
from tests.tools.sample import make_sample_image as sample

HOST = sample.HOST


def member(archive, name):
    """A JSON member of a tar."""
    with tarfile.open(archive) as tar:
        return json.load(tar.extractfile(name))


def document(archive, digest):
    return member(archive, "blobs/" + digest.replace(":", "/"))


@pytest.fixture(scope="module")
def truth(sample_image):
    """Digests of the sample, read from the archive itself."""
    top = member(sample_image, "index.json")["manifests"][0]["digest"]
    manifests = {m["platform"]["architecture"]: m["digest"] for m in document(sample_image, top)["manifests"]}
    host = manifests[HOST]
    return {"index": top, "manifests": manifests, "host": host, **document(sample_image, host)}


def test_the_sample_is_the_same_each_time(tmp_path, sample_image):
    sample.make_sample(tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == sample_image.read_bytes()


def rootfs(path):
    with tarfile.open(path) as tar:
        names = {info.name.removeprefix("./").rstrip("/") for info in tar}
        hello = next(name for name in tar.getnames() if name.endswith("srv/hello.txt"))
        return names, tar.extractfile(hello).read().decode()


def check_docker_like(engine, archive, truth, tmp_path):
    """Load, look, save, load again, export: what docker and podman have in common."""
    engine.remove_all()
    assert sample.NAME in engine.load(archive)
    assert engine.image_ids() == {truth["config"]["digest"]}
    assert engine.names() == {sample.NAME}
    assert engine.inspect(sample.NAME)["Architecture"] == HOST

    engine.save(sample.NAME, tmp_path / "saved.tar")
    assert member(tmp_path / "saved.tar", "manifest.json")[0]["RepoTags"] == [sample.NAME]
    engine.export(sample.NAME, tmp_path / "rootfs.tar")
    names, hello = rootfs(tmp_path / "rootfs.tar")
    assert "etc/passwd" in names or "etc/os-release" in names
    assert "etc/motd" not in names  # the second layer's whiteout was applied
    assert f"linux/{HOST}" in hello

    engine.remove_all()
    assert engine.image_ids() == set()
    engine.load(tmp_path / "saved.tar")
    assert engine.image_ids() == {truth["config"]["digest"]}
    engine.remove_all()


def test_docker_graph_store(dockerd_graph, sample_docker_image, truth, tmp_path):
    check_docker_like(dockerd_graph, sample_docker_image, truth, tmp_path)


def test_newer_docker_graph_store(dockerd_graph_new, sample_docker_image, truth, tmp_path):
    check_docker_like(dockerd_graph_new, sample_docker_image, truth, tmp_path)
    assert member(tmp_path / "saved.tar", "oci-layout") == {"imageLayoutVersion": "1.0.0"}


def test_docker_containerd_store(dockerd_containerd, sample_image, truth):
    dockerd_containerd.remove_all()
    assert sample.NAME in dockerd_containerd.load(sample_image)
    assert dockerd_containerd.image_ids() == {truth["index"]}
    dockerd_containerd.remove_all()
    assert dockerd_containerd.image_ids() == set()


def test_podman(podman, sample_docker_image, truth, tmp_path):
    check_docker_like(podman, sample_docker_image, truth, tmp_path)


def test_podman_loads_an_oci_archive(podman, sample_image, truth):
    podman.remove_all()
    podman.load(sample_image)
    assert podman.image_ids() == {truth["config"]["digest"]}
    podman.remove_all()


def test_containerd(containerd, sample_image, truth, tmp_path):
    containerd.remove_all()
    assert sample.NAME in containerd.load(sample_image, "--all-platforms")
    assert containerd.names() == {sample.NAME}
    assert containerd.image_ids() == {truth["index"]}
    found = containerd.inspect(sample.NAME)["Document"]["manifests"]
    assert {m["digest"] for m in found} == set(truth["manifests"].values())

    containerd.save(sample.NAME, tmp_path / "saved.tar", "--all-platforms")
    assert member(tmp_path / "saved.tar", "index.json")["manifests"][0]["digest"] == truth["index"]
    containerd.remove_all()
    assert containerd.image_ids() == set()


def test_engines_refuse_what_is_no_image(dockerd_graph, tmp_path):
    (tmp_path / "junk.tar").write_bytes(b"junk" * 1000)
    with pytest.raises(daemons.ToolError, match="exit 1"):
        dockerd_graph.load(tmp_path / "junk.tar")
    assert dockerd_graph.log_tail()


def test_skopeo_inspects(skopeo, sample_image, truth):
    raw = json.loads(skopeo("inspect", "--raw", f"oci-archive:{sample_image}"))
    assert {m["digest"] for m in raw["manifests"]} == set(truth["manifests"].values())
    seen = json.loads(skopeo("inspect", f"oci-archive:{sample_image}"))
    assert seen["Layers"] == [layer["digest"] for layer in truth["layers"]]


@pytest.fixture(scope="module")
def layout(skopeo, sample_image, tmp_path_factory):
    """The host's image as a layout in a directory, which is all that the older tools read."""
    path = tmp_path_factory.mktemp("layout") / "oci"
    skopeo("copy", f"oci-archive:{sample_image}", f"oci:{path}:sample")
    return path


def test_umoci_stats_and_unpacks(umoci, layout, tmp_path):
    history = json.loads(umoci("stat", "--image", f"{layout}:sample", "--json"))["history"]
    assert [line.get("empty_layer", False) for line in history] == [False, False, True]
    umoci("unpack", "--rootless", "--image", f"{layout}:sample", tmp_path / "bundle")
    root = tmp_path / "bundle" / "rootfs"
    assert not (root / "etc/motd").exists()
    assert f"linux/{HOST}" in (root / "srv/hello.txt").read_text()


def test_oci_image_tool_validates(oci_image_tool, layout, tmp_path):
    validate = ("validate", "--type", "image", "--ref", "name=sample")
    oci_image_tool(*validate, layout)
    broken = shutil.copytree(layout, tmp_path / "broken")
    (broken / "oci-layout").write_text("{}")
    assert oci_image_tool.run(*validate, broken, check=False).returncode != 0


def test_a_missing_tool_names_its_package(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(daemons.ToolMissingError, match=r"xz is not installed: apt-get install .* xz-utils"):
        daemons.find("xz")


def test_a_missing_tool_is_a_skip_but_a_failure_for_root_in_ci(monkeypatch):
    missing, too_old = daemons.ToolMissingError("gone"), daemons.NotOfferedError("too old")
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(pytest.fail.Exception, match="gone"):
        absent(missing)
    with pytest.raises(pytest.skip.Exception, match="too old"):
        absent(too_old)
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="gone"):
        absent(missing)


def test_versions(dockerd_graph, podman, containerd):
    for engine in (dockerd_graph, podman, containerd):
        assert re.match(r"\d+\.\d+", engine.version())


def test_stopped_daemons_leave_nothing(dockerd_graph):
    # Its user is the group's worker; the engine here is a second, short-lived one.
    engine = daemons.Docker.start("graph")
    home, pid = engine.home, engine.service.pid
    assert home.exists()
    engine.close()
    assert not home.exists()
    assert not Path(f"/proc/{pid}").exists()
    assert str(home) not in Path("/proc/self/mounts").read_text()
    assert dockerd_graph.version()


def test_a_corpus_archive_loads_everywhere(corpus, dockerd_graph, podman, containerd, skopeo):
    records = json.loads((corpus / "corpus.json").read_text())
    both = {"D20+", "S9d+"}
    record = next(
        r for r in records if r["verdict"] == "accept" and both <= set(r.get("readers", "").split())
    )
    archive = corpus / record["path"]
    for engine in (dockerd_graph, podman, containerd):
        engine.remove_all()
        engine.load(archive)
        assert engine.image_ids()
    assert dockerd_graph.image_ids() == podman.image_ids()
    skopeo("inspect", f"docker-archive:{archive}")
