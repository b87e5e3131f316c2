"""``imgdb export``: what goes where, in which form."""

from __future__ import annotations

import io
import json
import os
import tarfile

import pytest

from tests.builder import Archive, Image, Index, Layer
from tests.cli.conftest import AMD, APP, ARM, BUSYBOX, NAMELESS, SIGNATURE, temporary_files

MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd", "none": b"blob"}


def members(data):
    """The files of an archive, by path."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {item.name: tar.extractfile(item).read() for item in tar if item.isfile()}


def tops(data):
    """(digest, full name) of what index.json lists."""
    listed = json.loads(members(data)["index.json"])["manifests"]
    names = [entry.get("annotations", {}).get("io.containerd.image.name") for entry in listed]
    return list(zip([entry["digest"] for entry in listed], names, strict=True))


def test_to_a_file(imgdb, tmp_path):
    """The archive is there, nothing is printed, nothing lies beside it."""
    done = imgdb("export", "busybox:latest", "-o", tmp_path / "out.tar")
    assert (done.out, done.err, temporary_files(tmp_path)) == ("", "", [])
    assert tops((tmp_path / "out.tar").read_bytes()) == [(BUSYBOX.digest, "docker.io/library/busybox:latest")]


@pytest.mark.parametrize("target", [[], ["-o", "-"], ["--output", "-"], ["-o", "/dev/stdout"]])
def test_to_standard_output(imgdb, tmp_path, target):
    """The same bytes as in a file."""
    imgdb("save", "busybox", "-o", tmp_path / "out.tar")
    imgdb("save", "busybox", *target)
    assert imgdb.stdout == (tmp_path / "out.tar").read_bytes()


def test_dev_stdout_is_no_file_to_replace(program, tmp_path):
    """`-o /dev/stdout > FILE` writes to the file, not over the link in /dev."""
    before = os.readlink("/dev/stdout")
    with open(tmp_path / "out.tar", "wb") as out:
        assert program("export", "busybox", "-o", "/dev/stdout", stdout=out).returncode == 0
    assert os.readlink("/dev/stdout") == before
    assert [digest for digest, _ in tops((tmp_path / "out.tar").read_bytes())] == [BUSYBOX.digest]


def test_an_existing_file_is_replaced_whole(imgdb, tmp_path):
    """The old file keeps its bytes for those who have it open; a link of it, too."""
    out, link = tmp_path / "out.tar", tmp_path / "link.tar"
    out.write_bytes(b"old")
    os.link(out, link)
    imgdb("export", "busybox", "-o", out)
    assert (link.read_bytes(), len(out.read_bytes()) > 3) == (b"old", True)


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_a_link(imgdb, tmp_path, exists):
    """As with the shell's `>`: its target is what is written."""
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "out.tar", tmp_path / "link.tar"
    if exists:
        target.write_bytes(b"old")
    link.symlink_to("there/out.tar")
    imgdb("export", "busybox", "-o", link)
    assert (os.readlink(link), temporary_files(tmp_path / "there")) == ("there/out.tar", [])
    assert [digest for digest, _ in tops(target.read_bytes())] == [BUSYBOX.digest]


def test_a_descriptor_by_its_name(program, imgdb, tmp_path):
    """`-o /dev/fd/3 3>FILE` writes into that very file."""
    imgdb("export", "busybox", "-o", tmp_path / "same.tar")
    with open(tmp_path / "out.tar", "wb") as out:
        number = out.fileno()
        done = program("export", "busybox", "-o", f"/dev/fd/{number}", pass_fds=[number])
        assert (done.returncode, os.path.samestat(os.fstat(number), os.stat(out.name))) == (0, True)
    assert (tmp_path / "out.tar").read_bytes() == (tmp_path / "same.tar").read_bytes()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["busybox"], [(BUSYBOX.digest, "docker.io/library/busybox:latest")]),
        (["example.org/app:2"], [(APP.digest, "example.org/app:2")]),
        (["example.org/app"], [(APP.digest, "example.org/app:1"), (APP.digest, "example.org/app:2")]),
        ([BUSYBOX.digest], [(BUSYBOX.digest, None)]),
        ([BUSYBOX.digest[7:19]], [(BUSYBOX.digest, None)]),
        ([BUSYBOX.config.digest], [(BUSYBOX.digest, None)]),
        ([NAMELESS.digest], [(NAMELESS.digest, None)]),
    ],
)
def test_names(imgdb, names, expected):
    """Names, repositories, IDs, short IDs and digests of configs."""
    imgdb("export", "--no-referrers", *names)
    assert tops(imgdb.stdout) == expected


