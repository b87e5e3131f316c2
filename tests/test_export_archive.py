"""The archive itself: the same bytes whatever the store held before and wherever they go."""

from __future__ import annotations

import filecmp
import io
import itertools
import json
import os
import subprocess
import tarfile

import jsonschema
import pytest

from imgdb import ExportOptions
from imgdb.errors import NotFoundError
from imgdb.oci import platform
from tests import oci_schemas
from tests.builder import Archive, Artifact, Attestation, Image, Index, Layer, Signature, noise
from tests.looking import Members, collecting_pipe, digests, names, present

AMD64, ARM64 = Image([Layer({"n": noise(200_000)}), {"x": b"1"}]), Image(platform="linux/arm64")
INDEX = Index([AMD64, ARM64, Attestation(AMD64)])
SHA512 = Image([Layer({"five": b"12"}, algorithm="sha512")])
PARTS = [
    Archive().add(INDEX, "multi:1", "multi:2"),
    Archive().add(AMD64, "one:1").add(Artifact(subject=AMD64)),
    Archive().add(SHA512, "sha:512"),
    Archive().add(Image(labels={"no": "name"})),
    Archive().add(Signature(AMD64), "sig:1"),
]
HOST = ExportOptions(prefer=platform.parse("linux/amd64"))


def fill(store, tmp_path, parts=PARTS):
    """Import archives in the order given."""
    for number, part in enumerate(parts):
        store.load(part.oci_tar(tmp_path / f"{number}.tar"))
    return store


@pytest.fixture
def filled(store, tmp_path):
    """A store with images of all kinds."""
    return fill(store, tmp_path)


@pytest.mark.parametrize("order", [(4, 3, 2, 1, 0), (2, 0, 4, 1, 3), (1, 4, 0, 3, 2)])
def test_two_stores_give_the_same_bytes(filled, new_store, tmp_path, order):
    """Filled in another order, one of them after other images came and went."""
    other = new_store("other")
    fill(other, tmp_path, [Archive().add(Image(labels={"gone": "1"}), "gone:1")])
    other.remove("gone:1")
    fill(other, tmp_path, [PARTS[n] for n in order])
    filled.export([], str(tmp_path / "a.tar"), HOST, every=True)
    other.export([], str(tmp_path / "b.tar"), HOST, every=True)
    assert filecmp.cmp(tmp_path / "a.tar", tmp_path / "b.tar", shallow=False)


def test_every_way_out_gives_the_same_bytes(filled, tmp_path):
    """A file, a pipe, a FIFO, a stream in memory, a file that somebody opened."""
    filled.export([], str(tmp_path / "a.tar"), every=True)
    expected = (tmp_path / "a.tar").read_bytes()

    with collecting_pipe() as (out, got):
        filled.export([], out, every=True)
    assert got[0] == expected
    memory = io.BytesIO()
    filled.export([], memory, every=True)
    assert memory.getvalue() == expected
    with open(tmp_path / "opened.tar", "wb") as file:
        filled.export([], file, every=True)
    assert (tmp_path / "opened.tar").read_bytes() == expected
    os.mkfifo(tmp_path / "fifo")
    with open(tmp_path / "copied.tar", "wb") as copy:
        cat = subprocess.Popen(["cat", tmp_path / "fifo"], stdout=copy)
    filled.export([], str(tmp_path / "fifo"), every=True)
    assert cat.wait() == 0
    assert (tmp_path / "copied.tar").read_bytes() == expected


def test_the_host_decides_without_prefer(filled, tmp_path, monkeypatch):
    """Only manifest.json differs between machines, and --prefer makes it the same."""
    found = {}
    for machine, prefer in itertools.product(("amd64", "arm64"), (None, "linux/arm64")):
        host = platform.Platform("linux", machine)
        monkeypatch.setattr("imgdb.exporter.plan.host_platform", lambda host=host: host)
        options = ExportOptions(prefer=prefer and platform.parse(prefer))
        filled.export(["multi:1"], str(tmp_path / "out.tar"), options)
        found[machine, prefer] = Members(tmp_path / "out.tar").bodies
    assert found["amd64", "linux/arm64"] == found["arm64", "linux/arm64"] == found["arm64", None]
    differing = {
        name for name in found["amd64", None] if found["amd64", None][name] != found["arm64", None][name]
    }
    assert differing == {"manifest.json"}


