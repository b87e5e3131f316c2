"""`import --rootfs`: an image of one layer, made of a root file system's tar."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgdb import ImageStore, ImportOptions
from imgdb.cli import main
from imgdb.errors import (
    BadArchiveError,
    InvalidArgumentError,
    NoImageError,
    NotFoundError,
    RefusedError,
)
from imgdb.oci.platform import host_platform
from imgdb.progress import Reporter
from tests.archive.layers import (
    device,
    fifo,
    file,
    flat_tar,
    folder,
    hardlink,
    layer,
    symlink,
    whiteout,
)
from tests.archive.rawtar import Trickle
from tests.archive.streams import zstd
from tests.builder import Image
from tests.looking import names, platforms, present
from tests.trees import Ignore, assert_same, read_tar

TAR = layer(
    folder("etc"),
    file("etc/passwd", b"root:x:0:0::/:/bin/sh\n"),
    folder("bin"),
    file("bin/sh", os.urandom(1000) * 200, mode=0o755),
    hardlink("bin/ash", "bin/sh", mode=0o755),
    symlink("usr", "/"),
    file("empty"),
)
FIXED = layer(folder("etc"), file("etc/x", b"1"))
FIXED_ID = "sha256:83c04f9f829310b22a521d64b617ac1a82aa718ce0cac84e4d6f1f364432065e"
ON_AMD64 = ImportOptions(rootfs=True, platforms=platforms("linux/amd64"))
ROOTFS = ImportOptions(rootfs=True)
FORMS = {"gzip": gzip.compress, "zstd": zstd, "bzip2": bz2.compress, "xz": lzma.compress}


def digest(data):
    """As text."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def named(name, **more):
    """Options with a name."""
    return ImportOptions(rootfs=True, name=name, **more)


def documents(store):
    """Manifest and config of the only image."""
    (image,) = store.images()
    manifest = json.loads(read(store, image.record.target.digest))
    return manifest, json.loads(read(store, manifest["config"]["digest"]))


def read(store, blob):
    """A blob's bytes."""
    algorithm, _, hexdigits = str(blob).partition(":")
    with open(os.path.join(store.root, "blobs", algorithm, hexdigits), "rb") as opened:
        return opened.read()


def ingesting(store):
    """What lies in the store's ingest."""
    return os.listdir(os.path.join(store.root, "ingest"))


class Pipe:
    """A source of unknown length that gives what it likes."""

    def __init__(self, data, step=1 << 20):
        self._source = Trickle(data, step)

    def readinto(self, buffer):
        """Some bytes; 0 at the end."""
        return self._source.readinto(buffer)


# -- the image ----------------------------------------------------------------------------------------


def test_the_image(store, tmp_path):
    """One layer, which is the file itself; a config for this host; no name and no clock."""
    (tmp_path / "root.tar").write_bytes(TAR)
    result = store.load(tmp_path / "root.tar", ROOTFS)
    manifest, config = documents(store)
    host = host_platform()

    assert [(image.name, image.platforms) for image in result.images] == [(None, (str(host),))]
    assert [one["digest"] for one in manifest["layers"]] == [digest(TAR)]
    assert manifest["layers"][0]["mediaType"] == "application/vnd.docker.image.rootfs.diff.tar"
    assert read(store, digest(TAR)) == TAR
    assert config == {
        **host.to_json(),
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest(TAR)]},
        "history": [{"created_by": "imgdb import --rootfs"}],
    }
    assert len(present(store)) == 3


def test_the_id_is_frozen(new_store):
    """The same tar has the same ID everywhere, however it comes and whatever was there before."""
    for number, (source, step) in enumerate([(FIXED, 1), (FIXED, 1000), (FIXED, 1 << 20)]):
        store = new_store(f"store{number}")
        if number:
            store.load(io.BytesIO(TAR), ROOTFS)
        (image,) = store.load(Pipe(source, step), ON_AMD64).images
        assert str(image.digest) == FIXED_ID


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("known", [True, False])
def test_compressed(store, form, known):
    """Gzip and zstd stay, layers may have them; bzip2 and xz come off. The diff ID is the plain tar's."""
    data = FORMS[form](TAR)
    store.load(io.BytesIO(data) if known else Pipe(data), ROOTFS)
    manifest, config = documents(store)

    kept = data if form in {"gzip", "zstd"} else TAR
    suffix = f".{form}" if form in {"gzip", "zstd"} else ""
    assert config["rootfs"]["diff_ids"] == [digest(TAR)]
    assert manifest["layers"] == [
        {
            "mediaType": f"application/vnd.docker.image.rootfs.diff.tar{suffix}",
            "digest": digest(kept),
            "size": len(kept),
        }
    ]
    assert read(store, digest(kept)) == kept


