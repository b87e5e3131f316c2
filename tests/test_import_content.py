"""What an import stores: every kind of content, every kind of archive, every kind of stream."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from imgdb import ExportOptions, ImportOptions
from imgdb.errors import BadArchiveError
from imgdb.oci.digest import Digest
from imgdb.progress import Reporter
from tests.builder import Archive, Artifact, Attestation, Image, Index, Layer, Signature, noise, write_tar
from tests.looking import digests, names, present

AMD64, ARM64 = Image(), Image(platform="linux/arm64")
MULTI = Index([AMD64, ARM64])
INCOMPLETE = ImportOptions(allow_incomplete=True)


@pytest.mark.parametrize(
    "node",
    [
        AMD64,
        MULTI,
        Index([Index([AMD64]), Index([Index([ARM64])])]),
        Index([AMD64, Attestation(AMD64)]),
        Image([Layer({"a": b"1"}, compression="zstd"), Layer({"b": b"2"}, compression="none")]),
        Image([Layer({"a": b"1"}, algorithm="sha512")]),
        Image([{"a": b"1"}, {"b": b"2"}, {"a": b"1"}]),
        Index([Image(docker=True)], docker=True),
        Artifact(),
        Signature(AMD64),
        Image([]),
    ],
    ids=lambda node: f"{type(node).__name__}-{node.digest[7:13]}",
)
@pytest.mark.parametrize("form", ["tar", "dir"])
def test_all_kinds_are_stored_byte_for_byte(store, tmp_path, node, form):
    """Every blob of every kind, under its own digest."""
    write = node.oci_tar if form == "tar" else node.oci_dir
    store.load(write(tmp_path / "archive", "kind:1"))

    assert names(store) == {"docker.io/library/kind:1": node.digest}
    assert present(store) == digests(node)
    for blob in node.blobs().values():
        with store.open_blob(blob.digest) as file:
            assert file.read() == blob.data


def test_what_nothing_refers_to_is_not_stored(store, tmp_path):
    """Orphans, docker's VERSION and json files, members with other names."""
    members = Archive().add(AMD64, "a:1").members() | {"README": b"hello", "blobs/sha256/" + 64 * "0": b"lie"}
    store.load(str(write_tar(tmp_path / "a.tar", members)))
    assert present(store) == digests(AMD64)


def test_a_leaf_becomes_a_document_when_it_is_named_as_one(store, tmp_path):
    """An artifact that carries an index as a file must not hide what is below the index later."""
    index = Index([AMD64])
    store.load(Artifact({"index.json": index.blob.data}).oci_tar(tmp_path / "a.tar", "backup:1"))
    store.load(index.oci_tar(tmp_path / "b.tar", "image:1"))
    assert store.export(["image:1"], str(tmp_path / "out.tar")).blobs == len(digests(index))


def test_a_document_that_comes_as_a_leaf(store, tmp_path):
    """An index waits for a manifest, and an artifact brings its bytes: they lead on all the same."""
    index = Index([AMD64, ARM64])
    store.load(index.oci_tar(tmp_path / "a.tar", "image:1", without={AMD64.digest}))
    store.load(Artifact({"manifest.json": AMD64.blob.data}).oci_tar(tmp_path / "b.tar", "backup:1"))
    assert store.blob(AMD64.config.digest).refcount == 1
    index_summary = next(image for image in store.images() if image.record.name.endswith("image:1"))
    assert [manifest.complete for manifest in index_summary.manifests] == [False, True]
    store.load(index.oci_tar(tmp_path / "c.tar", "image:1"))
    assert store.export(["image:1"], str(tmp_path / "out.tar")).blobs == len(digests(index))


def test_a_config_that_comes_later(store, tmp_path):
    """Layers learn their diff IDs from it; `check_store` compares them."""
    path = AMD64.oci_tar(tmp_path / "a.tar", "a:1", without={AMD64.config.digest})
    assert store.load(path, INCOMPLETE).images[0].platforms == ()
    assert store.load(AMD64.oci_tar(tmp_path / "b.tar", "a:1")).images[0].platforms == ("linux/amd64",)