@pytest.mark.parametrize("compress", ["gzip", "zstd"])
def test_compressed(filled, new_store, tmp_path, compress):
    """Another program unpacks it to the plain archive, and it is loaded as that is."""
    filled.export([], str(tmp_path / "plain.tar"), every=True)
    filled.export([], str(tmp_path / "packed"), ExportOptions(compress=compress), every=True)
    unpacked = subprocess.run([compress, "-dc", tmp_path / "packed"], check=True, capture_output=True).stdout
    assert unpacked == (tmp_path / "plain.tar").read_bytes()
    assert (tmp_path / "packed").stat().st_size < len(unpacked)
    other = new_store("other")
    other.load(str(tmp_path / "packed"))
    assert (names(other), present(other)) == (names(filled), present(filled))


def test_members(filled, tmp_path):
    """SaveCheckTimes, and the rest of specification §2.4: order, modes, owners, times, the end."""
    filled.export([], str(tmp_path / "out.tar"), every=True)
    members = Members(tmp_path / "out.tar")
    blobs = sorted(name for name in members.infos if name.count("/") == 2)
    folders = ["blobs", "blobs/sha256", "blobs/sha512"]
    assert list(members.infos) == [*folders, *blobs, "index.json", "manifest.json", "oci-layout"]
    for name, info in members.infos.items():
        mode = 0o755 if info.isdir() else 0o644 if name in {"index.json", "manifest.json"} else 0o444
        assert (info.mode, info.uid, info.gid, info.uname, info.gname, info.mtime) == (mode, 0, 0, "", "", 0)
        assert info.type in {tarfile.REGTYPE, tarfile.DIRTYPE}
    assert members.bodies["oci-layout"] == b'{"imageLayoutVersion":"1.0.0"}'
    last = members.infos["oci-layout"]
    assert (tmp_path / "out.tar").stat().st_size == last.offset_data + 512 + 1024


def test_documents_are_compact(filled, tmp_path):
    """Go's field order, sorted annotations, no blanks, no newline at the end."""
    filled.export(["multi:1"], str(tmp_path / "out.tar"))
    text = Members(tmp_path / "out.tar").bodies["index.json"].decode()
    assert text == (
        '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":['
        f'{{"mediaType":"{INDEX.blob.media_type}","digest":"{INDEX.digest}","size":{INDEX.blob.size},'
        '"annotations":{"io.containerd.image.name":"docker.io/library/multi:1",'
        '"org.opencontainers.image.ref.name":"1"}},'
        f"{json.dumps(json.loads(text)['manifests'][1], separators=(',', ':'))}]}}"
    )


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 100_000, 300_000])
def test_alignment(store, tmp_path, size):
    """Bodies of 64 KiB and more begin at a multiple of 4096, for file systems that share extents."""
    layers = [Layer(noise(size, seed), compression="none") for seed in range(7)]
    store.load(Image([*layers, {"x": b"1"}]).oci_tar(tmp_path / "in.tar", "app:1"))
    store.export(["app:1"], str(tmp_path / "out.tar"))
    infos = Members(tmp_path / "out.tar").infos.values()
    large = [info for info in infos if info.size >= 1 << 16]
    assert len(large) == (7 if size >= 1 << 16 else 0)
    assert {info.offset_data % 4096 for info in large} <= {0}
    # Only what is aligned costs more than a header: at most seven blocks and one of its own.
    costs = [info.offset_data - info.offset for info in infos]
    assert max(costs) <= 512 * 9
    assert all(cost == 512 for cost, info in zip(costs, infos, strict=True) if info.size < 1 << 16)


def test_documents_fit_the_schemas(filled, tmp_path):
    """Of OCI's image-spec: index.json, and every document that travels."""
    filled.export([], str(tmp_path / "out.tar"), every=True)
    members = Members(tmp_path / "out.tar")
    jsonschema.validate(json.loads(members.bodies["index.json"]), oci_schemas.INDEX)
    jsonschema.validate(json.loads(members.bodies["oci-layout"]), oci_schemas.LAYOUT)
    jsonschema.validate(members.manifest_json, oci_schemas.DOCKER_MANIFEST_JSON)
    schemas = {"index": oci_schemas.INDEX, "manifest": oci_schemas.MANIFEST}
    seen = []
    for blob in filled.blobs():
        if blob.kind in schemas and str(blob.digest) in members.digests:
            path = f"blobs/{str(blob.digest).replace(':', '/')}"
            jsonschema.validate(json.loads(members.bodies[path]), schemas[blob.kind])
            seen.append(blob.kind)
    assert set(seen) == set(schemas)