def test_unpacked_it_is_the_tar(store):
    """What `rootfs` writes of the image is what went in."""
    store.load(io.BytesIO(TAR), named("x"))
    out = io.BytesIO()
    store.rootfs("x", out)

    assert out.getvalue() == flat_tar(TAR)
    assert_same(read_tar(out.getvalue()), read_tar(TAR), Ignore(root=True))


@pytest.mark.parametrize(
    ("specifier", "keys"),
    [
        ("linux/arm64/v8", {"architecture": "arm64", "os": "linux"}),
        ("linux/arm", {"architecture": "arm", "os": "linux", "variant": "v7"}),
        ("windows/amd64", {"architecture": "amd64", "os": "windows"}),
        ("x86_64", {"architecture": "amd64", "os": "linux"}),
    ],
)
def test_platform(store, specifier, keys):
    """The one that is asked for, in its usual spelling, and nothing is missing of it."""
    result = store.load(io.BytesIO(TAR), ImportOptions(rootfs=True, platforms=platforms(specifier)))
    _, config = documents(store)

    assert {key: config[key] for key in ("architecture", "os", "variant") if key in config} == keys
    assert result.images[0].absent == ()


def test_one_platform_only():
    """A tar holds files of one, whatever is asked for."""
    with pytest.raises(InvalidArgumentError, match="one --platform"):
        ImportOptions(rootfs=True, platforms=platforms("amd64", "arm64"))


# -- how it is read -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 511, 512, 8191, 8192, 8193, 30_000])
@pytest.mark.parametrize("dry_run", [False, True])
def test_unknown_length(store, size, dry_run):
    """A pipe is read to its end."""
    data = layer(file("f", os.urandom(size)))
    result = store.load(Pipe(data, 1000), ROOTFS, dry_run=dry_run)

    assert result.new_blobs == 3
    assert ingesting(store) == []
    assert len(present(store)) == (0 if dry_run else 3)
    if not dry_run:
        assert read(store, digest(data)) == data


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(step=st.integers(1, 3000), form=st.sampled_from([None, *FORMS]))
def test_any_pieces(store, step, form):
    """However the bytes come: the same image."""
    data = FORMS[form](FIXED) if form else FIXED
    (one,) = store.load(Pipe(data, step), ON_AMD64).images
    (other,) = store.load(io.BytesIO(data), ON_AMD64).images

    assert one.digest == other.digest


def test_from_where_it_stands(store):
    """A stream that was read before is taken from there."""
    stream = io.BytesIO(b"front" + TAR)
    stream.seek(5)
    store.load(stream, ROOTFS)

    assert digest(TAR) in present(store)


def test_progress(store):
    """Every byte that is read counts once, and how many there will be is known of a file."""

    class Counting(Reporter):
        def __init__(self):
            self.phases, self.count = [], 0

        def start(self, phase, total=None):
            self.phases.append((phase, total))

        def advance(self, count):
            self.count += count if len(self.phases) == 1 else 0

    data = gzip.compress(TAR)
    for source, total in ((io.BytesIO(data), len(data)), (Pipe(data), None)):
        seen = Counting()
        store.load(source, ROOTFS, reporter=seen)
        assert (seen.phases[0], seen.count) == (("read", total), len(data))


def test_warnings(store):
    """Those of the reader, and of an archive that should go in without --rootfs."""

    class Warned(Reporter):
        def __init__(self):
            self.lines = []

        def warn(self, message):
            self.lines.append(message)

    def warned(data):
        seen = Warned()
        store.load(io.BytesIO(data), ROOTFS, reporter=seen)
        return seen.lines

    assert warned(TAR) == []
    assert "no end blocks" in warned(TAR.rstrip(b"\0") + bytes(-len(TAR.rstrip(b"\0")) % 512))[0]
    assert "compressed" not in str(warned(gzip.compress(TAR)))
    assert "junk after the end of the gzip" in warned(gzip.compress(TAR) + b"junk")[0]
    assert "without --rootfs" in warned(layer(file("manifest.json", b"[]")))[0]
    assert "without --rootfs" in warned(layer(file("./oci-layout"), file("./index.json")))[0]
    assert warned(layer(file("index.json"), file("etc/manifest.json"))) == []


# -- names and rules are the importer's ---------------------------------------------------------------


def test_names(store):
    """`latest` where no tag is given; a name moves, and the image before it dangles."""
    (first,) = store.load(io.BytesIO(TAR), named("web")).images
    (second,) = store.load(io.BytesIO(FIXED), named("web")).images

    assert (second.name, second.previous) == ("docker.io/library/web:latest", first.digest)
    assert str(second.digest) in names(store).values()
    with pytest.raises(RefusedError):
        store.load(io.BytesIO(TAR), named("web", replace="refuse"))
    assert names(store)["docker.io/library/web:latest"] == str(second.digest)


