"""``images``, ``inspect``, ``history``, ``tag``, ``rm``, ``exists``."""

from __future__ import annotations

import json
import os

import pytest

from imgdb.cli import images
from tests.builder import Image
from tests.cli.conftest import APP, BUSYBOX, NAMELESS

SHORT = BUSYBOX.digest[7:19]


@pytest.mark.parametrize("verb", ["inspect", "history"])
@pytest.mark.parametrize("name", ["example.org/app:1", "busybox"])
def test_absent_platform(imgdb, verb, name):
    """Another one's facts would be taken for this one's."""
    done = imgdb(verb, "--platform", "linux/s390x", name, code=1)
    assert done.out == ("[]\n" if verb == "inspect" else "")
    assert "has no complete linux/s390x; imgdb inspect" in done.err


@pytest.mark.parametrize("verb", [["images"], ["ls"], ["image", "ls"], ["image", "list"]])
def test_table(imgdb, verb):
    """Docker's columns; dangling images are among them."""
    header, *rows = [line.split() for line in imgdb(*verb, "--sort", "name").out.splitlines()]
    assert header == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert [row[:3] for row in rows] == [
        ["busybox", "latest", SHORT],
        ["example.org/app", "1", APP.digest[7:19]],
        ["example.org/app", "2", APP.digest[7:19]],
        ["<none>", "<none>", NAMELESS.digest[7:19]],
    ]


def test_all_changes_nothing(imgdb):
    """Docker's -a is accepted: dangling images are always shown."""
    assert imgdb("images", "-a").out == imgdb("images", "--all").out == imgdb("images").out


def test_digests_and_whole_ids(imgdb):
    """--digests adds a column, --no-trunc shows whole IDs."""
    header, row = imgdb("images", "--digests", "--no-trunc", "busybox").out.splitlines()
    assert header.split()[:5] == ["REPOSITORY", "TAG", "DIGEST", "IMAGE", "ID"]
    assert row.split()[2:4] == [BUSYBOX.digest, BUSYBOX.digest]


@pytest.mark.parametrize(
    ("options", "line"),
    [(["-q"], SHORT), (["-q", "--no-trunc"], BUSYBOX.digest), (["--quiet", "--format", "json"], SHORT)],
)
def test_quiet(imgdb, options, line):
    """IDs only, each once; a -q before the verb is another one."""
    assert imgdb("images", *options, "busybox").out == f"{line}\n"
    assert imgdb("images", "-q", "example.org/app").out == f"{APP.digest[7:19]}\n"
    assert imgdb("-q", "images").out == imgdb("images").out


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["dangling=true"], {None}),
        (["dangling=false", "label=stage=prod"], {"app:1", "app:2"}),
        (["label=stage"], {"app:1", "app:2", "busybox"}),
        (["label=stage=prod", "label=team"], {"app:1", "app:2"}),
        (["label!=stage", "dangling=0"], set()),
        (["reference=example.org/*:1"], {"app:1"}),
        (["reference=busybox", "reference=example.org/app:2"], {"busybox", "app:2"}),
        (["before=busybox"], set()),
        (["since=busybox"], set()),
        (["until=2020-01-01"], set()),
        (["until=0s", "reference=busybox"], {"busybox"}),
    ],
)
def test_filter(imgdb, filters, expected):
    """Values of one key are alternatives, labels must all be there, keys must all agree."""
    known = {"example.org/app:1": "app:1", "example.org/app:2": "app:2", None: None}
    known["docker.io/library/busybox:latest"] = "busybox"
    options = [word for text in filters for word in ("--filter", text)]
    listed = json.loads(imgdb("images", *options, "--format", "json").out)
    assert {known[image["name"]] for image in listed} == expected


def test_filter_by_age(imgdb, tmp_path):
    """Keys before and since compare what the configs say about their making."""
    imgdb("import", Image([{"x": b"1"}], created="2020-01-01T00:00:00Z").oci_tar(tmp_path / "o.tar", "old:1"))
    assert imgdb("images", "-f", "before=busybox", "--format", "{{.Repository}}").out == "old\n"
    assert "busybox" in imgdb("images", "-f", "since=old:1", "--format", "{{.Repository}}").out.split()


