"""Larger images that Debian's own tools build here: each comes in, goes out, and is read by others.

The scripts that build them lie beside the corpus. They take minutes, need root and Debian's mirror, and
are run once: what they built stays in ~/.cache/imgdb/large, or $IMGDB_LARGE_IMAGES (6 GB).
"""

from __future__ import annotations

import fcntl
import filecmp
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from imgdb.content.holds import locked
from imgdb.errors import NoImageError
from tests.looking import Members, names, present
from tests.tools.daemons import SBIN, ToolError

pytestmark = [pytest.mark.deep, pytest.mark.tools]

SCRIPTS = ("make_images.sh", "make_docker_images.sh", "make_artifact_images.sh")
# Command -> Debian's package, where that has another name.
NEEDED = {
    "debootstrap": "",
    "buildah": "",
    "skopeo": "",
    "umoci": "",
    "podman": "",
    "containerd": "",
    "docker-registry": "",
    "setfattr": "attr",
    "setcap": "libcap2-bin",
    "xz": "xz-utils",
    "zstd": "",
    "unshare": "util-linux",
}
NAME = "large.example/image:1"
PATH = f"{os.environ.get('PATH', os.defpath)}:{SBIN}"

IMAGES = [
    "debpy-gz.oci",
    "debpy-zstd.oci",
    "debpy-plain.oci",
    "debpy-zstdchunked.oci",
    "debpy-gz.oci.tar",
    "debpy-zstd.oci.tar",
    "debpy.docker.tar",
    "debpy.docker.tar.gz",
    "debpy.docker.tar.zst",
    "multi-image.docker.tar",
    "exotic-umoci.oci",
    "exotic-umoci.oci.tar",
    "exotic-zstd.oci.tar",
    "exotic.docker.tar",
    "multi-arch.oci",
    "multi-arch.oci.tar",
    "sparse-multi-arch.oci",
    "ctr-all-platforms.tar",
    "ctr-amd64.tar",
    "ctr-amd64-nodocker.tar",
    "docker20-save.tar",
    "docker20-save-2tags.tar",
    "docker20-save-multi.tar",
    "docker20-save-dup-layers.tar",
    "docker20-save-by-id.tar",
    "docker20-save-debpy.tar",
    "docker26-save.tar",
    "docker26-save-2tags.tar",
    "docker26-save-multi.tar",
    "docker26-save-dup-layers.tar",
    "docker26-save-by-id.tar",
    "docker26-save-debpy.tar",
    "docker26ctrd-save.tar",
    "docker26ctrd-save-2tags.tar",
    "docker26ctrd-save-multi.tar",
    "docker26ctrd-save-dup-layers.tar",
    "docker26ctrd-save-by-id.tar",
    "docker26ctrd-save-nolayer.tar",
    "docker26ctrd-save-multiarch-attest.tar",
    "docker26ctrd-buildx-oci-multiarch-attest.tar",
    "docker26ctrd-buildx-oci-plain.tar",
    "docker26ctrd-buildx-docker-plain.tar",
    "docker26ctrd-buildx-oci.dir",
    "docker26ctrd-buildx-oci-zstd.tar",
    "docker26ctrd-buildx-oci-estargz.tar",
    "docker26ctrd-buildx-oci-uncompressed.tar",
    "docker26ctrd-buildx-oci-annotated-attest.tar",
    "oras-artifacts.oci",
    "oras-artifacts.oci.tar",
    "oras-image-with-referrers.oci",
    "oras-copy-multi.oci",
    "cosign-save-exotic.oci",
    "cosign-save-multi.oci",
]
NO_IMAGES = [
    "debpy-v2s1.dir",
    "debpy-v2s2.dir",
    "multi-arch-v2list.dir",
    "docker20-export-rootfs.tar",
    "docker26-export-rootfs.tar",
    "docker26ctrd-export-rootfs.tar",
    "oras-registry-storage-tree.tar",
]

# One layer has a path twice, which docker's graph store refuses.
TWICE = "duplicates of file paths not supported"
ABSENT = "not found"  # asked for all platforms, containerd wants those that are absent
TRAP = "hard-out"  # a hard link out of the layer, put there to be refused
EXOTIC = ("exotic-umoci.oci", "exotic-umoci.oci.tar", "oras-image-with-referrers.oci")
REFUSALS = {
    "docker": dict.fromkeys(
        (*EXOTIC, "exotic-zstd.oci.tar", "exotic.docker.tar", "cosign-save-exotic.oci"), TWICE
    )
    | dict.fromkeys(("oras-artifacts.oci", "oras-artifacts.oci.tar"), "no such file"),
    "containerd": dict.fromkeys(EXOTIC, TRAP)
    | dict.fromkeys(("ctr-amd64.tar", "ctr-amd64-nodocker.tar", "sparse-multi-arch.oci"), ABSENT)
    | dict.fromkeys(("oras-artifacts.oci", "oras-artifacts.oci.tar"), "mismatched image rootfs"),
}