def test_lease(new_store):
    """A lease that is there keeps the image; one that isn't is told before anything is read."""
    store = new_store(leases={"keep"})
    store.create_lease("keep")
    store.load(io.BytesIO(TAR), ImportOptions(rootfs=True, lease="keep"))
    store.gc()
    assert len(present(store)) == 3
    with pytest.raises(NotFoundError):
        store.load(Pipe(b"never read"), ImportOptions(rootfs=True, lease="other"))


def test_dry_run(store):
    """Everything is read and judged, nothing stays."""
    (image,) = store.load(io.BytesIO(TAR), named("web"), dry_run=True).images

    assert (image.state, image.name) == ("new", "docker.io/library/web:latest")
    assert (store.images(), store.blobs(), ingesting(store)) == ([], [], [])
    with pytest.raises(BadArchiveError):
        store.load(io.BytesIO(TAR[:1000]), named("web"), dry_run=True)
    assert store.load(io.BytesIO(TAR), named("web")).images[0].digest == image.digest


def test_again(store):
    """The second time nothing is new."""
    store.load(io.BytesIO(TAR), named("web"))
    result = store.load(Pipe(TAR), named("web"))

    assert (result.new_blobs, result.images[0].state) == (0, "same")


def test_max_size(store):
    """Bytes of the input as it is, in any case before it is all stored."""
    data = gzip.compress(TAR)
    limit = ImportOptions(rootfs=True, max_size=len(data) - 1)
    for source in (io.BytesIO(data), Pipe(data)):
        with pytest.raises(BadArchiveError, match="--max-size"):
            store.load(source, limit)
    assert (store.blobs(), ingesting(store)) == ([], [])
    store.load(Pipe(data), ImportOptions(rootfs=True, max_size=len(data)))


# -- what is refused ----------------------------------------------------------------------------------

REFUSED = {
    "empty": (b"", NoImageError, "the input is empty"),
    "page": (b"<html>" * 1000, NoImageError, "no tar archive"),
    "compressed page": (gzip.compress(b"<html>" * 1000), NoImageError, "no tar archive"),
    "truncated": (TAR[:1500], BadArchiveError, "truncated"),
    "truncated gzip": (gzip.compress(TAR)[:-9], BadArchiveError, "truncated"),
    "damaged gzip": (gzip.compress(TAR)[:-8] + bytes(8), BadArchiveError, "damaged gzip"),
    "damaged xz": (lzma.compress(TAR)[:-20] + bytes(20), BadArchiveError, "xz"),
    "compressed twice": (gzip.compress(gzip.compress(TAR)), BadArchiveError, "compressed twice"),
    "unpacked xz is gzip": (lzma.compress(gzip.compress(TAR)), BadArchiveError, "compressed twice"),
    "no target": (layer(hardlink("a", "b")), BadArchiveError, "'a': hard link to 'b'"),
    "no directory": (layer(file("a"), file("a/b")), BadArchiveError, "not a directory"),
    "owner": (layer(file("a", uid=2**33)), BadArchiveError, "32 bits"),
    "whiteout device": (layer(device("a", 0, 0)), BadArchiveError, "0:0"),
    "whiteout of nothing": (layer(file("a/.wh..")), BadArchiveError, "invalid whiteout"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("known", [True, False])
def test_refused(store, case, known):
    """One line that says what it is; nothing stays, and no thread runs on."""
    data, kind, words = REFUSED[case]
    with pytest.raises(kind, match=words) as caught:
        store.load(io.BytesIO(data) if known else Pipe(data), ROOTFS)

    assert str(caught.value).startswith("standard input: ")
    assert (store.blobs(), ingesting(store)) == ([], [])
    assert not [thread for thread in threading.enumerate() if thread.name == "imgdb-rootfs"]


def test_what_is_refused_is_not_read_on(store):
    """A bad beginning is told long before the end of a long input."""

    class Endless:
        count = 0

        def readinto(self, buffer):
            self.count += len(buffer)
            buffer[:] = bytes(b"x" * len(buffer))
            return len(buffer)

    source = Endless()
    with pytest.raises(NoImageError):
        store.load(source, ROOTFS)
    assert source.count < 64 << 20


def test_errors_of_the_input_pass(store):
    """A disk that fails is no bad archive."""

    class Failing(Pipe):
        def readinto(self, buffer):
            count = super().readinto(buffer)
            if not count:
                raise OSError(5, "Input/output error")
            return count

    with pytest.raises(OSError, match="Input/output"):
        store.load(Failing(TAR, 5000), ROOTFS)
    assert not [thread for thread in threading.enumerate() if thread.name == "imgdb-rootfs"]


def test_a_file_that_shrinks(store):
    """What is announced must come."""

    class Shrunk(io.BytesIO):
        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:100]) if self.tell() < 5000 else 0

    with pytest.raises(RefusedError, match="early"):
        store.load(Shrunk(TAR), ROOTFS)