def test_a_config_that_comes_with_another_image(store, tmp_path):
    """The image that waits for it is not in the second archive at all."""
    layer = AMD64.below[1]
    other = Image(AMD64.layers, annotations={"other": "1"})
    assert other.config.digest == AMD64.config.digest
    assert other.digest != AMD64.digest
    path = AMD64.oci_tar(tmp_path / "a.tar", "a:1", without={AMD64.config.digest})
    store.load(path, INCOMPLETE)
    store.load(other.oci_tar(tmp_path / "b.tar", "b:1"))
    with closing(sqlite3.connect(f"{store.root}/imgdb.db")) as db:
        found = db.execute(
            "SELECT m.digest, l.diff_id FROM imgdb_layers l JOIN imgdb_blobs m ON m.id = l.manifest_id "
            "WHERE l.position = 0"
        ).fetchall()
    diff_id = json.loads(AMD64.config.data)["rootfs"]["diff_ids"][0]
    assert sorted(found) == sorted([(str(AMD64.digest), diff_id), (str(other.digest), diff_id)])
    assert layer.digest in present(store)


def test_delta(store, tmp_path):
    """An archive without the layers that the store has is complete together with it, and only then."""
    base = Layer({"base": b"b" * 1000})
    old, new = Image([base]), Image([base, {"more": b"m"}])
    delta = new.oci_tar(tmp_path / "delta.tar", "app:2", without={base.blob().digest})
    with pytest.raises(BadArchiveError, match=f"app:2 is not complete, missing {base.blob().digest}"):
        store.load(delta)
    assert store.blobs() == []

    store.load(old.oci_tar(tmp_path / "old.tar", "app:1"))
    result = store.load(delta)
    assert (result.images[0].platforms, result.new_blobs) == (("linux/amd64",), 3)
    assert present(store) == digests(old, new)


def test_what_is_here_is_not_new(store, tmp_path):
    """The second import of an archive changes nothing but says so."""
    first = store.load(MULTI.oci_tar(tmp_path / "a.tar", "a:1"))
    assert (first.new_blobs, first.new_bytes) == (
        len(digests(MULTI)),
        sum(blob.size for blob in MULTI.blobs().values()),
    )
    second = store.load(MULTI.oci_dir(tmp_path / "a"))
    assert (second.new_blobs, second.new_bytes, second.images[0].state) == (0, 0, "same")


@pytest.mark.parametrize("style", ["classic", "hex", "blobs", "kaniko", "jib", "docker26"])
def test_styles_of_docker_archives(store, tmp_path, style):
    """Each gives one image of its name, repeats of a layer included."""
    image = Image([{"a": b"1"}, {"b": b"2"}, {"a": b"1"}], docker=True)
    store.load(image.docker_tar(tmp_path / "a.tar", "app:1", style=style))
    seen = store.inspect("app:1")
    assert seen["RootFS"]["Layers"] == [layer.diff_id for layer in image.layers]
    assert len(seen["Layers"]) == 3
    assert str(store.resolve(image.config.digest).target.digest) == seen["Id"]


VECTORS = {
    "none": ".diff.tar",
    "bzip2": ".diff.tar",
    "xz": ".diff.tar",
    "gzip": ".diff.tar.gzip",
    "zstd": ".diff.tar.zstd",
}


@pytest.mark.parametrize("compression", VECTORS)
def test_manifests_of_docker_archives(store, tmp_path, compression):
    """Made with docker's types and Go's field order; a change of these bytes changes every image ID."""
    image = Image([{"etc/x": b"1"}], docker=True)
    result = store.load(image.docker_tar(tmp_path / "a.tar", "v:1", layers=compression))
    layer = next(blob for blob in store.blobs() if blob.kind == "layer")
    suffix = VECTORS[compression]
    expected = (
        '{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",'
        '"config":{"mediaType":"application/vnd.docker.container.image.v1+json",'
        f'"digest":"{image.config.digest}","size":{image.config.size}}},'
        f'"layers":[{{"mediaType":"application/vnd.docker.image.rootfs{suffix}",'
        f'"digest":"{layer.digest}","size":{layer.size}}}]}}'
    )
    assert result.images[0].digest == Digest.of(expected.encode())
    if compression == "none":
        frozen = "sha256:19984933500a846526a29acb43c9645e4b1e7c4f82deb06bddd79db27468c2df"
        assert str(result.images[0].digest) == frozen