def test_all(imgdb):
    """Everything in the store, what has no name as well."""
    imgdb("export", "--all")
    assert {digest for digest, _ in tops(imgdb.stdout)} == {
        *(APP.digest, BUSYBOX.digest, NAMELESS.digest, SIGNATURE.digest)
    }


@pytest.mark.parametrize("source", ["-", "list"])
def test_names_from(imgdb, tmp_path, source):
    """One a line, from a file or standard input; blank lines and comments are passed over."""
    text = b"# mine\n\n  busybox:latest \r\nexample.org/app:1\n"
    (tmp_path / "list").write_bytes(text)
    where = "-" if source == "-" else tmp_path / "list"
    imgdb("export", NAMELESS.digest, "--no-referrers", "--names-from", where, stdin=text)
    assert [digest for digest, _ in tops(imgdb.stdout)] == [NAMELESS.digest, BUSYBOX.digest, APP.digest]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "export needs a NAME, --names-from or --all"),
        (["--all", "busybox"], 2, "--all and names contradict"),
        (["--all", "--names-from", "-"], 2, "--all and names contradict"),
        (["--names-from", "-"], 1, "standard input: no names in it"),
        (["--names-from", "/absent"], 1, "/absent: No such file"),
        (["absent"], 1, "No such image: absent:latest"),
        (["busybox", "-o", ""], 2, "-o is empty"),
        (["busybox", "-o", "/absent/out.tar"], 1, "/absent/out.tar: No such file"),
        (["busybox", "-o", "/"], 4, "/ is a directory"),
        (["busybox", "--format", "oci-dir"], 2, "--format oci-dir needs -o DIR"),
        (["busybox", "--format", "oci-dir", "-o", "/"], 4, "/ exists"),
        (["busybox", "--format", "zip"], 2, "'zip' is not one of"),
        (["busybox", "--compress", "xz"], 2, "'xz' is not one of"),
        (["busybox", "--platform", "a/b/c/d"], 2, "--platform"),
        (["busybox", "--prefer", "linux/arm64,linux/amd64"], 2, "several platforms"),
        (["busybox", "--platform", "linux/s390x"], 1, "linux/s390x"),
    ],
)
def test_refusals(imgdb, arguments, code, said):
    """One line that says what and why; nothing on standard output."""
    done = imgdb("export", *arguments, code=code)
    assert (done.out, done.err.count("\n"), said in done.err) == ("", 1, True), done


def test_names_from_that_are_no_text(imgdb, tmp_path):
    """Bytes that are no UTF-8 are no name, and are printed escaped."""
    (tmp_path / "list").write_bytes(b"\xff\x1b[31m\n")
    done = imgdb("export", "--names-from", tmp_path / "list", code=2)
    assert "\\xff" in done.err
    assert "\x1b" not in done.err


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive", "oci-dir"])
def test_formats(imgdb, tmp_path, form):
    """Each has the files by which its readers know it."""
    out = tmp_path / "out"
    imgdb("export", "busybox", "--format", form, "-o", out)
    names = set(os.listdir(out)) if form == "oci-dir" else set(members(out.read_bytes()))
    marks = {name for name in names if not name.startswith("blobs")}
    expected = {
        "oci-archive": {"index.json", "manifest.json", "oci-layout"},
        "oci-dir": {"index.json", "oci-layout"},
    }
    assert (marks >= {"manifest.json"}) if form == "docker-archive" else (marks == expected[form])


@pytest.mark.parametrize("method", ["none", "gzip", "zstd"])
def test_compress(imgdb, method):
    """The whole stream is wrapped."""
    imgdb("export", "busybox", "--compress", method)
    assert imgdb.stdout.startswith(MAGIC[method])


@pytest.mark.parametrize(
    ("options", "carried"),
    [
        ([], {AMD.digest, ARM.digest}),
        (["--platform", "linux/arm64"], {ARM.digest}),
        (["--platform", "linux/arm64,linux/amd64"], {AMD.digest, ARM.digest}),
        (["--platform", "linux/arm64", "--platform", "linux/amd64"], {AMD.digest, ARM.digest}),
    ],
)
def test_platform(imgdb, options, carried):
    """Only the manifests of the wanted platforms travel."""
    imgdb("export", "example.org/app:1", "--no-referrers", *options)
    blobs = {"sha256:" + os.path.basename(name) for name in members(imgdb.stdout)}
    assert blobs & {AMD.digest, ARM.digest} == carried