@pytest.mark.parametrize(
    ("filter_", "code"),
    [("x=1", 2), ("dangling", 2), ("dangling=maybe", 2), ("until=never", 2), ("before=absent", 1)],
)
def test_wrong_filters(imgdb, filter_, code):
    """A mistake is no empty list."""
    done = imgdb("images", "--filter", filter_, code=code)
    assert (done.out, done.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("key", images._SORT_KEYS)
def test_sort(imgdb, key):
    """Each key sorts all images, the same way each time."""
    listed = imgdb("images", "--sort", key, "--format", "{{.digest}} {{.Tag}}").out
    assert len(listed.splitlines()) == 4
    assert imgdb("images", "--sort", key, "--format", "{{.digest}} {{.Tag}}").out == listed


def test_sort_orders(imgdb):
    """The largest first, names ascending."""
    sizes = [image["size"] for image in json.loads(imgdb("images", "--sort", "size", "--format", "json").out)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1
    repositories = imgdb("images", "--sort", "repository", "--format", "{{.Repository}}").out.split()
    assert repositories[:3] == ["busybox", "example.org/app", "example.org/app"]


def test_formats(imgdb):
    """An array, a line each, docker's fields, docker's table."""
    (image,) = json.loads(imgdb("images", "busybox", "--format", "json").out)
    assert json.loads(imgdb("images", "busybox", "--format", "jsonl").out) == image
    assert (image["id"], image["size"] > 0, image["labels"]) == (BUSYBOX.digest, True, {"stage": "test"})
    text = imgdb("images", "busybox", "--format", "{{.Repository}}:{{.Tag}} {{.ID}} {{.Digest}}").out
    assert text == f"busybox:latest {SHORT} {BUSYBOX.digest}\n"
    table = imgdb("images", "busybox", "--format", "table {{.ID}}\t{{.CreatedAt}}").out.splitlines()
    assert [line.split("  ")[0] for line in table] == ["IMAGE ID", SHORT]


def test_no_store(imgdb, tmp_path):
    """It says how to get one."""
    done = imgdb("--store", tmp_path / "absent", "images", code=1)
    assert done.err == f"imgdb: error: there is no store in {tmp_path}/absent yet; imgdb import makes one\n"


@pytest.mark.parametrize("name", ["busybox", BUSYBOX.digest, SHORT, BUSYBOX.config.digest])
def test_inspect(imgdb, name):
    """An array with one object, by whatever names the image."""
    (found,) = json.loads(imgdb("inspect", name).out)
    assert (found["Id"], found["RepoTags"]) == (BUSYBOX.digest, ["busybox:latest"])


def test_inspect_several(imgdb):
    """In the order asked for; those that are absent are told, the others shown."""
    done = imgdb("inspect", "absent", "busybox", "example.org/app:1", code=1)
    assert [found["Id"] for found in json.loads(done.out)] == [BUSYBOX.digest, APP.digest]
    assert done.err == "imgdb: error: No such image: absent:latest\n"


def test_inspect_without_a_tag(imgdb):
    """Latest is meant, as with docker; who didn't know sees what there is."""
    there = "there is example.org/app:1, example.org/app:2"
    done = imgdb("inspect", "example.org/app", code=1)
    assert done.err == f"imgdb: error: No such image: example.org/app:latest; {there}\n"
    assert "there is" not in imgdb("inspect", "example.org/app:latest", code=1).err


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
def test_inspect_platform(imgdb, platform):
    """Of an index, the image of that platform."""
    arguments = ["--platform", platform, "-f", "{{.Os}}/{{.Architecture}}", "example.org/app:1"]
    assert imgdb("inspect", *arguments).out == f"{platform}\n"


@pytest.mark.parametrize("verb", ["inspect", "history"])
def test_one_platform(imgdb, verb):
    """A list of platforms is a usage error, not silently its first."""
    done = imgdb(verb, "--platform", "linux/amd64,linux/arm64", "busybox", code=2)
    assert "several platforms" in done.err


@pytest.mark.parametrize(
    ("form", "expected"),
    [("{{.Config.Labels.stage}}", "test\n"), ("{{json .Os}}", '"linux"\n'), ("jsonl", None)],
)
def test_inspect_formats(imgdb, form, expected):
    """Templates reach into the object; jsonl is the object."""
    out = imgdb("inspect", "-f", form, "busybox").out
    assert out == expected if expected else json.loads(out)["Id"] == BUSYBOX.digest


@pytest.mark.parametrize("form", ["table", "table {{.Id}}", ""])
def test_inspect_has_no_table(imgdb, form):
    """There are no columns for it."""
    assert "no table" in imgdb("inspect", "--format", form, "busybox", code=2).err


def test_history(imgdb):
    """Newest first, a line for each step."""
    header, *rows = imgdb("history", "busybox").out.splitlines()
    assert header.split() == ["LAYER", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    assert [row.split("   ")[2].strip() for row in rows] == ["layer 1", "layer 0"]


def test_history_options(imgdb):
    """-q, whole digests, raw sizes and times, templates, JSON."""
    digests = [layer.blob(docker=True).digest for layer in reversed(BUSYBOX.layers)]
    assert imgdb("history", "-q", "--no-trunc", "busybox").out.split() == digests
    assert imgdb("history", "--quiet", "busybox").out.split() == [digest[7:19] for digest in digests]
    size = BUSYBOX.layers[1].blob().size
    raw = imgdb("history", "--no-human", "busybox").out.splitlines()[1].split()
    assert raw[1:5] == ["2025-01-01T00:00:00Z", "layer", "1", str(size)]
    assert imgdb("history", "-H", "busybox").out == imgdb("history", "busybox").out
    assert imgdb("history", "--format", "{{.ID}} {{.Size}}", "busybox").out.startswith(f"{digests[0][7:19]} ")
    steps = json.loads(imgdb("history", "--format", "json", "busybox").out)
    assert next((step["layer"], step["size"]) for step in steps) == (digests[0], size)
    arm = imgdb("history", "--platform", "linux/arm64", "-q", "example.org/app:1").out
    assert arm != imgdb("history", "--platform", "linux/amd64", "-q", "example.org/app:1").out


def test_long_commands_are_cut(imgdb, tmp_path):
    """As docker cuts them, in tables and templates, unless told not to."""
    long = "RUN " + "x" * 100
    image = Image([{"x": b"1"}], history=[{"created_by": long}])
    imgdb("import", image.oci_tar(tmp_path / "long.tar", "long:1"))
    assert imgdb("history", "--format", "{{.CreatedBy}}", "long:1").out == f"{long[:44]}…\n"
    assert long in imgdb("history", "--no-trunc", "long:1").out


def test_tag(imgdb):
    """A second name for an image; said is only what somebody loses."""
    done = imgdb("tag", "busybox", "example.org/app:1")
    undo = "imgdb tag --restore example.org/app:1"
    assert (done.out, done.err) == (
        "",
        f"imgdb: example.org/app:1 pointed to {APP.digest}; undo: {undo}\n",
    )
    assert imgdb("tag", "busybox", "mine").err == ""
    assert imgdb("tag", "-q", "example.org/app:2", "busybox").err == ""


@pytest.mark.parametrize(
    ("source", "name", "code"),
    [
        ("absent", "x", 1),
        ("busybox", "Bad Name", 2),
        ("busybox", f"x@{APP.digest}", 2),
        ("busybox", "sha256", 2),
        ("Bad Name", "x", 2),
    ],
)
def test_tag_refusals(imgdb, source, name, code):
    """Unknown images and impossible names."""
    done = imgdb("tag", source, name, code=code)
    assert (done.out, done.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("verb", [["rm"], ["rmi"], ["untag"], ["image", "rm"], ["image", "remove"]])
def test_rm(imgdb, verb):
    """The last name takes the image with it; docker's lines."""
    done = imgdb(*verb, "busybox")
    lines = done.out.splitlines()
    assert lines[:2] == ["Untagged: busybox:latest", f"Deleted: {BUSYBOX.digest}"]
    assert [line.partition(":")[0] for line in lines[2:]] == ["Total reclaimed space"]
    imgdb("exists", "busybox", code=1)


def test_rm_of_one_name(imgdb):
    """Another name is left, so that the way back can be named, and works."""
    done = imgdb("rm", "example.org/app:1")
    undo = "tag --restore example.org/app:1"
    assert done.out == "Untagged: example.org/app:1\n"
    assert done.err == f"imgdb: example.org/app:1 was {APP.digest}; undo: imgdb {undo}\n"
    imgdb(*undo.split())
    imgdb("exists", "example.org/app:1")


def test_rm_by_id(imgdb):
    """All names of the image, unless they are in several repositories; then by force."""
    imgdb("tag", "busybox", "mine")
    assert "must be forced" in imgdb("rm", SHORT, code=4).err
    done = imgdb("rm", "--force", "--no-gc", SHORT)
    assert sorted(done.out.splitlines()) == [
        f"Deleted: {BUSYBOX.digest}",
        "Untagged: busybox:latest",
        "Untagged: mine:latest",
    ]


def test_rm_several(imgdb):
    """Each is tried, each failure told where it happens; the first one gives the code."""
    imgdb("tag", "busybox", "mine")
    done = imgdb("rm", SHORT, "absent", "example.org/app:1", "--no-prune", code=4)
    assert done.out == "Untagged: example.org/app:1\n"
    assert [line.split(" ")[1] for line in done.err.splitlines()] == ["error:", "error:", "example.org/app:1"]


@pytest.mark.parametrize(
    ("option", "said"),
    [("-f", "imgdb: warning: No such image: absent:latest\n"), ("-i", ""), ("--ignore", ""), ("-fi", "")],
)
def test_rm_of_what_is_not_there(imgdb, option, said):
    """As docker's -f and podman's -i."""
    assert imgdb("rm", option, "absent").err == said
    assert imgdb("rm", "absent", code=1).err == "imgdb: error: No such image: absent:latest\n"


@pytest.mark.parametrize(
    ("name", "code"),
    [("busybox", 0), (BUSYBOX.digest, 0), (SHORT, 0), ("absent", 1), ("a" * 64, 1), ("Bad Name", 2)],
)
def test_exists(imgdb, name, code):
    """The answer is the exit code; only trouble says something."""
    done = imgdb("exists", name, code=code)
    assert (done.out, done.err == "") == ("", code < 2)


def test_exists_without_a_store(imgdb, tmp_path):
    """Nothing is there, so the image is not."""
    assert imgdb("--store", tmp_path / "absent", "exists", "busybox", code=1).err == ""


def test_exists_in_trouble(imgdb, root, tmp_path):
    """When it can't be told, the code is another one than 1."""
    imgdb("--db", tmp_path / "absent.db", "exists", "busybox", code=4)
    assert imgdb("--store", "/dev/null", "exists", "busybox", code=2).err.count("\n") == 1
    (root / "store.json").write_text("[]")
    imgdb("exists", "busybox", code=3)
    os.rename(root, tmp_path / "spoiled")


def test_rm_without_gc(imgdb):
    """The names go, the bytes stay until the next gc."""
    assert "reclaimed" not in imgdb("rm", "--no-gc", "busybox").out
    assert imgdb("gc").out.startswith("freed ")


def test_tag_restore(imgdb):
    """A name goes back to where it pointed, and history tells where that was."""
    imgdb("tag", "busybox", "moving")
    imgdb("tag", APP.digest, "moving")
    assert f"moving points to {BUSYBOX.digest} again" in imgdb("tag", "--restore", "moving").err
    periods = json.loads(imgdb("history", "--tag", "moving", "--format", "json").out)
    assert [period["digest"] for period in periods] == [BUSYBOX.digest, str(APP.digest), BUSYBOX.digest]
    assert [period["held"] for period in periods] == [True, True, True]
    assert "no earlier target" in imgdb("tag", "--restore", "busybox", code=1).err