def test_an_id_does_not_depend_on_the_store(store, new_store, tmp_path):
    """Docker takes a compressed layer of the same content that it has; then one archive has two IDs."""
    image = Image([{"a": b"1"}], docker=True)
    path = image.docker_tar(tmp_path / "a.tar", "app:1", layers="none")
    store.load(image.oci_tar(tmp_path / "b.tar", "pulled:1"))
    assert store.load(path).images[0].digest == new_store("fresh").load(path).images[0].digest


class Trickle:
    """A stream that has `read` only, and gives a few bytes at a time."""

    def __init__(self, data):
        self._data = io.BytesIO(data)

    def read(self, size):
        """At most 7 bytes."""
        return self._data.read(min(size, 7))


@pytest.mark.parametrize("wrap", [io.BytesIO, Trickle])
def test_streams(store, tmp_path, wrap):
    """Anything that can be read, however slowly."""
    path = AMD64.oci_tar(tmp_path / "a.tar", "a:1", compression="gzip")
    with open(path, "rb") as file:
        store.load(wrap(file.read()))
    assert present(store) == digests(AMD64)


def test_a_pipe_that_does_not_block(store, tmp_path):
    """A parent may leave standard input so; what is not there yet is waited for."""
    with open(AMD64.oci_tar(tmp_path / "a.tar", "a:1"), "rb") as file:
        data = file.read()
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    def fill():
        with open(writing, "wb", buffering=0) as out:
            for part in (data[:3000], data[3000:]):
                time.sleep(0.5)  # long enough for the reader to come first
                out.write(part)

    thread = threading.Thread(target=fill)
    thread.start()
    with open(reading, "rb", buffering=0) as stream:
        store.load(stream)
    thread.join()
    assert present(store) == digests(AMD64)


def test_max_size(store, tmp_path):
    """Counted over the bodies of all members."""
    path = AMD64.oci_tar(tmp_path / "a.tar", "a:1")
    size = sum(len(body) for body in Archive().add(AMD64, "a:1").members().values())
    with pytest.raises(BadArchiveError, match="--max-size"):
        store.load(path, ImportOptions(max_size=size - 1))
    store.load(path, ImportOptions(max_size=size))
    assert present(store) == digests(AMD64)


class Counted(Reporter):
    """Adds up what the phases report."""

    def __init__(self):
        self.totals, self.done, self.now = {}, {}, ""

    def start(self, phase, total=None):
        """The next phase."""
        self.now = phase
        self.totals[phase], self.done[phase] = total, 0

    def advance(self, count):
        """More bytes."""
        assert self.now == "read"
        self.done["read"] += count

    def finish(self):
        """Nothing counts between phases."""
        self.now = ""


@pytest.mark.parametrize("layers", [0, 1, 40])
def test_progress_is_exact(store, tmp_path, layers):
    """To the last byte, what is read ahead while the archive is recognised included; see docs/formats.md."""
    image = Image([{f"{n}": noise(9000, n)} for n in range(layers)])
    path = Path(image.oci_tar(tmp_path / "a.tar", "a:1"))
    counted = Counted()
    store.load(path, reporter=counted)
    assert counted.done["read"] == counted.totals["read"] == path.stat().st_size
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE, bufsize=0) as cat:
        store.load(cat.stdout, reporter=counted)
    assert (counted.done["read"], counted.totals["read"]) == (path.stat().st_size, None)


def test_paths_are_objects_too(store, tmp_path):
    """What `pathlib` makes is as good as a string."""
    store.load(Path(AMD64.oci_dir(tmp_path / "a", "a:1")))
    store.export(["a:1"], tmp_path / "out.tar")
    store.export(["a:1"], tmp_path / "out", ExportOptions(format="oci-dir"))
    assert store.load(tmp_path / "out").new_blobs == store.load(tmp_path / "out.tar").new_blobs == 0