@pytest.mark.parametrize(("platform", "image"), [("linux/amd64", AMD), ("linux/arm64", ARM)])
def test_prefer(imgdb, platform, image):
    """What docker without platforms gets."""
    imgdb("export", "example.org/app:1", "--prefer", platform)
    (entry,) = json.loads(members(imgdb.stdout)["manifest.json"])
    assert entry["Config"] == image.config.path


@pytest.mark.parametrize(("option", "carried"), [("--referrers", True), ("--no-referrers", False)])
def test_referrers(imgdb, option, carried):
    """Signatures travel with the image unless told not to."""
    imgdb("export", "example.org/app:1", option)
    assert (SIGNATURE.digest in dict(tops(imgdb.stdout))) == carried


def test_strict(imgdb, tmp_path):
    """An index with an absent platform is exported with a warning, or not at all."""
    sparse = Index([AMD, Image([{"x": b"1"}], platform="linux/riscv64")])
    gone = sparse.below[1]
    path = Archive().add(sparse, "sparse:1").oci_tar(tmp_path / "a.tar", without={gone.digest})
    imgdb("import", path)
    done = imgdb("export", "sparse:1")
    assert done.err == "imgdb: warning: sparse:1: not here, so left out: linux/riscv64\n"
    assert "linux/riscv64" in imgdb("export", "sparse:1", "--strict", code=1).err


@pytest.mark.parametrize("option", [[], ["--foreign"]])
def test_foreign(imgdb, tmp_path, option):
    """Foreign layers stay here unless asked for."""
    layer = Layer({"x": b"foreign"}, foreign=True)
    imgdb("import", Image([layer]).oci_tar(tmp_path / "a.tar", "windows:1"))
    imgdb("export", "windows:1", *option)
    assert (layer.blob().path in members(imgdb.stdout)) == bool(option)


def spoil(root, blob):
    """Other bytes of the same size in a blob's file."""
    path = root / blob.path
    path.chmod(0o600)
    path.write_bytes(b"x" * blob.size)
    path.chmod(0o400)


def test_damage(imgdb, root, tmp_path):
    """Exit 3, the blob is named, an old file stays, and importing heals."""
    layer = BUSYBOX.layers[1].blob(docker=True)
    spoil(root, layer)
    (tmp_path / "out.tar").write_bytes(b"old")
    done = imgdb("export", "busybox", "-o", tmp_path / "out.tar", code=3)
    assert layer.digest in done.err
    assert ((tmp_path / "out.tar").read_bytes(), temporary_files(tmp_path)) == (b"old", [])
    imgdb("import", BUSYBOX.oci_tar(tmp_path / "good.tar", "busybox:latest"))
    imgdb("export", "busybox", "-o", tmp_path / "out.tar")
    assert len((tmp_path / "out.tar").read_bytes()) > 3


def test_trust(imgdb, tmp_path):
    """Without reading the blobs the archive is the same."""
    imgdb("export", "busybox", "-o", tmp_path / "read.tar")
    imgdb("export", "busybox", "--trust", "-o", tmp_path / "trusted.tar")
    assert (tmp_path / "read.tar").read_bytes() == (tmp_path / "trusted.tar").read_bytes()


def test_digestfile(imgdb, tmp_path):
    """Digests of the images, one a line, in the order of the arguments."""
    imgdb(
        "export", "busybox", "example.org/app:1", "-o", tmp_path / "out.tar", "--digestfile", tmp_path / "d"
    )
    assert (tmp_path / "d").read_text() == f"{BUSYBOX.digest}\n{APP.digest}\n"


def test_json(imgdb, tmp_path):
    """The report is on standard output, unless that carries the archive."""
    done = imgdb("export", "busybox", "-o", tmp_path / "out.tar", "--json")
    report = json.loads(done.out)
    assert (report["output"], report["images"][0]["digest"]) == (str(tmp_path / "out.tar"), BUSYBOX.digest)
    done = imgdb("export", "busybox", "--json")
    assert json.loads(done.err) == report | {"output": "-"}
    assert imgdb.stdout == (tmp_path / "out.tar").read_bytes()


def test_fifo(started, tmp_path):
    """A FIFO is written through and stays one."""
    os.mkfifo(tmp_path / "fifo")
    process = started("export", "busybox", "-o", tmp_path / "fifo")
    data = (tmp_path / "fifo").read_bytes()
    assert process.wait(60) == 0
    assert [digest for digest, _ in tops(data)] == [BUSYBOX.digest]
    assert (tmp_path / "fifo").is_fifo()


def test_dev_null(imgdb):
    """A device is written through, and stays one."""
    imgdb("export", "busybox", "-o", "/dev/null")
    assert not os.path.isfile("/dev/null")