def test_directories(store, tmp_path):
    """A directory is no tar of one."""
    with pytest.raises(InvalidArgumentError, match="is a directory"):
        store.load(str(tmp_path), ROOTFS)
    with pytest.raises(NotFoundError):
        store.load(str(tmp_path / "nothing"), ROOTFS)


def test_odd_members_are_kept(store):
    """Devices, pipes, whiteouts of nothing: the layer's bytes are the tar's."""
    data = layer(device("null"), fifo("pipe"), whiteout("gone"), file("../up", b"1"))
    store.load(io.BytesIO(data), ROOTFS)

    assert read(store, digest(data)) == data


# -- the command --------------------------------------------------------------------------------------


@pytest.fixture
def imgdb(tmp_path):
    """Runs the program with some standard input; code, output and messages."""
    root = tmp_path / "cli-store"

    def call(*arguments, stdin=b"", code=0):
        command = [sys.executable, "-m", "imgdb", "--store", str(root), *map(str, arguments)]
        done = subprocess.run(command, input=stdin, capture_output=True, check=False)
        assert done.returncode == code, done
        return done.stdout.decode(), done.stderr.decode()

    call.root = root
    return call


def test_command(imgdb, tmp_path):
    """From a file and from a pipe, docker's lines; the same tar is the same image."""
    (tmp_path / "root.tar").write_bytes(FIXED)
    common = ["import", "--rootfs", "--platform", "linux/amd64"]

    assert imgdb(*common, tmp_path / "root.tar") == (f"Loaded image ID: {FIXED_ID}\n", "")
    assert imgdb(*common, "--name", "web:1", "-", stdin=FIXED) == ("Loaded image: web:1\n", "")
    report = json.loads(imgdb(*common, "--json", stdin=FIXED)[0])
    assert (report[0]["source"], report[0]["images"][0]["digest"]) == ("-", FIXED_ID)
    with ImageStore.open(imgdb.root) as store:
        assert names(store) == {"docker.io/library/web:1": FIXED_ID}


def test_command_says_what_would_change(imgdb):
    """A dry run makes no store."""
    out, _ = imgdb("import", "--rootfs", "--dry-run", "--name", "web", "-", stdin=TAR)

    assert "3 new blobs" in out
    assert not imgdb.root.exists()


def test_command_refuses(imgdb, tmp_path):
    """Exit codes as for any import; without --rootfs the way there is named."""
    (tmp_path / "root.tar").write_bytes(TAR)
    assert "no tar archive" in imgdb("import", "--rootfs", stdin=b"<html>" * 100, code=1)[1]
    assert "truncated" in imgdb("import", "--rootfs", stdin=TAR[:1500], code=3)[1]
    two = ["--platform", "linux/amd64,linux/arm64"]
    assert "one --platform" in imgdb("import", "--rootfs", *two, tmp_path / "root.tar", code=2)[1]
    assert "--rootfs" in imgdb("import", tmp_path / "root.tar", code=1)[1]
    assert "is a directory" in imgdb("import", "--rootfs", tmp_path, code=2)[1]


def test_several_files(tmp_path, capsys):
    """Each becomes an image; a name is for one."""
    for name, data in (("a.tar", TAR), ("b.tar", FIXED)):
        (tmp_path / name).write_bytes(data)
    arguments = ["import", "--rootfs", str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]

    assert main.run(["--store", str(tmp_path / "s"), *arguments]) == 0
    assert capsys.readouterr().out.count("Loaded image ID: ") == 2
    assert main.run(["--store", str(tmp_path / "s"), *arguments, "--name", "x"]) == 2


def test_an_image_archive_is_still_one(store, tmp_path):
    """Without --rootfs nothing has changed."""
    path = Image().oci_tar(tmp_path / "a.tar", "a:1")

    assert store.load(path).images[0].name == "docker.io/library/a:1"


def test_podman_runs_on_it(podman, store, tmp_path):
    """The exported image is one for podman, and its root file system is the tar."""
    store.load(Pipe(gzip.compress(TAR)), named("example.org/rootfs:1"))
    store.export(["example.org/rootfs:1"], tmp_path / "out.tar")
    podman.load(tmp_path / "out.tar")
    podman.export("example.org/rootfs:1", tmp_path / "flat.tar")

    ignore = Ignore(root=True, paths=tuple(name.encode() for name in MADE_BY_PODMAN))
    assert_same(read_tar(tmp_path / "flat.tar"), read_tar(TAR), ignore, names=("podman", "the tar"))


MADE_BY_PODMAN = ("dev", "proc", "sys", "run", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab")