@pytest.mark.parametrize(
    "change", [{"size": -1}, {"digest": "sha256:xyz"}, {"mediaType": "nothing"}, {"size": "1"}]
)
def test_the_schemas_refuse(change):
    """What is no descriptor, so that fitting them says something."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(
            {"schemaVersion": 2, "manifests": [AMD64.descriptor() | change]}, oci_schemas.INDEX
        )


def test_a_directory(filled, new_store, tmp_path):
    """The same files as in the archive, without what is for docker; loaded as the archive is."""
    filled.export([], str(tmp_path / "out.tar"), every=True)
    filled.export([], str(tmp_path / "out"), ExportOptions(format="oci-dir"), every=True)
    bodies = {
        str(path.relative_to(tmp_path / "out")): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert bodies == {n: b for n, b in Members(tmp_path / "out.tar").bodies.items() if n != "manifest.json"}
    other = new_store("other")
    other.load(str(tmp_path / "out"))
    assert (names(other), present(other)) == (names(filled), present(filled))


def test_a_docker_archive(store, new_store, tmp_path):
    """Config and layers of the preferred platform, under docker's names; the config keeps its digest."""
    store.load(INDEX.oci_tar(tmp_path / "in.tar", "multi:1", "multi:2"))
    options = ExportOptions(format="docker-archive", prefer=platform.parse("linux/arm64"))
    store.export(["multi:1", "multi:2"], str(tmp_path / "out.tar"), options)
    config, layer = ARM64.config.digest[7:], ARM64.layers[0].blob().digest[7:]
    members = Members(tmp_path / "out.tar")
    assert members.bodies.keys() == {f"{config}.json", f"{layer}.tar", "manifest.json"}
    assert members.manifest_json == [
        {"Config": f"{config}.json", "RepoTags": ["multi:1", "multi:2"], "Layers": [f"{layer}.tar"]}
    ]
    other = new_store("other")
    other.load(str(tmp_path / "out.tar"))
    assert other.resolve("multi:2").target == other.resolve(config).target


def test_a_docker_archive_holds_images_only(store, tmp_path):
    """Whole ones: no artifact, and no layer that stays behind."""
    foreign = Image([Layer({"w": b"w"}, foreign=True), {"own": b"o"}])
    archive = Archive().add(Artifact(), "thing:1").add(AMD64, "app:1").add(foreign, "win:1")
    store.load(archive.oci_tar(tmp_path / "in.tar"))
    options = ExportOptions(format="docker-archive")
    for name, why in (("thing:1", "no image for a docker archive"), ("win:1", "foreign layer")):
        with pytest.raises(NotFoundError, match=why):
            store.export(["app:1", name], str(tmp_path / "out.tar"), options)
        assert not (tmp_path / "out.tar").exists()
    store.export(["win:1"], str(tmp_path / "out.tar"), ExportOptions(format="docker-archive", foreign=True))
    assert len(Members(tmp_path / "out.tar").bodies) == 4


def test_results_and_events(filled, tmp_path):
    """What is reported: images in order, blobs and bytes; `save` for each."""
    result = filled.export(["sha:512", "multi"], str(tmp_path / "out.tar"))
    assert [image.display_name for image in result.images] == ["sha:512", "multi:1", "multi:2"]
    bodies = Members(tmp_path / "out.tar").bodies
    sizes = [len(body) for name, body in bodies.items() if name.startswith("blobs/")]
    assert (result.blobs, result.blob_bytes) == (len(sizes), sum(sizes))
    saves = [event for event in filled.events() if event.action == "save"]
    assert [(e.actor, e.name, e.source) for e in saves] == [
        (digest, f"docker.io/library/{name}", str(tmp_path / "out.tar"))
        for digest, name in ((SHA512.digest, "sha:512"), (INDEX.digest, "multi:1"), (INDEX.digest, "multi:2"))
    ]


def test_blobs_are_carried_once(filled, tmp_path):
    """However many names and images share them."""
    filled.export(["multi:1", "one:1", "multi:2"], str(tmp_path / "out.tar"))
    with tarfile.open(tmp_path / "out.tar") as tar:
        found = [name for name in tar.getnames() if name.count("/") == 2]
    assert len(found) == len(set(found)) == len(digests(INDEX, Artifact(subject=AMD64)))