def missing():
    """What keeps the scripts from being run, as a sentence; empty when nothing does."""
    if os.geteuid() != 0:
        return "building the larger images takes root"
    absent = [package or tool for tool, package in NEEDED.items() if shutil.which(tool, path=PATH) is None]
    return f"apt-get install --no-install-recommends {' '.join(absent)}" if absent else ""


@pytest.fixture(scope="session")
def built(corpus):
    """The folder with what the scripts built, now or earlier."""
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    folder = Path(os.environ.get("IMGDB_LARGE_IMAGES", os.path.join(cache, "imgdb", "large")))
    scripts = [corpus / name for name in SCRIPTS]
    stamp = hashlib.sha256(b"".join(script.read_bytes() for script in scripts)).hexdigest()
    done = folder / "done"
    folder.mkdir(parents=True, exist_ok=True)
    # Each of pytest's workers comes here; one builds and the others wait.
    with locked(str(folder / "lock"), fcntl.LOCK_EX, deadline_s=3600):
        if not done.exists() or done.read_text() != stamp:
            if sentence := missing():
                pytest.skip(sentence)
            build(scripts, folder)
            done.write_text(stamp)
    return folder / "built"


def build(scripts, folder):
    """Run the scripts; the log lies beside what they build."""
    with open(folder / "log", "wb") as log:
        for script in scripts:
            argv = ["bash", script, folder / "built", folder / "work"]
            subprocess.run(argv, check=True, stdout=log, stderr=log, env={**os.environ, "PATH": PATH})
    shutil.rmtree(folder / "work")


def source_of(built, name):
    """One archive; not every version of the tools makes each."""
    if not (built / name).exists():
        pytest.skip(f"the tools of this machine did not make {name}; see {built.parent / 'log'}")
    return str(built / name)


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image(built, store, name):
    """Skopeo's dir:, root file systems and a registry's storage are refused by name."""
    with pytest.raises(NoImageError):
        store.load(source_of(built, name))
    assert store.blobs() == []


@pytest.mark.parametrize("name", IMAGES)
def test_round_trip(built, store, new_store, tmp_path, name):
    """In, out, in again: the same names, IDs and blobs, and the same archive once more."""
    store.load(source_of(built, name))
    store.export([], str(tmp_path / "out.tar"), every=True)
    other = new_store("other")
    other.load(str(tmp_path / "out.tar"))
    other.export([], str(tmp_path / "again.tar"), every=True)
    assert names(other) == names(store) != {}
    assert present(other) == present(store)
    assert filecmp.cmp(tmp_path / "out.tar", tmp_path / "again.tar", shallow=False)


@pytest.mark.parametrize("name", IMAGES)
def test_other_tools(built, store, skopeo, containerd, dockerd_graph_new, tmp_path, name):
    """One image of each is what skopeo, containerd and docker take it for, where they can take it."""
    store.load(source_of(built, name))
    images = store.images()
    runnable = [image for image in images if "image" in {manifest.kind for manifest in image.manifests}]
    target = str((runnable or images)[0].record.target.digest)
    store.tag(target, NAME)
    store.export([NAME], str(tmp_path / "one.tar"))
    members = Members(tmp_path / "one.tar")
    config = members.manifest_json and f"sha256:{members.manifest_json[0]['Config'].rpartition('/')[2]}"

    if len(members.index) == 1:  # with referrers skopeo wants a tag, and finds none for docker's types
        raw = skopeo("inspect", "--raw", f"oci-archive:{tmp_path / 'one.tar'}")
        assert f"sha256:{hashlib.sha256(raw.encode()).hexdigest()}" == target
    taken_as(dockerd_graph_new, name, tmp_path / "one.tar", config)
    taken_as(containerd, name, tmp_path / "one.tar", target, "--all-platforms")


def taken_as(engine, name, archive, digest, *flags):
    """The engine has the image under this ID, or says what we know that it says."""
    engine.remove_all()
    refusal = REFUSALS[engine.name].get(name)
    if refusal:
        with pytest.raises(ToolError, match=refusal):
            engine.load(archive, *flags)
    else:
        engine.load(archive, *flags)
        assert engine.image_ids() == {digest}
    engine.remove_all()
